//! AdamW in one pass over memory, and sums of squares.

use rayon::prelude::*;

use super::simd::{sum_of, vectorized};
use crate::AdamWStep;

/// Elements of a piece of work.
const PIECE: usize = 1 << 15;

/// One step, in place.
pub(super) fn step(
    p: &mut [f32],
    mean: &mut [f32],
    square: &mut [f32],
    g: &[f32],
    factor: f32,
    step: AdamWStep,
) {
    let AdamWStep { beta1, beta2, eps, decay, rate, correction } = step;
    let [keep, b1, b2] = [1.0 - decay, beta1, beta2].map(|x| x as f32);
    let [new1, new2] = [1.0 - beta1, 1.0 - beta2].map(|x| x as f32);
    let [eps, rate, correction] = [eps, rate, correction].map(|x| x as f32);
    let pieces = p.par_chunks_mut(PIECE).zip(mean.par_chunks_mut(PIECE));
    let pieces = pieces.zip(square.par_chunks_mut(PIECE)).zip(g.par_chunks(PIECE));
    pieces.for_each(|(((p, mean), square), g)| {
        vectorized(
            #[inline(always)]
            || {
                for (((p, mean), square), g) in p.iter_mut().zip(mean).zip(square).zip(g) {
                    let g = if factor == 0.0 { 0.0 } else { g * factor };
                    *mean = *mean * b1 + g * new1;
                    *square = *square * b2 + g * g * new2;
                    *p = *p * keep - *mean / (square.sqrt() / correction + eps) * rate;
                }
            },
        );
    });
}

/// The sum of squares; pieces in f32, their sum in f64.
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let piece = |x: &[f32]| {
        f64::from(vectorized(
            #[inline(always)]
            || sum_of(x, |x| x * x),
        ))
    };
    let pieces: Vec<f64> = x.par_chunks(PIECE).map(piece).collect();
    pieces.iter().sum::<f64>() as f32
}
