//! The discriminator: an enum of families.
//!
//! Shapes: b batch, h height, w width, n positions.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use sar_features::EfficientNetLite0;
use sar_weights::Layout;

use crate::{DiscriminatorConfig, DiscriminatorConfigError, FeatureHeads, PatchGan};

/// How the parameters are named in files: as they are in the module.
///
/// `first.weight`, `blocks.0.conv.weight`, `blocks.0.norm.bias`, `last.bias` and so on, with `heads.0.`
/// before those of a head over features.
pub const LAYOUT: Layout = Layout { renames: &[], ignored: &[] };

/// Tells images of the data from those of a decoder.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each training, built once")]
#[non_exhaustive]
pub enum Discriminator<B: Backend> {
    /// Convolutions alone.
    PatchGan(PatchGan<B>),
    /// Heads over the maps of a frozen network.
    Features(FeatureHeads<B>),
}

impl<B: Backend> Discriminator<B> {
    /// A discriminator whose convolutions are zero, for weights of a file; [`init`](crate::init) draws
    /// them. Families that look through a frozen network ask `net` for it, others never call it.
    ///
    /// # Errors
    /// If the configuration cannot be built.
    pub fn new(
        config: &DiscriminatorConfig,
        net: impl FnOnce() -> EfficientNetLite0<B>,
        device: &B::Device,
    ) -> Result<Self, DiscriminatorConfigError> {
        config.validate()?;
        Ok(match *config {
            DiscriminatorConfig::PatchGan { channels, layers } => {
                Self::PatchGan(PatchGan::new(channels, layers, device))
            }
            DiscriminatorConfig::Features { channels } => {
                Self::Features(FeatureHeads::new(channels, net(), device))
            }
        })
    }

    /// How much parts of images look like those of the data: logits, one tensor for each map.
    ///
    /// Maps of fine resolution have most of the positions, and should have no more weight than
    /// coarse ones: `sar_loss::adversarial` takes the mean of each map first.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, 3, h, w]`, pixels in [-1, 1], sides of [`min_side`](Self::min_side) at least
    /// - output: `[b, n]` for each map, row by row: one map of `PatchGan`, whose sides are those of the
    ///   image halved `layers` times, rounded down, and 2 less; five of `Features`, finest first, with
    ///   the sides of [`EfficientNetLite0::maps`]
    ///
    /// # Panics
    /// If the images have other channels, or a smaller side.
    pub fn logits(&self, x_bchw: Tensor<B, 4>) -> Vec<Tensor<B, 2>> {
        match self {
            Self::PatchGan(model) => model.logits(x_bchw),
            Self::Features(model) => model.logits(x_bchw),
        }
    }

    /// The smallest side of an image that it can judge, in pixels.
    pub fn min_side(&self) -> usize {
        match self {
            Self::PatchGan(model) => model.min_side(),
            Self::Features(model) => model.min_side(),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::{AutodiffModule, Param};
    use burn::tensor::TensorData;
    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_features::WEIGHTS;
    use sar_weights::parameters;

    use super::*;
    use crate::init;
    use crate::layers::Block;

    type A = Autodiff<Flex>;

    const SMALL: [DiscriminatorConfig; 2] = [
        DiscriminatorConfig::PatchGan { channels: 8, layers: 2 },
        DiscriminatorConfig::Features { channels: 8 },
    ];

    fn build(config: &DiscriminatorConfig) -> Discriminator<Flex> {
        let device = Default::default();
        let net = || EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), &device).unwrap();
        init(config, net, SeedTree::new(3), &device).unwrap()
    }

    /// In training, as a learner makes it of weights that are on the inner backend.
    fn tracked(model: Discriminator<Flex>) -> Discriminator<A> {
        let mut model = Discriminator::<A>::from_inner(model);
        let block = first_block(&mut model);
        block.conv.weight = block.conv.weight.clone().map(|weight| weight.require_grad());
        model
    }

    fn first_block(model: &mut Discriminator<A>) -> &mut Block<A> {
        match model {
            Discriminator::PatchGan(model) => &mut model.blocks[0],
            Discriminator::Features(model) => &mut model.heads[1].blocks[0],
        }
    }

    fn images<B: Backend>(shape: [usize; 4]) -> Tensor<B, 4> {
        let n = shape.iter().product();
        let pixels: Vec<f32> = (1..=n).map(|i| (i as f32 * 0.0123).sin() * 0.9).collect();
        Tensor::from_data(TensorData::new(pixels, shape), &Default::default())
    }

    /// A sum in which every logit has a factor of its own.
    fn value(model: &Discriminator<A>, x_bchw: Tensor<A, 4>) -> Tensor<A, 1> {
        let of_map = |logits_bn: Tensor<A, 2>| {
            let [b, n] = logits_bn.dims();
            let factors = (1..=b * n).map(|i| (i as f32 * 1.7).sin()).collect::<Vec<_>>();
            let factors = Tensor::from_data(TensorData::new(factors, [b, n]), &Default::default());
            (logits_bn * factors).mean_dim(1).sum()
        };
        model.logits(x_bchw).into_iter().map(of_map).reduce(|a, b| a + b).unwrap()
    }

