//! Ours and PyTorch on the same work, run in turns.
//!
//! Times on a shared machine drift; the ratio of two medians of runs that alternate does not. It does
//! depend on the kind of CPU: results of each kind have a file of their own.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::cpu::Cpu;
use super::table;
use super::worker::{
    Worker, build, commit, date, eager, in_turns, machine, median, python, spread, torch_version,
    work, write,
};
use crate::cargo::{Failure, Outcome};

/// What a piece of work is measured against.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// The same in PyTorch eager.
    Eager,
    /// The same through `torch.compile`.
    Compile,
    /// The same in PyTorch eager with autocast to bf16; ours stays in f32.
    Bf16,
    /// The packages pytorch-fid and torch-fidelity, that measure images.
    PytorchFid,
    TorchFidelity,
    /// Our own teacher-forced step.
    OurTeacherStep,
}

pub(super) struct Row {
    pub(super) work: &'static str,
    pub(super) against: Against,
    /// Largest ratio of times that is acceptable, and the one aimed at.
    pub(super) limits: Option<[f64; 2]>,
    runs: usize,
}

use Against::{Bf16, Compile, Eager, OurTeacherStep, PytorchFid, TorchFidelity};

#[rustfmt::skip]
pub(super) const ROWS: [Row; 25] = [
    Row { work: "encode-256", against: Eager, limits: Some([0.85, 0.65]), runs: 15 },
    Row { work: "decode-256", against: Eager, limits: Some([0.85, 0.65]), runs: 15 },
    Row { work: "sample-d16-b1", against: Eager, limits: Some([1.0, 0.7]), runs: 3 },
    Row { work: "sample-d16-b4", against: Eager, limits: Some([1.0, 0.7]), runs: 3 },
    Row { work: "tokenizer-step", against: Eager, limits: Some([1.0, 0.75]), runs: 31 },
    Row { work: "teacher-step", against: Eager, limits: Some([1.0, 0.8]), runs: 7 },
    Row { work: "emoji-teacher-step", against: Eager, limits: Some([1.0, 0.8]), runs: 31 },
    Row { work: "sar-released-argmax", against: OurTeacherStep, limits: Some([1.45, 1.38]), runs: 9 },
    Row { work: "sar-paper-argmax", against: OurTeacherStep, limits: Some([2.1, 2.0]), runs: 9 },
    Row { work: "sar-released-argmax", against: Eager, limits: None, runs: 5 },
    Row { work: "sar-released-sampled", against: OurTeacherStep, limits: None, runs: 5 },
    Row { work: "sar-paper-sampled", against: OurTeacherStep, limits: None, runs: 5 },
    Row { work: "features-efficientnet", against: Eager, limits: Some([1.0, 0.7]), runs: 7 },
    Row { work: "inception-pytorch-fid", against: PytorchFid, limits: Some([1.0, 0.7]), runs: 5 },
    Row { work: "inception-torch-fidelity", against: TorchFidelity, limits: Some([1.0, 0.7]), runs: 5 },
    Row { work: "inception-pytorch-fid-n2000", against: PytorchFid, limits: Some([1.0, 0.7]), runs: 1 },
    Row { work: "inception-torch-fidelity-n2000", against: TorchFidelity, limits: Some([1.0, 0.7]), runs: 1 },
    Row { work: "encode-256", against: Compile, limits: None, runs: 15 },
    Row { work: "sample-d16-b1", against: Compile, limits: None, runs: 3 },
    Row { work: "tokenizer-step", against: Compile, limits: None, runs: 31 },
    Row { work: "teacher-step", against: Compile, limits: None, runs: 7 },
    Row { work: "encode-256", against: Bf16, limits: None, runs: 15 },
    Row { work: "sample-d16-b1", against: Bf16, limits: None, runs: 3 },
    Row { work: "tokenizer-step", against: Bf16, limits: None, runs: 31 },
    Row { work: "teacher-step", against: Bf16, limits: None, runs: 7 },
];

/// Rows of ten minutes on two cores, which are measured only where they are named.
const LONG: [&str; 2] = ["inception-pytorch-fid-n2000", "inception-torch-fidelity-n2000"];

/// The limits of peak memory against PyTorch eager.
pub(super) const MEMORY: [f64; 2] = [0.7, 0.55];

/// The same against the packages that measure images.
pub(super) const MEMORY_OF_PACKAGES: [f64; 2] = [0.5, 0.5];

/// Largest `ours_spread` and `theirs_spread` of a row on a machine that counts as quiet.
const QUIET: f64 = 0.1;

/// Names the file of Inception's random weights, which the other side writes.
const INCEPTION: &str = "SAR_BENCH_INCEPTION";

