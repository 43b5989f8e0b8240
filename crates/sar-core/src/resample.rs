//! Resampling by fixed matrices: exact, differentiable on every backend, two matrix products.
//!
//! ```text
//! Y = U_h X U_w^T      per channel, U of shape [out, in]
//! ```
//! [`resample`] is equal to PyTorch's `interpolate` in the modes `area`, `bicubic` (a = -0.75,
//! `align_corners = false`, edge clamp, no antialiasing), `nearest`, and `bilinear` with `antialias =
//! true` (`align_corners = false`), [`interpolate`] to the bilinear modes without antialiasing that
//! programs of evaluation use.
//!
//! Shapes: b batch, c channels, h height, w width.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::ScaleSize;

/// How values between samples are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// Adaptive average pooling, down and up: mean over `floor(i in/out) .. ceil((i+1) in/out)`.
    Area,
    /// Cubic convolution with a = -0.75, half-pixel centers, edge clamp, no antialiasing.
    Bicubic,
    /// The sample at `floor(i in/out)`.
    Nearest,
    /// Linear interpolation, half-pixel centers, edge clamp; where samples become fewer, a triangle
    /// that is wider by as much (antialiasing).
    Linear,
}

impl Filter {
    /// The matrix `[n_out, n_in]`, row-major, whose rows sum to one.
    ///
    /// # Panics
    /// If a length is 0.
    pub fn matrix(self, n_in: usize, n_out: usize) -> Vec<f32> {
        assert!(n_in > 0 && n_out > 0, "a resampling matrix needs positive lengths");
        let mut matrix = vec![0.0; n_out * n_in];
        for (i, row) in matrix.chunks_exact_mut(n_in).enumerate() {
            match self {
                Self::Area => {
                    let window = area_window(i, n_in, n_out);
                    let weight = 1.0 / window.len() as f32;
                    row[window].fill(weight);
                }
                Self::Bicubic => {
                    let center = (i as f64 + 0.5) * n_in as f64 / n_out as f64 - 0.5;
                    let base = center.floor();
                    for (tap, weight) in (-1..=2).zip(cubic_weights(center - base)) {
                        let j = (base as i64 + tap).clamp(0, n_in as i64 - 1);
                        row[j as usize] += weight as f32;
                    }
                }
                Self::Nearest => row[i * n_in / n_out] = 1.0,
                Self::Linear => {
                    let center = (i as f64 + 0.5) * n_in as f64 / n_out as f64 - 0.5;
                    // Half the base of the triangle. What lies outside is left out, not clamped.
                    let reach = (n_in as f64 / n_out as f64).max(1.0);
                    let weight = |j: usize| (1.0 - (j as f64 - center).abs() / reach).max(0.0);
                    let total: f64 = (0..n_in).map(weight).sum();
                    row.iter_mut().enumerate().for_each(|(j, to)| *to = (weight(j) / total) as f32);
                }
            }
        }
        matrix
    }
}

/// What sample `i` of adaptive average pooling is the mean of.
pub(crate) fn area_window(i: usize, n_in: usize, n_out: usize) -> Range<usize> {
    i * n_in / n_out..((i + 1) * n_in).div_ceil(n_out)
}

/// How the samples of two sizes lie on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Grid {
    /// The outer edges meet: sample i of the new ones is at `(i + 1/2) in/out - 1/2`. PyTorch's
    /// `interpolate` with `align_corners = false`.
    Edges,
    /// The first samples meet: sample i of the new ones is at `i in/out`. TensorFlow 1's
    /// `resize_bilinear` with `align_corners = false`, and without `half_pixel_centers`.
    Firsts,
}

impl Grid {
    /// The matrix `[n_out, n_in]`, row-major, of linear interpolation between the two samples beside a
    /// place, edge clamp: however few samples there are to be, no row has more than two weights.
    ///
    /// # Panics
    /// If a length is 0.
    pub fn matrix(self, n_in: usize, n_out: usize) -> Vec<f32> {
        assert!(n_in > 0 && n_out > 0, "a resampling matrix needs positive lengths");
        let mut matrix = vec![0.0; n_out * n_in];
        // In single precision, as both programs.
        let scale = n_in as f32 / n_out as f32;
        for (i, row) in matrix.chunks_exact_mut(n_in).enumerate() {
            let place = match self {
                Self::Edges => ((i as f32 + 0.5) * scale - 0.5).max(0.0),
                Self::Firsts => i as f32 * scale,
            };
            let lower = (place as usize).min(n_in - 1);
            let t = place - lower as f32;
            row[lower] = 1.0 - t;
            row[(lower + 1).min(n_in - 1)] += t;
        }
        matrix
    }
}

