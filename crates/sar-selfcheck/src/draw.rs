//! Codes drawn by `sar-rollout`, whose cumulative sums are products with triangular matrices.

use burn::tensor::backend::Backend;

use crate::host::{ints, tensor, values};
use crate::probe::{Outcome, Precision, Probe};
use crate::product::{CODES, ROWS};

/// What filters leave of a removed code's logit.
const REMOVED: f32 = -1e9;

/// Draws from distributions that are zero for nine codes of ten, against the inverse of their
/// cumulative sums in f64.
///
/// A code is right if the drawn number lies in its part of the sum, or beside it by no more than
/// products of this precision may be off.
pub fn draws<B: Backend>(device: &B::Device, precision: Precision) -> Vec<Probe> {
    let logits: Vec<f32> = values("logits", ROWS * CODES)
        .into_iter()
        .map(|x| if x < -0.8 { 40.0 * (x + 0.9) } else { REMOVED })
        .collect();
    let uniforms: Vec<f32> = values("draws", ROWS).iter().map(|x| 0.5 * (x + 1.0)).collect();
    // Rounded sums may begin to grow one code too late or too early, next to where they should.
    let beside = match precision {
        Precision::Full => 1e-5,
        Precision::Reduced => 2e-3,
    };
    let mut drawn = Vec::new();
    let parts = Probe::run(format!("draw from [{ROWS},{CODES}]"), || {
        let logits_rv = tensor::<B, 2>(&logits, [ROWS, CODES], device);
        drawn = ints(sar_rollout::draw(logits_rv, tensor(&uniforms, [ROWS], device)));
        let rows = logits.chunks(CODES).zip(&uniforms).enumerate();
        let wrong = rows.filter(|(i, (row, uniform))| {
            let code = drawn.get(*i).copied().flatten();
            !code.is_some_and(|code| is_in_part(row, f64::from(**uniform), code, beside))
        });
        Outcome::Choices { wrong: wrong.count(), of: ROWS, allowed: 0 }
    });
    let name = format!("draw from [{ROWS},{CODES}], codes of probability zero");
    let zero = Probe::run(name, || {
        let rows = logits.chunks(CODES).zip(&drawn);
        let wrong = rows.filter(|(row, code)| {
            let logit = code.and_then(|code| row.get(code));
            logit.is_some_and(|logit| *logit == REMOVED)
        });
        Outcome::Choices { wrong: wrong.count(), of: ROWS, allowed: 0 }
    });
    vec![parts, zero]
}

/// Whether a number between 0 and 1 lies in the part of a code in the cumulative sum.
fn is_in_part(row: &[f32], uniform: f64, code: usize, beside: f64) -> bool {
    if code >= row.len() {
        return false;
    }
    // Removed codes add exactly zero; the others lie between -4 and 4, so that nothing overflows.
    let weight = |logit: &f32| if *logit == REMOVED { 0.0 } else { f64::from(*logit).exp() };
    let before: f64 = row[..code].iter().map(weight).sum();
    let end = before + weight(&row[code]);
    let total = end + row[code + 1..].iter().map(weight).sum::<f64>();
    (before / total - beside..=end / total + beside).contains(&uniform)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_owns_its_part_of_the_sum_and_no_other() {
        // Parts 0 to 1/4, nothing, 1/4 to 1.
        let row = [0.0, REMOVED, 3f32.ln()];
        let check = |uniform, expected: [bool; 4]| {
            let found = [0, 1, 2, 3].map(|code| is_in_part(&row, uniform, code, 1e-5));
            assert_eq!(found, expected, "{uniform}");
        };
        check(0.1, [true, false, false, false]);
        check(0.25, [true, true, true, false]);
        check(0.26, [false, false, true, false]);
        check(0.999, [false, false, true, false]);
    }
}
