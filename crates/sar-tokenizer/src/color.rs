//! The principal axes of colors, which a tokenizer may be trained in.
//!
//! ```text
//! covariance of the pixels = A^T diag(d^2) A, a row of A for each axis
//! the encoder sees W x, W = diag(1/d) A;  the decoder's output y is W^-1 y in RGB
//! ```
//! Colors of pictures are far from round: emoji have variances of 16 : 4.6 : 1 along the axes (gray, blue
//! against orange, green against purple), and gradient descent learns in that order. A zero border
//! stays a zero border, as no mean is taken away, so the matrices can be
//! [folded](crate::Tokenizer::folded) into the first and the last convolution exactly.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use sar_kernels::conv2d;
use serde::{Deserialize, Serialize};

/// A matrix of colors.
pub(crate) type Matrix = [[f64; 3]; 3];

/// The principal axes of the colors of some images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorAxes {
    /// A row for each axis, orthonormal, by falling deviation.
    axes: Matrix,
    deviations: [f64; 3],
}

impl ColorAxes {
    /// The smallest deviation that counts, as a part of the largest: gray images have but one axis.
    pub const LEAST: f64 = 1e-2;

    /// The axes of a covariance of (red, green, blue).
    ///
    /// # Panics
    /// If it is not symmetric, or not finite.
    pub fn of_covariance(covariance: [[f64; 3]; 3]) -> Self {
        let (values, axes) = eigen(covariance);
        let deviations = values.map(|value| value.max(0.0).sqrt());
        // Images of one color have no axes, and any will do.
        let least = if deviations[0] > 0.0 { Self::LEAST * deviations[0] } else { 1.0 };
        Self { axes, deviations: deviations.map(|deviation| deviation.max(least)) }
    }

    /// The axes as unit vectors of (red, green, blue), by falling deviation.
    pub fn axes(&self) -> [[f64; 3]; 3] {
        self.axes
    }

    /// The standard deviation along each axis, in units of pixels, as training takes it: at least
    /// [`LEAST`](Self::LEAST) times the largest. [`ColorMoments::deviation_along`] is the measured one.
    pub fn deviations(&self) -> [f64; 3] {
        self.deviations
    }

    /// Axes, then deviations: what a checkpoint keeps.
    pub fn to_data(&self) -> TensorData {
        let numbers = self.axes.into_iter().flatten().chain(self.deviations);
        TensorData::new(numbers.collect::<Vec<f64>>(), [4, 3])
    }

    /// What [`to_data`](Self::to_data) gave; nothing if it is something else.
    pub fn from_data(data: &TensorData) -> Option<Self> {
        let [x, y, z, deviations] =
            data.to_vec::<f64>().ok()?.as_chunks::<3>().0.try_into().ok()?;
        Some(Self { axes: [x, y, z], deviations })
    }

    /// Colors, or their differences, along the axes, each times its deviation to a power:
    /// `[b, 3, h, w]` to the same.
    ///
    /// A power of -1 makes all axes vary alike, 0 turns the axes only.
    pub fn along<B: Backend>(&self, colors_bchw: Tensor<B, 4>, power: f64) -> Tensor<B, 4> {
        mixed(colors_bchw, self.matrix(power))
    }

    /// From [`along`](Self::along) with a power of -1 back to RGB.
    pub(crate) fn back<B: Backend>(&self, colors_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        mixed(colors_bchw, self.inverse())
    }

    /// The gradient of what [`back`](Self::back) was given, of that of its output.
    pub(crate) fn back_gradient<B: Backend>(&self, gradient_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let inverse = self.inverse();
        let transposed = std::array::from_fn(|i| std::array::from_fn(|j| inverse[j][i]));
        mixed(gradient_bchw, transposed)
    }

    pub(crate) fn matrix(&self, power: f64) -> Matrix {
        let mut matrix = self.axes;
        for (row, deviation) in matrix.iter_mut().zip(self.deviations) {
            row.iter_mut().for_each(|x| *x *= deviation.powf(power));
        }
        matrix
    }

    /// `W^-1 = A^T diag(d)`
    pub(crate) fn inverse(&self) -> Matrix {
        std::array::from_fn(|i| std::array::from_fn(|j| self.axes[j][i] * self.deviations[j]))
    }
}

