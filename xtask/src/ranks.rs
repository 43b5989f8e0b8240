//! `train --ranks N`: `sar` built with MPI, on so many ranks of this machine or of those in a `--hostfile`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{env, fs, thread};

use crate::cargo::{self, Failure, Outcome};
use crate::device::{self, Device};
use crate::mpirun;
use crate::sar::PACKAGE;

const MPIRUN: &str = "mpirun";

/// Long messages from GPU to GPU, which has to be built in.
const NCCL: &str = "--nccl";

/// What a run that was asked to stop ends with.
const INTERRUPTED: u8 = 130;

/// What is asked for of ranks, and the arguments that are left.
struct Ranks {
    ranks: usize,
    hostfile: Option<OsString>,
    restarts: bool,
    args: Vec<OsString>,
}

/// Trains on ranks, if `--ranks` asks for more than one; otherwise gives the other arguments back.
pub(crate) fn train(args: &[OsString]) -> Result<Option<Vec<OsString>>, Failure> {
    let Some(asked) = parse(args)? else { return Ok(Some(args.to_vec())) };
    if asked.ranks == 1 {
        return Ok(Some(asked.args));
    }
    ensure_mpirun(MPIRUN)?;
    let sar = build(&asked.args)?;
    launch(&asked, &sar).map(|()| None)
}

fn parse(args: &[OsString]) -> Result<Option<Ranks>, Failure> {
    let (ranks, args) = take_value(args, "--ranks")?;
    let (hostfile, args) = take_value(&args, "--hostfile")?;
    let (restarts, args) = device::take_flag(&args, "--restart-on-failure");
    // `sar` is told, too.
    let (nccl, _) = device::take_flag(&args, NCCL);
    let usage = |line: String| Err(Failure::Usage(line));
    let Some(ranks) = ranks else {
        return match hostfile.is_some() || restarts || nccl {
            true => usage("--hostfile, --restart-on-failure and --nccl need --ranks".into()),
            false => Ok(None),
        };
    };
    let number = ranks.to_str().and_then(|text| text.parse::<usize>().ok());
    let Some(number) = number.filter(|number| *number > 0) else {
        return usage(format!("--ranks {}: is no number of ranks, 1 or more", ranks.display()));
    };
    if number == 1 && (hostfile.is_some() || restarts || nccl) {
        let line = "--hostfile, --restart-on-failure and --nccl need --ranks of 2 or more";
        return usage(line.into());
    }
    if nccl && device::named(&args) != Some("cuda") {
        return usage("--nccl: is for GPUs of NVIDIA; name them with --device cuda".into());
    }
    if restarts && value_of(&args, "--run-dir").is_none() {
        return usage("--restart-on-failure: name the run with --run-dir".into());
    }
    Ok(Some(Ranks { ranks: number, hostfile, restarts, args }))
}

fn ensure_mpirun(program: &str) -> Outcome {
    let mut command = Command::new(program);
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Failure::Check(format!(
            "--ranks: there is no `{program}`; install an MPI, such as Debian's openmpi-bin, \
             libopenmpi-dev, libclang-dev and clang"
        ))),
    }
}

/// Builds `sar` with MPI, in a target directory of its own.
fn build(args: &[OsString]) -> Result<PathBuf, Failure> {
    let target = cargo::target_dir().join("mpi");
    cargo::run(&mut building(args, &target))?;
    Ok(target.join("release").join(format!("sar{}", env::consts::EXE_SUFFIX)))
}

fn building(args: &[OsString], target: &Path) -> Command {
    let mut command = cargo::cargo(["build", "--release", "--package", PACKAGE, "--bin", "sar"]);
    command.arg("--manifest-path").arg(cargo::root().join("Cargo.toml"));
    command.args(["--features", "mpi"]).arg("--target-dir").arg(target);
    if let Some(device) =
        device::named(args).and_then(Device::find).filter(|device| device.name != "flex")
    {
        command.args(["--features", device.name]);
    }
    for (flag, feature) in [("--fusion", "fusion"), (NCCL, "nccl")] {
        if args.iter().any(|arg| arg == flag) {
            command.args(["--features", feature]);
        }
    }
    command
}

