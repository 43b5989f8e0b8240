//! What a sequence begins with: the class token, alone or with a first scale behind it.
//!
//! Shapes: b batch, n tokens of the first scale, d width, c code channels.

use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use sar_core::FirstScale;

/// What a sequence begins with (the student's class token has no start position).
#[derive(Clone, Debug)]
pub enum FirstToken<B: Backend> {
    /// Class embedding + `pos_start`, which is the first scale: teacher forcing and sampling.
    Start,
    /// The bare class embedding in the place of a first scale of 1x1: the student pass.
    Bare,
    /// The bare class embedding, then a first scale of which some tokens are masked.
    Masked {
        /// The codes of the others, `[b, n, c]`; what is masked may be anything.
        codes_bnc: Tensor<B, 3>,
        /// Which tokens are masked, `[b, n]`.
        masked_bn: Tensor<B, 2, Bool>,
    },
    /// The bare class embedding, then a first scale token by token, each behind its instruction.
    Ordered {
        /// Their codes, `[b, n, c]`, row-major.
        codes_bnc: Tensor<B, 3>,
        /// For each of b images the order of its n places.
        orders: Vec<Vec<usize>>,
    },
}

impl<B: Backend> FirstToken<B> {
    /// The same on a backend with a tape, which does not reach it.
    pub fn from_inner(first: FirstToken<B::InnerBackend>) -> Self
    where
        B: AutodiffBackend,
    {
        match first {
            FirstToken::Start => Self::Start,
            FirstToken::Bare => Self::Bare,
            FirstToken::Masked { codes_bnc, masked_bn } => Self::Masked {
                codes_bnc: Tensor::from_inner(codes_bnc),
                masked_bn: Tensor::from_inner(masked_bn),
            },
            FirstToken::Ordered { codes_bnc, orders } => {
                Self::Ordered { codes_bnc: Tensor::from_inner(codes_bnc), orders }
            }
        }
    }
}

/// The learned vector of the first scale, `[1, 1, d]`.
#[derive(Module, Debug)]
pub(crate) enum First<B: Backend> {
    /// Added to the class embedding.
    ClassToken(Start<B>),
    /// In the place of masked tokens.
    Masked(Mask<B>),
    /// With a position an instruction to predict its token.
    RandomOrder(Instruction<B>),
}

#[derive(Module, Debug)]
pub(crate) struct Start<B: Backend> {
    start: Param<Tensor<B, 3>>,
}

#[derive(Module, Debug)]
pub(crate) struct Mask<B: Backend> {
    mask: Param<Tensor<B, 3>>,
}

#[derive(Module, Debug)]
pub(crate) struct Instruction<B: Backend> {
    instruction: Param<Tensor<B, 3>>,
}

impl<B: Backend> First<B> {
    pub(crate) fn new(first: FirstScale, d: usize, device: &B::Device) -> Self {
        let zeros = Initializer::Zeros.init([1, 1, d], device);
        match first {
            FirstScale::ClassToken {} => Self::ClassToken(Start { start: zeros }),
            FirstScale::Masked { .. } => Self::Masked(Mask { mask: zeros }),
            FirstScale::RandomOrder {} => Self::RandomOrder(Instruction { instruction: zeros }),
        }
    }

    /// The vector, `[1, d]`.
    pub(crate) fn vector(&self) -> Tensor<B, 2> {
        let (Self::ClassToken(Start { start: vector })
        | Self::Masked(Mask { mask: vector })
        | Self::RandomOrder(Instruction { instruction: vector })) = self;
        let [.., d] = vector.dims();
        vector.val().reshape([1, d])
    }
}

/// Numbers of rows as a tensor.
pub(crate) fn row_numbers<B: Backend>(
    rows: impl Iterator<Item = usize>,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let rows: Vec<i64> = rows.map(|row| row as i64).collect();
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}
