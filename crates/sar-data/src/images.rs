//! The images of a run: a source, how its images are prepared, and what may go wrong with them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use image::RgbImage;
use sar_core::SeedTree;

use crate::crop::WrongSize;
use crate::left_out::in_one_line;
use crate::put_back::PutBack;
use crate::unreadable::{FoundUnreadable, Unreadable, list, name};
use crate::{
    Augmentation, Crop, DataError, DataRecipe, Dataset, EpochOrder, Fingerprint, ImageBatch,
    LeftOut, Loader, ReadAhead, Split, UnreadableImage,
};

/// Opened images; clones are the same.
///
/// An image that cannot be read is passed over: the next readable one takes its place, next in the
/// order of its epoch or, held out, in the order of the data set; after the last comes the first.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    dataset: PutBack,
    split: Split,
    fingerprint: Fingerprint,
    side: u32,
    crop: Crop,
    augmentation: Augmentation,
    ahead: ReadAhead,
    /// How many images may be unreadable.
    allowed: usize,
    notes: Vec<String>,
    unreadable: Mutex<Unreadable>,
}

/// Of every `of` positions, those from `from` to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Positions,
    pub of: u64,
    /// of which these are the first
    pub from: u64,
    /// and the one behind the last.
    pub to: u64,
}

/// Which images are read in which order.
pub(crate) enum Purpose {
    /// Varied, in the order of each epoch.
    Training { stage: SeedTree, order: Mutex<EpochOrder> },
    /// Training images one after the other, each in so many variants.
    Variants { stage: SeedTree, variants: usize },
    /// Held-out images as they are, so many from all over the split.
    HeldOut { n: usize },
}

/// What was read at a position.
pub(crate) struct Read {
    pub(crate) item: Result<Item, DataError>,
    /// The images that could not be read on the way to it.
    pub(crate) passed_over: Vec<(usize, DataError)>,
}

/// A prepared image.
pub(crate) struct Item {
    pub(crate) image: RgbImage,
    pub(crate) label: usize,
    pub(crate) stream: SeedTree,
    pub(crate) index: usize,
}

impl Images {
    /// Opens the images of a recipe and tries one of each split.
    ///
    /// # Errors
    /// If the source cannot be used, a setting is out of range or does not fit it, or no image of a
    /// split can be read.
    ///
    /// # Panics
    /// If `ahead` has no thread or no batch.
    pub fn open(recipe: &DataRecipe, ahead: ReadAhead) -> Result<Self, DataError> {
        recipe.validate()?;
        Self::from_dataset(recipe.source.open(recipe.side)?, recipe, ahead)
    }