/// Every color times a matrix.
fn mixed<B: Backend>(colors_bchw: Tensor<B, 4>, matrix: Matrix) -> Tensor<B, 4> {
    let device = colors_bchw.device();
    let matrix: Vec<f32> = matrix.into_iter().flatten().map(|x| x as f32).collect();
    let weight = Tensor::from_data(TensorData::new(matrix, [3, 3, 1, 1]), &device);
    conv2d(colors_bchw, weight, Tensor::zeros([3], &device), 1, [0; 4])
}

/// Eigenvalues, falling, and unit eigenvectors of a symmetric matrix, by Jacobi's rotations. The largest
/// component of a vector is positive.
fn eigen(mut a: Matrix) -> ([f64; 3], Matrix) {
    assert!(a.iter().flatten().all(|x| x.is_finite()), "a covariance that is not finite");
    assert!(
        (0..3).all(|i| (0..i).all(|j| (a[i][j] - a[j][i]).abs() <= 1e-9 * a[i][i].abs().max(1.0)))
    );
    let mut vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    // It converges quadratically; five sweeps are enough for any matrix of this size.
    for _ in 0..10 {
        for (p, q) in [(0, 1), (0, 2), (1, 2)] {
            if a[p][q] == 0.0 {
                continue;
            }
            let theta = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
            let (sin, cos) = theta.sin_cos();
            let turned = |x: f64, y: f64| (cos * x - sin * y, sin * x + cos * y);
            for row in &mut a {
                (row[p], row[q]) = turned(row[p], row[q]);
            }
            let (x, y) = (a[p], a[q]);
            for k in 0..3 {
                (a[p][k], a[q][k]) = turned(x[k], y[k]);
            }
            let (x, y) = (vectors[p], vectors[q]);
            for k in 0..3 {
                (vectors[p][k], vectors[q][k]) = turned(x[k], y[k]);
            }
        }
    }
    let mut order = [0, 1, 2];
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    let vectors = order.map(|i| {
        let v: [f64; 3] = vectors[i];
        let largest = v.into_iter().max_by(|x, y| x.abs().total_cmp(&y.abs())).expect("three");
        v.map(|x| x * largest.signum())
    });
    (order.map(|i| a[i][i]), vectors)
}

/// First and second moments of colors, from which their covariance is made.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ColorMoments {
    n: f64,
    sums: [f64; 3],
    /// On and above the diagonal.
    products: Matrix,
}

impl ColorMoments {
    /// Adds all pixels of images `[b, 3, h, w]`, image by image.
    ///
    /// # Panics
    /// If these have no three channels.
    pub fn add<B: Backend>(&mut self, images_bchw: Tensor<B, 4>) {
        Self::of_each(images_bchw).into_iter().for_each(|image| self.merge(image));
    }

    /// Those of each image of `[b, 3, h, w]`.
    ///
    /// # Panics
    /// If these have no three channels.
    pub fn of_each<B: Backend>(images_bchw: Tensor<B, 4>) -> Vec<Self> {
        let [_, channels, height, width] = images_bchw.dims();
        assert_eq!(channels, 3, "colors of three channels");
        let pixels = height * width;
        let values = images_bchw.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        let of_image = |image: &[f32]| {
            let planes: [&[f32]; 3] = std::array::from_fn(|c| &image[c * pixels..][..pixels]);
            let mut moments = Self { n: pixels as f64, ..Self::default() };
            for i in 0..3 {
                moments.sums[i] = planes[i].iter().map(|x| f64::from(*x)).sum::<f64>();
                for j in i..3 {
                    let products =
                        planes[i].iter().zip(planes[j]).map(|(x, y)| f64::from(*x) * f64::from(*y));
                    moments.products[i][j] = products.sum::<f64>();
                }
            }
            moments
        };
        values.chunks_exact(3 * pixels).map(of_image).collect()
    }

    /// Adds what was found elsewhere.
    pub fn merge(&mut self, other: Self) {
        self.n += other.n;
        for i in 0..3 {
            self.sums[i] += other.sums[i];
            for j in i..3 {
                self.products[i][j] += other.products[i][j];
            }
        }
    }

    /// The covariance about the mean.
    pub fn covariance(&self) -> [[f64; 3]; 3] {
        let mean = self.sums.map(|sum| sum / self.n);
        let at = |i: usize, j: usize| self.products[i][j] / self.n - mean[i] * mean[j];
        std::array::from_fn(|i| std::array::from_fn(|j| at(i.min(j), i.max(j))))
    }

