//! Jobs of sampling: killed and resumed, or in shards, they leave the same files, byte for byte.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sar_core::SeedTree;

/// 48 images in batches of 5, with the weights that come along.
const JOB: [&str; 15] = [
    "sample", "--class", "food", "--class", "animals", "--class", "flags", "--n", "16", "--batch",
    "5", "--seed", "3", "--scales", "1_2_3",
];
const IMAGES: usize = 48;

fn start(folder: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.current_dir(folder).args(args).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// What a process said, and its exit code.
fn end(child: Child) -> (String, Option<i32>) {
    let Output { stderr, status, .. } = child.wait_with_output().unwrap();
    (String::from_utf8(stderr).unwrap(), status.code())
}

fn does(folder: &Path, args: &[&str]) -> String {
    let (said, code) = end(start(folder, args));
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

fn refuses(folder: &Path, args: &[&str], parts: &[&str]) {
    let before = names(folder);
    let (said, code) = end(start(folder, args));
    assert_eq!(code, Some(2), "{args:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "'{part}' is not in: {said}"));
    println!("{}", said.trim_end());
    assert_eq!(names(folder), before, "{args:?} left something behind");
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn n_images(folder: &Path) -> usize {
    names(folder).iter().filter(|name| !name.starts_with('.')).count()
}

/// The images of a job of so many, and what lies beside them, by what it is.
fn outcome(root: &Path, out: &str, images: usize) -> BTreeMap<String, Vec<u8>> {
    let folder = root.join(out);
    let read = |name: String| (name.clone(), fs::read(folder.join(name)).unwrap());
    let mut all: BTreeMap<_, _> = names(&folder).into_iter().map(read).collect();
    assert_eq!(all.len(), images, "{out} holds images alone: {:?}", all.keys());
    for end in ["-job.json", "-grid.png", ".npz", ".tar"] {
        let content = fs::read(root.join(format!("{out}{end}"))).unwrap();
        all.insert(end.into(), content);
    }
    all
}

fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, content) in found {
        assert!(*content == expected[name], "{name} differs");
    }
}

/// The job, whole and never stopped: `whole` in this folder. Made once.
fn whole() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = tempfile::tempdir().unwrap().keep();
        let more = ["--out", "whole", "--npz", "whole.npz", "--tar", "whole.tar"];
        let said = does(&root, &[&JOB[..], &more].concat());
        assert!(said.contains("\n10 of 48 images, 0:0") && said.contains(" to go\n"), "{said}");
        root
    })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    names(from).iter().for_each(|name| _ = fs::copy(from.join(name), to.join(name)).unwrap());
    let job = |folder: &Path| format!("{}-job.json", folder.display());
    fs::copy(job(from), job(to)).unwrap();
}

/// Kills a process when so many images are there, some time later; false if it ended before.
fn kill_at(folder: &Path, mut child: Child, n: usize, delay: Duration) -> bool {
    wait_for(folder, &mut child, n);
    std::thread::sleep(delay);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    !ended
}

fn wait_for(folder: &Path, child: &mut Child, n: usize) {
    let begun = Instant::now();
    while n_images(folder) < n && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(300), "{n} images never come");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_job_that_is_killed_and_resumed_leaves_the_same_files() {
    let expected = outcome(whole(), "whole", IMAGES);
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let resume = ["--out", "cut", "--npz", "cut.npz", "--tar", "cut.tar", "--resume"];
    let resume = [&JOB[..], &resume].concat();
    let cut = root.join("cut");
    let draws = SeedTree::new(7);
    let mut kills = 0;
    for (i, n) in [0, 3, 14, 31].into_iter().enumerate() {
        let delay = Duration::from_micros(draws.below(i as u64, 5000) as u64);
        kills += usize::from(kill_at(&cut, start(root, &resume), n, delay));
    }
    assert!(kills >= 3, "{kills} kills");
    // A batch that lacks one image, which a kill has left half written.
    let lost = cut.join("3-food-drink-007.png");
    fs::remove_file(&lost).unwrap();
    fs::write(cut.join(".3-food-drink-007.png.4294967295-0.partial"), "half").unwrap();
    for name in ["cut-job.json", "cut-grid.png", "cut.npz", "cut.tar"] {
        fs::write(root.join(format!(".{name}.4294967295-0.partial")), "half").unwrap();
    }
    let there = n_images(&cut);
    assert!((10..IMAGES).contains(&there), "{there}");
    let said = does(root, &resume);
    assert!(said.contains(&format!("{there} of 48 images were there")), "{said}");
    assert_same(&outcome(root, "cut", IMAGES), &expected);

    // Once more, all is there and stays.
    let said = does(root, &resume);
    assert!(said.contains("48 of 48 images were there"), "{said}");
    assert_same(&outcome(root, "cut", IMAGES), &expected);
    let beside = ["cut", "cut-grid.png", "cut-job.json", "cut.npz", "cut.tar"];
    assert_eq!(names(root), beside);
    fs::write(root.join("cut.npz"), "another").unwrap();
    let (said, code) = end(start(root, &resume));
    assert!(code == Some(2) && said.contains("cut.npz: exists already and holds"), "{said}");
    assert_eq!(fs::read(root.join("cut.npz")).unwrap(), b"another");
    assert_eq!(names(root), beside);
}

