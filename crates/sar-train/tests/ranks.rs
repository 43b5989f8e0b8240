//! Runs of a tiny recipe on several ranks, which are threads here.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use burn::backend::Autodiff;
use burn_flex::Flex;
use common::{ADVERSARY, ADVERSARY_BY_MUON, FLIP_ALL, MUON, draw_images};
use sar_core::SeedTree;
use sar_exchange::{Exchange, ExchangeError, Group, threads};
use sar_pipeline::TrainedTokenizer;
use sar_train::event::{Event, Observer, Silent};
use sar_train::latents::Latents;
use sar_train::report::Report;
use sar_train::{Execution, Recipe, TrainError, train};
use sar_weights::Crc32;

/// Every stage adds up gradients, keeps an average, measures and saves, beside what every tiny run does.
const MORE: &[&str] = &[
    "tokenizer.steps=5",
    "tokenizer.optimization.batch_size=10",
    "tokenizer.optimization.grad_accum_steps=5",
    "tokenizer.optimization.ema=0.5",
    "pretrain.steps=4",
    "pretrain.optimization.batch_size=12",
    "pretrain.optimization.grad_accum_steps=6",
    "pretrain.optimization.ema=0.5",
    "pretrain.output=best",
    "sar.steps=3",
    "sar.optimization.batch_size=8",
    "sar.optimization.grad_accum_steps=8",
    "sar.optimization.ema=0.5",
    "sar.objective.transitions=one-random",
    "log.every=1",
    "log.measure_steps=2",
    "log.measure_images=4",
    "log.checkpoint_steps=2",
];

const CACHED: &str =
    "latents={ kind = \"cached\", folder = \"latents\", variants = 2, precision = \"full\" }";

const DEADLINE: Duration = Duration::from_secs(300);

fn tiny(more: &[&str]) -> Recipe {
    common::tiny(MORE, more)
}

