//! Cross-entropy of rows of logits with classes or with the softmax of other logits.

use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::rows::piece;
use super::simd::{exp, max, sum_of, sum_of_pairs, vectorized};

/// The largest logit m, sum exp(x - m) and the log-sum-exp m + ln(sum) of a row.
#[inline(always)]
fn log_sum_exp(row: &[f32]) -> (f32, f32, f32) {
    let m = max(row);
    let sum = sum_of(row, |x| exp(x - m));
    (m, sum, m + sum.ln())
}

/// Loss and log-sum-exp of rows, with label smoothing s:
/// (1 - s) (lse - x[target]) + s (lse - mean(x)).
pub(crate) fn forward(logits: &[f32], targets: &[i64], smoothing: f32) -> (Vec<f32>, Vec<f32>) {
    let (rows, classes) = (targets.len(), classes_of(logits.len(), targets.len()));
    let (mut loss, mut lse) = (vec![0.0; rows], vec![0.0; rows]);
    let piece = piece(rows, classes, 1, 1);
    let pieces = loss.par_chunks_mut(piece).zip(lse.par_chunks_mut(piece));
    let pieces = pieces.zip(targets.par_chunks(piece)).zip(logits.par_chunks(piece * classes));
    pieces.for_each(|(((loss, lse), targets), logits)| {
        vectorized(
            #[inline(always)]
            || {
                let rows = loss.iter_mut().zip(lse).zip(targets).zip(logits.chunks_exact(classes));
                for (((loss, lse), &target), x) in rows {
                    // Relative to the largest logit, so that large logits cost no digits.
                    let (m, sum, log_sum) = log_sum_exp(x);
                    let hard = m - x[target as usize];
                    let even = match smoothing == 0.0 {
                        true => 0.0,
                        false => sum_of(x, |x| m - x) / classes as f32,
                    };
                    *loss = sum.ln() + (1.0 - smoothing) * hard + smoothing * even;
                    *lse = log_sum;
                }
            },
        );
    });
    (loss, lse)
}

/// The gradient of the logits: grad (softmax(x) - (1 - s) [target] - s / classes).
pub(crate) fn backward(
    logits: &[f32],
    targets: &[i64],
    smoothing: f32,
    lse: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let (rows, classes) = (targets.len(), classes_of(logits.len(), targets.len()));
    assert!(lse.len() == rows && grad.len() == rows);
    let even = smoothing / classes as f32;
    let mut out = vec![0.0; logits.len()];
    let piece = piece(rows, classes, 1, 1);
    let pieces = out.par_chunks_mut(piece * classes).zip(logits.par_chunks(piece * classes));
    let pieces = pieces.zip(targets.par_chunks(piece)).zip(lse.par_chunks(piece));
    pieces.zip(grad.par_chunks(piece)).for_each(|((((out, logits), targets), lse), grad)| {
        vectorized(
            #[inline(always)]
            || {
                let rows = out.chunks_exact_mut(classes).zip(logits.chunks_exact(classes));
                for (((out, x), &target), (lse, grad)) in
                    rows.zip(targets).zip(lse.iter().zip(grad))
                {
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = grad * (exp(x - lse) - even);
                    }
                    out[target as usize] -= grad * (1.0 - smoothing);
                }
            },
        );
    });
    out
}

/// Loss, log-sum-exp and the targets' log-sum-exp of rows of `classes` logits:
/// lse - sum softmax(targets) x.
pub(crate) fn soft_forward(
    logits: &[f32],
    targets: &[f32],
    classes: usize,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let rows = logits.len() / classes;
    assert!(logits.len() == rows * classes && logits.len() == targets.len());
    let [mut loss, mut lse, mut target_lse] = [(); 3].map(|()| vec![0.0; rows]);
    let piece = piece(rows, classes, 1, 1);
    let pieces = loss.par_chunks_mut(piece).zip(lse.par_chunks_mut(piece));
    let pieces = pieces.zip(target_lse.par_chunks_mut(piece));
    let pieces = pieces.zip(logits.par_chunks(piece * classes));
    pieces.zip(targets.par_chunks(piece * classes)).for_each(
        |((((loss, lse), target_lse), logits), targets)| {
            vectorized(
                #[inline(always)]
                || {
                    let rows = logits.chunks_exact(classes).zip(targets.chunks_exact(classes));
                    let outs = loss.iter_mut().zip(lse).zip(target_lse);
                    for ((x, t), ((loss, lse), target_lse)) in rows.zip(outs) {
                        let (m, sum, log_sum) = log_sum_exp(x);
                        let (n, target_sum, target_log_sum) = log_sum_exp(t);
                        let below = sum_of_pairs(x, t, |x, t| exp(t - n) * (m - x));
                        *loss = sum.ln() + below / target_sum;
                        *lse = log_sum;
                        *target_lse = target_log_sum;
                    }
                },
            );
        },
    );
    (loss, lse, target_lse)
}

