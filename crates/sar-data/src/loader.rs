//! Batches of images, read ahead on threads.

use std::ops::Range;
use std::thread;

use burn::tensor::{Tensor, backend::Backend};
use image::RgbImage;
use sar_core::SeedTree;
use sar_core::pixels::rgb_to_tensor;

use crate::DataError;
use crate::images::{Images, Item, Purpose, Read};
use crate::prefetch::Prefetch;

/// The most threads that read by default: enough for any model that trains on images of this size.
const MAX_THREADS: usize = 8;

/// How far images are read ahead, and by how many threads; neither changes what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAhead {
    /// Threads that read, decode, crop and vary.
    pub threads: usize,
    /// Batches that wait at most. With the one that is handed out, memory holds `batches + 1`
    /// batches, and an original per thread.
    pub batches: usize,
}

impl Default for ReadAhead {
    /// As many threads as cores, eight at most, and two batches.
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { threads: cores.min(MAX_THREADS), batches: 2 }
    }
}

impl ReadAhead {
    pub(crate) fn check(self) {
        let Self { threads, batches } = self;
        assert!(threads > 0 && batches > 0, "{threads} threads read {batches} batches ahead");
    }
}

/// Images of one step, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ImageBatch {
    /// 8-bit images of one size.
    pub images: Vec<RgbImage>,
    /// Their classes.
    pub labels: Vec<usize>,
    /// The stream of each image, keyed by its absolute position.
    pub streams: Vec<SeedTree>,
    /// The place of each image in the data set.
    pub indices: Vec<usize>,
}

impl ImageBatch {
    /// Pixels in [-1, 1].
    ///
    /// # Shapes
    /// - output: `[b, 3, h, w]`
    ///
    /// # Panics
    /// If there are no images.
    pub fn tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 4> {
        let (w, h) = self.images.first().expect("a batch of no images").dimensions();
        let bytes = self.images.iter().map(|image| image.as_raw().as_slice());
        rgb_to_tensor(bytes, [h as usize, w as usize], device)
    }

    fn push(&mut self, item: Item) {
        let Item { image, label, stream, index } = item;
        self.images.push(image);
        self.labels.push(label);
        self.streams.push(stream);
        self.indices.push(index);
    }
}

/// Batches in the order of their positions; dropped, it ends its threads.
///
/// An error comes in the place of the batch that it concerns, and nothing after it.
pub struct Loader {
    reads: Prefetch<Read>,
    images: Images,
    position: u64,
    batch: usize,
    has_failed: bool,
}

impl Loader {
    /// # Panics
    /// If the batch is 0.
    pub(crate) fn new(
        images: &Images,
        purpose: Purpose,
        positions: Range<u64>,
        batch: usize,
        ahead: ReadAhead,
    ) -> Self {
        Self::with_places(images, purpose, positions, batch, ahead, |position| position)
    }

    /// As [`new`](Self::new), where what comes at a position is that of another `place`.
    pub(crate) fn with_places(
        images: &Images,
        purpose: Purpose,
        positions: Range<u64>,
        batch: usize,
        ahead: ReadAhead,
        place: impl Fn(u64) -> u64 + Send + Sync + 'static,
    ) -> Self {
        assert!(batch > 0, "batches of no images");
        let position = positions.start;
        let ReadAhead { threads, batches } = ahead;
        let window = batches.saturating_mul(batch);
        let source = images.clone();
        let read = move |position| source.read(&purpose, place(position));
        let reads = Prefetch::new(positions, threads, window, read);
        Self { reads, images: images.clone(), position, batch, has_failed: false }
    }

    /// The position of the first image of the next batch; of a [`Part`](crate::Part), among those of the part.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn read_batch(&mut self) -> Result<ImageBatch, DataError> {
        let mut batch = ImageBatch::default();
        for Read { item, passed_over } in self.reads.by_ref().take(self.batch) {
            self.images.note(passed_over)?;
            batch.push(item?);
            self.position += 1;
        }
        Ok(batch)
    }
}