/// The command that starts `sar`; `threads` is what the environment says of the threads of a rank.
fn launcher(asked: &Ranks, sar: &Path, args: &[OsString], threads: Option<&OsStr>) -> Command {
    let mut command = Command::new(MPIRUN);
    command.args(["-n", &asked.ranks.to_string()]);
    // More ranks than cores are slow, not wrong; and every rank has threads.
    command.args(["--oversubscribe", "--bind-to", "none"]);
    // Both are asked for where root starts it, as in a container.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    if let Some(hostfile) = &asked.hostfile {
        command.arg("--hostfile").arg(hostfile);
    }
    match (&asked.hostfile, threads) {
        (Some(_), Some(_)) => {
            command.args(["-x", THREADS]);
        }
        (None, None) => {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            command.env(THREADS, (cores / asked.ranks).max(1).to_string());
        }
        // The ranks of this machine have it from here; what cores others have is not known.
        (None, Some(_)) | (Some(_), None) => {}
    }
    let (_, args) = device::take_flag(args, "--fusion");
    command.arg(sar).arg("train").args(args);
    command
}

/// Threads of a rank.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Whether Ctrl-C was heard.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// The process of the launcher, 0 while there is none.
static CHILD: AtomicU32 = AtomicU32::new(0);

/// Starts the run and goes on with it, see [`carry_on`].
///
/// The launcher answers Ctrl-C by killing all ranks within a second. Therefore it does not hear of it: the first is
/// passed on as SIGUSR1, which it passes on to all ranks, and they write a checkpoint.
fn launch(asked: &Ranks, sar: &Path) -> Outcome {
    let handler = || {
        let name = if STOPPED.swap(true, Ordering::Relaxed) { "-TERM" } else { "-USR1" };
        let child = CHILD.load(Ordering::Relaxed);
        if child != 0 {
            let _ = Command::new("kill").args([name, &child.to_string()]).status();
        }
    };
    ctrlc::set_handler(handler).map_err(|error| Failure::Check(format!("signals: {error}")))?;
    let threads = env::var_os(THREADS);
    carry_on(asked, |args| launcher(asked, sar, args, threads.as_deref()))
}

/// Starts the run with the launcher of its arguments, and where that is asked for, starts it again from its last
/// checkpoint when it fails, as long as it gets on.
fn carry_on(asked: &Ranks, launcher: impl Fn(&[OsString]) -> Command) -> Outcome {
    let run = value_of(&asked.args, "--run-dir").map(PathBuf::from);
    let mut args = asked.args.clone();
    loop {
        let before = run.as_deref().map(checkpoints);
        let mut command = launcher(&args);
        // In a group of its own it does not hear of Ctrl-C, and may not read from the terminal.
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|error| {
            Failure::Check(format!("cannot start `{}`: {error}", cargo::shown(&command)))
        })?;
        CHILD.store(child.id(), Ordering::Relaxed);
        let said = child.stderr.take().map(|said| pass_on(said, child.id()));
        let status = child.wait().map_err(|error| Failure::Check(format!("mpirun: {error}")))?;
        CHILD.store(0, Ordering::Relaxed);
        // What it started on other machines may hold its stderr longer than it lives.
        let _ = said.map(|end| end.recv_timeout(Duration::from_secs(2)));
        if status.success() {
            return Ok(());
        }
        let code = cargo::exit_code(status);
        // What a run found bad stays bad.
        if !asked.restarts || code == 1 || code == INTERRUPTED || STOPPED.load(Ordering::Relaxed) {
            return Err(Failure::Child(code));
        }
        if run.as_deref().map(checkpoints) == before {
            eprintln!("ended with {code} and without a new checkpoint: not started again");
            return Err(Failure::Child(code));
        }
        eprintln!("ended with {code}: going on from the last checkpoint");
        if !args.iter().any(|arg| arg == "--resume") {
            args.push("--resume".into());
        }
    }
}

/// What ranks say that wait in vain, and with it all end.
const IN_VAIN: [&str; 2] = ["gave no sign of life", "not all ranks have started within"];

/// Passes on what the launcher says, on a thread, which says when that is all.
///
/// Where a machine is cut off Open MPI waits for its daemon there for minutes, when all ranks have long ended, and now
/// and then for ever where a rank stopped while it started: it is killed.
fn pass_on(said: ChildStderr, launcher: u32) -> Receiver<()> {
    let (all, end) = mpsc::channel();
    thread::spawn(move || {
        mpirun::listen(said, |line| {
            eprintln!("{line}");
            if IN_VAIN.iter().any(|what| line.contains(what)) {
                thread::spawn(move || {
                    thread::sleep(Duration::from_secs(20));
                    if CHILD.load(Ordering::Relaxed) == launcher {
                        let _ =
                            Command::new("kill").args(["-KILL", &launcher.to_string()]).status();
                    }
                });
            }
        });
        let _ = all.send(());
    });
    end
}