impl Against {
    pub(super) fn title(self) -> &'static str {
        match self {
            Eager => "PyTorch eager",
            Compile => "PyTorch compile",
            Bf16 => "PyTorch bf16",
            PytorchFid => "pytorch-fid",
            TorchFidelity => "torch-fidelity",
            OurTeacherStep => "our teacher step",
        }
    }

    fn command(self, work_: &str, ours: &Path, python: &Path) -> Command {
        let (mut command, args): (_, &[&str]) = match self {
            Eager | PytorchFid | TorchFidelity => (eager(python, work_), &[]),
            Compile => (eager(python, work_), &["cpu", "f32", "compile"]),
            Bf16 => (eager(python, work_), &["cpu", "bf16"]),
            OurTeacherStep => (work(ours, "teacher-step"), &[]),
        };
        command.args(args);
        command
    }
}

impl Row {
    pub(super) fn name(&self) -> String {
        let suffix = match self.against {
            Eager if self.work.starts_with("sar-") => "-vs-eager",
            Eager | OurTeacherStep | PytorchFid | TorchFidelity => "",
            Compile => "-vs-compile",
            Bf16 => "-vs-bf16",
        };
        format!("{}{suffix}", self.work)
    }

    /// Writes the limits of today into a result.
    fn limit(&self, result: &mut Value) {
        let memory = match self.against {
            Eager => Some(MEMORY),
            PytorchFid | TorchFidelity => Some(MEMORY_OF_PACKAGES),
            _ => None,
        };
        for (fields, limits) in
            [(["must", "aim"], self.limits), (["must_memory", "aim_memory"], memory)]
        {
            for (at, field) in fields.into_iter().enumerate() {
                result[field] = json!(limits.map(|limits| limits[at]));
            }
        }
    }
}

/// `[NAME]..`: the rows to measure, all but the long ones if none is named; or `--table`, to put the
/// results that there are, of whatever machines, into the README.
pub(super) fn run(args: &[OsString]) -> Outcome {
    if args == ["--table"] {
        return table::in_readme();
    }
    let rows = selected(args)?;
    let ours = build()?;
    let python = python()?;
    let (cpu, date) = (Cpu::here().at(level(&ours)?.as_deref()), date());
    let (commit, machine, pytorch) = (commit(), machine(), torch_version(&python));
    let before = table::newest()?.remove(&cpu.slug()).unwrap_or_default();
    let (mut results, others) = carried(before, &cpu);
    let file = table::file_name(&date, &cpu);
    if !others.is_empty() && table::is_there(&file) {
        return Err(Failure::Check(format!(
            "{file} has results that do not compare with those of {cpu}: {}; move it away to measure here today",
            others.join(", ")
        )));
    }
    println!("{cpu}");
    for other in others {
        println!("left out, as it was made on another machine or at another level: {other}");
    }
    println!(
        "{:<30} {:>9} {:>9} {:>6}  {:>9} {:>9}",
        "work", "ours s", "theirs s", "ratio", "ours MB", "theirs MB"
    );
    for row in rows {
        let mut result = measure(row, &ours, &python)?;
        let name = row.name();
        result["cpu"] = cpu.row();
        result["name"] = json!(name);
        result["against"] = json!(row.against.title());
        // Of every row: rows of several days stand in one file.
        result["date"] = json!(date);
        result["commit"] = json!(commit);
        result["machine"] = json!(machine);
        result["pytorch"] = json!(pytorch);
        row.limit(&mut result);
        println!("{name:<30} {}", line(&result));
        if !put(&mut results, result) {
            eprintln!("{name}: failed; the result that was there stays");
        }
        // After every row: the next one may fail.
        write(&file, &json!({ "rows": results }))?;
    }
    println!("wrote {file}");
    let missing = missing(&results);
    if !missing.is_empty() {
        println!("not measured on this kind of machine: {}", missing.join(" "));
    }
    table::in_readme()
}

/// The rows that are named, or else all but the long ones.
fn selected(args: &[OsString]) -> Result<Vec<&'static Row>, Failure> {
    let named: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let is_named = |row: &&Row| named.iter().any(|name| row.name() == *name);
    if let Some(unknown) = named.iter().find(|name| ROWS.iter().all(|row| row.name() != **name)) {
        let known = ROWS.each_ref().map(Row::name).join(", ");
        return Err(Failure::Usage(format!("there is no work `{unknown}`; known are {known}")));
    }
    let is_short = |row: &&Row| !LONG.contains(&row.work);
    let is_wanted = |row: &&Row| if named.is_empty() { is_short(row) } else { is_named(row) };
    Ok(ROWS.iter().filter(is_wanted).collect())
}

