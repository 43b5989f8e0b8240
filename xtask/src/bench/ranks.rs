//! `bench --ranks`: what a step on 2 to 1024 ranks would take, computed from the times in `benchmarks/ranks.json`.

mod model;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use self::model::{Backbone, Exchange, Owners, Traffic};
use super::worker::{commit, date, results};
use crate::cargo::{self, Failure, Outcome};

const DEPTHS: [usize; 4] = [16, 20, 24, 30];
const GIGABITS: [f64; 3] = [10.0, 100.0, 400.0];
const RANKS: [usize; 10] = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// What is compared.
struct Way {
    name: &'static str,
    /// Bytes of a gradient.
    gradient: f64,
    owners: Owners,
    /// Whether they go through host memory.
    host: bool,
}

#[rustfmt::skip]
const WAYS: [Way; 4] = [
    Way { name: "as it is", gradient: 4.0, owners: Owners::Whole, host: true },
    Way { name: "gradients in bf16, rounding not counted", gradient: 2.0, owners: Owners::Whole, host: true },
    Way { name: "if parameters were cut into equal pieces", gradient: 4.0, owners: Owners::Pieces, host: true },
    Way { name: "if pieces went from device to device", gradient: 4.0, owners: Owners::Pieces, host: false },
];

/// Times that were measured or assumed.
struct Given {
    images_per_rank: f64,
    computers: Vec<Computer>,
    exchange: Exchange,
    /// What they are, a line each.
    lines: Vec<String>,
}

struct Computer {
    name: String,
    is_assumed: bool,
    operations_per_s: f64,
}

pub(super) fn run() -> Outcome {
    let path = cargo::root().join("benchmarks/ranks.json");
    let fail = |why: String| Failure::Check(format!("{}: {why}", path.display()));
    let text = fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let given = Given::read(&value).map_err(|field| fail(format!("{field}: no number or text")))?;
    let rows = rows(&given);
    let (date, commit) = (date(), commit());
    let markdown = markdown(&given, &rows, &date);
    print!("{markdown}");
    let head = json!({ "date": date, "commit": commit, "given": value, "ranks": RANKS });
    write(&format!("{date}-ranks.json"), &json_text(&head, &rows))?;
    write(&format!("{date}-ranks.md"), &markdown)
}

fn write(name: &str, text: &str) -> Outcome {
    let path: PathBuf = results().join(name);
    fs::write(&path, text)
        .map_err(|error| Failure::Check(format!("{}: {error}", path.display())))?;
    println!("wrote {}", path.display());
    Ok(())
}

