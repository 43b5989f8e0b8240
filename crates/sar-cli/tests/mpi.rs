//! Runs on several ranks, which are processes that `mpirun` starts: `cargo test --features sar-cli/mpi`.
//!
//! Without `mpirun` nothing is done, and a line says so. `SAR_KILL_ROUNDS=50` makes as many rounds of each of the two
//! tests that kill and stop ranks; with `--nocapture` a line says of each what became of it.

#![cfg(all(unix, feature = "mpi"))]

mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use program::{ADVERSARY, listing, skipped, tiny};
use sar_core::SeedTree;

/// Every stage adds up gradients, keeps an average, measures and saves, beside what every tiny run does, and the tokenizer
/// has an adversary.
const MORE: &[&str] = &[
    "tokenizer.model.codebook_size=32",
    "tokenizer.steps=6",
    "tokenizer.optimization.batch_size=10",
    "tokenizer.optimization.grad_accum_steps=5",
    "tokenizer.optimization.ema=0.5",
    "tokenizer.dead_code_restart={ every = 2, until = 5 }",
    ADVERSARY,
    "backbone.depth=2",
    "pretrain.steps=6",
    "pretrain.optimization.batch_size=12",
    "pretrain.optimization.grad_accum_steps=6",
    "pretrain.optimization.ema=0.5",
    "sar.steps=6",
    "sar.optimization.batch_size=8",
    "sar.optimization.grad_accum_steps=4",
    "sar.optimization.ema=0.5",
    "log.every=2",
    "log.measure_steps=3",
    "log.measure_images=4",
    "log.checkpoint_steps=2",
];

/// Nine chunks of latents, of 18 MiB each: 192 latents of 96 KiB are one.
const CACHED: &[&str] = &[
    "latents={ kind = \"cached\", folder = \"latents\", variants = 1, precision = \"full\" }",
    "tokenizer.model.codebook_dim=384",
    "tokenizer.adversary={ kind = \"none\" }",
    "tokenizer.steps=2",
    "pretrain.steps=2",
    "sar.steps=2",
    "sar.control=false",
];

/// Whether there is a launcher; a line, if there is none.
fn has_mpirun() -> bool {
    let mut command = Command::new("mpirun");
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        skipped("there is no mpirun");
    }
    found
}

/// `sar train` on so many ranks, started or resumed as the directory asks for; none is without a launcher.
fn start(ranks: Option<usize>, run: &Path, more: &[&str]) -> Child {
    let sar = env!("CARGO_BIN_EXE_sar");
    let mut command = match ranks {
        None => Command::new(sar),
        Some(ranks) => {
            let mut command = mpirun();
            command.args(["-n", &ranks.to_string(), sar]);
            command
        }
    };
    command.args(["train", "--run-dir"]).arg(run);
    if run.join("recipe.toml").is_file() {
        command.arg("--resume");
    } else {
        command.args(tiny(MORE));
    }
    spawn(command.args(more))
}

fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

