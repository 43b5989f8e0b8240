use super::product::product;
use super::*;
use crate::cpu::level::{CpuLevel, level};
use crate::cpu::simd::Fma;
use crate::cpu::testing::*;

/// Each of so many tokens of every scale sees a prefix, its own scale and `before` coarser ones.
fn windows(prefix: usize, scales: &[usize], before: usize) -> Seen {
    let start = |k: usize| -> usize { scales[..k].iter().sum() };
    let spans = (0..scales.len()).flat_map(|k| {
        let from = start(k.saturating_sub(before));
        let start_of = if from <= prefix { 0 } else { from };
        let span = Span { start: start_of as u32, end: start(k + 1).max(prefix) as u32 };
        vec![span; scales[k]]
    });
    Seen { prefix, spans: spans.collect() }
}

/// Query t of a scale sees all scales up to its own.
fn visible_of(scales: &[usize]) -> Seen {
    windows(0, &scales.iter().map(|s| s * s).collect::<Vec<_>>(), scales.len())
}

/// Output, gradient of qkv and of the temperature, all by the definition.
fn exact(
    a: &Attention,
    qkv: &[f64],
    temperature: &[f64],
    seen: &Seen,
    grad: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (b, l, h, e) = (a.batch, a.tokens, a.heads, a.head_dim);
    let at = |token, image, part, head| ((token * b + image) * 3 + part) * h * e + head * e;
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let length = |x: &[f64]| if a.normalize { dot(x, x).sqrt().max(1e-12) } else { 1.0 };
    let mut out = vec![0.0; l * b * h * e];
    let mut gqkv = vec![0.0; qkv.len()];
    let mut gtemperature = vec![0.0; h];
    for (image, head) in (0..b).flat_map(|i| (0..h).map(move |j| (i, j))) {
        let rows = |part| -> Vec<&[f64]> {
            (0..l).map(|t| &qkv[at(t, image, part, head)..][..e]).collect()
        };
        let (q, k, v) = (rows(0), rows(1), rows(2));
        let t = temperature[head];
        let (mut gq, mut gk) = (vec![vec![0.0; e]; l], vec![vec![0.0; e]; l]);
        for i in 0..l {
            let sees = |j: &usize| *j < seen.prefix || seen.spans[i].range().contains(j);
            let keys: Vec<usize> = (0..l).filter(sees).collect();
            let score = |j: &usize| t * dot(q[i], k[*j]) / (length(q[i]) * length(k[*j]));
            let scores: Vec<f64> = keys.iter().map(score).collect();
            let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - m).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| (s - m).exp() / sum).collect();
            let g = &grad[((i * b + image) * h + head) * e..][..e];
            let out = &mut out[((i * b + image) * h + head) * e..][..e];
            for (&j, p) in keys.iter().zip(&p) {
                (0..e).for_each(|c| out[c] += p * v[j][c]);
            }
            let mean = dot(g, out);
            for ((&j, p), score) in keys.iter().zip(&p).zip(&scores) {
                let d = p * (dot(g, v[j]) - mean);
                gtemperature[head] += d * score / t;
                for c in 0..e {
                    gqkv[at(j, image, 2, head) + c] += p * g[c];
                    gq[i][c] += d * t * k[j][c] / length(k[j]);
                    gk[j][c] += d * t * q[i][c] / length(q[i]);
                }
            }
        }
        for (part, x, g) in [(0, &q, &gq), (1, &k, &gk)] {
            for i in 0..l {
                let along =
                    if a.normalize && length(x[i]) > 1e-12 { dot(x[i], &g[i]) } else { 0.0 };
                for c in 0..e {
                    let n = length(x[i]);
                    gqkv[at(i, image, part, head) + c] = (g[i][c] - x[i][c] * along / n / n) / n;
                }
            }
        }
    }
    (out, gqkv, gtemperature)
}

