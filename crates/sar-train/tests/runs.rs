//! Whole runs of a tiny recipe.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::Autodiff;
use burn_flex::Flex;
use common::{ADVERSARY, ADVERSARY_BY_MUON, MUON};
use sar_core::{ScaleSchedule, SeedTree};
use sar_exchange::Group;
use sar_kernels::CpuLevel;
use sar_pipeline::{Pipeline, RgbImage, to_png};
use sar_rollout::{Choice, Guidance, Sampler, generate};
use sar_train::event::{Event, Observer, Silent};
use sar_train::{Execution, Recipe, TrainError, train};
use sar_weights::{NamedTensors, WeightsFile};
use serde_json::Value;

/// What these runs set beside what every tiny run does.
const MORE: &[&str] = &[
    "tokenizer.steps=5",
    "tokenizer.optimization.batch_size=4",
    "pretrain.steps=4",
    "pretrain.optimization.batch_size=4",
    "sar.steps=3",
    "sar.optimization.batch_size=4",
    "log.every=2",
];

/// Outputs of 8 px, as 32 px.
const PERCEPTUAL: &str =
    "tokenizer.loss.perceptual={ kind = \"efficientnet-lite0\", weight = 0.3, enlarge = 4 }";

fn tiny(more: &[&str]) -> Recipe {
    common::tiny(MORE, more)
}

fn run(
    recipe: &Recipe,
    dir: &Path,
    resume: bool,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<(), TrainError> {
    let group = &Group::alone();
    let execution = Execution { resume, workers: 2, stop, group };
    train::<Autodiff<Flex>>(recipe, dir, execution, &Default::default(), observer).map(|_| ())
}

fn run_undisturbed(recipe: &Recipe, dir: &Path) {
    run(recipe, dir, false, &AtomicBool::new(false), &mut Silent).unwrap();
}

/// What has to be the same in two runs, by name.
fn outcome(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = [
        "metrics.jsonl",
        "tokenizer.safetensors",
        "backbone-pretrain.safetensors",
        "backbone-sar.safetensors",
        "backbone-control.safetensors",
        "reconstructions.png",
        "samples-before.png",
        "samples-after.png",
    ];
    names.map(|name| (name.to_owned(), fs::read(dir.join(name)).unwrap())).to_vec()
}

fn assert_same(a: &Path, b: &Path) {
    for ((name, a), (_, b)) in outcome(a).into_iter().zip(outcome(b)) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if name.ends_with(".jsonl") {
            for (i, (a, b)) in text(&a).lines().zip(text(&b).lines()).enumerate() {
                assert_eq!(a, b, "{name}, line {}", i + 1);
            }
        }
        assert!(a == b, "{name} differs");
    }
}

/// Asks the run to stop after some number of steps of all stages together.
struct StopAfter<'a> {
    steps: usize,
    stop: &'a AtomicBool,
    warnings: usize,
}

impl Observer for StopAfter<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { .. } => {
                self.steps = self.steps.saturating_sub(1);
                if self.steps == 0 {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            Event::Warning { .. } => self.warnings += 1,
            _ => {}
        }
    }
}

