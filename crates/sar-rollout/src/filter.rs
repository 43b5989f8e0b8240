//! Which codes a draw may take.
//!
//! Shapes: r rows (tokens), v codes.

use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::filtered;
use serde::{Deserialize, Serialize};

/// Which codes a draw may take. 0 turns a filter off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    /// Keeps logits not below the k-th largest.
    pub top_k: usize,
    /// Then, on the renormalized rest, drops the ascending tail whose cumulative probability is at
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
        filtered(logits_rv, self.top_k, self.top_p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn kept(filters: Filters, rows: &[f32], v: usize) -> Vec<bool> {
        let logits =
            Tensor::<Flex, 1>::from_floats(rows, &Default::default()).reshape([rows.len() / v, v]);
        let out: Vec<f32> = filters.apply(logits).to_data().to_vec().unwrap();
        out.iter().map(|x| *x > -1e8).collect()
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
