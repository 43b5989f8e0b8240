//! Between device and host: values up, values down, values compared in f64.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::SeedTree;

/// A tensor of the given values.
pub(crate) fn tensor<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A tensor of standard normal values that are the same on every backend.
pub(crate) fn normals<B: Backend, const D: usize>(
    stream: SeedTree,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    tensor(stream.normals(shape.iter().product()), shape, device)
}

pub(crate) fn floats<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().expect("f64")
}

pub(crate) fn ints<B: Backend, const D: usize>(x: Tensor<B, D, Int>) -> Vec<usize> {
    let values = x.into_data().convert::<i64>().into_vec::<i64>().expect("i64");
    values.into_iter().map(|x| usize::try_from(x).expect("no index is negative")).collect()
}

/// The largest magnitude.
pub(crate) fn largest<B: Backend, const D: usize>(x: Tensor<B, D>) -> f64 {
    floats(x).into_iter().fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b.abs()) })
}

pub(crate) fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Asserts that values are within `tolerance` of the largest expected magnitude.
#[track_caller]
pub(crate) fn assert_near(what: &str, ours: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), expected.len(), "{what}: number of elements");
    let scale = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    for (i, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        // Not `>`: a NaN is near nothing.
        let near = (ours - expected).abs() <= tolerance * scale;
        assert!(near, "{what}: element {i} is {ours}, not {expected}");
    }
}
