//! `sar convert` and `sar inspect`, run as programs.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use program::{does, refuses_at_once as refuses, sar};
use sar_weights::{NamedTensors, cast_floats};

fn parity(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity").join(name)
}

fn released(name: &str) -> String {
    parity(name).to_str().unwrap().to_owned()
}

fn read(folder: &Path, name: &str) -> NamedTensors {
    NamedTensors::read(&folder.join(name)).unwrap()
}

#[test]
fn every_way_between_the_formats_keeps_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (case, root) in [("flexvar_tiny", "trainer.var_wo_ddp"), ("var_tiny", ""), ("var_phi5", "")]
    {
        for file in ["backbone", "tokenizer"] {
            let root = if file == "tokenizer" && !root.is_empty() { "model" } else { root };
            let input = released(&format!("{case}/{file}.pth"));
            let name = |ending: &str| format!("{case}-{file}.{ending}");
            let (own, pth, again) = (name("safetensors"), name("pth"), name("again.safetensors"));
            does(folder, &["convert", &input, &own]);
            let mut args = vec!["convert", &own, &pth];
            if !root.is_empty() {
                args.extend(["--nest", root]);
            }
            does(folder, &args);
            does(folder, &["convert", &pth, &again]);

            let before = NamedTensors::read(&parity(&format!("{case}/{file}.pth"))).unwrap();
            let after = read(folder, &pth);
            assert_eq!(after.infos(), before.infos(), "{pth}");
            for (name, data) in before.iter() {
                assert_eq!(after.get(name), Some(data), "{name}");
            }
            let [own, again] = [own, again].map(|name| fs::read(folder.join(name)).unwrap());
            assert_eq!(own, again);
        }
    }
}

#[test]
fn element_types_are_kept_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let input = released("var_tiny/backbone.pth");
    let f32s = NamedTensors::read(&parity("var_tiny/backbone.pth")).unwrap();
    for (dtype, burn) in [("f16", burn::tensor::DType::F16), ("bf16", burn::tensor::DType::BF16)] {
        let [half, kept, wide] =
            ["half.pth", "kept.safetensors", "wide.pth"].map(|name| format!("{dtype}-{name}"));
        does(folder, &["convert", &input, &half, "--dtype", dtype]);
        does(folder, &["convert", &half, &kept]);
        does(folder, &["convert", &kept, &wide, "--dtype", "f32"]);
        let (half, kept, wide) = (read(folder, &half), read(folder, &kept), read(folder, &wide));
        assert_eq!(half, kept);
        for (name, data) in f32s.iter() {
            let expected = cast_floats(data.clone(), burn).unwrap();
            assert_eq!(kept.get(name), Some(&expected), "{name}");
            let expected = cast_floats(expected, burn::tensor::DType::F32).unwrap();
            assert_eq!(wide.get(name), Some(&expected), "{name}");
        }
        assert_eq!(kept.get("lvl_1L").unwrap().dtype, burn::tensor::DType::I64);
    }
}

/// Half a file is half as long, says what it is, and is read as the rounded numbers.
#[test]
fn files_in_half_precision_sample() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/weights/emoji");
    let of_box = |name: &str| weights.join(format!("{name}.safetensors")).display().to_string();
    let size = |name: &str| fs::metadata(folder.join(name)).unwrap().len() as f64;
    let sample = |dtype: &str| {
        let [tokenizer, backbone] =
            ["tokenizer", "backbone-sar"].map(|name| format!("{name}-{dtype}.safetensors"));
        let args = ["sample", "--class", "animals", "--n", "2", "--out", dtype];
        let args = [&args[..], &["--tokenizer", &tokenizer, "--backbone", &backbone]].concat();
        does(folder, &args);
        fs::read(folder.join(format!("{dtype}-grid.png"))).unwrap()
    };
    let mut pictures = Vec::new();
    for dtype in ["f16", "bf16"] {
        for name in ["tokenizer", "backbone-sar"] {
            let [single, half, wide] = ["f32".into(), dtype.into(), format!("{dtype}-f32")]
                .map(|what: String| format!("{name}-{what}.safetensors"));
            does(folder, &["convert", &of_box(name), &half, "--dtype", dtype]);
            does(folder, &["convert", &half, &wide, "--dtype", "f32"]);
            if dtype == "f16" {
                does(folder, &["convert", &of_box(name), &single, "--dtype", "f32"]);
            }
            let share = size(&half) / size(&single);
            assert!((0.5..0.52).contains(&share), "{half}: {share}");
            let (said, _) = does(folder, &["inspect", &half]);
            assert!(said.contains(&format!("floats        {dtype}\n")), "{said}");
        }
        // What is read is what the file holds, rounded once and not again.
        let pixels = sample(dtype);
        assert_eq!(pixels, sample(&format!("{dtype}-f32")));
        pictures.push(pixels);
    }
    assert_ne!(pictures[0], pictures[1], "the rounding makes no difference");
}