/// The earlier results that stay as they are until they are measured again, with the limits of today;
/// and those that do not, each with its machine: results of several machines do not go into one file.
fn carried(results: Vec<Value>, cpu: &Cpu) -> (Vec<Value>, Vec<String>) {
    let (mut kept, mut others) = (Vec::new(), Vec::new());
    for mut result in results {
        let Some(row) = ROWS.iter().find(|row| result["name"] == row.name()) else {
            continue;
        };
        match Cpu::of_row(&result) {
            Some(its) if its.compares_with(cpu) => {
                row.limit(&mut result);
                kept.push(result);
            }
            Some(its) => others.push(format!("{} ({its})", row.name())),
            None => others.push(format!("{} (which one, it does not say)", row.name())),
        }
    }
    (kept, others)
}

/// Names of the rows without a result.
fn missing(results: &[Value]) -> Vec<String> {
    let names = ROWS.iter().map(Row::name);
    names.filter(|name| results.iter().all(|result| result["name"] != *name)).collect()
}

/// The vector instructions that ours runs with, if it says so.
fn level(ours: &Path) -> Result<Option<String>, Failure> {
    let worker = Worker::start(work(ours, "emoji-teacher-step"))?;
    let level = worker.level.clone();
    worker.end()?;
    Ok(level)
}

/// Puts a result in the place of the one that has its name, in the order of the rows: of a failure only in the
/// place of another. Whether it is there.
fn put(results: &mut Vec<Value>, result: Value) -> bool {
    let failed = |result: &Value| result.get("failed").is_some();
    let before = results.iter().find(|other| other["name"] == result["name"]);
    if failed(&result) && before.is_some_and(|before| !failed(before)) {
        return false;
    }
    results.retain(|other| other["name"] != result["name"]);
    results.push(result);
    results.sort_by_key(|result| ROWS.iter().position(|row| result["name"] == row.name()));
    true
}

/// Both sides of a row. What PyTorch cannot compile here is a result, too.
fn measure(row: &Row, ours: &Path, python: &Path) -> Result<Value, Failure> {
    let weights = ours.with_file_name("bench-inception.pth");
    let mut command = row.against.command(row.work, ours, python);
    command.env(INCEPTION, &weights);
    let theirs = match Worker::start(command) {
        // What is not there or cannot be compiled.
        Err(failure) if matches!(row.against, Compile | Bf16 | PytorchFid | TorchFidelity) => {
            return Ok(json!({ "failed": failure.line() }));
        }
        theirs => theirs?,
    };
    let mut command = work(ours, row.work);
    command.env(INCEPTION, &weights);
    let our_worker = Worker::start(command)?;
    let theirs_level = theirs.level.clone();
    let [(ours, ours_mb), (theirs, theirs_mb)] = in_turns([our_worker, theirs], row.runs)?;
    let [ours_spread, theirs_spread] = [spread(&ours), spread(&theirs)];
    let [ours_s, theirs_s] = [ours, theirs].map(median);
    Ok(json!({
        "ours_s": ours_s,
        "theirs_s": theirs_s,
        "ours_spread": ours_spread,
        "theirs_spread": theirs_spread,
        "ratio": ours_s / theirs_s,
        "ours_mb": ours_mb,
        "theirs_mb": theirs_mb,
        "theirs_level": theirs_level,
        "runs": row.runs,
    }))
}

/// A result as it is printed.
fn line(result: &Value) -> String {
    if let Some(why) = result["failed"].as_str() {
        return format!("failed: {why}");
    }
    let number = |field: &str| result[field].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:>9.3} {:>9.3} {:>6.2}  {:>9.0} {:>9.0}{}",
        number("ours_s"),
        number("theirs_s"),
        number("ratio"),
        number("ours_mb"),
        number("theirs_mb"),
        remark(result)
    )
}

