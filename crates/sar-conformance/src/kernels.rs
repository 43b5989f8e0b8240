//! Single operations, each against its definition in f64 on the host or against published numbers.
//!
//! Shapes: b batch, c channels, h height, w width; r rows (tokens), v codes.

use burn::tensor::activation::sigmoid;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::{CodePyramid, Filter, ScaleSize, SeedTree, resample};
use sar_loss::{cross_entropy, soft_cross_entropy, ssim};
use sar_rollout::{Filters, draw, guide};
use sar_train::tokenizer_loss::CodeUsage;

use crate::host::{assert_near, floats, ints, tensor, widened};
use crate::tiny;

/// What the laws of this part run on.
pub type Subject<A> = <A as AutodiffBackend>::InnerBackend;

/// ONNX's example `resize_upsample_scales_cubic`: 1 to 16 on a 4x4 grid, both sides doubled, cubic
/// coefficient -0.75, half-pixel centers. The grid is linear, so one row and one column say all.
pub fn bicubic_equals_published_numbers<B: Backend>(device: &B::Device) {
    let row =
        [0.47265625, 0.76953125, 1.24609375, 1.875, 2.28125, 2.91015625, 3.38671875, 3.68359375];
    let column = [
        0.47265625,
        1.66015625,
        3.56640625,
        6.08203125,
        7.70703125,
        10.22265625,
        12.12890625,
        13.31640625,
    ];
    let published: Vec<f64> = column
        .iter()
        .flat_map(|down| row.iter().map(move |across| down + across - row[0]))
        .collect();
    let grid = tensor::<B, 4>((1..=16).map(|x| x as f32).collect(), [1, 1, 4, 4], device);
    let ours = floats(resample(grid, ScaleSize::square(8), Filter::Bicubic));
    assert_near("bicubic", &ours, &published, 1e-6);
}

/// Structural similarity window by window, of images that are larger and smaller than a window of 11 px.
pub fn structural_similarity_equals_its_definition<B: Backend>(device: &B::Device) {
    for ([h, w], n) in [([14, 12], 11), ([9, 16], 9), ([4, 6], 3), ([1, 3], 1)] {
        let size = 3 * h * w;
        let values = |i: u64| SeedTree::new(8).at(i).normals(2 * size).into_iter();
        let x: Vec<f32> = values(0).map(|x| (0.4 * x).clamp(-1.0, 1.0)).collect();
        let y: Vec<f32> = x.iter().zip(values(1)).map(|(x, e)| 0.8 * x + 0.1 * e).collect();
        let g = |i: usize| (-(i as f64 - (n / 2) as f64).powi(2) / 4.5).exp();
        let total: f64 = (0..n).map(g).sum();
        let mut expected = Vec::new();
        for (x, y) in x.chunks(size).zip(y.chunks(size)) {
            let mut sum = 0.0;
            let places = (h - n + 1) * (w - n + 1);
            for at in 0..3 * places {
                let (c, i, j) = (at / places, at % places / (w - n + 1), at % (w - n + 1));
                // Means of x, y, x^2, y^2 and xy.
                let mut m = [0.0; 5];
                for (di, dj) in (0..n * n).map(|at| (at / n, at % n)) {
                    let pixel = (c * h + i + di) * w + j + dj;
                    let (x, y) = (f64::from(x[pixel]), f64::from(y[pixel]));
                    let weight = g(di) * g(dj) / (total * total);
                    [x, y, x * x, y * y, x * y]
                        .iter()
                        .zip(&mut m)
                        .for_each(|(v, m)| *m += weight * v);
                }
                let [x, y, xx, yy, xy] = m;
                sum += (2.0 * x * y + 4e-4) * (2.0 * (xy - x * y) + 3.6e-3)
                    / ((x * x + y * y + 4e-4) * (xx - x * x + yy - y * y + 3.6e-3));
            }
            expected.push(sum / (3 * places) as f64);
        }
        let [x, y] = [x, y].map(|values| tensor::<B, 4>(values, [2, 3, h, w], device));
        assert_near(&format!("SSIM {h}x{w}"), &floats(ssim(x, y)), &expected, 1e-5);
    }
}

