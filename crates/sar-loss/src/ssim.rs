//! Structural similarity of images (Wang, Bovik, Sheikh, Simoncelli 2004).
//!
//! Shapes: b batch, c channels, h height, w width, n side of the window.

use burn::tensor::{Tensor, TensorData, backend::Backend};

/// The side of the window in pixels, where images are no smaller.
pub const SSIM_WINDOW: usize = 11;
/// Standard deviation of the gaussian window, in pixels.
const SIGMA: f64 = 1.5;
/// `(K1 L)^2` and `(K2 L)^2` for K1 = 0.01, K2 = 0.03 and pixels that span L = 2.
const C1: f64 = 0.02 * 0.02;
const C2: f64 = 0.06 * 0.06;

/// The structural similarity of each image and its counterpart, with gradients for either.
///
/// ```text
///            2 mx my + C1       2 sxy + C2                (mx - my)^2                s_d
/// SSIM = ------------------ ----------------- = (1 - ------------------) (1 - ----------------)
///         mx^2 + my^2 + C1   sx + sy + C2             mx^2 + my^2 + C1         sx + sy + C2
/// ```
/// with m the mean and s the variance (of two images the covariance) in a window, s_d of the difference
/// of the images, C1 = 0.02^2 and C2 = 0.06^2. Windows are gaussian, 11 px with sigma 1.5, at every
/// position where a whole one lies inside; the result is the mean over positions and channels. Equal
/// to scikit-image's `structural_similarity` with gaussian weights, population variances and a data range
/// of 2, without a border of 5 px. The second form does not cancel where images are flat and alike.
///
/// Images with a side below 11 px get the largest window of an odd side that fits, of the same sigma:
/// down to one pixel, where only the means are compared. Such values do not compare with those of larger
/// images.
///
/// The windows are matrix products; where a GPU rounds these to TF32, the third digit is not exact.
///
/// # Shapes
/// - `x_bchw`, `y_bchw`: `[b, c, h, w]`, pixels in [-1, 1]
/// - output: `[b]`, in [-1, 1]; 1 for equal images
///
/// # Panics
/// If the shapes differ, or there are no pixels.
pub fn ssim<B: Backend>(x_bchw: Tensor<B, 4>, y_bchw: Tensor<B, 4>) -> Tensor<B, 1> {
    let [b, c, h, w] = x_bchw.dims();
    assert_eq!(y_bchw.dims(), [b, c, h, w], "images and their counterparts");
    assert!(b * c * h * w > 0, "images of {c} channels, {w}x{h} px");
    let n = window_side(h.min(w));
    let difference = x_bchw.clone() - y_bchw.clone();
    let squares = x_bchw.clone().square() + y_bchw.clone().square();
    let maps = Tensor::cat(vec![x_bchw, y_bchw, difference.square(), squares], 0);
    let means = window_means(maps, n);
    let [mean_x, mean_y, mean_square_difference, mean_squares] =
        [0, 1, 2, 3].map(|i| means.clone().slice_dim(0, i * b..(i + 1) * b));
    let square_means = mean_x.clone().square() + mean_y.clone().square();
    let square_difference = (mean_x - mean_y).square();
    let luminance = -(square_difference.clone() / (square_means.clone() + C1)) + 1.0;
    let structure =
        (mean_square_difference - square_difference) / (mean_squares - square_means + C2);
    // Rows first: one sum over all positions would round more.
    (luminance * (-structure + 1.0)).mean_dim(2).mean_dim(1).reshape([b])
}

/// The largest odd side up to [`SSIM_WINDOW`] that fits.
fn window_side(side: usize) -> usize {
    (side - (side + 1) % 2).min(SSIM_WINDOW)
}

/// Gaussian means of every channel, where the whole window is inside.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - output: `[b, c (w - n + 1), h - n + 1]`, columns before rows
fn window_means<B: Backend>(x_bchw: Tensor<B, 4>, n: usize) -> Tensor<B, 3> {
    let [b, c, h, w] = x_bchw.dims();
    let [rows, columns] = [h, w].map(|side| side - n + 1);
    let x = along_last(x_bchw.reshape([b * c * h, w]), n).reshape([b * c, h, columns]);
    let x = along_last(x.swap_dims(1, 2).reshape([b * c * columns, h]), n);
    x.reshape([b, c * columns, rows])
}

/// `[r, side]` to `[r, side - n + 1]`, by a product with a matrix of bands.
fn along_last<B: Backend>(x: Tensor<B, 2>, n: usize) -> Tensor<B, 2> {
    let [_, side] = x.dims();
    let window = window(n);
    let mut bands = vec![0f32; (side - n + 1) * side];
    for (i, row) in bands.chunks_exact_mut(side).enumerate() {
        row[i..i + n].copy_from_slice(&window);
    }
    let bands = TensorData::new(bands, [side - n + 1, side]);
    let bands = Tensor::<B, 2>::from_data(bands, &x.device());
    x.matmul(bands.transpose())
}