/// Asks its rank to stop after some number of its steps.
struct StopAfter<'a> {
    left: AtomicUsize,
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if matches!(event, Event::Step { .. }) && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// What each rank comes to, on a thread of its own.
fn on_threads<T: Send>(groups: Vec<Group>, one: impl Fn(Group) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let one = &one;
        let running: Vec<_> =
            groups.into_iter().map(|group| scope.spawn(move || one(group))).collect();
        running.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What each rank says of a run; `recipe` and the steps after which it asks to stop are those of a rank.
///
/// The run directory is that of rank 0. The others have one in which nobody writes, unless latents are cached there.
fn on_ranks(
    [ranks, workers]: [usize; 2],
    dir: &Path,
    resume: bool,
    recipe: impl Fn(usize) -> Recipe + Sync,
    stops: impl Fn(usize) -> Option<usize> + Sync,
) -> Vec<Result<Report, TrainError>> {
    let groups = match ranks {
        1 => vec![Group::alone()],
        _ => threads(ranks, DEADLINE),
    };
    let of_others = dir.with_extension("of-others");
    let outcomes = on_threads(groups, |group| {
        let stop = AtomicBool::new(false);
        let left = AtomicUsize::new(stops(group.rank()).unwrap_or(usize::MAX));
        let mut observer = StopAfter { left, stop: &stop };
        let execution = Execution { resume, workers, stop: &stop, group: &group };
        let (recipe, device) = (recipe(group.rank()), Default::default());
        let is_shared = matches!(recipe.latents, Latents::Cached { .. });
        let dir = if group.leads() || is_shared { dir } else { &of_others };
        train::<Autodiff<Flex>>(&recipe, dir, execution, &device, &mut observer)
    });
    assert!(!of_others.exists(), "written by others than rank 0");
    outcomes
}

/// A run as one rank has it.
fn train_as(
    group: &Group,
    recipe: &Recipe,
    dir: &Path,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Report, TrainError> {
    let execution = Execution { resume: false, workers: 1, stop, group };
    train::<Autodiff<Flex>>(recipe, dir, execution, &Default::default(), observer)
}

fn whole(ranks_and_workers: [usize; 2], dir: &Path, recipe: &Recipe) {
    for outcome in on_ranks(ranks_and_workers, dir, false, |_| recipe.clone(), |_| None) {
        outcome.unwrap();
    }
}

/// All weights, metrics, pictures and cached latents of a run.
fn outcome(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let caches = fs::read_dir(dir.join("latents")).into_iter().flatten();
    let caches = caches.map(|entry| entry.unwrap().path());
    let mut files = BTreeMap::new();
    for folder in caches.chain([dir.to_owned()]) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            if [".safetensors", ".jsonl", ".png"].iter().any(|ending| name.ends_with(ending)) {
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    assert!(files.len() >= 10, "{:?}", files.keys());
    files
}

/// Columns of a table, and how the names of their files begin and end: of each stage all weights, averages among them.
const COLUMNS: [[&str; 3]; 6] = [
    ["tokenizer", "tokenizer", ".safetensors"],
    ["pretrain", "backbone-pretrain", ".safetensors"],
    ["sar", "backbone-sar", ".safetensors"],
    ["control", "backbone-control", ".safetensors"],
    ["metrics", "metrics", ".jsonl"],
    ["pictures", "", ".png"],
];

/// The head of a table of what runs end with (`--nocapture`).
fn print_columns() {
    let names = COLUMNS.map(|[name, ..]| name).join(" | ");
    println!("\n| ranks x workers | {names} |\n|{}", "---|".repeat(1 + COLUMNS.len()));
}

/// A row of it: CRC-32 of the files of each column.
fn print_hashes(files: &BTreeMap<String, Vec<u8>>, what: &str) {
    let hashes = COLUMNS.map(|[_, begin, end]| {
        let mut crc = Crc32::default();
        let is_of = |name: &str| name.starts_with(begin) && name.ends_with(end);
        let of_column = files.iter().filter(|(name, _)| is_of(name.as_str()));
        of_column.for_each(|(_, bytes)| crc.update(bytes));
        crc.to_string()
    });
    println!("| {what} | {} |", hashes.join(" | "));
}

fn assert_same(ours: &Path, theirs: &BTreeMap<String, Vec<u8>>, what: &str) {
    let ours = outcome(ours);
    print_hashes(&ours, what);
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(theirs), "{what}");
    for ((name, ours), theirs) in ours.iter().zip(theirs.values()) {
        if name.ends_with(".jsonl") {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            for (a, b) in text(ours).lines().zip(text(theirs).lines()) {
                assert_eq!(a, b, "{what}: {name}");
            }
        }
        assert!(ours == theirs, "{what}: {name} differs");
    }
}

/// One run alone, whose outcome it is, then the same on all kinds of ranks and workers.
fn assert_any_ranks(recipe: &Recipe, kinds: &[[usize; 2]]) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone");
    whole([1, 1], &alone, recipe);
    let alone = outcome(&alone);
    print_columns();
    print_hashes(&alone, "alone");
    for [ranks, workers] in kinds.iter().copied() {
        let what = format!("{ranks} x {workers}");
        let dir = folder.path().join(&what);
        whole([ranks, workers], &dir, recipe);
        assert_same(&dir, &alone, &what);
        let entries = fs::read_dir(dir.join("checkpoints")).unwrap();
        assert!(entries.count() > 4, "{what}");
    }
    alone
}

/// In eight ranks, some are idle in the first two stages.
#[test]
fn any_number_of_ranks_and_workers_ends_with_the_same_weights() {
    let kinds = [1, 2, 3, 4, 8].map(|ranks| [[ranks, 1], [ranks, 2]]).concat();
    assert_any_ranks(&tiny(&[ADVERSARY]), &kinds);
}

/// Four chunks: of 16 KiB each, 1024 latents are one.
#[test]
fn latents_are_cached_by_all_ranks_together() {
    let recipe = tiny(&[CACHED, "tokenizer.model.codebook_dim=64", "sar.control=false"]);
    let alone = assert_any_ranks(&recipe, &[[3, 1], [2, 2]]);
    assert_eq!(alone.keys().filter(|name| name.starts_with("latents")).count(), 4);
}

/// They lie in the run directory, and each rank has its own.
#[test]
fn latents_that_not_all_ranks_see_end_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[&CACHED.replace("variants = 2", "variants = 1"), "tokenizer.steps=1"]);
    let dir = |rank: usize| folder.path().join(rank.to_string());
    let errors = on_threads(threads(2, DEADLINE), |group| {
        let (dir, stop) = (dir(group.rank()), AtomicBool::new(false));
        train_as(&group, &recipe, &dir, &stop, &mut Silent).unwrap_err().to_string()
    });
    // There is one chunk, which rank 0 has made.
    let own = &errors[1];
    assert!(own.starts_with(&dir(1).join("latents").display().to_string()), "{own}");
    for part in ["00000.safetensors: another rank has made it", "latents.folder has to be one"] {
        assert!(own.contains(part), "{own}");
    }
    assert_eq!(errors[0], format!("rank 1: {own}"));
}