fn stopped_after(recipe: &Recipe, dir: &Path, steps: usize, resume: bool) -> bool {
    let stop = AtomicBool::new(false);
    let mut observer = StopAfter { steps, stop: &stop, warnings: 0 };
    match run(recipe, dir, resume, &stop, &mut observer) {
        Ok(()) => false,
        Err(TrainError::Stopped { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_run_that_stops_often_ends_like_one_that_never_does() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[&["sar.objective.transitions=one-random"][..], &MUON].concat());
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let mut resume = false;
    let mut stops = 0;
    // Every piece makes three steps, so that stages are left at all kinds of places.
    while stopped_after(&recipe, &pieces, 3, resume) {
        resume = true;
        stops += 1;
    }
    assert!(stops >= 3, "{stops} stops");
    assert_same(&whole, &pieces);
}

#[test]
fn each_measurement_leaves_figures_by_scale_and_a_sheet_of_what_the_weights_make() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let settings = [
        "log.measure_steps=2",
        "log.measure_images=4",
        "evaluation.images=4",
        "evaluation.reconstructions=3",
        "sar.control=false",
    ];
    run_undisturbed(&tiny(&settings), &dir);
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("sheet-")).collect();
    names.sort();
    let expected =
        ["pretrain-2", "pretrain-4", "sar-2", "sar-3", "tokenizer-2", "tokenizer-4", "tokenizer-5"];
    assert_eq!(names, expected.map(|name| format!("sheet-{name}.png")));

    let read = |name: &str| image::open(dir.join(name)).unwrap().into_rgb8();
    // Images of so many pixels, with gaps of 4.
    let tile = |sheet: &RgbImage, side: u32, column: u32, row: u32| {
        let (x, y) = (4 + (side + 4) * column, 4 + (side + 4) * row);
        image::imageops::crop_imm(sheet, x, y, side, side).to_image()
    };
    // The last ones are of the weights that a stage ends with: one sample of each of nine classes, in a square.
    for (sheet, whole) in
        [("sheet-pretrain-4.png", "samples-before.png"), ("sheet-sar-3.png", "samples-after.png")]
    {
        let (sheet, whole) = (read(sheet), read(whole));
        assert_eq!((sheet.dimensions(), whole.dimensions()), ((112, 112), (40, 328)));
        for i in 0..9 {
            assert!(tile(&sheet, 32, i % 3, i / 3) == tile(&whole, 32, 0, i), "sample {i}");
        }
    }
    let [first, last] = [2, 5].map(|step| read(&format!("sheet-tokenizer-{step}.png")));
    let whole = read("reconstructions.png");
    assert_eq!((last.dimensions(), whole.dimensions()), ((208, 276), (208, 276)));
    for i in 0..3 {
        assert!(tile(&last, 64, i, 0) == tile(&whole, 64, i, 0), "original {i}");
        assert!(tile(&first, 64, i, 0) == tile(&last, 64, i, 0), "original {i}");
        assert!(
            tile(&first, 64, i, 1) != tile(&last, 64, i, 1),
            "reconstruction {i} stays as it was"
        );
    }

    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let measured: Vec<Value> = lines.filter(|line| line["held_out_psnr_db"].is_number()).collect();
    let steps: Vec<&Value> = measured.iter().map(|line| &line["step"]).collect();
    assert_eq!(steps, [1, 3, 4]);
    let report = fs::read_to_string(dir.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let by_scale = report["tokenizer"]["by_scale"].as_array().unwrap();
    let by_color = report["tokenizer"]["by_color"].as_array().unwrap();
    assert_eq!((by_scale.len(), by_color.len()), (3, 3));
    let number = |value: &Value| value.as_f64().unwrap();
    let list = |line: &Value, name: &str| -> Vec<f64> {
        let values: Vec<f64> = line[name].as_array().unwrap().iter().map(number).collect();
        assert_eq!(values.len(), 3, "{name}: {line}");
        values
    };
    // Of 32 codes four images can use so many at 1x1, 2x2 and 4x4.
    let usable = [4.0, 16.0, 32.0];
    for line in &measured {
        let apart = list(line, "held_out_psnr_db_scales")[2] - number(&line["held_out_psnr_db"]);
        assert!(apart.abs() < 5.1e-4, "{line}");
        let used = list(line, "held_out_codes_used");
        let dead = list(line, "held_out_codes_dead_of_usable");
        let perplexity = list(line, "held_out_perplexity");
        for k in 0..3 {
            assert_eq!(used[k] + dead[k], usable[k], "{line}");
            assert!((1.0 - 1e-9..=used[k] + 1e-9).contains(&perplexity[k]), "{line}");
        }
        // A share of the variance of the same images.
        let shares = list(line, "held_out_color_error");
        let psnr = list(line, "held_out_psnr_db_colors");
        for (color, (share, psnr)) in by_color.iter().zip(shares.iter().zip(psnr)) {
            let error = share * number(&color["deviation"]).powi(2);
            assert!((psnr - 10.0 * (4.0 / error).log10()).abs() < 1e-6, "{line} {color}");
        }
    }
    // The last ones are those of the report, whose tokenizer has its colors folded in.
    let last = |name: &str| list(&measured[2], name);
    for (psnr, color) in last("held_out_psnr_db_colors").iter().zip(by_color) {
        assert!((psnr - number(&color["psnr_db"])).abs() < 0.01, "{psnr} {color}");
    }
    let (psnr, used) = (last("held_out_psnr_db_scales"), last("held_out_codes_used"));
    for (k, scale) in by_scale.iter().enumerate() {
        assert!((psnr[k] - number(&scale["psnr_db"])).abs() < 0.01, "{psnr:?} {scale}");
        // Rounding may turn a code that is as near as another.
        let of_report = number(&scale["codes_used"]);
        assert!((used[k] - of_report).abs() <= 1.0, "{used:?} {scale}");
        assert_eq!(number(&scale["codes_usable"]), usable[k], "{scale}");
        assert_eq!(of_report + number(&scale["codes_dead_of_usable"]), usable[k], "{scale}");
        assert_eq!(of_report + number(&scale["codes_dead"]), 32.0, "{scale}");
    }
}

#[test]
fn a_run_in_f16_resumes_with_its_loss_scale() {
    let folder = tempfile::tempdir().unwrap();
    // A student term so heavy that its gradients overflow at the first scales of the loss.
    let recipe = tiny(&["backbone.precision=f16", "sar.objective.weight=1e8", "sar.steps=8"]);
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let skipped = metrics.lines().filter(|line| line.contains("steps_skipped")).count();
    assert!((2..8).contains(&skipped), "{metrics}");
    let mut resume = false;
    while stopped_after(&recipe, &pieces, 3, resume) {
        resume = true;
    }
    assert_same(&whole, &pieces);
}

#[test]
fn a_killed_run_goes_back_to_a_whole_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&["log.checkpoint_steps=1"]);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    run_undisturbed(&recipe, &whole);
    // Asked during the second teacher step, it stops after the third.
    assert!(stopped_after(&recipe, &broken, 7, false));
    // What a kill and a bad disk leave: a torn metrics line, a damaged newest checkpoint, a stray
    // temporary file.
    let metrics = broken.join("metrics.jsonl");
    let mut text = fs::read(&metrics).unwrap();
    text.extend(b"{\"stage\":\"pretrain\",\"st");
    fs::write(&metrics, text).unwrap();
    let newest = broken.join("checkpoints/pretrain-3.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&newest, bytes).unwrap();
    let torn = broken.join("checkpoints/.pretrain-4.safetensors.4294967295-0.partial");
    fs::write(&torn, b"torn").unwrap();

    let stop = AtomicBool::new(false);
    let mut observer = StopAfter { steps: usize::MAX, stop: &stop, warnings: 0 };
    run(&recipe, &broken, true, &stop, &mut observer).unwrap();
    assert_eq!(observer.warnings, 1);
    assert!(!torn.exists(), "no process has this number");
    assert_same(&whole, &broken);
}