fn spawn(command: &mut Command) -> Child {
    command.env("RAYON_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits, but not for ever. Open MPI's launcher sometimes does when all ranks are gone, where one stopped while it
/// started; it is killed, as `cargo xtask train --ranks` does, and a line says so. The second is whether that was so.
fn end(child: Child, run: &Path, what: &str) -> (Output, bool) {
    let (pid, of_run) = (child.id(), run.to_owned());
    let (done, is_done) = std::sync::mpsc::channel();
    let watch = std::thread::spawn(move || {
        let begun = Instant::now();
        let mut last = begun;
        while is_done.recv_timeout(Duration::from_millis(500)).is_err() {
            if !processes(&of_run).is_empty() {
                last = Instant::now();
            }
            let (hangs, waits) =
                (begun.elapsed() > Duration::from_secs(240), last.elapsed() > ALONE);
            if hangs || waits {
                signal("KILL", pid);
                return (hangs, waits);
            }
        }
        (false, false)
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    let (hangs, waits) = watch.join().unwrap();
    assert!(!hangs, "{what} hangs: {}", text(&output));
    if waits {
        println!("mpirun waits for ranks that are gone");
    }
    (output, waits)
}

/// How long the launcher may outlive all ranks.
const ALONE: Duration = Duration::from_secs(20);

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// What it says.
fn finish(ranks: Option<usize>, run: &Path, more: &[&str]) -> String {
    let (output, _) = end(start(ranks, run, more), run, "a run");
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// The lines that a run says, but for its folder, its times and its memory.
fn lines(said: &str, run: &Path) -> Vec<String> {
    let said = said.replace(&run.display().to_string(), "RUN");
    // Of a slow machine there are more of the former.
    let of_time = |line: &str| line.contains(" to go  ") || line.contains(" minutes, peak memory ");
    let lines = said.lines().filter(|line| !of_time(line));
    let without_time = |line: &str| match line.split_once(" done in ") {
        Some((stage, rest)) => {
            let (_, losses) = rest.split_once(" images/s ").expect("a rate");
            format!("{stage}{losses}")
        }
        None => line.to_owned(),
    };
    lines.map(without_time).collect()
}

fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
}

/// The processes of a run but its launcher, with their environments.
fn processes(run: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse::<u32>().ok()?;
        Some((pid, environment(run, pid)?))
    });
    found.collect()
}

/// The environment of a process, if it is one of a run but its launcher.
fn environment(run: &Path, pid: u32) -> Option<String> {
    let read = |name: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', "\n")
    };
    let line = read("cmdline");
    let is_ours = line.lines().any(|word| Path::new(word) == run);
    (is_ours && line.lines().next() != Some("mpirun")).then(|| read("environ"))
}

/// The rank that a process is, by its environment.
fn rank_of(environment: &str) -> Option<usize> {
    environment.lines().find_map(|line| line.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok())
}

/// The process of a rank of a run, once it is there.
fn process_of(run: &Path, rank: usize) -> u32 {
    let begun = Instant::now();
    loop {
        let found = processes(run);
        if let Some((pid, _)) = found.iter().find(|(_, its)| rank_of(its) == Some(rank)) {
            return *pid;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "rank {rank} does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a run has a checkpoint of a stage.
fn wait_for(run: &Path, checkpoint: &str) {
    let begun = Instant::now();
    while !run.join("checkpoints").join(format!("{checkpoint}.safetensors")).exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{checkpoint} never comes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The files of a run's cache of latents.
fn cached(run: &Path) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    inside(run.join("latents")).flat_map(inside).collect()
}

/// All weights, metrics, pictures and cached latents.
fn outcome(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.chain(cached(run)).filter_map(|path: PathBuf| {
        let name = path.strip_prefix(run).unwrap().to_string_lossy().into_owned();
        let counts = [".safetensors", ".jsonl", ".png"].iter().any(|end| name.ends_with(end));
        counts.then(|| (name, fs::read(&path).unwrap()))
    });
    files.collect()
}

fn assert_same(run: &Path, whole: &BTreeMap<String, Vec<u8>>, what: &str) {
    let found = outcome(run);
    assert!(found.keys().eq(whole.keys()), "{what}: {:?}", found.keys());
    for (name, bytes) in &found {
        assert!(bytes == &whole[name], "{what}: {name} differs");
    }
}

#[test]
fn processes_end_with_what_one_alone_ends_with() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    let alone = lines(&finish(None, &dir("alone"), &[]), &dir("alone"));
    assert!(alone.iter().any(|line| line.starts_with("wrote RUN/")), "{alone:?}");
    let whole = outcome(&dir("alone"));
    for ranks in 1..=3 {
        let run = dir(&format!("{ranks}"));
        let mut said = lines(&finish(Some(ranks), &run, &[]), &run);
        assert_same(&run, &whole, &format!("{ranks} ranks"));
        if ranks > 1 {
            let note = format!("{ranks} ranks train together");
            let at = said.iter().position(|line| *line == note);
            said.remove(at.expect("the note of ranks"));
        }
        assert_eq!(said, alone, "{ranks} ranks");
    }

    // As between machines, by TCP, where ranks of one machine share memory.
    let run = dir("by TCP");
    let mut command = mpirun();
    command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
    command.args(["--mca", "btl_tcp_if_include", "lo", "-n", "3", env!("CARGO_BIN_EXE_sar")]);
    command.args(["train", "--run-dir"]).arg(&run).args(tiny(MORE));
    let (output, _) = end(spawn(&mut command), &run, "a run by TCP");
    assert!(output.status.success(), "{}", text(&output));
    assert_same(&run, &whole, "3 ranks by TCP");

    // Asked to stop at any rank, all do, with a checkpoint; it goes on with other ranks.
    let run = dir("stopped");
    for (ranks, at_rank, name, checkpoint) in [
        (3, Some(2), "TERM", "tokenizer-2"),
        (2, Some(1), "INT", "pretrain-2"),
        (3, Some(0), "TERM", "sar-2"),
        // The launcher passes it on to all of them.
        (2, None, "USR1", "control-2"),
    ] {
        let child = start(Some(ranks), &run, &[]);
        wait_for(&run, checkpoint);
        signal(name, at_rank.map_or(child.id(), |rank| process_of(&run, rank)));
        let (output, _) = end(child, &run, name);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(130), "{name} at {at_rank:?}: {text}");
        assert!(text.contains("go on with --resume"), "{name} at {at_rank:?}: {text}");
    }
    finish(Some(2), &run, &[]);
    assert_same(&run, &whole, "stopped");

    kill_rounds(&dir("killed"), &whole);
}

/// How long a rank may be silent where ranks are stopped, seconds.
const DEADLINE: u64 = 5;

/// How often a test kills and stops what it does.
fn rounds() -> u64 {
    std::env::var("SAR_KILL_ROUNDS").map_or(1, |n| n.parse().expect("a number of rounds"))
}

/// A rank of so many.
struct Victim {
    rank: usize,
    pid: u32,
    ranks: usize,
}

/// Kills or stops a rank, which ends all of them within the deadline: one line says which it was. False if the run had
/// come to its end before.
fn strike(child: Child, run: &Path, how: &str, victim: &Victim, when: &str) -> bool {
    let Victim { rank, pid, ranks } = *victim;
    let begun = Instant::now();
    signal(how, pid);
    let (output, launcher_waited) = end(child, run, how);
    let (took, code) = (begun.elapsed().as_secs_f64(), output.status.code());
    let text = text(&output);
    println!("{when}: {how} rank {rank} of {ranks}: {code:?} in {took:.1} s");
    if output.status.success() {
        assert!(run.join("report.html").is_file(), "{text}");
        return false;
    }
    // The deadline, a second for each rank, of which one is to speak, and five until who has spoken ends anyhow.
    let most = DEADLINE as f64 + ranks as f64 + 5.0 + 2.0;
    assert!(launcher_waited || took < most, "{text}");
    if how == "STOP" {
        let line = format!("rank {rank} gave no sign of life for {DEADLINE} s");
        // Before the engine is up the others know only that somebody is missing.
        let starting = format!("not all ranks have started within {DEADLINE} s");
        let is_said = text.contains(&line) || text.contains(&starting);
        // Before any rank has come so far the launcher alone can know.
        assert!(is_said || !run.join("recipe.toml").is_file(), "{text}");
    } else if code.is_some() {
        // Unless it ends by a signal itself.
        let line = format!("mpirun noticed that process rank {rank} with PID");
        assert!(text.contains(&line), "{text}");
    }
    true
}

/// A rank that is killed or stops ends all within the deadline, and nothing is lost but some steps.
fn kill_rounds(folder: &Path, whole: &BTreeMap<String, Vec<u8>>) {
    let draws = SeedTree::new(21);
    for round in 0..rounds() {
        let run = folder.join(round.to_string());
        fs::create_dir_all(folder).unwrap();
        let draws = draws.at(round);
        for kill in 0..4u64 {
            let draw = |purpose: &str, n| draws.child(purpose).below(kill, n);
            let ranks = 2 + draw("ranks", 3);
            let rank = draw("victim", ranks);
            let how = ["KILL", "STOP"][(kill as usize + round as usize) % 2];
            let delay = Duration::from_millis(draw("delay", 4000) as u64);
            let child = start(Some(ranks), &run, &["--deadline", &DEADLINE.to_string()]);
            let victim = Victim { rank, pid: process_of(&run, rank), ranks };
            std::thread::sleep(delay);
            strike(child, &run, how, &victim, &format!("round {round}, after {delay:?}"));
        }
        finish(Some(1 + draws.child("last").below(0, 4)), &run, &[]);
        assert_same(&run, whole, &format!("round {round}"));
    }
}

/// The process that writes a chunk of a cache which is not whole yet: `.NAME.safetensors.PROCESS-COUNT.partial`.
fn writer(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(".partial")?;
    let (_, writer) = name.rsplit_once(".safetensors.")?;
    writer.split_once('-')?.0.parse().ok()
}

/// Stops one of so many ranks in the midst of writing a chunk of the cache; and what there is of the chunk.
fn stop_a_writer(run: &Path, ranks: usize) -> (Victim, PathBuf) {
    let begun = Instant::now();
    loop {
        for path in cached(run) {
            // Of a rank that was killed before there is a file still.
            let found = writer(&path).and_then(|pid| Some((pid, environment(run, pid)?)));
            let Some((pid, environment)) = found else { continue };
            signal("STOP", pid);
            if path.exists() {
                let rank = rank_of(&environment).expect("a rank");
                return (Victim { rank, pid, ranks }, path);
            }
            // It was whole a moment before.
            signal("CONT", pid);
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "nobody is seen to write latents");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Each round one rank is killed and one stopped, and each time another number of ranks goes on.
#[test]
fn latents_that_a_rank_was_writing_when_it_ended_are_written_again() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let deadline = DEADLINE.to_string();
    let mut more: Vec<&str> = CACHED.iter().flat_map(|setting| ["--set", *setting]).collect();
    more.extend(["--deadline", deadline.as_str()]);
    let alone = folder.path().join("alone");
    finish(None, &alone, &more);
    let whole = outcome(&alone);
    let chunks = whole.keys().filter(|name| name.starts_with("latents")).count();
    // Three ranks take three turns: who is stopped second has some to write.
    assert!(chunks > 6, "{chunks} chunks");

    for round in 0..rounds() {
        let run = folder.path().join(round.to_string());
        let draws = SeedTree::new(22).at(round);
        let first = 2 + draws.child("ranks").below(0, 2);
        for (kill, ranks) in [first, 5 - first].into_iter().enumerate() {
            let child = start(Some(ranks), &run, &more);
            let (victim, torn) = stop_a_writer(&run, ranks);
            let how = ["KILL", "STOP"][(kill + round as usize) % 2];
            let when = format!("round {round}, latents are written");
            assert!(strike(child, &run, how, &victim, &when), "it was whole before");
            // The launcher lets who was stopped go on, for a moment.
            assert!(how == "STOP" || torn.exists(), "{} is gone", torn.display());
        }
        finish(Some([1, 4][draws.child("last").below(0, 2)]), &run, &[]);
        assert_same(&run, &whole, &format!("round {round}"));
        let mut left = listing(&run);
        left.retain(|path| path.ends_with(".partial"));
        assert!(left.is_empty(), "round {round} leaves {left:?}");
        fs::remove_dir_all(&run).unwrap();
    }
}

/// It ends with 2 and one line, which is returned.
fn assert_refused(child: Child, run: &Path, part: &str) -> String {
    let (output, _) = end(child, run, part);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(part), "{text}");
    errors[0].to_owned()
}

/// A disk in memory, which only the processes of a shell's own namespace have; the others come to it by way of that
/// shell's folder in `/proc`. It is gone with the shell.
struct Disk {
    shell: Child,
    said: BufReader<ChildStdout>,
    place: PathBuf,
}

impl Disk {
    /// One of a single page, where such a disk may be had.
    fn mount(folder: &Path) -> Option<Self> {
        let folder = folder.canonicalize().unwrap();
        fs::create_dir(folder.join("disk")).unwrap();
        // Who may do anything may do the latter where namespaces of users are turned off.
        let ways = [&["--user", "--map-root-user", "--mount"][..], &["--mount"]];
        ways.into_iter().find_map(|way| {
            let mut command = Command::new("unshare");
            command.args(way).arg("sh").current_dir(&folder).stderr(Stdio::null());
            let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
            let said = BufReader::new(shell.stdout.take()?);
            let root = PathBuf::from(format!("/proc/{}/root", shell.id()));
            let place = root.join(folder.strip_prefix("/").ok()?).join("disk");
            let mut disk = Self { shell, said, place };
            disk.mounts("size=4096").then_some(disk)
        })
    }

    /// Whether the shell could do so.
    fn mounts(&mut self, options: &str) -> bool {
        let shell = self.shell.stdin.as_mut().expect("its input");
        let asked = writeln!(shell, "mount -t tmpfs -o {options} tmpfs disk; echo $?");
        let mut code = String::new();
        asked.is_ok() && self.said.read_line(&mut code).is_ok() && code == "0\n"
    }

    fn resize(&mut self, bytes: u64) {
        assert!(self.mounts(&format!("remount,size={bytes}")), "{bytes} bytes");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.shell.wait();
    }
}

/// No room for the recipe, for the tokenizer's checkpoints, for those of later stages: all end each time, and it
/// goes on where it was once there is more.
#[test]
fn a_full_disk_ends_all_ranks_and_the_run_goes_on() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(mut disk) = Disk::mount(folder.path()) else {
        skipped("unshare cannot be had, or may not mount a disk");
        return;
    };
    let alone = folder.path().join("alone");
    finish(None, &alone, &[]);
    let whole = outcome(&alone);
    let files = listing(&alone).into_iter().map(|path| fs::metadata(path).unwrap());
    let size: u64 = files.filter(|file| file.is_file()).map(|file| file.len()).sum();
    let run = disk.place.join("run");
    for (quarters, ranks) in [(0, Some(2)), (1, Some(3)), (2, None), (3, Some(2))] {
        disk.resize((quarters * size / 4).max(4096));
        let line = assert_refused(start(ranks, &run, &[]), &run, "No space left on device");
        println!("{quarters} of 4 quarters: {line}");
        assert_eq!(line.starts_with("error: rank 0: "), ranks.is_some(), "{line}");
        assert!(processes(&run).is_empty(), "{line}");
        let has_begun = run.join("recipe.toml").is_file();
        assert_eq!(has_begun, quarters > 0, "{line}");
    }
    disk.resize(4 * size);
    finish(Some(3), &run, &[]);
    assert_same(&run, &whole, "a disk that was full");
}

/// The same program but for a byte at its end, which does nothing.
#[test]
fn ranks_of_two_programs_are_refused() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (run, other) = (folder.path().join("run"), folder.path().join("sar"));
    let sar = Path::new(env!("CARGO_BIN_EXE_sar"));
    fs::copy(sar, &other).unwrap();
    fs::OpenOptions::new().append(true).open(&other).unwrap().write_all(&[0]).unwrap();
    let mut command = mpirun();
    for (at, program) in [sar, other.as_path()].into_iter().enumerate() {
        command.args(if at > 0 { &[":"][..] } else { &[] });
        command.args(["-n", "1"]).arg(program).args(["train", "--run-dir"]).arg(&run);
        command.args(tiny(MORE));
    }
    assert_refused(spawn(&mut command), &run, "has another program than rank 0 on");
    assert!(!run.exists());
}

