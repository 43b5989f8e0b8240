//! The images of a stage, step by step: read ahead, or as stored latents; of each step those alone that this
//! rank computes with.

use sar_core::SeedTree;
use sar_data::{ImageBatch, Images, Loader, Part};
use sar_exchange::{Group, MicroBatches, Share};

use crate::TrainError;
use crate::latents::{LatentBatch, LatentCache, LatentLoader};
use crate::learner::Optimization;
use crate::turns::HeldOutImages;

/// Images of a stage.
pub(crate) struct Batches<'a> {
    pub(crate) images: &'a Images,
    pub(crate) group: &'a Group,
    stage: SeedTree,
    batch_size: usize,
    share: Share,
    /// Reads ahead from the first step that was asked for.
    loader: Option<Loader>,
    latents: Option<LatentLoader>,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(
        images: &'a Images,
        stage: SeedTree,
        optimization: &Optimization,
        group: &'a Group,
    ) -> Self {
        let Optimization { batch_size, grad_accum_steps, .. } = *optimization;
        let share = group.share(grad_accum_steps);
        Self { images, group, stage, batch_size, share, loader: None, latents: None }
    }

    /// Images of a micro-batch.
    fn size(&self) -> usize {
        self.batch_size / self.share.of
    }

    /// The micro-batches of a step.
    pub(crate) fn of_step(&mut self, step: u64) -> Result<MicroBatches<ImageBatch>, TrainError> {
        let (share, size) = (self.share, self.size());
        if share.is_empty() {
            return Ok(MicroBatches::new(Vec::new(), share));
        }
        let start = step * (share.len() * size) as u64;
        let part = Part {
            of: (share.of * size) as u64,
            from: (share.start * size) as u64,
            to: (share.end * size) as u64,
        };
        let loader = self.loader.take().filter(|loader| loader.position() == start);
        let mut loader =
            loader.unwrap_or_else(|| self.images.training_part(self.stage, part, start, size));
        let read = loader.by_ref().take(share.len()).inspect(|_| self.group.alive());
        let batches = read.collect::<Result<_, _>>()?;
        self.loader = Some(loader);
        Ok(MicroBatches::new(batches, share))
    }

    /// The same images as stored latents, each in a variant that its stream draws.
    pub(crate) fn latents_of_step(
        &mut self,
        step: u64,
        cache: &LatentCache,
    ) -> Result<MicroBatches<LatentBatch>, TrainError> {
        let (share, size) = (self.share, self.size());
        if share.is_empty() {
            return Ok(MicroBatches::new(Vec::new(), share));
        }
        let start = step * share.len() as u64;
        let loader = self.latents.take().filter(|loader| loader.next_batch() == start);
        let mut loader = match loader {
            Some(loader) => loader,
            None => {
                let order = self.images.order(self.stage);
                cache.load_ahead(self.stage, order, (share, size), start)
            }
        };
        let batches = share.range().map(|_| loader.next()).collect::<Result<_, _>>()?;
        self.latents = Some(loader);
        Ok(MicroBatches::new(batches, share))
    }

    /// So many held-out images, 0 for all.
    pub(crate) fn held_out(&self, n: usize, batch: usize) -> HeldOutImages<'a> {
        HeldOutImages { images: self.images, group: self.group, n, batch }
    }
}
