//! Encoder (pixels to features) and decoder (codes to pixels), mirror images of each other.
//!
//! Shapes: b batch, z feature channels, H W pixels, h w latent positions.

use burn::module::Module;
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use sar_kernels::convolve;

use crate::bands::Bands;
use crate::block::{Level, Middle, Resize, activate, conv, norm};
use crate::color::Matrix;
use crate::{Family, TokenizerConfig};

/// Pixels to features.
#[derive(Module, Debug)]
pub struct Encoder<B: Backend> {
    conv_in: Conv2d<B>,
    conv_blocks: Vec<Level<B>>,
    mid: Middle<B>,
    norm_out: GroupNorm<B>,
    conv_out: Conv2d<B>,
}

impl<B: Backend> Encoder<B> {
    pub(crate) fn new(config: &TokenizerConfig, device: &B::Device) -> Self {
        let n = config.channel_multipliers.len();
        let mut channels = config.base_channels;
        let level = |level: usize| {
            let c_in = std::mem::replace(&mut channels, config.channels(level));
            let last = level == n - 1;
            let resize = if last { Resize::Keep } else { Resize::Halve };
            let attention = last.then_some(config.family);
            Level::new([c_in, channels], config.res_blocks, attention, resize, device)
        };
        let conv_blocks = (0..n).map(level).collect();
        Self {
            conv_in: conv([3, config.base_channels], 3, device),
            conv_blocks,
            mid: Middle::new(config.family, channels, device),
            norm_out: norm(channels, device),
            conv_out: conv([channels, config.z_channels], 3, device),
        }
    }

    /// The encoder that makes of an image what this one makes of its colors times a matrix.
    pub(crate) fn with_input(mut self, matrix: Matrix) -> Self {
        // W' = W M: a sum over the input channels.
        self.conv_in.weight = self.conv_in.weight.map(|w_o3kk| {
            let [o, _, k, _] = w_o3kk.dims();
            let w_r3 = w_o3kk.permute([0, 2, 3, 1]).reshape([o * k * k, 3]);
            let product_r3 = w_r3.clone().matmul(tensor(matrix, &w_r3.device()));
            product_r3.reshape([o, k, k, 3]).permute([0, 3, 1, 2])
        });
        self
    }

    /// Where maps have more than `most` elements they are computed in bands of so many.
    ///
    /// # Shapes
    /// - `image_bchw`: `[b, 3, H, W]`, pixels in [-1, 1], sides multiples of the downsampling
    /// - output: `[b, z, h, w]`
    pub fn forward(&self, image_bchw: Tensor<B, 4>, most: usize) -> Tensor<B, 4> {
        let [b, _, _, width] = image_bchw.dims();
        let image = Bands::whole(image_bchw, most).cut(b * self.channels() * width);
        let x = image.map(1, |slab| slab.convolve(&self.conv_in).x_bchw);
        let x = self.conv_blocks.iter().fold(x, |x, level| level.in_bands(x));
        let x = self.mid.forward(x.joined());
        convolve(&self.conv_out, activate(&self.norm_out, x))
    }

    /// Channels of the maps that are as large as the image.
    pub(crate) fn channels(&self) -> usize {
        self.conv_in.weight.dims()[0]
    }
}

/// Features to pixels.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    conv_in: Conv2d<B>,
    mid: Middle<B>,
    conv_blocks: Vec<Level<B>>,
    norm_out: GroupNorm<B>,
    conv_out: Conv2d<B>,
    /// Whether the levels are numbered from the finest (VAR) or in the order of their use.
    finest_first: bool,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn new(config: &TokenizerConfig, device: &B::Device) -> Self {
        let n = config.channel_multipliers.len();
        let mut channels = config.channels(n - 1);
        let conv_in = conv([config.z_channels, channels], 3, device);
        let mid = Middle::new(config.family, channels, device);
        let level = |level: usize| {
            let c_in = std::mem::replace(&mut channels, config.channels(level));
            let resize = if level == 0 { Resize::Keep } else { Resize::Double };
            let attention = (level == n - 1).then_some(config.family);
            Level::new([c_in, channels], config.res_blocks + 1, attention, resize, device)
        };
        let mut conv_blocks: Vec<_> = (0..n).rev().map(level).collect();
        let finest_first = matches!(config.family, Family::Var { .. });
        if finest_first {
            conv_blocks.reverse();
        }
        Self {
            conv_in,
            mid,
            conv_blocks,
            norm_out: norm(channels, device),
            conv_out: conv([channels, 3], 3, device),
            finest_first,
        }
    }

    /// The decoder whose colors are this one's times a matrix.
    pub(crate) fn with_output(mut self, matrix: Matrix) -> Self {
        self.conv_out.weight = self.conv_out.weight.map(|w_3ikk| {
            let shape = w_3ikk.dims();
            let w_3r = w_3ikk.reshape([3, shape[1] * shape[2] * shape[3]]);
            tensor(matrix, &w_3r.device()).matmul(w_3r).reshape(shape)
        });
        self.conv_out.bias = self.conv_out.bias.map(|bias| {
            bias.map(|bias_3| {
                tensor(matrix, &bias_3.device()).matmul(bias_3.reshape([3, 1])).reshape([3])
            })
        });
        self
    }

    /// Where maps have more than `most` elements they are computed in bands of so many.
    ///
    /// # Shapes
    /// - `z_bchw`: `[b, z, h, w]`
    /// - output: `[b, 3, H, W]`, pixels, not clamped
    pub fn forward(&self, z_bchw: Tensor<B, 4>, most: usize) -> Tensor<B, 4> {
        self.levels(z_bchw, most).activated(&self.norm_out, &self.conv_out).joined()
    }

    /// What the last convolution is given: `[b, base channels, H, W]`.
    pub(crate) fn before_last_layer(&self, z_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        activate(&self.norm_out, self.levels(z_bchw, usize::MAX).joined())
    }

    fn levels(&self, z_bchw: Tensor<B, 4>, most: usize) -> Bands<B> {
        let x = Bands::whole(self.mid.forward(convolve(&self.conv_in, z_bchw)), most);
        let apply = |x, level: &Level<B>| level.in_bands(x);
        match self.finest_first {
            true => self.conv_blocks.iter().rev().fold(x, apply),
            false => self.conv_blocks.iter().fold(x, apply),
        }
    }

    /// Channels of the maps that are as large as the image.
    pub(crate) fn channels(&self) -> usize {
        self.conv_out.weight.dims()[1]
    }

    /// Pixels of a latent position along one axis.
    pub(crate) fn upsampling(&self) -> usize {
        1 << (self.conv_blocks.len() - 1)
    }

    pub(crate) fn last_layer(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        convolve(&self.conv_out, x_bchw)
    }
}

fn tensor<B: Backend>(matrix: Matrix, device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::from(matrix.map(|row| row.map(|x| x as f32))), device)
}