impl Given {
    /// Reads the file; an error is the field that is missing or of the wrong type.
    fn read(value: &Value) -> Result<Self, String> {
        let number = |at: &str| value.pointer(at).and_then(Value::as_f64).ok_or(at.to_owned());
        let text = |at: &str| {
            value.pointer(at).and_then(Value::as_str).map(str::to_owned).ok_or(at.to_owned())
        };
        let mut lines = Vec::new();
        let mut computers = Vec::new();
        let listed = value["computers"].as_array().ok_or("/computers")?;
        for i in 0..listed.len() {
            let at = |field: &str| format!("/computers/{i}/{field}");
            let [name, basis] = [text(&at("name"))?, text(&at("basis"))?];
            let [machine, on, what] =
                [text(&at("machine"))?, text(&at("date"))?, text(&at("what"))?];
            lines.push(format!("{name}, **{basis}** ({machine}, {on}): {what}"));
            let is_assumed = basis != "measured";
            let operations_per_s = if is_assumed {
                number(&at("operations_per_s"))? * number(&at("utilization"))?
            } else {
                let [depth, width] =
                    [number(&at("depth"))? as usize, number(&at("width"))? as usize];
                let images = number(&at("images"))?;
                images * Backbone { depth, width }.operations() / number(&at("seconds"))?
            };
            lines.push(format!("  That is {:.3} T operations a second.", operations_per_s / 1e12));
            computers.push(Computer { name, is_assumed, operations_per_s });
        }
        let (machine, on) = (text("/exchange/machine")?, text("/exchange/date")?);
        for part in ["conversion", "engine", "link", "messages"] {
            let at = |field: &str| format!("/exchange/{part}/{field}");
            let [basis, what] = [text(&at("basis"))?, text(&at("what"))?];
            let place = if basis.starts_with("measured") {
                format!(" ({machine}, {on})")
            } else {
                String::new()
            };
            lines.push(format!("{part}, **{basis}**{place}: {what}"));
        }
        let per_second = |part: &str| -> Result<f64, String> {
            let at = |field: &str| format!("/exchange/{part}/{field}");
            Ok(number(&at("bytes"))? / number(&at("seconds"))?)
        };
        let (conversion, engine) = (per_second("conversion")?, per_second("engine")?);
        let (host, had) = ((conversion.recip() + engine.recip()).recip(), per_second("link")?);
        let share = had * 8.0 / (number("/exchange/link/gigabits")? * 1e9);
        lines.push(format!(
            "  That is {:.3} GB/s through host memory, and {share:.2} of the rate of a link.",
            host / 1e9
        ));
        let exchange = Exchange {
            host,
            share,
            latency: number("/exchange/messages/latency_s")?,
            message: number("/exchange/messages/message_s")?,
        };
        Ok(Self { images_per_rank: number("/images_per_rank")?, computers, exchange, lines })
    }
}

/// A backbone on a computer and a link, in a way: a value for each number of ranks.
struct Row {
    computer: usize,
    depth: usize,
    gigabits: f64,
    way: usize,
    compute_s: f64,
    bytes: Vec<f64>,
    exchange_s: Vec<f64>,
}

impl Row {
    fn efficiency(&self, i: usize) -> f64 {
        self.compute_s / (self.compute_s + self.exchange_s[i])
    }

    /// The most ranks with an efficiency of a half or more, of which all fewer have it, too.
    fn reach(&self) -> Option<usize> {
        let is_good = |i: &usize| self.efficiency(*i) >= 0.5;
        (0..RANKS.len()).take_while(is_good).last().map(|i| RANKS[i])
    }
}

fn rows(given: &Given) -> Vec<Row> {
    let mut rows = Vec::new();
    for depth in DEPTHS {
        let backbone = Backbone::published(depth);
        let sizes = backbone.parameters();
        for (way, Way { gradient, owners, host, .. }) in WAYS.iter().enumerate() {
            let given_host = if *host { given.exchange.host } else { f64::INFINITY };
            let exchange = Exchange { host: given_host, ..given.exchange };
            let traffic = RANKS.map(|ranks| Traffic::of(&sizes, ranks, *gradient, *owners));
            for (computer, Computer { operations_per_s, .. }) in given.computers.iter().enumerate()
            {
                let compute_s = given.images_per_rank * backbone.operations() / operations_per_s;
                for gigabits in GIGABITS {
                    let seconds = |t: &Traffic| t.seconds(gigabits * 1e9, exchange);
                    rows.push(Row {
                        computer,
                        depth,
                        gigabits,
                        way,
                        compute_s,
                        bytes: traffic.iter().map(|t| t.bytes).collect(),
                        exchange_s: traffic.iter().map(seconds).collect(),
                    });
                }
            }
        }
    }
    rows
}

/// A row a line.
fn json_text(head: &Value, rows: &[Row]) -> String {
    let line = |row: &Row| {
        let efficiency: Vec<f64> = (0..RANKS.len()).map(|i| row.efficiency(i)).collect();
        let value = json!({
            "computer": head["given"]["computers"][row.computer]["name"], "way": WAYS[row.way].name,
            "backbone": format!("d{}", row.depth), "gigabits": row.gigabits,
            "compute_s": row.compute_s, "bytes": row.bytes, "exchange_s": row.exchange_s,
            "efficiency": efficiency, "half_up_to_ranks": row.reach(),
        });
        value.to_string()
    };
    let mut text = serde_json::to_string_pretty(head).expect("plain values");
    text.truncate(text.trim_end_matches(['\n', '}']).trim_end().len());
    let lines: Vec<String> = rows.iter().map(line).collect();
    text + ",\n  \"rows\": [\n" + &lines.join(",\n") + "\n  ]\n}\n"
}