    /// A step along the gradient g changes the value by |g|^2 times the step. No element moves by more
    /// than `largest`, which is small beside the kinks and curves of the norms.
    #[track_caller]
    fn expect_change<const D: usize>(
        what: &str,
        g: Tensor<Flex, D>,
        largest: f32,
        value_at: impl Fn(Tensor<A, D>) -> Tensor<A, 1>,
    ) {
        let square = g.clone().square().sum().into_scalar();
        assert!(square > 0.0, "{what}: no gradient");
        let step = largest / g.clone().abs().max().into_scalar();
        let at =
            |step: f32| f64::from(value_at(Tensor::from_inner(g.clone() * step)).into_scalar());
        let ratio = (at(step) - at(-step)) / f64::from(2.0 * step * square);
        assert!((ratio - 1.0).abs() < 0.02, "{what}: {ratio} of the change expected");
    }

    #[test]
    fn gradients_are_the_changes_of_logits() {
        for config in &SMALL {
            let mut model = tracked(build(config));
            let x = images::<A>([2, 3, 32, 35]).require_grad();
            let gradients = value(&model, x.clone()).backward();
            let of_image = x.grad(&gradients).unwrap();
            let weight = first_block(&mut model).conv.weight.val();
            let of_weight = weight.grad(&gradients).unwrap();
            let (x, weight) = (x.detach(), weight.inner());
            expect_change("image", of_image, 5e-5, |by| value(&model, x.clone() + by));
            expect_change("weight", of_weight, 1e-6, |by| {
                let mut moved = model.clone();
                first_block(&mut moved).conv.weight =
                    Param::from_tensor(Tensor::from_inner(weight.clone() + by.inner()));
                value(&moved, x.clone())
            });
        }
    }

    #[test]
    fn logits_of_an_image_do_not_depend_on_its_batch() {
        for config in &SMALL {
            let model = build(config);
            let x = images::<Flex>([3, 3, 33, 32]);
            let alone = model.logits(x.clone().narrow(0, 1, 1));
            for (together, alone) in model.logits(x.clone()).into_iter().zip(alone) {
                let error = (together.narrow(0, 1, 1) - alone).abs().max().into_scalar();
                assert!(error < 1e-6, "{config:?}: {error}");
            }
        }
    }

    #[test]
    fn a_map_of_logits_for_each_map_of_features() {
        let [patches, features] = SMALL.each_ref().map(build);
        let dims = |model: &Discriminator<Flex>| {
            let logits = model.logits(images([2, 3, 64, 32]));
            logits.iter().map(|logits| logits.dims()).collect::<Vec<_>>()
        };
        assert_eq!(dims(&patches), [[2, 14 * 6]]);
        assert_eq!(dims(&features), [[2, 512], [2, 128], [2, 32], [2, 8], [2, 2]]);
        for (config, model) in SMALL.iter().zip([patches, features]) {
            assert_eq!(config.min_side(), model.min_side());
            let side = model.min_side();
            model.logits(images([1, 3, side, side]));
        }
    }

    #[test]
    fn names_are_those_of_trained_parameters_alone() {
        let names = |model: &Discriminator<Flex>| {
            let infos = parameters(model, &LAYOUT);
            let n = infos.iter().map(|info| info.shape.iter().product::<usize>()).sum::<usize>();
            assert_eq!(n, model.num_params());
            infos.into_iter().map(|info| info.name).collect::<Vec<_>>()
        };
        let [patches, features] = SMALL.each_ref().map(build);
        let block = |head: &str, i: usize| {
            ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
                .map(|name| format!("{head}blocks.{i}.{name}"))
        };
        let mut expected = vec!["first.weight".to_owned(), "first.bias".into()];
        expected.extend((0..2).flat_map(|i| block("", i)));
        expected.extend(["last.weight".into(), "last.bias".into()]);
        assert_eq!(names(&patches), expected);
        let head = |i: usize| {
            let head = format!("heads.{i}.");
            let last = ["weight", "bias"].map(|name| format!("{head}last.{name}"));
            (0..2).flat_map(|i| block(&head, i)).chain(last).collect::<Vec<_>>()
        };
        assert_eq!(names(&features), (0..5).flat_map(head).collect::<Vec<_>>());
        // 16 + 24 + 40 + 112 + 320 channels of maps; 8 inside.
        let inside = 8 + 2 * 8 + (9 * 8 * 8 + 8) + 2 * 8 + (8 + 1);
        assert_eq!(features.num_params(), 512 * 8 + 5 * inside);
    }
}