/// Which sides' runs differ more than on a quiet machine.
fn remark(result: &Value) -> String {
    let sides = [("ours", "ours_spread"), ("theirs", "theirs_spread")];
    let loud = sides.into_iter().filter_map(|(side, field)| {
        let spread = result[field].as_f64()?;
        (spread > QUIET).then(|| format!("{side} {:.0} %", 100.0 * spread))
    });
    let loud: Vec<String> = loud.collect();
    if loud.is_empty() {
        String::new()
    } else {
        format!("  not quiet: runs spread by {}", loud.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpu::tests::{SAPPHIRE_RAPIDS, ZEN_4, cpu, masked, masked_before};
    use super::*;

    #[test]
    fn results_of_another_machine_are_not_carried_over() {
        let here = cpu(ZEN_4, 2);
        let result = |name: &str, cpu: &Cpu| json!({ "name": name, "cpu": cpu.row(), "must": 9.0, "date": "2026-01-31" });
        let before = vec![
            result("encode-256", &here),
            result("decode-256", &cpu(ZEN_4, 4)),
            result("teacher-step", &cpu(SAPPHIRE_RAPIDS, 2)),
            json!({ "name": "tokenizer-step" }),
            result("no-longer-measured", &here),
        ];
        let (kept, others) = carried(before, &here);
        assert_eq!(kept.len(), 1);
        assert_eq!((&kept[0]["date"], &kept[0]["must"]), (&json!("2026-01-31"), &json!(0.85)));
        assert_eq!(
            others,
            [
                "decode-256 (AMD Zen 4, 4 cores)",
                "teacher-step (Intel Sapphire Rapids, 2 cores)",
                "tokenizer-step (which one, it does not say)",
            ]
        );
        let missing = missing(&kept);
        assert!(missing.len() == ROWS.len() - 1 && missing[0] == "decode-256", "{missing:?}");
    }

    #[test]
    fn results_of_other_caches_or_flags_are_not_carried_over() {
        let here = masked(480, "avx512_bf16 amx_bf16");
        let result = |name: &str, cpu: &Cpu| json!({ "name": name, "cpu": cpu.row() });
        let before = vec![
            result("encode-256", &here),
            result("decode-256", &masked(320, "avx512_bf16 amx_bf16")),
            result("teacher-step", &masked(480, "avx512_bf16")),
            result("tokenizer-step", &masked_before()),
        ];
        let (kept, others) = carried(before, &here);
        let kept: Vec<&Value> = kept.iter().map(|result| &result["name"]).collect();
        assert_eq!(kept, ["encode-256", "tokenizer-step"]);
        let its = "Intel family 6 model 167, 2 cores, L2 2 MiB";
        assert_eq!(
            others,
            [
                format!("decode-256 ({its}, L3 320 MiB, avx512_bf16, amx_bf16)"),
                format!("teacher-step ({its}, L3 480 MiB, avx512_bf16)"),
            ]
        );
    }

    #[test]
    fn a_machine_that_is_not_quiet_is_remarked() {
        let line = |ours: Option<f64>, theirs: f64| {
            line(&json!({
                "ours_s": 0.5, "theirs_s": 1.0, "ratio": 0.5, "ours_mb": 50.0, "theirs_mb": 100.0,
                "ours_spread": ours, "theirs_spread": theirs,
            }))
        };
        let quiet = "    0.500     1.000   0.50         50       100";
        assert_eq!(line(Some(0.02), QUIET), quiet);
        assert_eq!(line(None, 0.25), format!("{quiet}  not quiet: runs spread by theirs 25 %"));
        assert_eq!(
            line(Some(0.75), 0.5),
            format!("{quiet}  not quiet: runs spread by ours 75 %, theirs 50 %")
        );
    }

    #[test]
    fn a_failure_does_not_replace_a_result() {
        let good = |ratio: f64| json!({ "name": "decode-256", "ratio": ratio });
        let failed = |name: &str| json!({ "name": name, "failed": "no module pytorch_fid" });
        let mut results = vec![good(0.5)];
        assert!(!put(&mut results, failed("decode-256")));
        assert_eq!(results, [good(0.5)]);
        assert!(put(&mut results, good(0.6)) && put(&mut results, failed("encode-256")));
        assert_eq!(results, [failed("encode-256"), good(0.6)]);
        assert!(put(&mut results, failed("encode-256")) && results.len() == 2);
    }

    #[test]
    fn rows_are_selected_by_name() {
        let select = |name: &str| selected(&[name.into()]);
        let row = select("encode-256-vs-bf16").unwrap()[0];
        assert!(row.against == Bf16 && row.work == "encode-256");
        let rows = selected(&[]).unwrap();
        assert_eq!(rows.len(), ROWS.len() - LONG.len());
        for name in LONG {
            assert!(rows.iter().all(|row| row.work != name));
            assert_eq!(select(name).unwrap()[0].work, name);
        }
        assert!(select("encode-256-vs-jax").is_err());
        let mut names = ROWS.each_ref().map(Row::name);
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn limits_are_of_rows_against_eager_and_of_ours() {
        let limited = |name: &str| {
            let mut result = json!({});
            selected(&[name.into()]).unwrap()[0].limit(&mut result);
            result
        };
        let all = json!({ "must": 1.0, "aim": 0.7, "must_memory": 0.7, "aim_memory": 0.55 });
        assert_eq!(limited("sample-d16-b1"), all);
        let none = json!({ "must": null, "aim": null, "must_memory": null, "aim_memory": null });
        assert_eq!(limited("sample-d16-b1-vs-compile"), none);
        assert_eq!(limited("features-efficientnet"), all);
        assert_eq!(limited("inception-pytorch-fid")["must_memory"], 0.5);
        assert_eq!(limited("sar-paper-argmax")["must_memory"], Value::Null);
    }
}
