//! The numbers of `metrics.jsonl`, read loosely: one object a line with `stage`, `step` and anything else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::runs::stamp;

/// Of a longer file only the end is read.
const MOST_BYTES: u64 = 64 << 20;
/// Bytes of the end that the last steps are looked for in.
const END: u64 = 1 << 20;
/// Points that a series is thinned to.
const POINTS: usize = 400;
/// Values of a list that become series; more than a schedule has scales.
const PLACES: usize = 64;

/// What files have come to: pages ask every few seconds, and most files stay as they are.
static STEPS: Known<BTreeMap<String, u64>> = Known::new(1024);
static SERIES: Known<Value> = Known::new(8);

/// Time and length of a file.
type Stamp = (u64, u64);

/// What was read of files, with their times and lengths.
struct Known<T> {
    files: Mutex<BTreeMap<PathBuf, (Stamp, T)>>,
    /// Files that are remembered.
    most: usize,
}

impl<T: Clone> Known<T> {
    const fn new(most: usize) -> Self {
        Self { files: Mutex::new(BTreeMap::new()), most }
    }

    /// What is known of a file that has not changed; else it is read.
    fn of(&self, path: &Path, read: impl FnOnce() -> T) -> T {
        let now = stamp(path);
        let files = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            files().get(path).filter(|(then, _)| *then == now).map(|(_, value)| value.clone());
        if let Some(value) = known {
            return value;
        }
        let value = read();
        let mut files = files();
        if files.len() >= self.most {
            files.clear();
        }
        files.insert(path.to_owned(), (now, value.clone()));
        value
    }
}

/// The whole lines of the last bytes of a file.
fn lines(path: &Path, most: u64) -> impl Iterator<Item = Value> {
    let end = || {
        let mut file = File::open(path).ok()?;
        let from = file.metadata().ok()?.len().saturating_sub(most);
        file.seek(SeekFrom::Start(from)).ok()?;
        Some(BufReader::new(file))
    };
    // A torn line, the first or the last, is none.
    let lines = end().into_iter().flat_map(|file| file.split(b'\n')).map_while(Result::ok);
    lines.filter_map(|line| serde_json::from_slice(&line).ok())
}

/// How many steps each stage has made, as far as its lines say.
pub(crate) fn last_steps(path: &Path) -> BTreeMap<String, u64> {
    STEPS.of(path, || read_steps(path))
}

fn read_steps(path: &Path) -> BTreeMap<String, u64> {
    let read = |most| {
        let mut steps = BTreeMap::new();
        for line in lines(path, most) {
            if let (Some(stage), Some(step)) = (line["stage"].as_str(), line["step"].as_u64()) {
                steps.insert(stage.to_owned(), step + 1);
            }
        }
        steps
    };
    let is_long = path.metadata().is_ok_and(|metadata| metadata.len() > END);
    // Stages that are over lie before the end.
    if is_long { read(MOST_BYTES) } else { read(END) }
}

/// `{stage: {name: [[step, value], ..]}}`, thinned by means of neighbors; value i of a list is `name/i`, as in
/// TensorBoard.
pub(crate) fn read(path: &Path) -> Value {
    SERIES.of(path, || read_series(path))
}

fn read_series(path: &Path) -> Value {
    let mut stages: BTreeMap<String, BTreeMap<String, Vec<[f64; 2]>>> = BTreeMap::new();
    for line in lines(path, MOST_BYTES) {
        let (Some(stage), Some(step)) = (line["stage"].as_str(), line["step"].as_f64()) else {
            continue;
        };
        let of_stage = stages.entry(stage.to_owned()).or_default();
        let fields = line.as_object().into_iter().flatten().filter(|(name, _)| *name != "step");
        for (name, value) in fields.flat_map(|(name, field)| numbers(name, field)) {
            of_stage.entry(name).or_default().push([step, value]);
        }
    }
    for points in stages.values_mut().flat_map(BTreeMap::values_mut) {
        *points = thinned(points);
    }
    json!(stages)
}

/// A number, or those of a list; anything else is none.
fn numbers(name: &str, field: &Value) -> Vec<(String, f64)> {
    let named = |name: String, value: &Value| value.as_f64().map(|value| (name, value));
    match field {
        Value::Array(values) => {
            let values = values.iter().enumerate().take(PLACES);
            values.filter_map(|(i, value)| named(format!("{name}/{i}"), value)).collect()
        }
        value => named(name.to_owned(), value).into_iter().collect(),
    }
}

fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let mean = |some: &[[f64; 2]]| {
        [0, 1].map(|i| some.iter().map(|point| point[i]).sum::<f64>() / some.len() as f64)
    };
    points.chunks(points.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn long_series_are_thinned_by_means() {
        let points: Vec<[f64; 2]> = (0..1000).map(|i| [f64::from(i), f64::from(2 * i)]).collect();
        let thin = thinned(&points);
        assert_eq!(thin.len(), 334);
        assert_eq!(thin[0], [1.0, 2.0]);
        assert_eq!(thin[333], [999.0, 1998.0]);
        assert_eq!(thinned(&points[..400]), points[..400]);
        assert!(thinned(&[]).is_empty());
    }

    #[test]
    fn a_file_is_read_again_once_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let known = Known::new(2);
        fs::write(&path, "a").unwrap();
        assert_eq!(known.of(&path, || 1), 1);
        assert_eq!(known.of(&path, || 2), 1);
        fs::write(&path, "ab").unwrap();
        assert_eq!(known.of(&path, || 3), 3);
        for i in 0..5 {
            known.of(&folder.path().join(i.to_string()), || 0);
        }
        assert!(known.files.lock().unwrap().len() <= 2);
    }

    #[test]
    fn lists_are_series_by_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let long = vec![1.0; 2 * PLACES];
        let lines = [
            json!({ "stage": "sar", "step": 1, "scales": [null, 2.5, [3], "x", 4] }),
            json!({ "stage": "sar", "step": 3, "scales": [null, 1.5] }),
            json!({ "stage": "control", "step": 0, "long": long }),
        ];
        fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
        let series = read(&path);
        let scales = json!({ "scales/1": [[1.0, 2.5], [3.0, 1.5]], "scales/4": [[1.0, 4.0]] });
        assert_eq!(series["sar"], scales);
        assert_eq!(series["control"].as_object().unwrap().len(), PLACES);
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(read(&path), json!({}));
        let text = "{\"stage\":\"sar\",\"step\":0,\"total\":2.5,\"note\":\"a\",\"scale\":{\"a\":1}}\n\
                    nonsense\n[]\n7\n\u{fffd}\n{\"step\":1}\n{\"stage\":\"sar\",\"step\":9,\"total\":1}\n{\"st";
        fs::write(&path, text.as_bytes()).unwrap();
        assert_eq!(read(&path), json!({ "sar": { "total": [[0.0, 2.5], [9.0, 1.0]] } }));
        assert_eq!(last_steps(&path), BTreeMap::from([("sar".to_owned(), 10)]));
    }
}