fn markdown(given: &Given, rows: &[Row], date: &str) -> String {
    let mut text = format!(
        "# Training on many ranks: a model, {date}\n\n\
         Computed by `cargo xtask bench --ranks` from `benchmarks/ranks.json`; no row of it was run. The formula is in \
         `xtask/src/bench/ranks/model.rs`, what it was checked against in the tests there and in \
         `xtask/src/bench/ranks.rs`. Each rank computes {} images of 256 px a step, teacher-forced, \
         from cached latents: the batch grows with the ranks.\n\nGiven:\n\n",
        given.images_per_rank
    );
    for line in &given.lines {
        let _ = match line.strip_prefix("  ") {
            Some(more) => writeln!(text, "  {more}"),
            None => writeln!(text, "- {line}"),
        };
    }
    let heads: String = RANKS.iter().map(|ranks| format!(" {ranks} |")).collect();
    let rule = "---:|".repeat(RANKS.len());
    let find = |computer: usize, way: usize, depth: usize, gigabits: f64| {
        rows.iter()
            .find(|row| {
                (row.computer, row.way, row.depth) == (computer, way, depth)
                    && row.gigabits == gigabits
            })
            .expect("a row of each kind")
    };
    let _ = write!(
        text,
        "\n## Gigabytes of the busiest rank, in the busier direction\n\n| | |{heads}\n|---|---|{rule}\n"
    );
    for depth in DEPTHS {
        for (way, Way { name, .. }) in WAYS.iter().enumerate() {
            let bytes = &find(0, way, depth, GIGABITS[0]).bytes;
            let cells: String = bytes.iter().map(|b| format!(" {} |", short(b / 1e9))).collect();
            let _ = writeln!(text, "| d{depth} | {name} |{cells}");
        }
    }
    let _ = write!(
        text,
        "\n## Seconds of the exchange, as it is\n\n| | Gb/s |{heads}\n|---|---:|{rule}\n"
    );
    for depth in DEPTHS {
        for gigabits in GIGABITS {
            let seconds = &find(0, 0, depth, gigabits).exchange_s;
            let cells: String = seconds.iter().map(|s| format!(" {} |", short(*s))).collect();
            let _ = writeln!(text, "| d{depth} | {gigabits} |{cells}");
        }
    }
    for (computer, Computer { name, is_assumed, .. }) in given.computers.iter().enumerate() {
        let basis = if *is_assumed { "ASSUMED" } else { "from measured times" };
        for (way, Way { name: way_name, .. }) in WAYS.iter().enumerate() {
            let _ = write!(
                text,
                "\n## Efficiency on {name} a rank ({basis}): {way_name}\n\n\
                 | | compute, s | Gb/s |{heads} half or more up to |\n|---|---:|---:|{rule}---:|\n"
            );
            for depth in DEPTHS {
                for gigabits in GIGABITS {
                    let row = find(computer, way, depth, gigabits);
                    let cells: String =
                        (0..RANKS.len()).map(|i| format!(" {:.3} |", row.efficiency(i))).collect();
                    let reach = row.reach().map_or("none".into(), |ranks| ranks.to_string());
                    let compute = short(row.compute_s);
                    let _ =
                        writeln!(text, "| d{depth} | {compute} | {gigabits} |{cells} {reach} |");
                }
            }
        }
    }
    text
}

