//! Images as an `.npz` file, as the evaluation scripts of this field read it: one array `arr_0`, 8-bit,
//! `[n, height, width, 3]`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sar_pipeline::RgbImage;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// An `.npz` file that is being written, image by image; it is there when it is whole.
pub(crate) struct Npz {
    path: PathBuf,
    partial: PathBuf,
    zip: ZipWriter<BufWriter<File>>,
    left: usize,
}

impl Npz {
    /// Begins a file of `n` images.
    pub(crate) fn create(path: &Path, n: usize, [height, width]: [usize; 2]) -> Result<Self> {
        ensure!(!path.exists(), "--npz {}: exists already; choose another name", path.display());
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let context = || format!("--npz {}", path.display());
        let file = File::create(&partial).with_context(context)?;
        let mut zip = ZipWriter::new(BufWriter::new(file));
        // Not compressed, as numpy's `savez` writes it; more than 4 GB are allowed.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        zip.start_file("arr_0.npy", options).with_context(context)?;
        zip.write_all(&header(&[n, height, width, 3])).with_context(context)?;
        Ok(Self { path: path.into(), partial, zip, left: n })
    }

    /// Appends an image.
    pub(crate) fn push(&mut self, image: &RgbImage) -> Result<()> {
        self.left = self.left.checked_sub(1).expect("as many images as were announced");
        self.zip.write_all(image.as_raw()).with_context(|| format!("--npz {}", self.path.display()))
    }

    /// Ends the file.
    pub(crate) fn finish(self) -> Result<()> {
        assert_eq!(self.left, 0, "as many images as were announced");
        let context = || format!("--npz {}", self.path.display());
        let file = self.zip.finish().with_context(context)?;
        let file = file.into_inner().map_err(|error| error.into_error()).with_context(context)?;
        file.sync_all().with_context(context)?;
        std::fs::rename(&self.partial, &self.path).with_context(context)
    }
}

/// The header of an array of bytes in numpy's format, version 1.0: its length is a multiple of 64.
fn header(shape: &[usize]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({}), }}", shape.join(", "));
    let start = 10;
    text.push_str(
        &" ".repeat((start + text.len() + 1).next_multiple_of(64) - start - text.len() - 1),
    );
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use image::Rgb;

    use super::*;

    #[test]
    fn the_file_is_as_numpy_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut npz = Npz::create(&path, 2, [1, 2]).unwrap();
        npz.push(&RgbImage::from_pixel(2, 1, Rgb([1, 2, 3]))).unwrap();
        npz.push(&RgbImage::from_pixel(2, 1, Rgb([4, 5, 6]))).unwrap();
        npz.finish().unwrap();
        let mut zip = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        let mut bytes = Vec::new();
        zip.by_name("arr_0.npy").unwrap().read_to_end(&mut bytes).unwrap();
        let expected = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 3), }";
        let text = String::from_utf8(bytes[10..128].to_vec()).unwrap();
        assert_eq!((&bytes[..8], text.trim_end()), (&b"\x93NUMPY\x01\x00"[..], expected));
        assert_eq!(bytes[128..], [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
        assert_eq!(u16::from_le_bytes([bytes[8], bytes[9]]), 118);
        let again = Npz::create(&path, 1, [1, 1]).err().unwrap().to_string();
        assert!(again.contains("exists already"), "{again}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
