//! Batch norms as files hold them.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::convolution::waiting;

/// What a batch norm does with each channel once its network is trained:
///
/// ```text
/// y = weight (x - running_mean) / sqrt(running_var + epsilon) + bias
/// ```
#[derive(Module, Debug)]
pub(crate) struct BatchNorm<B: Backend> {
    pub(crate) weight: Param<Tensor<B, 1>>,
    pub(crate) bias: Param<Tensor<B, 1>>,
    pub(crate) running_mean: Param<Tensor<B, 1>>,
    pub(crate) running_var: Param<Tensor<B, 1>>,
}

impl<B: Backend> BatchNorm<B> {
    pub(crate) fn new(channels: usize, device: &B::Device) -> Self {
        let each = || waiting([channels], device);
        Self { weight: each(), bias: each(), running_mean: each(), running_var: each() }
    }
}