/// The weights of a window along one axis, which sum to one.
fn window(n: usize) -> Vec<f32> {
    let weight = |i: usize| {
        let x = i as f64 - (n / 2) as f64;
        (-x * x / (2.0 * SIGMA * SIGMA)).exp()
    };
    let total: f64 = (0..n).map(weight).sum();
    (0..n).map(|i| (weight(i) / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    type A = Autodiff<Flex>;

    /// An image of three channels by a formula of (channel, row, column).
    fn image<B: Backend>(
        [h, w]: [usize; 2],
        f: impl Fn(f64, usize, usize, usize) -> f64,
        x: impl Fn(usize, usize, usize) -> f64,
    ) -> [Tensor<B, 4>; 2] {
        let places =
            || (0..3).flat_map(move |c| (0..h).flat_map(move |i| (0..w).map(move |j| (c, i, j))));
        let [first, second]: [Vec<f32>; 2] = [
            places().map(|(c, i, j)| x(c, i, j) as f32).collect(),
            places().map(|(c, i, j)| f(x(c, i, j), c, i, j) as f32).collect(),
        ];
        [first, second].map(|values| {
            Tensor::from_data(TensorData::new(values, [1, 3, h, w]), &Default::default())
        })
    }

    /// Noise, and the same weakened under other noise; `k` changes the latter.
    fn noise<B: Backend>(size: [usize; 2], k: usize) -> [Tensor<B, 4>; 2] {
        let error = move |x: f64, c: usize, i: usize, j: usize| {
            let e = ((11 * i + 5 * j + 17 * c + k * i * j) % 32) as f64 / 31.0 - 0.5;
            (0.8 * x + 0.5 * e).clamp(-1.0, 1.0)
        };
        image(size, error, |c, i, j| ((7 * i + 13 * j + 29 * c + i * j) % 64) as f64 / 31.5 - 1.0)
    }

    fn values<B: Backend>(x: Tensor<B, 1>) -> Vec<f64> {
        x.into_data().convert::<f64>().into_vec().unwrap()
    }

    #[track_caller]
    fn check([x, y]: [Tensor<Flex, 4>; 2], expected: f64) {
        let found = values(ssim(x, y))[0];
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    }

    #[test]
    fn values_by_hand() {
        let full = |value: f64| Tensor::<Flex, 4>::full([1, 3, 12, 14], value, &Default::default());
        check([full(0.3), full(0.3)], 1.0);
        // Flat images differ in their means only: (2 * 0.5 * 0.25 + C1) / (0.25 + 0.0625 + C1).
        check([full(0.5), full(0.25)], (0.25 + 4e-4) / (0.3125 + 4e-4));
        // One pixel, opposite signs.
        let pixel = |value: f64| full(value).slice([0..1, 0..3, 0..1, 0..2]);
        check([pixel(0.5), pixel(-0.5)], (-0.5 + 4e-4) / (0.5 + 4e-4));
        // A window of three pixels, g = (a, 1 - 2a, a): x alternates and y = -x.
        let stripes = Tensor::<Flex, 1>::from_floats([1.0, -1.0, 1.0], &Default::default());
        let stripes = stripes.reshape([1, 1, 1, 3]).repeat(&[1, 1, 3, 1]);
        let a = (-1.0f64 / 4.5).exp() / (1.0 + 2.0 * (-1.0f64 / 4.5).exp());
        let mean = 4.0 * a - 1.0;
        let variance = 1.0 - mean * mean;
        let luminance = (-2.0 * mean * mean + 4e-4) / (2.0 * mean * mean + 4e-4);
        let structure = (-2.0 * variance + 3.6e-3) / (2.0 * variance + 3.6e-3);
        check([stripes.clone(), -stripes], luminance * structure);
    }

    #[test]
    fn values_of_scikit_image_and_pytorch() {
        // scikit-image 0.26 and convolutions in PyTorch, both in f64, agree in the first three; the other two
        // are PyTorch's, with windows of 7 and of 1 px.
        check(noise([16, 16], 1), 0.7893229820528002);
        check(noise([20, 33], 3), 0.7299680298003851);
        check(noise([11, 12], 2), 0.6969535434328743);
        check(noise([8, 9], 1), 0.8295084414223965);
        check(noise([2, 5], 1), 0.8567392775567931);
        // Nearly white, half of it flat: where E[x^2] - E[x]^2 cancels.
        let smooth = |c: usize, i: usize, j: usize| {
            if i > 12 { 0.9 - 0.05 * ((i + 2 * j + c) % 3) as f64 } else { 0.9 }
        };
        let error = |x: f64, c, i, j| x + 0.005 * ((i * j + c) % 5) as f64;
        check(image([24, 24], error, smooth), 0.9905066420063802);
    }

    #[test]
    fn every_image_has_its_own_value_whatever_the_batch() {
        let ([x, y], [z, _]) = (noise::<Flex>([13, 15], 1), noise::<Flex>([13, 15], 2));
        let pairs = [(x.clone(), y.clone()), (y.clone(), z.clone()), (z.clone(), z.clone())];
        let alone: Vec<f64> =
            pairs.iter().flat_map(|(x, y)| values(ssim(x.clone(), y.clone()))).collect();
        let (first, second): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let together = values(ssim(Tensor::cat(first, 0), Tensor::cat(second, 0)));
        assert_eq!(together.len(), 3);
        for (one, other) in alone.iter().zip(&together) {
            assert!((one - other).abs() < 1e-6, "{alone:?} {together:?}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for size in [[13, 12], [4, 6]] {
            let [x, y] = noise::<A>(size, 1).map(Tensor::require_grad);
            let gradients = ssim(x.clone(), y.clone()).sum().backward();
            for (which, of) in [&x, &y].into_iter().enumerate() {
                let gradient = of.grad(&gradients).unwrap();
                // Along the gradient itself: the largest change that there is.
                let length = values(gradient.clone().square().sum())[0].sqrt();
                let step = 3e-3;
                let moved = |sign: f64| {
                    let by = gradient.clone() * (sign * step / length);
                    let [mut x, mut y] = [x.clone().inner(), y.clone().inner()];
                    *[&mut x, &mut y][which] = of.clone().inner() + by;
                    values(ssim::<Flex>(x, y))[0]
                };
                let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
                assert!((slope / length - 1.0).abs() < 2e-3, "{size:?}: {slope}, not {length}");
            }
        }
    }
}