#[test]
fn shards_in_one_folder_leave_the_same_files() {
    let expected = outcome(whole(), "whole", IMAGES);
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let split = root.join("split");
    let shard = |index: usize| {
        let shard = format!("{index}/3");
        start(root, &[&JOB[..], &["--out", "split", "--shard", &shard]].concat())
    };
    // Two at once; one is killed and starts again, and touches nothing of another's.
    let first = shard(0);
    kill_at(&split, shard(1), 1, Duration::from_millis(1));
    let left = |name: &str| split.join(format!(".{name}.4294967295-0.partial"));
    let [own, others] = [left("3-food-drink-007.png"), left("3-food-drink-011.png")];
    [&own, &others].into_iter().for_each(|path| fs::write(path, "half").unwrap());
    let (said, code) = end(shard(1));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.ends_with("split holds all 15 images of shard 1/3\n"), "{said}");
    assert!(!own.exists() && others.exists());
    let (said, code) = end(first);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.ends_with("all 18 images of shard 0/3\n"), "{said}");

    let pack = ["pack", "split", "--npz", "split.npz", "--tar", "split.tar"];
    let parts =
        ["split: 15 of 48 images are missing, the first is 3-food-drink-010.png;", "--resume"];
    refuses(root, &pack, &parts);
    let (said, code) = end(shard(2));
    assert_eq!(code, Some(0), "{said}");
    does(root, &pack);
    fs::copy(whole().join("whole-grid.png"), root.join("split-grid.png")).unwrap();
    assert_same(&outcome(root, "split", IMAGES), &expected);

    // Shards that were drawn on machines of their own.
    let folders = ["first", "second"].map(|name| {
        copy(&split, &root.join(name));
        root.join(name)
    });
    let is_first = |name: &String| name.starts_with('2');
    for (folder, first) in folders.iter().zip([true, false]) {
        let others = names(folder).into_iter().filter(|name| is_first(name) != first);
        others.for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    }
    let pack = ["pack", "first", "second", "--npz", "both.npz", "--tar", "both.tar"];
    fs::rename(root.join("second/8-flags-000.png"), root.join("flag.png")).unwrap();
    refuses(root, &pack, &["first, second: 1 of 48 images are missing, the first is 8-flags-000"]);
    fs::rename(root.join("flag.png"), root.join("second/8-flags-000.png")).unwrap();
    does(root, &pack);
    for ending in ["npz", "tar"] {
        let [both, one] =
            ["both", "split"].map(|name| fs::read(root.join(format!("{name}.{ending}"))));
        assert!(both.unwrap() == one.unwrap(), "{ending}");
    }
    let job = fs::read_to_string(root.join("second-job.json")).unwrap();
    fs::write(root.join("second-job.json"), job.replace("\"seed\": 3", "\"seed\": 4")).unwrap();
    let pack = ["pack", "first", "second", "--npz", "none.npz"];
    refuses(root, &pack, &["second-job.json: has seed = 4, not 3;", "one job"]);
}

#[test]
#[ignore = "takes minutes"]
fn two_thousand_images_are_the_same_in_one_piece_killed_and_in_shards() {
    const MANY: usize = 2000;
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let mut job = vec!["sample", "--n", "250", "--seed", "7"];
    for class in ["0", "1", "2", "3", "4", "5", "6", "7"] {
        job.extend(["--class", class]);
    }
    let files = ["--out", "whole", "--npz", "whole.npz", "--tar", "whole.tar"];
    does(root, &[&job[..], &files].concat());
    let expected = outcome(root, "whole", MANY);

    let resume = ["--out", "cut", "--npz", "cut.npz", "--tar", "cut.tar", "--resume"];
    let resume = [&job[..], &resume].concat();
    let draws = SeedTree::new(11);
    for (i, n) in [100, 700, 1300].into_iter().enumerate() {
        let n = n + draws.below(i as u64, 400);
        let was_killed = kill_at(&root.join("cut"), start(root, &resume), n, Duration::ZERO);
        let there = n_images(&root.join("cut"));
        assert!(was_killed && (n..MANY).contains(&there), "{there} images, {n} wanted");
        println!("killed with {there} images");
    }
    does(root, &resume);
    assert_same(&outcome(root, "cut", MANY), &expected);

    let shards = ["0/3", "1/3", "2/3"]
        .map(|shard| start(root, &[&job[..], &["--out", "split", "--shard", shard]].concat()));
    for (said, code) in shards.map(end) {
        assert_eq!(code, Some(0), "{said}");
    }
    does(root, &["pack", "split", "--npz", "split.npz", "--tar", "split.tar"]);
    fs::copy(root.join("whole-grid.png"), root.join("split-grid.png")).unwrap();
    assert_same(&outcome(root, "split", MANY), &expected);
}