/// Four batches of samples for each seed: three ranks have two, one and one of them.
#[test]
fn samples_are_judged_alike_by_any_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[
        &draw_images(&folder.path().join("images"), 20),
        FLIP_ALL,
        "tokenizer.steps=2",
        "pretrain.steps=2",
        "sar.steps=2",
        "evaluation.batch_size=2",
        "evaluation.quality={ kind = \"efficientnet-lite0\", per_class = 2, seeds = 2 }",
    ]);
    let quality = |ranks: usize| {
        let dir = folder.path().join(ranks.to_string());
        let outcomes = on_ranks([ranks, 1], &dir, false, |_| recipe.clone(), |_| None);
        let report = fs::read(dir.join("report.json")).unwrap();
        let mut report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        let quality = report["quality"].take();
        // Those of the others came as text, too.
        for outcome in &outcomes[1..] {
            let theirs = &outcome.as_ref().unwrap().quality;
            assert_eq!(serde_json::to_value(theirs).unwrap(), quality, "{ranks} ranks");
        }
        let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.matches("\"kid_effnetlite0\":").count(), 3, "{metrics}");
        (quality, metrics)
    };
    let (alone, metrics) = quality(1);
    for weights in ["before", "after", "control", "after_minus_before"] {
        for figure in ["fd_effnetlite0", "kid_effnetlite0", "class_accuracy"] {
            assert!(alone[weights][figure]["mean"].is_number(), "{weights}, {figure}: {alone}");
        }
    }
    assert!(alone["after"]["fd_effnetlite0"]["mean"].as_f64().unwrap() > 0.0, "{alone}");
    for ranks in [2, 3] {
        let (theirs, theirs_so_far) = quality(ranks);
        assert_eq!(theirs, alone, "{ranks} ranks");
        assert!(theirs_so_far == metrics, "{ranks} ranks: {theirs_so_far}");
    }
}

#[test]
fn a_residual_tokenizer_and_half_precision_do_as_well() {
    let recipe = tiny(&[
        "tokenizer.model.family={ kind = \"var\", phi = { shared = 4 } }",
        "tokenizer.loss.coarse=0",
        "backbone.precision=f16",
        "sar.objective.weight=1e8",
        "sar.control=false",
    ]);
    assert_any_ranks(&recipe, &[[3, 1]]);
}

/// All stages, with an adversary, all by Muon; other weights than in single precision.
#[test]
fn gradients_in_half_precision_end_with_the_same_weights_on_any_ranks() {
    let settings = [ADVERSARY, ADVERSARY_BY_MUON, "sar.control=false", "exchange.gradients=bf16"];
    let rounded = tiny(&[&settings[..], &MUON].concat());
    assert_any_ranks(&rounded, &[[1, 2], [2, 1], [3, 2], [4, 1], [8, 1]]);
    let folder = tempfile::tempdir().unwrap();
    let [ours, exact] = ["bf16", "f32"].map(|gradients| {
        let dir = folder.path().join(gradients);
        let setting = format!("exchange.gradients={gradients}");
        whole([1, 1], &dir, &tiny(&["sar.steps=0", "sar.control=false", &setting]));
        outcome(&dir)
    });
    for name in ["tokenizer.safetensors", "backbone-pretrain.safetensors"] {
        assert!(ours.contains_key(name), "{:?}", ours.keys());
        assert!(ours[name] != exact[name], "{name} is rounded");
    }
}

/// A rank that counts its signs of life between two exchanges.
#[derive(Debug)]
struct Counted {
    group: Group,
    since: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Exchange for Counted {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn ranks(&self) -> usize {
        self.group.ranks()
    }

    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.since.store(0, Ordering::Relaxed);
        self.group.all_to_all(messages)
    }

    fn fail(&self, why: &str) {
        self.group.fail(why);
    }

    fn alive(&self) {
        let signs = self.since.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(signs, Ordering::Relaxed);
        self.group.alive();
    }
}

