//! Labelled images: the embedded emoji, folders of images, augmentation and epoch order as pure
//! functions of a seed.
//!
//! A recipe names an [`ImageSource`]; opened, it is a [`Dataset`] of 8-bit RGB images of one size.
//! [`Split`] says which of them train, [`EpochOrder`] in which order they come, [`Augmentation`]
//! how each is varied, and [`to_tensor`] hands a batch to a model.

pub mod dataset;

pub mod emoji;
pub mod folder;
pub mod source;

mod decode;

pub mod classes;
pub mod split;

pub mod augment;
pub mod order;

pub mod pixels;

pub mod error;

pub use augment::Augmentation;
pub use classes::find_class;
pub use dataset::Dataset;
pub use emoji::Emoji;
pub use error::DataError;
pub use folder::ImageFolder;
pub use image::RgbImage;
pub use order::EpochOrder;
pub use pixels::{enlarge, grid, magnification, to_images, to_png, to_tensor};
pub use source::ImageSource;
pub use split::Split;