    /// As [`open`](Self::open), with a data set of one's own in place of the recipe's source.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub fn from_dataset(
        dataset: Box<dyn Dataset>,
        recipe: &DataRecipe,
        ahead: ReadAhead,
    ) -> Result<Self, DataError> {
        recipe.validate()?;
        Self::prepare(PutBack::nothing(dataset), recipe, ahead, None)
    }

    /// Opens the images of a run that goes on: those that it started with, save that images which it
    /// found unreadable may have been replaced or removed since.
    ///
    /// `start` is the [`fingerprint`](Self::fingerprint) of the run's images and `unreadable` what
    /// [`unreadable`](Self::unreadable) said last. A removed image keeps its place in the order and
    /// is passed over there, and no longer counts as unreadable.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`DataError::Changed`] if other images have changed.
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub fn reopen(
        recipe: &DataRecipe,
        ahead: ReadAhead,
        start: &Fingerprint,
        unreadable: &[UnreadableImage],
    ) -> Result<Self, DataError> {
        recipe.validate()?;
        let dataset = PutBack::new(recipe.source.open(recipe.side)?, unreadable);
        Self::prepare(dataset, recipe, ahead, Some(start))
    }

    fn prepare(
        dataset: PutBack,
        recipe: &DataRecipe,
        ahead: ReadAhead,
        start: Option<&Fingerprint>,
    ) -> Result<Self, DataError> {
        ahead.check();
        let DataRecipe { source: _, side, crop, augmentation, max_unreadable } = recipe;
        augmentation.validate(dataset.classes())?;
        let split = dataset.split();
        if split.train.is_empty() || split.held_out.is_empty() {
            return Err(DataError::TooFew { found: dataset.len() });
        }
        let fingerprint = dataset.fingerprint();
        if let Some(start) = start {
            fingerprint.check_same_as(start)?;
        }
        let allowed = (max_unreadable * dataset.len() as f64) as usize;
        let mut unreadable = Unreadable::new(dataset.len(), allowed);
        let mut notes = dataset.notes().to_vec();
        notes.extend(dataset.note());
        notes.extend(classes_without_images(&dataset, &split));
        notes.extend(unreadable.take_down_missing(&dataset)?);
        let images = Self(Arc::new(Inner {
            fingerprint,
            dataset,
            split,
            side: *side,
            crop: crop.clone(),
            augmentation: augmentation.clone(),
            ahead,
            allowed,
            notes,
            unreadable: Mutex::new(unreadable),
        }));
        // What no image is fit for is found now, not hours later.
        let training = images.training_purpose(SeedTree::new(0));
        for purpose in [training, Purpose::HeldOut { n: 1 }] {
            let Read { item, passed_over } = images.read(&purpose, 0);
            images.note(passed_over)?;
            item?;
        }
        Ok(images)
    }

    /// How many images train, of how many classes, and what is left out, in one line.
    ///
    /// ```text
    /// trains on 90 images of 2 classes, 10 held out; 9 files left out: 9 .heic (first: a/u0.heic)
    /// ```
    pub fn summary(&self) -> String {
        let n = self.classes().len();
        let classes = if n == 1 { "class" } else { "classes" };
        let mut line = format!(
            "trains on {} images of {n} {classes}, {} held out",
            self.n_train(),
            self.n_held_out()
        );
        if let Some(left_out) = in_one_line(self.left_out()) {
            line += &format!("; {left_out}");
        }
        line
    }

    /// What lies in the source and is not among the images, the most frequent first.
    pub fn left_out(&self) -> &[LeftOut] {
        self.0.dataset.left_out()
    }

    /// What a user ought to know of the images before a run, a line each: how the source was
    /// understood, which images are missing, and which classes have no training image.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// All images that this run found unreadable, for [`reopen`](Self::reopen): those of before, and
    /// those found since.
    pub fn unreadable(&self) -> Vec<UnreadableImage> {
        let found: Vec<usize> = self.state().indices().collect();
        self.0.dataset.record(found)
    }

    /// Class names.
    pub fn classes(&self) -> &[String] {
        self.0.dataset.classes()
    }

    /// Number of training images.
    pub fn n_train(&self) -> usize {
        self.0.split.train.len()
    }

    /// Number of held-out images.
    pub fn n_held_out(&self) -> usize {
        self.0.split.held_out.len()
    }

    /// What identifies the data set that the run started with.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.0.fingerprint
    }

    /// The training images of a stage from an absolute position on, in batches without end.
    ///
    /// Position p is place `p % n_train` of epoch `p / n_train`; which image comes there, and how it
    /// is varied, is a function of the stage's stream and the position.
    ///
    /// # Panics
    /// If the batch is 0.
    pub fn training(&self, stage: SeedTree, start: u64, batch: usize) -> Loader {
        let positions = start..u64::MAX;
        Loader::new(self, self.training_purpose(stage), positions, batch, self.0.ahead)
    }

    /// As [`training`](Self::training), of every `part.of` positions those alone from `part.from` to `part.to`;
    /// these are counted on by themselves, and `start` is such a count.
    ///
    /// # Panics
    /// If the batch is 0, or the part has nothing or is larger than what it is a part of.
    pub fn training_part(&self, stage: SeedTree, part: Part, start: u64, batch: usize) -> Loader {
        let Part { of, from, to } = part;
        assert!(from < to && to <= of, "{part:?}");
        let place = move |count: u64| count / (to - from) * of + from + count % (to - from);
        let (purpose, ahead) = (self.training_purpose(stage), self.0.ahead);
        Loader::with_places(self, purpose, start..u64::MAX, batch, ahead, place)
    }

    /// The order of the training images in a stage.
    pub fn order(&self, stage: SeedTree) -> EpochOrder {
        EpochOrder::new(stage.child("order"), self.n_train())
    }

    /// The stream of the training image at an absolute position of a stage.
    pub fn stream(stage: SeedTree, position: u64) -> SeedTree {
        stage.child("image").at(position)
    }

    /// Training images in the order of the data set, each in `variants` variants: record r is variant
    /// `r % variants` of image `r / variants`, varied by a stream of its own below `stage`.
    ///
    /// # Errors
    /// If too many images cannot be read, or one has not the size that it should have.
    ///
    /// # Panics
    /// If there are no variants, or no such records.
    pub fn variants(
        &self,
        stage: SeedTree,
        variants: usize,
        records: Range<usize>,
    ) -> Result<ImageBatch, DataError> {
        assert!(records.end <= self.n_train() * variants, "records of the training images");
        let positions = records.start as u64..records.end as u64;
        let (purpose, n) = (Purpose::Variants { stage, variants }, records.len().max(1));
        let mut loader = Loader::new(self, purpose, positions, n, self.0.ahead);
        loader.next().unwrap_or_else(|| Ok(ImageBatch::default()))
    }

    /// At most `n` held-out images, 0 for all of them, in batches: in the order of the data set and
    /// from all over it, since neighbors are alike.
    ///
    /// # Panics
    /// If the batch is 0.
    pub fn held_out(&self, n: usize, batch: usize) -> Loader {
        let all = self.n_held_out();
        let n = if n == 0 { all } else { n.min(all) };
        Loader::new(self, Purpose::HeldOut { n }, 0..n as u64, batch, self.0.ahead)
    }

    /// Which images were found unreadable since the last call, for [`adopt`](Self::adopt) elsewhere.
    pub fn take_found(&self) -> Vec<FoundUnreadable> {
        self.state().take_found()
    }

    /// Counts images, which another process found unreadable, as if they had been found here.
    ///
    /// # Errors
    /// [`DataError::TooManyUnreadable`] if there are more than the recipe allows.
    pub fn adopt(&self, found: Vec<FoundUnreadable>) -> Result<(), DataError> {
        let error = |FoundUnreadable { index, image, reason }| {
            (index, DataError::Unreadable { image, reason })
        };
        let mut state = self.state();
        let own = state.take_found();
        let outcome = state.take_down(found.into_iter().map(error).collect());
        // What came from elsewhere is known there.
        state.take_found();
        state.keep_found(own);
        outcome
    }

    /// A line for every image that was found unreadable since the last call.
    pub fn take_warnings(&self) -> Vec<String> {
        self.state().take_warnings()
    }

    fn training_purpose(&self, stage: SeedTree) -> Purpose {
        Purpose::Training { stage, order: Mutex::new(self.order(stage)) }
    }

    /// Reads and prepares what comes at a position.
    pub(crate) fn read(&self, purpose: &Purpose, position: u64) -> Read {
        let inner = &*self.0;
        match purpose {
            Purpose::Training { stage, order } => {
                let n = self.n_train() as u64;
                let order = order.lock().expect("no permutation panics").epoch(position / n);
                let places = from_place(&order, (position % n) as usize);
                let indices = places.map(|place| inner.split.train[place]);
                inner.varied(indices, Self::stream(*stage, position))
            }
            Purpose::Variants { stage, variants } => {
                let (place, variant) = (position as usize / variants, position % *variants as u64);
                let stream = stage.at(place as u64).at(variant);
                inner.varied(from_place(&inner.split.train, place), stream)
            }
            Purpose::HeldOut { n } => {
                let place = position as usize * self.n_held_out() / n;
                let indices = from_place(&inner.split.held_out, place);
                let stream = SeedTree::new(0).at(place as u64);
                inner.first_readable("held-out", indices, stream, |image, _| {
                    inner.crop.evaluation(image, inner.side)
                })
            }
        }
    }

    /// Takes down images that could not be read.
    ///
    /// # Errors
    /// [`DataError::TooManyUnreadable`] if there are more than the recipe allows.
    pub(crate) fn note(&self, passed_over: Vec<(usize, DataError)>) -> Result<(), DataError> {
        self.state().take_down(passed_over)
    }

    fn state(&self) -> MutexGuard<'_, Unreadable> {
        self.0.unreadable.lock().expect("nothing panics while it holds this lock")
    }
}

