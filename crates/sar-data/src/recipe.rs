//! The data settings of a recipe.

use serde::{Deserialize, Serialize};

use crate::{Augmentation, Crop, DataError, ImageSource};

/// Where images come from and how they are prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// The embedded emoji, folders, lists, CIFAR-10 or shards.
    pub source: ImageSource,
    /// Side of the images, pixels.
    pub side: u32,
    /// How an image becomes a square of that side.
    pub crop: Crop,
    /// Random changes of training images, after the crop.
    pub augmentation: Augmentation,
    /// The share of all images that may be unreadable, in [0, 1]; more of them stop a run.
    pub max_unreadable: f64,
}

impl DataRecipe {
    /// Checks what can be checked without the images.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), DataError> {
        let Self { source: _, side, crop, augmentation: _, max_unreadable } = self;
        let setting = |field, value, allowed| Err(DataError::Setting { field, value, allowed });
        if *side == 0 {
            return setting("data.side", side.to_string(), "at least 1 px");
        }
        if !(0.0..=1.0).contains(max_unreadable) {
            return setting("data.max_unreadable", max_unreadable.to_string(), "a share of 0 to 1");
        }
        crop.validate()
    }
}