/// All ranks while they look for the images, the first one while it places the codes.
#[test]
fn who_works_long_gives_signs_of_life() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    let image =
        image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([(16 * x) as u8, (9 * y) as u8, 7]));
    for i in 0..200 {
        image.save(images.join(format!("{i}.png"))).unwrap();
    }
    let source = format!("data.source={{ kind = \"folder\", path = \"{}\" }}", images.display());
    let plain =
        "data.augmentation={ shift = 0.0, scale = [1.0, 1.0], flip = 0.0, flip_except = [] }";
    let recipe = tiny(&[&source, plain, "tokenizer.model.codebook_size=300", "sar.steps=0"]);
    let signs = on_threads(threads(2, DEADLINE), |group| {
        let (stop, most) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
        let since = AtomicUsize::new(0);
        let group = Group::new(Counted { group, since, most: Arc::clone(&most) });
        let dir = folder.path().join("run");
        // At the first step there was nothing but the images and the codes.
        let mut observer = StopAfter { left: AtomicUsize::new(1), stop: &stop };
        let outcome = train_as(&group, &recipe, &dir, &stop, &mut observer);
        assert!(matches!(outcome, Err(TrainError::Stopped { .. })), "{outcome:?}");
        most.load(Ordering::Relaxed)
    });
    assert!(signs[0] >= 299 && (200..299).contains(&signs[1]), "{signs:?}");
}

/// Takes down the signs of life of the first step of a stage, and then asks to stop where it is the last one.
struct OfFirstSteps<'a> {
    most: Arc<AtomicUsize>,
    signs: Vec<usize>,
    stop: &'a AtomicBool,
}

impl Observer for OfFirstSteps<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::StageStarted { .. } => self.most.store(0, Ordering::Relaxed),
            Event::Step { stage, step: 0, .. } => {
                self.signs.push(self.most.load(Ordering::Relaxed));
                let is_last = *stage == sar_train::StageId::Pretrain;
                self.stop.store(is_last, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// At every phase of every micro-batch, and as it is read: those without any wait for the others all the while.
#[test]
fn who_has_a_part_of_a_step_gives_signs_of_life() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[
        &ADVERSARY.replace("start = 2", "start = 0"),
        "tokenizer.steps=1",
        "tokenizer.optimization.grad_accum_steps=2",
        "sar.control=false",
    ]);
    let signs = on_threads(threads(3, DEADLINE), |group| {
        let (stop, most) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
        let since = AtomicUsize::new(0);
        let group = Group::new(Counted { group, since, most: Arc::clone(&most) });
        let mut observer = OfFirstSteps { most, signs: Vec::new(), stop: &stop };
        let dir = folder.path().join("run");
        let outcome = train_as(&group, &recipe, &dir, &stop, &mut observer);
        assert!(matches!(outcome, Err(TrainError::Stopped { .. })), "{outcome:?}");
        observer.signs
    });
    // Two micro-batches, then six, each read and of four phases.
    assert_eq!(signs, [[0, 10], [5, 10], [5, 10]]);
}

/// Each piece is stopped by another rank after another number of steps.
#[test]
fn a_run_goes_on_with_any_number_of_ranks() {
    assert_goes_on(&tiny(&[ADVERSARY]), 5);
    assert_goes_on(&tiny(&["sar.control=false", "exchange.gradients=bf16"]), 4);
}

fn assert_goes_on(recipe: &Recipe, least_stops: usize) {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone");
    whole([1, 2], &alone, recipe);
    let alone = outcome(&alone);
    print_columns();
    print_hashes(&alone, "1 x 2");
    // Ranks, who of them asks to stop, and after how many steps.
    let once = |ranks: usize| vec![[4, 3, 6], [ranks, 0, usize::MAX]];
    let often = vec![[4, 3, 1], [2, 1, 1], [3, 0, 2], [1, 0, 1], [4, 2, 3], [3, 2, 2]];
    for (kinds, least_stops) in [(once(2), 1), (once(3), 1), (often, least_stops)] {
        let route: Vec<String> = kinds.iter().map(|[ranks, ..]| ranks.to_string()).collect();
        let what = format!("{} x 1", route.join(" to "));
        let pieces = folder.path().join(&what);
        let stops = in_pieces(recipe, &kinds, &pieces);
        assert!(stops >= least_stops, "{what}: {stops} stops");
        assert_same(&pieces, &alone, &what);
    }
}