fn example(
    batch: usize,
    heads: usize,
    head_dim: usize,
    normalize: bool,
    seen: &Seen,
) -> (Attention, [Vec<f32>; 3]) {
    let tokens = seen.spans.len();
    let n = batch * tokens * heads * head_dim;
    let temperature = random(heads, 3).iter().map(|x| 3.0 + 2.0 * x).collect();
    let a = Attention { batch, tokens, heads, head_dim, normalize };
    (a, [random(3 * n, 1), temperature, random(n, 2)])
}

#[test]
fn against_the_formula() {
    let patterns = [
        visible_of(&[1]),
        visible_of(&[1, 2, 3]),
        windows(0, &[5], 0),
        windows(0, &[1; 70], 70),
        visible_of(&[1, 2, 3, 4, 6, 9]),
        visible_of(&[12]),
        // A prefix and the own scale: within a vector of queries, and many of them.
        windows(1, &[1, 4, 9], 0),
        windows(1, &[1, 4, 9, 16, 36, 81, 100], 0),
        windows(1, &[1, 4, 9, 16, 36, 81], 1),
        windows(1, &[1, 4, 9, 16, 36, 81], 2),
        // More than one token before, longer than a piece of keys, and a gap of some.
        windows(100, &[100, 30, 130, 7], 0),
        windows(3, &[3, 1, 1, 1, 2, 2, 150, 40], 1),
        windows(5, &[2, 3, 4], 0),
        windows(0, &[3, 40, 7], 0),
        // Three vectors of queries that see the same.
        windows(0, &[40], 0),
    ];
    for visible in &patterns {
        for (b, h, e) in [(1, 1, 4), (2, 3, 8), (3, 1, 64), (1, 2, 17), (1, 1, 40)] {
            for normalize in [true, false] {
                let (a, [qkv, temperature, grad]) = example(b, h, e, normalize, visible);
                let want = exact(&a, &wide(&qkv), &wide(&temperature), visible, &wide(&grad));
                let (out, saved) = a.forward(&qkv, &temperature, visible);
                // Without normalization the scores are large.
                let slack = if normalize { 1.0 } else { 10.0 };
                assert_close("attention", &out, &want.0, slack * 1e-6);
                let got = a.backward(&qkv, &temperature, visible, &out, &saved, &grad);
                assert_close("gradient", &got.0, &want.1, slack * 2e-6);
                // A sum over everything, of both signs.
                let scale = wide(&grad).iter().map(|g| g.abs()).sum::<f64>();
                for (got, want) in got.1.iter().zip(&want.2) {
                    assert!((f64::from(*got) - want).abs() < 1e-7 * scale, "{got} for {want}");
                }
            }
        }
    }
}

/// A product against each of its numbers by itself, summed in the order of k: the same bits, and no
/// other number touched.
fn assert_product<const ROWS: bool>(add: bool, [m, n, depth]: [usize; 3]) {
    let (out_stride, a_stride, b_stride) = (n + 1, m.max(depth) + 3, n + 2);
    let a = random(a_stride * m.max(depth), 1);
    let b = random(b_stride * depth * LANES, 2);
    let before = random(out_stride * m * LANES, 3);
    let mut out = before.clone();
    let lanes = (out.as_chunks_mut().0, out_stride);
    product::<ROWS>(add, [m, n, depth], lanes, (&a, a_stride), (b.as_chunks().0, b_stride));
    for (at, (got, before)) in out.iter().zip(&before).enumerate() {
        let (i, j) = (at / (out_stride * LANES), at % (out_stride * LANES));
        let sum = (0..depth).fold(0.0f32, |sum, k| {
            let a = if ROWS { a[i * a_stride + k] } else { a[k * a_stride + i] };
            let b = b[k * b_stride * LANES + j];
            // Without vectors there is no instruction that rounds once.
            if level() == CpuLevel::Scalar { a * b + sum } else { a.fma(b, sum) }
        });
        let want = match j < n * LANES {
            true if add => before + sum,
            true => sum,
            false => *before,
        };
        let case = (ROWS, add, [m, n, depth], [i, j]);
        assert_eq!(got.to_bits(), want.to_bits(), "{case:?}: {got} for {want}");
    }
}

