//! Results against PyTorch: a file for each day and kind of CPU, and the README's table of the newest
//! of each kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use super::cpu::Cpu;
use super::paired::{Against, MEMORY, MEMORY_OF_PACKAGES, ROWS, Row};
use super::worker::results;
use crate::cargo::{self, Failure, Outcome};

/// How files of results end; before it stand the date and the kind of CPU.
const RESULTS: &str = "-pytorch.json";
/// What is between these lines of the README is made from the newest results.
const BEGIN: &str = "<!-- cargo xtask bench --against-pytorch -->";
const END: &str = "<!-- end of it -->";

/// The name of a file of results.
pub(super) fn file_name(date: &str, cpu: &Cpu) -> String {
    format!("{date}-{}{RESULTS}", cpu.slug())
}

/// Whether there is a file of results of this name.
pub(super) fn is_there(file: &str) -> bool {
    results().join(file).exists()
}

/// The kind of CPU in the name of a file of results.
fn kind_of(file: &str) -> Option<&str> {
    file.strip_suffix(RESULTS)?.get("2026-01-31".len()..)?.strip_prefix('-')
}

/// The rows of the newest results of each kind of CPU, by its name in files.
pub(super) fn newest() -> Result<BTreeMap<String, Vec<Value>>, Failure> {
    let fail = |problem: String| Failure::Check(format!("{}: {problem}", results().display()));
    let files = fs::read_dir(results()).map_err(|error| fail(error.to_string()))?;
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    // Names begin with the date, so that the newest is the last.
    let names: BTreeSet<String> = names.collect();
    let newest: BTreeMap<&str, &String> =
        names.iter().filter_map(|name| Some((kind_of(name)?, name))).collect();
    let rows = newest.into_iter().map(|(kind, name)| {
        let text =
            fs::read_to_string(results().join(name)).map_err(|error| fail(error.to_string()))?;
        let table: Value =
            serde_json::from_str(&text).map_err(|error| fail(format!("{name}: {error}")))?;
        Ok((kind.to_owned(), table["rows"].as_array().cloned().unwrap_or_default()))
    });
    rows.collect()
}

/// Puts the table of the newest results into the README.
pub(super) fn in_readme() -> Outcome {
    let path = cargo::root().join("README.md");
    let fail = |problem: String| Failure::Check(format!("{}: {problem}", path.display()));
    let text = fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
    let parts =
        text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| fail(format!("has no {BEGIN} and {END}")))?;
    let text = format!("{before}{BEGIN}\n{}{END}{after}", markdown(&newest()?)?);
    fs::write(&path, text).map_err(|error| fail(error.to_string()))
}

/// The table as people read it.
fn markdown(newest: &BTreeMap<String, Vec<Value>>) -> Result<String, Failure> {
    let machines = newest.iter().map(|(kind, rows)| machine(kind, rows));
    let machines: Vec<Machine> = machines.collect::<Result<_, _>>()?;
    let ([must, aim], [must_of_packages, aim_of_packages]) = (MEMORY, MEMORY_OF_PACKAGES);
    let mut text = format!(
        "\n`encode`, `decode`: 256 px through the tokenizer; `sample-d16-bN`: N images of 256 px at depth 16; `*-step`: a training step; `sar-*`: \
         one of SAR; `features-efficientnet`: features of 256 images of 64 px; `inception-*`: features for FID. Limit is the largest ratio of \
         times that is accepted, aim the one that is wanted; of the memory against PyTorch eager {must} and {aim}, against pytorch-fid and \
         torch-fidelity {must_of_packages} and {aim_of_packages}. In parentheses, where they are faster than eager: against PyTorch \
         compiled and in bf16. "
    );
    let legends: Vec<String> = machines.iter().map(Machine::legend).collect();
    text += &format!("{}.\n\n| work | against | limit, aim |", legends.join("; "));
    for machine in &machines {
        text += &format!(" {}: time | memory |", machine.cpu.kind());
    }
    text += &format!("\n|---|---|---|{}\n", "---|---|".repeat(machines.len()));
    for row in &ROWS {
        if row.limits.is_none() {
            continue;
        }
        let cells: Vec<Option<String>> =
            machines.iter().map(|machine| machine.cells(row)).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        let limits = row.limits.map_or_else(String::new, |[must, aim]| format!("{must}, {aim}"));
        let cells = cells.into_iter().map(|cells| cells.unwrap_or_else(|| "  |  |".into()));
        text += &format!(
            "| `{}` | {} | {limits} |{}\n",
            row.work,
            row.against.title(),
            cells.collect::<String>()
        );
    }
    Ok(text + "\n")
}