/// The names of a run's checkpoints.
fn checkpoints(run: &Path) -> Vec<OsString> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let mut names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| name.to_string_lossy().ends_with(".safetensors"));
    names.sort();
    names
}

/// The value of `NAME VALUE` or `NAME=VALUE` among the arguments.
fn value_of<'a>(args: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    let (place, inline) = find(args, name)?;
    inline.map(OsStr::new).or_else(|| args.get(place + 1).map(OsString::as_os_str))
}

fn find<'a>(args: &'a [OsString], name: &str) -> Option<(usize, Option<&'a str>)> {
    args.iter().take_while(|arg| *arg != "--").enumerate().find_map(|(place, arg)| {
        let rest = arg.to_str()?.strip_prefix(name)?;
        match rest.strip_prefix('=') {
            Some(value) => Some((place, Some(value))),
            None => rest.is_empty().then_some((place, None)),
        }
    })
}

/// The value of an argument, and the others.
fn take_value(args: &[OsString], name: &str) -> Result<(Option<OsString>, Vec<OsString>), Failure> {
    let mut args = args.to_vec();
    let Some((place, inline)) = find(&args, name) else { return Ok((None, args)) };
    let inline = inline.map(OsString::from);
    args.remove(place);
    let value = match inline {
        Some(value) => value,
        None if place < args.len() => args.remove(place),
        None => return Err(Failure::Usage(format!("{name}: needs a value"))),
    };
    Ok((Some(value), args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn shown(line: &str) -> String {
        let Some(asked) = parse(&words(line)).unwrap() else { return "none".into() };
        let hostfile = asked.hostfile.map(|file| file.display().to_string());
        let rest = asked.args.join(" ".as_ref());
        format!("{} {hostfile:?} {} {}", asked.ranks, asked.restarts, rest.display())
    }

    #[test]
    fn ranks_are_taken_out_of_the_arguments() {
        assert_eq!(shown("--recipe x"), "none");
        assert_eq!(shown("--ranks 4 --recipe x"), "4 None false --recipe x");
        assert_eq!(shown("--recipe x --ranks=1"), "1 None false --recipe x");
        assert_eq!(
            shown("--run-dir r --hostfile h --ranks 2 --restart-on-failure"),
            "2 Some(\"h\") true --run-dir r"
        );
        assert_eq!(shown("-- --ranks 4"), "none");
        let nccl = "--nccl --device cuda";
        assert_eq!(shown(&format!("--ranks 2 {nccl}")), format!("2 None false {nccl}"));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        let said = |line: &str| parse(&words(line)).err().unwrap().line().unwrap().to_owned();
        assert_eq!(said("--ranks 0"), "--ranks 0: is no number of ranks, 1 or more");
        assert_eq!(said("--ranks"), "--ranks: needs a value");
        assert!(said("--hostfile h").ends_with("need --ranks"));
        assert!(said("--ranks 1 --hostfile h").ends_with("2 or more"));
        assert!(said("--nccl --device cuda").ends_with("need --ranks"));
        assert!(said("--ranks 1 --nccl --device cuda").ends_with("2 or more"));
        assert!(said("--ranks 2 --nccl --device wgpu").ends_with("--device cuda"));
        assert!(said("--ranks 2 --restart-on-failure").ends_with("--run-dir"));
    }

    #[test]
    fn without_a_launcher_it_says_what_to_install() {
        let said = ensure_mpirun("/nowhere/mpirun").unwrap_err();
        let line = said.line().unwrap();
        assert!(line.starts_with("--ranks: there is no `/nowhere/mpirun`; install"), "{line}");
        assert!(line.contains("openmpi-bin") && said.code() == 1, "{line}");
    }

    /// In place of `mpirun` a script that writes down its arguments, and ends the first time as it is told.
    #[cfg(unix)]
    #[test]
    fn a_run_that_fails_and_gets_on_is_started_again() {
        let folder = env::temp_dir().join(format!("sar-restarts-{}", std::process::id()));
        let begin =
            "printf '%s\\n' \"$*\" >> starts\nif [ $(wc -l < starts) -gt 1 ]; then exit 0; fi\n";
        // The exit code, and the lines that the launcher was started with.
        let ends = |first: &str, more: &str| {
            fs::create_dir_all(folder.join("run/checkpoints")).unwrap();
            fs::write(folder.join("mpirun"), format!("{begin}{first}\n")).unwrap();
            let line = format!("--ranks 2 --run-dir {} {more}", folder.join("run").display());
            let asked = parse(&words(&line)).unwrap().unwrap();
            let outcome = carry_on(&asked, |args| {
                let mut script = Command::new("sh");
                script.current_dir(&folder).arg("mpirun");
                script.args(launcher(&asked, Path::new("/t/sar"), args, None).get_args());
                script
            });
            let starts = fs::read_to_string(folder.join("starts")).unwrap();
            fs::remove_dir_all(&folder).unwrap();
            let starts: Vec<String> = starts.lines().map(String::from).collect();
            (outcome.err().map(|failure| failure.code()), starts)
        };
        let gets_on = "touch run/checkpoints/sar-2.safetensors; exit";
        let fails = |code: u8| format!("{gets_on} {code}");
        let (code, starts) = ends(&fails(2), "--restart-on-failure");
        assert_eq!((code, starts.len()), (None, 2), "{starts:?}");
        assert!(starts[0].starts_with("-n 2 ") && !starts[0].contains("--resume"), "{starts:?}");
        assert_eq!(starts[1], format!("{} --resume", starts[0]));
        // Killed by a signal; and of a run that was resumed already.
        let (code, starts) = ends(&fails(137), "--restart-on-failure --resume");
        assert_eq!((code, starts.len()), (None, 2), "{starts:?}");
        assert_eq!(starts[0], starts[1]);
        // What was found bad stays bad; who was asked to stop has stopped; nothing new, nobody asked.
        for (first, more, expected) in [
            (fails(1), "--restart-on-failure", 1),
            (fails(INTERRUPTED), "--restart-on-failure", INTERRUPTED),
            ("exit 2".into(), "--restart-on-failure", 2),
            (fails(2), "", 2),
        ] {
            let (code, starts) = ends(&first, more);
            assert_eq!((code, starts.len()), (Some(expected), 1), "{first}: {starts:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_built_in() {
        let features = |line: &str| {
            let command = building(&words(line), Path::new("/t"));
            let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
            let pairs = args.windows(2).filter(|pair| pair[0] == "--features");
            pairs.map(|pair| pair[1].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(features("--device flex"), ["mpi"]);
        assert_eq!(features("--device=cuda:1 --fusion"), ["mpi", "cuda", "fusion"]);
        assert_eq!(features("--nccl --device cuda"), ["mpi", "cuda", "nccl"]);
    }

    fn launched(line: &str, threads: Option<&str>) -> Command {
        let asked = parse(&words(line)).unwrap().unwrap();
        launcher(&asked, Path::new("/t/sar"), &asked.args, threads.map(OsStr::new))
    }

    #[test]
    fn the_launcher_is_given_what_it_takes() {
        let line = cargo::shown(&launched("--ranks 3 --fusion --recipe x", None));
        assert!(line.contains("mpirun -n 3 --oversubscribe"), "{line}");
        assert!(line.ends_with("--bind-to none /t/sar train --recipe x"), "{line}");
        let line = cargo::shown(&launched("--ranks 3 --hostfile h --recipe x", None));
        assert!(line.ends_with("--bind-to none --hostfile h /t/sar train --recipe x"), "{line}");
        let line = cargo::shown(&launched("--ranks 3 --hostfile h --recipe x", Some("5")));
        let expected = "--hostfile h -x RAYON_NUM_THREADS /t/sar train --recipe x";
        assert!(line.ends_with(expected), "{line}");
        let line = cargo::shown(&launched("--ranks 3 --recipe x", Some("5")));
        assert!(line.ends_with("--bind-to none /t/sar train --recipe x"), "{line}");
    }

    #[test]
    fn ranks_of_this_machine_share_its_cores_unless_somebody_has_said_otherwise() {
        let threads = |line: &str, said: Option<&str>| {
            let command = launched(line, said);
            let (_, value) = command.get_envs().find(|(name, _)| *name == THREADS)?;
            value?.to_str()?.parse::<usize>().ok()
        };
        let cores = thread::available_parallelism().unwrap().get();
        assert_eq!(threads(&format!("--ranks {cores}"), None), Some(1));
        assert_eq!(threads("--ranks 1", None), Some(cores));
        assert_eq!(threads(&format!("--ranks {}", cores + 1), None), Some(1));
        assert_eq!(threads("--ranks 2", Some("5")), None);
        assert_eq!(threads("--ranks 2 --hostfile h", None), None);
        assert_eq!(threads("--ranks 2 --hostfile h", Some("5")), None);
    }
}
