//! The operators of `sar-kernels` and their gradients, against their definitions in f64 on the host.
//!
//! Shapes: b batch, l tokens, h heads, e head dimension, d = h e; rows r = l b, token-major.

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::SeedTree;
use sar_kernels::{
    AttentionConfig, GroupMoments, GroupNormConfig, KeyValueCache, Visible, attention, conv2d,
    cross_entropy, double_sides, gated_residual, gelu_tanh, group_norm, group_norm_by,
    inverted_bottleneck, layer_norm_modulated, linear, soft_cross_entropy,
};

use crate::host::{assert_near, floats, normals, tensor, widened};

/// What the laws of this part run on.
pub type Subject<A> = A;

/// `y = x W + b`
pub fn linear_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    for [r, i, o] in [[1, 1, 1], [5, 7, 6], [130, 20, 33]] {
        let ours = |x: &[Tensor<A, 1>]| {
            let [x_ri, weight_io] = [x[0].clone().reshape([r, i]), x[1].clone().reshape([i, o])];
            flat(linear(x_ri, weight_io, x[2].clone()))
        };
        let exact = |x: &[Vec<f64>]| {
            let element = |at: usize| {
                let (row, col) = (at / o, at % o);
                x[2][col] + (0..i).map(|k| x[0][row * i + k] * x[1][k * o + col]).sum::<f64>()
            };
            (0..r * o).map(element).collect()
        };
        check::<A>(&format!("linear {r} {i} {o}"), &[r * i, i * o, o], ours, exact, device);
    }
}

/// `x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`
pub fn gelu_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    let ours = |x: &[Tensor<A, 1>]| gelu_tanh(x[0].clone() * 4.0);
    let gelu = |x: f64| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + u.tanh())
    };
    let exact = |x: &[Vec<f64>]| x[0].iter().map(|x| gelu(4.0 * x)).collect();
    check::<A>("gelu", &[203], ours, exact, device);
}

/// Normalized rows, modulated per image, and branches gated per image.
pub fn adaptive_layer_norm_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    for [l, b, d] in [[1, 1, 5], [3, 2, 10], [19, 3, 37]] {
        let sizes = [l * b * d, b * d, b * d];
        let rows = |x: &Tensor<A, 1>| x.clone().reshape([l * b, d]);
        let images = |x: &Tensor<A, 1>| x.clone().reshape([b, d]);
        let ours = |x: &[Tensor<A, 1>]| {
            flat(layer_norm_modulated(rows(&x[0]), images(&x[1]), images(&x[2]), 1e-3))
        };
        let exact = |x: &[Vec<f64>]| {
            let mut y = Vec::new();
            for (r, row) in x[0].chunks(d).enumerate() {
                let mean = row.iter().sum::<f64>() / d as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
                y.extend(row.iter().enumerate().map(|(c, value)| {
                    let at = r % b * d + c;
                    (value - mean) / (variance + 1e-3).sqrt() * (1.0 + x[1][at]) + x[2][at]
                }));
            }
            y
        };
        check::<A>(&format!("layer norm {l} {b} {d}"), &sizes, ours, exact, device);

        let sizes = [l * b * d, l * b * d, b * d];
        let ours =
            |x: &[Tensor<A, 1>]| flat(gated_residual(rows(&x[0]), rows(&x[1]), images(&x[2])));
        let exact = |x: &[Vec<f64>]| {
            (0..l * b * d).map(|at| x[0][at] + x[2][at % (b * d)] * x[1][at]).collect()
        };
        check::<A>(&format!("gate {l} {b} {d}"), &sizes, ours, exact, device);
    }
}

