//! Processes that do a piece of work, and where their figures go.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::cpu::Cpu;
use crate::cargo::{self, Failure, Outcome};
use crate::device::Device;

/// A piece of work of `sar-bench`.
pub(super) fn work(binary: &Path, name: &str) -> Command {
    let mut command = Command::new(binary);
    command.arg(name);
    command
}

/// The binary of `sar-bench`; as part of the workspace, so that nothing is built twice.
pub(super) fn build() -> Result<PathBuf, Failure> {
    built(cargo::cargo(["build", "--release", "--workspace", "--bins"]))
}

/// The binary of `sar-bench` with a device that is not built by default.
pub(super) fn build_for(device: &Device) -> Result<PathBuf, Failure> {
    let mut command = cargo::cargo(["build", "--release", "--package", "sar-bench", "--bins"]);
    device.select(&mut command);
    built(command)
}

fn built(mut command: Command) -> Result<PathBuf, Failure> {
    command.args(["--message-format", "json-render-diagnostics"]);
    let messages = cargo::output(command.current_dir(cargo::root()))?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "work")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.ok_or_else(|| Failure::Check("cargo built no binary `work`".into()))
}

/// A process that runs a piece of work once for every line that it is sent.
pub(super) struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    name: String,
    /// The vector instructions that it runs with, if it says so.
    pub(super) level: Option<String>,
}

impl Worker {
    /// Starts it, and waits until it is set up.
    pub(super) fn start(mut command: Command) -> Result<Self, Failure> {
        let name = cargo::shown(&command);
        let fail = |problem: String| Failure::Check(format!("{name}: {problem}"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| fail(error.to_string()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(fail("has no pipes".into()));
        };
        let stdout = BufReader::new(stdout);
        let mut worker = Self { child, stdin: Some(stdin), stdout, name, level: None };
        worker.level = ready(&worker.line()?)
            .map_err(|problem| Failure::Check(format!("{}: {problem}", worker.name)))?;
        Ok(worker)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line.trim().into()),
            _ => Err(Failure::Check(format!("{}: ended early", self.name))),
        }
    }

    fn number(&mut self) -> Result<f64, Failure> {
        let line = self.line()?;
        line.parse().map_err(|_| Failure::Check(format!("{}: said `{line}`", self.name)))
    }

    /// The seconds of one run.
    pub(super) fn run(&mut self) -> Result<f64, Failure> {
        let stdin = self.stdin.as_mut().expect("taken at the end only");
        writeln!(stdin).map_err(|error| Failure::Check(format!("{}: {error}", self.name)))?;
        self.number()
    }

    /// The peak memory, when all runs are done.
    pub(super) fn end(mut self) -> Result<f64, Failure> {
        drop(self.stdin.take());
        let peak = self.number();
        let _ = self.child.wait();
        peak
    }
}

/// What a worker's first line says: `ready`, `ready LEVEL` or `failed WHY`.
fn ready(line: &str) -> Result<Option<String>, String> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("ready", "") => Ok(None),
        ("ready", level) => Ok(Some(level.into())),
        ("failed", why) => Err(why.into()),
        _ => Err(format!("said `{line}` at its start")),
    }
}

/// Seconds of each of some runs of a worker that has the machine for itself, and its peak MB.
pub(super) fn alone(command: Command, runs: usize) -> Result<(Vec<f64>, f64), Failure> {
    let mut worker = Worker::start(command)?;
    let seconds = (0..runs).map(|_| worker.run()).collect::<Result<_, _>>()?;
    Ok((seconds, worker.end()?))
}

/// The same of two workers whose runs alternate.
pub(super) fn in_turns(
    mut workers: [Worker; 2],
    runs: usize,
) -> Result<[(Vec<f64>, f64); 2], Failure> {
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        for (worker, seconds) in workers.iter_mut().zip(&mut seconds) {
            seconds.push(worker.run()?);
        }
    }
    let [ours, theirs] = workers;
    let [ours_s, theirs_s] = seconds;
    Ok([(ours_s, ours.end()?), (theirs_s, theirs.end()?)])
}

/// The middle one; of an even number the larger of the two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How much runs differ: their interquartile range over their median, 0 or more. Of fewer than four runs
/// it is the whole range that is taken, of fewer than two there is none.
pub(super) fn spread(seconds: &[f64]) -> Option<f64> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, quarter) = (sorted.len(), sorted.len() / 4);
    (n > 1).then(|| (sorted[n - 1 - quarter] - sorted[quarter]) / sorted[n / 2])
}