/// The gradient of the logits: grad (softmax(x) - softmax(targets)).
pub(crate) fn soft_backward(
    logits: &[f32],
    targets: &[f32],
    lse: &[f32],
    target_lse: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let (rows, classes) = (grad.len(), classes_of(logits.len(), grad.len()));
    assert!(targets.len() == logits.len() && lse.len() == rows && target_lse.len() == rows);
    let mut out = vec![0.0; logits.len()];
    let piece = piece(rows, classes, 1, 1);
    let pieces = out.par_chunks_mut(piece * classes).zip(logits.par_chunks(piece * classes));
    let pieces = pieces.zip(targets.par_chunks(piece * classes)).zip(lse.par_chunks(piece));
    let pieces = pieces.zip(target_lse.par_chunks(piece)).zip(grad.par_chunks(piece));
    pieces.for_each(|(((((out, logits), targets), lse), target_lse), grad)| {
        vectorized(
            #[inline(always)]
            || {
                let rows = out.chunks_exact_mut(classes).zip(logits.chunks_exact(classes));
                let sums = lse.iter().zip(target_lse).zip(grad);
                for (((out, x), t), ((lse, target_lse), grad)) in
                    rows.zip(targets.chunks_exact(classes)).zip(sums)
                {
                    for ((out, x), t) in out.iter_mut().zip(x).zip(t) {
                        *out = grad * (exp(x - lse) - exp(t - target_lse));
                    }
                }
            },
        );
    });
    out
}

fn classes_of(len: usize, rows: usize) -> usize {
    let classes = (len / rows.max(1)).max(1);
    assert_eq!(len, rows * classes, "logits for another number of rows");
    classes
}

/// `[logits (r, v)]` with a class for every row.
#[derive(Clone, Debug)]
pub(super) struct Hard {
    pub(super) targets: Vec<i64>,
    pub(super) smoothing: f32,
}

impl Kernel<1> for Hard {
    type Saved = Vec<f32>;
    const READS: [bool; 1] = [true];

    fn forward(&self, [logits]: [&[f32]; 1]) -> (Vec<f32>, Vec<f32>) {
        forward(logits, &self.targets, self.smoothing)
    }

    fn backward(&self, pass: Pass<'_, Vec<f32>, 1>) -> [Option<Gradient>; 1] {
        let Self { targets, smoothing } = self;
        let of_logits = backward(pass.inputs[0], targets, *smoothing, pass.saved, pass.gradient);
        [Some(Gradient::New(of_logits))]
    }
}

/// `[logits (r, v), target logits (r, v)]`; the targets get no gradient.
#[derive(Clone, Debug)]
pub(super) struct Soft {
    pub(super) classes: usize,
}

impl Kernel<2> for Soft {
    type Saved = [Vec<f32>; 2];
    const READS: [bool; 2] = [true, true];

    fn forward(&self, [logits, targets]: [&[f32]; 2]) -> (Vec<f32>, [Vec<f32>; 2]) {
        let (loss, lse, target_lse) = soft_forward(logits, targets, self.classes);
        (loss, [lse, target_lse])
    }

    fn backward(&self, pass: Pass<'_, [Vec<f32>; 2], 2>) -> [Option<Gradient>; 2] {
        let ([logits, targets], [lse, target_lse]) = (pass.inputs, pass.saved);
        let of_logits = soft_backward(logits, targets, lse, target_lse, pass.gradient);
        [Some(Gradient::New(of_logits)), None]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    fn softmax(x: &[f64]) -> (f64, Vec<f64>) {
        let m = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|x| (x - m).exp()).sum();
        (m + sum.ln(), x.iter().map(|x| (x - m).exp() / sum).collect())
    }

