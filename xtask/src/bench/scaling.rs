//! How time and memory grow with tokens, batch and depth.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::worker::{alone, build, commit, date, machine, median, save, work};
use crate::cargo::Outcome;

/// Pieces of work that differ in one size.
struct Series {
    what: &'static str,
    axis: &'static str,
    /// Their names, the size that differs, and how often each is run.
    work: [(&'static str, u32, usize); 3],
}

#[rustfmt::skip]
const SERIES: [Series; 4] = [
    Series { what: "sampling", axis: "tokens", work: [
        ("sample-d4-b1-256px", 680, 5), ("sample-d4-b1-512px", 2240, 3), ("sample-d4-b1-1024px", 9451, 1),
    ] },
    Series { what: "sampling", axis: "batch", work: [
        ("sample-d4-b1-256px", 1, 5), ("sample-d4-b2-256px", 2, 5), ("sample-d4-b4-256px", 4, 3),
    ] },
    Series { what: "sampling", axis: "depth", work: [
        ("sample-d4-b1-256px", 4, 5), ("sample-d8-b1-256px", 8, 3), ("sample-d16-b1-256px", 16, 3),
    ] },
    Series { what: "teacher-forced step", axis: "tokens", work: [
        ("teacher-step-d4-b1-256px", 680, 5), ("teacher-step-d4-b1-512px", 2240, 3), ("teacher-step-d4-b1-1024px", 9451, 1),
    ] },
];

pub(super) fn run() -> Outcome {
    let binary = build()?;
    let (date, commit, machine) = (date(), commit(), machine());
    let mut rows: Vec<Value> = Vec::new();
    let mut exponents = Vec::new();
    // Series share their smallest piece: it is run once.
    let mut measured: HashMap<&str, (f64, f64)> = HashMap::new();
    for Series { what, axis, work: series } in &SERIES {
        println!("\n{what:<20} {axis:>8} {:>9} {:>9}", "s", "MB");
        let mut points = Vec::new();
        for (name, size, runs) in series {
            let (seconds, mb) = match measured.get(name) {
                Some(before) => *before,
                None => {
                    let (seconds, mb) = alone(work(&binary, name), *runs)?;
                    (median(seconds), mb)
                }
            };
            measured.insert(name, (seconds, mb));
            println!("{name:<20} {size:>8} {seconds:>9.3} {mb:>9.0}");
            rows.push(json!({ "name": name, "axis": axis, "size": size, "s": seconds, "mb": mb, "runs": runs }));
            points.push((f64::from(*size), seconds, mb));
        }
        let time = exponent(points.iter().map(|(size, seconds, _)| (*size, *seconds)));
        let memory = exponent(points.iter().map(|(size, _, mb)| (*size, *mb)));
        println!("{:<20} {:>8} {time:>9.2} {memory:>9.2}", "", "exponent");
        exponents.push(json!({ "what": what, "axis": axis, "time": time, "memory": memory }));
        // After every series: the last ones may not fit into the memory.
        let table = json!({
            "date": date,
            "commit": commit,
            "machine": machine,
            "rows": rows,
            "exponents": exponents,
        });
        save(&format!("{date}-scaling.json"), &table)?;
    }
    Ok(())
}

/// The `e` of `y = c x^e`, by least squares of the logarithms.
fn exponent(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let logs: Vec<(f64, f64)> = points.map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x / n, b + y / n));
    let over = logs.iter().map(|(lx, ly)| (lx - x) * (ly - y)).sum::<f64>();
    over / logs.iter().map(|(lx, _)| (lx - x).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_of_a_power_is_found() {
        let cubes = [1.0, 2.0, 5.0].map(|x: f64| (x, 3.0 * x.powi(3)));
        assert!((exponent(cubes.into_iter()) - 3.0).abs() < 1e-12);
        assert!(exponent([(1.0, 7.0), (4.0, 7.0)].into_iter()).abs() < 1e-12);
    }
}
