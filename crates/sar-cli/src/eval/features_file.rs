//! `--features`: the measures of features that are there.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sar_eval::{Matrix, Npz};
use sar_metrics::{Features, Moments, Neighbors, frechet, inception_score, kernel_distance, prdc};
use sar_weights::write_bytes;
use serde_json::{Map, json};

use crate::Verdict;

/// Neighbors of the measures that need some.
const NEIGHBORS: usize = 3;
/// Rows of the smaller set of generated features.
const FEW: usize = 20;
/// Rows of a split of the inception score.
const SPLITS: [usize; 2] = [100, 500];

/// Computes everything that the matrices `reference`, `generated` and `logits` of a file allow.
pub(super) fn run(file: &Path, out: &Path) -> Result<Verdict> {
    let mut npz = Npz::open(file)?;
    let mut fields = Map::new();
    let mut put = |name: String, value: f64| {
        println!("{name:32} {value}");
        fields.insert(name, json!(value));
    };
    let has = |npz: &Npz, name| npz.has(name);
    ensure!(
        has(&npz, "logits") || has(&npz, "reference") && has(&npz, "generated"),
        "{}: has neither reference and generated nor logits",
        file.display()
    );
    if has(&npz, "reference") && has(&npz, "generated") {
        let (x, y) = (features(&mut npz, "reference")?, features(&mut npz, "generated")?);
        compare(&x, &y, &mut put)
            .with_context(|| format!("{}: generated beside reference", file.display()))?;
    }
    if has(&npz, "logits") {
        let logits = features(&mut npz, "logits")?;
        for split in SPLITS {
            let score = inception_score(&logits, split)
                .with_context(|| format!("{}: logits", file.display()))?;
            put(format!("inception_score_split_{split}"), score.mean);
        }
    }
    write_bytes(out, format!("{:#}\n", serde_json::Value::Object(fields)).as_bytes())?;
    eprintln!("wrote {}", out.display());
    Ok(Verdict::Good)
}

/// Measures the generated features beside those of the reference.
fn compare(x: &Features, y: &Features, put: &mut impl FnMut(String, f64)) -> Result<()> {
    let [wanted, found] = [x, y].map(Features::dim);
    ensure!(
        found == wanted,
        "{found} features a row beside {wanted}; compare features of one network alone"
    );
    let distance = |a: &Features, b: &Features| -> Result<f64> {
        Ok(frechet(&Moments::of(a)?, &Moments::of(b)?)?.distance)
    };
    put("frechet_distance".into(), distance(x, y)?);
    put("frechet_self".into(), distance(x, x)?);
    if y.len() >= FEW {
        put(format!("frechet_{FEW}_samples"), distance(x, &y.select(0..FEW))?);
    }
    put("kernel_distance_poly3_unbiased".into(), kernel_distance(x, y)?);
    let [of_x, of_y] = [Neighbors::new(x, NEIGHBORS)?, Neighbors::new(y, NEIGHBORS)?];
    let [found] = prdc(&of_x, &of_y, [NEIGHBORS])?;
    put(format!("precision_k{NEIGHBORS}"), found.precision);
    put(format!("recall_k{NEIGHBORS}"), found.recall);
    put(format!("density_k{NEIGHBORS}"), found.density);
    put(format!("coverage_k{NEIGHBORS}"), found.coverage);
    Ok(())
}

/// The rows of an array.
fn features(npz: &mut Npz, name: &str) -> Result<Features> {
    let Matrix { shape: [_, columns], values } = npz.matrix(name)?;
    let place = format!("{}: {name}", npz.path().display());
    ensure!(columns > 0, "{place}: rows without a value");
    let values = values.into_iter().map(|x| x as f32).collect();
    Features::from_rows(columns, values).context(place)
}