/// What a program prints, or `unknown`.
pub(super) fn said(program: &Path, args: &[&str]) -> String {
    let text = cargo::output(Command::new(program).args(args).current_dir(cargo::root()));
    text.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// Today, as in 2026-01-31.
pub(super) fn date() -> String {
    said("date".as_ref(), &["-u", "+%Y-%m-%d"])
}

/// The commit that is checked out.
pub(super) fn commit() -> String {
    said("git".as_ref(), &["rev-parse", "--short", "HEAD"])
}

/// Processor, its kind and the number of cores, as in `AMD EPYC (AMD Zen 4, 2 cores)`.
pub(super) fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    format!("{} ({})", processor.map_or("unknown", |(_, name)| name.trim()), Cpu::here())
}

/// Where results lie.
pub(super) fn results() -> PathBuf {
    cargo::root().join("benchmarks/results")
}

/// Writes a file of results, and says so.
pub(super) fn save(name: &str, table: &Value) -> Outcome {
    write(name, table)?;
    println!("wrote {}", results().join(name).display());
    Ok(())
}

/// Writes a file of results.
pub(super) fn write(name: &str, table: &Value) -> Outcome {
    let path = results().join(name);
    let text = serde_json::to_string_pretty(table).expect("a table is JSON") + "\n";
    fs::write(&path, text).map_err(|error| Failure::Check(format!("{}: {error}", path.display())))
}

/// What is compared with: torch, and the packages that measure images, as pip calls them.
const PACKAGES: [&str; 5] = ["torch", "torchvision", "numpy", "pytorch-fid", "torch-fidelity"];

/// A Python that has all packages: the system's, or one in a virtual environment that is made here.
pub(super) fn python() -> Result<PathBuf, Failure> {
    let has = |python: &Path, modules: &str| {
        let mut command = Command::new(python);
        let import = format!("import {modules}");
        command.args(["-c", &import]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let system = PathBuf::from("python3");
    let modules = PACKAGES.join(", ").replace('-', "_");
    if has(&system, &modules) {
        return Ok(system);
    }
    let environment = cargo::target_dir().join("pytorch");
    let python = environment.join("bin/python");
    if !has(&python, &modules) {
        println!("python3 lacks {modules}: installing them in {}", environment.display());
        cargo::run(Command::new(&system).args(["-m", "venv"]).arg(&environment))?;
        let mut install = Command::new(&python);
        cargo::run(install.args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    }
    Ok(python)
}

/// The version of its torch.
pub(super) fn torch_version(python: &Path) -> String {
    said(python, &["-c", "import torch; print(torch.__version__)"])
}

/// A piece of work in PyTorch; eager, unless arguments say otherwise.
pub(super) fn eager(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    // A failure has the command in it, and goes into results: without this machine's paths.
    command.current_dir(cargo::root()).args(["benchmarks/pytorch/eager.py", name]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_the_level_or_why_there_is_none() {
        assert_eq!(ready("ready"), Ok(None));
        assert_eq!(ready("ready avx512"), Ok(Some("avx512".into())));
        assert_eq!(ready("ready NO AVX"), Ok(Some("NO AVX".into())));
        assert_eq!(ready("failed no C++ compiler"), Err("no C++ compiler".into()));
        assert_eq!(ready("0.25"), Err("said `0.25` at its start".into()));
    }

    #[test]
    fn the_spread_is_of_the_middle_half() {
        assert_eq!(spread(&[5.0, 3.0, 4.0]), Some(0.5));
        // Three of 2, one faster and one slower at 1.5 and 2.5, and one beyond each.
        assert_eq!(spread(&[9.0, 2.0, 2.5, 2.0, 0.5, 1.5, 2.0]), Some(0.5));
        assert_eq!(spread(&[2.0, 9.0, 2.0, 2.0, 2.0]), Some(0.0));
        assert_eq!([spread(&[2.0]), spread(&[])], [None, None]);
    }

    #[cfg(unix)]
    #[test]
    fn two_workers_have_runs_and_peaks_of_their_own() {
        let worker = |first: &str, second: &str, peak: &str| {
            let mut command = Command::new("sh");
            let script =
                format!("echo ready; read a; echo {first}; read a; echo {second}; echo {peak}");
            command.args(["-c", &script]);
            Worker::start(command).unwrap()
        };
        let workers = [worker("1", "3", "10"), worker("4", "2", "20")];
        let [ours, theirs] = in_turns(workers, 2).unwrap();
        assert_eq!([ours, theirs], [(vec![1.0, 3.0], 10.0), (vec![4.0, 2.0], 20.0)]);
    }

    #[cfg(unix)]
    #[test]
    fn a_worker_that_fails_says_why() {
        let says = |line: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo {line}; cat")]);
            Worker::start(command)
        };
        assert_eq!(says("ready avx2").unwrap().level.as_deref(), Some("avx2"));
        let failure = says("failed no compiler").err().unwrap();
        assert!(failure.line().unwrap().ends_with(": no compiler"), "{failure:?}");
    }
}