/// Three digits.
fn short(x: f64) -> String {
    match x {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Value {
        let path = cargo::root().join("benchmarks/ranks.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_given_times_are_read_and_marked() {
        let given = Given::read(&given()).unwrap();
        assert_eq!(given.computers.len(), 2);
        assert!(!given.computers[0].is_assumed && given.computers[1].is_assumed);
        // Two cores make 171 G operations a second in a bare matrix product.
        let cores = given.computers[0].operations_per_s / 1e9;
        assert!((150.0..171.0).contains(&cores), "{cores}");
        assert!((given.exchange.share - 0.893).abs() < 0.001, "{}", given.exchange.share);
        let text = markdown(&given, &rows(&given), "2026-01-31");
        assert!(
            text.contains("an H100 a rank (ASSUMED)")
                && text.contains("two CPU cores, **measured**")
        );
    }

    /// The step that `benchmarks/LOG.md`, 2026-11-29, has: 38.9 M parameters.
    fn measured_step(ranks: usize) -> Traffic {
        Traffic::of(&[389_000; 100], ranks, 4.0, Owners::Whole)
    }

    /// Its seconds at 1 Gb/s, of which those without a limit were measured: so they have the host's part in them.
    fn at_a_gigabit(ranks: usize, without_limit: f64, latency: f64) -> f64 {
        let Exchange { share, .. } = Given::read(&given()).unwrap().exchange;
        let link = Exchange { host: f64::INFINITY, share, latency, message: 0.0 };
        without_limit + measured_step(ranks).seconds(1e9, link)
    }

    /// Four ranks took 1.61 s a step without a limit and 3.70 s at 1 Gb/s. Two, to which nothing was fitted, took 0.80
    /// and 2.16 s.
    #[test]
    fn the_share_of_a_link_that_four_ranks_had_predicts_two() {
        let given = given();
        let link = &given["exchange"]["link"];
        assert_eq!(link["bytes"].as_f64(), Some(measured_step(4).bytes));
        assert!((link["seconds"].as_f64().unwrap() - (3.70 - 1.61)).abs() < 1e-9);
        let two = at_a_gigabit(2, 0.80, 0.0);
        assert!((two / 2.16 - 1.0).abs() < 0.05, "{two}");
    }

    /// With 10 ms each way four ranks took 3.57 s: three streams each fill the link all the while, and the model is an upper
    /// bound. Two took 3.34 s: one stream is slow after every pause (2.5 MB are under way at that rate), and the model, which
    /// has the 26 delays alone, is too low.
    #[test]
    fn delays_are_an_upper_bound_where_there_are_streams_enough() {
        let [two, four] = [(2, 0.80), (4, 1.61)].map(|(n, base)| at_a_gigabit(n, base, 0.010));
        assert!(four > 3.57 && four / 3.57 < 1.1, "{four}");
        let delays = two - at_a_gigabit(2, 0.80, 0.0);
        assert!((delays - 0.26).abs() < 1e-9 && two < 3.34, "{delays}, {two}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut value = given();
        value["computers"][0]["seconds"] = "many".into();
        assert_eq!(Given::read(&value).err().unwrap(), "/computers/0/seconds");
    }

    #[test]
    fn rows_are_one_document_and_no_exchange_is_free() {
        let value = given();
        let given = Given::read(&value).unwrap();
        let rows = rows(&given);
        assert_eq!(rows.len(), DEPTHS.len() * GIGABITS.len() * WAYS.len() * 2);
        let text = json_text(&json!({ "given": value, "ranks": RANKS }), &rows);
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["rows"].as_array().unwrap().len(), rows.len());
        for row in &rows {
            assert!((0..RANKS.len()).all(|i| (0.0..1.0).contains(&row.efficiency(i))));
            let faster = |other: &&Row| {
                (other.computer, other.way, other.depth) == (row.computer, row.way, row.depth)
                    && other.gigabits > row.gigabits
            };
            assert!(
                rows.iter().filter(faster).all(|other| other.efficiency(5) > row.efficiency(5))
            );
        }
    }
}
