//! Stochastic depth (drop path): whole branches dropped per image during training.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use sar_core::SeedTree;

/// Which branches of which block run for which image, already divided by the keep probability.
#[derive(Clone, Debug, PartialEq)]
pub struct DropPath {
    batch: usize,
    /// `[depth, 2, b]`: 0, or one over the keep probability.
    keep: Vec<f32>,
}

impl DropPath {
    /// Draws for each block, branch and image; the rate rises linearly from 0 at the first block to
    /// `rate` at the last. `streams` are those of the images, so that a draw does not depend
    /// on how a batch is split.
    pub fn draw(rate: f64, depth: usize, streams: &[SeedTree]) -> Self {
        let batch = streams.len();
        let mut keep = Vec::with_capacity(2 * depth * batch);
        for block in 0..depth {
            let share = if depth > 1 { block as f64 / (depth - 1) as f64 } else { 0.0 };
            let keep_probability = 1.0 - rate * share;
            for branch in 0..2 {
                keep.extend(streams.iter().map(|stream| {
                    let u = f64::from(stream.child("depth").uniform((2 * block + branch) as u64));
                    if u < keep_probability { (1.0 / keep_probability) as f32 } else { 0.0 }
                }));
            }
        }
        Self { batch, keep }
    }

    /// `[2, b]`: attention branch and MLP branch.
    pub(crate) fn of_block<B: Backend>(&self, block: usize, device: &B::Device) -> Tensor<B, 2> {
        let n = 2 * self.batch;
        let keep = self.keep[block * n..(block + 1) * n].to_vec();
        Tensor::from_data(TensorData::new(keep, [2, self.batch]), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_the_mean_is_one() {
        let streams: Vec<_> = (0..4000).map(|i| SeedTree::new(5).at(i)).collect();
        let drops = DropPath::draw(0.4, 3, &streams);
        for (block, rate) in [0.0, 0.2, 0.4].into_iter().enumerate() {
            for branch in 0..2 {
                let start = (2 * block + branch) * streams.len();
                let keep = &drops.keep[start..start + streams.len()];
                let dropped = keep.iter().filter(|k| **k == 0.0).count() as f64 / 4000.0;
                assert!((dropped - rate).abs() < 0.03, "block {block}: {dropped}");
                let mean = keep.iter().sum::<f32>() / 4000.0;
                assert!((mean - 1.0).abs() < 0.05, "block {block}: mean {mean}");
            }
        }
    }
}
