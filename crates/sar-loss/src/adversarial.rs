//! Losses of a decoder and of the discriminator that it is trained against.
//!
//! Logits are lists of maps, as a discriminator with several heads gives them: every map counts
//! the same, whatever its number of positions.
//!
//! Shapes: b images, n positions.

use burn::tensor::activation::relu;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::vq::mean_square;

/// What is left of an average of logits after one step.
pub const LECAM_DECAY: f64 = 0.999;

/// Added to the norm that [`adaptive_weight`] divides by.
const EPSILON: f64 = 1e-4;
/// The largest [`adaptive_weight`].
const LARGEST_WEIGHT: f64 = 1e4;

/// `mean D(x)`: what a discriminator thinks of images on the whole.
///
/// # Shapes
/// - `logits`: `[b, n]` for each map
/// - output: one value
///
/// # Panics
/// If there are no maps.
pub fn mean_logit<B: Backend>(logits: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    mean_over_maps(logits, mean)
}

/// The loss of the decoder.
///
/// ```text
/// -mean D(fake)
/// ```
///
/// # Shapes
/// - `fake`: logits of decoded images, `[b, n]` for each map
/// - output: one value
///
/// # Panics
/// If there are no maps.
pub fn generator<B: Backend>(fake: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    -mean_logit(fake)
}

/// The loss of the discriminator, with the factor of taming-transformers.
///
/// ```text
/// (mean relu(1 - D(real)) + mean relu(1 + D(fake))) / 2
/// ```
///
/// # Shapes
/// - `real`, `fake`: logits of images of the data and of decoded ones, `[b, n]` for each map
/// - output: one value
///
/// # Panics
/// If there are no maps.
pub fn hinge<B: Backend>(real: &[Tensor<B, 2>], fake: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    let of_real = mean_over_maps(real, |logits_bn| mean(relu(-logits_bn + 1.0)));
    let of_fake = mean_over_maps(fake, |logits_bn| mean(relu(logits_bn + 1.0)));
    (of_real + of_fake) / 2.0
}

/// Keeps a discriminator of little data from drifting away from its past judgment of the other side
/// (LeCam regularization, arXiv:2104.03310, as in its published code).
///
/// ```text
/// mean relu(D(real) - ema D(fake))^2 + mean relu(ema D(real) - D(fake))^2
/// ```
/// No gradient goes to the averages.
///
/// # Shapes
/// - `real`, `fake`: as for [`hinge`]
/// - `ema_real`, `ema_fake`: one value each, of [`LeCamAverages`]
/// - output: one value
///
/// # Panics
/// If there are no maps.
pub fn lecam<B: Backend>(
    real: &[Tensor<B, 2>],
    fake: &[Tensor<B, 2>],
    ema_real: Tensor<B, 1>,
    ema_fake: Tensor<B, 1>,
) -> Tensor<B, 1> {
    let [ema_real, ema_fake] = [ema_real, ema_fake].map(|ema| ema.detach().reshape([1, 1]));
    let of_real = mean_over_maps(real, |real_bn| mean_square(relu(real_bn - ema_fake.clone())));
    let of_fake = mean_over_maps(fake, |fake_bn| mean_square(relu(ema_real.clone() - fake_bn)));
    of_real + of_fake
}

/// Moving averages of [`mean_logit`], of images of the data and of decoded ones, on the device.
#[derive(Clone, Debug)]
pub struct LeCamAverages<B: Backend> {
    real: Tensor<B, 1>,
    fake: Tensor<B, 1>,
}

impl<B: Backend> LeCamAverages<B> {
    /// Averages before the first step: zero, the logit of a discriminator that cannot tell.
    pub fn new(device: &B::Device) -> Self {
        let zero = Tensor::zeros([1], device);
        Self { real: zero.clone(), fake: zero }
    }

    /// Takes in the means of a step: `0.999 average + 0.001 mean`.
    ///
    /// # Shapes
    /// - `real`, `fake`: one value each
    pub fn update(self, real: Tensor<B, 1>, fake: Tensor<B, 1>) -> Self {
        let next = |average: Tensor<B, 1>, mean: Tensor<B, 1>| {
            average * LECAM_DECAY + mean.detach() * (1.0 - LECAM_DECAY)
        };
        Self { real: next(self.real, real), fake: next(self.fake, fake) }
    }

