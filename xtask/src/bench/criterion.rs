//! All criterion benches, and what they measured as one file.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::worker::{commit, date, machine, save};
use crate::cargo::{self, Failure, Outcome};

/// Runs all benches and writes their medians; `command` is that of the benches.
pub(super) fn run(command: &mut Command) -> Outcome {
    let (start, date, commit, machine) = (SystemTime::now(), date(), commit(), machine());
    cargo::run(command)?;
    let folder = cargo::target_dir().join("criterion");
    let mut rows = Vec::new();
    collect(&folder, start, &mut rows)
        .map_err(|error| Failure::Check(format!("{}: {error}", folder.display())))?;
    rows.sort_by_key(|row| row["name"].to_string());
    let table = json!({ "date": date, "commit": commit, "machine": machine, "rows": rows });
    save(&format!("{date}-criterion.json"), &table)
}

/// The results below a folder of criterion's that were written since `start`: criterion keeps those
/// of benches that no longer exist.
fn collect(folder: &Path, start: SystemTime, rows: &mut Vec<Value>) -> Result<(), std::io::Error> {
    let estimates = folder.join("new/estimates.json");
    if estimates.is_file() && estimates.metadata()?.modified()? >= start {
        let read = |path: &Path| -> Result<Value, std::io::Error> {
            Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
        };
        rows.push(row(&read(&folder.join("new/benchmark.json"))?, &read(&estimates)?));
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("new") && !path.ends_with("base") {
            collect(&path, start, rows)?;
        }
    }
    Ok(())
}

/// The median in seconds with its interval, and what is done in a second: criterion has nanoseconds.
fn row(benchmark: &Value, estimates: &Value) -> Value {
    let seconds = |value: &Value| value.as_f64().map(|ns| ns / 1e9);
    let median = &estimates["median"];
    let interval = &median["confidence_interval"];
    let s = seconds(&median["point_estimate"]);
    let mut row = json!({
        "name": benchmark["full_id"],
        "s": s,
        "interval_s": [seconds(&interval["lower_bound"]), seconds(&interval["upper_bound"])],
        "level": interval["confidence_level"],
    });
    if let Some(throughput) = benchmark["throughput"].as_object() {
        let unit = throughput.iter().find_map(|(unit, n)| Some((unit, n.as_f64()?)));
        if let Some(((unit, n), s)) = unit.zip(s) {
            row["per_second"] = json!({ unit: n / s });
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_seconds_and_a_rate() {
        let benchmark = json!({ "full_id": "linear/forward", "throughput": { "Elements": 500 } });
        let interval = json!({ "confidence_level": 0.95, "lower_bound": 1e9, "upper_bound": 3e9 });
        let estimates =
            json!({ "median": { "point_estimate": 2e9, "confidence_interval": interval } });
        assert_eq!(
            row(&benchmark, &estimates),
            json!({
                "name": "linear/forward",
                "s": 2.0,
                "interval_s": [1.0, 3.0],
                "level": 0.95,
                "per_second": { "Elements": 250.0 },
            })
        );
        let without = json!({ "full_id": "draw", "throughput": null });
        assert!(row(&without, &estimates).get("per_second").is_none());
    }
}
