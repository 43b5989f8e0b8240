//! Group normalization of images, with the activation that often follows.
//!
//! Within a group of `m` elements of an image, h = (x - mean) / std and z = gamma h + beta, with
//! gamma and beta of the channel; the output is z, or SiLU(z) = z sigmoid(z). Sums are taken in f32
//! over pieces of a channel and in f64 over the pieces, in an order that depends on the shape
//! alone.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::level::arch;
use super::simd::{Fma, exp, sum_of, sum_of_pairs, vectorized};

/// Elements that are summed up in f32.
const PIECE: usize = 1024;
/// The elements that are worth another thread.
const PARALLEL: usize = 1 << 16;

/// Shape and settings of a group normalization of `[batch, channels, spatial]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNorm {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    /// Pixels of an image.
    pub(crate) spatial: usize,
    /// Number of groups, a divisor of the channels.
    pub(crate) groups: usize,
    /// Added to the variance.
    pub(crate) eps: f32,
    /// Whether SiLU follows.
    pub(crate) silu: bool,
}

/// Gradients of the operands of a group normalization.
pub(crate) struct GroupNormGradients {
    pub(crate) x: Vec<f32>,
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
}

impl GroupNorm {
    /// The output, and for each group of each image mean and 1 / std.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
    ) -> (Vec<f32>, Vec<[f32; 2]>) {
        let (_, len) = self.group();
        assert_eq!(x.len(), self.batch * self.groups * len, "elements of a group normalization");
        let mut y = vec![0.0; x.len()];
        let mut statistics = vec![[0.0; 2]; self.batch * self.groups];
        if x.is_empty() {
            return (y, statistics);
        }
        let work = |(at, ((x, y), statistics)): (usize, Group)| {
            let [mean, variance] = moments_of(x);
            *statistics = [mean as f32, self.scale(variance)];
            self.normalize(at, [x, gamma, beta], *statistics, y);
        };
        if x.len() < PARALLEL {
            let groups = x.chunks_exact(len).zip(y.chunks_exact_mut(len));
            groups.zip(&mut statistics).enumerate().for_each(work);
        } else {
            let groups = x.par_chunks_exact(len).zip(y.par_chunks_exact_mut(len));
            groups.zip(&mut statistics).enumerate().for_each(work);
        }
        (y, statistics)
    }

    /// Mean and variance of each group of each image.
    pub(crate) fn moments(&self, x: &[f32]) -> [Vec<f32>; 2] {
        let (_, len) = self.group();
        assert_eq!(x.len(), self.batch * self.groups * len, "elements of groups");
        let of = |x| moments_of(x).map(|moment| moment as f32);
        let moments: Vec<[f32; 2]> = match x.len() < PARALLEL {
            true => x.chunks_exact(len).map(of).collect(),
            false => x.par_chunks_exact(len).map(of).collect(),
        };
        [0, 1].map(|at| moments.iter().map(|moments| moments[at]).collect())
    }

    /// The output by given means and variances.
    pub(crate) fn forward_by(
        &self,
        [x, gamma, beta]: [&[f32]; 3],
        [means, variances]: [&[f32]; 2],
    ) -> Vec<f32> {
        let (_, len) = self.group();
        assert_eq!(x.len(), self.batch * self.groups * len, "elements of a group normalization");
        let mut y = vec![0.0; x.len()];
        if x.is_empty() {
            return y;
        }
        let work = |(at, (x, y)): (usize, (&[f32], &mut [f32]))| {
            let statistics = [means[at], self.scale(f64::from(variances[at]))];
            self.normalize(at, [x, gamma, beta], statistics, y);
        };
        if x.len() < PARALLEL {
            x.chunks_exact(len).zip(y.chunks_exact_mut(len)).enumerate().for_each(work);
        } else {
            x.par_chunks_exact(len).zip(y.par_chunks_exact_mut(len)).enumerate().for_each(work);
        }
        y
    }

    /// 1 / std.
    fn scale(&self, variance: f64) -> f32 {
        (1.0 / (variance + f64::from(self.eps)).sqrt()) as f32
    }

    /// Writes group `at` of all images' groups, given mean and 1 / std.
    #[inline]
    fn normalize(
        &self,
        at: usize,
        [x, gamma, beta]: [&[f32]; 3],
        [mean, scale]: [f32; 2],
        y: &mut [f32],
    ) {
        let first = at % self.groups * (self.channels / self.groups);
        let planes = x.chunks_exact(self.spatial).zip(y.chunks_exact_mut(self.spatial));
        for (c, (x, y)) in planes.enumerate() {
            let (gamma, beta) = (gamma[first + c] * scale, beta[first + c]);
            let z = |x: f32| (x - mean).fma(gamma, beta);
            let pairs = y.iter_mut().zip(x);
            if self.silu {
                vectorized(
                    #[inline(always)]
                    || pairs.for_each(|(y, &x)| *y = z(x) * sigmoid(z(x))),
                );
            } else {
                vectorized(
                    #[inline(always)]
                    || pairs.for_each(|(y, &x)| *y = z(x)),
                );
            }
        }
    }

    /// The gradients, given what `forward` was given, its statistics, and the output's gradient.
    ///
    /// With dz = dy or dy SiLU'(z), SiLU'(z) = s (1 + z (1 - s)) where s = sigmoid(z):
    /// dbeta = sum of dz and dgamma = sum of h dz per channel, and
    /// dx = (gamma dz - (sum of gamma dz) / m - h (sum of gamma h dz) / m) / std, sums per group.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
        statistics: &[[f32; 2]],
        grad_out: &[f32],
    ) -> GroupNormGradients {
        let (channels, len) = self.group();
        assert_eq!(x.len(), self.batch * self.groups * len, "elements of a group normalization");
        assert_eq!(x.len(), grad_out.len(), "gradients of a group normalization");
        assert_eq!(
            statistics.len(),
            self.batch * self.groups,
            "statistics of a group normalization"
        );
        let mut dx = vec![0.0; x.len()];
        // Of each channel of each image the sums of dz and h dz.
        let mut sums = vec![[0.0f64; 2]; self.batch * self.channels];
        let arch = arch();
        let work = |(at, (((x, dy), dx), sums)): (usize, GroupGradient)| {
            let [mean, scale] = statistics[at];
            let first = at % self.groups * channels;
            let n = self.spatial;
            let mut total = [0.0; 2];
            for (c, sums) in sums.iter_mut().enumerate() {
                let (gamma, beta) = (gamma[first + c], beta[first + c]);
                let plane = c * n..(c + 1) * n;
                let pieces = x[plane.clone()].chunks(PIECE).zip(dy[plane.clone()].chunks(PIECE));
                for ((x, dy), dz) in pieces.zip(dx[plane].chunks_mut(PIECE)) {
                    let part = if self.silu {
                        arch.dispatch(Slopes::<true> { x, dy, dz, mean, scale, gamma, beta })
                    } else {
                        arch.dispatch(Slopes::<false> { x, dy, dz, mean, scale, gamma, beta })
                    };
                    sums[0] += f64::from(part[0]);
                    sums[1] += f64::from(part[1]);
                }
                total[0] += f64::from(gamma) * sums[0];
                total[1] += f64::from(gamma) * sums[1];
            }
            let [shift, slope] = total.map(|sum| (sum / len as f64) as f32 * scale);
            let slope = slope * scale;
            for (c, (x, dx)) in x.chunks_exact(n).zip(dx.chunks_exact_mut(n)).enumerate() {
                let gamma = gamma[first + c] * scale;
                vectorized(
                    #[inline(always)]
                    || {
                        for (dx, &x) in dx.iter_mut().zip(x) {
                            *dx = dx.fma(gamma, -(x - mean).fma(slope, shift));
                        }
                    },
                );
            }
        };
        if x.len() < PARALLEL {
            let groups = x.chunks(len.max(1)).zip(grad_out.chunks(len.max(1)));
            let groups = groups.zip(dx.chunks_mut(len.max(1))).zip(sums.chunks_mut(channels));
            groups.enumerate().for_each(work);
        } else {
            let groups = x.par_chunks(len).zip(grad_out.par_chunks(len));
            let groups = groups.zip(dx.par_chunks_mut(len)).zip(sums.par_chunks_mut(channels));
            groups.enumerate().for_each(work);
        }
        let mut totals = vec![[0.0f64; 2]; self.channels];
        for (at, sums) in sums.iter().enumerate() {
            let total = &mut totals[at % self.channels];
            *total = [total[0] + sums[0], total[1] + sums[1]];
        }
        GroupNormGradients {
            x: dx,
            gamma: totals.iter().map(|total| total[1] as f32).collect(),
            beta: totals.iter().map(|total| total[0] as f32).collect(),
        }
    }

    /// Channels and elements of a group.
    fn group(&self) -> (usize, usize) {
        assert_eq!(self.channels % self.groups, 0, "groups of channels");
        let channels = self.channels / self.groups;
        (channels, channels * self.spatial)
    }
}