#[test]
fn products_are_sums_in_order() {
    // All sizes of strips, one after the other, of even and odd numbers of vectors.
    for (m, n) in (1..=26).flat_map(|m| (1..=5).map(move |n| (m, n))) {
        for (depth, add) in [(1, false), (7, false), (7, true)] {
            assert_product::<true>(add, [m, n, depth]);
            assert_product::<false>(add, [m, n, depth]);
        }
    }
}

#[test]
fn adjoint_of_the_formula() {
    for normalize in [true, false] {
        let visible = visible_of(&[1, 2]);
        let (a, x) = example(2, 2, 4, normalize, &visible);
        let [qkv, temperature, grad] = x.map(|x| wide(&x));
        let loss = |qkv: &[f64], temperature: &[f64]| -> f64 {
            exact(&a, qkv, temperature, &visible, &grad)
                .0
                .iter()
                .zip(&grad)
                .map(|(x, g)| x * g)
                .sum()
        };
        let (_, gqkv, gtemperature) = exact(&a, &qkv, &temperature, &visible, &grad);
        assert_gradient(&qkv, &gqkv, |qkv| loss(qkv, &temperature));
        assert_gradient(&temperature, &gtemperature, |temperature| loss(&qkv, temperature));
    }
}

#[test]
fn extremes() {
    // Scores of hundreds, and vectors of no length.
    let visible = visible_of(&[1, 2, 3]);
    let (a, [mut qkv, _, grad]) = example(2, 2, 8, true, &visible);
    let temperature = [200.0, 100.0];
    qkv[..5 * 8].fill(0.0);
    qkv[5 * 8..6 * 8].fill(1e-15);
    let (out, saved) = a.forward(&qkv, &temperature, &visible);
    let (want, ..) = exact(&a, &wide(&qkv), &wide(&temperature), &visible, &wide(&grad));
    assert_close("attention", &out, &want, 1e-4);
    let (gqkv, _) = a.backward(&qkv, &temperature, &visible, &out, &saved, &grad);
    assert!(gqkv.iter().all(|x| x.is_finite()));
}

#[test]
fn cache_agrees_with_the_mask() {
    let scales = [1, 4, 9, 25, 81];
    for (prefix, before) in [(0, 5), (0, 0), (1, 0), (1, 1), (1, 2), (1, 3)] {
        let visible = windows(prefix, &scales, before);
        let start = |k: usize| scales[..k].iter().sum::<usize>();
        let (b, h, e, capacity) = (2, 3, 8, 130);
        let (a, [qkv, temperature, _]) = example(b, h, e, true, &visible);
        let want = a.forward(&qkv, &temperature, &visible).0;
        let mut caches = [(); 2].map(|()| vec![f32::NAN; b * h * capacity * e]);
        let mut filled = 0;
        for (k, n) in scales.into_iter().enumerate() {
            let step = Attention { tokens: n, ..a };
            let row = b * h * e;
            let qkv = &qkv[3 * row * start(k)..][..3 * row * n];
            // The scales that the next one sees, or none.
            let next = (k + 1 < scales.len())
                .then(|| start(k + 1) - start((k + 1).saturating_sub(before)));
            let tokens = (filled + n).min(prefix + next.unwrap_or(0));
            let kept = Kept { filled, prefix, dropped: filled + n - tokens, tokens };
            let [k_cache, v_cache] = &mut caches;
            let got = step.attend_and_keep(qkv, &temperature, [k_cache, v_cache], capacity, kept);
            assert_close("cached", &got, &wide(&want[row * start(k)..][..row * n]), 1e-6);
            filled = tokens;
        }
        assert_eq!(filled, prefix);
    }
}

#[test]
fn same_on_any_threads() {
    let visible = visible_of(&[1, 2, 3, 4, 6, 9, 12]);
    for (b, h) in [(1, 1), (2, 3)] {
        let (a, [qkv, temperature, grad]) = example(b, h, 64, true, &visible);
        assert_same_on_threads(|| {
            let (out, saved) = a.forward(&qkv, &temperature, &visible);
            let (gqkv, gt) = a.backward(&qkv, &temperature, &visible, &out, &saved, &grad);
            vec![out, saved.0, gqkv, gt]
        });
    }
}
