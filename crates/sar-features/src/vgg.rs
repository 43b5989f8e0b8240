//! VGG16 (arXiv:1409.1556), configuration D, up to its last convolution.
//!
//! Shapes: b batch, c channels, h height, w width.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::{Tensor, backend::Backend};
use sar_weights::{Anchor, Layout, WeightsError, WeightsFile};

use crate::content::{check_hash, check_values};
use crate::convolution::{Convolution, waiting};
use crate::load::load;

/// Channels and convolutions of the stages; before every stage but the first the sides are halved.
pub(crate) const STAGES: [(usize, usize); 5] = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)];

/// The smallest side of an image that VGG16 takes: one position is left after its last halving.
pub const MIN_SIDE: usize = 16;

/// Mean and deviation of ImageNet's red, green and blue, for pixels in [-1, 1], as LPIPS rounds them.
const MEAN: [f32; 3] = [-0.030, -0.088, -0.188];
const DEVIATION: [f32; 3] = [0.458, 0.448, 0.450];

const ANCHOR: Anchor = Anchor { tensor: "features.0.weight", roots: &[""], averages: false };

const LAYOUT: Layout = Layout {
    renames: &[],
    ignored: &[
        "classifier.0.weight",
        "classifier.0.bias",
        "classifier.3.weight",
        "classifier.3.bias",
        "classifier.6.weight",
        "classifier.6.bias",
    ],
};

/// The SHA-256 of torchvision's file begins so, and its name, vgg16-397923af.pth, says it.
const SHA256: &str = "397923af";

/// The first weights there. Those of torchvision's other file of the same shapes, for pixels of another range,
/// and of Caffe's are others.
const FIRST: [(&str, f64); 3] = [
    ("features.0.weight[0, 0, 0, 0]", -0.5537),
    ("features.0.weight[0, 0, 0, 1]", 0.1427),
    ("features.0.weight[0, 0, 0, 2]", 0.5290),
];

const ADVICE: &str =
    "give torchvision's vgg16-397923af.pth (IMAGENET1K_V1), or a copy of its weights";

/// The convolutions of VGG16 without its classifier.
#[derive(Module, Debug)]
pub struct Vgg16<B: Backend> {
    stages: Vec<Vec<Convolution<B>>>,
}

/// torchvision's names: a list in which activations and pools count, too.
#[derive(Module, Debug)]
struct Released<B: Backend> {
    features: Vec<Option<Layer<B>>>,
}

#[derive(Module, Debug)]
struct Layer<B: Backend> {
    weight: Param<Tensor<B, 4>>,
    bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Vgg16<B> {
    /// Reads the weights from the file of torchvision's `vgg16` (`IMAGENET1K_V1`), whose classifier is
    /// passed over, or from a copy of it in any format. A file that has the name of torchvision's has to be that
    /// one to the bit.
    ///
    /// # Errors
    /// If the file cannot be read, if a tensor is missing, misshapen, not finite or not part of the
    /// network, or if the first numbers are those of another training.
    pub fn open(path: &Path, device: &B::Device) -> Result<Self, WeightsError> {
        check_hash(path, SHA256)?;
        let released = Released::load(WeightsFile::open(path)?, device)?;
        check_values(path, released.first(), ADVICE)?;
        Ok(released.into_stages())
    }

    /// As [`open`](Self::open), from the bytes of a file, which may be of any training.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for the last.
    pub fn from_bytes(bytes: Vec<u8>, device: &B::Device) -> Result<Self, WeightsError> {
        let file = WeightsFile::from_bytes("vgg16", bytes)?;
        Ok(Released::load(file, device)?.into_stages())
    }

    /// The map at the end of every stage, behind its activation: `relu1_2`, `relu2_2`, `relu3_3`,
    /// `relu4_3` and `relu5_3`.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, 3, h, w]`, pixels in [-1, 1], sides of 16 at least
    /// - output: `[b, c, h / s, w / s]` with (c, s) of (64, 1), (128, 2), (256, 4), (512, 8) and (512, 16),
    ///   sides halved and rounded down
    ///
    /// # Panics
    /// If the images have other channels, or a smaller side.
    pub fn maps(&self, x_bchw: Tensor<B, 4>) -> Vec<Tensor<B, 4>> {
        let [_, c, h, w] = x_bchw.dims();
        assert!(
            c == 3 && h >= MIN_SIDE && w >= MIN_SIDE,
            "images of 3 channels, {MIN_SIDE} px and more, not of {c} channels, {w}x{h} px"
        );
        let [mean, deviation] = [MEAN, DEVIATION].map(|of_rgb| {
            Tensor::<B, 1>::from_floats(of_rgb, &x_bchw.device()).reshape([1, 3, 1, 1])
        });
        let mut x = (x_bchw - mean) / deviation;
        let mut maps = Vec::new();
        for stage in &self.stages {
            if !maps.is_empty() {
                x = max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], false);
            }
            x = stage.iter().fold(x, |x, convolution| relu(convolution.forward(x)));
            maps.push(x.clone());
        }
        maps
    }
}

impl<B: Backend> Released<B> {
    fn load(file: WeightsFile, device: &B::Device) -> Result<Self, WeightsError> {
        load(Self::new(device), file, &ANCHOR, &LAYOUT)
    }

    /// The first weights, as they are and as they should be.
    fn first(&self) -> Vec<(&'static str, f64, f64)> {
        let layer = self.features[0].as_ref().expect("a convolution");
        let row = layer.weight.val().slice([0..1, 0..1, 0..1, 0..3]).into_data();
        let numbers = FIRST.into_iter().zip(row.iter::<f64>());
        numbers.map(|((name, released), found)| (name, found, released)).collect()
    }

    fn into_stages(self) -> Vgg16<B> {
        let mut layers = self.features.into_iter().flatten();
        let stage = |(_, n)| {
            let layers = layers.by_ref().take(n);
            layers.map(|layer| Convolution::new(layer.weight.val(), layer.bias.val(), 1)).collect()
        };
        Vgg16 { stages: STAGES.into_iter().map(stage).collect() }
    }

    fn new(device: &B::Device) -> Self {
        let mut features = Vec::new();
        let mut c_in = 3;
        for (at, (channels, n)) in STAGES.into_iter().enumerate() {
            if at > 0 {
                features.push(None);
            }
            for _ in 0..n {
                features.push(Some(Layer {
                    weight: waiting([channels, c_in, 3, 3], device),
                    bias: waiting([channels], device),
                }));
                features.push(None);
                c_in = channels;
            }
        }
        Self { features }
    }
}
