//! What a set of labelled images is to everything that reads one.

use image::RgbImage;

use crate::DataError;

/// Labelled images in a fixed order, all of the side that the data set was opened with.
///
/// Every method but [`image`](Dataset::image) answers from memory. Methods that take an index panic
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

    /// Where image `i` comes from, for messages and reports: a file path or an emoji's short name.
    fn describe(&self, i: usize) -> String;

    /// Image `i`: side x side, 8-bit RGB, composited on white where the original has alpha.
    ///
    /// # Errors
    /// If the image cannot be read; the error names it.
    fn image(&self, i: usize) -> Result<RgbImage, DataError>;
}
