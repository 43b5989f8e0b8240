//! The perceptual term of a tokenizer's loss: how far apart images and reconstructions are in the eyes of
//! a frozen network.
//!
//! Networks halve their input four or five times: below some size their last maps have no position, and
//! an output that is too small is left to the terms of pixels. So are the coarse scales of a direct
//! tokenizer, whose outputs are of a few pixels; what they show is an average of colors, of which a network
//! that was trained on photographs knows nothing.
//!
//! Shapes: b batch, h height, w width.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSize, resample};
use sar_eval::Distance;
use sar_features::{EfficientNetLite0, Lpips, PerceptualDistance, WEIGHTS};
use sar_weights::WeightsError;

use crate::recipe::Perceptual;

/// A frozen network, and how images are shown to it.
#[derive(Clone, Debug)]
pub struct Perception<B: Backend> {
    distance: Distance<B>,
    weight: f64,
    enlarge: usize,
}

impl<B: Backend> Perception<B> {
    /// The network that a recipe names; none if it names none.
    ///
    /// # Errors
    /// If its files cannot be read or are not what they should be.
    pub fn open(recipe: &Perceptual, device: &B::Device) -> Result<Option<Self>, WeightsError> {
        Ok(match recipe {
            Perceptual::None {} => None,
            Perceptual::EfficientNetLite0 { weight, enlarge } => {
                let net = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), device)?;
                let distance = Distance::EfficientNetLite0(PerceptualDistance::new(net));
                Some(Self { distance, weight: *weight, enlarge: *enlarge })
            }
            Perceptual::Lpips { weight, enlarge, vgg, channel_weights } => {
                let distance = Distance::LpipsVgg(Lpips::open(vgg, channel_weights, device)?);
                Some(Self { distance, weight: *weight, enlarge: *enlarge })
            }
        })
    }

    /// What the mean distance is multiplied with in the loss.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The mean distance of reconstructions from what they should be; none where they are too small
    /// for the network.
    ///
    /// # Shapes
    /// - `output_bchw`, `target_bchw`: `[b, 3, h, w]`, pixels in [-1, 1]
    /// - output: one value
    pub fn distance(
        &self,
        output_bchw: Tensor<B, 4>,
        target_bchw: Tensor<B, 4>,
    ) -> Option<Tensor<B, 1>> {
        let [_, _, h, w] = output_bchw.dims();
        let shown = ScaleSize { height: h * self.enlarge, width: w * self.enlarge };
        if shown.height.min(shown.width) < self.distance.min_side() {
            return None;
        }
        let [output, target] =
            [output_bchw, target_bchw].map(|x| resample(x, shown, Filter::Linear));
        self.distance.between(output, target).map(Tensor::mean)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::TensorData;
    use burn_flex::Flex;
    use sar_core::SeedTree;

    use super::*;

    type A = Autodiff<Flex>;

    fn perception(enlarge: usize) -> Perception<A> {
        let recipe = Perceptual::EfficientNetLite0 { weight: 0.3, enlarge };
        Perception::open(&recipe, &Default::default()).unwrap().unwrap()
    }

    fn images(seed: u64, [h, w]: [usize; 2]) -> Tensor<A, 4> {
        let values = SeedTree::new(seed).uniforms(2 * 3 * h * w);
        let values = values.iter().map(|u| 2.0 * u - 1.0).collect::<Vec<f32>>();
        Tensor::from_data(TensorData::new(values, [2, 3, h, w]), &Default::default())
    }

    #[test]
    fn what_is_too_small_has_no_term() {
        let distance =
            |enlarge, sides| perception(enlarge).distance(images(1, sides), images(2, sides));
        assert!(distance(1, [31, 64]).is_none() && distance(2, [15, 64]).is_none());
        assert!(distance(1, [32, 40]).is_some() && distance(2, [16, 20]).is_some());
        assert!(
            Perception::<A>::open(&Perceptual::None {}, &Default::default()).unwrap().is_none()
        );
    }

    #[test]
    fn it_is_the_mean_distance_of_enlarged_images_with_a_gradient_for_the_output() {
        let (output, target) = (images(1, [16, 20]), images(2, [16, 20]));
        let large = |x: Tensor<A, 4>| {
            let size = ScaleSize { height: 32, width: 40 };
            resample(x, size, Filter::Linear)
        };
        let net = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), &Default::default()).unwrap();
        let expected = PerceptualDistance::new(net)
            .distance(large(output.clone()), large(target.clone()))
            .mean()
            .into_scalar();
        let perception = perception(2);
        let at = |output| perception.distance(output, target.clone()).unwrap();
        assert!((at(output.clone()).into_scalar() - expected).abs() < 1e-6);
        // A step along the gradient g changes it by |g|^2 times the step.
        let leaf = output.clone().require_grad();
        let gradients = at(leaf.clone()).backward();
        let g = leaf.grad(&gradients).unwrap();
        let by = 1e-2 / g.clone().abs().max().into_scalar();
        let moved = |by: f32| {
            f64::from(at(output.clone() + Tensor::from_inner(g.clone() * by)).into_scalar())
        };
        let square = f64::from(g.clone().square().sum().into_scalar());
        let ratio = (moved(by) - moved(-by)) / (2.0 * f64::from(by) * square);
        assert!((ratio - 1.0).abs() < 0.02, "{ratio} of the change expected");
    }
}
