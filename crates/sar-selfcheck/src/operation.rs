//! Operations other than products: what fusion joins, and what finds and fetches values.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;

use crate::host::{apart, floats, indices, int_tensor, ints, tensor, values};
use crate::probe::{Outcome, Probe};
use crate::product::{CODES, ROWS};

/// Largest error of values computed in f32, relative to the largest.
const ALLOWED: f64 = 1e-4;
/// Channels of a row.
const WIDTH: usize = 512;

/// A chain of element-wise operations and sums, twice with other inputs; sums along every axis;
/// largest values, gathered values and selected rows.
pub fn operations<B: Backend>(device: &B::Device) -> Vec<Probe> {
    let mut probes = vec![
        chain::<B>("norm, gelu and softmax [680,512]", "first", device),
        // The same operations again: what was kept of the first time must not be answered.
        chain::<B>("norm, gelu and softmax [680,512], the second time", "second", device),
    ];
    probes.extend(sums::<B>(device));
    probes.extend(places::<B>(device));
    probes
}

/// Layer norm, modulation, GELU by tanh and softmax of rows, and the sum of their product.
fn chain<B: Backend>(name: &str, purpose: &str, device: &B::Device) -> Probe {
    let x = values(purpose, (ROWS + 2) * WIDTH);
    let (rows, modulation) = x.split_at(ROWS * WIDTH);
    let (scale, shift) = modulation.split_at(WIDTH);
    Probe::run(name, || {
        let x_rd = tensor::<B, 2>(rows, [ROWS, WIDTH], device);
        let [scale_1d, shift_1d] = [scale, shift].map(|x| tensor::<B, 2>(x, [1, WIDTH], device));
        let centered_rd = x_rd.clone() - x_rd.mean_dim(1);
        let deviation_r1 = (centered_rd.clone().square().mean_dim(1) + 1e-6).sqrt();
        let y_rd = centered_rd / deviation_r1 * (scale_1d + 1.0) + shift_1d;
        let inner_rd = (y_rd.clone() + y_rd.clone().powi_scalar(3) * 0.044715) * ROOT;
        let gelu_rd = y_rd * (inner_rd.tanh() + 1.0) * 0.5;
        let p_rd = softmax(gelu_rd.clone() * 2.0, 1);
        let mean_r1 = (p_rd.clone() * gelu_rd).sum_dim(1);
        let rows = rows.chunks(WIDTH).map(|row| chain_of_row(row, scale, shift));
        let (p, mean): (Vec<Vec<f64>>, Vec<f64>) = rows.unzip();
        let error = apart(&floats(p_rd), &p.concat()).max(apart(&floats(mean_r1), &mean));
        Outcome::Values { error, allowed: ALLOWED }
    })
}

/// `sqrt(2 / pi)`.
const ROOT: f64 = 0.797_884_560_802_865_4;

fn chain_of_row(row: &[f32], scale: &[f32], shift: &[f32]) -> (Vec<f64>, f64) {
    let n = row.len() as f64;
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    let gelu = row.iter().zip(scale.iter().zip(shift)).map(|(x, (scale, shift))| {
        let y = (f64::from(*x) - mean) / (variance + 1e-6).sqrt();
        let y = y * (1.0 + f64::from(*scale)) + f64::from(*shift);
        0.5 * y * (1.0 + (ROOT * (y + 0.044715 * y.powi(3))).tanh())
    });
    let gelu: Vec<f64> = gelu.collect();
    let weights: Vec<f64> = gelu.iter().map(|x| (2.0 * x).exp()).collect();
    let total: f64 = weights.iter().sum();
    let p: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
    let mean = p.iter().zip(&gelu).map(|(p, gelu)| p * gelu).sum();
    (p, mean)
}

/// Sums along each axis, and of everything.
fn sums<B: Backend>(device: &B::Device) -> Vec<Probe> {
    let shape = [8, 85, WIDTH];
    let n = shape.iter().product();
    // Positive, so that no sum is small beside its terms.
    let x: Vec<f32> = values("sums", n).iter().map(|x| x.abs()).collect();
    let sum = |axis: usize| {
        let inner: usize = shape[axis + 1..].iter().product();
        let mut expected = vec![0.0; n / shape[axis]];
        for (i, x) in x.iter().enumerate() {
            expected[i / (inner * shape[axis]) * inner + i % inner] += f64::from(*x);
        }
        expected
    };
    let tensor = || tensor::<B, 3>(&x, shape, device);
    let mut probes: Vec<Probe> = (0..3)
        .map(|axis| {
            Probe::run(format!("sum of {shape:?} along axis {axis}"), || {
                let error = apart(&floats(tensor().sum_dim(axis)), &sum(axis));
                Outcome::Values { error, allowed: ALLOWED }
            })
        })
        .collect();
    probes.push(Probe::run(format!("sum of {shape:?}"), || {
        let expected = x.iter().map(|x| f64::from(*x)).sum();
        let error = apart(&floats(tensor().sum()), &[expected]);
        Outcome::Values { error, allowed: ALLOWED }
    }));
    probes
}

/// Places of the largest values, values gathered from rows, rows selected from a table: no rounding.
fn places<B: Backend>(device: &B::Device) -> Vec<Probe> {
    let x = values("places", ROWS * CODES);
    let x_rv = tensor::<B, 2>(&x, [ROWS, CODES], device);
    let columns = indices("columns", ROWS * 8, CODES);
    let picked = indices("rows", CODES, ROWS);
    let table = &x[..ROWS * 32];
    let count = |wrong: usize, of: usize| Outcome::Choices { wrong, of, allowed: 0 };
    vec![
        Probe::run(format!("argmax of [{ROWS},{CODES}]"), || {
            let found = ints(x_rv.clone().argmax(1));
            let right = x.chunks(CODES).zip(&found).filter(|(row, place)| {
                let largest = row.iter().fold(f32::MIN, |a, b| a.max(*b));
                place.and_then(|place| row.get(place)) == Some(&largest)
            });
            count(ROWS - right.count(), ROWS)
        }),
        Probe::run(format!("gather from [{ROWS},{CODES}]"), || {
            let columns_r8 = int_tensor::<B, 2>(&columns, [ROWS, 8], device);
            let found = floats(x_rv.clone().gather(1, columns_r8));
            let expected = columns.iter().enumerate().map(|(i, column)| x[i / 8 * CODES + column]);
            count(differing(&found, expected), columns.len())
        }),
        Probe::run(format!("select of {CODES} rows from [{ROWS},32]"), || {
            let picked_n = int_tensor::<B, 1>(&picked, [CODES], device);
            let found = floats(tensor::<B, 2>(table, [ROWS, 32], device).select(0, picked_n));
            let expected = picked.iter().flat_map(|row| &table[row * 32..][..32]);
            count(differing(&found, expected.copied()), found.len())
        }),
    ]
}

/// How many values differ; one that is missing does.
fn differing(found: &[f64], expected: impl Iterator<Item = f32>) -> usize {
    let mut found = found.iter();
    expected.filter(|expected| found.next() != Some(&f64::from(*expected))).count()
}
