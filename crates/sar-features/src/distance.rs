//! How far apart two images are in the eyes of a network.
//!
//! Shapes: b batch, c channels, h height, w width.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::{EfficientNetLite0, MIN_SIDE};

/// What is added to the length of a vector of channels, as LPIPS does.
const EPSILON: f64 = 1e-10;
/// What is added to its square: the root of zero has no finite gradient.
const SQUARE_EPSILON: f64 = 1e-20;

/// A perceptual distance over the maps of [`EfficientNetLite0`], without weights of its own.
///
/// ```text
/// d(x, y) = mean over maps of mean over positions of |u(x) - u(y)|^2,   u = f / (|f| + 1e-10)
/// ```
/// with f the channels of a map at one position, of the five maps that
/// [`EfficientNetLite0::maps`] gives. It is LPIPS (arXiv:1801.03924, section 3) with this network and all
/// channels weighted alike, between 0 and 4. It is no LPIPS by name: values of different networks
/// do not compare.
#[derive(Module, Debug)]
pub struct PerceptualDistance<B: Backend> {
    net: EfficientNetLite0<B>,
}

impl<B: Backend> PerceptualDistance<B> {
    /// The smallest side of an image that the network takes, pixels.
    pub const MIN_SIDE: usize = MIN_SIDE;

    /// The distance in the eyes of this network.
    pub fn new(net: EfficientNetLite0<B>) -> Self {
        Self { net }
    }

    /// The distance of each image from its counterpart, with gradients for either.
    ///
    /// # Shapes
    /// - `x_bchw`, `y_bchw`: `[b, 3, h, w]`, pixels in [-1, 1], sides of
    ///   [`MIN_SIDE`](Self::MIN_SIDE) at least
    /// - output: `[b]`, in [0, 4]
    ///
    /// # Panics
    /// If the shapes differ, or as [`EfficientNetLite0::maps`].
    pub fn distance(&self, x_bchw: Tensor<B, 4>, y_bchw: Tensor<B, 4>) -> Tensor<B, 1> {
        assert_eq!(x_bchw.dims(), y_bchw.dims(), "images and their counterparts");
        let pairs = self.net.maps(x_bchw).into_iter().zip(self.net.maps(y_bchw));
        let distances: Vec<_> =
            pairs.map(|(x, y)| mean_over_positions(squared_differences(x, y).sum_dim(1))).collect();
        let n_maps = distances.len() as f64;
        total(distances) / n_maps
    }
}

/// `(u(x) - u(y))^2`, see [`PerceptualDistance`].
pub(crate) fn squared_differences<B: Backend>(
    x_bchw: Tensor<B, 4>,
    y_bchw: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let unit = |f_bchw: Tensor<B, 4>| {
        let squares_b1hw = f_bchw.clone().square().sum_dim(1);
        f_bchw / ((squares_b1hw + SQUARE_EPSILON).sqrt() + EPSILON)
    };
    (unit(x_bchw) - unit(y_bchw)).square()
}

pub(crate) fn mean_over_positions<B: Backend>(x_b1hw: Tensor<B, 4>) -> Tensor<B, 1> {
    let [b, _, h, w] = x_b1hw.dims();
    x_b1hw.reshape([b, h * w]).mean_dim(1).reshape([b])
}

pub(crate) fn total<B: Backend>(distances: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
    distances.into_iter().reduce(|a, b| a + b).expect("a network has maps")
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    type A = Autodiff<Flex>;

    /// A map of two channels at two positions.
    fn map(values: [[f32; 2]; 2]) -> Tensor<A, 4> {
        Tensor::<A, 2>::from_floats(values, &Default::default()).reshape([1, 2, 1, 2])
    }

    #[test]
    fn channels_have_unit_length_at_each_position() {
        // (3, 4) and (0, 2) against (1, 0) and (0, -1).
        let squares =
            squared_differences(map([[3.0, 0.0], [4.0, 2.0]]), map([[1.0, 0.0], [0.0, -1.0]]));
        let squares = squares.into_data().into_vec::<f32>().unwrap();
        for (found, expected) in squares.into_iter().zip([0.16, 0.0, 0.64, 4.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }

    #[test]
    fn positions_without_any_value_have_finite_gradients() {
        let x = map([[0.0, 3.0], [0.0, 4.0]]).require_grad();
        let gradients = squared_differences(x.clone(), map([[0.0; 2]; 2])).sum().backward();
        let gradient = x.grad(&gradients).unwrap().into_data().into_vec::<f32>().unwrap();
        assert!(gradient.iter().all(|g| g.abs() < 1e-6), "{gradient:?}");
    }
}