    /// The average of images of the data.
    pub fn real(&self) -> Tensor<B, 1> {
        self.real.clone()
    }

    /// The average of decoded images.
    pub fn fake(&self) -> Tensor<B, 1> {
        self.fake.clone()
    }

    /// Real, then fake, as f32: what a checkpoint keeps. Waits for the device.
    pub fn to_data(&self) -> TensorData {
        Tensor::cat(vec![self.real(), self.fake()], 0).into_data().convert::<f32>()
    }

    /// What [`to_data`](Self::to_data) gave; nothing if it is something else.
    pub fn from_data(data: &TensorData, device: &B::Device) -> Option<Self> {
        let [real, fake] = data.to_vec::<f32>().ok()?.try_into().ok()?;
        let [real, fake] = [real, fake].map(|value| Tensor::from_floats([value], device));
        Some(Self { real, fake })
    }
}

/// The weight of the decoder's adversarial loss at which its gradient is as large as that of the
/// reconstruction (VQGAN, arXiv:2012.09841, equation 7, bounded as in taming-transformers).
///
/// ```text
/// clamp(|g_reconstruction| / (|g_adversarial| + 1e-4), 0, 1e4)
/// ```
/// with g the gradients of the two losses for the weight of the decoder's last layer. No
/// gradient goes through it.
///
/// # Shapes
/// - both norms and the output: one value each
pub fn adaptive_weight<B: Backend>(
    norm_reconstruction: Tensor<B, 1>,
    norm_adversarial: Tensor<B, 1>,
) -> Tensor<B, 1> {
    let ratio = norm_reconstruction.detach() / (norm_adversarial.detach() + EPSILON);
    ratio.clamp(0.0, LARGEST_WEIGHT)
}

fn mean_over_maps<B: Backend>(
    maps: &[Tensor<B, 2>],
    of_map: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
) -> Tensor<B, 1> {
    let sum = maps.iter().cloned().map(of_map).reduce(|sum, one| sum + one);
    sum.expect("at least one map of logits") / maps.len() as f64
}

