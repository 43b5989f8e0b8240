//! How good a set of samples is: its features beside those of real images.

use sar_metrics::{
    Features, Memorization, Nearest, Neighbors, Probe, Ridge, Spread, Subsets, frechet,
    kernel_distance, kernel_distance_by_subsets, memorization, mind, nearest, prdc,
};
use serde::{Deserialize, Serialize};

use crate::{EvalError, FeatureSet};

/// Images beside reference images. What cannot be taken is none: of moments alone there are Fréchet
/// distances and the inception score only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Quality {
    /// Images; 0 where that is not known.
    pub n: usize,
    /// Reference images of the Fréchet distance, where that is known.
    pub n_reference: Option<usize>,
    /// Fréchet distance of the features.
    pub frechet: f64,
    /// Whether either side has no more images than features, where that is known: then a Fréchet distance is far
    /// too large, and compares with those of as many images only.
    pub rank_deficient: Option<bool>,
    /// Fréchet distance of the features of places (sFID).
    pub frechet_of_places: Option<f64>,
    /// Kernel distance of all images, unbiased.
    pub kernel: Option<f64>,
    /// The same of subsets, with the size of these.
    pub kernel_of_subsets: Option<(Spread, usize)>,
    /// Sliced Wasserstein distance (MIND).
    pub mind: Option<Spread>,
    /// Precision and recall of 3 neighbors.
    pub precision: Option<f64>,
    /// See `precision`.
    pub recall: Option<f64>,
    /// Density and coverage of 5 neighbors.
    pub density: Option<f64>,
    /// See `density`.
    pub coverage: Option<f64>,
    /// Inception score of the images' logits, splits of 5000.
    pub inception_score: Option<Spread>,
    /// How often a probe names the class that was asked for.
    pub class_accuracy: Option<f64>,
    /// Whether samples repeat training images.
    pub memorization: Option<Memorization>,
}

impl Quality {
    /// Neighbors for precision and recall, and for density and coverage, as published.
    pub const NEIGHBORS: [usize; 2] = [3, 5];
    /// Directions of a sliced distance, as published.
    pub const DIRECTIONS: usize = 1000;
    /// What the draws of subsets and directions follow from.
    pub const SEED: u64 = 0;
}

/// Reference images with their classes, some of them held out of training.
#[derive(Clone, Debug)]
pub struct Reference {
    set: FeatureSet,
    parts: Option<Parts>,
    probe: Option<Probe>,
}

/// Held-out and training images, and the labels of the former.
type Sides<'a> = ([FeatureSet; 2], Option<&'a [usize]>);

/// Features of training and held-out images.
#[derive(Clone, Debug)]
struct Parts {
    train: Features,
    held_out: Features,
    held_out_labels: Option<Vec<usize>>,
    /// Of each held-out image, in the training images.
    nearest: Vec<Nearest>,
}

impl Reference {
    /// Reference images of which only their features, or moments of these, are known.
    pub fn of(set: FeatureSet) -> Self {
        Self { set, parts: None, probe: None }
    }

    /// Reference images of which some were held out of training. With labels a probe learns the classes
    /// of the training images.
    ///
    /// # Errors
    /// If there are no training or no held-out images, or a label is no class.
    ///
    /// # Panics
    /// If the features were not kept, or an index or the number of labels is not theirs.
    pub fn split(
        set: FeatureSet,
        [train, held_out]: [&[usize]; 2],
        labels: Option<(&[usize], usize)>,
    ) -> Result<Self, EvalError> {
        let features = set.features().expect("features that were kept");
        let [train_features, held_features] =
            [train, held_out].map(|part| features.select(part.iter().copied()));
        let nearest = nearest(&held_features, &train_features)?;
        let of = |labels: &[usize], part: &[usize]| -> Vec<usize> {
            part.iter().map(|i| labels[*i]).collect()
        };
        let probe = labels.map(|(labels, n_classes)| {
            Probe::fit(&train_features, &of(labels, train), n_classes, Ridge::default())
        });
        let held_out_labels = labels.map(|(labels, _)| of(labels, held_out));
        let probe = probe.transpose()?;
        let parts =
            Parts { train: train_features, held_out: held_features, held_out_labels, nearest };
        Ok(Self { set, parts: Some(parts), probe })
    }

    /// Images beside this reference; `labels` are the classes that were asked for.
    ///
    /// # Errors
    /// If there are too few images, other features, or a label is no class.
    pub fn compare(
        &self,
        images: &FeatureSet,
        labels: Option<&[usize]>,
    ) -> Result<Quality, EvalError> {
        let mut quality = between(images, &self.set)?;
        quality.class_accuracy = self.accuracy(images, labels)?;
        if let (Some(features), Some(parts)) = (images.features(), &self.parts)
            && !self.holds_out_copies()
        {
            let of_samples = nearest(features, &parts.train)?;
            let quantile = Memorization::QUANTILE;
            quality.memorization = Some(memorization(&of_samples, &parts.nearest, quantile)?);
        }
        Ok(quality)
    }

