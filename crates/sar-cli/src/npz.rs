//! Images as an `.npz` file, as the evaluation scripts of this field write and read it: `arr_0`, 8-bit,
//! `[n, height, width, 3]`, and of images with classes `arr_1`, their labels, 64-bit, `[n]`.

use std::io::{Seek, Write};

use anyhow::Result;
use sar_eval::npy_header;
use sar_pipeline::RgbImage;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Writes a file of images, of as many labels or of none; the same bytes for the same images.
///
/// # Panics
/// If there is another number of images, or one of another size.
pub(crate) fn write_npz(
    file: impl Write + Seek,
    [n, height, width]: [usize; 3],
    images: impl Iterator<Item = Result<RgbImage>>,
    labels: Option<&[i64]>,
) -> Result<()> {
    let mut zip = ZipWriter::new(file);
    // Not compressed, as numpy's `savez` writes it; more than 4 GB are allowed.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(true);
    zip.start_file("arr_0.npy", options)?;
    zip.write_all(&npy_header("|u1", &[n as u64, height as u64, width as u64, 3]))?;
    let mut n_written = 0;
    for image in images {
        let image = image?;
        assert_eq!(image.dimensions(), (width as u32, height as u32), "the size of the file");
        zip.write_all(image.as_raw())?;
        n_written += 1;
    }
    assert_eq!(n_written, n, "as many images as the file is of");
    if let Some(labels) = labels {
        assert_eq!(labels.len(), n, "a label for each image");
        zip.start_file("arr_1.npy", options)?;
        zip.write_all(&npy_header("<i8", &[n as u64]))?;
        let bytes: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        zip.write_all(&bytes)?;
    }
    zip.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use image::Rgb;

    use super::*;

    #[test]
    fn the_file_is_as_numpy_writes_it() {
        let images = [[1, 2, 3], [4, 5, 6]].map(|color| RgbImage::from_pixel(2, 1, Rgb(color)));
        let file = |labels: Option<&[i64]>| {
            let mut file = Cursor::new(Vec::new());
            write_npz(&mut file, [2, 1, 2], images.iter().cloned().map(Ok), labels).unwrap();
            file.into_inner()
        };
        let mut zip = zip::ZipArchive::new(Cursor::new(file(Some(&[7, -1])))).unwrap();
        let mut array = |name: &str| {
            let mut bytes = Vec::new();
            zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
            let text = String::from_utf8(bytes[10..128].to_vec()).unwrap();
            assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
            assert!(text.ends_with(" \n"), "{text}");
            (text.trim_end().to_owned(), bytes[128..].to_vec())
        };
        let (text, bytes) = array("arr_0.npy");
        assert_eq!(text, "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 3), }");
        assert_eq!(bytes, [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
        let (text, bytes) = array("arr_1.npy");
        assert_eq!(text, "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }");
        assert_eq!(bytes, [[7, 0, 0, 0, 0, 0, 0, 0], [255; 8]].concat());

        let of_no_class = file(None);
        let mut zip = zip::ZipArchive::new(Cursor::new(&of_no_class)).unwrap();
        assert_eq!((zip.len(), zip.by_index(0).unwrap().name().unwrap()), (1, "arr_0.npy".into()));
    }
}