/// Attention of several pyramids, with normalized queries and keys and without.
pub fn attention_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    let until = |ends: Vec<usize>| ends.into_iter().map(|end| 0..end).collect::<Vec<_>>();
    for (b, h, e, prefix, ranges) in [
        (1, 1, 1, 0, until(vec![1])),
        (2, 3, 4, 0, until(vec![1, 5, 5, 5, 5])),
        (3, 2, 8, 0, until(vec![1, 5, 5, 5, 5, 11, 11, 11, 11, 11, 11])),
        (1, 2, 5, 0, until(vec![7; 7])),
        // The class token and the own scale; then one scale before, too.
        (2, 2, 4, 1, vec![0..1, 1..5, 1..5, 1..5, 1..5, 5..9, 5..9, 5..9, 5..9]),
        (2, 2, 4, 1, vec![0..1, 0..3, 0..3, 1..5, 1..5, 3..8, 3..8, 3..8]),
    ] {
        for normalize in [true, false] {
            let (l, d) = (ranges.len(), h * e);
            let visible = Visible::<A>::new(prefix, ranges.clone());
            let config = AttentionConfig { batch: b, heads: h, normalize };
            let ours = |x: &[Tensor<A, 1>]| {
                let qkv_r3d = x[0].clone().reshape([l * b, 3 * d]);
                flat(attention(qkv_r3d, x[1].clone(), &visible, config))
            };
            let exact = |x: &[Vec<f64>]| attended(&x[0], &x[1], (prefix, &ranges), config, e);
            let what = format!("attention {b} {h} {e} {prefix} {ranges:?} {normalize}");
            check::<A>(&what, &[l * b * 3 * d, h], ours, exact, device);
        }
    }
}

/// A query and a key of length zero count as of length 1e-12, and so do their gradients.
pub fn attention_of_zeros_has_finite_gradients<A: AutodiffBackend>(device: &A::Device) {
    let config = AttentionConfig { batch: 1, heads: 1, normalize: true };
    let mut qkv = SeedTree::new(32).normals(2 * 12);
    qkv[..8].fill(0.0);
    let qkv_r3d = tensor::<A, 2>(qkv, [2, 12], device).require_grad();
    let temperature_h = tensor::<A, 1>(vec![2.0], [1], device);
    let out = attention(qkv_r3d.clone(), temperature_h, &Visible::new(0, [0..1, 0..2]), config);
    let gradients = out.square().sum().backward();
    let found = floats(qkv_r3d.grad(&gradients).expect("a gradient reaches the projection"));
    assert!(found.iter().all(|x| x.is_finite()), "{found:?}");
}

/// A pyramid attended to scale by scale is the pyramid attended to at once, where all coarser scales are
/// kept, none but the first token, or that and one scale before.
pub fn cached_attention_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    let (b, h, e, scales) = (2, 3, 4, [1, 4, 9]);
    let (l, d) = (14, h * e);
    let seen = |starts: [usize; 3]| -> Vec<Range<usize>> {
        let ends = [1, 5, 14];
        (0..3).flat_map(|k| vec![starts[k]..ends[k]; scales[k]]).collect()
    };
    let cases = [([0, 0, 0], [1, 5, 0]), ([0, 1, 5], [0, 0, 0]), ([0, 0, 1], [1, 4, 0])];
    for ((starts, windows), normalize) in
        cases.into_iter().flat_map(|case| [(case, true), (case, false)])
    {
        let ranges = seen(starts);
        let config = AttentionConfig { batch: b, heads: h, normalize };
        let qkv = SeedTree::new(31).normals(l * b * 3 * d);
        let temperature = [0.7f32, 1.0, 2.0];
        let expected = attended(&widened(&qkv), &widened(&temperature), (1, &ranges), config, e);
        let qkv_r3d = tensor::<A::InnerBackend, 2>(qkv, [l * b, 3 * d], device);
        let most = windows.into_iter().max().map_or(0, |window| (1 + window).min(5));
        let mut cache = KeyValueCache::new(config, 1, most);
        let mut start = 0;
        let scales = [0, 1, 2].map(|k| {
            let n = scales[k];
            let rows = qkv_r3d.clone().slice_dim(0, start * b..(start + n) * b);
            start += n;
            cache.attend(rows, tensor(temperature.to_vec(), [h], device), windows[k])
        });
        let ours = floats(Tensor::cat(scales.to_vec(), 0));
        let what = format!("cached attention, keeping {windows:?}, {normalize}");
        assert_near(&what, &ours, &expected, 1e-5);
        assert_eq!(cache.tokens(), 1);
    }
}

