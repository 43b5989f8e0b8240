//! Batches of a run's images: what is read at which step, and how it is varied.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::SeedTree;
use sar_data::{Augmentation, DataError, Dataset, EpochOrder, RgbImage, Split, to_tensor};

use crate::TrainError;
use crate::recipe::DataRecipe;

/// The images of a run.
pub(crate) struct Images {
    dataset: Box<dyn Dataset>,
    split: Split,
    augmentation: Augmentation,
}

/// Images of one step, on the host.
#[derive(Clone, Debug)]
pub(crate) struct ImageBatch {
    /// 8-bit images of one size.
    pub(crate) images: Vec<RgbImage>,
    /// Their classes.
    pub(crate) labels: Vec<usize>,
    /// The stream of each image, keyed by its absolute position.
    pub(crate) streams: Vec<SeedTree>,
}

impl ImageBatch {
    /// `[b, 3, H, W]`, pixels in [-1, 1].
    pub(crate) fn tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 4> {
        to_tensor(&self.images, device)
    }
}

impl Images {
    /// Opens the images of a recipe.
    ///
    /// # Errors
    /// If they cannot be read, or the augmentation does not fit them.
    pub(crate) fn open(recipe: &DataRecipe) -> Result<Self, TrainError> {
        let DataRecipe { source, side, augmentation } = recipe;
        let dataset = source.open(*side)?;
        augmentation.validate(dataset.classes())?;
        let split = Split::every_tenth(dataset.len());
        if split.train.is_empty() || split.held_out.is_empty() {
            return Err(DataError::TooFew { found: dataset.len() }.into());
        }
        Ok(Self { dataset, split, augmentation: augmentation.clone() })
    }

    /// Class names.
    pub(crate) fn classes(&self) -> &[String] {
        self.dataset.classes()
    }

    /// Number of training images.
    pub(crate) fn n_train(&self) -> usize {
        self.split.train.len()
    }

    /// Number of held-out images.
    pub(crate) fn n_held_out(&self) -> usize {
        self.split.held_out.len()
    }

    /// The order of the training images in a stage.
    pub(crate) fn order(&self, stage: SeedTree) -> EpochOrder {
        EpochOrder::new(stage.child("order"), self.n_train())
    }

    /// The training images at absolute positions `start..start + n`, augmented.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub(crate) fn training(
        &self,
        order: &mut EpochOrder,
        stage: SeedTree,
        start: u64,
        n: usize,
    ) -> Result<ImageBatch, TrainError> {
        let mut batch = ImageBatch { images: Vec::new(), labels: Vec::new(), streams: Vec::new() };
        for position in start..start + n as u64 {
            let index = self.split.train[order.index(position)];
            let stream = stage.child("image").at(position);
            let image = self.dataset.image(index)?;
            let label = self.dataset.label(index);
            let class = &self.dataset.classes()[label];
            batch.images.push(self.augmentation.apply(&image, class, stream.child("augment")));
            batch.labels.push(label);
            batch.streams.push(stream);
        }
        Ok(batch)
    }

    /// The held-out images `start..start + n`, as they are.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub(crate) fn held_out(&self, start: usize, n: usize) -> Result<ImageBatch, TrainError> {
        let mut batch = ImageBatch { images: Vec::new(), labels: Vec::new(), streams: Vec::new() };
        let indices = self.split.held_out[start..].iter().take(n);
        for (place, &index) in indices.enumerate() {
            batch.images.push(self.dataset.image(index)?);
            batch.labels.push(self.dataset.label(index));
            batch.streams.push(SeedTree::new(0).at((start + place) as u64));
        }
        Ok(batch)
    }
}
