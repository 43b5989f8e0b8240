//! Between 8-bit images and tensors, and contact sheets.
//!
//! Shapes: b batch, h height, w width.

use burn::tensor::{Tensor, backend::Backend};
use image::{ImageFormat, Rgb, RgbImage, imageops};
use sar_core::pixels::{rgb_to_tensor, tensor_to_rgb};

/// Images as a tensor of pixels in [-1, 1], see [`rgb_to_tensor`].
///
/// # Shapes
/// - output: `[b, 3, h, w]`
///
/// # Panics
/// If there are none, or they differ in size.
pub fn to_tensor<B: Backend>(images: &[RgbImage], device: &B::Device) -> Tensor<B, 4> {
    let (w, h) = images.first().expect("a batch of no images").dimensions();
    let bytes = images.iter().map(|image| {
        assert_eq!(image.dimensions(), (w, h), "images of one batch have one size");
        image.as_raw().as_slice()
    });
    rgb_to_tensor(bytes, [h as usize, w as usize], device)
}

/// A tensor of pixels as 8-bit images: clamped to [-1, 1] and rounded.
///
/// # Shapes
/// - `pixels_bchw`: `[b, 3, h, w]`
pub fn to_images<B: Backend>(pixels_bchw: Tensor<B, 4>) -> Vec<RgbImage> {
    let [_, _, h, w] = pixels_bchw.dims();
    let image = |bytes| RgbImage::from_raw(w as u32, h as u32, bytes).expect("h w pixels");
    tensor_to_rgb(pixels_bchw).into_iter().map(image).collect()
}

/// An image as the bytes of a PNG file.
///
/// # Panics
/// If the image has no pixels.
pub fn to_png(image: &RgbImage) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).expect("memory takes any image that has pixels");
    png.into_inner()
}

/// An image at a larger size, every pixel a rectangle.
pub fn enlarge(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    imageops::resize(image, width, height, imageops::FilterType::Nearest)
}

/// How many times small images of this width are magnified so that a sheet can be looked at.
pub fn magnification(width: u32) -> u32 {
    (96 / width).clamp(1, 4)
}

/// A contact sheet on white: images row by row, each magnified by a whole factor.
///
/// # Panics
/// If there are no images or no columns.
pub fn grid(images: &[RgbImage], columns: usize, gap: u32, magnify: u32) -> RgbImage {
    let width = images.iter().map(RgbImage::width).max().expect("a grid of no images") * magnify;
    let height = images.iter().map(RgbImage::height).max().unwrap_or(0) * magnify;
    let (columns, rows) = (columns as u32, images.len().div_ceil(columns) as u32);
    let side = |n: u32, length: u32| n * length + (n + 1) * gap;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), Rgb([255; 3]));
    for (i, image) in images.iter().enumerate() {
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        let (x, y) = (gap + column * (width + gap), gap + row * (height + gap));
        let (w, h) = image.dimensions();
        let large = enlarge(image, w * magnify, h * magnify);
        imageops::replace(&mut sheet, &large, i64::from(x), i64::from(y));
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_lay_images_out_row_by_row() {
        let one = |v: u8| RgbImage::from_pixel(2, 2, Rgb([v; 3]));
        let sheet = grid(&[one(1), one(2), one(3)], 2, 1, 3);
        assert_eq!(sheet.dimensions(), (15, 15));
        assert_eq!(sheet.get_pixel(1, 1).0[0], 1);
        assert_eq!(sheet.get_pixel(8, 1).0[0], 2);
        assert_eq!(sheet.get_pixel(6, 13).0[0], 3);
        assert_eq!(sheet.get_pixel(13, 13).0[0], 255);
    }
}
