//! VAR's residual pyramid: every scale adds to one full-size map (VAR, algorithms 1 and 2).
//!
//! ```text
//! f_hat_k = f_hat_{k-1} + phi_k(bicubic(q_k -> S)),   phi_k(x) = x/2 + conv3x3(x)/2
//! ```
//! Shapes: b batch, c code channels, h w positions.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSize, resample};
use sar_kernels::convolve;

use crate::Codebook;
use crate::block::conv;

/// A codebook that every scale shares, and the convolutions that smooth enlarged code maps.
#[derive(Module, Debug)]
pub struct Residual<B: Backend> {
    pub(crate) codebook: Codebook<B>,
    phi: Vec<Conv2d<B>>,
}

impl<B: Backend> Residual<B> {
    pub(crate) fn new(codebook: Codebook<B>, convolutions: usize, device: &B::Device) -> Self {
        let [_, c] = codebook.raw_shape();
        Self { codebook, phi: (0..convolutions).map(|_| conv([c, c], 3, device)).collect() }
    }

    /// What the codes of scale `k` add to the map.
    ///
    /// # Shapes
    /// - `q_bchw`: `[b, c, h_k, w_k]`
    /// - output: `[b, c, h, w]` of the last scale
    pub(crate) fn enlarge(
        &self,
        q_bchw: Tensor<B, 4>,
        scales: &[ScaleSize],
        k: usize,
    ) -> Tensor<B, 4> {
        let x = resample(q_bchw, scales[scales.len() - 1], Filter::Bicubic);
        let phi = &self.phi[phi_index(self.phi.len(), k, scales.len())];
        x.clone() * 0.5 + convolve(phi, x) * 0.5
    }
}

/// Which of `n` convolutions scale `k` of `n_scales` takes: the one whose tick is nearest to
/// `k / (K - 1)`, the first of two that are as near.
///
/// The ticks are numpy's `linspace(low, 1 - low, n)` in f64, with `low = 1/12` for n = 4 and
/// `1/(2n)` otherwise. The published K = 10 with n = 4 has exact ties, so that every rounding counts.
pub(crate) fn phi_index(n: usize, k: usize, n_scales: usize) -> usize {
    let low = if n == 4 { 1.0 / 3.0 } else { 1.0 / 2.0 } / n as f64;
    let high = 1.0 - low;
    let step = (high - low) / (n as f64 - 1.0);
    let ratio = if n_scales == 1 { 0.0 } else { k as f64 / (n_scales as f64 - 1.0) };
    let mut nearest = (0, f64::INFINITY);
    for i in 0..n {
        let tick = match i {
            0 => low,
            _ if i == n - 1 => high,
            _ => i as f64 * step + low,
        };
        let distance = (tick - ratio).abs();
        if distance < nearest.1 {
            nearest = (i, distance);
        }
    }
    nearest.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_take_the_convolutions_that_numpy_gives_them() {
        let check = |n: usize, table: &[usize]| {
            let found: Vec<_> = (0..table.len()).map(|k| phi_index(n, k, table.len())).collect();
            assert_eq!(found, table, "{n} convolutions");
        };
        // The published table, with ties at k = 2, 7 (in f64 not all of them exact).
        check(4, &[0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
        check(4, &[0, 0, 1, 2, 2, 3, 3]);
        check(4, &[0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]);
        check(5, &[0, 0, 1, 2, 3, 4, 4]);
        check(3, &[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]);
        check(2, &[0, 0, 0, 1, 1]);
        check(6, &[0, 0, 1, 1, 2, 3, 3, 4, 5, 5]);
        check(1, &[0, 0, 0, 0, 0]);
        // One per scale is the identity, also where it is four of four.
        for n in 1..=16 {
            check(n, &(0..n).collect::<Vec<_>>());
        }
    }
}
