//! Loops that the compiler vectorizes for the CPU at hand.

use super::level::arch;

/// Runs a loop compiled for the vector instructions of the chosen level (fused multiply-add
/// included).
///
/// The closure and what it calls must be inlined (`#[inline(always)] || ..`), else they are compiled
/// for the oldest CPU, where a fused multiply-add is a function call.
#[inline(always)]
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    arch().dispatch(work)
}

/// `self * factor + term`, rounded once where the target has an instruction for it. WebAssembly has none, and
/// what it would call in its place takes as long as fifty products: there it is rounded twice. Products of vectors
/// (`mul_add_e_f32s`) are so at [`CpuLevel::Scalar`](super::level::CpuLevel::Scalar), too.
pub(crate) trait Fma {
    fn fma(self, factor: Self, term: Self) -> Self;
}

impl Fma for f32 {
    #[inline(always)]
    fn fma(self, factor: f32, term: f32) -> f32 {
        if cfg!(target_arch = "wasm32") { self * factor + term } else { self.mul_add(factor, term) }
    }
}

/// Independent accumulators of a reduction: one register of 512 bits, two of 256, four of 128. Their
/// number is fixed, so that the order of the additions is the same at every level.
pub(crate) const LANES: usize = 16;

/// The sum of `f(x)` over a slice; the order of the additions depends on the length alone.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    let rest: f32 = rest.iter().map(|&x| f(x)).sum();
    total(lanes) + rest
}

/// The sum of `f(x, y)` over two slices of equal length.
#[inline(always)]
pub(crate) fn sum_of_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    debug_assert_eq!(x.len(), y.len());
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(&x, &y)| f(x, y)).sum();
    total(lanes) + rest
}

/// The largest element.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}

/// e^x within 2 units in the last place on the normal range; subnormal below -87.3, 0 below -104, infinite above 88.7,
/// NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7 (relative error
/// below 2^-26 there), 2^n through the exponent bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-104.0, 89.0);
    let rounded = clamped.fma(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.fma(-LN_2_LOW, n.fma(-LN_2_HIGH, clamped));
    let mut p = 1.0f32 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.fma(r, c);
    }
    // n is in -150..=129: two factors keep both exponents in range.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    p * power(half) * power(n - half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_within_two_units() {
        let mut worst = 0.0f64;
        for i in -870_000..887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(200.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions() {
        let x: Vec<f32> = (0..103).map(|i| ((i * 37) % 101) as f32).collect();
        let y: Vec<f32> = x.iter().map(|x| x - 50.0).collect();
        assert_eq!(sum_of(&x, |x| x), x.iter().sum::<f32>());
        assert_eq!(max(&x), 100.0);
        assert_eq!(
            sum_of_pairs(&x, &y, |x, y| x * y),
            x.iter().zip(&y).map(|(x, y)| x * y).sum::<f32>()
        );
        assert_eq!(vectorized(|| max(&x)), 100.0);
    }
}