/// Every filter at sizes that grow, shrink, stay and do both, pixel by pixel.
pub fn resampling_equals_its_definition<B: Backend>(device: &B::Device) {
    for ([h, w], [height, width]) in [
        ([5, 3], [7, 4]),
        ([16, 16], [3, 5]),
        ([1, 1], [4, 2]),
        ([4, 6], [4, 9]),
        ([7, 2], [3, 2]),
        ([3, 9], [8, 4]),
        ([40, 3], [60, 5]),
    ] {
        let x_bchw = SeedTree::new(1).at((h * 100 + w) as u64).normals(2 * 3 * h * w);
        for filter in [Filter::Area, Filter::Bicubic, Filter::Nearest, Filter::Linear] {
            let mut expected = Vec::new();
            for map in x_bchw.chunks(h * w) {
                for i in 0..height {
                    for j in 0..width {
                        expected.push(pixel(filter, map, [h, w], [height, width], [i, j]));
                    }
                }
            }
            let x_bchw = tensor::<B, 4>(x_bchw.clone(), [2, 3, h, w], device);
            let ours = resample(x_bchw, ScaleSize { height, width }, filter);
            assert_eq!(ours.dims(), [2, 3, height, width]);
            let what = format!("{filter:?}, {h}x{w} to {height}x{width}");
            assert_near(&what, &floats(ours), &expected, 1e-5);
        }
    }
}

/// One pixel of a resampled map.
fn pixel(filter: Filter, map: &[f32], from: [usize; 2], to: [usize; 2], at: [usize; 2]) -> f64 {
    let value = |y: usize, x: usize| f64::from(map[y * from[1] + x]);
    match filter {
        Filter::Area => {
            let window = |axis: usize| {
                let (n, m, i) = (from[axis], to[axis], at[axis]);
                i * n / m..((i + 1) * n).div_ceil(m)
            };
            let (rows, columns) = (window(0), window(1));
            let n = rows.len() * columns.len();
            let pixels = rows.flat_map(|y| columns.clone().map(move |x| (y, x)));
            pixels.map(|(y, x)| value(y, x)).sum::<f64>() / n as f64
        }
        Filter::Bicubic => {
            let taps = |axis: usize| {
                let (n, m, i) = (from[axis] as f64, to[axis] as f64, at[axis] as f64);
                let center = (i + 0.5) * n / m - 0.5;
                (-1..=2).map(move |tap| {
                    let place = center.floor() + f64::from(tap);
                    (place.clamp(0.0, n - 1.0) as usize, keys((center - place).abs()))
                })
            };
            let pixels = taps(0).flat_map(|(y, a)| taps(1).map(move |(x, b)| (y, x, a * b)));
            pixels.map(|(y, x, weight)| weight * value(y, x)).sum()
        }
        Filter::Nearest => value(at[0] * from[0] / to[0], at[1] * from[1] / to[1]),
        Filter::Linear => {
            let taps = |axis: usize| {
                let (n, m, i) = (from[axis] as f64, to[axis] as f64, at[axis] as f64);
                let (center, reach) = ((i + 0.5) * n / m, (n / m).max(1.0));
                let weight = move |y: usize| 1.0 - (y as f64 + 0.5 - center).abs() / reach;
                (0..from[axis]).map(move |y| (y, weight(y))).filter(|(_, weight)| *weight > 0.0)
            };
            let total = taps(0).map(|(_, a)| a).sum::<f64>() * taps(1).map(|(_, b)| b).sum::<f64>();
            let pixels = taps(0).flat_map(|(y, a)| taps(1).map(move |(x, b)| (y, x, a * b)));
            pixels.map(|(y, x, weight)| weight * value(y, x)).sum::<f64>() / total
        }
        _ => panic!("no law of {filter:?}"),
    }
}