#[test]
fn one_file_holds_the_images_in_their_order_and_nothing_of_the_day() {
    let root = whole();
    let names = |class: &'static str| (0..16).map(move |i| format!("{class}-{i:03}.png"));
    let names = names("3-food-drink").chain(names("2-animals-nature")).chain(names("8-flags"));
    let labels = [3, 2, 8].into_iter().flat_map(|label| [label; 16]);
    let expected: Vec<(Vec<u8>, u8)> =
        names.map(|name| fs::read(root.join("whole").join(name)).unwrap()).zip(labels).collect();

    let mut tar = tar::Archive::new(File::open(root.join("whole.tar")).unwrap());
    let mut entries = tar.entries().unwrap();
    let mut entry = |name: String| {
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some(name.as_str()));
        let header = entry.header();
        assert_eq!([header.mtime(), header.uid(), header.gid()].map(Result::unwrap), [0; 3]);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        content
    };
    for (i, (image, label)) in expected.iter().enumerate() {
        assert!(entry(format!("{i:06}.png")) == *image);
        assert_eq!(entry(format!("{i:06}.cls")), label.to_string().as_bytes());
    }
    assert!(entries.next().is_none());

    let mut npz = zip::ZipArchive::new(File::open(root.join("whole.npz")).unwrap()).unwrap();
    let mut array = |name: &str| {
        let mut bytes = Vec::new();
        npz.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes[128..].to_vec()
    };
    // Classes take turns.
    let expected = || (0..16).flat_map(|i| [0, 16, 32].map(|class| &expected[class + i]));
    let pixels = expected()
        .flat_map(|(image, _)| image::load_from_memory(image).unwrap().into_rgb8().into_raw());
    assert!(array("arr_0.npy") == pixels.collect::<Vec<u8>>());
    let labels = expected().flat_map(|(_, label)| i64::from(*label).to_le_bytes());
    assert_eq!(array("arr_1.npy"), labels.collect::<Vec<u8>>());

    // What is packed is a source of images.
    let source = "data.source={ kind = \"webdataset\", shards = [\"whole.tar\"] }";
    let settings = ["--set", source, "--set", "data.augmentation.flip_except=[]"];
    let train = [&["train", "--dry-run"], &settings[..]].concat();
    let said = Command::new(env!("CARGO_BIN_EXE_sar")).current_dir(root).args(train).output();
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    assert!(said.contains("trains on 44 images of 9 classes, 4 held out"), "{said}");
}

#[test]
fn an_interrupted_job_ends_after_its_batch_and_says_how_it_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let out = root.join("out");
    // At the weights' own scales, which take a while.
    let job = ["sample", "--class", "food", "--n", "400", "--batch", "4", "--out", "out"];
    let mut child = start(root, &job);
    wait_for(&out, &mut child, 1);
    let interrupt = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &interrupt]).status().unwrap().success());
    let (said, code) = end(child);
    assert_eq!(code, Some(130), "{said}");
    let n = n_images(&out);
    assert!(n > 0 && n.is_multiple_of(4) && n < 400, "{n}");
    let last = format!(
        "stopped: {n} of 400 images are in out; the same command with --out out --resume goes on\n"
    );
    assert!(said.contains("stopping after this batch") && said.ends_with(&last), "{said}");
    assert_eq!(names(root), ["out", "out-job.json"]);
}

