//! What training does to codes before they are decoded, so that a decoder forgives what a transformer
//! will get wrong.
//!
//! - **Latent perturbation** (RobustTok, arXiv:2503.08354): after the losses of the codebook, some codes
//!   are replaced by codes near the latent.
//! - **Quantizer dropout**: some images are decoded from their coarser scales alone, so that each scale
//!   has to hold as much as it can. Residual quantizers only: a direct one decodes one scale in any case.
//!
//! Shapes: b batch, c code channels, n tokens of one scale.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, backend::Backend};
use sar_core::{ScaleSize, SeedTree};
use serde::{Deserialize, Serialize};

use crate::Codebook;

/// Which codes are replaced, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perturbation {
    /// Share of the codes that are replaced, in [0, 1].
    pub share: f64,
    /// Each by one of so many codes nearest to the latent, itself among them, all as likely.
    pub nearest: usize,
}

/// Perturbation and dropout of a batch. Every draw is a function of an image's stream.
#[derive(Clone, Copy, Debug)]
pub struct Disturbance<'a> {
    /// Replaced codes.
    pub perturbation: Perturbation,
    /// Share of images that lose at least their finest scale, in [0, 1].
    pub dropout: f64,
    /// The stream of each image of the batch.
    pub streams: &'a [SeedTree],
}

impl Disturbance<'_> {
    /// Whether nothing is disturbed, whatever is drawn.
    pub(crate) fn is_none(&self) -> bool {
        self.perturbation.share == 0.0 && self.dropout == 0.0
    }

    /// The codes of a scale after perturbation.
    ///
    /// # Shapes
    /// - `z_nc`: `[b n, c]`, the latents that the codes were searched for
    /// - `indices_n` and output: `[b n]`
    ///
    /// # Panics
    /// If the rows are not as many for each image.
    pub(crate) fn perturbed<B: Backend>(
        &self,
        codebook: &Codebook<B>,
        z_nc: Tensor<B, 2>,
        indices_n: Tensor<B, 1, Int>,
        size: ScaleSize,
    ) -> Tensor<B, 1, Int> {
        let Perturbation { share, nearest } = self.perturbation;
        if share == 0.0 {
            return indices_n;
        }
        let [n_rows] = indices_n.dims();
        let n = n_rows / self.streams.len();
        assert_eq!(n * self.streams.len(), n_rows, "a stream for each image");
        let allowed = codebook.n_codes(size);
        let (nearest, scale) = (nearest.clamp(1, allowed), size.to_string());
        let (mut rows, mut ranks) = (Vec::new(), Vec::new());
        for (image, stream) in self.streams.iter().enumerate() {
            let draws = stream.child("perturbation").child(&scale);
            let ranked = draws.child("rank");
            for (token, uniform) in draws.uniforms(n).into_iter().enumerate() {
                if f64::from(uniform) < share {
                    rows.push((image * n + token) as i64);
                    ranks.push(ranked.below(token as u64, nearest) as i64);
                }
            }
        }
        let m = rows.len();
        if m == 0 {
            return indices_n;
        }
        let device = z_nc.device();
        let rows_m = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [m]), &device);
        let ranks_m1 = Tensor::<B, 2, Int>::from_data(TensorData::new(ranks, [m, 1]), &device);
        let nearness_mv = codebook.nearness(z_nc.detach().select(0, rows_m.clone())).detach();
        let nearness_mv = nearness_mv.slice_dim(1, 0..allowed);
        let (_, order_mv) = nearness_mv.sort_descending_with_indices(1);
        let others_m = order_mv.gather(1, ranks_m1).reshape([m]);
        let change_m = others_m - indices_n.clone().select(0, rows_m.clone());
        indices_n.select_assign(0, rows_m, change_m, IndexingUpdateOp::Add)
    }

    /// How many of the scales each image is decoded from.
    pub(crate) fn kept_scales(&self, scales: usize) -> Vec<usize> {
        let kept = |stream: &SeedTree| {
            let draws = stream.child("dropout");
            let drops = scales > 1 && f64::from(draws.uniform(0)) < self.dropout;
            if drops { 1 + draws.child("kept").below(0, scales - 1) } else { scales }
        };
        self.streams.iter().map(kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::Metric;

    type B = Flex;

    fn streams_of(n: u64) -> Vec<SeedTree> {
        (0..n).map(|image| SeedTree::new(3).at(image)).collect()
    }

    /// Codes at 0, 1, 2, …; the nearest to a latent can be counted on fingers.
    fn codebook(size: usize) -> Codebook<B> {
        let codes: Vec<f32> = (0..size).map(|i| i as f32).collect();
        let codes = Tensor::from_data(TensorData::new(codes, [size, 1]), &Default::default());
        Codebook::new(size, 1, Metric::Euclidean, &Default::default()).with_raw(codes)
    }

    fn perturbed(share: f64, nearest: usize, streams: &[SeedTree], n: usize) -> Vec<i64> {
        let book = codebook(10);
        // Every latent is at 4.2: its codes by distance are 4, 5, 3, 6, …
        let z = Tensor::<B, 2>::full([streams.len() * n, 1], 4.2, &Default::default());
        let indices = book.nearest(z.clone());
        let perturbation = Perturbation { share, nearest };
        let disturbance = Disturbance { perturbation, dropout: 0.0, streams };
        let indices = disturbance.perturbed(&book, z, indices, ScaleSize::square(2));
        indices.into_data().convert::<i64>().into_vec().unwrap()
    }

    #[test]
    fn a_share_of_the_codes_becomes_one_of_the_nearest() {
        let streams = streams_of(4);
        assert_eq!(perturbed(0.0, 3, &streams, 100), [4; 400]);
        // The nearest of one is itself.
        assert_eq!(perturbed(1.0, 1, &streams, 100), [4; 400]);
        let found = perturbed(0.5, 3, &streams, 100);
        let count = |code| found.iter().filter(|found| **found == code).count();
        let (same, others) = (count(4), [count(5), count(3)]);
        assert_eq!(same + others.iter().sum::<usize>(), 400, "{found:?}");
        // A half stays, and a third of the other half: 267 on average, 67 of each other.
        assert!((230..300).contains(&same), "{same}");
        assert!(others.iter().all(|n| (45..90).contains(n)), "{others:?}");
        // What becomes of an image does not depend on its batch.
        assert_eq!(perturbed(0.5, 3, &streams[2..3], 100), found[200..300]);
        // More neighbors than codes are all of them.
        assert!(perturbed(1.0, 99, &streams, 100).contains(&9));
    }

    #[test]
    fn dropped_images_keep_coarse_scales() {
        let streams = streams_of(300);
        let perturbation = Perturbation { share: 0.0, nearest: 1 };
        let kept = |dropout, scales| {
            Disturbance { perturbation, dropout, streams: &streams }.kept_scales(scales)
        };
        assert_eq!(kept(0.0, 4), [4; 300]);
        assert_eq!(kept(1.0, 1), [1; 300], "one scale cannot be dropped");
        let all = kept(1.0, 4);
        for n in 1..4 {
            let found = all.iter().filter(|kept| **kept == n).count();
            assert!((70..130).contains(&found), "{found} of 300 keep {n}");
        }
        let some = kept(0.2, 4).iter().filter(|kept| **kept < 4).count();
        assert!((40..80).contains(&some), "{some} of 300");
    }
}