#[test]
fn what_a_file_does_not_show_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let metadata = |name: &str, field: &str| {
        serde_json::from_str::<serde_json::Value>(&read(folder, name).metadata()[field]).unwrap()
    };
    // The published scales and numbered classes.
    let tiny = released("flexvar_tiny/backbone.pth");
    let (_, said) = does(folder, &["convert", &tiny, "a.safetensors"]);
    assert!(said.contains("assumed scales 1_2_3_4_5_6_8_10_13_16"), "{said}");
    assert!(said.contains("assumed the names of the 10 classes"), "{said}");
    assert_eq!(metadata("a.safetensors", "classes")[9], "9");
    assert_eq!(metadata("a.safetensors", "scales"), "1_2_3_4_5_6_8_10_13_16");
    assert_eq!(metadata("a.safetensors", "config")["heads"], 2);

    // What was said once stays said, through a .pth as well.
    let names: Vec<String> = (0..10).map(|i| format!("name {i}")).collect();
    fs::write(folder.join("names.txt"), names.join("\n")).unwrap();
    let said = ["--classes", "names.txt", "--scales", "1_2_4"];
    does(folder, &[&["convert", &tiny, "b.pth"], &said[..]].concat());
    let (_, said) = does(folder, &["convert", "b.pth", "b.safetensors"]);
    assert!(!said.contains("assumed"), "{said}");
    assert_eq!(metadata("b.safetensors", "classes")[3], "name 3");
    assert_eq!(metadata("b.safetensors", "scales"), "1_2_4");

    // No q/k normalization and an unusual width: nothing shows the heads.
    let shared = released("flexvar_shared_adaln/backbone.pth");
    refuses(
        folder,
        &["convert", &shared, "c.safetensors"],
        &["backbone.pth: ", "number of heads", "--heads"],
    );
    refuses(
        folder,
        &["convert", &shared, "c.safetensors", "--heads", "5"],
        &["32 is not a multiple of heads (5)"],
    );
    does(folder, &["convert", &shared, "c.safetensors", "--heads", "4"]);
    assert_eq!(metadata("c.safetensors", "config")["heads"], 4);
    let (_, said) = does(folder, &["convert", "c.safetensors", "d.safetensors"]);
    assert!(!said.contains("assumed"), "{said}");
    assert_eq!(
        fs::read(folder.join("c.safetensors")).unwrap(),
        fs::read(folder.join("d.safetensors")).unwrap()
    );

    // VAR's buffer of levels shows the scales.
    does(folder, &["convert", &released("var_phi5/backbone.pth"), "e.safetensors"]);
    let case = fs::read_to_string(parity("var_phi5/case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&case).unwrap();
    let sides: Vec<String> =
        case["scales"].as_array().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(metadata("e.safetensors", "scales"), sides.join("_"));
}

#[test]
fn released_and_converted_files_are_all_that_sampling_needs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for case in ["flexvar_tiny", "var_tiny"] {
        let sample = |tokenizer: &str, weights: &str, out: &str| {
            let files = ["--tokenizer", tokenizer, "--backbone", weights, "--out", out];
            let args = [&["sample", "--class", "3", "--n", "1"], &files[..]].concat();
            let (_, said) = does(folder, &args);
            let released = weights.ends_with("backbone.pth");
            assert_eq!(said.contains("assumed the names of the 10 classes"), released, "{said}");
            fs::read(folder.join(format!("{out}-grid.png"))).unwrap()
        };
        let [tokenizer, backbone] =
            ["tokenizer", "backbone"].map(|file| released(&format!("{case}/{file}.pth")));
        let image = sample(&tokenizer, &backbone, &format!("{case}-released"));
        for ending in ["safetensors", "pth"] {
            let [t, b, out] = ["t", "b", "out"].map(|name| format!("{case}-{name}.{ending}"));
            does(folder, &["convert", &tokenizer, &t]);
            does(folder, &["convert", &backbone, &b]);
            assert_eq!(sample(&t, &b, &out), image, "{case} {ending}");
        }
    }
}