/// Input, output and statistics of a group.
type Group<'a> = ((&'a [f32], &'a mut [f32]), &'a mut [f32; 2]);

/// Input, output gradient, input gradient and sums of a group.
type GroupGradient<'a> = (((&'a [f32], &'a [f32]), &'a mut [f32]), &'a mut [[f64; 2]]);

/// Mean, as f32 has it, and variance around that.
fn moments_of(x: &[f32]) -> [f64; 2] {
    let mean = mean_of(x, |x| x) as f32;
    [f64::from(mean), mean_of(x, |x| (x - mean) * (x - mean))]
}

/// The mean of `f(x)`.
fn mean_of(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let pieces = x.chunks(PIECE).map(|piece| {
        f64::from(vectorized(
            #[inline(always)]
            || sum_of(piece, &f),
        ))
    });
    pieces.sum::<f64>() / x.len() as f64
}

#[inline(always)]
fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + exp(-z))
}

/// Writes dz; returns the sums of dz and h dz.
struct Slopes<'a, const SILU: bool> {
    x: &'a [f32],
    dy: &'a [f32],
    dz: &'a mut [f32],
    mean: f32,
    scale: f32,
    gamma: f32,
    beta: f32,
}

impl<const SILU: bool> NullaryFnOnce for Slopes<'_, SILU> {
    type Output = [f32; 2];

    #[inline(always)]
    fn call(self) -> [f32; 2] {
        let Self { x, dy, dz, mean, scale, gamma, beta } = self;
        for ((dz, &dy), &x) in dz.iter_mut().zip(dy).zip(x) {
            *dz = dy;
            if SILU {
                let z = ((x - mean) * scale).fma(gamma, beta);
                let s = sigmoid(z);
                *dz *= s * z.fma(1.0 - s, 1.0);
            }
        }
        let h_dz = sum_of_pairs(x, dz, |x, dz| (x - mean) * dz) * scale;
        [sum_of(dz, |dz| dz), h_dz]
    }
}