#[test]
fn var_trains_through_the_whole_chain_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[
        "tokenizer.model.family={ kind = \"var\", phi = { per-scale = 3 } }",
        "tokenizer.loss.coarse=0",
        "backbone.positions={ kind = \"per-token\" }",
        "sar.objective.transitions=separate",
    ]);
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let mut resume = false;
    while stopped_after(&recipe, &pieces, 5, resume) {
        resume = true;
    }
    assert_eq!(outcome(&whole), outcome(&pieces));
}

/// Masks and orders are drawn for the image and the step, whenever a run stopped; samples come out of a first
/// scale of either kind, from its file alone.
#[test]
fn coarse_first_scales_train_through_the_whole_chain_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    for (name, first_scale, visibility, more) in [
        (
            "masked",
            "{ kind = \"masked\", share = \"truncated-normal\", loss = \"masked\", steps = 3, reveal = \
             \"confident\" }",
            "own",
            &["sar.objective.transitions=separate"][..],
        ),
        (
            "random-order",
            "{ kind = \"random-order\" }",
            "{ last = 1 }",
            &[
                "tokenizer.model.family={ kind = \"var\", phi = { shared = 2 } }",
                "tokenizer.loss.coarse=0",
                "backbone.positions={ kind = \"per-token\" }",
                "sar.control=true",
            ][..],
        ),
    ] {
        let first_scale = format!("backbone.first_scale={first_scale}");
        let visibility = format!("backbone.visibility={visibility}");
        let mut settings = vec![&first_scale[..], &visibility, "backbone.schedule.scales=2_3_4"];
        settings.extend(more);
        let recipe = tiny(&settings);
        let whole = folder.path().join(format!("{name}-whole"));
        let pieces = folder.path().join(format!("{name}-pieces"));
        run_undisturbed(&recipe, &whole);
        let mut resume = false;
        while stopped_after(&recipe, &pieces, 5, resume) {
            resume = true;
        }
        assert_same(&whole, &pieces);

        let pipeline = Pipeline::<Flex>::open_run(&whole, &Default::default()).unwrap();
        assert!(pipeline.notes().is_empty(), "{:?}", pipeline.notes());
        let shape = pipeline.backbone().config.shape;
        assert_eq!(
            (shape.first_scale, shape.visibility),
            (recipe.backbone.shape.first_scale, recipe.backbone.shape.visibility)
        );
        let (one, two) = (pipeline.request(2, 1, 7), pipeline.request(2, 2, 7));
        let images = pipeline.sample(&two);
        assert_eq!(pipeline.sample(&one)[0], images[0]);
        assert_ne!(images[0], images[1]);
        let mut previews = 0;
        pipeline.sample_previews(&two, |_, _| {
            previews += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(previews, 3);
    }
}

/// Noise in the context, weights of scales, a weight that changes, replaced codes and a growing codebook.
#[test]
fn rivals_of_sar_resume_and_their_samples_keep_to_their_codes() {
    const RIVALS: [&str; 7] = [
        "sar.objective.transitions=one-random",
        "pretrain.regularization.context_noise={ max_share = 0.5, nearest = 0 }",
        "sar.regularization.context_noise={ max_share = 0.5, nearest = 4 }",
        "sar.regularization.reduction={ scales = [1.0, 2.0, 0.0] }",
        "sar.weight_schedule={ warmup = 0.5, end = 0.5 }",
        "tokenizer.regularization.perturbation={ share = 0.2, nearest = 9 }",
        "tokenizer.model.codebook_growth={ kind = \"geometric\", first = 2, full_side = 4 }",
    ];
    const VAR: [&str; 3] = [
        "tokenizer.model.family={ kind = \"var\", phi = { per-scale = 3 } }",
        "tokenizer.loss.coarse=0",
        "backbone.positions={ kind = \"per-token\" }",
    ];
    for family in [&[], &VAR[..]] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = tiny(&[&RIVALS, family].concat());
        let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
        run_undisturbed(&recipe, &whole);
        let mut resume = false;
        while stopped_after(&recipe, &pieces, 4, resume) {
            resume = true;
        }
        assert_same(&whole, &pieces);
        // The files know all that sampling needs: 2 codes at one token, 8 at 2x2, all 32 at 4x4.
        let device = Default::default();
        let pipeline = Pipeline::<Flex>::open_run(&whole, &device).unwrap();
        let (tokenizer, backbone) = (&pipeline.tokenizer().model, pipeline.backbone());
        let labels: Vec<usize> = (0..27).map(|i| i % 9).collect();
        let streams: Vec<SeedTree> = (0..27).map(|i| SeedTree::new(5).at(i)).collect();
        let sampler = Sampler {
            guidance: Guidance::Constant { scale: 1.0 },
            choice: Choice::Sample { top_k: 0, top_p: 0.0 },
        };
        let scales = &backbone.scales;
        let drawn =
            generate(&backbone.model, tokenizer, &labels, scales, sampler, &streams, &device);
        for (tokens_bn, limit) in drawn.tokens.into_iter().zip([2, 8, 32]) {
            let tokens = tokens_bn.into_data().convert::<i64>().into_vec::<i64>().unwrap();
            let largest = tokens.iter().max().unwrap();
            assert!(*largest < limit, "{largest} of {limit}");
            // Nearly untrained weights draw from all that they may.
            assert!(*largest > limit / 2 - 1, "{largest} of {limit}");
        }
    }
}

