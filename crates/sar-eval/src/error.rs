//! What can be wrong with images that are to be measured.

use std::path::PathBuf;

use sar_data::DataError;

/// An error of images, or of what they are compared with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A source of images cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A measure cannot be taken.
    #[error(transparent)]
    Metrics(#[from] sar_metrics::MetricsError),
    /// An `.npz` file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Npz {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Images of several sizes.
    #[error(
        "{image}: {}x{} px, but {first} has {}x{} px; images that are measured are all of one size",
        size[1], size[0], first_size[1], first_size[0]
    )]
    Sizes {
        /// The image.
        image: String,
        /// Its height and width, pixels.
        size: [usize; 2],
        /// The first image.
        first: String,
        /// Its height and width, pixels.
        first_size: [usize; 2],
    },
    /// An image that does not become one of a size that is no square.
    #[error(
        "{image}: {}x{} px, but those that it is compared with have {}x{} px, and to squares alone others are \
         cropped; give images of one size",
        size[1], size[0], wanted[1], wanted[0]
    )]
    NoSquare {
        /// The image.
        image: String,
        /// Its height and width, pixels.
        size: [usize; 2],
        /// Those of the images that it is compared with.
        wanted: [usize; 2],
    },
    /// What is compared does not fit together.
    #[error("{problem}")]
    Unfit {
        /// What is wrong, and what to do.
        problem: String,
    },
}
