//! Top-k and top-p filters.
//!
//! Shapes: r rows (tokens), v codes.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, backend::Backend};

/// What a removed logit becomes; its probability is exactly zero.
pub(crate) const REMOVED: f32 = -1e9;

/// A logit so far below the largest has no probability in f32.
const FLOOR: f32 = 200.0;

/// Halvings until an interval of f32 values has no value inside.
const HALVINGS: usize = 40;

/// Logits with removed ones at a value of probability zero.
///
/// First those below the `top_k`-th largest of their row go, then, by the probabilities of the rest,
/// the ascending tail whose cumulative probability is at most `1 - top_p`. Equal logits stay or go
/// together, and the largest always stays. 0 turns either off, and so does a `top_k` of all codes or
/// a `top_p` of 1. Meant for draws, which ask for no gradient.
///
/// The plain form finds the threshold of each row by bisection, which needs comparisons and sums only
/// and never waits for the device; the hand-written one selects and sorts.
///
/// # Shapes
/// - `logits_rv` and output: `[r, v]`
pub fn filtered<B: Backend>(logits_rv: Tensor<B, 2>, top_k: usize, top_p: f64) -> Tensor<B, 2> {
    let [_, v] = logits_rv.dims();
    let top_k = (top_k > 0 && top_k < v).then_some(top_k);
    let top_p = (top_p > 0.0 && top_p < 1.0).then_some(top_p);
    if top_k.is_none() && top_p.is_none() {
        return logits_rv;
    }
    #[cfg(feature = "flex")]
    if crate::cpu::serves_untracked::<B>(&[logits_rv.dtype()]) {
        return crate::cpu::filtered(logits_rv, top_k, top_p);
    }
    let mut logits_rv = logits_rv;
    if let Some(k) = top_k {
        let removed = top_k_removed(logits_rv.clone(), k);
        logits_rv = logits_rv.mask_fill(removed, REMOVED);
    }
    if let Some(p) = top_p {
        let removed = top_p_removed(logits_rv.clone(), p);
        logits_rv = logits_rv.mask_fill(removed, REMOVED);
    }
    logits_rv
}

/// Where the logit is below the k-th largest of its row.
fn top_k_removed<B: Backend>(logits_rv: Tensor<B, 2>, k: usize) -> Tensor<B, 2, Bool> {
    let at_least_k = |low_r1: Tensor<B, 2>| {
        let at_least = logits_rv.clone().greater_equal(spread(low_r1, &logits_rv));
        at_least.float().sum_dim(1).greater_equal_elem(k as f32)
    };
    // Invariant: at least k logits are >= low; fewer than k are >= high.
    let low = logits_rv.clone().min_dim(1);
    let largest = logits_rv.clone().max_dim(1);
    // Logits that are removed already would stretch the interval; whatever has a mass lies above the floor.
    let floor = low.clone().max_pair(largest.clone() - FLOOR);
    let low = low.mask_where(at_least_k(floor.clone()), floor);
    let high = largest.clone() + (largest.abs() + 1.0) * 1e-3;
    let (low_r1, _) = bisect(low, high, at_least_k);
    let low_rv = spread(low_r1, &logits_rv);
    logits_rv.lower(low_rv)
}

/// Where the logit belongs to the tail that top-p drops.
fn top_p_removed<B: Backend>(logits_rv: Tensor<B, 2>, p: f64) -> Tensor<B, 2, Bool> {
    let probability_rv = softmax(logits_rv.clone(), 1);
    let largest_r1 = logits_rv.clone().max_dim(1);
    let floor_r1 = largest_r1.clone() - FLOOR;
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn top_k_is_exact_beside_logits_that_are_removed_already() {
        let near = [2.0, 1.5, 1.4999, 1.4998, 1.4997, 1.4996];
        let row: Vec<f32> = near.into_iter().chain([REMOVED; 26]).collect();
        let logits_rv = Tensor::<Flex, 1>::from_floats(&row[..], &Default::default());
        let logits_rv = logits_rv.reshape([1, 32]);
        for k in 1..=6 {
            let removed: Vec<bool> =
                top_k_removed(logits_rv.clone(), k).to_data().to_vec().unwrap();
            let expected: Vec<bool> = (0..32).map(|i| i >= k).collect();
            assert_eq!(removed, expected, "k = {k}");
        }
        // Fewer codes than k are left: none of them goes.
        let removed: Vec<bool> = top_k_removed(logits_rv, 20).to_data().to_vec().unwrap();
        assert!(removed[..6].iter().all(|removed| !removed));
    }
}
