//! Ours and PyTorch eager on the same work, run in turns.
//!
//! Times on a shared machine drift; the ratio of two medians of runs that alternate does not.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::cargo::{self, Failure, Outcome};

/// What a piece of work is measured against.
#[derive(Clone, Copy)]
enum Against {
    /// The same in PyTorch eager.
    PyTorch,
    /// Our own teacher-forced step.
    OurTeacherStep,
}

struct Row {
    name: &'static str,
    against: Against,
    /// Largest ratio that is acceptable, and the one aimed at.
    limits: Option<[f64; 2]>,
    runs: usize,
}

#[rustfmt::skip]
const ROWS: [Row; 10] = [
    Row { name: "encode-256", against: Against::PyTorch, limits: Some([1.3, 0.9]), runs: 5 },
    Row { name: "decode-256", against: Against::PyTorch, limits: Some([1.3, 0.9]), runs: 5 },
    Row { name: "sample-d16-b1", against: Against::PyTorch, limits: Some([1.2, 0.9]), runs: 3 },
    Row { name: "sample-d16-b4", against: Against::PyTorch, limits: Some([1.2, 0.9]), runs: 3 },
    Row { name: "tokenizer-step", against: Against::PyTorch, limits: Some([1.3, 0.9]), runs: 9 },
    Row { name: "teacher-step", against: Against::PyTorch, limits: Some([1.2, 0.9]), runs: 5 },
    Row { name: "sar-released-argmax", against: Against::OurTeacherStep, limits: Some([1.45, 1.4]), runs: 5 },
    Row { name: "sar-paper-argmax", against: Against::OurTeacherStep, limits: Some([2.1, 2.0]), runs: 5 },
    Row { name: "sar-released-sampled", against: Against::OurTeacherStep, limits: None, runs: 5 },
    Row { name: "sar-paper-sampled", against: Against::OurTeacherStep, limits: None, runs: 5 },
];

/// `[NAME]..`: the rows to measure, all of them if none is named.
pub(super) fn run(args: &[OsString]) -> Outcome {
    let named: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    if let Some(unknown) = named.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let known = ROWS.map(|row| row.name).join(", ");
        return Err(Failure::Usage(format!("there is no work `{unknown}`; known are {known}")));
    }
    let rows = ROWS.iter().filter(|row| named.is_empty() || named.contains(&row.name));
    let ours = build()?;
    let python = python()?;
    let mut measured = Vec::new();
    println!(
        "{:<22} {:>9} {:>9} {:>6}  {:>9} {:>9}",
        "work", "ours s", "theirs s", "ratio", "ours MB", "theirs MB"
    );
    for row in rows {
        let theirs = match row.against {
            Against::PyTorch => {
                let mut command = Command::new(&python);
                command.arg(cargo::root().join("benchmarks/pytorch/eager.py")).arg(row.name);
                command
            }
            Against::OurTeacherStep => work(&ours, "teacher-step"),
        };
        let [(ours_s, ours_mb), (theirs_s, theirs_mb)] =
            in_turns([work(&ours, row.name), theirs], row.runs)?;
        let ratio = ours_s / theirs_s;
        println!(
            "{:<22} {ours_s:>9.3} {theirs_s:>9.3} {ratio:>6.2}  {ours_mb:>9.0} {theirs_mb:>9.0}",
            row.name
        );
        measured.push(json!({
            "name": row.name,
            "against": match row.against {
                Against::PyTorch => "PyTorch eager",
                Against::OurTeacherStep => "our teacher step",
            },
            "ours_s": ours_s,
            "theirs_s": theirs_s,
            "ratio": ratio,
            "must": row.limits.map(|[must, _]| must),
            "aim": row.limits.map(|[_, aim]| aim),
            "ours_mb": ours_mb,
            "theirs_mb": theirs_mb,
            "runs": row.runs,
        }));
    }
    save(&python, measured)
}

fn work(binary: &Path, name: &str) -> Command {
    let mut command = Command::new(binary);
    command.arg(name);
    command
}