fn attended(
    qkv: &[f64],
    temperature: &[f64],
    (prefix, ranges): (usize, &[Range<usize>]),
    config: AttentionConfig,
    e: usize,
) -> Vec<f64> {
    let AttentionConfig { batch: b, heads: h, normalize } = config;
    let d = h * e;
    let vector = |token: usize, image: usize, part: usize, head: usize| {
        let start = (token * b + image) * 3 * d + part * d + head * e;
        let vector = &qkv[start..start + e];
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        let length = if normalize && part < 2 { length } else { 1.0 };
        vector.iter().map(move |x| x / length)
    };
    let mut out = Vec::new();
    for (token, range) in ranges.iter().enumerate() {
        let keys: Vec<usize> =
            (0..ranges.len()).filter(|key| *key < prefix || range.contains(key)).collect();
        for image in 0..b {
            for (head, temperature) in temperature.iter().enumerate() {
                let score = |key: &usize| {
                    let pairs = vector(token, image, 0, head).zip(vector(*key, image, 1, head));
                    (temperature * pairs.map(|(q, k)| q * k).sum::<f64>()).exp()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let total: f64 = scores.iter().sum();
                let mut sum = vec![0.0; e];
                for (key, score) in keys.iter().zip(&scores) {
                    for (sum, value) in sum.iter_mut().zip(vector(*key, image, 2, head)) {
                        *sum += score / total * value;
                    }
                }
                out.extend(sum);
            }
        }
    }
    out
}

/// Kernels of 1 and 3, strides of 1 and 2, padding on all sides, on some, on none.
pub fn convolution_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    for ([b, c, o], [height, width], k, stride, padding) in [
        ([1, 1, 1], [1, 1], 1, 1, [0; 4]),
        ([2, 3, 4], [5, 4], 1, 1, [0; 4]),
        ([2, 3, 4], [5, 4], 3, 1, [1; 4]),
        ([1, 4, 2], [3, 17], 3, 1, [1; 4]),
        ([2, 2, 3], [6, 8], 3, 2, [0, 0, 1, 1]),
        ([1, 2, 1], [5, 7], 3, 1, [0; 4]),
        ([1, 2, 2], [1, 1], 3, 1, [1; 4]),
    ] {
        let [top, left, bottom, right] = padding;
        let rows = (height + top + bottom - k) / stride + 1;
        let cols = (width + left + right - k) / stride + 1;
        let ours = |x: &[Tensor<A, 1>]| {
            let x_bchw = x[0].clone().reshape([b, c, height, width]);
            let weight_ockk = x[1].clone().reshape([o, c, k, k]);
            flat(conv2d(x_bchw, weight_ockk, x[2].clone(), stride, padding))
        };
        let exact = |x: &[Vec<f64>]| {
            let mut y = Vec::new();
            for (at, bias) in (0..b * o).map(|at| (at, x[2][at % o])) {
                let (image, channel) = (at / o, at % o);
                for (row, col) in (0..rows * cols).map(|at| (at / cols, at % cols)) {
                    let mut sum = bias;
                    for (from, (i, j)) in
                        (0..c * k * k).map(|at| (at / (k * k), (at / k % k, at % k)))
                    {
                        let (y, z) = (row * stride + i, col * stride + j);
                        if (top..height + top).contains(&y) && (left..width + left).contains(&z) {
                            let pixel = ((image * c + from) * height + y - top) * width + z - left;
                            sum += x[0][pixel] * x[1][((channel * c + from) * k + i) * k + j];
                        }
                    }
                    y.push(sum);
                }
            }
            y
        };
        let sizes = [b * c * height * width, o * c * k * k, o];
        check::<A>(&format!("{k}x{k} of {height}x{width}"), &sizes, ours, exact, device);
    }
}

