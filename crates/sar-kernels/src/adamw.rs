//! One AdamW step of one parameter, and what clipping needs.

use burn::tensor::{Tensor, backend::Backend};

/// The numbers of a step; bias correction is folded into them.
///
/// ```text
/// g = factor g                                        (0 if the factor is 0, whatever g is)
/// p -= decay p
/// m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
/// p -= rate m / (sqrt(v) / correction + eps)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Decay of the mean of gradients, b1.
    pub beta1: f64,
    /// Decay of the mean of squares, b2.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Learning rate times weight decay.
    pub decay: f64,
    /// Learning rate over `1 - b1^t`.
    pub rate: f64,
    /// Root of `1 - b2^t`.
    pub correction: f64,
}

/// Moves a parameter and its moments.
///
/// # Shapes
/// - `p_n`, `g_n` and the moments, mean and mean of squares: `[n]`
/// - `factor_1`: `[1]`, multiplies the gradient
/// - output: the parameter and its moments
///
/// # Panics
/// If the shapes do not fit.
pub fn adamw<B: Backend>(
    p_n: Tensor<B, 1>,
    moments_n: [Tensor<B, 1>; 2],
    g_n: Tensor<B, 1>,
    factor_1: Tensor<B, 1>,
    step: AdamWStep,
) -> (Tensor<B, 1>, [Tensor<B, 1>; 2]) {
    let [mean, square] = &moments_n;
    let n = p_n.dims();
    let fits = [mean, square, &g_n].iter().all(|x| x.dims() == n) && factor_1.dims() == [1];
    assert!(fits, "a parameter, its moments and its gradient of one length");
    #[cfg(feature = "flex")]
    let dtypes = [&p_n, mean, square, &g_n, &factor_1].map(Tensor::dtype);
    #[cfg(feature = "flex")]
    if crate::cpu::serves_untracked::<B>(&dtypes) {
        return crate::cpu::adamw(p_n, moments_n, g_n, factor_1, step);
    }
    let AdamWStep { beta1, beta2, eps, decay, rate, correction } = step;
    let zero = factor_1.clone().equal_elem(0.0).expand(n);
    let g_n = (g_n * factor_1).mask_fill(zero, 0.0);
    let [mean, square] = moments_n;
    let mean = mean * beta1 + g_n.clone() * (1.0 - beta1);
    let square = square * beta2 + g_n.square() * (1.0 - beta2);
    let denominator = square.clone().sqrt() / correction + eps;
    let p_n = p_n * (1.0 - decay) - mean.clone() / denominator * rate;
    (p_n, [mean, square])
}

/// The sum of all squares, `[n]` to `[1]`, in an order that the length alone fixes.
pub fn sum_of_squares<B: Backend>(x_n: Tensor<B, 1>) -> Tensor<B, 1> {
    #[cfg(feature = "flex")]
    if crate::cpu::serves_untracked::<B>(&[x_n.dtype()]) {
        return crate::cpu::sum_of_squares(x_n);
    }
    // A full sum over millions of elements is not deterministic on every backend, sums along rows
    // of bounded length are.
    let [n] = x_n.dims();
    let width = [4096, 1024, 256, 64, 16, 4, 1].into_iter().find(|w| n % w == 0).unwrap_or(1);
    x_n.reshape([n / width, width]).square().sum_dim(1).sum_dim(0).reshape([1])
}