    /// Loss of rows for given probabilities, and the gradient of the logits.
    fn exact(x: &[f64], probabilities: &[f64], v: usize, grad: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let rows = x.chunks(v).zip(probabilities.chunks(v)).zip(grad).map(|((x, p), grad)| {
            let (lse, q) = softmax(x);
            let loss: f64 = x.iter().zip(p).map(|(x, p)| p * (lse - x)).sum();
            (loss, q.iter().zip(p).map(|(q, p)| grad * (q - p)).collect::<Vec<f64>>())
        });
        let (loss, gradient): (Vec<f64>, Vec<Vec<f64>>) = rows.unzip();
        (loss, gradient.concat())
    }

    fn smoothed(targets: &[i64], v: usize, s: f64) -> Vec<f64> {
        let hot = |t: i64, i| if t as usize == i { 1.0 - s } else { 0.0 };
        targets.iter().flat_map(|&t| (0..v).map(move |i| hot(t, i) + s / v as f64)).collect()
    }

    #[test]
    fn classes() {
        for (rows, v) in [(1, 1), (3, 5), (4, 33), (90, 1000)] {
            for (size, s) in [(1.0, 0.0), (10.0, 0.1), (1e4, 0.0), (100.0, 1.0)] {
                let logits: Vec<f32> = random(rows * v, 1).iter().map(|x| x * size).collect();
                let targets: Vec<i64> = (0..rows as i64).map(|r| r * 7 % v as i64).collect();
                let grad = random(rows, 2);
                let p = smoothed(&targets, v, f64::from(s));
                let (loss, gradient) = exact(&wide(&logits), &p, v, &wide(&grad));
                let (got, lse) = forward(&logits, &targets, s);
                assert_close("loss", &got, &loss, 1e-6);
                let got = backward(&logits, &targets, s, &lse, &grad);
                assert_close("gradient", &got, &gradient, 1e-6 + 1e-7 * f64::from(size));
            }
        }
    }

    #[test]
    fn soft_targets() {
        for (rows, v) in [(1, 1), (3, 5), (4, 33), (90, 1000)] {
            for size in [1.0, 10.0, 300.0] {
                let logits: Vec<f32> = random(rows * v, 1).iter().map(|x| x * size).collect();
                let targets: Vec<f32> = random(rows * v, 2).iter().map(|x| x * size).collect();
                let grad = random(rows, 3);
                let p: Vec<f64> = wide(&targets).chunks(v).flat_map(|t| softmax(t).1).collect();
                let (loss, gradient) = exact(&wide(&logits), &p, v, &wide(&grad));
                let (got, lse, target_lse) = soft_forward(&logits, &targets, v);
                assert_close("loss", &got, &loss, 1e-6);
                let got = soft_backward(&logits, &targets, &lse, &target_lse, &grad);
                assert_close("gradient", &got, &gradient, 1e-6 + 1e-7 * f64::from(size));
            }
        }
    }

    #[test]
    fn adjoint_of_the_formula() {
        let v = 7;
        let (x, grad) = (wide(&random(3 * v, 1)), wide(&random(3, 2)));
        let p = smoothed(&[0, 6, 2], v, 0.1);
        let gradient = exact(&x, &p, v, &grad).1;
        assert_gradient(&x, &gradient, |x| {
            exact(x, &p, v, &grad).0.iter().zip(&grad).map(|(loss, g)| loss * g).sum()
        });
    }

    #[test]
    fn same_on_any_threads() {
        let (rows, v) = (200, 1001);
        let (x, t, grad) = (random(rows * v, 1), random(rows * v, 2), random(rows, 3));
        let targets: Vec<i64> = (0..rows as i64).collect();
        assert_same_on_threads(|| {
            let (loss, lse) = forward(&x, &targets, 0.1);
            let gradient = backward(&x, &targets, 0.1, &lse, &grad);
            let (soft, soft_lse, target_lse) = soft_forward(&x, &t, v);
            let soft_gradient = soft_backward(&x, &t, &soft_lse, &target_lse, &grad);
            vec![loss, lse, gradient, soft, soft_lse, target_lse, soft_gradient]
        });
    }
}
