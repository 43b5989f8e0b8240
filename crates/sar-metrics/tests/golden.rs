//! The measures against numpy and scipy: `golden.py` made the files.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sar_metrics::{
    Features, Memorization, Moments, Neighbors, Probe, Ridge, Subsets, frechet, inception_score,
    kernel_distance, kernel_distance_by_subsets, memorization, mind, nearest, prdc,
};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(name)
}

/// A file of named arrays.
struct Arrays(Vec<u8>);

impl Arrays {
    fn read(name: &str) -> Self {
        Self(std::fs::read(file(name)).unwrap())
    }

    /// The last side of an array, and its values by their bytes.
    fn array<const N: usize, T>(&self, name: &str, read: fn([u8; N]) -> T) -> (usize, Vec<T>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let values = tensor.data().chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap()));
        (*tensor.shape().last().unwrap(), values.collect())
    }

    fn features(&self, name: &str) -> Features {
        let (dim, values) = self.array(name, f32::from_le_bytes);
        Features::from_rows(dim, values).unwrap()
    }

    fn classes(&self, name: &str) -> Vec<usize> {
        let (_, values) = self.array(name, i64::from_le_bytes);
        values.into_iter().map(|class| usize::try_from(class).unwrap()).collect()
    }

    #[track_caller]
    fn check(&self, name: &str, found: &[f64]) {
        let (_, expected) = self.array(name, f64::from_le_bytes);
        assert_eq!(found.len(), expected.len(), "{name}");
        found.iter().zip(&expected).for_each(|(found, expected)| near(name, *found, *expected));
    }
}

/// Within 1e-6 of what is expected.
#[track_caller]
fn near(name: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{name}: {found}, not {expected}");
}

fn distance(a: &Features, b: &Features) -> f64 {
    let [a, b] = [a, b].map(|features| Moments::of(features).unwrap());
    frechet(&a, &b).unwrap().distance
}

#[test]
fn all_expected_values_of_the_parity_case_are_met() {
    let arrays = Arrays::read("parity.safetensors");
    let [x, y] = ["reference", "generated"].map(|name| arrays.features(name));
    let logits = arrays.features("logits");
    let [of_x, of_y] = [&x, &y].map(|features| Neighbors::new(features, 3).unwrap());
    let [found] = prdc(&of_x, &of_y, [3]).unwrap();
    let expected = std::fs::read_to_string(file("parity.json")).unwrap();
    let Value::Object(expected) = serde_json::from_str(&expected).unwrap() else {
        panic!("a table of expected values");
    };
    assert_eq!(expected.len(), 10);
    for (name, expected) in &expected {
        let expected = expected.as_f64().unwrap();
        let found = match name.as_str() {
            "frechet_distance" => distance(&x, &y),
            "frechet_self" => {
                let found = distance(&x, &x);
                assert!(found.abs() < 1e-6 && expected.abs() < 1e-6, "{found}");
                continue;
            }
            // The first 20 generated rows, of 32 features.
            "frechet_20_samples" => distance(&x, &y.select(0..20)),
            "kernel_distance_poly3_unbiased" => kernel_distance(&x, &y).unwrap(),
            "inception_score_split_100" => inception_score(&logits, 100).unwrap().mean,
            "inception_score_split_500" => inception_score(&logits, 500).unwrap().mean,
            "precision_k3" => found.precision,
            "recall_k3" => found.recall,
            "density_k3" => found.density,
            "coverage_k3" => found.coverage,
            other => panic!("{other} is not a measure"),
        };
        near(name, found, expected);
    }
}

#[test]
fn a_second_set_gives_the_values_of_numpy() {
    let arrays = Arrays::read("golden.safetensors");
    let [train, held, samples] = ["train", "held", "samples"].map(|name| arrays.features(name));
    arrays.check("frechet", &[distance(&train, &samples)]);
    arrays.check("frechet_6", &[distance(&train, &samples.select(0..6))]);
    arrays.check("kernel_distance", &[kernel_distance(&train, &samples).unwrap()]);
    let subsets = Subsets { size: 25, count: 7 };
    let found = kernel_distance_by_subsets(&train, &samples, subsets, 11).unwrap();
    arrays.check("subsets", &[found.mean, found.deviation]);
    let [x, y] = [&train, &samples].map(|features| Neighbors::new(features, 5).unwrap());
    for found in prdc(&x, &y, [3, 5]).unwrap() {
        let values = [found.precision, found.recall, found.density, found.coverage];
        arrays.check(&format!("prdc_{}", found.k), &values);
    }
    let found = mind(&train, &samples, 150, 13).unwrap();
    arrays.check("mind", &[found.mean, found.deviation]);
    let [near, far] = [&samples, &held].map(|features| nearest(features, &train).unwrap());
    let found = memorization(&near, &far, Memorization::QUANTILE).unwrap();
    let values = [found.median_ratio, found.near_share, found.near_distance];
    arrays.check("memorization", &values);
}

#[test]
fn a_probe_names_the_classes_that_numpy_names() {
    let arrays = Arrays::read("golden.safetensors");
    let [train, held, samples] = ["train", "held", "samples"].map(|name| arrays.features(name));
    let [of_train, of_held, of_samples] =
        ["train_labels", "held_labels", "sample_labels"].map(|name| arrays.classes(name));
    let mut found = Vec::new();
    for lambda in [2.0, 300.0] {
        let ridge = Ridge { lambda, ..Ridge::default() };
        let probe = Probe::fit(&train, &of_train, 4, ridge).unwrap();
        found.push(probe.accuracy(&held, &of_held).unwrap());
        found.push(probe.accuracy(&samples, &of_samples).unwrap());
        if lambda == 300.0 {
            assert_eq!(probe.predict(&samples).unwrap(), arrays.classes("classes_300"));
        }
    }
    arrays.check("accuracy", &found);
}