    /// Whether half of the held-out images and more are training images, too: then nothing can be said of
    /// copies among others.
    pub fn holds_out_copies(&self) -> bool {
        let copies = |parts: &Parts| {
            let n = parts.nearest.iter().filter(|nearest| nearest.distance == 0.0).count();
            2 * n >= parts.nearest.len()
        };
        self.parts.as_ref().is_some_and(copies)
    }

    /// The three figures that a training run reports: Fréchet and kernel distance, class accuracy.
    ///
    /// # Errors
    /// As [`compare`](Self::compare).
    pub fn glance(
        &self,
        images: &FeatureSet,
        labels: Option<&[usize]>,
    ) -> Result<Glance, EvalError> {
        at_a_glance(images, &self.set, self.accuracy(images, labels)?)
    }

    /// The same of held-out images beside the training images, and how many there are; none where fewer than
    /// two images are on either side.
    ///
    /// # Errors
    /// As [`compare`](Self::compare).
    pub fn floor_at_a_glance(&self) -> Result<Option<(usize, Glance)>, EvalError> {
        let Some(([held_out, train], labels)) = self.sides()? else { return Ok(None) };
        let glance = at_a_glance(&held_out, &train, self.accuracy(&held_out, labels)?)?;
        Ok(Some((held_out.len(), glance)))
    }

    /// The floor: held-out real images beside the training images; none where fewer than two images are on either side.
    ///
    /// # Errors
    /// If there are too few of either.
    pub fn floor(&self) -> Result<Option<Quality>, EvalError> {
        let Some(([held_out, train], labels)) = self.sides()? else { return Ok(None) };
        let class_accuracy = self.accuracy(&held_out, labels)?;
        Ok(Some(Quality { class_accuracy, ..between(&held_out, &train)? }))
    }

    /// Held-out and training images, and the labels of the former.
    fn sides(&self) -> Result<Option<Sides<'_>>, EvalError> {
        let Some(Parts { train, held_out, held_out_labels, .. }) = &self.parts else {
            return Ok(None);
        };
        if held_out.len().min(train.len()) < 2 {
            return Ok(None);
        }
        let sides = [FeatureSet::of(held_out)?, FeatureSet::of(train)?];
        Ok(Some((sides, held_out_labels.as_deref())))
    }

    /// How often the probe names the class, where all of it is there.
    fn accuracy(
        &self,
        images: &FeatureSet,
        labels: Option<&[usize]>,
    ) -> Result<Option<f64>, EvalError> {
        match (images.features(), &self.probe, labels) {
            (Some(features), Some(probe), Some(labels)) => {
                Ok(Some(probe.accuracy(features, labels)?))
            }
            _ => Ok(None),
        }
    }
}

/// The figures of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Glance {
    /// Fréchet distance.
    pub frechet: f64,
    /// Kernel distance, unbiased.
    pub kernel: Option<f64>,
    /// How often a probe names the class that was asked for.
    pub class_accuracy: Option<f64>,
}

/// Distances alone.
fn at_a_glance(
    images: &FeatureSet,
    reference: &FeatureSet,
    class_accuracy: Option<f64>,
) -> Result<Glance, EvalError> {
    let kernel = match (reference.features(), images.features()) {
        (Some(reference), Some(images)) => Some(kernel_distance(reference, images)?),
        _ => None,
    };
    let frechet = frechet(reference.moments(), images.moments())?.distance;
    Ok(Glance { frechet, kernel, class_accuracy })
}

/// All that needs no classes and no training images.
fn between(images: &FeatureSet, reference: &FeatureSet) -> Result<Quality, EvalError> {
    let distance = frechet(reference.moments(), images.moments())?;
    let places = match (reference.moments_of_places(), images.moments_of_places()) {
        (Some(reference), Some(images)) => Some(frechet(reference, images)?.distance),
        _ => None,
    };
    let mut quality = Quality {
        n: images.len(),
        n_reference: reference.moments().rows(),
        frechet: distance.distance,
        rank_deficient: distance.rank_deficient,
        frechet_of_places: places,
        kernel: None,
        kernel_of_subsets: None,
        mind: None,
        precision: None,
        recall: None,
        density: None,
        coverage: None,
        inception_score: images.inception_score(),
        class_accuracy: None,
        memorization: None,
    };
    let (Some(x), Some(y)) = (reference.features(), images.features()) else {
        return Ok(quality);
    };
    quality.kernel = Some(kernel_distance(x, y)?);
    // Subsets of fewer than half of the images, which otherwise would be the same each time.
    let size = Subsets::default().size.min(x.len() / 2).min(y.len() / 2);
    if size >= 2 {
        let subsets = Subsets { size, ..Subsets::default() };
        let distance = kernel_distance_by_subsets(x, y, subsets, Quality::SEED)?;
        quality.kernel_of_subsets = Some((distance, size));
    }
    quality.mind = Some(mind(x, y, Quality::DIRECTIONS, Quality::SEED)?);
    let [few, more] = Quality::NEIGHBORS;
    if x.len().min(y.len()) > more {
        let [x, y] = [Neighbors::new(x, more)?, Neighbors::new(y, more)?];
        let [published, newer] = prdc(&x, &y, [few, more])?;
        quality.precision = Some(published.precision);
        quality.recall = Some(published.recall);
        quality.density = Some(newer.density);
        quality.coverage = Some(newer.coverage);
    }
    Ok(quality)
}
