//! The codebook: nearest code by cosine similarity, and its look-up.
//!
//! Shapes: b batch, c code channels, h w positions, n = h w, v codes.

use burn::module::{Initializer, Module};
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::ScaleSize;

/// `v` code vectors; both they and the latents are l2-normalised before the search, and the
/// normalised code is what a look-up returns (SPEC 3).
#[derive(Module, Debug)]
pub struct Codebook<B: Backend> {
    embedding: Embedding<B>,
}

impl<B: Backend> Codebook<B> {
    pub(crate) fn new(size: usize, dim: usize, device: &B::Device) -> Self {
        let config = EmbeddingConfig::new(size, dim).with_initializer(Initializer::Zeros);
        Self { embedding: config.init(device) }
    }

    /// Number of codes, v.
    pub fn size(&self) -> usize {
        self.embedding.weight.shape()[0]
    }

    /// All codes, each of length 1: `[v, c]`.
    pub fn codes(&self) -> Tensor<B, 2> {
        normalise(self.embedding.weight.val())
    }

    /// The raw code vectors `[v, c]`, before normalisation.
    pub fn raw(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }

    /// The same parameter with other vectors `[v, c]` (initialisation from data, dead codes).
    pub fn with_raw(self, vectors_vc: Tensor<B, 2>) -> Self {
        let weight = self.embedding.weight.map(|_| vectors_vc);
        Self { embedding: Embedding { weight } }
    }

    /// The code nearest to each row. On the unit sphere the smallest distance is the largest
    /// scalar product.
    ///
    /// # Shapes
    /// - `z_nc`: `[n, c]`, any length
    /// - output: `[n]`, each in `0..v`; no gradient
    pub fn nearest(&self, z_nc: Tensor<B, 2>) -> Tensor<B, 1, Int> {
        let similarity_nv = normalise(z_nc.detach()).matmul(self.codes().detach().transpose());
        similarity_nv.argmax(1).squeeze_dim(1)
    }

    /// Looks tokens up and lays them out as a map.
    ///
    /// # Shapes
    /// - `tokens_bn`: `[b, n]`, each in `0..v`, row-major over `size`
    /// - output: `[b, c, size.height, size.width]`, unit vectors along c
    pub fn look_up(&self, tokens_bn: Tensor<B, 2, Int>, size: ScaleSize) -> Tensor<B, 4> {
        let [b, n] = tokens_bn.dims();
        let rows_nc = self.codes().select(0, tokens_bn.reshape([b * n]));
        let c = rows_nc.dims()[1];
        rows_nc.reshape([b, size.height, size.width, c]).permute([0, 3, 1, 2])
    }
}

/// Rows of length 1 (torch's `normalize`: lengths below 1e-12 count as 1e-12).
///
/// # Shapes
/// - `x_nc` and output: `[n, c]`
pub fn normalise<B: Backend>(x_nc: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = x_nc.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    x_nc / length
}

/// A map as rows: `[b, c, h, w]` to `[b h w, c]`.
pub fn rows<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 2> {
    let [b, c, h, w] = x_bchw.dims();
    x_bchw.permute([0, 2, 3, 1]).reshape([b * h * w, c])
}
