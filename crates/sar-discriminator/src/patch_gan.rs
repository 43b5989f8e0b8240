//! The discriminator of pix2pix (arXiv:1611.07004) and taming-transformers (arXiv:2012.09841).
//!
//! Shapes: b batch, c channels, h height, w width, n positions.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{convolve, square_conv};

use crate::layers::{Block, activate, rows};

const KERNEL: usize = 4;
const PADDING: usize = 1;

/// How many times as many channels as the first convolution gives there are at most.
const WIDEST: usize = 8;

/// Judges patches of images by convolutions alone: `NLayerDiscriminator` of taming-transformers, with
/// group normalization in the place of batch normalization.
///
/// ```text
/// conv 4x4 / 2, LeakyReLU;  (layers - 1) of conv 4x4 / 2, norm, LeakyReLU;
/// conv 4x4, norm, LeakyReLU;  conv 4x4 to one map of logits
/// ```
/// Channels double with each of the convolutions up to eight times those of the first; all have one row
/// and column of zeros at each side. A batch normalization would make what an image gets depend on the
/// others beside it, and with it a step on how its batch is split into micro-batches. Groups are of
/// eight channels. Every convolution has a bias: of a group, its norm takes only the mean away.
#[derive(Module, Debug)]
pub struct PatchGan<B: Backend> {
    first: Conv2d<B>,
    pub(crate) blocks: Vec<Block<B>>,
    last: Conv2d<B>,
}

impl<B: Backend> PatchGan<B> {
    pub(crate) fn new(channels: usize, layers: usize, device: &B::Device) -> Self {
        let width = |i: usize| channels * WIDEST.min(1 << i);
        let layer = |widths, stride| square_conv(widths, KERNEL, stride, [PADDING; 4], device);
        let block = |i| {
            let stride = if i < layers { 2 } else { 1 };
            Block::new(layer([width(i - 1), width(i)], stride), device)
        };
        Self {
            first: layer([3, channels], 2),
            blocks: (1..=layers).map(block).collect(),
            last: layer([width(layers), 1], 1),
        }
    }

    /// See [`Discriminator::logits`](crate::Discriminator::logits).
    pub(crate) fn logits(&self, x_bchw: Tensor<B, 4>) -> Vec<Tensor<B, 2>> {
        let ([_, c, h, w], least) = (x_bchw.dims(), self.min_side());
        assert!(
            c == 3 && h >= least && w >= least,
            "images of 3 channels, {least} px and more, not of {c} channels, {w}x{h} px"
        );
        let x = activate(convolve(&self.first, x_bchw));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        vec![rows(convolve(&self.last, x))]
    }

    pub(crate) fn min_side(&self) -> usize {
        min_side(self.blocks.len())
    }
}

/// Each halving rounds down, and each of the last two convolutions takes a row and a column.
pub(crate) fn min_side(layers: usize) -> usize {
    3 << layers
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::Flex;
    use sar_weights::fill;

    use super::*;
    use crate::LAYOUT;

    /// `sin((i + 1) frequency) scale` over the elements.
    fn formula(shape: &[usize], frequency: f64, scale: f64) -> Vec<f32> {
        let n = shape.iter().product::<usize>();
        (1..=n).map(|i| ((i as f64 * frequency).sin() * scale) as f32).collect()
    }

    /// The weights of `tests/patch_gan.py`.
    fn weights(name: &str, shape: &[usize], place: usize) -> Vec<f32> {
        let frequency = 0.7 + 0.013 * place as f64;
        match (name.contains("norm"), name.ends_with("weight")) {
            (true, true) => {
                formula(shape, frequency, 0.3).into_iter().map(|value| 1.0 + value).collect()
            }
            (false, true) => {
                let fan_in = shape[1..].iter().product::<usize>() as f64;
                formula(shape, frequency, 2.0 * fan_in.powf(-0.5))
            }
            (_, false) => formula(shape, frequency, 0.2),
        }
    }

    #[test]
    fn logits_are_those_of_pytorch() {
        // Printed by `tests/patch_gan.py`.
        #[rustfmt::skip]
        let cases: [(usize, [usize; 4], &[f32]); 2] = [
            (2, [2, 3, 16, 13], &[-0.27145815, 0.6114788, -0.31951043, 0.6812066]),
            (3, [1, 3, 24, 32], &[0.32092455, 0.50398964]),
        ];
        let device = Default::default();
        for (layers, shape, expected) in cases {
            let mut place = 0;
            let model = fill(PatchGan::<Flex>::new(8, layers, &device), &LAYOUT, |name, shape| {
                place += 1;
                weights(name, shape, place - 1)
            });
            let pixels = TensorData::new(formula(&shape, 0.0123, 1.0), shape);
            let logits = model.logits(Tensor::from_data(pixels, &device)).remove(0);
            let logits = logits.into_data().into_vec::<f32>().unwrap();
            assert_eq!(logits.len(), expected.len());
            for (logit, expected) in logits.iter().zip(expected) {
                assert!((logit - expected).abs() < 1e-4, "{logits:?} for {expected}");
            }
        }
    }

    #[test]
    fn widths_and_sides_are_those_of_the_published_network() {
        let device = Default::default();
        // taming's default: 64 channels, 3 layers.
        let model = PatchGan::<Flex>::new(64, 3, &device);
        let shape = |conv: &Conv2d<Flex>| (conv.weight.dims(), conv.stride);
        assert_eq!(shape(&model.first), ([64, 3, 4, 4], [2, 2]));
        let blocks: Vec<_> = model.blocks.iter().map(|block| shape(&block.conv)).collect();
        assert_eq!(
            blocks,
            [([128, 64, 4, 4], [2, 2]), ([256, 128, 4, 4], [2, 2]), ([512, 256, 4, 4], [1, 1])]
        );
        assert_eq!(shape(&model.last), ([1, 512, 4, 4], [1, 1]));
        let widest = PatchGan::<Flex>::new(8, 5, &device);
        let widths = widest.blocks.iter().map(|block| block.conv.weight.dims()[0]);
        assert_eq!(widths.collect::<Vec<_>>(), [16, 32, 64, 64, 64]);
    }

    #[test]
    fn the_smallest_image_has_one_logit() {
        let device = Default::default();
        for layers in 1..4 {
            let model = PatchGan::<Flex>::new(8, layers, &device);
            let side = model.min_side();
            let logits = model.logits(Tensor::zeros([2, 3, side, side + (1 << layers)], &device));
            assert_eq!(logits[0].dims(), [2, 2]);
        }
    }

    #[test]
    #[should_panic(expected = "24 px and more")]
    fn a_smaller_image_is_refused() {
        let device = Default::default();
        PatchGan::<Flex>::new(8, 3, &device).logits(Tensor::zeros([1, 3, 24, 23], &device));
    }
}
