//! The numbers of `metrics.jsonl`, read loosely: one object a line with `stage`, `step` and anything else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

/// Of a longer file only the end is read.
const MOST_BYTES: u64 = 64 << 20;
/// Bytes of the end that the last steps are looked for in.
const END: u64 = 1 << 20;
/// Points that a series is thinned to.
const POINTS: usize = 400;

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

/// `{stage: {name: [[step, value], ..]}}`, thinned by means of neighbors.
pub(crate) fn read(path: &Path) -> Value {
    let mut stages: BTreeMap<String, BTreeMap<String, Vec<[f64; 2]>>> = BTreeMap::new();
    for line in lines(path, MOST_BYTES) {
        let (Some(stage), Some(step)) = (line["stage"].as_str(), line["step"].as_f64()) else {
            continue;
        };
        let of_stage = stages.entry(stage.to_owned()).or_default();
        for (name, value) in line.as_object().into_iter().flatten() {
            if let Some(value) = value.as_f64().filter(|_| name != "step") {
                of_stage.entry(name.clone()).or_default().push([step, value]);
            }
        }
    }
    for points in stages.values_mut().flat_map(BTreeMap::values_mut) {
        *points = thinned(points);
    }
    json!(stages)
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
