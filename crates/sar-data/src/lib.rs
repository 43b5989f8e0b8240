#![doc = include_str!("../README.md")]
//!
//! A recipe names an [`ImageSource`]; opened, it is a [`Dataset`] of 8-bit RGB images of any size.
//! [`Images`] prepares them as a [`DataRecipe`] says: [`Split`] says which of them train,
//! [`EpochOrder`] in which order they come, [`Crop`] what becomes a square, [`Augmentation`] how
//! that is varied. A [`Loader`] reads batches of them ahead on threads.

pub mod dataset;
pub mod left_out;

pub mod cifar10;
pub mod emoji;
pub mod folder;
pub mod list;
pub mod search;
pub mod shards;
pub mod source;

mod braces;
mod color;
mod decode;
mod labels;
mod shard_index;
mod walk;

pub mod fingerprint;
pub mod split;

pub mod augment;
pub mod crop;
pub mod order;

pub mod images;
pub mod loader;
pub mod recipe;
pub mod unreadable;

mod prefetch;
mod put_back;

pub mod error;

#[cfg(test)]
mod testing;

pub use augment::Augmentation;
pub use cifar10::Cifar10;
pub use crop::Crop;
pub use dataset::Dataset;
pub use decode::{decode_image, read_image, read_mask};
pub use emoji::Emoji;
pub use error::DataError;
pub use fingerprint::Fingerprint;
pub use folder::ImageFolder;
pub use image::RgbImage;
pub use images::{Images, Part};
pub use left_out::LeftOut;
pub use list::ImageList;
pub use loader::{ImageBatch, Loader, ReadAhead};
pub use order::EpochOrder;
pub use prefetch::Prefetch;
pub use recipe::DataRecipe;
pub use search::Search;
pub use shard_index::ShardIndex;
pub use shards::Shards;
pub use source::{HeldOutFolder, ImageSource};
pub use split::Split;
pub use unreadable::{FoundUnreadable, UnreadableImage};