/// Of a direct tokenizer against heads over features, and of a residual one with dropout against convolutions, with
/// Muon for both learners. Codes are replaced, and the discriminator begins amid the stage, so that checkpoints are from
/// before and after.
#[test]
fn a_tokenizer_and_its_adversary_resume_together() {
    const BOTH: [&str; 4] = [
        ADVERSARY,
        PERCEPTUAL,
        "tokenizer.regularization.perturbation={ share = 0.2, nearest = 4 }",
        "sar.control=false",
    ];
    // A token is 8 px: the finest outputs have the 32 px that the network needs, and coarser ones are not judged.
    const DIRECT: [&str; 5] = [
        "data.side=32",
        "tokenizer.model.channel_multipliers=[1,1,1,1]",
        "tokenizer.loss.coarse=0.5",
        "tokenizer.loss.perceptual.enlarge=1",
        "tokenizer.adversary.discriminator={ kind = \"features\", channels = 8 }",
    ];
    const RESIDUAL: [&str; 5] = [
        "tokenizer.model.family={ kind = \"var\", phi = { shared = 2 } }",
        "tokenizer.loss.coarse=0",
        "tokenizer.regularization.quantizer_dropout=0.3",
        ADVERSARY_BY_MUON,
        MUON[0],
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, of_family) in [("direct", &DIRECT[..]), ("residual", &RESIDUAL[..])] {
        let settings = [&BOTH[..], of_family].concat();
        let recipe = tiny(&settings);
        let dir = folder.path().join(name);
        let (whole, pieces) = (dir.join("whole"), dir.join("pieces"));
        fs::create_dir(&dir).unwrap();
        run_undisturbed(&recipe, &whole);
        let mut resume = false;
        while stopped_after(&recipe, &pieces, 1, resume) {
            resume = true;
        }
        for name in ["tokenizer.safetensors", "metrics.jsonl", "reconstructions.png"] {
            let read = |dir: &Path| fs::read(dir.join(name)).unwrap();
            assert!(read(&whole) == read(&pieces), "{name} differs");
        }
        let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
        let steps: Vec<serde_json::Value> = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &serde_json::Value| line["stage"] == "tokenizer" && line["lr"].is_f64())
            .collect();
        // What is not finite is written as null.
        let has = |step: usize, part: &str| steps[step][part].is_f64();
        // Steps 0, 2 and 4 are logged; it begins with step 2.
        for part in ["adversarial", "adaptive", "discriminator.hinge", "discriminator.lecam"] {
            assert!(!has(0, part) && has(1, part) && has(2, part), "{part}: {steps:?}");
        }
        assert!(has(0, "perceptual"), "{steps:?}");
        if name == "direct" {
            // Each head learns, and the tokenizer of them: without the adversarial loss it ends elsewhere.
            let read = |path: PathBuf| NamedTensors::read(&path).unwrap();
            let [before, after] = [4, 5]
                .map(|step| read(pieces.join(format!("checkpoints/tokenizer-{step}.safetensors"))));
            for head in 0..5 {
                let weight = format!("discriminator.model.heads.{head}.blocks.0.conv.weight");
                let [before, after] = [&before, &after].map(|at| at.get(&weight).expect("a head"));
                assert!(before != after, "{weight}");
            }
            let without = dir.join("without");
            let more = ["tokenizer.adversary.weight=0", "pretrain.steps=1", "sar.steps=1"];
            run_undisturbed(&tiny(&[&settings[..], &more].concat()), &without);
            let [ours, theirs] =
                [&whole, &without].map(|dir| read(dir.join("tokenizer.safetensors")));
            assert!(ours.iter().any(|(name, data)| theirs.get(name) != Some(data)));
        }
    }
}