impl Iterator for Loader {
    type Item = Result<ImageBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let batch = self.read_batch();
        self.has_failed = batch.is_err();
        Some(batch).filter(|batch| batch.as_ref().map_or(true, |batch| !batch.images.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Memory;
    use crate::{Augmentation, Crop, DataRecipe, EpochOrder, ImageSource, Split};

    fn images(memory: Memory, max_unreadable: f64, ahead: ReadAhead) -> Images {
        let recipe = DataRecipe {
            source: ImageSource::Emoji {},
            side: 2,
            crop: Crop::Exact {},
            augmentation: Augmentation::none(),
            max_unreadable,
        };
        Images::from_dataset(Box::new(memory), &recipe, ahead).unwrap()
    }

    /// What the rule says, one position after the other.
    fn by_hand(memory: &Memory, stage: SeedTree, position: u64) -> usize {
        let train = Split::every_tenth(memory.names.len()).train;
        let n = train.len() as u64;
        let order = EpochOrder::new(stage.child("order"), train.len()).epoch(position / n);
        let mut place = position % n;
        while memory.broken[train[order[place as usize]]] {
            place = (place + 1) % n;
        }
        train[order[place as usize]]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn batches_depend_on_nothing_but_seed_and_position(
            n in 10usize..60, broken in prop::collection::btree_set(0usize..60, 0..6), seed: u64,
            start in 0u64..200, batch in 1usize..20, threads in 1usize..6, batches in 1usize..4,
        ) {
            let broken: Vec<usize> = broken.into_iter().filter(|i| *i < n && i % 10 != 9).collect();
            let memory = Memory::numbered(n, 3).with_broken(&broken);
            let stage = SeedTree::new(seed);
            let images = images(memory.clone(), 1.0, ReadAhead { threads, batches });
            let mut loader = images.training(stage, start, batch);
            let mut position = start;
            for _ in 0..3 {
                prop_assert_eq!(loader.position(), position);
                let read = loader.next().unwrap().unwrap();
                prop_assert_eq!(read.images.len(), batch);
                for i in 0..batch {
                    let index = by_hand(&memory, stage, position);
                    prop_assert_eq!(read.indices[i], index);
                    prop_assert_eq!(read.labels[i], index % 3);
                    prop_assert_eq!(read.images[i].get_pixel(0, 0).0[0], index as u8);
                    prop_assert_eq!(read.streams[i], stage.child("image").at(position));
                    position += 1;
                }
            }
        }

        #[test]
        fn a_run_stops_at_the_same_batch_whatever_the_threads(
            broken in prop::collection::btree_set(0usize..60, 1..20), seed: u64, allowed in 0usize..20,
        ) {
            let broken: Vec<usize> = broken.into_iter().filter(|i| i % 10 != 9).collect();
            let outcome = |threads, batches| {
                let memory = Memory::numbered(60, 3).with_broken(&broken);
                // The probe of the first image is one of those that count.
                let share = (allowed.max(broken.len() / 2) as f64 + 0.5) / 60.0;
                let images = images(memory, share, ReadAhead { threads, batches });
                let loader = images.training(SeedTree::new(seed), 7, 4);
                let read: Vec<_> = loader.take(20).map(|b| b.map_err(|e| e.to_string())).collect();
                (read, images.take_warnings())
            };
            let alone = outcome(1, 1);
            prop_assert_eq!(&outcome(4, 3), &alone);
            prop_assert_eq!(&outcome(3, 1), &alone);
        }
    }

    #[test]
    fn tensors_hold_the_batch() {
        let images = images(Memory::numbered(10, 2), 0.0, ReadAhead::default());
        let batch = images.held_out(0, 1).next().unwrap().unwrap();
        let tensor = batch.tensor::<burn_flex::Flex>(&Default::default());
        assert_eq!(tensor.dims(), [1, 3, 2, 2]);
    }
}
