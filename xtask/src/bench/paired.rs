//! Ours and PyTorch eager on the same work, run in turns.
//!
//! Times on a shared machine drift; the ratio of two medians of runs that alternate does not.

use std::ffi::OsString;
use std::fs;

use serde_json::{Value, json};

use super::worker::{
    build, commit, date, eager, in_turns, machine, python, results, save, torch_version, work,
};
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
    Row { name: "encode-256", against: Against::PyTorch, limits: Some([1.3, 0.9]), runs: 15 },
    Row { name: "decode-256", against: Against::PyTorch, limits: Some([1.3, 0.9]), runs: 15 },
    Row { name: "sample-d16-b1", against: Against::PyTorch, limits: Some([1.2, 0.9]), runs: 3 },
    Row { name: "sample-d16-b4", against: Against::PyTorch, limits: Some([1.2, 0.9]), runs: 3 },
    Row { name: "tokenizer-step", against: Against::PyTorch, limits: Some([1.3, 0.9]), runs: 31 },
    Row { name: "teacher-step", against: Against::PyTorch, limits: Some([1.2, 0.9]), runs: 7 },
    Row { name: "sar-released-argmax", against: Against::OurTeacherStep, limits: Some([1.45, 1.4]), runs: 9 },
    Row { name: "sar-paper-argmax", against: Against::OurTeacherStep, limits: Some([2.1, 2.0]), runs: 9 },
    Row { name: "sar-released-sampled", against: Against::OurTeacherStep, limits: None, runs: 5 },
    Row { name: "sar-paper-sampled", against: Against::OurTeacherStep, limits: None, runs: 5 },
];

/// How files of results end; before it stands the date.
const RESULTS: &str = "-pytorch.json";
/// What is between these lines of the README is made from the newest results.
const BEGIN: &str = "<!-- cargo xtask bench --against-pytorch -->";
const END: &str = "<!-- end of it -->";

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
    let pytorch = torch_version(&python);
    let (date, commit, machine) = (date(), commit(), machine());
    let mut measured = newest()?;
    println!(
        "{:<22} {:>9} {:>9} {:>6}  {:>9} {:>9}",
        "work", "ours s", "theirs s", "ratio", "ours MB", "theirs MB"
    );
    for row in rows {
        let theirs = match row.against {
            Against::PyTorch => eager(&python, row.name),
            Against::OurTeacherStep => work(&ours, "teacher-step"),
        };
        let [(ours_s, ours_mb), (theirs_s, theirs_mb)] =
            in_turns([work(&ours, row.name), theirs], row.runs)?;
        let ratio = ours_s / theirs_s;
        println!(
            "{:<22} {ours_s:>9.3} {theirs_s:>9.3} {ratio:>6.2}  {ours_mb:>9.0} {theirs_mb:>9.0}",
            row.name
        );
        measured.retain(|other| other["name"] != row.name);
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
            // Of every row: rows of several days stand in one table.
            "date": date,
            "commit": commit,
            "machine": machine,
            "pytorch": pytorch,
        }));
    }
    let place = |row: &Value| ROWS.iter().position(|known| row["name"] == known.name);
    measured.sort_by_key(place);
    save(&format!("{date}{RESULTS}"), &json!({ "rows": measured }))?;
    in_readme(&measured)
}

/// The rows of the newest results: those that are not measured again stay as they are.
fn newest() -> Result<Vec<Value>, Failure> {
    let fail = |problem: String| Failure::Check(format!("{}: {problem}", results().display()));
    let files = fs::read_dir(results()).map_err(|error| fail(error.to_string()))?;
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let Some(name) = names.filter(|name| name.ends_with(RESULTS)).max() else {
        return Ok(Vec::new());
    };
    let text =
        fs::read_to_string(results().join(&name)).map_err(|error| fail(error.to_string()))?;
    let table: Value =
        serde_json::from_str(&text).map_err(|error| fail(format!("{name}: {error}")))?;
    let mut rows = table["rows"].as_array().cloned().unwrap_or_default();
    rows.retain(|row| ROWS.iter().any(|known| row["name"] == known.name));
    Ok(rows)
}

/// Puts the table into the README.
fn in_readme(rows: &[Value]) -> Outcome {
    let path = cargo::root().join("README.md");
    let fail = |problem: String| Failure::Check(format!("{}: {problem}", path.display()));
    let text = fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
    let parts =
        text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| fail(format!("has no {BEGIN} and {END}")))?;
    let text = format!("{before}{BEGIN}\n{}{END}{after}", markdown(rows));
    fs::write(&path, text).map_err(|error| fail(error.to_string()))
}

/// The table as people read it.
fn markdown(rows: &[Value]) -> String {
    let mut text = String::from(
        "\n| work | against | time, ratio | limit, aim | memory, ratio |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        let number = |field: &str| row[field].as_f64();
        let limits = match (number("must"), number("aim")) {
            (Some(must), Some(aim)) => format!("{must}, {aim}"),
            _ => String::new(),
        };
        text += &format!(
            "| `{}` | {} | {:.2} | {limits} | {:.2} |\n",
            row["name"].as_str().unwrap_or_default(),
            row["against"].as_str().unwrap_or_default(),
            number("ratio").unwrap_or(f64::NAN),
            number("ours_mb").unwrap_or(f64::NAN) / number("theirs_mb").unwrap_or(f64::NAN),
        );
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_newest_results() {
        let readme = fs::read_to_string(cargo::root().join("README.md")).unwrap();
        let table = markdown(&newest().unwrap());
        assert!(readme.contains(&format!("{BEGIN}\n{table}{END}")), "make it anew:\n{table}");
    }
}
