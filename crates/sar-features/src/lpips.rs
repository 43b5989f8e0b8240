//! LPIPS (arXiv:1801.03924), version 0.1, on VGG16.
//!
//! Shapes: b batch, c channels, h height, w width.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_weights::{Anchor, Layout, WeightsError, WeightsFile};

use crate::Vgg16;
use crate::content::check_values;
use crate::convolution::waiting;
use crate::distance::{mean_over_positions, squared_differences, total};
use crate::load::load;
use crate::vgg::{MIN_SIDE, STAGES};

const ANCHOR: Anchor = Anchor { tensor: "lin0.model.1.weight", roots: &[""], averages: false };

const LAYOUT: Layout = Layout {
    renames: &[
        ("heads.0", "lin0.model.1"),
        ("heads.1", "lin1.model.1"),
        ("heads.2", "lin2.model.1"),
        ("heads.3", "lin3.model.1"),
        ("heads.4", "lin4.model.1"),
    ],
    ignored: &[],
};

/// What the weights of a map add up to in version 0.1. Those of version 0.0 have the same names and shapes.
const SUMS: [(&str, f64); 5] = [
    ("the sum of lin0", 6.9260),
    ("the sum of lin1", 8.8583),
    ("the sum of lin2", 17.5150),
    ("the sum of lin3", 51.5213),
    ("the sum of lin4", 47.0349),
];

const ADVICE: &str =
    "give lpips/weights/v0.1/vgg.pth of the PyPI package lpips, or a copy of its weights";

/// The learned perceptual distance LPIPS-VGG.
///
/// ```text
/// d(x, y) = sum over maps of mean over positions of w . (u(x) - u(y))^2,   u = f / (|f| + 1e-10)
/// ```
/// with f the channels at one position of the maps that [`Vgg16::maps`] gives, and w the learned
/// weights of a map's channels. Equal to `lpips.LPIPS(net='vgg', version='0.1')` in its evaluation mode.
#[derive(Module, Debug)]
pub struct Lpips<B: Backend> {
    vgg: Vgg16<B>,
    /// `[1, c, 1, 1]` for every map.
    weights: Vec<Tensor<B, 4>>,
}

#[derive(Module, Debug)]
struct Released<B: Backend> {
    heads: Vec<Head<B>>,
}

#[derive(Module, Debug)]
struct Head<B: Backend> {
    weight: Param<Tensor<B, 4>>,
}

impl<B: Backend> Lpips<B> {
    /// The smallest side of an image that the network takes, pixels.
    pub const MIN_SIDE: usize = MIN_SIDE;

    /// Reads the network from torchvision's file, see [`Vgg16::open`], and the weights of its channels
    /// from `lpips/weights/v0.1/vgg.pth` of the PyPI package `lpips`, or from a copy of it in any format.
    ///
    /// # Errors
    /// If a file cannot be read, if a tensor is missing, misshapen, not finite or not part of what
    /// the file should hold, or if the weights are not those of version 0.1.
    pub fn open(vgg: &Path, weights: &Path, device: &B::Device) -> Result<Self, WeightsError> {
        let lpips = Self::load(Vgg16::open(vgg, device)?, WeightsFile::open(weights)?, device)?;
        check_values(weights, lpips.sums(), ADVICE)?;
        Ok(lpips)
    }

    /// As [`open`](Self::open), from the bytes of the files, whose weights may be of any training.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for the last.
    pub fn from_bytes(
        vgg: Vec<u8>,
        weights: Vec<u8>,
        device: &B::Device,
    ) -> Result<Self, WeightsError> {
        let weights = WeightsFile::from_bytes("lpips", weights)?;
        Self::load(Vgg16::from_bytes(vgg, device)?, weights, device)
    }

    fn load(vgg: Vgg16<B>, file: WeightsFile, device: &B::Device) -> Result<Self, WeightsError> {
        let head = |(channels, _)| Head { weight: waiting([1, channels, 1, 1], device) };
        let released = Released { heads: STAGES.into_iter().map(head).collect() };
        let heads = load(released, file, &ANCHOR, &LAYOUT)?.heads;
        let weights = heads.into_iter().map(|head| head.weight.val().detach()).collect();
        Ok(Self { vgg, weights })
    }

    /// What the weights of each map add up to, and should.
    fn sums(&self) -> Vec<(&'static str, f64, f64)> {
        let sum = |weight: &Tensor<B, 4>| -> f64 { weight.to_data().iter::<f64>().sum() };
        let sums = SUMS.into_iter().zip(&self.weights);
        sums.map(|((name, released), weight)| (name, sum(weight), released)).collect()
    }

    /// The distance of each image from its counterpart, with gradients for either.
    ///
    /// # Shapes
    /// - `x_bchw`, `y_bchw`: `[b, 3, h, w]`, pixels in [-1, 1], sides of [`MIN_SIDE`](Self::MIN_SIDE) at least
    /// - output: `[b]`
    ///
    /// # Panics
    /// If the shapes differ, or as [`Vgg16::maps`].
    pub fn distance(&self, x_bchw: Tensor<B, 4>, y_bchw: Tensor<B, 4>) -> Tensor<B, 1> {
        assert_eq!(x_bchw.dims(), y_bchw.dims(), "images and their counterparts");
        let pairs = self.vgg.maps(x_bchw).into_iter().zip(self.vgg.maps(y_bchw));
        let distances = pairs.zip(&self.weights).map(|((x, y), weight_1c11)| {
            let weighted = squared_differences(x, y) * weight_1c11.clone();
            mean_over_positions(weighted.sum_dim(1))
        });
        total(distances.collect())
    }
}