/// A run of pieces, over and over in the same order; how often it stopped.
fn in_pieces(recipe: &Recipe, kinds: &[[usize; 3]], pieces: &Path) -> usize {
    let mut stops = 0;
    let mut kinds = kinds.iter().copied().cycle();
    loop {
        let [ranks, who, steps] = kinds.next().unwrap();
        let outcomes = on_ranks(
            [ranks, 1],
            pieces,
            stops > 0,
            |_| recipe.clone(),
            |rank| (rank == who).then_some(steps),
        );
        if outcomes.iter().all(Result::is_ok) {
            return stops;
        }
        for outcome in outcomes {
            assert!(matches!(outcome, Err(TrainError::Stopped { .. })), "{outcome:?}");
        }
        stops += 1;
    }
}

#[test]
fn ranks_that_do_not_fit_together_end_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let seeds = |rank: usize| tiny(&[if rank == 2 { "seed=7" } else { "seed=6" }]);
    for error in on_ranks([3, 1], &dir, false, seeds, |_| None) {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("rank 2 on ") && error.contains("another recipe"), "{error}");
    }
    for error in on_ranks([9, 1], &dir, false, |_| tiny(&[]), |_| None) {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("sar.optimization.batch_size: 8 images for 9 ranks"), "{error}");
    }
    assert!(!dir.exists());
}

/// Two ranks as if on machines of their own: the second looks for images and weights when the first has found them,
/// and they have changed.
#[derive(Debug)]
struct OwnFiles {
    group: Group,
    /// Exchanges that the first has come to, and whether one of them compares what was found.
    come: Arc<(AtomicUsize, AtomicBool)>,
    /// Those that the second has behind it, and whether the files have changed.
    behind: AtomicUsize,
    has_changed: AtomicBool,
    folder: PathBuf,
    change: fn(&Path),
}

impl Exchange for OwnFiles {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn ranks(&self) -> usize {
        self.group.ranks()
    }

    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let (come, compares) = &*self.come;
        if self.group.leads() {
            let word = b"set of initial weights";
            let is_it = messages[1].windows(word.len()).any(|part| part == word);
            compares.fetch_or(is_it, Ordering::SeqCst);
            come.fetch_add(1, Ordering::SeqCst);
            return self.group.all_to_all(messages);
        }
        let received = self.group.all_to_all(messages)?;
        let behind = self.behind.fetch_add(1, Ordering::SeqCst) + 1;
        if !self.has_changed.load(Ordering::SeqCst) {
            let since = Instant::now();
            while come.load(Ordering::SeqCst) == behind {
                assert!(since.elapsed() < Duration::from_secs(60), "the first does not come");
                std::thread::sleep(Duration::from_millis(1));
            }
            if compares.load(Ordering::SeqCst) {
                (self.change)(&self.folder);
                self.has_changed.store(true, Ordering::SeqCst);
            }
        }
        Ok(received)
    }

    fn fail(&self, why: &str) {
        self.group.fail(why);
    }

    fn alive(&self) {
        self.group.alive();
    }
}

#[test]
fn ranks_with_other_images_or_weights_end_before_anything_is_written() {
    let one_more: fn(&Path) = |folder| {
        let image = |name: &str| folder.join("images/squares").join(name);
        fs::copy(image("0.png"), image("new.png")).unwrap();
    };
    let others: fn(&Path) = |folder| {
        let weights = |name: &str| folder.join(format!("{name}.safetensors"));
        fs::rename(weights("others"), weights("weights")).unwrap();
    };
    for (change, what) in [(one_more, "set of images"), (others, "set of initial weights")] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let weights = folder.join("weights.safetensors");
        let recipe = tiny(&[
            &draw_images(&folder.join("images"), 6),
            FLIP_ALL,
            &format!("tokenizer.init_from={{ kind = \"weights\", path = {weights:?} }}"),
        ]);
        for (seed, path) in [(1, weights), (2, folder.join("others.safetensors"))] {
            let (config, init) = (recipe.tokenizer.model.clone(), recipe.tokenizer.init);
            let (seed, device) = (SeedTree::new(seed), Default::default());
            let model = sar_tokenizer::init::<Flex>(&config, init, seed, &device).unwrap();
            TrainedTokenizer { model, config }.save(&path).unwrap();
        }
        let come = Arc::default();
        let own_files = |group: Group| {
            let (come, folder) = (Arc::clone(&come), folder.to_owned());
            let (behind, has_changed) = (AtomicUsize::new(0), AtomicBool::new(false));
            Group::new(OwnFiles { group, come, behind, has_changed, folder, change })
        };
        let groups = threads(2, DEADLINE).into_iter().map(own_files).collect();
        let dir = folder.join("run");
        let errors = on_threads(groups, |group| {
            let stop = AtomicBool::new(false);
            train_as(&group, &recipe, &dir, &stop, &mut Silent).unwrap_err().to_string()
        });
        let [first, second] = &errors[..] else { panic!("{errors:?}") };
        let (starts, says) = ("rank 1 on ", format!(" has another {what} than rank 0 on "));
        assert!(first.starts_with(starts) && first.contains(&says), "{first}");
        assert_eq!(first, second);
        assert!(!dir.exists());
    }
}