#[test]
fn what_does_not_fit_together_is_told_in_a_line() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let sample = |more: &[&str], parts: &[&str]| refuses(root, &[&JOB, more].concat(), parts);
    copy(&whole().join("whole"), &root.join("out"));
    let out = ["--out", "out"];
    let resume = |more: &[&str], parts: &[&str]| {
        let parts = [&["out-job.json: has "], parts].concat();
        for goes_on in [&["--resume"][..], &["--shard", "1/2"]] {
            sample(&[&out, goes_on, more].concat(), &parts);
        }
    };
    resume(&["--size", "24x48"], &["scales = \"1_2_3\", not \"1_2x4_3x6\";"]);
    resume(&["--class", "objects"], &["the number of classes = 3, not 4"]);
    resume(&["--guidance", "1.25"], &["sampler.guidance.scale = ", ", not 1.25;"]);
    sample(&out, &["--out out: already holds files"]);
    fs::write(root.join("thesis.tex"), "years of work").unwrap();
    sample(&["--out", ".", "--resume"], &["--out .: holds files that no job is known of"]);
    sample(&["--out", "thesis.tex", "--resume"], &["is a file"]);

    let shard = |text: &str, parts: &[&str]| {
        sample(&["--out", "new", "--shard", text], &[&[text], parts].concat());
    };
    shard("3/3", &["--shard 3/3: shards count from 0", "2/3"]);
    shard("x", &["--shard x: write i/n, as in 3/16"]);
    sample(&["--shard", "1/3"], &["--shard: name the folder with --out"]);
    sample(&["--resume"], &["--resume: name the folder with --out"]);
    sample(&["--out", "new", "--shard", "1/3", "--previews"], &["--previews", "--shard"]);
    sample(&["--out", "new", "--resume", "--previews"], &["--previews", "--resume"]);
    let one = ["--out", "new", "--shard", "1/3", "--npz", "a.npz"];
    sample(&one, &["--npz a.npz", "`sar pack new --npz a.npz`"]);
    sample(&["--out", "new", "--npz", "no/a.npz"], &["--npz no/a.npz: there is no folder no"]);
    sample(&["--out", "new", "--npz", "a", "--tar", "a"], &["name one file"]);

    // Numbers that no machine, and no picture, bears.
    let one = |more: &[&str], parts: &[&str]| {
        refuses(root, &[&["sample", "--class", "0", "--out", "new"], more].concat(), parts);
    };
    one(&["--n", "99999999999"], &["--n 99999999999: at most 10000000 images"]);
    one(&["--guidance", "1e38"], &["--guidance 1", "must be in [0, 1000]"]);
    one(&["--guidance", "-1"], &["--guidance -1: must be in [0, 1000]"]);
    one(&["--top-p", "-0.5"], &["--top-p -0.5: must be in [0, 1]"]);
    one(&["--size", "16384x16384"], &["--size: 16384x16384 px: a side has at most 8192 px"]);
    one(
        &["--size", "8192x8192"],
        &["--size: 8192x8192 px:", "tokens an image", "a square has about"],
    );
    one(&["--size", "100000x100000"], &["--size 100000x100000: a side has at most 16384 px"]);
    one(&["--size", "64"], &["--size 64: write height and width"]);
    for [option, value] in [["--seed", "-1"], ["--top-k", "-1"], ["--n", "-3"], ["--seed", "x"]] {
        let (said, code) = end(start(root, &["sample", option, value, "--out", "new"]));
        let why = format!("invalid value '{value}' for '{option}");
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&why) && said.contains("a whole number from 0 to"), "{said}");
    }

    refuses(root, &["pack", "out"], &["--npz", "--tar"]);
    refuses(root, &["pack", "nowhere", "--npz", "a.npz"], &["nowhere: no such folder"]);
    refuses(root, &["pack", "out", "--tar", "thesis.tex"], &["thesis.tex: exists already"]);

    // A shard that was drawn elsewhere, with another seed.
    let other = JOB.map(|argument| if argument == "3" { "4" } else { argument });
    does(root, &[&other[..], &["--out", "other", "--shard", "0/10"]].concat());
    let first = "3-food-drink-000.png";
    let (ours, theirs) = (root.join("out").join(first), root.join("other").join(first));
    let whole = fs::read(&ours).unwrap();
    fs::copy(theirs, &ours).unwrap();
    let other = [first, "is of another job, with job.seed = 4, not 3; remove it", "--resume"];
    refuses(root, &["pack", "out", "--npz", "a.npz"], &other);
    // The same picture as others write it.
    image::load_from_memory(&whole).unwrap().save(&ours).unwrap();
    let stranger = [first, "does not say that it is of this job; remove it"];
    refuses(root, &["pack", "out", "--tar", "a.tar"], &stranger);
    fs::write(&ours, whole).unwrap();

    let image = root.join("out/2-animals-nature-003.png");
    fs::write(&image, b"this is no picture").unwrap();
    let damaged = ["2-animals-nature-003.png: is no whole image; remove it", "--resume"];
    refuses(root, &["pack", "out", "--npz", "a.npz"], &damaged);
    fs::remove_file(&image).unwrap();
    let missing = ["out: 1 of 48 images are missing, the first is 2-animals-nature-003.png"];
    refuses(root, &["pack", "out", "--npz", "a.npz"], &missing);
    fs::remove_file(root.join("out-job.json")).unwrap();
    refuses(root, &["pack", "out", "--npz", "a.npz"], &["out: no job of `sar sample`"]);
}