#[test]
fn small_weights_come_with_the_project() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (_, said) = does(folder, &["sample", "--class", "animals", "--n", "2"]);
    assert!(!said.contains("assumed") && !said.contains("as published"), "{said}");
    does(folder, &["sample", "--class", "animals", "--n", "2", "--seed", "1"]);
    let [one, other] = ["samples", "samples-2"]
        .map(|out| fs::read(folder.join(format!("{out}-grid.png"))).unwrap());
    assert_ne!(one, other, "the seed makes no difference");
    does(folder, &["sample", "--class", "animals", "--n", "2", "--precision", "bf16"]);
    assert_ne!(one, fs::read(folder.join("samples-3-grid.png")).unwrap(), "no other precision");
    let (code, _, said) = sar(folder, &["sample", "--precision", "f8"]);
    assert!(code != Some(0) && said.contains("f32, bf16 and f16"), "{said}");
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/weights/emoji");
    let size = |name: &str| fs::metadata(weights.join(name)).unwrap().len();
    assert!(size("tokenizer.safetensors") + size("backbone-sar.safetensors") <= 12_000_000);
}

/// As `sar inspect FILE | true`.
#[test]
fn a_reader_that_has_gone_is_no_reason_to_panic() {
    for args in
        [vec!["inspect", &*released("flexvar_tiny/backbone.pth")], vec!["inspect", "--device"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.args(&args).stdout(writer).stderr(std::process::Stdio::piped());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn what_cannot_be_converted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tiny = released("flexvar_tiny/backbone.pth");
    let tokenizer = released("flexvar_tiny/tokenizer.pth");
    let check = |args: &[&str], parts: &[&str]| {
        refuses(folder, &[&["convert"], args].concat(), parts);
    };
    fs::write(folder.join("there.pth"), "work of years").unwrap();
    check(&[&tiny, "there.pth"], &["there.pth", "exists already"]);
    check(&[&tiny, "out"], &["out", ".pth nor .safetensors", "--to"]);
    check(&[&tiny, "out.safetensors", "--nest", "model"], &["--nest model", ".pth"]);
    check(&["nowhere.pth", "out.pth"], &["nowhere.pth", "cannot read"]);
    check(&[".", "out.pth"], &["it is a folder"]);
    check(&[&tiny, "no/folder/out.pth"], &["no/folder/out.pth", "there is no folder"]);
    check(&["there.pth", "out.pth"], &["there.pth", "neither a PyTorch"]);
    check(&[&tiny, "out.pth", "--heads", "4"], &["there are 2 heads, not 4"]);
    check(&[&tokenizer, "out.pth", "--heads", "4"], &["--heads", "tokenizer"]);
    check(&[&tiny, "out.pth", "--scales", "2_1"], &["--scales 2_1"]);
    check(&[&tiny, "out.pth", "--classes", "there.pth"], &["classes: 1 names for 10"]);
    let var = released("var_tiny/backbone.pth");
    check(&[&var, "out.pth", "--scales", "1_2_3"], &["1_2_3 are 14 tokens", "680 in 10"]);

    let mut named = NamedTensors::read(&parity("var_tiny/tokenizer.pth")).unwrap();
    let bias = named.get("quant_conv.bias").unwrap();
    let big = burn::tensor::TensorData::new(vec![1e6f32; 8], bias.shape.clone());
    named.insert("quant_conv.bias", big);
    named.write_pth(&folder.join("big.pth"), "").unwrap();
    let parts = ["big.pth", "tensor quant_conv.bias: 1e6 is beyond the range of f16; bf16 reaches"];
    check(&["big.pth", "out.pth", "--dtype", "f16"], &parts);
    does(folder, &["convert", "big.pth", "big-bf16.safetensors", "--dtype", "bf16"]);
    named.remove("quant_conv.bias");
    named.write_pth(&folder.join("less.pth"), "").unwrap();
    check(&["less.pth", "out.pth"], &["less.pth", "1 missing: quant_conv.bias"]);
    let golden = released("flexvar_tiny/golden.safetensors");
    check(&[&golden, "out.pth"], &["golden.safetensors", "no known model"]);

    // A flipped bit is found before the file has its name.
    for name in ["good.safetensors", "good.pth"] {
        does(folder, &["convert", &tokenizer, name]);
        let mut content = fs::read(folder.join(name)).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(folder.join(name), &content).unwrap();
        check(&[name, "out.pth"], &[name, "checksum"]);
    }
}

#[test]
fn files_of_weights_are_described() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let inspect = |args: &[&str], parts: &[&str]| {
        let (said, _) = does(folder, &[&["inspect"], args].concat());
        for part in parts {
            assert!(said.contains(part), "{args:?}: '{part}' is not in:\n{said}");
        }
        said
    };
    let tiny = released("flexvar_tiny/backbone.pth");
    let said = inspect(
        &[&tiny],
        &[
            "kind          flexvar-backbone\n",
            "checksum      matches, of every storage",
            "took the tensors under 'trainer.var_wo_ddp'",
            "depth         2",
            "heads         2",
            "classes       10",
            "positions     a grid of 32x32",
            "2 x f32 [96, 32]  trainer.var_wo_ddp.blocks.*.attn.mat_qkv.weight",
        ],
    );
    assert!(!said.contains("blocks.0.attn"), "{said}");
    // 36 tensors without a mask and two biases of zeros.
    let n: usize = NamedTensors::read(&parity("flexvar_tiny/backbone.pth"))
        .unwrap()
        .iter()
        .filter(|(name, _)| !name.ends_with("masking") && !name.ends_with("zero_k_bias"))
        .map(|(_, data)| data.num_elements())
        .sum();
    let said = said.replace(',', "");
    assert!(said.contains(&format!("parameters    {n} in 33 tensors")), "{said}");
    inspect(&[&tiny, "--all"], &["f32 [96, 32]  trainer.var_wo_ddp.blocks.1.attn.mat_qkv.weight"]);
    inspect(&[&released("var_phi5/tokenizer.pth")], &["kind          var-tokenizer", "Shared(5)"]);

    does(folder, &["convert", &tiny, "own.safetensors"]);
    inspect(
        &["own.safetensors"],
        &["checksum      matches\n", "kind = flexvar-backbone", "scales = \"1_2_3"],
    );
    let golden = released("flexvar_tiny/golden.safetensors");
    inspect(&[&golden], &["tensors of no known model", "checksum      none in the file"]);
}

#[test]
fn a_device_says_the_vector_instructions_that_run() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    let output = command.args(["inspect", "--device", "flex"]).env("SAR_CPU", "scalar").output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(said.contains("instructions  scalar of ") && said.contains("SAR_CPU"), "{said}");
}