/// Keys' cubic convolution kernel with a = -0.75.
fn keys(distance: f64) -> f64 {
    let (d, a) = (distance, -0.75);
    if d <= 1.0 {
        (a + 2.0) * d.powi(3) - (a + 3.0) * d.powi(2) + 1.0
    } else if d < 2.0 {
        a * (d.powi(3) - 5.0 * d.powi(2) + 8.0 * d - 4.0)
    } else {
        0.0
    }
}

/// Sums along the first, a middle and the last axis, long and short ones.
pub fn sums_along_every_axis_equal_f64<B: Backend>(device: &B::Device) {
    for shape in [[14, 3, 24], [5, 2, 1], [1, 7, 33], [30, 130, 2], [3, 1, 300], [2, 40, 64]] {
        let values = SeedTree::new(27).normals(shape.iter().product());
        let x = tensor::<B, 3>(values.clone(), shape, device);
        for axis in 0..3 {
            let inner: usize = shape[axis + 1..].iter().product();
            let mut expected = vec![0.0; values.len() / shape[axis]];
            for (i, value) in values.iter().enumerate() {
                expected[i / (inner * shape[axis]) * inner + i % inner] += f64::from(*value);
            }
            let what = format!("{shape:?} along {axis}");
            assert_near(&what, &floats(x.clone().sum_dim(axis)), &expected, 1e-5);
        }
    }
}

