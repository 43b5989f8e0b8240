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
    LeftOut, Loader, ReadAhead, Search, Split, UnreadableImage,
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

impl Part {
    /// The position of the part's own one of a number, from 0.
    ///
    /// # Panics
    /// If the part has nothing, or is larger than what it is a part of.
    fn place(self) -> impl Fn(u64) -> u64 + Send + Sync + 'static {
        let Self { of, from, to } = self;
        assert!(from < to && to <= of, "{self:?}");
        move |count| count / (to - from) * of + from + count % (to - from)
    }

    /// How many of the first `n` positions are its own.
    fn count(self, n: u64) -> u64 {
        let Self { of, from, to } = self;
        n / of * (to - from) + (n % of).clamp(from, to) - from
    }
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
    /// Opens the images of a recipe and tries one of each split; `search` as in [`ImageSource::open`].
    ///
    /// [`ImageSource::open`]: crate::ImageSource::open
    ///
    /// # Errors
    /// If the source cannot be used, a setting is out of range or does not fit it, or no image of a
    /// split can be read.
    ///
    /// # Panics
    /// If `ahead` has no thread or no batch.
    pub fn open(
        recipe: &DataRecipe,
        ahead: ReadAhead,
        search: &dyn Search,
    ) -> Result<Self, DataError> {
        recipe.validate()?;
        Self::from_dataset(recipe.source.open(recipe.side, search)?, recipe, ahead)
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
        search: &dyn Search,
    ) -> Result<Self, DataError> {
        recipe.validate()?;
        let dataset = PutBack::new(recipe.source.open(recipe.side, search)?, unreadable);
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
        let (purpose, ahead) = (self.training_purpose(stage), self.0.ahead);
        Loader::with_places(self, purpose, start..u64::MAX, batch, ahead, part.place())
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
        self.held_out_part(n, Part { of: 1, from: 0, to: 1 }, batch)
    }

    /// As [`held_out`](Self::held_out), of every `part.of` images those alone from `part.from` to `part.to`.
    ///
    /// # Panics
    /// If the batch is 0, or the part has nothing or is larger than what it is a part of.
    pub fn held_out_part(&self, n: usize, part: Part, batch: usize) -> Loader {
        let n = self.n_held_out_of(n);
        let (purpose, ahead) = (Purpose::HeldOut { n }, self.0.ahead);
        Loader::with_places(self, purpose, 0..part.count(n as u64), batch, ahead, part.place())
    }

    /// How many held-out images there are of the `n` that are asked for, 0 for all.
    pub fn n_held_out_of(&self, n: usize) -> usize {
        let all = self.n_held_out();
        if n == 0 { all } else { n.min(all) }
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
mod tests;