/// Results of one machine.
struct Machine<'r> {
    cpu: Cpu,
    rows: &'r [Value],
}

/// The machine of a file's rows, which has to be one of the file's kind.
fn machine<'r>(kind: &str, rows: &'r [Value]) -> Result<Machine<'r>, Failure> {
    let fail = |problem: String| Failure::Check(format!("the newest results of {kind}{problem}"));
    let cpus = rows.iter().map(|row| {
        Cpu::of_row(row).ok_or_else(|| fail(format!(": {} does not say its CPU", row["name"])))
    });
    let cpus: Vec<Cpu> = cpus.collect::<Result<_, _>>()?;
    let cpu = cpus.first().cloned().ok_or_else(|| fail(" are empty".into()))?;
    if cpu.slug() != kind {
        return Err(fail(format!(" are of another kind, {cpu}")));
    }
    // Of all pairs: a row that does not say its caches compares with rows that do not with each other.
    for (at, other) in cpus.iter().enumerate() {
        if let Some(before) = cpus[..at].iter().find(|before| !before.compares_with(other)) {
            return Err(fail(format!(" mix machines: {before}; {other}")));
        }
    }
    Ok(Machine { cpu, rows })
}

impl Machine<'_> {
    /// The CPU, vector instructions of ours and days.
    fn legend(&self) -> String {
        let days: BTreeSet<&str> =
            self.rows.iter().filter_map(|row| row["date"].as_str()).collect();
        let days = days.into_iter().collect::<Vec<_>>().join(" and ");
        format!("{}, {days}", self.cpu)
    }

    /// Ratios of the time against PyTorch compiled and in bf16, where these are faster than eager: only
    /// then they are the ones to compare with.
    fn faster_peers(&self, row: &Row) -> String {
        let of = |name: &str| self.rows.iter().find(|result| result["name"] == name);
        let peers = ROWS.iter().filter(|peer| {
            let is_peer = matches!(peer.against, Against::Compile | Against::Bf16);
            is_peer && row.against == Against::Eager && peer.work == row.work
        });
        let ratios = peers.filter_map(|peer| {
            let [theirs, eager] = [of(&peer.name())?, of(row.work)?];
            let is_faster = theirs["theirs_s"].as_f64()? < eager["theirs_s"].as_f64()?;
            let name = if peer.against == Against::Compile { "compiled" } else { "bf16" };
            is_faster.then_some(format!("{name} {:.2}", theirs["ratio"].as_f64()?))
        });
        let ratios: Vec<String> = ratios.collect();
        if ratios.is_empty() { String::new() } else { format!(" ({})", ratios.join(", ")) }
    }

    /// Ratios of time and memory, if there are any.
    fn cells(&self, row: &Row) -> Option<String> {
        let result = self.rows.iter().find(|result| result["name"] == row.name())?;
        if result["failed"].is_string() {
            return Some(" failed |  |".into());
        }
        let ratio = result["ratio"].as_f64().unwrap_or(f64::NAN);
        // Of what was reported and not measured by this command the memory is not known.
        let memory = result["ours_mb"].as_f64().zip(result["theirs_mb"].as_f64());
        let memory =
            memory.map_or_else(String::new, |(ours, theirs)| format!("{:.2}", ours / theirs));
        Some(format!(" {ratio:.2}{} | {memory} |", self.faster_peers(row)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cpu::tests::{SAPPHIRE_RAPIDS, ZEN_4, cpu, masked, masked_before};
    use super::*;

    #[test]
    fn the_readme_has_the_newest_results() {
        let readme = fs::read_to_string(cargo::root().join("README.md")).unwrap();
        let table = markdown(&newest().unwrap()).unwrap();
        let hint = "`cargo xtask bench --against-pytorch --table` makes it anew";
        assert!(readme.contains(&format!("{BEGIN}\n{table}{END}")), "{hint}:\n{table}");
    }

    #[test]
    fn files_are_named_by_day_and_kind() {
        let name = file_name("2026-01-31", &cpu(ZEN_4, 2));
        assert_eq!(name, "2026-01-31-amd-zen-4-pytorch.json");
        assert_eq!(kind_of(&name), Some("amd-zen-4"));
        assert_eq!(kind_of("2026-01-31-pytorch.json"), None);
        assert_eq!(kind_of("2026-01-31-gpu.json"), None);
    }

    fn result(name: &str, cpu: &Cpu, ratio: f64) -> Value {
        json!({
            "name": name, "cpu": cpu.at(Some("avx512")).row(), "date": "2026-01-31",
            "ratio": ratio, "ours_mb": 50.0, "theirs_mb": 100.0, "theirs_s": 1.0 / ratio,
        })
    }

    #[test]
    fn each_kind_has_its_columns() {
        let (amd, intel) = (cpu(ZEN_4, 2), cpu(SAPPHIRE_RAPIDS, 4));
        let mut failed = result("decode-256", &intel, 0.0);
        failed["failed"] = json!("no memory");
        failed["date"] = json!("2026-02-01");
        let faster = result("encode-256-vs-compile", &intel, 1.1);
        let slower = result("encode-256-vs-bf16", &intel, 0.5);
        let mut reported = result("tokenizer-step", &intel, 1.2);
        reported["ours_mb"] = Value::Null;
        let newest = BTreeMap::from([
            (amd.slug(), vec![result("encode-256", &amd, 0.6)]),
            (
                intel.slug(),
                vec![result("encode-256", &intel, 0.9), failed, reported, faster, slower],
            ),
        ]);
        let expected = "
`encode`, `decode`: 256 px through the tokenizer; `sample-d16-bN`: N images of 256 px at depth 16; `*-step`: a training step; `sar-*`: \
one of SAR; `features-efficientnet`: features of 256 images of 64 px; `inception-*`: features for FID. Limit is the largest ratio of \
times that is accepted, aim the one that is wanted; of the memory against PyTorch eager 0.7 and 0.55, against pytorch-fid and torch-fidelity \
0.5 and 0.5. In parentheses, where they are faster than eager: against PyTorch compiled and in bf16. \
AMD Zen 4, 2 cores, avx512, 2026-01-31; \
Intel Sapphire Rapids, 4 cores, avx512, 2026-01-31 and 2026-02-01.

| work | against | limit, aim | AMD Zen 4: time | memory | Intel Sapphire Rapids: time | memory |
|---|---|---|---|---|---|---|
| `encode-256` | PyTorch eager | 0.85, 0.65 | 0.60 | 0.50 | 0.90 (compiled 1.10) | 0.50 |
| `decode-256` | PyTorch eager | 0.85, 0.65 |  |  | failed |  |
| `tokenizer-step` | PyTorch eager | 1, 0.75 |  |  | 1.20 |  |

";
        assert_eq!(markdown(&newest).unwrap(), expected);
    }

    #[test]
    fn a_column_is_of_one_machine() {
        let (two, four) = (cpu(ZEN_4, 2), cpu(ZEN_4, 4));
        let refused = |kind: &str, rows: Vec<Value>| {
            let failure = markdown(&BTreeMap::from([(kind.into(), rows)])).unwrap_err();
            failure.line().unwrap().to_owned()
        };
        let [a, b] = [("encode-256", &two), ("decode-256", &four)].map(|(n, c)| result(n, c, 1.0));
        let mixed = refused(&two.slug(), vec![a.clone(), b]);
        assert!(
            mixed.ends_with("mix machines: AMD Zen 4, 2 cores, avx512; AMD Zen 4, 4 cores, avx512"),
            "{mixed}"
        );
        let [first, second] = [masked(480, ""), masked(320, "")];
        let masks =
            [("encode-256", &masked_before()), ("decode-256", &first), ("teacher-step", &second)]
                .map(|(name, cpu)| result(name, cpu, 1.0));
        let caches = refused(&first.slug(), masks.into());
        assert!(caches.contains("L3 480 MiB; ") && caches.ends_with("L3 320 MiB"), "{caches}");
        let other = refused("intel-ice-lake", vec![a]);
        assert!(other.ends_with("are of another kind, AMD Zen 4, 2 cores, avx512"), "{other}");
        let silent = refused(&two.slug(), vec![json!({ "name": "encode-256" })]);
        assert!(silent.ends_with("\"encode-256\" does not say its CPU"), "{silent}");
    }
}
