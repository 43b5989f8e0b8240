//! Products at the sizes at which a backend's fast kernels have been wrong.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use sar_kernels::conv2d;

use crate::host::{apart, floats, product, tensor, transposed, values};
use crate::probe::{Outcome, Probe};

/// Tokens of a pyramid at 256 px.
pub(crate) const ROWS: usize = 680;
/// FlexVAR's number of codes, the largest inner size of the models.
pub(crate) const CODES: usize = 8912;
/// Inner sizes and how many columns the right operand has beside one: few where the host takes long.
const INNER: [(usize, usize); 5] = [(64, 64), (192, 64), (ROWS, 64), (1360, 64), (CODES, 33)];

/// Products of two matrices, plain, transposed and batched, and a convolution, against f64.
pub fn products<B: Backend>(device: &B::Device) -> Vec<Probe> {
    let left = values("left", ROWS * CODES);
    let right = values("right", CODES * 33);
    let mut probes = Vec::new();
    for (k, columns) in INNER {
        let a = tensor::<B, 2>(&left[..ROWS * k], [ROWS, k], device);
        for [m, n] in [[ROWS, columns], [ROWS, 1], [1, columns]] {
            probes.push(compare(format!("product [{m},{k}]x[{k},{n}]"), || {
                let (left, right) = (&left[..m * k], &right[..k * n]);
                let a = if m == ROWS { a.clone() } else { tensor(left, [m, k], device) };
                let b = tensor::<B, 2>(right, [k, n], device);
                (floats(a.matmul(b)), product(left, right, [m, k, n]))
            }));
        }
    }
    for [m, k, n] in [[192, ROWS, 64], [ROWS, 192, 64]] {
        let (left, right) = (&left[..m * k], &right[..k * n]);
        let name = format!("product [{k},{m}]^T x [{k},{n}]");
        probes.push(compare(name, || {
            let a = tensor::<B, 2>(&transposed(left, [m, k]), [k, m], device);
            let b = tensor::<B, 2>(right, [k, n], device);
            (floats(a.transpose().matmul(b)), product(left, right, [m, k, n]))
        }));
        let name = format!("product [{m},{k}]x[{n},{k}]^T");
        probes.push(compare(name, || {
            let a = tensor::<B, 2>(left, [m, k], device);
            let b = tensor::<B, 2>(&transposed(right, [k, n]), [n, k], device);
            (floats(a.matmul(b.transpose())), product(left, right, [m, k, n]))
        }));
    }
    probes.extend(attention::<B>(&left, device));
    probes.push(convolution::<B>(&left, &right, device));
    probes
}

/// Scores `q k^T` and their products with values, of 2 images and 2 heads.
fn attention<B: Backend>(left: &[f32], device: &B::Device) -> [Probe; 2] {
    let (b, h, l, e) = (2, 2, ROWS, 64);
    let (q, rest) = left.split_at(b * h * l * e);
    let k = &rest[..b * h * l * e];
    let shares = &rest[k.len()..][..b * h * l * l];
    let scores = compare(format!("product [{b},{h},{l},{e}]x[{b},{h},{l},{e}]^T"), || {
        let [q, k] = [q, k].map(|x| tensor::<B, 4>(x, [b, h, l, e], device));
        (floats(q.matmul(k.swap_dims(2, 3))), {
            let images = left[..b * h * l * e].chunks(l * e).zip(rest.chunks(l * e));
            images.flat_map(|(q, k)| product(q, &transposed(k, [l, e]), [l, e, l])).collect()
        })
    });
    let mixtures = compare(format!("product [{b},{h},{l},{l}]x[{b},{h},{l},{e}]"), || {
        let v = tensor::<B, 4>(k, [b, h, l, e], device);
        (floats(tensor::<B, 4>(shares, [b, h, l, l], device).matmul(v)), {
            let images = shares.chunks(l * l).zip(k.chunks(l * e));
            images.flat_map(|(shares, v)| product(shares, v, [l, l, e])).collect()
        })
    });
    [scores, mixtures]
}

/// A convolution of 3 x 3 with zeros around the maps, as the tokenizers have.
fn convolution<B: Backend>(x: &[f32], weight: &[f32], device: &B::Device) -> Probe {
    let (b, c, side, o) = (2, 32, 17, 32);
    let (x, weight) = (&x[..b * c * side * side], &weight[..o * c * 9]);
    compare(format!("convolution of [{b},{c},{side},{side}] by [{o},{c},3,3]"), || {
        let x_bchw = tensor::<B, 4>(x, [b, c, side, side], device);
        let weight_ockk = tensor::<B, 4>(weight, [o, c, 3, 3], device);
        let ours = conv2d(x_bchw, weight_ockk, Tensor::zeros([o], device), 1, [1; 4]);
        // Every pixel's neighborhood as a column: [c 9, side side] an image.
        let neighborhoods = |image: &[f32]| -> Vec<f32> {
            let pixel = |row: usize, at: usize| {
                let (map, tap) = (&image[row / 9 * side * side..], row % 9);
                let (i, j) = (at / side + tap / 3, at % side + tap % 3);
                let inside = (1..=side).contains(&i) && (1..=side).contains(&j);
                if inside { map[(i - 1) * side + j - 1] } else { 0.0 }
            };
            (0..c * 9 * side * side).map(|n| pixel(n / (side * side), n % (side * side))).collect()
        };
        let images = x.chunks(c * side * side);
        let expected = images
            .flat_map(|image| product(weight, &neighborhoods(image), [o, c * 9, side * side]));
        (floats(ours), expected.collect())
    })
}

fn compare(name: String, work: impl FnOnce() -> (Vec<f64>, Vec<f64>)) -> Probe {
    Probe::run(name, || {
        let (ours, expected) = work();
        Outcome::Product { error: apart(&ours, &expected) }
    })
}
