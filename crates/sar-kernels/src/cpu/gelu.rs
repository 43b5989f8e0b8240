//! GELU in its tanh approximation, x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).

use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::rows::piece;
use super::simd::{Fma, exp, vectorized};

const CUBIC: f32 = 0.044_715;
/// 2 sqrt(2 / pi)
const SLOPE: f32 = 1.595_769;

#[inline(always)]
fn gelu(x: f32) -> f32 {
    let cubic = (CUBIC * x * x).fma(x, x);
    x / (1.0 + exp(-SLOPE * cubic))
}

/// s + x s (1 - s) 2u' with s = sigmoid(2u); it is 0 or 1 far outside of the bounds.
#[inline(always)]
fn slope(x: f32) -> f32 {
    let x = x.clamp(-16.0, 16.0);
    let square = CUBIC * x * x;
    let s = 1.0 / (1.0 + exp(-SLOPE * square.fma(x, x)));
    let steepness = SLOPE * (3.0f32).fma(square, 1.0);
    (x * steepness * (1.0 - s)).fma(s, s)
}

/// f(x, y) for every element.
#[inline(always)]
fn map(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let piece = piece(x.len(), 1, 1, 1);
    let pieces = out.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(y.par_chunks(piece));
    pieces.for_each(|((out, x), y)| {
        vectorized(
            #[inline(always)]
            || {
                for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                    *out = f(x, y);
                }
            },
        );
    });
    out
}

/// `[x]`
#[derive(Clone, Debug)]
pub(super) struct Gelu;

impl Kernel<1> for Gelu {
    type Saved = ();
    const READS: [bool; 1] = [true];

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        (map(x, x, |x, _| gelu(x)), ())
    }

    fn backward(&self, pass: Pass<'_, (), 1>) -> [Option<Gradient>; 1] {
        let of_x = map(pass.inputs[0], pass.gradient, |x, gradient| gradient * slope(x));
        [Some(Gradient::New(of_x))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    fn exact(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    }

    fn exact_slope(x: f64) -> f64 {
        let c = (2.0 / std::f64::consts::PI).sqrt();
        let t = (c * (x + 0.044715 * x.powi(3))).tanh();
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)
    }

    #[test]
    fn against_the_formula() {
        let x: Vec<f32> = random(90_001, 1).iter().map(|x| x * 6.0).collect();
        let want: Vec<f64> = wide(&x).into_iter().map(exact).collect();
        assert_close("gelu", &map(&x, &x, |x, _| gelu(x)), &want, 2e-6);
        let want: Vec<f64> = wide(&x).into_iter().map(exact_slope).collect();
        assert_close("its slope", &map(&x, &x, |x, _| slope(x)), &want, 2e-6);
        let x = &wide(&x)[..50];
        let slopes: Vec<f64> = x.iter().map(|&x| exact_slope(x)).collect();
        assert_gradient(x, &slopes, |x| x.iter().map(|&x| exact(x)).sum());
    }

    #[test]
    fn extremes() {
        let x = [-1e30, -100.0, -0.0, 0.0, 100.0, 1e30, f32::INFINITY];
        assert_eq!(x.map(gelu), [0.0, 0.0, 0.0, 0.0, 100.0, 1e30, f32::INFINITY]);
        assert_eq!(x.map(slope), [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]);
        assert!(gelu(f32::NAN).is_nan() && slope(f32::NAN).is_nan());
    }

    #[test]
    fn same_on_any_threads() {
        let x = random(300_000, 1);
        assert_same_on_threads(|| vec![map(&x, &x, |x, _| gelu(x))]);
    }
}
