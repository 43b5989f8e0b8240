//! Weights in several files with an index.

use std::fs;
use std::path::Path;

use burn::tensor::TensorData;
use sar_weights::{Checksum, Format, NamedTensors, WeightsFile};
use tempfile::TempDir;

use crate::support::{Spec, f32s, legacy, message, pickle, zip};

const INDEX: &str = "weights.safetensors.index.json";

fn named(tensors: &[(&str, f32)]) -> NamedTensors {
    let mut named = NamedTensors::new();
    for &(name, value) in tensors {
        named.insert(name, TensorData::from([value, -value]));
    }
    named
}

fn index(map: &[(&str, &str)]) -> String {
    let map: Vec<String> =
        map.iter().map(|(tensor, shard)| format!(r#"{tensor:?}: {shard:?}"#)).collect();
    format!(
        "{{\n  \"metadata\": {{\"total_size\": 1}},\n  \"weight_map\": {{{}}}\n}}",
        map.join(", ")
    )
}

const MAP: [(&str, &str); 3] =
    [("a", "1-of-2.safetensors"), ("b", "2-of-2.safetensors"), ("c", "1-of-2.safetensors")];

/// A folder of two shards and their index.
fn sharded() -> TempDir {
    let folder = TempDir::with_prefix("weights").unwrap();
    let mut first = named(&[("a", 1.0), ("c", 3.0)]);
    first.metadata_mut().insert("format".into(), "pt".into());
    first.metadata_mut().insert("part".into(), "1".into());
    let mut second = named(&[("b", 2.0)]);
    second.metadata_mut().insert("format".into(), "pt".into());
    second.metadata_mut().insert("part".into(), "2".into());
    first.write_safetensors(&folder.path().join("1-of-2.safetensors")).unwrap();
    second.write_safetensors(&folder.path().join("2-of-2.safetensors")).unwrap();
    fs::write(folder.path().join(INDEX), index(&MAP)).unwrap();
    folder
}

fn opened(path: &Path) -> WeightsFile {
    WeightsFile::open(path).unwrap()
}

#[test]
fn shards_are_one_file() {
    let folder = sharded();
    let other_name = folder.path().join("index");
    fs::copy(folder.path().join(INDEX), &other_name).unwrap();
    for path in [folder.path(), &folder.path().join(INDEX), &other_name] {
        let mut file = opened(path);
        assert_eq!((file.n_files(), file.format()), (2, Format::Safetensors));
        let names: Vec<&str> = file.tensors().iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(file.verify().unwrap(), Checksum::Verified);
        let sizes = ["1-of-2.safetensors", "2-of-2.safetensors"]
            .map(|name| fs::metadata(folder.path().join(name)).unwrap().len());
        assert_eq!(file.n_bytes(), sizes.iter().sum::<u64>());
        file.read("c").unwrap().assert_eq(&TensorData::from([3f32, -3.0]), true);
        file.read("b").unwrap().assert_eq(&TensorData::from([2f32, -2.0]), true);
        // What the shards agree on.
        let metadata: Vec<_> = file.metadata().iter().collect();
        assert_eq!(metadata, [(&"format".to_owned(), &"pt".to_owned())]);
        let all = file.read_all().unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all.get("a").unwrap(), &TensorData::from([1f32, -1.0]));
        let origin = all.origin().unwrap();
        assert!(origin.starts_with(folder.path()) && origin.is_file(), "{origin:?}");
    }
}

#[test]
fn shards_of_torch() {
    let folder = TempDir::with_prefix("weights").unwrap();
    let spec = |name| [Spec(name, "Float", "0", 2, 0, &[2], &[1])];
    let numbers = f32s([1.0, 2.0]);
    let (first, second) = (pickle(&spec("a")), pickle(&spec("b")));
    let zipped = zip(
        &[("a/data.pkl", &first[..]), ("a/data/0", &numbers)],
        ::zip::CompressionMethod::Stored,
    );
    fs::write(folder.path().join("1.bin"), zipped).unwrap();
    fs::write(folder.path().join("2.bin"), legacy(&second, &[("0", 2, &numbers)])).unwrap();
    let index = index(&[("a", "1.bin"), ("b", "2.bin")]);
    fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
    let mut file = opened(folder.path());
    assert_eq!((file.n_files(), file.format(), file.tensors().len()), (2, Format::Pth, 2));
    // One of them carries no checksum.
    assert_eq!(file.verify().unwrap(), Checksum::Absent);
    assert_eq!(file.read("b").unwrap(), TensorData::from([1f32, 2.0]));

    // Where both kinds are there, safetensors is preferred.
    named(&[("s", 1.0)]).write_safetensors(&folder.path().join("s.safetensors")).unwrap();
    let other = folder.path().join("model.safetensors.index.json");
    fs::write(&other, self::index(&[("s", "s.safetensors")])).unwrap();
    assert_eq!(opened(folder.path()).tensors()[0].name, "s");
    fs::write(&other, self::index(&[("s", "s.safetensors"), ("a", "1.bin")])).unwrap();
    let error = message(WeightsFile::open(folder.path()));
    assert!(error.starts_with("its shards are of different formats"), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let check = |change: &dyn Fn(&Path), expected: &str| {
        let folder = sharded();
        change(folder.path());
        let error = message(WeightsFile::open(folder.path()));
        assert!(error.starts_with(expected), "{error}");
    };
    let with = |map: &[(&str, &str)]| {
        let text = index(&[&MAP[..], map].concat());
        move |folder: &Path| fs::write(folder.join(INDEX), &text).unwrap()
    };
    check(
        &|folder| fs::remove_file(folder.join("2-of-2.safetensors")).unwrap(),
        "its shard 2-of-2.safetensors is missing; the file is incomplete",
    );
    check(&with(&[("d", "1-of-2.safetensors")]), "tensor d is not in its shard 1-of-2.safetensors");
    check(
        &|folder| {
            let map = [("a", "2-of-2.safetensors"), MAP[1], MAP[2]];
            fs::write(folder.join(INDEX), index(&map)).unwrap();
        },
        "tensor a is not in its shard 2-of-2.safetensors",
    );
    check(
        &|folder| {
            let twice = named(&[("a", 9.0), ("b", 2.0)]);
            twice.write_safetensors(&folder.join("2-of-2.safetensors")).unwrap();
        },
        "two shards hold tensor a",
    );
    for outside in ["../x.safetensors", "/etc/passwd", "", "a/../../x", "./..", "."] {
        let expected = format!("it names the shard {outside}, outside of its folder; put all");
        check(&with(&[("d", outside)]), &expected);
    }
    check(&with(&[("d", INDEX)]), "JSON text, where weights are needed");
    let many: Vec<String> = (0..600).map(|n| format!("{n}.safetensors")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), name.as_str())).collect();
    check(&with(&many), "it names 602 shards, more than 512");
    // A shard that is damaged is named itself.
    check(
        &|folder| fs::write(folder.join("1-of-2.safetensors"), "x").unwrap(),
        "neither a PyTorch",
    );
}