#[test]
fn recipes_and_run_directories_are_described() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let recipe = sar_train::Recipe::load("emoji-quick", &["seed=77".into()]).unwrap().to_toml();
    fs::write(folder.join("r.toml"), &recipe).unwrap();
    let (said, _) = does(folder, &["inspect", "r.toml"]);
    assert!(said.contains("recipe, complete and valid") && said.contains("seed          77"));
    fs::write(folder.join("bad.toml"), recipe.replace("seed =", "sede =")).unwrap();
    refuses(folder, &["inspect", "bad.toml"], &["bad.toml", "sede"]);

    let run = folder.join("run");
    fs::create_dir_all(run.join("checkpoints")).unwrap();
    refuses(
        folder,
        &["inspect", "run"],
        &["run: it is a folder without an index of shards", "recipe.toml"],
    );
    fs::write(run.join("recipe.toml"), &recipe).unwrap();
    let lines =
        "{\"stage\":\"pretrain\",\"step\":30}\n{\"stage\":\"pretrain\",\"step\":40}\n{\"sta";
    fs::write(run.join("metrics.jsonl"), lines).unwrap();
    does(
        folder,
        &["convert", &released("flexvar_tiny/tokenizer.pth"), "run/tokenizer.safetensors"],
    );
    let mut checkpoint = NamedTensors::new();
    for (name, data) in NamedTensors::read(&parity("flexvar_tiny/backbone.pth")).unwrap() {
        let name = name.trim_start_matches("trainer.var_wo_ddp.").to_owned();
        checkpoint.insert(format!("backbone.mean.{name}"), data.clone());
        checkpoint.insert(format!("backbone.model.{name}"), data);
    }
    checkpoint.metadata_mut().insert("kind".into(), "checkpoint".into());
    checkpoint.metadata_mut().insert("step".into(), "40".into());
    for step in [9, 40] {
        let path = run.join(format!("checkpoints/pretrain-{step}.safetensors"));
        checkpoint.write_safetensors(&path).unwrap();
    }
    let (said, _) = does(folder, &["inspect", "run"]);
    for part in [
        "kind          run directory",
        "metrics       3 lines, the last of pretrain, step 40",
        "tokenizer.safetensors: flexvar-tokenizer",
        "checkpoints/pretrain-40.safetensors: checkpoint of a flexvar-backbone, step 40",
        "checksum matches",
    ] {
        assert!(said.contains(part), "'{part}' is not in:\n{said}");
    }
    assert!(said.find("pretrain-9.").unwrap() < said.find("pretrain-40.").unwrap(), "{said}");

    // A damaged one is named, and is no reason to be silent about the others.
    let path = run.join("checkpoints/pretrain-40.safetensors");
    let content = fs::read(&path).unwrap();
    fs::write(&path, &content[..content.len() - 1]).unwrap();
    let (code, said, _) = sar(folder, &["inspect", "run"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("pretrain-40.safetensors: DAMAGED: "), "{said}");
}

#[test]
fn anything_else_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let check = |name: &str, content: &[u8], parts: &[&str]| {
        fs::write(folder.join(name), content).unwrap();
        refuses(folder, &["inspect", name], &[&[name], parts].concat());
    };
    check("empty", b"", &["neither a PyTorch"]);
    check(
        "photo.png",
        b"\x89PNG\r\n\x1a\n and so on",
        &["photo.png", "does not say what it is made from"],
    );
    check("text", "version https://git-lfs.github.com/spec/v1\n".as_bytes(), &["Git LFS"]);
    check("archive.zip", b"PK\x03\x04 and so on", &["incomplete or damaged"]);
    refuses(folder, &["inspect", "nowhere"], &["nowhere", "cannot read"]);
    refuses(folder, &["inspect", "nowhere.toml"], &["nowhere.toml"]);
    refuses(folder, &["inspect", "."], &["it is a folder", "recipe.toml"]);
    let good = fs::read(parity("flexvar_tiny/tokenizer.pth")).unwrap();
    check("cut.pth", &good[..good.len() - 5], &[]);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    check("flipped.pth", &flipped, &["of tensor model.", "checksum is wrong"]);
}