/// Each would wait for what the other never sends.
#[test]
fn ranks_with_nccl_beside_ranks_without_are_refused() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = mpirun();
    let given: [&[&str]; 2] = [&[], &["--nccl"]];
    for (at, more) in given.into_iter().enumerate() {
        command.args(if at > 0 { &[":"][..] } else { &[] });
        command.args(["-n", "1", env!("CARGO_BIN_EXE_sar"), "train", "--run-dir"]).arg(&run);
        command.args(tiny(MORE)).args(more);
    }
    assert_refused(spawn(&mut command), &run, "has another setting of --nccl than rank 0 on");
    assert!(!run.exists());
}

/// It says so in the environment, and nothing else of it reaches the engine: each of its processes is rank 0 of 1.
#[test]
fn a_launcher_of_another_mpi_is_refused() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.args(["train", "--run-dir"]).arg(&run).args(tiny(MORE));
    command.env("PMI_SIZE", "3").env("PMI_RANK", "1");
    assert_refused(spawn(&mut command), &run, "started as one of 3 ranks, and MPI knows of 1");
    assert!(!run.exists());
}

#[test]
fn what_is_wrong_is_said_in_a_line() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let refused = |ranks: usize, run: &Path, more: &[&str], part: &str| {
        assert_refused(start(Some(ranks), run, more), run, part);
    };
    refused(3, &run, &["--recipe", "nothing"], "no built-in recipe of that name");
    refused(2, &run, &["--device", "abacus"], "--device abacus: unknown");
    refused(9, &run, &[], "sar.optimization.batch_size: 8 images for 9 ranks");
    assert!(!run.exists());
    // Two runs in one directory, the first of which lasts.
    let first = start(Some(2), &run, &["--set", "tokenizer.steps=20000"]);
    wait_for(&run, "tokenizer-2");
    refused(2, &run, &[], "is in use by another process");
    signal("TERM", process_of(&run, 0));
    end(first, &run, "the first");
}
