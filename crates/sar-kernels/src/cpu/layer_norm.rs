//! Layer norm modulated per image, and the gated residual. Row r belongs to image r % batch.

use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::rows::{piece, sum_in_order};
use super::simd::{Fma, sum_of, sum_of_pairs, vectorized};

/// y = norm(x) (1 + scale) + shift, with norm(x) = (x - mean) / sqrt(variance + eps) along the row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNorm {
    pub(crate) batch: usize,
    pub(crate) dim: usize,
    pub(crate) eps: f32,
}

/// Mean and 1 / sqrt(variance + eps) of a row.
pub(crate) type Statistics = [f32; 2];

/// Tokens whose gradients are summed in one piece, at least.
const LEAST_TOKENS: usize = 16;

impl LayerNorm {
    /// `x` is `[rows, dim]`, `scale` and `shift` are `[batch, dim]`.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        scale: &[f32],
        shift: &[f32],
    ) -> (Vec<f32>, Vec<Statistics>) {
        let d = self.dim;
        let rows = rows_of(x.len(), self.batch, d);
        assert!(scale.len() == self.batch * d && shift.len() == self.batch * d);
        let mut y = vec![0.0; x.len()];
        let mut statistics = vec![[0.0; 2]; rows];
        let piece = piece(rows, d, self.batch, 1);
        let pieces = y.par_chunks_mut(piece * d).zip(x.par_chunks(piece * d));
        pieces.zip(statistics.par_chunks_mut(piece)).for_each(|((y, x), statistics)| {
            vectorized(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(statistics);
                    let images = scale.chunks_exact(d).zip(shift.chunks_exact(d)).cycle();
                    for (((y, x), statistics), (scale, shift)) in rows.zip(images) {
                        let mean = sum_of(x, |x| x) / d as f32;
                        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / d as f32;
                        let inverse = 1.0 / (variance + self.eps).sqrt();
                        *statistics = [mean, inverse];
                        for (((y, x), scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                            *y = ((x - mean) * inverse).fma(1.0 + scale, shift);
                        }
                    }
                },
            );
        });
        (y, statistics)
    }

    /// The gradients of `x`, `scale` and `shift`: with n = norm(x) and h = grad (1 + scale),
    /// (h - mean(h) - n mean(h n)) / sqrt(variance + eps), sum(grad n) and sum(grad).
    pub(crate) fn backward(
        &self,
        x: &[f32],
        scale: &[f32],
        statistics: &[Statistics],
        grad: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (b, d) = (self.batch, self.dim);
        let rows = rows_of(x.len(), b, d);
        assert!(grad.len() == x.len() && scale.len() == b * d && statistics.len() == rows);
        let mut gx = vec![0.0; x.len()];
        let piece = piece(rows, d, b, LEAST_TOKENS);
        let pieces = gx.par_chunks_mut(piece * d).zip(x.par_chunks(piece * d));
        let pieces = pieces.zip(grad.par_chunks(piece * d)).zip(statistics.par_chunks(piece));
        let parts = pieces.map(|(((gx, x), grad), statistics)| {
            // gscale, then gshift.
            let mut part = vec![0.0; 2 * b * d];
            let (gscale, gshift) = part.split_at_mut(b * d);
            vectorized(
                #[inline(always)]
                || {
                    let rows =
                        gx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d));
                    for (r, (((gx, x), grad), &[mean, inverse])) in rows.zip(statistics).enumerate()
                    {
                        let image = r % b * d..(r % b + 1) * d;
                        let (scale, gscale) = (&scale[image.clone()], &mut gscale[image.clone()]);
                        let gshift = &mut gshift[image];
                        // gx holds h for the sums.
                        for (((h, &grad), scale), gshift) in
                            gx.iter_mut().zip(grad).zip(scale).zip(gshift)
                        {
                            *h = grad * (1.0 + scale);
                            *gshift += grad;
                        }
                        let mean_h = sum_of(gx, |h| h) / d as f32;
                        let mean_hn =
                            inverse * sum_of_pairs(gx, x, |h, x| h * (x - mean)) / d as f32;
                        for (((gx, x), grad), gscale) in gx.iter_mut().zip(x).zip(grad).zip(gscale)
                        {
                            let n = (x - mean) * inverse;
                            *gscale = n.fma(*grad, *gscale);
                            *gx = inverse * n.fma(-mean_hn, *gx - mean_h);
                        }
                    }
                },
            );
            part
        });
        let mut gscale = sum_in_order(parts.collect(), 2 * b * d);
        let gshift = gscale.split_off(b * d);
        (gx, gscale, gshift)
    }
}

