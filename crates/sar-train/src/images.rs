//! Batches of a run's images: what is read at which step, and how it is varied.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::SeedTree;
use sar_data::{Augmentation, DataError, Dataset, EpochOrder, RgbImage, Split, to_tensor};

use crate::TrainError;
use crate::recipe::DataRecipe;

/// Images per batch when nothing is trained.
pub(crate) const EVALUATION_BATCH: usize = 32;

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

    /// What the images are, as a short text: names, labels and number.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        for i in 0..self.dataset.len() {
            hasher.update(self.dataset.describe(i).as_bytes());
            hasher.update(&(self.dataset.label(i) as u64).to_le_bytes());
        }
        format!("{}-{:08x}", self.dataset.len(), hasher.finalize())
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

    /// The stream of the image at an absolute position of a stage.
    pub(crate) fn stream(&self, stage: SeedTree, position: u64) -> SeedTree {
        stage.child("image").at(position)
    }

    /// The class of a training image.
    pub(crate) fn training_label(&self, image: usize) -> usize {
        self.dataset.label(self.split.train[image])
    }

    /// Some training images, each in the variant that its stream draws.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub(crate) fn variants(
        &self,
        of: impl Iterator<Item = (usize, SeedTree)>,
    ) -> Result<ImageBatch, TrainError> {
        let mut batch = ImageBatch { images: Vec::new(), labels: Vec::new(), streams: Vec::new() };
        for (image, stream) in of {
            let index = self.split.train[image];
            let label = self.dataset.label(index);
            let class = &self.dataset.classes()[label];
            let pixels = self.dataset.image(index)?;
            batch.images.push(self.augmentation.apply(&pixels, class, stream.child("augment")));
            batch.labels.push(label);
            batch.streams.push(stream);
        }
        Ok(batch)
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
        let positions = start..start + n as u64;
        self.variants(positions.map(|at| (order.index(at), self.stream(stage, at))))
    }

    /// At most `n` held-out images from all over the split, whose neighbours are alike, in batches.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub(crate) fn held_out_spread(&self, n: usize) -> Result<Vec<ImageBatch>, TrainError> {
        let all = self.n_held_out();
        let n = n.min(all);
        let places: Vec<usize> = (0..n).map(|i| i * all / n).collect();
        places.chunks(EVALUATION_BATCH).map(|places| self.held_out_at(places)).collect()
    }

    /// The held-out images `start..start + n`, as they are.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub(crate) fn held_out(&self, start: usize, n: usize) -> Result<ImageBatch, TrainError> {
        let places: Vec<usize> = (start..self.n_held_out().min(start + n)).collect();
        self.held_out_at(&places)
    }

    fn held_out_at(&self, places: &[usize]) -> Result<ImageBatch, TrainError> {
        let mut batch = ImageBatch { images: Vec::new(), labels: Vec::new(), streams: Vec::new() };
        for &place in places {
            let index = self.split.held_out[place];
            batch.images.push(self.dataset.image(index)?);
            batch.labels.push(self.dataset.label(index));
            batch.streams.push(SeedTree::new(0).at(place as u64));
        }
        Ok(batch)
    }
}