/// Of four convolutions three scales reach three: the fourth never has a gradient, nor moments.
#[test]
fn a_parameter_without_gradients_is_no_reason_not_to_resume() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[
        "tokenizer.model.family={ kind = \"var\", phi = { shared = 4 } }",
        "tokenizer.loss.coarse=0",
        "sar.control=false",
    ]);
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let mut resume = false;
    while stopped_after(&recipe, &pieces, 3, resume) {
        resume = true;
    }
    for name in ["tokenizer.safetensors", "backbone-sar.safetensors", "metrics.jsonl"] {
        let read = |dir: &Path| fs::read(dir.join(name)).unwrap();
        assert!(read(&whole) == read(&pieces), "{name} differs");
    }
}

/// burn frees graphs of other threads: without a guard, gradients would be lost now and then.
#[test]
fn two_trainings_side_by_side_end_as_they_do_alone() {
    let folder = tempfile::tempdir().unwrap();
    let recipes = [
        tiny(&["sar.steps=6"]),
        tiny(&["seed=5", "sar.objective.transitions=separate", ADVERSARY]),
    ];
    let dir = |name: &str, i: usize| folder.path().join(format!("{name}-{i}"));
    std::thread::scope(|scope| {
        for (i, recipe) in recipes.iter().enumerate() {
            let dir = dir("together", i);
            scope.spawn(move || run_undisturbed(recipe, &dir));
        }
    });
    for (i, recipe) in recipes.iter().enumerate() {
        run_undisturbed(recipe, &dir("alone", i));
        assert_same(&dir("alone", i), &dir("together", i));
    }
}