/// x + gate branch, with `gate` `[batch, dim]`.
pub(crate) fn gated(x: &[f32], branch: &[f32], gate: &[f32], batch: usize) -> Vec<f32> {
    let d = gate.len() / batch;
    let rows = rows_of(x.len(), batch, d);
    assert_eq!(x.len(), branch.len(), "a residual of another size");
    let mut y = vec![0.0; x.len()];
    let piece = d * piece(rows, d, batch, 1);
    y.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(branch.par_chunks(piece)).for_each(
        |((y, x), branch)| {
            vectorized(
                #[inline(always)]
                || {
                    let tokens = y.chunks_exact_mut(batch * d).zip(x.chunks_exact(batch * d));
                    for ((y, x), branch) in tokens.zip(branch.chunks_exact(batch * d)) {
                        for (((y, &x), branch), gate) in y.iter_mut().zip(x).zip(branch).zip(gate) {
                            *y = branch.fma(*gate, x);
                        }
                    }
                },
            );
        },
    );
    y
}

/// The gradients of `branch` and `gate`; that of `x` is `grad` itself.
pub(crate) fn gated_backward(
    branch: &[f32],
    gate: &[f32],
    grad: &[f32],
    batch: usize,
) -> (Vec<f32>, Vec<f32>) {
    let d = gate.len() / batch;
    let rows = rows_of(grad.len(), batch, d);
    assert_eq!(grad.len(), branch.len(), "a residual of another size");
    let mut gbranch = vec![0.0; grad.len()];
    let piece = d * piece(rows, d, batch, LEAST_TOKENS);
    let pieces = gbranch.par_chunks_mut(piece).zip(branch.par_chunks(piece));
    let parts = pieces.zip(grad.par_chunks(piece)).map(|((gbranch, branch), grad)| {
        let mut ggate = vec![0.0; batch * d];
        vectorized(
            #[inline(always)]
            || {
                let tokens =
                    gbranch.chunks_exact_mut(batch * d).zip(branch.chunks_exact(batch * d));
                for ((gbranch, branch), grad) in tokens.zip(grad.chunks_exact(batch * d)) {
                    let gates = gate.iter().zip(&mut ggate);
                    for (((gbranch, branch), &grad), (gate, ggate)) in
                        gbranch.iter_mut().zip(branch).zip(grad).zip(gates)
                    {
                        *gbranch = grad * gate;
                        *ggate = branch.fma(grad, *ggate);
                    }
                }
            },
        );
        ggate
    });
    let ggate = sum_in_order(parts.collect(), batch * d);
    (gbranch, ggate)
}

fn rows_of(len: usize, batch: usize, dim: usize) -> usize {
    assert_eq!(len % (batch * dim), 0, "rows that are not of whole tokens");
    len / dim
}

/// `[x (l b, d), scale (b, d), shift (b, d)]`
impl Kernel<3> for LayerNorm {
    type Saved = Vec<Statistics>;
    const READS: [bool; 3] = [true, true, false];

    fn forward(&self, [x, scale, shift]: [&[f32]; 3]) -> (Vec<f32>, Vec<Statistics>) {
        self.forward(x, scale, shift)
    }

    fn backward(&self, pass: Pass<'_, Vec<Statistics>, 3>) -> [Option<Gradient>; 3] {
        let [x, scale, _] = pass.inputs;
        let (of_x, of_scale, of_shift) = self.backward(x, scale, pass.saved, pass.gradient);
        [of_x, of_scale, of_shift].map(|gradient| Some(Gradient::New(gradient)))
    }
}

/// `[x (l b, d), branch (l b, d), gate (b, d)]`
#[derive(Clone, Debug)]
pub(super) struct GatedResidual {
    pub(super) batch: usize,
}

impl Kernel<3> for GatedResidual {
    type Saved = ();
    const READS: [bool; 3] = [false, true, true];

    fn forward(&self, [x, branch, gate]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        (gated(x, branch, gate, self.batch), ())
    }