    /// The standard deviation along a unit vector, about the mean: 0 where images do not vary that way.
    pub fn deviation_along(&self, axis: [f64; 3]) -> f64 {
        along(self.covariance(), axis).max(0.0).sqrt()
    }

    /// The mean square along a unit vector, about zero.
    pub fn mean_square_along(&self, axis: [f64; 3]) -> f64 {
        let at = |i: usize, j: usize| self.products[i.min(j)][i.max(j)] / self.n;
        along(std::array::from_fn(|i| std::array::from_fn(|j| at(i, j))), axis)
    }
}

/// `axis^T M axis`
fn along(matrix: Matrix, axis: [f64; 3]) -> f64 {
    let product = |i: usize, j: usize| axis[i] * axis[j] * matrix[i][j];
    (0..3).flat_map(|i| (0..3).map(move |j| product(i, j))).sum()
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn axes_by_hand() {
        // 3 (1, 1, 0)^2 / 2 + 2 (0, 0, 1)^2 + 1 (1, -1, 0)^2 / 2
        let covariance = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 2.0]];
        let axes = ColorAxes::of_covariance(covariance);
        let half = 0.5f64.sqrt();
        let expected = [[half, half, 0.0], [0.0, 0.0, 1.0], [half, -half, 0.0]];
        for (axis, expected) in axes.axes().iter().zip(expected) {
            let along: f64 = axis.iter().zip(expected).map(|(x, y)| x * y).sum();
            assert!((along.abs() - 1.0).abs() < 1e-12, "{axis:?} is not {expected:?}");
        }
        let [a, b, c] = axes.deviations();
        assert!((a - 3f64.sqrt()).abs() < 1e-12 && (b - 2f64.sqrt()).abs() < 1e-12 && c == 1.0);
    }

    #[test]
    fn all_axes_vary_alike_when_divided_by_their_deviations() {
        let device = Default::default();
        let noise = Tensor::<Flex, 4>::random(
            [4, 3, 32, 32],
            burn::tensor::Distribution::Normal(0.0, 1.0),
            &device,
        );
        let mix = [[1.0, 0.4, 0.1], [0.9, -0.2, 0.1], [0.8, 0.1, -0.2]];
        let colors = mixed(noise, mix);
        let mut moments = ColorMoments::default();
        moments.add(colors.clone());
        let mut halves = ColorMoments::default();
        for half in colors.clone().chunk(2, 0) {
            let mut moments = ColorMoments::default();
            moments.add(half);
            halves.merge(moments);
        }
        for (x, half) in moments.covariance().iter().zip(halves.covariance()) {
            x.iter().zip(half).for_each(|(x, half)| assert!((x - half).abs() < 1e-12));
        }
        let axes = ColorAxes::of_covariance(moments.covariance());
        let mut white = ColorMoments::default();
        white.add(axes.along(colors.clone(), -1.0));
        for (i, row) in white.covariance().iter().enumerate() {
            for (j, x) in row.iter().enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((x - expected).abs() < 1e-3, "{:?}", white.covariance());
            }
        }
        let back = axes.back(axes.along(colors.clone(), -1.0));
        let error = (back - colors).abs().max().into_scalar();
        assert!(error < 1e-5, "{error}");
        let kept = ColorAxes::from_data(&axes.to_data()).unwrap();
        assert_eq!(kept, axes);
    }

    #[test]
    fn gray_images_have_one_axis() {
        let axes = ColorAxes::of_covariance([[0.25; 3]; 3]);
        let [a, b, c] = axes.deviations();
        let least = ColorAxes::LEAST * a;
        assert!((a - 0.75f64.sqrt()).abs() < 1e-12 && b == least && c == least);
        assert_eq!(ColorAxes::of_covariance([[0.0; 3]; 3]).deviations(), [1.0; 3]);

        // What is measured has no floor.
        let mut moments = ColorMoments::default();
        let grays: Tensor<Flex, 4> =
            Tensor::from_floats([[[[0.5f32, -0.5]]]], &Default::default()).repeat_dim(1, 3);
        moments.add(grays);
        let axes = ColorAxes::of_covariance(moments.covariance());
        let found = axes.axes().map(|axis| moments.deviation_along(axis));
        assert!((found[0] - 0.75f64.sqrt()).abs() < 1e-9, "{found:?}");
        assert!(found[1] < 1e-7 && found[2] < 1e-7, "{found:?}");
    }
}