#[test]
fn a_stage_ends_with_the_weights_that_the_recipe_names() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let dir = folder.path().join(name);
        let settings = [
            "pretrain.optimization.ema=0.5",
            "pretrain.optimization.lr.peak=0.05",
            "log.measure_steps=1",
            "log.measure_images=4",
            "sar.steps=1",
            "sar.control=false",
        ];
        run_undisturbed(&tiny(&[&settings[..], more].concat()), &dir);
        dir
    };
    let read = |dir: &Path, name: &str| {
        fs::read(dir.join(format!("backbone-pretrain{name}.safetensors"))).unwrap()
    };
    let last = run("last", &[]);
    let (best, average) = (read(&last, "-best"), read(&last, "-average"));
    assert!(!last.join("backbone-pretrain-last.safetensors").exists());
    let dir = run("best", &["pretrain.output=best"]);
    assert!(read(&dir, "") == best && read(&dir, "-last") == read(&last, ""));
    let other = run("average", &["pretrain.output=average"]);
    assert!(read(&other, "") == average && read(&other, "-best") == best);
    // The next stage starts from them.
    let refined = |dir: &Path| fs::read(dir.join("backbone-sar.safetensors")).unwrap();
    assert!(refined(&last) != refined(&other), "the average has no effect");
    // What sampling takes is an ordinary file of weights.
    let files = ["tokenizer", "backbone-pretrain-best"]
        .map(|name| WeightsFile::open(&last.join(format!("{name}.safetensors"))).unwrap());
    let [tokenizer, backbone] = files;
    let known = Default::default();
    let pipeline =
        Pipeline::<Flex>::load(tokenizer, backbone, &known, &Default::default()).unwrap();
    assert!(pipeline.notes().is_empty());
}

#[test]
fn an_average_can_leave_the_codebook_out() {
    const CODES: &str = "quantize.embedding.weight";
    let folder = tempfile::tempdir().unwrap();
    let run = |output: &str| {
        let dir = folder.path().join(output);
        let output = format!("tokenizer.output={output}");
        let settings =
            ["tokenizer.optimization.ema=0.5", "sar.steps=1", "sar.control=false", &output];
        run_undisturbed(&tiny(&settings), &dir);
        move |name: &str| NamedTensors::read(&dir.join(name)).unwrap()
    };
    let (last, chosen) = (run("last"), run("average-but-codebook"));
    let average = last("tokenizer-average.safetensors");
    let (last, chosen) = (last("tokenizer.safetensors"), chosen("tokenizer.safetensors"));
    assert_ne!(last.get(CODES), average.get(CODES), "codes did not move");
    for (name, data) in chosen.iter() {
        let expected = if name == CODES { &last } else { &average };
        assert!(expected.get(name) == Some(data), "{name}");
    }
}

/// What a run said.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Note { message } = event {
            self.0.push((*message).to_owned());
        }
    }
}