/// Keys' cubic convolution weights of the taps -1, 0, 1, 2 at offset `t` in `[0, 1)`.
fn cubic_weights(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// Resamples every channel to another size; the same size returns the input itself.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - output: `[b, c, size.height, size.width]`
pub fn resample<B: Backend>(x_bchw: Tensor<B, 4>, size: ScaleSize, filter: Filter) -> Tensor<B, 4> {
    by_matrices(x_bchw, size, |n_in, n_out| filter.matrix(n_in, n_out))
}

/// Resamples every channel to another size by linear interpolation without antialiasing; the same
/// size returns the input itself.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - output: `[b, c, size.height, size.width]`
pub fn interpolate<B: Backend>(x_bchw: Tensor<B, 4>, size: ScaleSize, grid: Grid) -> Tensor<B, 4> {
    by_matrices(x_bchw, size, |n_in, n_out| grid.matrix(n_in, n_out))
}

/// Old rows times new ones from which on every map is a product of its own: to turn large maps around,
/// so that all are one, takes longer than the products.
const LARGE: usize = 1 << 11;

fn by_matrices<B: Backend>(
    x_bchw: Tensor<B, 4>,
    size: ScaleSize,
    matrix: impl Fn(usize, usize) -> Vec<f32>,
) -> Tensor<B, 4> {
    let [b, c, h, w] = x_bchw.dims();
    // Columns first: both products then are one tall matrix by a small one.
    let x = along_last(x_bchw.reshape([b * c * h, w]), size.width, &matrix);
    if size.height == h {
        return x.reshape([b, c, h, size.width]);
    }
    if h * size.height >= LARGE {
        let matrix = TensorData::new(matrix(h, size.height), [1, size.height, h]);
        let matrix = Tensor::<B, 3>::from_data(matrix, &x.device());
        let x = matrix.matmul(x.reshape([b * c, h, size.width]));
        return x.reshape([b, c, size.height, size.width]);
    }
    let x = x.reshape([b * c, h, size.width]).swap_dims(1, 2).reshape([b * c * size.width, h]);
    let x = along_last(x, size.height, &matrix).reshape([b * c, size.width, size.height]);
    x.swap_dims(1, 2).reshape([b, c, size.height, size.width])
}

fn along_last<B: Backend>(
    x: Tensor<B, 2>,
    n_out: usize,
    matrix: impl Fn(usize, usize) -> Vec<f32>,
) -> Tensor<B, 2> {
    let [_, n_in] = x.dims();
    if n_in == n_out {
        return x;
    }
    let matrix = TensorData::new(matrix(n_in, n_out), [n_out, n_in]);
    let matrix = Tensor::<B, 2>::from_data(matrix, &x.device());
    x.matmul(matrix.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn rows(filter: Filter, n_in: usize, n_out: usize) -> Vec<Vec<f32>> {
        filter.matrix(n_in, n_out).chunks(n_in).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn area_windows_overlap_as_adaptive_pooling_does() {
        let third = 1.0 / 3.0;
        assert_eq!(rows(Filter::Area, 3, 2), [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]);
        assert_eq!(
            rows(Filter::Area, 5, 2),
            [[third, third, third, 0.0, 0.0], [0.0, 0.0, third, third, third]]
        );
        assert_eq!(rows(Filter::Area, 2, 3), [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]);
    }

    #[test]
    fn bicubic_equals_hand_computed_weights_and_is_not_align_corners() {
        // 2 -> 4, first row: center -0.25, t = 0.75, taps -2 -1 0 1 clamped to 0 0 0 1.
        let far = |x: f64| ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0;
        let outside = far(1.25) as f32;
        let first = &rows(Filter::Bicubic, 2, 4)[0];
        assert!(
            (first[1] - outside).abs() < 1e-7 && (first[0] - (1.0 - outside)).abs() < 1e-6,
            "{first:?}"
        );
        // align_corners would return the corner itself.
        assert!((first[0] - 1.0).abs() > 1e-2);
        for (n_in, n_out) in [(1, 5), (3, 7), (16, 24), (7, 3)] {
            for row in rows(Filter::Bicubic, n_in, n_out) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn linear_interpolates_upwards_and_averages_downwards() {
        // Centers -0.25, 0.25, 0.75, 1.25; there is nothing to the left of the first sample.
        let up = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]];
        assert_eq!(rows(Filter::Linear, 2, 4), up);
        // Center 0.5 and a triangle down to zero at -1.5 and 2.5: 1/4, 3/4, 3/4, 1/4 without the one outside.
        let down = rows(Filter::Linear, 4, 2);
        let expected = [[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]].map(|row| row.map(|x| x / 7.0));
        assert_eq!(down, expected);
    }

    #[test]
    fn interpolation_has_two_weights_a_row_on_either_grid() {
        let rows = |grid: Grid, n_in: usize, n_out| -> Vec<Vec<f32>> {
            grid.matrix(n_in, n_out).chunks(n_in).map(<[f32]>::to_vec).collect()
        };
        // Places 0, 1/2, 1 and 3/2: beyond the last sample there is nothing to go to.
        let up = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]];
        assert_eq!(rows(Grid::Firsts, 2, 4), up);
        // Places 0 and 5/2.
        let down = [[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5, 0.0]];
        assert_eq!(rows(Grid::Firsts, 5, 2), down);
        // Places -1/4, 1/4, 3/4 and 5/4.
        let up = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]];
        assert_eq!(rows(Grid::Edges, 2, 4), up);
        // Places 3/4 and 13/4.
        let down = [[0.25, 0.75, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.75, 0.25]];
        assert_eq!(rows(Grid::Edges, 5, 2), down);
        let device = Default::default();
        let x = Tensor::<Flex, 1>::from_floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &device)
            .reshape([1, 1, 2, 3]);
        let y = interpolate(x, ScaleSize { height: 4, width: 2 }, Grid::Firsts);
        let expected = [0.0, 1.5, 1.5, 3.0, 3.0, 4.5, 3.0, 4.5];
        assert_eq!(y.into_data().to_vec::<f32>().unwrap(), expected);
    }

    #[test]
    fn both_axes_are_resampled_independently() {
        let device = Default::default();
        let x = Tensor::<Flex, 1>::from_floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &device)
            .reshape([1, 1, 2, 3]);
        let up = resample(x.clone(), ScaleSize { height: 4, width: 3 }, Filter::Nearest);
        assert_eq!(
            up.to_data().to_vec::<f32>().unwrap(),
            [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 4.0, 5.0]
        );
        let down = resample(x, ScaleSize { height: 1, width: 2 }, Filter::Area);
        assert_eq!(down.to_data().to_vec::<f32>().unwrap(), [2.0, 3.0]);
    }
}