/// Functions that hardware has shortcuts for. A reciprocal of 12 bits is enough to spoil gradients:
/// that of a division goes through it.
pub fn elementary_functions_have_the_accuracy_of_f32<B: Backend>(device: &B::Device) {
    type Function<B> = (&'static str, fn(Tensor<B, 1>) -> Tensor<B, 1>, fn(f64) -> f64);
    let functions: [Function<B>; 8] = [
        ("reciprocal", Tensor::recip, f64::recip),
        ("division", |x| (x.clone() + 1.0) / x, |x| (x + 1.0) / x),
        ("root", Tensor::sqrt, f64::sqrt),
        ("exponential", Tensor::exp, f64::exp),
        ("logarithm", |x| (x + 1.0).log(), |x| (x + 1.0).ln()),
        ("tangent", Tensor::tanh, f64::tanh),
        ("sigmoid", sigmoid, |x| (1.0 + (-x).exp()).recip()),
        ("square", Tensor::square, |x| x * x),
    ];
    // Enough of them to fill the widest vector registers, and some more.
    let n = 1003;
    let x: Vec<f32> = SeedTree::new(10).uniforms(n).into_iter().map(|u| 0.01 + 8.0 * u).collect();
    for (name, ours, exact) in functions {
        let found = floats(ours(tensor(x.clone(), [n], device)));
        for (x, found) in widened(&x).into_iter().zip(found) {
            let expected = exact(x);
            let near = (found - expected).abs() <= 5e-6 * expected.abs();
            assert!(near, "{name} of {x} is {found}, not {expected}");
        }
    }
}

/// Hard targets, smoothed targets and target distributions, on logits large enough to overflow a
/// naive exponential.
pub fn cross_entropy_equals_f64<B: Backend>(device: &B::Device) {
    let (r, v) = (6, 37);
    let rows = |stream: &str| -> Vec<f32> {
        let normals = SeedTree::new(2).child(stream).normals(r * v);
        normals.into_iter().map(|x| 60.0 * x).collect()
    };
    let (logits, targets) = (rows("logits"), rows("targets"));
    let tokens: Vec<usize> = (0..r).map(|i| SeedTree::new(2).below(i as u64, v)).collect();

    let log_p: Vec<Vec<f64>> = logits.chunks(v).map(log_softmax).collect();
    let hard = |smoothing: f64| -> Vec<f64> {
        let row = |(log_p, token): (&Vec<f64>, &usize)| {
            let mean = log_p.iter().sum::<f64>() / v as f64;
            -(1.0 - smoothing) * log_p[*token] - smoothing * mean
        };
        log_p.iter().zip(&tokens).map(row).collect()
    };
    let soft = targets.chunks(v).zip(&log_p).map(|(target, log_p)| {
        log_softmax(target).iter().zip(log_p).map(|(t, log_p)| -t.exp() * log_p).sum()
    });
    let soft: Vec<f64> = soft.collect();

    let logits_blv = tensor::<B, 3>(logits, [2, r / 2, v], device);
    let targets_blv = tensor::<B, 3>(targets, [2, r / 2, v], device);
    let tokens: Vec<i64> = tokens.iter().map(|token| *token as i64).collect();
    let tokens_bl = Tensor::<B, 2, Int>::from_data(TensorData::new(tokens, [2, r / 2]), device);
    for smoothing in [0.0, 0.1] {
        let ours = floats(cross_entropy(logits_blv.clone(), tokens_bl.clone(), smoothing));
        assert_near(&format!("smoothing {smoothing}"), &ours, &hard(smoothing), 1e-5);
    }
    assert_near("soft", &floats(soft_cross_entropy(logits_blv, targets_blv)), &soft, 1e-5);
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let row = widened(row);
    let largest = row.iter().fold(f64::MIN, |a, b| a.max(*b));
    let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
    row.iter().map(|x| x - largest - sum.ln()).collect()
}

/// `(1 + t) cond - t uncond`, and the conditional logits themselves, bit for bit, without guidance.
pub fn guidance_mixes_as_stated<B: Backend>(device: &B::Device) {
    let shape = [2, 3, 11];
    let cond = SeedTree::new(4).child("cond").normals(66);
    let uncond = SeedTree::new(4).child("uncond").normals(66);
    for t in [0.0, 0.25, 3.0] {
        let ours = guide::<B>(
            tensor(cond.clone(), shape, device),
            tensor(uncond.clone(), shape, device),
            t,
        );
        let mixed = widened(&cond).into_iter().zip(widened(&uncond));
        let expected: Vec<f64> = mixed.map(|(c, u)| (1.0 + t) * c - t * u).collect();
        assert_near(
            &format!("t = {t}"),
            &floats(ours),
            &expected,
            if t == 0.0 { 0.0 } else { 1e-6 },
        );
    }
}

/// Top-k and top-p against their definition, which sorts.
pub fn filters_equal_sorting<B: Backend>(device: &B::Device) {
    for (seed, v) in [(0, 7), (1, 64), (2, 500)] {
        for spread in [0.01, 1.0, 30.0] {
            let row: Vec<f32> = SeedTree::new(seed).normals(v).iter().map(|x| x * spread).collect();
            let logits_rv = tensor::<B, 2>(row.clone(), [1, v], device);
            for (top_k, top_p) in [(1, 0.0), (5, 0.0), (0, 0.9), (6, 0.5), (v, 0.0), (0, 0.01)] {
                let filters = Filters { top_k, top_p };
                let ours = floats(filters.apply(logits_rv.clone()));
                let kept: Vec<bool> =
                    ours.iter().zip(&row).map(|(ours, x)| *ours == f64::from(*x)).collect();
                assert_eq!(kept, sorted(filters, &row), "v = {v}, spread {spread}, {filters:?}");
            }
        }
    }
}

/// Which codes the filters keep.
fn sorted(filters: Filters, row: &[f32]) -> Vec<bool> {
    let mut descending = row.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    let threshold =
        if filters.top_k > 0 { descending[filters.top_k.min(row.len()) - 1] } else { f32::MIN };
    let alive = |x: f32| x >= threshold;
    let weight = |x: f32| if alive(x) { f64::from(x).exp() } else { 0.0 };
    let total: f64 = row.iter().map(|x| weight(*x)).sum();
    let tail = |x: f32| row.iter().filter(|y| **y <= x).map(|y| weight(*y)).sum::<f64>() / total;
    let kept = row.iter().map(|x| {
        let in_nucleus =
            filters.top_p == 0.0 || tail(*x) > 1.0 - filters.top_p || *x == descending[0];
        alive(*x) && in_nucleus
    });
    kept.collect()
}

/// Frequencies are within five standard deviations of the probabilities, and a code of probability
/// zero is never drawn, not even by the smallest and the largest uniform number.
pub fn draws_follow_the_distribution<B: Backend>(device: &B::Device) {
    for v in [3usize, 10, 37, 512] {
        let mut row: Vec<f32> = SeedTree::new(v as u64).normals(v);
        // Removed codes first, last and in between.
        for i in [0, v / 2, v - 1] {
            row[i] = -1e9;
        }
        if v == 3 {
            row[1] = 0.0;
        }
        let n = 20_000;
        let mut uniforms = SeedTree::new(9).child("u").uniforms(n);
        uniforms[0] = 0.0;
        uniforms[1] = 1.0 - f32::EPSILON / 2.0;
        let logits_rv = tensor::<B, 2>(row.clone(), [1, v], device).repeat_dim(0, n);
        let mut counts = vec![0usize; v];
        for token in ints(draw(logits_rv, tensor(uniforms, [n], device))) {
            counts[token] += 1;
        }
        let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        for (i, count) in counts.iter().enumerate() {
            let p = f64::from(row[i]).exp() / total;
            if p == 0.0 {
                assert_eq!(*count, 0, "code {i} of {v} has probability zero");
            }
            let sigma = (p * (1.0 - p) / n as f64).sqrt();
            let share = *count as f64 / n as f64;
            assert!((share - p).abs() < 5.0 * sigma + 1e-4, "code {i} of {v}: {share} not {p}");
        }
    }
}

/// The code that is found has the largest cosine with its latent, and is looked up as a unit vector
/// at the place of the latent.
pub fn nearest_codes_are_nearest<B: Backend>(device: &B::Device) {
    let (c, v) = (tiny::CHANNELS, tiny::CODES);
    let size = ScaleSize { height: 3, width: 4 };
    let n = size.tokens();
    let unit = |row: &[f32]| {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        row.iter().map(|x| f64::from(*x) / length).collect::<Vec<f64>>()
    };
    let raw = SeedTree::new(6).child("codes").normals(v * c);
    let latents = SeedTree::new(6).child("latents").normals(2 * n * c);
    let codes: Vec<Vec<f64>> = raw.chunks(c).map(unit).collect();

    let raw_vc = tensor::<B, 2>(raw, [v, c], device);
    let tokenizer = tiny::tokenizer::<B>(device).with_codebook(|book| book.with_raw(raw_vc));
    let book = tokenizer.codebook();
    let tokens_n = book.nearest(tensor(latents.clone(), [2 * n, c], device));
    let tokens = ints(tokens_n.clone());
    for (latent, token) in latents.chunks(c).map(unit).zip(&tokens) {
        let cosine = |code: &Vec<f64>| code.iter().zip(&latent).map(|(a, b)| a * b).sum::<f64>();
        let best = codes.iter().map(cosine).fold(f64::MIN, f64::max);
        let found = cosine(&codes[*token]);
        assert!(found > best - 1e-6, "code {token} has cosine {found}, the nearest {best}");
    }

    let codes_bnc = tokenizer.look_up(tokens_n.reshape([2, n]));
    assert_eq!(codes_bnc.dims(), [2, n, c]);
    let expected: Vec<f64> = tokens.iter().flat_map(|token| codes[*token].clone()).collect();
    assert_near("look-up", &floats(codes_bnc), &expected, 1e-6);
}

/// A scatter that adds: a code that occurs many times in one batch counts as often.
pub fn codes_are_counted_with_their_repetitions<B: Backend>(device: &B::Device) {
    let v = 7;
    let mut expected = vec![0usize; v];
    let mut usage = CodeUsage::<B>::new(v, device);
    for batch in 0..3 {
        let draws = SeedTree::new(8).at(batch);
        // Code 6 never occurs.
        let tokens: Vec<i64> = (0..500).map(|i| draws.below(i, v - 1) as i64).collect();
        tokens.iter().for_each(|token| expected[*token as usize] += 1);
        usage.add(Tensor::from_data(TensorData::new(tokens, [500]), device));
    }
    assert_eq!(usage.counts(), expected);
}