#[test]
fn shards_may_lie_below_the_index() {
    let folder = TempDir::with_prefix("weights").unwrap();
    fs::create_dir(folder.path().join("parts")).unwrap();
    named(&[("a", 1.0)]).write_safetensors(&folder.path().join("parts/1.safetensors")).unwrap();
    fs::write(folder.path().join(INDEX), index(&[("a", "parts/1.safetensors")])).unwrap();
    assert_eq!(opened(folder.path()).tensors().len(), 1);
}

#[test]
fn json_and_folders_that_are_no_index() {
    let folder = TempDir::with_prefix("weights").unwrap();
    let path = folder.path().join("weights.json");
    let check = |content: &str, expected: &str| {
        fs::write(&path, content).unwrap();
        let error = message(WeightsFile::open(&path));
        assert!(error.starts_with(expected), "{error}");
    };
    let other = "a JSON file that is not an index of shards: it has no weight_map; name a file of";
    check("{}", other);
    check("  {\"architectures\": [\"X\"]}", other);
    check("{\"weight_map\": [1, 2]}", other);
    check("{\"weight_map\": {}}", "an index of shards whose weight_map is empty");
    check("{\"weight_map\": {\"a\": 1}}", "its weight_map has no file name for a");
    check("{\"weight_map\": {\"a\": ", "its JSON: EOF while parsing");
    check(&"{\"a\":".repeat(100_000), "its JSON: recursion limit exceeded");
    check("[1, 2]", "neither a PyTorch zip file nor a safetensors file");

    let error = message(WeightsFile::open(folder.path()));
    assert!(error.starts_with("it is a folder without an index of shards"), "{error}");
    for name in ["a.safetensors.index.json", "b.safetensors.index.json"] {
        fs::write(folder.path().join(name), index(&MAP)).unwrap();
    }
    let error = message(WeightsFile::open(folder.path()));
    let expected = "a folder with several indices of shards: a.safetensors.index.json, b.safe";
    assert!(error.starts_with(expected), "{error}");
}