/// Which classes have no training image, in one line.
fn classes_without_images(dataset: &dyn Dataset, split: &Split) -> Option<String> {
    let count = |indices: &[usize]| {
        let mut counts = vec![0; dataset.classes().len()];
        indices.iter().for_each(|&i| counts[dataset.label(i)] += 1);
        counts
    };
    let (train, held_out) = (count(&split.train), count(&split.held_out));
    let without: Vec<usize> = (0..train.len()).filter(|&class| train[class] == 0).collect();
    let named = without.iter().map(|&class| {
        let name = &dataset.classes()[class];
        match held_out[class] {
            0 => format!("'{name}' (no image)"),
            n => format!("'{name}' ({n} held out)"),
        }
    });
    let named: Vec<String> = named.collect();
    (!without.is_empty()).then(|| {
        format!(
            "data.source: {} of {} classes have no training image: {}",
            without.len(),
            train.len(),
            list(&named, without.len())
        )
    })
}

/// The elements from a place on, then those before it.
fn from_place(order: &[usize], place: usize) -> impl Iterator<Item = usize> + '_ {
    order[place..].iter().chain(&order[..place]).copied()
}

impl Inner {
    /// The first training image that can be read, cropped and varied by its stream.
    fn varied(&self, indices: impl Iterator<Item = usize>, stream: SeedTree) -> Read {
        self.first_readable("training", indices, stream, |image, class| {
            let image = self.crop.training(image, self.side, stream.child("crop"))?;
            Ok(self.augmentation.apply(&image, class, stream.child("augment")))
        })
    }

