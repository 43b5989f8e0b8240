//! The host's side: inputs as pure functions of a seed, products in f64, values up and down.

use std::num::NonZero;
use std::thread;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::SeedTree;

/// So many values from -1 to 1, a pure function of their purpose.
pub(crate) fn values(purpose: &str, n: usize) -> Vec<f32> {
    let stream = SeedTree::new(0).child("self-check").child(purpose);
    let mut values = vec![0.0; n];
    let part = n.div_ceil(threads()).max(1);
    thread::scope(|scope| {
        for (i, values) in values.chunks_mut(part).enumerate() {
            scope.spawn(move || {
                for (j, value) in values.iter_mut().enumerate() {
                    *value = 2.0 * stream.uniform((i * part + j) as u64) - 1.0;
                }
            });
        }
    });
    values
}

/// So many numbers below `end`, a pure function of their purpose.
pub(crate) fn indices(purpose: &str, n: usize, end: usize) -> Vec<usize> {
    let stream = SeedTree::new(0).child("self-check").child(purpose);
    (0..n as u64).map(|i| stream.below(i, end)).collect()
}

/// `[m, k]` times `[k, n]`, summed in f64.
pub(crate) fn product(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Vec<f64> {
    assert_eq!((a.len(), b.len()), (m * k, k * n), "operands of a product");
    let b: Vec<f64> = b.iter().map(|x| f64::from(*x)).collect();
    let mut output = vec![0.0; m * n];
    let rows = m.div_ceil(threads());
    thread::scope(|scope| {
        for (a, output) in a.chunks(rows * k).zip(output.chunks_mut(rows * n)) {
            let b = &b;
            scope.spawn(move || {
                for (a, output) in a.chunks(k).zip(output.chunks_mut(n)) {
                    for (a, b) in a.iter().zip(b.chunks(n)) {
                        let a = f64::from(*a);
                        output.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                    }
                }
            });
        }
    });
    output
}

/// `[m, n]` to `[n, m]`.
pub(crate) fn transposed(x: &[f32], [m, n]: [usize; 2]) -> Vec<f32> {
    (0..m * n).map(|i| x[i % m * n + i / m]).collect()
}

/// The largest difference as a share of the largest expected magnitude; infinite where a value is
/// not finite or one is missing.
pub(crate) fn apart(ours: &[f64], expected: &[f64]) -> f64 {
    if ours.len() != expected.len() {
        return f64::INFINITY;
    }
    let scale = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let worst = ours.iter().zip(expected).fold(0.0f64, |worst, (ours, expected)| {
        let apart = (ours - expected).abs();
        // `max` would drop a NaN.
        if apart.is_nan() { f64::INFINITY } else { worst.max(apart) }
    });
    if worst == 0.0 { 0.0 } else { worst / scale }
}

pub(crate) fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub(crate) fn int_tensor<B: Backend, const D: usize>(
    values: &[usize],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D, Int> {
    let values: Vec<i64> = values.iter().map(|x| *x as i64).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub(crate) fn floats<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().expect("f64 after the conversion")
}

/// Places on the device; `None` where one is negative.
pub(crate) fn ints<B: Backend, const D: usize>(x: Tensor<B, D, Int>) -> Vec<Option<usize>> {
    let values = x.into_data().convert::<i64>().into_vec::<i64>();
    let values = values.expect("i64 after the conversion").into_iter();
    values.map(|x| usize::try_from(x).ok()).collect()
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_numbers_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, -1.0, 2.0, 0.5, 1.0]);
        assert_eq!(product(&a, &b, [2, 3, 2]), [0.5, 7.0, 2.0, 16.0]);
        assert_eq!(product(&a, &b, [1, 6, 1]), [14.5]);
        assert_eq!(transposed(&a, [2, 3]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn differences_are_shares_of_the_largest_value_and_nothing_is_near_nan() {
        assert_eq!(apart(&[1.0, -3.5], &[1.0, -4.0]), 0.125);
        assert_eq!(apart(&[0.0], &[0.0]), 0.0);
        assert_eq!(apart(&[1e-9], &[0.0]), f64::INFINITY);
        assert_eq!(apart(&[f64::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(apart(&[1.0], &[1.0, 1.0]), f64::INFINITY);
    }

    #[test]
    fn inputs_are_pure_functions_and_spread() {
        let x = values("a", 1000);
        assert_eq!(x[..10], values("a", 10));
        assert_ne!(x[..10], values("b", 10));
        assert!(x.iter().any(|x| *x < -0.9) && x.iter().any(|x| *x > 0.9));
        assert!(x.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(indices("a", 100, 7).iter().all(|i| *i < 7));
    }
}
