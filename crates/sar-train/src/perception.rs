//! The perceptual term of a tokenizer's loss: how far apart images and reconstructions are in the eyes of
//! a frozen network, or by their structure.
//!
//! Networks halve their input four or five times: below some size their last maps have no position, and
//! an output that is too small is left to the terms of pixels. So are the coarse scales of a direct
//! tokenizer, whose outputs are of a few pixels; what they show is an average of colors, of which a network
//! that was trained on photographs knows nothing. Structure is compared in windows of 11 px, and in smaller ones
//! it is another measure.
//!
//! Shapes: b batch, h height, w width.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSize, resample};
use sar_eval::Distance;
use sar_features::{EfficientNetLite0, Lpips, PerceptualDistance, WEIGHTS};
use sar_loss::ssim::ssim;
use sar_weights::WeightsError;

use crate::recipe::Perceptual;

/// What compares images with reconstructions beside their pixels.
#[derive(Clone, Debug)]
pub struct Perception<B: Backend> {
    eyes: Eyes<B>,
    weight: f64,
    /// Of the outputs that it looks at.
    min_side: usize,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each training, built once")]
enum Eyes<B: Backend> {
    /// A frozen network, and how many times their size images are enlarged to before it looks.
    Network(Distance<B>, usize),
    /// One minus the structural similarity.
    Structure,
}

impl<B: Backend> Perception<B> {
    /// What a recipe names; none if it names none.
    ///
    /// # Errors
    /// If its files cannot be read or are not what they should be.
    ///
    /// # Panics
    /// As [`Perceptual::min_side`].
    pub fn open(recipe: &Perceptual, device: &B::Device) -> Result<Option<Self>, WeightsError> {
        let (eyes, weight) = match recipe {
            Perceptual::None {} => return Ok(None),
            Perceptual::EfficientNetLite0 { weight, enlarge } => {
                let net = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), device)?;
                let distance = Distance::EfficientNetLite0(PerceptualDistance::new(net));
                (Eyes::Network(distance, *enlarge), *weight)
            }
            Perceptual::Lpips { weight, enlarge, vgg, channel_weights } => {
                let distance = Distance::LpipsVgg(Lpips::open(vgg, channel_weights, device)?);
                (Eyes::Network(distance, *enlarge), *weight)
            }
            Perceptual::Ssim { weight } => (Eyes::Structure, *weight),
        };
        Ok(Some(Self { eyes, weight, min_side: recipe.min_side() }))
    }

    /// What the mean distance is multiplied with in the loss.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The mean distance of reconstructions from what they should be; none where they are smaller than
    /// [`Perceptual::min_side`].
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
        if h.min(w) < self.min_side {
            return None;
        }
        match &self.eyes {
            Eyes::Network(distance, enlarge) => {
                let shown = ScaleSize { height: h * enlarge, width: w * enlarge };
                let [output, target] =
                    [output_bchw, target_bchw].map(|x| resample(x, shown, Filter::Linear));
                distance.between(output, target).map(Tensor::mean)
            }
            Eyes::Structure => Some(-ssim(output_bchw, target_bchw).mean() + 1.0),
        }
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

    fn open(recipe: &Perceptual) -> Option<Perception<A>> {
        Perception::open(recipe, &Default::default()).unwrap()
    }

    fn network(enlarge: usize) -> Perception<A> {
        open(&Perceptual::EfficientNetLite0 { weight: 0.3, enlarge }).unwrap()
    }

    fn images(seed: u64, [h, w]: [usize; 2]) -> Tensor<A, 4> {
        let values = SeedTree::new(seed).uniforms(2 * 3 * h * w);
        let values = values.iter().map(|u| 2.0 * u - 1.0).collect::<Vec<f32>>();
        Tensor::from_data(TensorData::new(values, [2, 3, h, w]), &Default::default())
    }

    /// A step along the gradient g for the output changes the distance by |g|^2 times the step. No pixel
    /// moves by more than `largest`.
    #[track_caller]
    fn follow(perception: &Perception<A>, [output, target]: [Tensor<A, 4>; 2], largest: f32) {
        let at = |output| perception.distance(output, target.clone()).unwrap();
        let leaf = output.clone().require_grad();
        let gradients = at(leaf.clone()).backward();
        let g = leaf.grad(&gradients).unwrap();
        let by = largest / g.clone().abs().max().into_scalar();
        let moved = |by: f32| {
            f64::from(at(output.clone() + Tensor::from_inner(g.clone() * by)).into_scalar())
        };
        let square = f64::from(g.clone().square().sum().into_scalar());
        let ratio = (moved(by) - moved(-by)) / (2.0 * f64::from(by) * square);
        assert!((ratio - 1.0).abs() < 0.02, "{ratio} of the change expected");
    }

    #[test]
    fn what_is_too_small_has_no_term() {
        let distance = |perception: Perception<A>, sides| {
            perception.distance(images(1, sides), images(2, sides))
        };
        let of = |enlarge, sides| distance(network(enlarge), sides);
        assert!(of(1, [31, 64]).is_none() && of(2, [15, 64]).is_none());
        assert!(of(1, [32, 40]).is_some() && of(2, [16, 20]).is_some());
        let of = |sides| distance(open(&Perceptual::Ssim { weight: 0.3 }).unwrap(), sides);
        assert!(of([10, 64]).is_none() && of([11, 12]).is_some());
        assert!(open(&Perceptual::None {}).is_none());
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
        let perception = network(2);
        let found = perception.distance(output.clone(), target.clone()).unwrap();
        assert!((found.into_scalar() - expected).abs() < 1e-6);
        follow(&perception, [output, target], 1e-2);
    }

    #[test]
    fn without_a_network_it_is_what_the_structures_have_not_in_common() {
        let perception = open(&Perceptual::Ssim { weight: 0.3 }).unwrap();
        assert_eq!(perception.weight(), 0.3);
        let (output, other) = (images(1, [12, 14]), images(2, [12, 14]));
        // Half of it is the image.
        let target = (output.clone() + other) / 2.0;
        let found = perception.distance(output.clone(), target.clone()).unwrap().into_scalar();
        let of_each = ssim(output.clone(), target.clone()).into_data().into_vec::<f32>().unwrap();
        let expected = 1.0 - (of_each[0] + of_each[1]) / 2.0;
        assert!((found - expected).abs() < 1e-6 && found > 0.1, "{found}, not {expected}");
        let same = perception.distance(output.clone(), output.clone()).unwrap().into_scalar();
        assert!(same.abs() < 1e-6, "{same}");
        follow(&perception, [output, target], 2e-3);
    }
}