    /// The first image that can be read, prepared.
    fn first_readable(
        &self,
        split: &'static str,
        indices: impl Iterator<Item = usize>,
        stream: SeedTree,
        prepare: impl Fn(RgbImage, &str) -> Result<RgbImage, WrongSize>,
    ) -> Read {
        let mut passed_over = Vec::new();
        for index in indices.filter(|&index| !self.dataset.is_removed(index)) {
            let image = match self.dataset.image(index) {
                Ok(image) => image,
                Err(error) => {
                    passed_over.push((index, error));
                    // Enough to stop the run; a disk that is gone is not asked for all images.
                    if passed_over.len() > self.allowed {
                        break;
                    }
                    continue;
                }
            };
            let label = self.dataset.label(index);
            let wrong_size = |WrongSize { width, height }| {
                let image = self.dataset.describe(index);
                DataError::WrongSize { image, width, height, side: self.side }
            };
            let item = prepare(image, &self.dataset.classes()[label])
                .map(|image| Item { image, label, stream, index })
                .map_err(wrong_size);
            return Read { item, passed_over };
        }
        let names: Vec<String> = passed_over.iter().map(|(_, e)| name(e)).collect();
        let total = passed_over.len();
        let error = DataError::NoneReadable { split, total, named: list(&names, total) };
        Read { item: Err(error), passed_over }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageSource;
    use crate::testing::{Memory, noise};

    const AHEAD: ReadAhead = ReadAhead { threads: 2, batches: 2 };

    fn recipe(crop: Crop, side: u32, max_unreadable: f64) -> DataRecipe {
        let augmentation = Augmentation::none();
        DataRecipe { source: ImageSource::Emoji {}, side, crop, augmentation, max_unreadable }
    }

    fn opened(memory: Memory, max_unreadable: f64) -> Result<Images, String> {
        let recipe = recipe(Crop::Exact {}, 2, max_unreadable);
        Images::from_dataset(Box::new(memory), &recipe, AHEAD).map_err(|error| error.to_string())
    }

    #[test]
    fn emoji_are_what_they_were_before_they_were_cropped_and_read_ahead() {
        let augmentation = Augmentation {
            shift: 0.06,
            scale: [0.9, 1.1],
            flip: 0.5,
            flip_except: vec!["Symbols".into(), "Flags".into()],
        };
        let recipe = DataRecipe { augmentation, ..recipe(Crop::AdmCenter {}, 32, 0.0) };
        let images = Images::open(&recipe, AHEAD).unwrap();
        let stage = SeedTree::new(0).child("tokenizer");
        let emoji = crate::Emoji::new(32).unwrap();
        let train = Split::every_tenth(emoji.len()).train;
        let mut order = EpochOrder::new(stage.child("order"), train.len());
        let mut position = 1710;
        for batch in images.training(stage, position, 8).take(2) {
            let batch = batch.unwrap();
            for (i, image) in batch.images.iter().enumerate() {
                let index = train[order.index(position)];
                let stream = stage.child("image").at(position);
                let class = &emoji.classes()[emoji.label(index)];
                let original = emoji.image(index).unwrap();
                let expected = recipe.augmentation.apply(&original, class, stream.child("augment"));
                assert_eq!(*image, expected);
                assert_eq!((batch.labels[i], batch.indices[i]), (emoji.label(index), index));
                assert_eq!(batch.streams[i], stream);
                position += 1;
            }
        }
        let held_out = |n| images.held_out(n, 64).flat_map(|batch| batch.unwrap().indices);
        assert_eq!(held_out(0).collect::<Vec<_>>(), Split::every_tenth(emoji.len()).held_out);
        // 190 held-out images: places 0, 63 and 126.
        assert_eq!(held_out(3).collect::<Vec<_>>(), [9, 639, 1269]);
        assert_eq!(held_out(1000).count(), 190, "as far as there are any");
        let first = images.held_out(0, 4).next().unwrap().unwrap();
        assert_eq!(first.images[3], emoji.image(39).unwrap());
        // Variants by record, with streams of their own.
        let variants = images.variants(stage, 2, 5..7).unwrap();
        assert_eq!(variants.indices, [train[2], train[3]]);
        assert_eq!(variants.streams, [stage.at(2).at(1), stage.at(3).at(0)]);
    }

    #[test]
    fn parts_of_steps_are_those_of_the_whole() {
        let images = opened(Memory::numbered(40, 2), 0.0).unwrap();
        let stage = SeedTree::new(1);
        let read = |loader: Loader, n: usize| -> Vec<Vec<usize>> {
            loader.take(n).map(|batch| batch.unwrap().indices).collect()
        };
        // Five micro-batches of 2 a step, of which a process has those from 1 to 3.
        let whole = read(images.training(stage, 20, 2), 15);
        let part = Part { of: 10, from: 2, to: 8 };
        let shared = read(images.training_part(stage, part, 12, 2), 9);
        let expected: Vec<Vec<usize>> =
            [1, 2, 3, 6, 7, 8, 11, 12, 13].map(|i: usize| whole[i].clone()).to_vec();
        assert_eq!(shared, expected);
    }

    #[test]
    fn what_others_found_unreadable_counts() {
        let images = opened(Memory::numbered(40, 2).with_broken(&[20]), 0.05).unwrap();
        images.training(SeedTree::new(1), 0, 36).next().unwrap().unwrap();
        let other = opened(Memory::numbered(40, 2), 0.05).unwrap();
        let found = images.take_found();
        assert_eq!(found.iter().map(|found| found.index).collect::<Vec<_>>(), [20]);
        other.adopt(found.clone()).unwrap();
        other.adopt(found).unwrap();
        assert_eq!((images.take_warnings(), images.take_found()), (other.take_warnings(), vec![]));
        assert!(other.take_found().is_empty(), "nothing goes to and fro");
        let more = [21, 22].map(|index| FoundUnreadable {
            index,
            image: format!("image {index}"),
            reason: "torn".into(),
        });
        let error = other.adopt(more.to_vec()).unwrap_err().to_string();
        assert!(error.contains("3 of 40 images cannot be read, 2 may be"), "{error}");
    }

    #[test]
    fn training_crops_anywhere_and_held_out_images_in_the_center() {
        struct One;
        impl Dataset for One {
            fn len(&self) -> usize {
                2
            }
            fn classes(&self) -> &[String] {
                const { &[String::new()] }
            }
            fn label(&self, _: usize) -> usize {
                0
            }
            fn name(&self, i: usize) -> String {
                i.to_string()
            }
            fn stored_bytes(&self, _: usize) -> u64 {
                1
            }
            fn image(&self, _: usize) -> Result<RgbImage, DataError> {
                Ok(noise(40, 50))
            }
        }
        let crop = Crop::AdmRandom { min_share: 0.88 };
        let images = Images::from_dataset(Box::new(One), &recipe(crop.clone(), 16, 0.0), AHEAD);
        let images = images.unwrap_or_else(|error| panic!("{error}"));
        let stage = SeedTree::new(4);
        let batch = images.training(stage, 5, 20).next().unwrap().unwrap();
        for (i, image) in batch.images.iter().enumerate() {
            let draws = stage.child("image").at(5 + i as u64).child("crop");
            assert_eq!(*image, crop.training(noise(40, 50), 16, draws).unwrap());
        }
        assert!(batch.images.iter().any(|image| *image != batch.images[0]));
        let held_out = images.held_out(0, 1).next().unwrap().unwrap();
        assert_eq!(held_out.images[0], crop.evaluation(noise(40, 50), 16).unwrap());
    }

    #[test]
    fn what_a_user_ought_to_know_is_said_before_a_run() {
        let mut memory = Memory::numbered(20, 4);
        // Class 1 has one image, the ninth, which is held out; class 3 has none.
        memory.labels = (0..20).map(|i| if i == 9 { 1 } else { i % 2 * 2 }).collect();
        memory.notes = vec!["of the source".into()];
        memory.left_out = vec![LeftOut { why: ".heic".into(), count: 2, first: "a.heic".into() }];
        let images = opened(memory.clone(), 0.0).unwrap();
        let expected = "trains on 18 images of 4 classes, 2 held out; \
                        2 files left out: 2 .heic (first: a.heic)";
        assert_eq!(images.summary(), expected);
        let classes = "data.source: 2 of 4 classes have no training image: \
                       'class 1' (1 held out), 'class 3' (no image)";
        assert_eq!(images.notes(), ["of the source", classes]);
        // What is not there is known at once, and counts.
        memory = Memory::numbered(20, 1).with_broken(&[3, 4]);
        (memory.bytes[3], memory.bytes[4]) = (0, 0);
        let images = opened(memory.clone(), 0.1).unwrap();
        assert_eq!(images.summary(), "trains on 18 images of 1 class, 2 held out");
        let missing = "data.source: 2 of 20 images are missing or empty and will be passed over: \
                       image 3 (torn), image 4 (torn)";
        assert_eq!(images.notes(), [missing]);
        let error = opened(memory, 0.05).err().unwrap();
        assert!(
            error.contains("2 of 20 images cannot be read, 1 may be: image 3 (torn)"),
            "{error}"
        );
    }

    #[test]
    fn unreadable_images_are_named_once_and_too_many_stop() {
        let images = opened(Memory::numbered(40, 2).with_broken(&[9, 19, 20]), 0.075).unwrap();
        let named = |i: usize, found: usize| {
            format!(
                "image {i}: not a readable image (torn); replace or remove it; \
                 the next image takes its place ({found} of 40 unreadable, 3 allowed)"
            )
        };
        assert_eq!(images.take_warnings(), [named(9, 1), named(19, 2)], "the first held-out ones");
        // Two epochs: image 20 is passed over twice.
        let batch = images.training(SeedTree::new(1), 0, 72).next().unwrap().unwrap();
        assert_eq!(batch.images.len(), 72);
        assert!(!batch.indices.contains(&20));
        assert_eq!(images.take_warnings(), [named(20, 3)]);
        assert_eq!(images.held_out(0, 4).next().unwrap().unwrap().indices, [29, 29, 29, 39]);
        assert!(images.take_warnings().is_empty());

        let images = opened(Memory::numbered(40, 2).with_broken(&[9, 19, 20]), 0.07).unwrap();
        let mut loader = images.training(SeedTree::new(1), 0, 36);
        let error = loader.next().unwrap().unwrap_err().to_string();
        let expected = "data.max_unreadable: 3 of 40 images cannot be read, 2 may be: \
                        image 9 (torn), image 19 (torn), image 20 (torn); \
                        replace or remove them, or raise data.max_unreadable";
        assert_eq!(error, expected);
        assert!(loader.next().is_none(), "nothing follows an error");
    }

    #[test]
    fn what_no_run_can_start_with_is_refused() {
        let refused = |memory, share| opened(memory, share).err().unwrap();
        let error = refused(Memory::numbered(20, 2).with_broken(&[9, 19]), 0.5);
        let expected = "data.source: none of the 2 held-out images can be read: \
                        image 9 (torn), image 19 (torn); replace them";
        assert_eq!(error, expected);
        let all: Vec<usize> = (0..20).collect();
        let error = refused(Memory::numbered(20, 2).with_broken(&all), 1.0);
        assert!(
            error.contains("none of the 18 training images") && error.ends_with("..; replace them")
        );
        let error = refused(Memory::numbered(20, 2).with_broken(&all), 0.2);
        assert!(error.contains("5 of 20 images cannot be read, 4 may be"), "{error}");
        assert!(refused(Memory::numbered(1, 1), 0.0).contains("data.source: 1 images"));
        assert!(refused(Memory::numbered(9, 1), -0.1).contains("data.max_unreadable: -0.1"));

        let recipe = recipe(Crop::Exact {}, 3, 0.0);
        let memory = Box::new(Memory::numbered(9, 1));
        let error = Images::from_dataset(memory, &recipe, AHEAD).err().unwrap().to_string();
        assert!(error.starts_with("image ") && error.contains("is 2x2 px, not 3x3 as data.side"));
        let zero = DataRecipe { side: 0, ..recipe };
        assert!(Images::open(&zero, AHEAD).err().unwrap().to_string().contains("data.side: 0"));
    }
}