/// The rank that leads cannot write: all others hear of it, where and why.
#[test]
fn one_that_cannot_go_on_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let mut errors: Vec<String> = on_ranks([3, 1], &file, false, |_| tiny(&[]), |_| None)
        .into_iter()
        .map(|outcome| outcome.unwrap_err().to_string())
        .collect();
    let own = errors.remove(0);
    assert!(own.contains("is a file; choose another --run-dir"), "{own}");
    for error in errors {
        assert_eq!(error, format!("rank 0: {own}"));
    }
    // And in the midst of it: where a checkpoint should go there is a folder.
    let dir = folder.path().join("run");
    let blocked = dir.join("checkpoints").join("pretrain-2.safetensors").join("x");
    struct Block<'a>(&'a Path);
    impl Observer for Block<'_> {
        fn event(&mut self, event: &Event<'_>) {
            if let Event::StageStarted { stage: sar_train::StageId::Pretrain, .. } = event {
                fs::create_dir_all(self.0).unwrap();
            }
        }
    }
    let recipe = tiny(&[]);
    let errors = on_threads(threads(3, DEADLINE), |group| {
        let stop = AtomicBool::new(false);
        let (mut block, mut silent) = (Block(&blocked), Silent);
        let observer: &mut dyn Observer = if group.leads() { &mut block } else { &mut silent };
        train_as(&group, &recipe, &dir, &stop, observer).unwrap_err().to_string()
    });
    assert!(errors[0].contains("pretrain-2.safetensors"), "{errors:?}");
    assert!(
        errors[1..].iter().all(|error| *error == format!("rank 0: {}", errors[0])),
        "{errors:?}"
    );
}

/// The rank that leads reads it for all.
#[test]
fn without_the_best_checkpoint_all_end_alike() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let recipe = |output: &str| {
        let output = format!("pretrain.output={output}");
        let peak = "pretrain.optimization.lr.peak=1.0";
        tiny(&[peak, "log.measure_steps=1", "sar.steps=1", "sar.control=false", &output])
    };
    whole([2, 1], &dir, &recipe("best"));
    let report = fs::read(dir.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let step = report["stages"][1]["best_step"].as_u64().unwrap();
    assert!(step < 4, "{step}");
    let checkpoint = |name: &str| dir.join("checkpoints").join(format!("{name}.safetensors"));
    fs::remove_file(checkpoint(&format!("pretrain-{step}"))).unwrap();
    for outcome in on_ranks([2, 1], &dir, true, |_| recipe("best"), |_| None) {
        let error = outcome.unwrap_err().to_string();
        for part in [&format!("pretrain-{step}.safetensors: "), "set pretrain.output = \"last\""] {
            assert!(error.contains(part), "{error}");
        }
    }
    // As it says.
    fs::write(dir.join("recipe.toml"), recipe("last").to_toml()).unwrap();
    fs::remove_file(checkpoint("sar-1")).unwrap();
    for outcome in on_ranks([2, 1], &dir, true, |_| recipe("last"), |_| None) {
        outcome.unwrap();
    }
    let read = |dir: &Path, name: &str| {
        fs::read(dir.join(format!("backbone-{name}.safetensors"))).unwrap()
    };
    assert!(!dir.join("backbone-pretrain-best.safetensors").exists());
    // The same as if it had never been asked for.
    let other = folder.path().join("other");
    whole([1, 1], &other, &recipe("last"));
    assert!(other.join("backbone-pretrain-best.safetensors").exists());
    for name in ["pretrain", "sar"] {
        assert!(read(&dir, name) == read(&other, name), "{name} differs");
    }
}
