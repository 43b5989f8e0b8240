//! Distances between images in the eyes of a network, as figures.
//!
//! Shapes: b batch, h height, w width.

use burn::tensor::{Tensor, backend::Backend};
use sar_features::{Lpips, PerceptualDistance};

/// How many pairs of images go through a network at a time: its maps are far larger than the images.
const AT_A_TIME: usize = 4;

/// A network with its distance. Values of different networks do not compare.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Distance<B: Backend> {
    /// Over the maps of EfficientNet-Lite0, all channels alike.
    EfficientNetLite0(PerceptualDistance<B>),
    /// LPIPS, version 0.1, over VGG16.
    LpipsVgg(Lpips<B>),
}

impl<B: Backend> Distance<B> {
    /// What figures call it: `efficientnet-lite0` or `lpips-vgg`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EfficientNetLite0(_) => "efficientnet-lite0",
            Self::LpipsVgg(_) => "lpips-vgg",
        }
    }

    /// The smallest side of an image that the network takes, pixels.
    pub fn min_side(&self) -> usize {
        match self {
            Self::EfficientNetLite0(_) => PerceptualDistance::<B>::MIN_SIDE,
            Self::LpipsVgg(_) => Lpips::<B>::MIN_SIDE,
        }
    }

    /// The distance of each image from its counterpart, with gradients for either; nothing where the
    /// images are too small for the network.
    ///
    /// # Shapes
    /// - `x_bchw`, `y_bchw`: `[b, 3, h, w]`, pixels in [-1, 1]
    /// - output: `[b]`
    ///
    /// # Panics
    /// If the shapes differ, or there are other than three channels.
    pub fn between(&self, x_bchw: Tensor<B, 4>, y_bchw: Tensor<B, 4>) -> Option<Tensor<B, 1>> {
        let [_, _, h, w] = x_bchw.dims();
        (h.min(w) >= self.min_side()).then(|| match self {
            Self::EfficientNetLite0(network) => network.distance(x_bchw, y_bchw),
            Self::LpipsVgg(network) => network.distance(x_bchw, y_bchw),
        })
    }

    /// The same as numbers, without gradients, a few images at a time: b values.
    ///
    /// # Panics
    /// As [`between`](Self::between).
    pub fn of(&self, x_bchw: Tensor<B, 4>, y_bchw: Tensor<B, 4>) -> Option<Vec<f64>> {
        let pairs = x_bchw.split(AT_A_TIME, 0).into_iter().zip(y_bchw.split(AT_A_TIME, 0));
        let parts = pairs.map(|(x, y)| self.between(x, y)).collect::<Option<Vec<_>>>()?;
        let host = |x: Tensor<B, 1>| x.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        Some(parts.into_iter().flat_map(host).map(f64::from).collect())
    }
}
