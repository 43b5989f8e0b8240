//! Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv:2006.10738): of images of
//! the data and of a decoder alike, so that few images of the data can be learned by heart less easily,
//! with gradients to the images.
//!
//! The operations and their ranges are those of the published code. What is moved or cut out leaves
//! zeros, as there: gray, for pixels in [-1, 1]. Colors are not clipped, and may leave that range.
//!
//! Shapes: b batch, c channels, h height, w width, p = h w.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use sar_core::SeedTree;
use serde::{Deserialize, Serialize};

/// An operation on images. A policy is a list of them, applied in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Augmentation {
    /// Brightness, saturation and contrast.
    ///
    /// ```text
    /// x + a,                  a in [-0.5, 0.5)
    /// m + s (x - m),          s in [0, 2), m the mean of the pixel's channels
    /// M + k (x - M),          k in [0.5, 1.5), M the mean of the image
    /// ```
    Color,
    /// A shift by up to an eighth of the height and of the width, in whole pixels.
    Translation,
    /// A rectangle of half the height and half the width becomes zero; parts of it may be outside.
    Cutout,
}

/// Applies a policy, with a stream of randomness for each image: what becomes of an image depends on
/// its stream alone, whatever batch it is in.
///
/// # Shapes
/// - `x_bchw` and output: `[b, c, h, w]`, pixels in [-1, 1]
/// - `draws`: b streams; `step.at(index of the image)`, for one
///
/// # Panics
/// If there are more or fewer streams than images.
pub fn augment<B: Backend>(
    x_bchw: Tensor<B, 4>,
    policy: &[Augmentation],
    draws: &[SeedTree],
) -> Tensor<B, 4> {
    let [b, _, h, w] = x_bchw.dims();
    assert_eq!(b, draws.len(), "a stream of randomness for each image");
    policy.iter().zip(0..).fold(x_bchw, |x_bchw, (augmentation, place)| {
        let draws = draws.iter().map(|draws| draws.at(place));
        match augmentation {
            Augmentation::Color => color(x_bchw, &draws.map(Jitter::draw).collect::<Vec<_>>()),
            Augmentation::Translation => {
                let shifts = draws.map(|draws| [(0, h), (1, w)].map(|(i, n)| shift(draws, i, n)));
                translation(x_bchw, &shifts.collect::<Vec<_>>())
            }
            Augmentation::Cutout => {
                let holes = draws.map(|draws| [(0, h), (1, w)].map(|(i, n)| hole(draws, i, n)));
                cutout(x_bchw, &holes.collect::<Vec<_>>())
            }
        }
    })
}

/// What [`Augmentation::Color`] does to an image.
#[derive(Clone, Copy)]
struct Jitter {
    brightness: f32,
    saturation: f32,
    contrast: f32,
}

impl Jitter {
    fn draw(draws: SeedTree) -> Self {
        Self {
            brightness: draws.uniform(0) - 0.5,
            saturation: draws.uniform(1) * 2.0,
            contrast: draws.uniform(2) + 0.5,
        }
    }
}

/// All three at once, of which none changes M but by a:
///
/// ```text
/// y = k s x + k (1 - s) m + (1 - k) M + a
/// ```
fn color<B: Backend>(x_bchw: Tensor<B, 4>, jitters: &[Jitter]) -> Tensor<B, 4> {
    let shape @ [b, c, h, w] = x_bchw.dims();
    let device = x_bchw.device();
    let of_image = |f: fn(&Jitter) -> f32| {
        let values = jitters.iter().map(f).collect::<Vec<_>>();
        Tensor::<B, 2>::from_data(TensorData::new(values, [b, 1]), &device)
    };
    let gray_bp = x_bchw.clone().reshape([b, c, h * w]).mean_dim(1).reshape([b, h * w]);
    let mean_b1 = gray_bp.clone().mean_dim(1);
    let shift_b1 = mean_b1 * of_image(|j| 1.0 - j.contrast) + of_image(|j| j.brightness);
    let added_bp = gray_bp * of_image(|j| j.contrast * (1.0 - j.saturation)) + shift_b1;
    let own_bn = x_bchw.reshape([b, c * h * w]) * of_image(|j| j.contrast * j.saturation);
    own_bn.reshape(shape) + added_bp.reshape([b, 1, h, w])
}

/// A draw from -(n + 4) / 8 to (n + 4) / 8, rounded down: an eighth of the side.
fn shift(draws: SeedTree, index: u64, side: usize) -> isize {
    let most = (side + 4) / 8;
    draws.below(index, 2 * most + 1) as isize - most as isize
}

/// `y[i, j] = x[i + down, j + right]`, zero outside: `R x C^T` with matrices of zeros and ones.
fn translation<B: Backend>(x_bchw: Tensor<B, 4>, shifts: &[[isize; 2]]) -> Tensor<B, 4> {
    let [b, _, h, w] = x_bchw.dims();
    let device = x_bchw.device();
    let matrices = |axis: usize, side: usize| {
        let mut values = vec![0f32; b * side * side];
        for (matrix, shift) in values.chunks_exact_mut(side * side).zip(shifts) {
            for (i, row) in matrix.chunks_exact_mut(side).enumerate() {
                let from = i.checked_add_signed(shift[axis]).and_then(|from| row.get_mut(from));
                from.into_iter().for_each(|one| *one = 1.0);
            }
        }
        Tensor::<B, 4>::from_data(TensorData::new(values, [b, 1, side, side]), &device)
    };
    matrices(0, h).matmul(x_bchw).matmul(matrices(1, w).transpose())
}

/// Where along a side the rectangle is: a center anywhere on it, and half the side, rounded up,
/// around it.
fn hole(draws: SeedTree, index: u64, side: usize) -> [usize; 2] {
    let size = side.div_ceil(2);
    // An even size has its center between pixels.
    let center = draws.below(index, side + 1 - size % 2);
    [center.saturating_sub(size / 2), side.min(center + size - size / 2)]
}

/// `y = x (1 - r c^T)` with r one in the rows and c in the columns of the rectangle, zero elsewhere.
fn cutout<B: Backend>(x_bchw: Tensor<B, 4>, holes: &[[[usize; 2]; 2]]) -> Tensor<B, 4> {
    let [b, _, h, w] = x_bchw.dims();
    let device = x_bchw.device();
    let inside = |axis: usize, side: usize| {
        let mut values = vec![0f32; b * side];
        for (line, hole) in values.chunks_exact_mut(side).zip(holes) {
            let [start, end] = hole[axis];
            line[start..end].fill(1.0);
        }
        Tensor::<B, 2>::from_data(TensorData::new(values, [b, side]), &device)
    };
    let rows = inside(0, h).reshape([b, 1, h, 1]);
    let columns = inside(1, w).reshape([b, 1, 1, w]);
    x_bchw * (-(rows * columns) + 1.0)
}

#[cfg(test)]
mod tests;
