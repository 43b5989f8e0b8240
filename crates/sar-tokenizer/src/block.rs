//! The blocks of encoder and decoder (LlamaGen's `vq_model.py` layout).
//!
//! Shapes: b batch, c channels, h height, w width, n = h w.

use burn::module::Module;
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{AttentionConfig, Visible, attention, convolve, linear, normalize, square_conv};

use crate::Family;
use crate::bands::{Bands, Slab};
use crate::config::GROUPS;

/// A square convolution with bias that keeps the size; parameters start at zero until
/// [`init`](crate::init) or a checkpoint fills them.
pub(crate) fn conv<B: Backend>(
    channels: [usize; 2],
    kernel: usize,
    device: &B::Device,
) -> Conv2d<B> {
    square_conv(channels, kernel, 1, [kernel / 2; 4], device)
}

pub(crate) fn norm<B: Backend>(channels: usize, device: &B::Device) -> GroupNorm<B> {
    burn::nn::GroupNormConfig::new(GROUPS, channels).with_epsilon(1e-6).init(device)
}

/// `silu(norm(x))`
pub(crate) fn activate<B: Backend>(norm: &GroupNorm<B>, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    normalize(norm, x_bchw, true)
}

/// `x + conv(silu(norm(conv(silu(norm(x))))))`, with a 1x1 shortcut where channels change.
#[derive(Module, Debug)]
pub(crate) struct ResBlock<B: Backend> {
    norm1: GroupNorm<B>,
    conv1: Conv2d<B>,
    norm2: GroupNorm<B>,
    conv2: Conv2d<B>,
    nin_shortcut: Option<Conv2d<B>>,
}

impl<B: Backend> ResBlock<B> {
    pub(crate) fn new(c_in: usize, c_out: usize, device: &B::Device) -> Self {
        Self {
            norm1: norm(c_in, device),
            conv1: conv([c_in, c_out], 3, device),
            norm2: norm(c_out, device),
            conv2: conv([c_out, c_out], 3, device),
            nin_shortcut: (c_in != c_out).then(|| conv([c_in, c_out], 1, device)),
        }
    }

    pub(crate) fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let h = convolve(&self.conv1, activate(&self.norm1, x_bchw.clone()));
        let h = convolve(&self.conv2, activate(&self.norm2, h));
        self.beside(x_bchw) + h
    }

    /// As [`forward`](Self::forward), of a map in bands. Of several, what lies between the norms is computed
    /// twice.
    pub(crate) fn in_bands(&self, bands: Bands<B>) -> Bands<B> {
        if bands.is_whole() {
            return bands.whole_by(|x_bchw| self.forward(x_bchw));
        }
        let first = bands.moments(&self.norm1);
        let begin = |slab: Slab<B>| slab.activate(&self.norm1, &first).convolve(&self.conv1);
        let second = bands.moments_behind(1, &self.norm2, begin);
        bands.map(2, |slab| {
            let x_bchw = slab.clone().without(2).x_bchw;
            let h = begin(slab).activate(&self.norm2, &second).convolve(&self.conv2);
            self.beside(x_bchw) + h.x_bchw
        })
    }

    fn beside(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        match &self.nin_shortcut {
            Some(shortcut) => convolve(shortcut, x_bchw),
            None => x_bchw,
        }
    }
}

/// Single-head self-attention over all positions, softmax scale `1/sqrt(c)`.
#[derive(Module, Debug)]
pub(crate) struct AttentionBlock<B: Backend> {
    norm: GroupNorm<B>,
    projections: Projections<B>,
    proj_out: Conv2d<B>,
}

/// Queries, keys and values, as the released files hold them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful for each tokenizer, built once")]
enum Projections<B: Backend> {
    /// FlexVAR.
    Separate(Separate<B>),
    /// VAR: one convolution makes all three.
    Joint(Conv2d<B>),
}

#[derive(Module, Debug)]
struct Separate<B: Backend> {
    q: Conv2d<B>,
    k: Conv2d<B>,
    v: Conv2d<B>,
}

impl<B: Backend> AttentionBlock<B> {
    pub(crate) fn new(family: Family, channels: usize, device: &B::Device) -> Self {
        let point = |n: usize| conv([channels, n * channels], 1, device);
        let projections = match family {
            Family::Flexvar => {
                Projections::Separate(Separate { q: point(1), k: point(1), v: point(1) })
            }
            Family::Var { .. } => Projections::Joint(point(3)),
        };
        Self { norm: norm(channels, device), projections, proj_out: point(1) }
    }

