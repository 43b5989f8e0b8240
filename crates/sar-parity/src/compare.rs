//! Comparing a recomputed tensor with a golden one.

use std::collections::BTreeMap;
use std::fmt;

use burn::tensor::TensorData;
use sar_weights::NamedTensors;

/// What was found for one golden tensor.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// Name of the tensor.
    pub name: String,
    /// Largest absolute difference; for integers the number of different elements.
    pub absolute: f64,
    /// That over the largest magnitude of the golden tensor; for an AdamW step over the learning
    /// rate.
    pub relative: f64,
    /// Whether the rules hold.
    pub passed: bool,
    /// What else there is to say.
    pub note: &'static str,
}

/// All rows of a case, by name.
#[derive(Clone, Debug, Default)]
pub struct Report {
    rows: BTreeMap<String, Row>,
}

impl Report {
    /// The rows in the order of names.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// Rows that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(|row| !row.passed)
    }

    pub(crate) fn insert(&mut self, row: Row) {
        self.rows.insert(row.name.clone(), row);
    }

    /// Adds a failed row for every golden tensor that has none.
    pub(crate) fn close(&mut self, golden: &NamedTensors) {
        for name in golden.names() {
            self.rows.entry(name.to_owned()).or_insert_with(|| Row {
                name: name.to_owned(),
                absolute: f64::NAN,
                relative: f64::NAN,
                passed: false,
                note: "not recomputed",
            });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.keys().map(String::len).max().unwrap_or(0);
        for row in self.rows.values() {
            let verdict = if row.passed { "pass" } else { "FAIL" };
            let line = format!(
                "{verdict}  {:width$}  abs {:9.2e}  rel {:9.2e}  {}",
                row.name, row.absolute, row.relative, row.note
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        let failed = self.failures().count();
        write!(f, "{} passed, {failed} failed", self.rows.len() - failed)
    }
}

fn failed(name: &str, note: &'static str) -> Row {
    Row { name: name.to_owned(), absolute: f64::NAN, relative: f64::NAN, passed: false, note }
}

/// The values of any tensor as f64.
pub(crate) fn values(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().into_vec().expect("f64")
}

/// Floats within `tolerance` of the largest magnitude.
pub(crate) fn floats(name: &str, golden: &TensorData, ours: &TensorData, tolerance: f64) -> Row {
    let (golden_values, our_values) = (values(golden), values(ours));
    if golden_values.len() != our_values.len() {
        return failed(name, "another number of elements");
    }
    let largest = golden_values.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let absolute = difference(&golden_values, &our_values);
    let relative = if absolute == 0.0 { 0.0 } else { absolute / largest };
    // A NaN anywhere makes the difference NaN, which is not within anything.
    Row { name: name.to_owned(), absolute, relative, passed: relative <= tolerance, note: "" }
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst, d| if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d) })
}

/// Integers that are equal, except where `score(position, candidate)` of the two candidates is
/// within 1e-4.
pub(crate) fn integers(
    name: &str,
    golden: &TensorData,
    ours: &TensorData,
    score: impl Fn(usize, usize) -> f64,
) -> Row {
    let (golden_values, our_values) = (values(golden), values(ours));
    if golden_values.len() != our_values.len() {
        return failed(name, "another number of elements");
    }
    let mut different = 0;
    let mut worst = 0.0f64;
    for (position, (g, o)) in golden_values.iter().zip(&our_values).enumerate() {
        if g != o {
            different += 1;
            let gap = (score(position, *g as usize) - score(position, *o as usize)).abs();
            // A candidate without a score is near nothing.
            worst = if gap.is_nan() { f64::INFINITY } else { worst.max(gap) };
        }
    }
    let note = if different == 0 { "" } else { "different elements; rel is their score gap" };
    let passed = worst <= 1e-4;
    Row { name: name.to_owned(), absolute: f64::from(different), relative: worst, passed, note }
}

/// The change of an AdamW step, within 2 % of the learning rate wherever the gradient is over 1e-5
/// of its tensor's largest.
pub(crate) fn optimizer_step(
    name: &str,
    before: &TensorData,
    golden: &TensorData,
    ours: &TensorData,
    gradient: &TensorData,
    lr: f64,
) -> Row {
    let (before, golden) = (values(before), values(golden));
    let (ours, gradient) = (values(ours), values(gradient));
    if [golden.len(), ours.len(), gradient.len()].iter().any(|n| *n != before.len()) {
        return failed(name, "another number of elements");
    }
    let largest = gradient.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let counted = (0..before.len()).filter(|i| gradient[*i].abs() > 1e-5 * largest);
    let (theirs, mine): (Vec<f64>, Vec<f64>) =
        counted.map(|i| (golden[i] - before[i], ours[i] - before[i])).unzip();
    let absolute = difference(&theirs, &mine);
    let relative = absolute / lr;
    Row { name: name.to_owned(), absolute, relative, passed: relative <= 0.02, note: "of lr" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_can_fail() {
        let data = |x: [f32; 3]| TensorData::from(x);
        let golden = data([1.0, -10.0, 0.0]);
        assert!(floats("x", &golden, &data([1.000_9, -10.0, 0.0]), 1e-4).passed);
        assert!(!floats("x", &golden, &data([1.001_1, -10.0, 0.0]), 1e-4).passed);
        assert!(!floats("x", &golden, &data([f32::NAN, -10.0, 0.0]), 1e-4).passed);
        assert!(!floats("x", &golden, &TensorData::from([1.0f32]), 1e-4).passed);
        let ints = |x: [i64; 2]| TensorData::from(x);
        let near = |_: usize, candidate: usize| candidate as f64 * 5e-5;
        assert!(integers("x", &ints([1, 2]), &ints([1, 2]), |_, _| 0.0).passed);
        assert!(integers("x", &ints([1, 2]), &ints([1, 3]), near).passed);
        assert!(!integers("x", &ints([1, 2]), &ints([1, 7]), near).passed);
        let step = |after: f32| {
            let before = TensorData::from([1.0f32, 1.0]);
            let golden = TensorData::from([0.9f32, 5.0]);
            let ours = TensorData::from([after, 1.0]);
            // The second element has next to no gradient and does not count.
            let gradient = TensorData::from([1.0f32, 1e-6]);
            optimizer_step("x", &before, &golden, &ours, &gradient, 0.1).passed
        };
        assert!(step(0.901) && !step(0.903));
    }

    #[test]
    fn what_is_not_recomputed_fails() {
        let mut golden = NamedTensors::new();
        golden.insert("forgotten", TensorData::from([1.0f32]));
        let mut report = Report::default();
        report.close(&golden);
        assert_eq!(report.failures().count(), 1);
        assert!(report.to_string().ends_with("0 passed, 1 failed"));
    }
}
