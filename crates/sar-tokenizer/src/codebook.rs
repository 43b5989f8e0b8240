//! The codebook: nearest code by angle or by distance.
//!
//! Shapes: b batch, c code channels, h w positions, n = h w, v codes.

use burn::module::{Initializer, Module};
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::ScaleSize;

use crate::CodebookGrowth;

/// What makes a code near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The angle: codes and latents are l2-normalized, and the normalized code is what is looked up
    /// (FlexVAR).
    Cosine,
    /// The distance between code and latent as they are (VAR).
    Euclidean,
}

/// `v` code vectors.
#[derive(Module, Debug)]
pub struct Codebook<B: Backend> {
    embedding: Embedding<B>,
    #[module(skip)]
    metric: Metric,
    #[module(skip)]
    growth: CodebookGrowth,
}

impl<B: Backend> Codebook<B> {
    pub(crate) fn new(size: usize, dim: usize, metric: Metric, device: &B::Device) -> Self {
        let config = EmbeddingConfig::new(size, dim).with_initializer(Initializer::Zeros);
        let growth = CodebookGrowth::None {};
        Self { embedding: config.init(device), metric, growth }
    }

    /// The same codes, of which coarse scales may use fewer.
    pub(crate) fn growing(self, growth: CodebookGrowth) -> Self {
        Self { growth, ..self }
    }

    /// How many of the codes, the first ones, a scale may use.
    pub fn n_codes(&self, size: ScaleSize) -> usize {
        self.growth.n_codes(size, self.size())
    }

    /// Number of codes, v.
    pub fn size(&self) -> usize {
        self.raw_shape()[0]
    }

    /// `[v, c]`
    pub(crate) fn raw_shape(&self) -> [usize; 2] {
        self.embedding.weight.shape().dims()
    }

    /// What makes a code near.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// All codes as they are compared and looked up: `[v, c]`.
    pub fn codes(&self) -> Tensor<B, 2> {
        self.comparable(self.embedding.weight.val())
    }

    /// The raw code vectors `[v, c]`, before any normalization.
    pub fn raw(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }

    /// The same parameter with other vectors `[v, c]` (initialization from data, dead codes).
    pub fn with_raw(self, vectors_vc: Tensor<B, 2>) -> Self {
        let Self { embedding, metric, growth } = self;
        let weight = embedding.weight.map(|_| vectors_vc);
        Self { embedding: Embedding { weight }, metric, growth }
    }

    /// Rows as the search compares them, `[n, c]`: of length 1 where angles count.
    pub fn comparable(&self, z_nc: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.metric {
            Metric::Cosine => normalize(z_nc),
            Metric::Euclidean => z_nc,
        }
    }

    /// How near every code is to each row: minus half the squared distance, up to a constant per
    /// row.
    ///
    /// ```text
    /// z . e              unit vectors
    /// z . e - |e|^2 / 2  any vectors
    /// ```
    ///
    /// # Shapes
    /// - `z_nc`: `[n, c]`, any length
    /// - output: `[n, v]`, largest at the nearest code
    pub fn nearness(&self, z_nc: Tensor<B, 2>) -> Tensor<B, 2> {
        let codes_vc = self.codes();
        match self.metric {
            Metric::Cosine => normalize(z_nc).matmul(codes_vc.transpose()),
            Metric::Euclidean => {
                let half_1v = codes_vc.clone().square().sum_dim(1).transpose() * 0.5;
                z_nc.matmul(codes_vc.transpose()) - half_1v
            }
        }
    }

    /// The code nearest to each row.
    ///
    /// # Shapes
    /// - `z_nc`: `[n, c]`, any length
    /// - output: `[n]`, each in `0..v`; no gradient
    pub fn nearest(&self, z_nc: Tensor<B, 2>) -> Tensor<B, 1, Int> {
        self.nearest_among(z_nc, self.size())
    }

    /// The nearest of the first `n_codes` codes to each row, see [`nearest`](Self::nearest).
    pub fn nearest_among(&self, z_nc: Tensor<B, 2>, n_codes: usize) -> Tensor<B, 1, Int> {
        let mut nearness_nv = self.nearness(z_nc.detach()).detach();
        if n_codes < self.size() {
            nearness_nv = nearness_nv.slice_dim(1, 0..n_codes);
        }
        nearness_nv.argmax(1).squeeze_dim(1)
    }
}

/// Rows of length 1 (torch's `normalize`: lengths below 1e-12 count as 1e-12).
///
/// # Shapes
/// - `x_nc` and output: `[n, c]`
pub fn normalize<B: Backend>(x_nc: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = x_nc.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    x_nc / length
}

/// A map as rows: `[b, c, h, w]` to `[b h w, c]`.
pub fn rows<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 2> {
    let [b, c, h, w] = x_bchw.dims();
    x_bchw.permute([0, 2, 3, 1]).reshape([b * h * w, c])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn angle_and_distance_choose_differently() {
        let device = Default::default();
        let nearest = |metric| {
            let codes = Tensor::<Flex, 2>::from_floats([[4.0, 1.0], [0.5, 0.5]], &device);
            let book = Codebook::<Flex>::new(2, 2, metric, &device).with_raw(codes);
            let z_nc = Tensor::from_floats([[1.0, 0.3], [0.1, 0.2], [3.0, 3.0]], &device);
            let (found, codes) = (book.nearest(z_nc), book.codes());
            let found = found.into_data().convert::<i64>().into_vec::<i64>().unwrap();
            (found, codes.into_data().into_vec::<f32>().unwrap())
        };
        // By hand: distances of (3, 3) to (4, 1) and (0.5, 0.5) are 5 and 12.5.
        let (found, codes) = nearest(Metric::Euclidean);
        assert_eq!((found, codes), (vec![1, 1, 0], vec![4.0, 1.0, 0.5, 0.5]));
        let (found, codes) = nearest(Metric::Cosine);
        assert_eq!(found, [0, 1, 1]);
        assert!((codes[0] - 4.0 / 17f32.sqrt()).abs() < 1e-6);
    }
}