#[test]
fn weights_of_other_classes_are_adapted_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    run_undisturbed(&tiny(&["sar.control=false", "sar.steps=1"]), &first);
    let weights = first.join("backbone-pretrain.safetensors");
    let images = folder.path().join("images");
    for (class, level, height) in [("Flags", 40u8, 16), ("cats", 200, 20)] {
        fs::create_dir_all(images.join(class)).unwrap();
        for i in 0..10u8 {
            let image = RgbImage::from_pixel(16, height, image::Rgb([level + i; 3]));
            fs::write(images.join(class).join(format!("{i}.png")), to_png(&image)).unwrap();
        }
    }
    let with = |name: &str, adapt: &str| {
        let source = format!("data.source={{ kind = \"folder\", path = {images:?} }}");
        let init =
            format!("pretrain.init_from={{ kind = \"weights\", path = {weights:?}{adapt} }}");
        let recipe = tiny(&[
            source.as_str(),
            init.as_str(),
            "data.augmentation.flip_except=[]",
            "pretrain.steps=0",
            "sar.steps=1",
            "evaluation.quality={ kind = \"efficientnet-lite0\", per_class = 2, seeds = 3 }",
        ]);
        let mut notes = Notes::default();
        let (dir, stop) = (folder.path().join(name), AtomicBool::new(false));
        run(&recipe, &dir, false, &stop, &mut notes).map(|()| (dir, notes.0))
    };
    let error = with("strict", "").unwrap_err().to_string();
    for part in ["pretrain.init_from", "9 classes, the images 2", "adapt = [\"classes\"]"] {
        assert!(error.contains(part), "{error}");
    }
    let (dir, notes) = with("adapted", ", adapt = [\"classes\"]").unwrap();
    let notes = notes.join("\n");
    assert!(notes.contains("1 of 2 classes by their names (Flags), the others are new"), "{notes}");
    let cropped =
        "recipe emoji-quick: 10 of 20 images have another size than 16x16 px and were cropped";
    assert_eq!(notes.matches(cropped).count(), 1, "{notes}");
    let embedding = |path: &Path| -> Vec<Vec<f32>> {
        let named = NamedTensors::read(path).unwrap();
        let data = named.get("class_emb.weight").unwrap();
        data.to_vec::<f32>().unwrap().chunks(24).map(<[f32]>::to_vec).collect()
    };
    // Capital letters come first; in the emoji, flags are the last class.
    let (ours, theirs) =
        (embedding(&dir.join("backbone-pretrain.safetensors")), embedding(&weights));
    assert_eq!((ours.len(), theirs.len()), (3, 10));
    assert_eq!((&ours[0], &ours[2]), (&theirs[8], &theirs[9]));
    assert!(!theirs.contains(&ours[1]));
    check_quality(&dir);
}

/// What a report says of four samples of each of three seeds, beside 20 images, of which two are held out.
fn check_quality(dir: &Path) {
    let report: Value =
        serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap();
    let quality = &report["quality"];
    let number = |path: &str| quality.pointer(path).and_then(Value::as_f64).expect(path);
    assert_eq!(quality["extractor"][0], "efficientnet-lite0");
    let counts = ["/samples", "/seeds", "/reference", "/floor/images"].map(number);
    assert_eq!(counts, [4.0, 3.0, 20.0, 2.0]);
    let sizes = ["/reference_cropped", "/reference_enlarged"].map(number);
    assert_eq!(sizes, [10.0, 0.0], "those of one class are higher than the recipe's side");
    assert!(number("/floor/kid_effnetlite0") < number("/after/kid_effnetlite0/mean"));
    // Each class has a gray of its own.
    assert_eq!(number("/floor/class_accuracy"), 1.0);
    for (minus, other) in [("after_minus_before", "before"), ("after_minus_control", "control")] {
        for figure in ["fd_effnetlite0", "kid_effnetlite0", "class_accuracy"] {
            let part = |of: &str, part: &str| number(&format!("/{of}/{figure}/{part}"));
            let [after, before, difference] = ["after", other, minus].map(|of| part(of, "mean"));
            let error = (after - before - difference).abs();
            assert!(error < 1e-9 * after.abs().max(1.0), "{minus}, {figure}: {quality}");
            for of in ["after", other, minus] {
                let [low, mean, high] = ["low", "mean", "high"].map(|name| part(of, name));
                assert!(low <= mean && mean <= high, "{of}, {figure}: {quality}");
            }
        }
        assert!(number(&format!("/{minus}/fd_effnetlite0/mean")).abs() > 1e-3, "{quality}");
    }
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (of, stage) in [("before", "pretrain"), ("after", "sar"), ("control", "control")] {
        let part = |part: &str| number(&format!("/{of}/fd_effnetlite0/{part}"));
        assert!(part("low") < part("high"), "seeds draw other samples: {quality}");
        // The same as soon as they are known, behind the stage's last step.
        let judged = |line: &&Value| line["stage"] == stage && line["kid_effnetlite0"].is_number();
        let judged: Vec<&Value> = lines.iter().filter(judged).collect();
        assert_eq!(judged.len(), 1, "{stage}: {metrics}");
        for figure in ["fd_effnetlite0", "kid_effnetlite0", "class_accuracy"] {
            let figures = &quality[of][figure];
            assert_eq!(judged[0][figure], figures["mean"], "{stage}, {figure}");
            let interval = &judged[0][format!("{figure}_interval")];
            assert_eq!([&interval[0], &interval[1]], [&figures["low"], &figures["high"]]);
        }
    }
    let at = |stage: &str, field: &str| {
        lines.iter().position(|line| line["stage"] == stage && line[field].is_number()).unwrap()
    };
    assert!(at("pretrain", "kid_effnetlite0") < at("sar", "student"), "{metrics}");
    assert!(at("sar", "kid_effnetlite0") < at("control", "teacher"), "{metrics}");
}

