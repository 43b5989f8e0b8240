//! Networks whose features sets of images are compared by.

use std::path::Path;

use burn::tensor::{Tensor, backend::Backend};
use sar_core::pixels::rgb_to_tensor;
use sar_data::RgbImage;
use sar_features::{EfficientNetLite0, Inception, InceptionInput, WEIGHTS};
use sar_weights::{Crc32, WeightsError};
use serde::{Deserialize, Serialize};

/// Images that go through a network together: with more, its maps leave the caches.
pub(crate) const BATCH: usize = 16;

/// A frozen network and the way images come to it. Figures of different ones do not compare.
#[derive(Debug)]
pub struct Extractor<B: Backend> {
    network: Network<B>,
    hash: String,
}

#[derive(Debug)]
enum Network<B: Backend> {
    EfficientNetLite0(EfficientNetLite0<B>),
    Inception(Box<Inception<B>>, InceptionInput),
}

/// What a network says of some images, one row after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Extracted {
    /// Features of the images.
    pub pooled: Vec<f32>,
    /// Features of places in the images, and how many an image has, of a network that has these.
    pub places: Option<(usize, Vec<f32>)>,
    /// The logits of a network's own classes, and how many there are.
    pub logits: Option<(usize, Vec<f32>)>,
}

impl<B: Backend> Extractor<B> {
    /// EfficientNet-Lite0 at 160 px with the weights that come along, see [`EfficientNetLite0::pooled`].
    pub fn efficientnet_lite0(device: &B::Device) -> Self {
        let network = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), device);
        let network = Network::EfficientNetLite0(network.expect("weights that come along"));
        Self { network, hash: Crc32::of(WEIGHTS).to_string() }
    }

    /// The network that FID is defined by, with the user's weights, see [`Inception::open`].
    ///
    /// # Errors
    /// If the file cannot be read, or holds other weights.
    pub fn inception(
        path: &Path,
        input: InceptionInput,
        device: &B::Device,
    ) -> Result<Self, WeightsError> {
        let bytes =
            std::fs::read(path).map_err(|error| WeightsError::Read { path: path.into(), error })?;
        let hash = Crc32::of(&bytes).to_string();
        let network = Inception::from_bytes(path, bytes, device)?;
        let network = Network::Inception(Box::new(network), input);
        Ok(Self { network, hash })
    }

    /// What reports call it.
    pub fn name(&self) -> &'static str {
        match self.network {
            Network::EfficientNetLite0(_) => "efficientnet-lite0",
            Network::Inception(..) => "inception-2015-12-05",
        }
    }

    /// How images become what it takes, as reports say it.
    pub fn input(&self) -> &'static str {
        match self.network {
            Network::EfficientNetLite0(_) => "bilinear to 160 px",
            Network::Inception(_, input) => input.name(),
        }
    }

    /// CRC-32 of its file of weights, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Number of features of an image.
    pub fn dimension(&self) -> usize {
        match self.network {
            Network::EfficientNetLite0(_) => EfficientNetLite0::<B>::FEATURES,
            Network::Inception(..) => Inception::<B>::FEATURES,
        }
    }

    /// Looks at images of one size, some at a time.
    ///
    /// # Panics
    /// If they are of several sizes.
    pub fn look(&self, images: &[RgbImage], device: &B::Device) -> Vec<Extracted> {
        images.chunks(BATCH).map(|images| self.look_at_once(images, device)).collect()
    }

    fn look_at_once(&self, images: &[RgbImage], device: &B::Device) -> Extracted {
        let (width, height) = images.first().expect("images").dimensions();
        let bytes = images.iter().map(|image| image.as_raw().as_slice());
        let x_bchw: Tensor<B, 4> = rgb_to_tensor(bytes, [height as usize, width as usize], device);
        match &self.network {
            Network::EfficientNetLite0(network) => {
                Extracted { pooled: host(network.pooled(x_bchw)).1, places: None, logits: None }
            }
            Network::Inception(network, input) => {
                let seen = network.features(input.prepare(x_bchw));
                Extracted {
                    pooled: host(seen.pool_bf).1,
                    places: Some(host(seen.spatial_bs)),
                    logits: Some(host(seen.logits_bk)),
                }
            }
        }
    }
}

/// Columns and values.
fn host<B: Backend>(x_bd: Tensor<B, 2>) -> (usize, Vec<f32>) {
    let [_, columns] = x_bd.dims();
    (columns, x_bd.into_data().convert::<f32>().into_vec().expect("f32"))
}
