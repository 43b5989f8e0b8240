//! The network as its released file holds it, with batch norms apart.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_weights::{Anchor, Layout, WeightsError, WeightsFile};

use super::{Block, EfficientNetLite0, FEATURES, STAGES, STEM_CHANNELS, STEM_STRIDE};
use crate::batch_norm::BatchNorm;
use crate::convolution::{Convolution, waiting};
use crate::load::load;

const ANCHOR: Anchor = Anchor { tensor: "_conv_stem.weight", roots: &[""], averages: false };

const LAYOUT: Layout = Layout {
    renames: &[
        ("conv_stem", "_conv_stem"),
        ("blocks", "_blocks"),
        ("expand_conv", "_expand_conv"),
        ("depthwise_conv", "_depthwise_conv"),
        ("project_conv", "_project_conv"),
        ("conv_head", "_conv_head"),
        ("bn0", "_bn0"),
        ("bn1", "_bn1"),
        ("bn2", "_bn2"),
    ],
    ignored: &["_fc.weight", "_fc.bias", "num_batches_tracked"],
};

/// What is added to a variance, as in the network's training.
const EPSILON: f64 = 1e-3;

#[derive(Module, Debug)]
pub(super) struct Released<B: Backend> {
    conv_stem: Weight<B>,
    bn0: BatchNorm<B>,
    blocks: Vec<ReleasedBlock<B>>,
    conv_head: Weight<B>,
    bn1: BatchNorm<B>,
}

#[derive(Module, Debug)]
struct ReleasedBlock<B: Backend> {
    expand_conv: Option<Weight<B>>,
    bn0: Option<BatchNorm<B>>,
    depthwise_conv: Weight<B>,
    bn1: BatchNorm<B>,
    project_conv: Weight<B>,
    bn2: BatchNorm<B>,
    stride: usize,
}

#[derive(Module, Debug)]
struct Weight<B: Backend> {
    weight: Param<Tensor<B, 4>>,
}

impl<B: Backend> Released<B> {
    pub(super) fn load(file: WeightsFile, device: &B::Device) -> Result<Self, WeightsError> {
        load(Self::new(device), file, &ANCHOR, &LAYOUT)
    }

    fn new(device: &B::Device) -> Self {
        let mut c_in = STEM_CHANNELS;
        let mut blocks = Vec::new();
        for stage in &STAGES {
            for i in 0..stage.blocks {
                let inside = c_in * stage.expansion;
                let expands = stage.expansion > 1;
                blocks.push(ReleasedBlock {
                    expand_conv: expands.then(|| Weight::new([inside, c_in, 1], device)),
                    bn0: expands.then(|| BatchNorm::new(inside, device)),
                    depthwise_conv: Weight::new([inside, 1, stage.kernel], device),
                    bn1: BatchNorm::new(inside, device),
                    project_conv: Weight::new([stage.channels, inside, 1], device),
                    bn2: BatchNorm::new(stage.channels, device),
                    stride: if i == 0 { stage.stride } else { 1 },
                });
                c_in = stage.channels;
            }
        }
        Self {
            conv_stem: Weight::new([STEM_CHANNELS, 3, 3], device),
            bn0: BatchNorm::new(STEM_CHANNELS, device),
            blocks,
            conv_head: Weight::new([FEATURES, c_in, 1], device),
            bn1: BatchNorm::new(FEATURES, device),
        }
    }

    pub(super) fn fold(self) -> EfficientNetLite0<B> {
        EfficientNetLite0 {
            stem: self.conv_stem.fold(&self.bn0, STEM_STRIDE),
            blocks: self.blocks.into_iter().map(ReleasedBlock::fold).collect(),
            head: self.conv_head.fold(&self.bn1, 1),
        }
    }
}

impl<B: Backend> ReleasedBlock<B> {
    fn fold(self) -> Block<B> {
        let [inside, ..] = self.depthwise_conv.weight.dims();
        let c_in = self.expand_conv.as_ref().map_or(inside, |conv| conv.weight.dims()[1]);
        let [c_out, ..] = self.project_conv.weight.dims();
        let expand = self.expand_conv.as_ref().zip(self.bn0.as_ref());
        Block {
            is_residual: self.stride == 1 && c_in == c_out,
            expand: expand.map(|(conv, norm)| conv.fold(norm, 1)),
            depthwise: self.depthwise_conv.fold(&self.bn1, self.stride),
            project: self.project_conv.fold(&self.bn2, 1),
            stride: self.stride,
        }
    }
}

impl<B: Backend> Weight<B> {
    fn new([c_out, c_in, kernel]: [usize; 3], device: &B::Device) -> Self {
        Self { weight: waiting([c_out, c_in, kernel, kernel], device) }
    }

    /// The convolution and the norm behind it, with `s = weight / sqrt(running_var + 1e-3)`:
    ///
    /// ```text
    /// s (conv(x) - running_mean) + bias
    /// ```
    fn fold(&self, norm: &BatchNorm<B>, stride: usize) -> Convolution<B> {
        let scale_o = norm.weight.val() / (norm.running_var.val() + EPSILON).sqrt();
        let bias_o = norm.bias.val() - norm.running_mean.val() * scale_o.clone();
        let [o, ..] = self.weight.dims();
        Convolution::new(self.weight.val() * scale_o.reshape([o, 1, 1, 1]), bias_o, stride)
    }
}
