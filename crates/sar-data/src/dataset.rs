//! What a set of labeled images is to everything that reads one.

use image::RgbImage;

use crate::{DataError, LeftOut, Split};

/// Labeled images in a fixed order, as they are stored: of any size, cropped by nobody.
///
/// Every method but [`image`](Self::image) answers from memory. Methods that take an index panic
/// if it is not below [`len`](Dataset::len).
pub trait Dataset: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class names; a label is an index into them.
    fn classes(&self) -> &[String];

    /// The class of image `i`, below the number of classes.
    fn label(&self, i: usize) -> usize;

    /// The name of image `i` in its source, the same wherever the source lies.
    fn name(&self, i: usize) -> String;

    /// Where image `i` comes from, for messages and reports: a file path or an emoji's short name.
    fn describe(&self, i: usize) -> String {
        self.name(i)
    }

    /// How many bytes image `i` takes where it is stored; 0 if it is missing or empty, and so not
    /// readable.
    fn stored_bytes(&self, i: usize) -> u64;

    /// Width and height of image `i`, pixels, if its source says them without decoding it.
    fn size_in_header(&self, _i: usize) -> Option<[u32; 2]> {
        None
    }

    /// How many images train, if the source says; those after them are held out.
    fn n_train(&self) -> Option<usize> {
        None
    }

    /// Which images train and which are held out: every tenth, unless the source says.
    fn split(&self) -> Split {
        match self.n_train() {
            Some(n) => Split { train: (0..n).collect(), held_out: (n..self.len()).collect() },
            None => Split::every_tenth(self.len()),
        }
    }

    /// What lies in the source and is not among the images, the most frequent first.
    fn left_out(&self) -> &[LeftOut] {
        &[]
    }

    /// What was decided when the source was read that its user ought to know, a line each.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Image `i`: 8-bit RGB, upright, composited on white where the original has alpha.
    ///
    /// # Errors
    /// [`DataError::Unreadable`] if the image cannot be read; the error names it.
    fn image(&self, i: usize) -> Result<RgbImage, DataError>;
}