/// With an expansion and without, the input added and not, kernels of 3 and 5, strides of 1 and 2.
pub fn inverted_bottleneck_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    for ([b, c, e, o], [height, width], k, stride, padding) in [
        ([1, 2, 12, 3], [5, 4], 3, 1, [1; 4]),
        ([2, 3, 8, 3], [6, 8], 5, 1, [2; 4]),
        ([3, 2, 7, 4], [6, 8], 3, 2, [0, 0, 1, 1]),
        ([1, 4, 4, 2], [8, 6], 5, 2, [1, 1, 2, 2]),
        ([2, 3, 3, 3], [5, 7], 3, 1, [1; 4]),
    ] {
        let [top, left, bottom, right] = padding;
        let rows = (height + top + bottom - k) / stride + 1;
        let cols = (width + left + right - k) / stride + 1;
        let (expands, is_residual) = (e != c, [o, rows, cols] == [c, height, width]);
        let stream = SeedTree::new(31);
        let constants: Vec<Vec<f32>> = [e * c, e, e * k * k, e, o * e, o]
            .iter()
            .enumerate()
            .map(|(i, &n)| stream.at(i as u64).normals(n))
            .collect();
        let pair = |i: usize, shape: [usize; 4]| {
            let [weight, bias] = [constants[i].clone(), constants[i + 1].clone()];
            (tensor::<A, 4>(weight, shape, device), tensor::<A, 1>(bias, [shape[0]], device))
        };
        let ours = |x: &[Tensor<A, 1>]| {
            let x_bchw = x[0].clone().reshape([b, c, height, width]);
            let expand = expands.then(|| pair(0, [e, c, 1, 1]));
            let (depthwise, project) = (pair(2, [e, 1, k, k]), pair(4, [o, e, 1, 1]));
            flat(inverted_bottleneck(
                x_bchw,
                expand,
                depthwise,
                project,
                stride,
                padding,
                is_residual,
            ))
        };
        let wide: Vec<Vec<f64>> = constants.iter().map(|x| widened(x)).collect();
        // Channels of each of n pixels to others.
        let mixed = |x: &[f64], weight: &[f64], bias: &[f64], n: usize| -> Vec<f64> {
            let (to, from) = (bias.len(), weight.len() / bias.len());
            let element = |at: usize| {
                let (image, channel, p) = (at / (to * n), at / n % to, at % n);
                let term = |i: usize| weight[channel * from + i] * x[(image * from + i) * n + p];
                bias[channel] + (0..from).map(term).sum::<f64>()
            };
            (0..b * to * n).map(element).collect()
        };
        let relu6 = |x: Vec<f64>| -> Vec<f64> { x.iter().map(|x| x.clamp(0.0, 6.0)).collect() };
        let exact = |x: &[Vec<f64>]| {
            let inside = relu6(match expands {
                true => mixed(&x[0], &wide[0], &wide[1], height * width),
                false => x[0].clone(),
            });
            let element = |at: usize| {
                let (map, row, col) = (at / (rows * cols), at / cols % rows, at % cols);
                let tap = |t: usize| {
                    let (y, z) = (row * stride + t / k, col * stride + t % k);
                    let is_inside =
                        (top..height + top).contains(&y) && (left..width + left).contains(&z);
                    let pixel = || inside[(map * height + y - top) * width + z - left];
                    if is_inside { pixel() * wide[2][map % e * k * k + t] } else { 0.0 }
                };
                wide[3][map % e] + (0..k * k).map(tap).sum::<f64>()
            };
            let convolved = relu6((0..b * e * rows * cols).map(element).collect());
            let mut y = mixed(&convolved, &wide[4], &wide[5], rows * cols);
            if is_residual {
                y.iter_mut().zip(&x[0]).for_each(|(y, x)| *y += x);
            }
            y
        };
        let what = format!("bottleneck {c}, {e}, {o}, {k}x{k} of {height}x{width}");
        check::<A>(&what, &[b * c * height * width], ours, exact, device);
    }
}