/// Mean over all positions of all images, dimension by dimension.
fn mean<B: Backend>(x_bn: Tensor<B, 2>) -> Tensor<B, 1> {
    x_bn.mean_dim(1).mean_dim(0).reshape([1])
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    type A = Autodiff<Flex>;
    type Maps = Vec<Tensor<A, 2>>;

    /// Two images with logits of two maps, of one position and of two.
    fn maps([coarse, fine]: [&[f32]; 2]) -> Maps {
        let device = Default::default();
        let map = |values: &[f32], n| Tensor::<A, 1>::from_floats(values, &device).reshape([2, n]);
        vec![map(coarse, 1), map(fine, 2)]
    }

    fn real() -> Maps {
        maps([&[0.5, 2.0], &[-1.0, 0.0, 1.5, 0.25]])
    }

    fn fake() -> Maps {
        maps([&[-3.0, 0.5], &[-0.5, 1.0, -2.0, 0.0]])
    }

    fn one(value: f32) -> Tensor<A, 1> {
        Tensor::from_floats([value], &Default::default())
    }

    #[track_caller]
    fn near(found: Tensor<A, 1>, expected: f32) {
        let found = found.into_scalar();
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found}, {expected}");
    }

    #[test]
    fn losses_by_hand() {
        // Means of the maps: 1.25 and 0.1875, -1.25 and -0.375.
        near(mean_logit(&real()), 0.71875);
        near(generator(&fake()), 0.8125);
        // relu(1 - real): 0.5, 0 and 2, 1, 0, 0.75; relu(1 + fake): 0, 1.5 and 0.5, 2, 0, 1.
        near(hinge(&real(), &fake()), ((0.25 + 0.9375) / 2.0 + (0.75 + 0.875) / 2.0) / 2.0);
        // relu(real + 0.5): 1, 2.5 and 0, 0.5, 2, 0.75; relu(0.25 - fake): 3.25, 0 and 0.75, 0, 2.25,
        // 0.25.
        let of_real = (7.25 / 2.0 + (0.25 + 4.0 + 0.5625) / 4.0) / 2.0;
        let of_fake = (10.5625 / 2.0 + (0.5625 + 5.0625 + 0.0625) / 4.0) / 2.0;
        near(lecam(&real(), &fake(), one(0.25), one(-0.5)), of_real + of_fake);
    }

    #[test]
    fn gradients_are_the_changes_of_losses() {
        // No logit is at a kink: 1 of the hinges, and the averages.
        let losses: [fn(&Maps, &Maps) -> Tensor<A, 1>; 3] = [
            |_, fake| generator(fake),
            |real, fake| hinge(real, fake),
            |real, fake| lecam(real, fake, one(0.3), one(-0.6)),
        ];
        let [real, fake] = [maps([&[0.5, 2.0], &[-1.1, 0.0, 1.5, 0.25]]), fake()];
        for (i, loss) in losses.into_iter().enumerate() {
            let tracked = |maps: &Maps| -> Maps {
                maps.iter().map(|map| map.clone().require_grad()).collect()
            };
            let [real_t, fake_t] = [tracked(&real), tracked(&fake)];
            let gradients = loss(&real_t, &fake_t).backward();
            let [moved_real, moved_fake] = [[1e-2f32, 0.0], [0.0, 1e-2]];
            for (side, by) in [(&real_t, moved_real), (&fake_t, moved_fake)] {
                for m in 0..2 {
                    let n = side[m].dims()[1];
                    let gradient = side[m].grad(&gradients);
                    for at in 0..2 * n {
                        let mut step = vec![0f32; 2 * n];
                        step[at] = 1.0;
                        let step = Tensor::<A, 1>::from_floats(&step[..], &Default::default())
                            .reshape([2, n]);
                        let value = |sign: f32| {
                            let moved = |maps: &Maps, by: f32| {
                                let mut maps = maps.clone();
                                maps[m] = maps[m].clone() + step.clone() * (sign * by);
                                maps
                            };
                            loss(&moved(&real, by[0]), &moved(&fake, by[1])).into_scalar()
                        };
                        let change = (value(1.0) - value(-1.0)) / 2e-2;
                        let found = gradient.as_ref().map_or(0.0, |gradient| {
                            gradient.to_data().into_vec::<f32>().unwrap()[at]
                        });
                        assert!((found - change).abs() < 1e-3, "{i}: {found} for {change}");
                    }
                }
            }
        }
    }

    #[test]
    fn averages_move_by_a_thousandth_and_keep() {
        let device = Default::default();
        let averages = LeCamAverages::<A>::new(&device);
        let averages = averages.update(one(2.0), one(-4.0)).update(one(1.0), one(0.0));
        near(averages.real(), 0.002 * 0.999 + 0.001);
        near(averages.fake(), -0.004 * 0.999);
        let data = averages.to_data();
        let kept = LeCamAverages::<A>::from_data(&data, &device).unwrap();
        assert_eq!(kept.to_data(), data);
        let other = Tensor::<A, 1>::zeros([3], &device).into_data();
        assert!(LeCamAverages::<A>::from_data(&other, &device).is_none());
    }

    #[test]
    fn no_gradient_goes_to_averages_and_weights() {
        let tracked = || one(0.25).require_grad();
        let (ema_real, ema_fake) = (tracked(), tracked());
        let real = real().into_iter().map(|map| map.require_grad()).collect::<Maps>();
        let gradients = lecam(&real, &fake(), ema_real.clone(), ema_fake.clone()).backward();
        assert!(real[0].grad(&gradients).is_some());
        assert!(ema_real.grad(&gradients).is_none() && ema_fake.grad(&gradients).is_none());
        let (norm, loss) = (tracked(), tracked());
        let gradients = (adaptive_weight(norm.clone(), norm.clone()) * loss.clone()).backward();
        assert!(loss.grad(&gradients).is_some() && norm.grad(&gradients).is_none());
    }

    #[test]
    fn the_adaptive_weight_by_hand() {
        near(adaptive_weight(one(3.0), one(1.4999)), 2.0);
        near(adaptive_weight(one(0.0), one(1.0)), 0.0);
        near(adaptive_weight(one(0.5), one(0.0)), 5000.0);
        near(adaptive_weight(one(2.0), one(0.0)), 1e4);
    }
}
