//! Top-k and top-p filters row by row: a selection, and a sort of what it leaves.

use rayon::prelude::*;

use super::rows::piece;
use crate::filtered::REMOVED;

/// Rows of `cols` logits, of which some are removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) cols: usize,
    /// Below `cols`.
    pub(super) top_k: Option<usize>,
    /// Between 0 and 1.
    pub(super) top_p: Option<f64>,
}

impl Rows {
    pub(super) fn filter(self, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        if out.is_empty() {
            return out;
        }
        let piece = self.cols * piece(x.len() / self.cols, self.cols, 1, 1);
        out.par_chunks_mut(piece).for_each(|rows| {
            let mut scratch = Vec::with_capacity(self.cols);
            for row in rows.chunks_exact_mut(self.cols) {
                let least = self.least(row, &mut scratch);
                for x in row {
                    if *x < least {
                        *x = REMOVED;
                    }
                }
            }
        });
        out
    }

    /// The least logit of a row that stays.
    fn least(self, row: &[f32], scratch: &mut Vec<f32>) -> f32 {
        let mut least = f32::NEG_INFINITY;
        scratch.clear();
        scratch.extend_from_slice(row);
        if let Some(k) = self.top_k {
            least = *scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        }
        let Some(p) = self.top_p else { return least };
        scratch.retain(|x| *x >= least);
        scratch.sort_unstable_by(f32::total_cmp);
        let Some(&largest) = scratch.last() else { return least };
        let share = |x: f32| f64::from(x - largest).exp();
        let total: f64 = scratch.iter().map(|&x| share(x)).sum();
        let (mut left, mut passed) = ((1.0 - p) * total, 0);
        // Equal logits together: those below the first that cannot go.
        while scratch[passed] < largest {
            let equal = scratch[passed..].partition_point(|&x| x <= scratch[passed]).max(1);
            left -= share(scratch[passed]) * equal as f64;
            if left < 0.0 {
                break;
            }
            passed += equal;
        }
        scratch[passed]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    fn kept(x: &[f32], top_k: Option<usize>, top_p: Option<f64>) -> Vec<usize> {
        let rows = Rows { cols: x.len(), top_k, top_p };
        let out = rows.filter(x);
        (0..x.len()).filter(|&i| out[i] != REMOVED).inspect(|&i| assert_eq!(out[i], x[i])).collect()
    }

    #[test]
    fn by_hand() {
        // Probabilities 0.4, 0.1, 0.2, 0.1, 0.2.
        let x = [0.4f32, 0.1, 0.2, 0.1, 0.2].map(f32::ln);
        assert_eq!(kept(&x, Some(1), None), [0]);
        assert_eq!(kept(&x, Some(2), None), [0, 2, 4]);
        assert_eq!(kept(&x, Some(4), None), [0, 1, 2, 3, 4]);
        // A tail of 0.2 at most; of 0.19 it would part two equal ones.
        assert_eq!(kept(&x, None, Some(0.799)), [0, 2, 4]);
        assert_eq!(kept(&x, None, Some(0.81)), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&x, None, Some(0.01)), [0]);
        // Of the three that are left, 0.5, 0.25, 0.25.
        assert_eq!(kept(&x, Some(3), Some(0.51)), [0, 2, 4]);
        assert_eq!(kept(&x, Some(3), Some(0.49)), [0]);
        assert_eq!(kept(&[1.0; 4], Some(2), Some(0.5)), [0, 1, 2, 3]);
    }

    #[test]
    fn extremes() {
        let x = [f32::NEG_INFINITY, 3.0, -5.0, 3.0];
        assert_eq!(kept(&x, None, Some(0.9)), [1, 3]);
        assert_eq!(kept(&x, Some(3), None), [1, 2, 3]);
        assert!(Rows { cols: 3, top_k: Some(1), top_p: None }.filter(&[]).is_empty());
        let with_nan = Rows { cols: 2, top_k: Some(1), top_p: Some(0.5) }.filter(&[f32::NAN, 1.0]);
        assert!(with_nan[0].is_nan());
    }

    #[test]
    fn same_on_any_threads() {
        let x = random(90 * 3000, 4);
        assert_same_on_threads(|| {
            vec![Rows { cols: 3000, top_k: Some(200), top_p: Some(0.9) }.filter(&x)]
        });
    }
}
