//! The images of a stage, step by step: read ahead, or as stored latents.

use sar_core::SeedTree;
use sar_data::{ImageBatch, Images, Loader};

use crate::TrainError;
use crate::latents::{LatentBatch, LatentCache, LatentLoader};
use crate::learner::Optimization;

/// Images of a stage.
pub(crate) struct Batches<'a> {
    pub(crate) images: &'a Images,
    stage: SeedTree,
    batch_size: usize,
    grad_accum_steps: usize,
    /// Reads ahead from the first step that was asked for.
    loader: Option<Loader>,
    latents: Option<LatentLoader>,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(images: &'a Images, stage: SeedTree, optimization: &Optimization) -> Self {
        let Optimization { batch_size, grad_accum_steps, .. } = *optimization;
        Self { images, stage, batch_size, grad_accum_steps, loader: None, latents: None }
    }

    /// The micro-batches of a step.
    pub(crate) fn of_step(&mut self, step: u64) -> Result<Vec<ImageBatch>, TrainError> {
        let start = step * self.batch_size as u64;
        let size = self.batch_size / self.grad_accum_steps;
        let loader = self.loader.take().filter(|loader| loader.position() == start);
        let mut loader = loader.unwrap_or_else(|| self.images.training(self.stage, start, size));
        let batches = loader.by_ref().take(self.grad_accum_steps).collect::<Result<_, _>>()?;
        self.loader = Some(loader);
        Ok(batches)
    }

    /// The same images as stored latents, each in a variant that its stream draws.
    pub(crate) fn latents_of_step(
        &mut self,
        step: u64,
        cache: &LatentCache,
    ) -> Result<Vec<LatentBatch>, TrainError> {
        let size = self.batch_size / self.grad_accum_steps;
        let micro_batches =
            step * self.grad_accum_steps as u64..(step + 1) * self.grad_accum_steps as u64;
        let loader =
            self.latents.take().filter(|loader| loader.next_batch() == micro_batches.start);
        let mut loader = match loader {
            Some(loader) => loader,
            None => {
                let order = self.images.order(self.stage);
                cache.load_ahead(self.stage, order, size, micro_batches.start)
            }
        };
        let batches = micro_batches.map(|_| loader.next()).collect::<Result<_, _>>()?;
        self.latents = Some(loader);
        Ok(batches)
    }
}
