//! Between 8-bit RGB pixels and tensors.
//!
//! Shapes: b batch, h height, w width.

use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Images of one size as a tensor of pixels in [-1, 1], `x / 127.5 - 1`.
///
/// # Shapes
/// - `images`: b times `3 h w` bytes, row by row, red, green and blue of a pixel together
/// - output: `[b, 3, h, w]`
///
/// # Panics
/// If there are none, or one has another number of bytes.
pub fn rgb_to_tensor<'i, B: Backend>(
    images: impl IntoIterator<Item = &'i [u8]>,
    [h, w]: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 4> {
    let mut values = Vec::new();
    for bytes in images {
        assert_eq!(bytes.len(), 3 * h * w, "an image of {w}x{h} pixels");
        for c in 0..3 {
            values.extend(bytes[c..].iter().step_by(3).map(|x| f32::from(*x) / 127.5 - 1.0));
        }
    }
    let b = values.len() / (3 * h * w);
    assert!(b > 0, "a batch of no images");
    Tensor::from_data(TensorData::new(values, [b, 3, h, w]), device)
}

/// A tensor of pixels as 8-bit images, clamped to [-1, 1] and rounded: the bytes of each as
/// [`rgb_to_tensor`] takes them.
///
/// # Shapes
/// - `pixels_bchw`: `[b, 3, h, w]`
pub fn tensor_to_rgb<B: Backend>(pixels_bchw: Tensor<B, 4>) -> Vec<Vec<u8>> {
    let [_, _, h, w] = pixels_bchw.dims();
    let values = pixels_bchw.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
    let byte = |x: f32| ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
    let image = |planes: &[f32]| {
        (0..h * w).flat_map(|at| (0..3).map(move |c| byte(planes[c * h * w + at]))).collect()
    };
    values.chunks_exact(3 * h * w).map(image).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn all_levels_survive_and_outliers_are_clamped() {
        let image: Vec<u8> = (0..=255u8).flat_map(|v| [v, 255 - v, v / 2]).collect();
        let tensor = rgb_to_tensor::<Flex>([&image[..], &image], [16, 16], &Default::default());
        assert_eq!(tensor.dims(), [2, 3, 16, 16]);
        assert_eq!(tensor_to_rgb(tensor.clone()), [image.clone(), image]);
        let first = tensor.clone().slice([0..1, 1..2, 0..1, 0..1]).into_scalar();
        assert_eq!(first, 1.0);
        let wild = tensor_to_rgb(tensor * 3.0);
        assert_eq!(wild[0][..3], [0, 255, 0]);
    }
}