#[test]
fn what_changes_no_result_may_change_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&tiny(&[]), &whole);
    assert!(stopped_after(&tiny(&[]), &pieces, 3, false));
    let other = tiny(&[
        "data.max_unreadable=0.5",
        "evaluation.batch_size=5",
        "log.checkpoint_steps=1",
        "log.checkpoint_minutes=3",
    ]);
    assert!(stopped_after(&other, &pieces, 3, true));
    assert!(
        fs::read_to_string(pieces.join("recipe.toml")).unwrap().contains("max_unreadable = 0.5")
    );
    run(&other, &pieces, true, &AtomicBool::new(false), &mut Silent).unwrap();
    assert_same(&whole, &pieces);
}

#[test]
fn a_run_is_resumed_with_its_own_recipe_only() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    assert!(stopped_after(&tiny(&[]), &dir, 1, false));
    let error = run(&tiny(&["pretrain.steps=9"]), &dir, true, &AtomicBool::new(false), &mut Silent);
    let error = error.unwrap_err().to_string();
    for part in ["recipe.toml", "pretrain.steps", "4", "9"] {
        assert!(error.contains(part), "{error}");
    }
    let error = run(&tiny(&[]), &dir, false, &AtomicBool::new(false), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("--resume"), "{error}");
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    type B = Flex;
    let folder = tempfile::tempdir().unwrap();
    let dir: PathBuf = folder.path().join("run");
    run_undisturbed(&tiny(&["sar.control=false"]), &dir);
    let device = Default::default();
    let pipeline = Pipeline::<B>::open_run(&dir, &device).unwrap();
    let (tokenizer, model) = (&pipeline.tokenizer().model, &pipeline.backbone().model);
    let scales: ScaleSchedule = "1_2_3_4".parse().unwrap();
    let sampler = Sampler {
        guidance: Guidance::flexvar(2.0),
        choice: Choice::Sample { top_k: 20, top_p: 0.9 },
    };
    let tokens = |batch: usize| -> Vec<Vec<i64>> {
        let images: Vec<usize> = (0..14).collect();
        let parts = images.chunks(batch).flat_map(|part| {
            let labels: Vec<usize> = part.iter().map(|i| i % 9).collect();
            let streams: Vec<SeedTree> =
                part.iter().map(|i| SeedTree::new(5).at(*i as u64)).collect();
            let generated =
                generate(model, tokenizer, &labels, &scales, sampler, &streams, &device);
            let tokens = generated.tokens_bl().into_data().convert::<i64>();
            let tokens = tokens.into_vec::<i64>().unwrap();
            tokens.chunks(scales.n_tokens()).map(<[i64]>::to_vec).collect::<Vec<_>>()
        });
        parts.collect()
    };
    let one = tokens(1);
    assert_eq!(one, tokens(2));
    assert_eq!(one, tokens(7));
    let first: Vec<_> = one.iter().map(|tokens| &tokens[1..]).collect();
    assert!(first.iter().skip(1).any(|tokens| *tokens != first[0]), "all images are the same");
}

/// What has to be the same to the bit is so at every level of vector instructions: each in a process of its own, as a
/// process reads the level once.
#[test]
fn at_lower_levels() {
    const TESTS: [&str; 3] = [
        "a_sample_does_not_depend_on_its_batch",
        "a_run_that_stops_often_ends_like_one_that_never_does",
        "two_trainings_side_by_side_end_as_they_do_alone",
    ];
    if std::env::var_os(CpuLevel::VARIABLE).is_some() {
        return;
    }
    let best = CpuLevel::chosen().unwrap();
    for level in CpuLevel::available().into_iter().filter(|level| *level < best) {
        let tests = Command::new(std::env::current_exe().unwrap())
            .args(TESTS)
            .arg("--exact")
            .env(CpuLevel::VARIABLE, level.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&tests.stdout);
        assert!(
            tests.status.success() && said.contains(&format!(" {} passed", TESTS.len())),
            "{level}:\n{said}"
        );
    }
}