/// With SiLU and without.
pub fn group_norm_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    for ([b, c, height, width], groups) in
        [([1, 2, 1, 2], 1), ([2, 6, 3, 5], 3), ([1, 32, 4, 4], 32)]
    {
        for silu in [true, false] {
            let config = GroupNormConfig { groups, epsilon: 1e-4, silu };
            let ours = |x: &[Tensor<A, 1>]| {
                let x_bchw = x[0].clone().reshape([b, c, height, width]);
                flat(group_norm(x_bchw, x[1].clone(), x[2].clone(), config))
            };
            let exact = |x: &[Vec<f64>]| {
                let pixels = height * width;
                let n = c / groups * pixels;
                let mut y = Vec::new();
                for (group, values) in x[0].chunks(n).enumerate() {
                    let mean = values.iter().sum::<f64>() / n as f64;
                    let variance =
                        values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                    y.extend(values.iter().enumerate().map(|(at, value)| {
                        let channel = group % groups * (c / groups) + at / pixels;
                        let y = (value - mean) / (variance + 1e-4).sqrt() * x[1][channel]
                            + x[2][channel];
                        if silu { y / (1.0 + (-y).exp()) } else { y }
                    }));
                }
                y
            };
            let (what, sizes) =
                (format!("group norm {c} in {groups}, {silu}"), [b * c * height * width, c, c]);
            check::<A>(&what, &sizes, ours, &exact, device);

            // By the moments of bands of one row.
            let what = format!("{what}, in bands");
            let ours = |x: &[Tensor<A, 1>]| {
                let x_bchw = x[0].clone().reshape([b, c, height, width]);
                flat(in_bands(x_bchw, x[1].clone(), x[2].clone(), config))
            };
            check::<A>(&what, &sizes, ours, &exact, device);
            // Without a tape, too, which other code may serve.
            let values = [0, 1, 2].map(|i| SeedTree::new(31).at(i as u64).normals(sizes[i]));
            let [x, gamma_c, beta_c] = values
                .each_ref()
                .map(|x| tensor::<A::InnerBackend, 1>(x.clone(), [x.len()], device));
            let x_bchw = x.reshape([b, c, height, width]);
            let ours = floats(in_bands(x_bchw, gamma_c, beta_c, config));
            assert_near(&what, &ours, &exact(&values.map(|x| widened(&x))), 1e-5);
        }
    }
}

fn in_bands<B: Backend>(
    x_bchw: Tensor<B, 4>,
    gamma_c: Tensor<B, 1>,
    beta_c: Tensor<B, 1>,
    config: GroupNormConfig,
) -> Tensor<B, 4> {
    let bands = x_bchw.split(1, 2);
    let moments = bands.iter().map(|band| GroupMoments::of(band.clone(), config.groups));
    let moments = moments.reduce(GroupMoments::and).expect("rows");
    let normalized = bands
        .into_iter()
        .map(|band| group_norm_by(band, &moments, gamma_c.clone(), beta_c.clone(), config));
    Tensor::cat(normalized.collect(), 2)
}

/// Every pixel twice.
pub fn double_sides_equals_f64<A: AutodiffBackend>(device: &A::Device) {
    let [maps, height, width] = [6, 3, 5];
    let ours =
        |x: &[Tensor<A, 1>]| flat(double_sides(x[0].clone().reshape([2, maps / 2, height, width])));
    let exact = |x: &[Vec<f64>]| {
        let pixel = |at: usize| {
            let (map, row, col) =
                (at / (4 * height * width), at / (2 * width) % (2 * height), at % (2 * width));
            x[0][(map * height + row / 2) * width + col / 2]
        };
        (0..4 * maps * height * width).map(pixel).collect()
    };
    check::<A>("doubled sides", &[maps * height * width], ours, exact, device);
}