/// `[x (b, c, h, w), gamma (c), beta (c)]`
impl Kernel<3> for GroupNorm {
    type Saved = Vec<[f32; 2]>;
    const READS: [bool; 3] = [true, true, true];

    fn forward(&self, [x, gamma, beta]: [&[f32]; 3]) -> (Vec<f32>, Vec<[f32; 2]>) {
        self.forward(x, gamma, beta)
    }

    fn backward(&self, pass: Pass<'_, Vec<[f32; 2]>, 3>) -> [Option<Gradient>; 3] {
        let [x, gamma, beta] = pass.inputs;
        let found = self.backward(x, gamma, beta, pass.saved, pass.gradient);
        [found.x, found.gamma, found.beta].map(|gradient| Some(Gradient::New(gradient)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    /// Numbers around `mean`.
    fn around(mean: f32, len: usize, seed: u64) -> Vec<f32> {
        random(len, seed).into_iter().map(|x| x + mean).collect()
    }

    /// Output and gradients (of the input, gamma, beta) by the definition, in f64.
    fn exact(norm: &GroupNorm, [x, gamma, beta, dy]: [&[f32]; 4]) -> [Vec<f64>; 4] {
        let n = norm.spatial;
        let per = norm.channels / norm.groups;
        let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut dgamma, mut dbeta) = (vec![0.0; norm.channels], vec![0.0; norm.channels]);
        for start in (0..x.len()).step_by(per * n) {
            let group = start..start + per * n;
            let m = group.len() as f64;
            let mean = group.clone().map(|i| f64::from(x[i])).sum::<f64>() / m;
            let variance = group.clone().map(|i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / m;
            let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
            let channel = |i: usize| i / n % norm.channels;
            let h = |i: usize| (f64::from(x[i]) - mean) * scale;
            let mut dh = vec![0.0; x.len()];
            for i in group.clone() {
                let c = channel(i);
                let z = f64::from(gamma[c]) * h(i) + f64::from(beta[c]);
                let s = if norm.silu { 1.0 / (1.0 + (-z).exp()) } else { 1.0 };
                y[i] = z * s;
                let slope = if norm.silu { s + z * s * (1.0 - s) } else { 1.0 };
                let dz = f64::from(dy[i]) * slope;
                dgamma[c] += dz * h(i);
                dbeta[c] += dz;
                dh[i] = dz * f64::from(gamma[c]);
            }
            // dh_j / dx_i = scale (1[i = j] - 1 / m - h_i h_j / m).
            let sum: f64 = group.clone().map(|i| dh[i]).sum();
            let dot: f64 = group.clone().map(|i| dh[i] * h(i)).sum();
            for i in group {
                dx[i] = scale * (dh[i] - sum / m - h(i) * dot / m);
            }
        }
        [y, dx, dgamma, dbeta]
    }

    fn check(norm: GroupNorm, mean: f32, tolerance: f64) {
        let len = norm.batch * norm.channels * norm.spatial;
        let (x, dy) = (around(mean, len, 1), random(len, 2));
        let (gamma, beta) = (around(1.0, norm.channels, 3), random(norm.channels, 4));
        let [y, dx, dgamma, dbeta] = exact(&norm, [&x, &gamma, &beta, &dy]);
        let (output, statistics) = norm.forward(&x, &gamma, &beta);
        let gradients = norm.backward(&x, &gamma, &beta, &statistics, &dy);
        let what = format!("{norm:?}");
        let close = |part: &str, ours: &[f32], exact: &[f64], floor: f64| {
            assert_close_above(&format!("{part} of {what}"), ours, exact, tolerance, floor);
        };
        close("output", &output, &y, 1e-3);
        // In a group of one element, terms as large as 1 / std cancel.
        let floor = statistics.iter().fold(1e-3f32, |a, x| a.max(0.1 * x[1]));
        close("input gradient", &gradients.x, &dx, f64::from(floor));
        close("gamma gradient", &gradients.gamma, &dgamma, 0.1);
        close("beta gradient", &gradients.beta, &dbeta, 0.1);
    }

    #[test]
    fn like_the_definition() {
        for silu in [false, true] {
            for (batch, channels, groups) in [(1, 1, 1), (2, 4, 2), (3, 5, 5), (1, 6, 3), (2, 3, 1)]
            {
                for spatial in [1, 3, 15, 16, 17, 35, 1030] {
                    check(
                        GroupNorm { batch, channels, spatial, groups, eps: 1e-5, silu },
                        0.3,
                        1e-5,
                    );
                }
            }
        }
    }

    #[test]
    fn large_groups() {
        let (batch, channels, groups, eps) = (1, 8, 2, 1e-6);
        for silu in [false, true] {
            let norm = GroupNorm { batch, channels, spatial: 125_001, groups, eps, silu };
            check(norm, 0.1, 2e-6);
            check(norm, 10.0, 1e-5);
        }
    }

    /// The gradient of the input is the slope of the output.
    #[test]
    fn slopes() {
        let norm =
            GroupNorm { batch: 1, channels: 4, spatial: 3, groups: 2, eps: 1e-5, silu: true };
        let (x, dy) = (random(12, 1), random(12, 2));
        let (gamma, beta) = (around(1.0, 4, 3), random(4, 4));
        let [_, dx, ..] = exact(&norm, [&x, &gamma, &beta, &dy]);
        let value = |x: &[f32]| -> f64 {
            let [y, ..] = exact(&norm, [x, &gamma, &beta, &dy]);
            y.iter().zip(&dy).map(|(y, &g)| y * f64::from(g)).sum()
        };
        for i in 0..12 {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[i] += 1.0 / 512.0;
            down[i] -= 1.0 / 512.0;
            let slope = (value(&up) - value(&down)) * 256.0;
            assert!((slope - dx[i]).abs() < 1e-3, "{i}: {slope} or {}", dx[i]);
        }
    }

    #[test]
    fn threads_change_nothing() {
        let norm =
            GroupNorm { batch: 2, channels: 12, spatial: 5000, groups: 6, eps: 1e-5, silu: true };
        let (x, dy) = (random(120_000, 1), random(120_000, 2));
        let (gamma, beta) = (around(1.0, 12, 3), random(12, 4));
        assert_same_on_threads(|| {
            let (y, statistics) = norm.forward(&x, &gamma, &beta);
            let gradients = norm.backward(&x, &gamma, &beta, &statistics, &dy);
            vec![y, gradients.x, gradients.gamma, gradients.beta]
        });
    }
}