/// The binary of `sar-bench`; as part of the workspace, so that nothing is built twice.
fn build() -> Result<PathBuf, Failure> {
    let mut command = cargo::cargo(["build", "--release", "--workspace", "--bins"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let messages = cargo::output(command.current_dir(cargo::root()))?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "work")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.ok_or_else(|| Failure::Check("cargo built no binary `work`".into()))
}

/// A Python that has torch: the system's, or one in a virtual environment that is made here.
fn python() -> Result<PathBuf, Failure> {
    let has_torch = |python: &Path| {
        let mut command = Command::new(python);
        command.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let system = PathBuf::from("python3");
    if has_torch(&system) {
        return Ok(system);
    }
    let environment = cargo::target_dir().join("pytorch");
    let python = environment.join("bin/python");
    if !has_torch(&python) {
        println!("python3 has no torch: installing it in {}", environment.display());
        cargo::run(Command::new(&system).args(["-m", "venv"]).arg(&environment))?;
        cargo::run(
            Command::new(&python).args(["-m", "pip", "install", "--quiet", "torch", "numpy"]),
        )?;
    }
    Ok(python)
}

/// A process that runs a piece of work once for every line that it is sent.
struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    name: String,
}

impl Worker {
    fn start(mut command: Command) -> Result<Self, Failure> {
        let name = command.get_program().display().to_string();
        let fail = |problem: String| Failure::Check(format!("{name}: {problem}"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| fail(error.to_string()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(fail("has no pipes".into()));
        };
        let mut worker = Self { child, stdin: Some(stdin), stdout: BufReader::new(stdout), name };
        match worker.line()?.as_str() {
            "ready" => Ok(worker),
            other => Err(Failure::Check(format!("{}: said `{other}` at its start", worker.name))),
        }
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
    fn run(&mut self) -> Result<f64, Failure> {
        let stdin = self.stdin.as_mut().expect("taken at the end only");
        writeln!(stdin).map_err(|error| Failure::Check(format!("{}: {error}", self.name)))?;
        self.number()
    }

    /// The peak memory, when all runs are done.
    fn end(mut self) -> Result<f64, Failure> {
        drop(self.stdin.take());
        let peak = self.number();
        let _ = self.child.wait();
        peak
    }
}

/// Median seconds and peak MB of two workers whose runs alternate.
fn in_turns(commands: [Command; 2], runs: usize) -> Result<[(f64, f64); 2], Failure> {
    let [ours, theirs] = commands;
    let mut workers = [Worker::start(ours)?, Worker::start(theirs)?];
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        for (worker, seconds) in workers.iter_mut().zip(&mut seconds) {
            seconds.push(worker.run()?);
        }
    }
    let [ours, theirs] = workers;
    let [ours_s, theirs_s] = seconds.map(median);
    Ok([(ours_s, ours.end()?), (theirs_s, theirs.end()?)])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Writes the table with machine, commit and date beside the other results.
fn save(python: &Path, rows: Vec<Value>) -> Outcome {
    let said = |program: &str, args: &[&str]| {
        let text = cargo::output(Command::new(program).args(args).current_dir(cargo::root()));
        text.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
    };
    let date = said("date", &["-u", "+%Y-%m-%d"]);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let table = json!({
        "date": date,
        "commit": said("git", &["rev-parse", "--short", "HEAD"]),
        "machine": format!("{}, {cores} cores", processor.map_or("unknown", |(_, name)| name.trim())),
        "pytorch": said(&python.display().to_string(), &["-c", "import torch; print(torch.__version__)"]),
        "rows": rows,
    });
    let path = cargo::root().join(format!("benchmarks/results/{date}-pytorch.json"));
    let text = serde_json::to_string_pretty(&table).expect("a table is JSON") + "\n";
    fs::write(&path, text)
        .map_err(|error| Failure::Check(format!("{}: {error}", path.display())))?;
    println!("wrote {}", path.display());
    Ok(())
}
