//! Where a token is: FlexVAR's resampled grid or VAR's learned positions.
//!
//! Shapes: l tokens of the pyramid, n tokens of one scale, d width.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSchedule, ScaleSize, resample};

use crate::config::PositionsConfig;

/// The learned positions of tokens.
#[derive(Module, Debug)]
pub(crate) enum Positions<B: Backend> {
    /// One grid for all sizes.
    Grid(Grid<B>),
    /// One row per token of one schedule.
    PerToken(PerToken<B>),
}

/// A grid that is area-resampled to the size of a scale (FlexVAR).
#[derive(Module, Debug)]
pub(crate) struct Grid<B: Backend> {
    grid: Param<Tensor<B, 4>>,
}

/// A position for every token and an embedding for every level of one schedule (VAR).
#[derive(Module, Debug)]
pub(crate) struct PerToken<B: Backend> {
    token: Param<Tensor<B, 3>>,
    level: Embedding<B>,
    #[module(skip)]
    scales: ScaleSchedule,
}

impl<B: Backend> Positions<B> {
    pub(crate) fn new(config: &PositionsConfig, d: usize, device: &B::Device) -> Self {
        let zeros = Initializer::Zeros;
        match config {
            PositionsConfig::Grid { side } => {
                Self::Grid(Grid { grid: zeros.init([1, d, *side, *side], device) })
            }
            PositionsConfig::PerToken { scales } => Self::PerToken(PerToken {
                token: zeros.init([1, scales.n_tokens(), d], device),
                level: EmbeddingConfig::new(scales.len(), d).with_initializer(zeros).init(device),
                scales: scales.clone(),
            }),
        }
    }

    /// The positions of one scale, `[n, d]`.
    pub(crate) fn at(&self, size: ScaleSize) -> Tensor<B, 2> {
        match self {
            Self::Grid(Grid { grid }) => {
                let grid = grid.val();
                let [_, d, ..] = grid.dims();
                let map = resample(grid, size, Filter::Area);
                // A single token has nothing to transpose, and must not be: burn 0.21's products on
                // wgpu misread a column that is a transposed row, and the gradient would be one.
                match size.tokens() {
                    1 => map.reshape([1, d]),
                    n => map.reshape([d, n]).transpose(),
                }
            }
            Self::PerToken(PerToken { token, level, scales }) => {
                // Sizes increase, so that a size is one level and no other.
                let k = scales.sizes().iter().position(|known| *known == size);
                let k = k.unwrap_or_else(|| {
                    panic!("no positions of scale {size}: they were learned for {scales}")
                });
                let token = token.val();
                let [.., d] = token.dims();
                let token_nd = token.slice_dim(1, scales.range(k)).reshape([size.tokens(), d]);
                token_nd + level.weight.val().slice_dim(0, k..k + 1)
            }
        }
    }
}