    fn backward(&self, pass: Pass<'_, (), 3>) -> [Option<Gradient>; 3] {
        let [_, branch, gate] = pass.inputs;
        let (of_branch, of_gate) = gated_backward(branch, gate, pass.gradient, self.batch);
        [Some(Gradient::Same), Some(Gradient::New(of_branch)), Some(Gradient::New(of_gate))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    const EPS: f64 = 1e-6;

    /// Statistics, y, and the gradients of x, scale and shift.
    struct Exact {
        y: Vec<f64>,
        gx: Vec<f64>,
        gscale: Vec<f64>,
        gshift: Vec<f64>,
    }

    fn exact(b: usize, d: usize, x: &[f64], scale: &[f64], shift: &[f64], grad: &[f64]) -> Exact {
        let n = x.len();
        let mut e = Exact {
            y: vec![0.0; n],
            gx: vec![0.0; n],
            gscale: vec![0.0; b * d],
            gshift: vec![0.0; b * d],
        };
        for r in 0..n / d {
            let (x, g, m) = (&x[r * d..][..d], &grad[r * d..][..d], r % b * d);
            let mean = x.iter().sum::<f64>() / d as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            let inverse = 1.0 / (variance + EPS).sqrt();
            let n: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
            let h: Vec<f64> = (0..d).map(|i| g[i] * (1.0 + scale[m + i])).collect();
            let mean_h = h.iter().sum::<f64>() / d as f64;
            let mean_hn = (0..d).map(|i| h[i] * n[i]).sum::<f64>() / d as f64;
            for i in 0..d {
                e.y[r * d + i] = n[i] * (1.0 + scale[m + i]) + shift[m + i];
                e.gx[r * d + i] = inverse * (h[i] - mean_h - n[i] * mean_hn);
                e.gscale[m + i] += g[i] * n[i];
                e.gshift[m + i] += g[i];
            }
        }
        e
    }

    #[test]
    fn against_the_formula() {
        for (b, tokens, d) in [(1, 3, 5), (2, 7, 33), (3, 5, 16), (3, 150, 165)] {
            for offset in [0.0, 30.0] {
                let n = b * tokens * d;
                let x: Vec<f32> = random(n, 1).iter().map(|x| 3.0 * x + offset).collect();
                let (scale, shift, grad) = (random(b * d, 2), random(b * d, 3), random(n, 4));
                let norm = LayerNorm { batch: b, dim: d, eps: EPS as f32 };
                let e = exact(b, d, &wide(&x), &wide(&scale), &wide(&shift), &wide(&grad));
                let slack = 1.0 + f64::from(offset);
                let (y, statistics) = norm.forward(&x, &scale, &shift);
                assert_close("y", &y, &e.y, slack * 1e-6);
                let (gx, gscale, gshift) = norm.backward(&x, &scale, &statistics, &grad);
                assert_close("gx", &gx, &e.gx, slack * 1e-6);
                assert_close("gscale", &gscale, &e.gscale, slack * 1e-6);
                assert_close("gshift", &gshift, &e.gshift, 1e-6);
            }
        }
    }

    #[test]
    fn adjoint_of_the_formula() {
        let (b, d, n) = (2, 7, 42);
        let (x, scale) = (wide(&random(n, 1)), wide(&random(b * d, 2)));
        let (shift, grad) = (wide(&random(b * d, 3)), wide(&random(n, 4)));
        let loss = |x: &[f64], scale: &[f64], shift: &[f64]| -> f64 {
            exact(b, d, x, scale, shift, &grad).y.iter().zip(&grad).map(|(y, g)| y * g).sum()
        };
        let e = exact(b, d, &x, &scale, &shift, &grad);
        assert_gradient(&x, &e.gx, |x| loss(x, &scale, &shift));
        assert_gradient(&scale, &e.gscale, |scale| loss(&x, scale, &shift));
        assert_gradient(&shift, &e.gshift, |shift| loss(&x, &scale, shift));
    }

    #[test]
    fn constant_rows() {
        let norm = LayerNorm { batch: 1, dim: 20, eps: 1e-6 };
        let (y, statistics) = norm.forward(&[0.1; 20], &[0.5; 20], &[0.25; 20]);
        assert_close("y", &y, &[0.25; 20], 1e-4);
        assert!((statistics[0][1] - 1000.0).abs() < 1.0);
    }

    #[test]
    fn gated_residual() {
        for (b, tokens, d) in [(1, 3, 5), (3, 150, 165)] {
            let n = b * tokens * d;
            let (x, branch, gate, grad) =
                (random(n, 1), random(n, 2), random(b * d, 3), random(n, 4));
            let mut want = [vec![0.0; n], vec![0.0; n], vec![0.0; b * d]];
            for i in 0..n {
                let m = i % (b * d);
                let [x, branch, gate, grad] = [x[i], branch[i], gate[m], grad[i]].map(f64::from);
                want[0][i] = x + gate * branch;
                want[1][i] = gate * grad;
                want[2][m] += branch * grad;
            }
            assert_close("y", &gated(&x, &branch, &gate, b), &want[0], 1e-6);
            let (gbranch, ggate) = gated_backward(&branch, &gate, &grad, b);
            assert_close("gbranch", &gbranch, &want[1], 1e-6);
            assert_close("ggate", &ggate, &want[2], 1e-6);
        }
    }

    #[test]
    fn same_on_any_threads() {
        let (b, d, n) = (3, 300, 3 * 300 * 200);
        let (x, grad) = (random(n, 1), random(n, 2));
        let (scale, shift) = (random(b * d, 3), random(b * d, 4));
        assert_same_on_threads(|| {
            let norm = LayerNorm { batch: b, dim: d, eps: 1e-6 };
            let (y, statistics) = norm.forward(&x, &scale, &shift);
            let (gx, gscale, gshift) = norm.backward(&x, &scale, &statistics, &grad);
            let (gbranch, ggate) = gated_backward(&x, &scale, &grad, b);
            let sum = gated(&x, &grad, &scale, b);
            vec![y, statistics.into_flattened(), gx, gscale, gshift, gbranch, ggate, sum]
        });
    }
}