/// Hard targets with smoothing and without; soft ones.
pub fn cross_entropies_equal_f64<A: AutodiffBackend>(device: &A::Device) {
    let log_p = |row: &[f64]| {
        let lse = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        row.iter().map(move |x| x - lse).collect::<Vec<f64>>()
    };
    for [r, v] in [[1, 2], [5, 37], [40, 129]] {
        let targets: Vec<usize> = (0..r).map(|row| row * 7 % v).collect();
        for smoothing in [0.0, 0.3] {
            let ours = |x: &[Tensor<A, 1>]| {
                let ints: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
                let target_r = Tensor::<A, 1, Int>::from_data(TensorData::new(ints, [r]), device);
                cross_entropy(x[0].clone().reshape([r, v]), target_r, smoothing)
            };
            let exact = |x: &[Vec<f64>]| {
                let rows = x[0].chunks(v).zip(&targets);
                let loss = rows.map(|(row, &target)| {
                    let log_p = log_p(row);
                    let mean = log_p.iter().sum::<f64>() / v as f64;
                    -(1.0 - smoothing) * log_p[target] - smoothing * mean
                });
                loss.collect()
            };
            check::<A>(&format!("cross-entropy {v} {smoothing}"), &[r * v], ours, exact, device);
        }
        let soft = SeedTree::new(41).at(v as u64).normals(r * v);
        let ours = |x: &[Tensor<A, 1>]| {
            let soft_rv = tensor::<A, 2>(soft.clone(), [r, v], device).require_grad();
            soft_cross_entropy(x[0].clone().reshape([r, v]), soft_rv)
        };
        let exact = |x: &[Vec<f64>]| {
            let rows = x[0].chunks(v).zip(soft.chunks(v));
            let loss = rows.map(|(row, soft)| {
                let pairs = log_p(row).into_iter().zip(log_p(&widened(soft)));
                pairs.map(|(log_p, log_target)| -log_target.exp() * log_p).sum()
            });
            loss.collect()
        };
        check::<A>(&format!("soft cross-entropy {v}"), &[r * v], ours, exact, device);
    }
}

fn flat<A: AutodiffBackend, const D: usize>(x: Tensor<A, D>) -> Tensor<A, 1> {
    let n = x.shape().num_elements();
    x.reshape([n])
}

/// Holds an operator of inputs of the given sizes to its definition: values, and the gradient of a
/// random weighting of them by central differences of the definition.
fn check<A: AutodiffBackend>(
    what: &str,
    sizes: &[usize],
    ours: impl Fn(&[Tensor<A, 1>]) -> Tensor<A, 1>,
    exact: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    device: &A::Device,
) {
    let stream = SeedTree::new(30);
    let values: Vec<Vec<f32>> =
        sizes.iter().enumerate().map(|(i, &n)| stream.at(i as u64).normals(n)).collect();
    let tracked: Vec<Tensor<A, 1>> = values
        .iter()
        .map(|x| tensor::<A, 1>(x.clone(), [x.len()], device).require_grad())
        .collect();
    let y = ours(&tracked);
    let mut wide: Vec<Vec<f64>> = values.iter().map(|x| widened(x)).collect();
    assert_near(what, &floats(y.clone()), &exact(&wide), 5e-6);

    let weights = normals::<A, 1>(stream.child("weights"), y.dims(), device);
    let weight = floats(weights.clone());
    let gradients = (y * weights).sum().backward();
    for (i, input) in tracked.iter().enumerate() {
        let found = floats(input.grad(&gradients).expect("a gradient reaches every input"));
        // Some elements of a large input stand for all.
        let stride = sizes[i].div_ceil(60);
        let mut weighted = |at: usize, by: f64| -> f64 {
            let before = wide[i][at];
            wide[i][at] = before + by;
            let sum = exact(&wide).iter().zip(&weight).map(|(y, w)| y * w).sum();
            wide[i][at] = before;
            sum
        };
        let h = 1e-5;
        let places: Vec<usize> = (0..sizes[i]).step_by(stride).collect();
        let expected: Vec<f64> =
            places.iter().map(|&at| (weighted(at, h) - weighted(at, -h)) / (2.0 * h)).collect();
        let found: Vec<f64> = places.iter().map(|&at| found[at]).collect();
        let scale = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        if scale > 1e-7 {
            assert_near(&format!("{what}, gradient {i}"), &found, &expected, 2e-5);
        }
    }
}
