//! Top-k and top-p filters without sorting: the threshold of each row is found by bisection, which
//! needs comparisons and sums only and never waits for the device.
//!
//! Shapes: r rows (tokens), v codes.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

/// What a removed logit becomes; its probability is exactly zero.
const REMOVED: f32 = -1e9;

/// Halvings until an interval of f32 values has no value inside.
const HALVINGS: usize = 40;

/// Which codes a draw may take. 0 turns a filter off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    /// Keeps logits not below the k-th largest.
    pub top_k: usize,
    /// Then, on the renormalised rest, drops the ascending tail whose cumulative probability is at
    /// most `1 - top_p`, never the largest.
    pub top_p: f64,
}

impl Filters {
    /// No filter.
    pub const NONE: Self = Self { top_k: 0, top_p: 0.0 };

    /// Logits with the removed codes at a value of probability zero.
    ///
    /// # Shapes
    /// - `logits_rv` and output: `[r, v]`
    pub fn apply<B: Backend>(self, logits_rv: Tensor<B, 2>) -> Tensor<B, 2> {
        let [_, v] = logits_rv.dims();
        let mut logits_rv = logits_rv;
        if self.top_k > 0 && self.top_k < v {
            let removed = top_k_removed(logits_rv.clone(), self.top_k);
            logits_rv = logits_rv.mask_fill(removed, REMOVED);
        }
        if self.top_p > 0.0 && self.top_p < 1.0 {
            let removed = top_p_removed(logits_rv.clone(), self.top_p);
            logits_rv = logits_rv.mask_fill(removed, REMOVED);
        }
        logits_rv
    }
}

/// Where the logit is below the k-th largest of its row.
fn top_k_removed<B: Backend>(logits_rv: Tensor<B, 2>, k: usize) -> Tensor<B, 2, Bool> {
    // Invariant: at least k logits are >= low; fewer than k are >= high.
    let low = logits_rv.clone().min_dim(1);
    let high = logits_rv.clone().max_dim(1);
    let high = high.clone() + (high.abs() + 1.0) * 1e-3;
    let (low_r1, _) = bisect(low, high, |middle_r1| {
        let at_least = logits_rv.clone().greater_equal(spread(middle_r1, &logits_rv));
        at_least.float().sum_dim(1).greater_equal_elem(k as f32)
    });
    let low_rv = spread(low_r1, &logits_rv);
    logits_rv.lower(low_rv)
}

/// Where the logit belongs to the tail that top-p drops.
fn top_p_removed<B: Backend>(logits_rv: Tensor<B, 2>, p: f64) -> Tensor<B, 2, Bool> {
    let probability_rv = softmax(logits_rv.clone(), 1);
    let largest_r1 = logits_rv.clone().max_dim(1);
    // Logits that an earlier filter removed would stretch the interval; they have no mass.
    let floor_r1 = largest_r1.clone() - 200.0;
    let low = logits_rv.clone().min_dim(1).max_pair(floor_r1) - 1.0;
    // Invariant: the logits <= low have mass <= 1 - p; those <= high have more, or high is the
    // largest, which always stays.
    let (low_r1, _) = bisect(low, largest_r1.clone(), |middle_r1| {
        let tail = logits_rv.clone().lower_equal(spread(middle_r1, &logits_rv));
        let mass = (probability_rv.clone() * tail.float()).sum_dim(1);
        mass.lower_equal_elem((1.0 - p) as f32)
    });
    let low_rv = spread(low_r1, &logits_rv);
    let is_tail = logits_rv.clone().lower_equal(low_rv);
    let is_largest = logits_rv.clone().equal(spread(largest_r1, &logits_rv));
    is_tail.bool_and(is_largest.bool_not())
}

/// Narrows `[low, high]` of every row: `low` moves up where `keeps_low` holds at the middle, `high`
/// moves down elsewhere.
fn bisect<B: Backend>(
    mut low_r1: Tensor<B, 2>,
    mut high_r1: Tensor<B, 2>,
    keeps_low: impl Fn(Tensor<B, 2>) -> Tensor<B, 2, Bool>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    for _ in 0..HALVINGS {
        let middle_r1 = (low_r1.clone() + high_r1.clone()) * 0.5;
        let up = keeps_low(middle_r1.clone());
        low_r1 = low_r1.mask_where(up.clone(), middle_r1.clone());
        high_r1 = middle_r1.mask_where(up, high_r1);
    }
    (low_r1, high_r1)
}

/// A column beside every code.
fn spread<B: Backend>(x_r1: Tensor<B, 2>, like_rv: &Tensor<B, 2>) -> Tensor<B, 2> {
    x_r1.expand(like_rv.dims())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn kept(filters: Filters, rows: &[f32], v: usize) -> Vec<bool> {
        let logits =
            Tensor::<Flex, 1>::from_floats(rows, &Default::default()).reshape([rows.len() / v, v]);
        let out: Vec<f32> = filters.apply(logits).to_data().to_vec().unwrap();
        out.iter().map(|x| *x > REMOVED).collect()
    }

    #[test]
    fn ties_stay_together_and_the_largest_always_stays() {
        assert_eq!(
            kept(Filters { top_k: 2, top_p: 0.0 }, &[1.0, 3.0, 1.0, 0.0], 4),
            [true, true, true, false]
        );
        assert_eq!(
            kept(Filters { top_k: 0, top_p: 1e-6 }, &[0.0, 0.1, 0.0], 3),
            [false, true, false]
        );
        assert_eq!(kept(Filters { top_k: 1, top_p: 0.5 }, &[2.0, 2.0, 2.0], 3), [true; 3]);
        let v = 5;
        assert_eq!(
            kept(Filters { top_k: v, top_p: 0.0 }, &[5.0, -80.0, 0.0, 1.0, 2.0], v),
            [true; 5]
        );
    }
}