    pub(crate) fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let [b, c, h, w] = x_bchw.dims();
        let n = h * w;
        let y = normalize(&self.norm, x_bchw.clone(), false);
        // Every position a row, all images of the first one after the other: what attention takes.
        let y_rc = y.reshape([b, c, n]).permute([2, 0, 1]).reshape([n * b, c]);
        let (weight_oc, bias_o) = match &self.projections {
            Projections::Separate(Separate { q, k, v }) => {
                let (weights, biases) = [q, k, v].map(of_points).into_iter().unzip();
                (Tensor::cat(weights, 0), Tensor::cat(biases, 0))
            }
            Projections::Joint(joint) => of_points(joint),
        };
        let qkv_r3c = linear(y_rc, weight_oc.transpose(), bias_o);
        let temperature_1 = Tensor::full([1], (c as f64).powf(-0.5), &x_bchw.device());
        let config = AttentionConfig { batch: b, heads: 1, normalize: false };
        let out_rc = attention(qkv_r3c, temperature_1, &Visible::all(n), config);
        let out_bcn = out_rc.reshape([n, b, c]).permute([1, 2, 0]);
        x_bchw + convolve(&self.proj_out, out_bcn.reshape([b, c, h, w]))
    }
}

/// The weight, `[o, c]`, and the bias of a convolution of single positions.
fn of_points<B: Backend>(conv: &Conv2d<B>) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let [o, c, ..] = conv.weight.dims();
    let bias_o = conv.bias.as_ref().expect("a convolution with bias").val();
    (conv.weight.val().reshape([o, c]), bias_o)
}

/// Halves the side: 3x3 convolution of stride 2, padded by one at the right and bottom only.
#[derive(Module, Debug)]
pub(crate) struct Downsample<B: Backend> {
    conv: Conv2d<B>,
}

impl<B: Backend> Downsample<B> {
    pub(crate) fn new(channels: usize, device: &B::Device) -> Self {
        Self { conv: square_conv([channels, channels], 3, 2, [0, 0, 1, 1], device) }
    }

    fn in_bands(&self, bands: Bands<B>) -> Bands<B> {
        let bands = bands.map(1, |slab| slab.starting_here().convolve(&self.conv).x_bchw);
        let row = bands.row();
        bands.cut(row)
    }
}

/// Doubles the side: every pixel twice along both axes, then a 3x3 convolution.
#[derive(Module, Debug)]
pub(crate) struct Upsample<B: Backend> {
    conv: Conv2d<B>,
}

impl<B: Backend> Upsample<B> {
    pub(crate) fn new(channels: usize, device: &B::Device) -> Self {
        Self { conv: conv([channels, channels], 3, device) }
    }

    fn in_bands(&self, bands: Bands<B>) -> Bands<B> {
        // A row becomes two of twice the length.
        let row = 4 * bands.row();
        bands.cut(row).map(1, |slab| slab.doubled(1).convolve(&self.conv).x_bchw)
    }
}

/// The middle of encoder and decoder: block, attention, block.
#[derive(Module, Debug)]
pub(crate) struct Middle<B: Backend> {
    block_in: ResBlock<B>,
    attention: AttentionBlock<B>,
    block_out: ResBlock<B>,
}

impl<B: Backend> Middle<B> {
    pub(crate) fn new(family: Family, channels: usize, device: &B::Device) -> Self {
        Self {
            block_in: ResBlock::new(channels, channels, device),
            attention: AttentionBlock::new(family, channels, device),
            block_out: ResBlock::new(channels, channels, device),
        }
    }

    pub(crate) fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let x = self.block_in.forward(x_bchw);
        self.block_out.forward(self.attention.forward(x))
    }
}

/// The residual blocks of one level, each followed by attention at the coarsest level.
#[derive(Module, Debug)]
pub(crate) struct Level<B: Backend> {
    res: Vec<ResBlock<B>>,
    attn: Vec<AttentionBlock<B>>,
    downsample: Option<Downsample<B>>,
    upsample: Option<Upsample<B>>,
}

/// How a level changes the side when its blocks are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    Keep,
    Halve,
    Double,
}

impl<B: Backend> Level<B> {
    /// `attention` names the family whose attention follows each block, if any does.
    pub(crate) fn new(
        [c_in, c_out]: [usize; 2],
        n_blocks: usize,
        attention: Option<Family>,
        resize: Resize,
        device: &B::Device,
    ) -> Self {
        let width = |i: usize| if i == 0 { c_in } else { c_out };
        let attend =
            |family| (0..n_blocks).map(move |_| AttentionBlock::new(family, c_out, device));
        Self {
            res: (0..n_blocks).map(|i| ResBlock::new(width(i), c_out, device)).collect(),
            attn: attention.into_iter().flat_map(attend).collect(),
            downsample: (resize == Resize::Halve).then(|| Downsample::new(c_out, device)),
            upsample: (resize == Resize::Double).then(|| Upsample::new(c_out, device)),
        }
    }

    pub(crate) fn in_bands(&self, mut bands: Bands<B>) -> Bands<B> {
        for (i, block) in self.res.iter().enumerate() {
            bands = block.in_bands(bands);
            if let Some(attention) = self.attn.get(i) {
                bands = bands.whole_by(|x_bchw| attention.forward(x_bchw));
            }
        }
        if let Some(downsample) = &self.downsample {
            bands = downsample.in_bands(bands);
        }
        if let Some(upsample) = &self.upsample {
            bands = upsample.in_bands(bands);
        }
        bands
    }
}
