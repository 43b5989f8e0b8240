//! How good a set of samples is: its features beside those of real images.

use sar_metrics::{
    Features, Memorization, Moments, Nearest, Neighbors, Probe, Ridge, Spread, Subsets, frechet,
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
    /// Of each class, whether the probe has seen it.
    learned: Vec<bool>,
}

/// Moments of held-out and of training images.
type Sides<'a> = (&'a Parts, [Moments; 2]);

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
        Self { set, parts: None, probe: None, learned: Vec::new() }
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
        let mut learned = vec![false; labels.map_or(0, |(_, n_classes)| n_classes)];
        if let Some((labels, _)) = labels {
            train.iter().for_each(|i| learned[labels[*i]] = true);
        }
        let parts =
            Parts { train: train_features, held_out: held_features, held_out_labels, nearest };
        Ok(Self { set, parts: Some(parts), probe, learned })
    }

    /// The first of some classes that no training image has: of those the probe knows nothing, and there is no class
    /// accuracy.
    pub fn not_learned(&self, labels: &[usize]) -> Option<usize> {
        labels.iter().copied().find(|label| self.learned.get(*label) == Some(&false))
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
        let mut quality = between(Side::of(images), Side::of(&self.set))?;
        quality.class_accuracy = self.accuracy(images.features(), labels)?;
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
        let class_accuracy = self.accuracy(images.features(), labels)?;
        at_a_glance(Side::of(images), Side::of(&self.set), class_accuracy)
    }

    /// The same of held-out images beside the training images, and how many there are; none where fewer than
    /// two images are on either side.
    ///
    /// # Errors
    /// As [`compare`](Self::compare).
    pub fn floor_at_a_glance(&self) -> Result<Option<(usize, Glance)>, EvalError> {
        let Some((parts, moments)) = self.sides()? else { return Ok(None) };
        let [held_out, train] = parts.sides(&moments);
        let glance = at_a_glance(held_out, train, self.accuracy_of_held_out(parts)?)?;
        Ok(Some((parts.held_out.len(), glance)))
    }

    /// The floor: held-out real images beside the training images; none where fewer than two images are on either side.
    ///
    /// # Errors
    /// If there are too few of either.
    pub fn floor(&self) -> Result<Option<Quality>, EvalError> {
        let Some((parts, moments)) = self.sides()? else { return Ok(None) };
        let [held_out, train] = parts.sides(&moments);
        let class_accuracy = self.accuracy_of_held_out(parts)?;
        Ok(Some(Quality { class_accuracy, ..between(held_out, train)? }))
    }

    /// Held-out and training images, where there are two of each.
    fn sides(&self) -> Result<Option<Sides<'_>>, EvalError> {
        let Some(parts) = &self.parts else { return Ok(None) };
        let Parts { train, held_out, .. } = parts;
        if held_out.len().min(train.len()) < 2 {
            return Ok(None);
        }
        Ok(Some((parts, [Moments::of(held_out)?, Moments::of(train)?])))
    }

    fn accuracy_of_held_out(&self, parts: &Parts) -> Result<Option<f64>, EvalError> {
        self.accuracy(Some(&parts.held_out), parts.held_out_labels.as_deref())
    }

    /// How often the probe names the class, where all of it is there.
    fn accuracy(
        &self,
        features: Option<&Features>,
        labels: Option<&[usize]>,
    ) -> Result<Option<f64>, EvalError> {
        match (features, &self.probe, labels) {
            (Some(features), Some(probe), Some(labels)) if self.not_learned(labels).is_none() => {
                Ok(Some(probe.accuracy(features, labels)?))
            }
            _ => Ok(None),
        }
    }
}

impl Parts {
    fn sides<'a>(&'a self, [held_out, train]: &'a [Moments; 2]) -> [Side<'a>; 2] {
        let side = |moments, features| Side {
            moments,
            features: Some(features),
            places: None,
            inception_score: None,
        };
        [side(held_out, &self.held_out), side(train, &self.train)]
    }
}

/// What distances need of some images: nothing of it is copied.
#[derive(Clone, Copy)]
struct Side<'a> {
    moments: &'a Moments,
    features: Option<&'a Features>,
    places: Option<&'a Moments>,
    inception_score: Option<Spread>,
}

impl<'a> Side<'a> {
    fn of(set: &'a FeatureSet) -> Self {
        Self {
            moments: set.moments(),
            features: set.features(),
            places: set.moments_of_places(),
            inception_score: set.inception_score(),
        }
    }

    /// The number of images; 0 where that is not known.
    fn len(&self) -> usize {
        self.features.map(Features::len).or(self.moments.rows()).unwrap_or_default()
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
    images: Side<'_>,
    reference: Side<'_>,
    class_accuracy: Option<f64>,
) -> Result<Glance, EvalError> {
    let kernel = match (reference.features, images.features) {
        (Some(reference), Some(images)) => Some(kernel_distance(reference, images)?),
        _ => None,
    };
    let frechet = frechet(reference.moments, images.moments)?.distance;
    Ok(Glance { frechet, kernel, class_accuracy })
}

/// All that needs no classes and no training images.
fn between(images: Side<'_>, reference: Side<'_>) -> Result<Quality, EvalError> {
    let distance = frechet(reference.moments, images.moments)?;
    let places = match (reference.places, images.places) {
        (Some(reference), Some(images)) => Some(frechet(reference, images)?.distance),
        _ => None,
    };
    let mut quality = Quality {
        n: images.len(),
        n_reference: reference.moments.rows(),
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
        inception_score: images.inception_score,
        class_accuracy: None,
        memorization: None,
    };
    let (Some(x), Some(y)) = (reference.features, images.features) else {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a feature for each of four classes.
    fn rows(labels: &[usize]) -> FeatureSet {
        let row = |(i, label): (usize, &usize)| {
            let noise = (i as f32 * 0.7).sin();
            [0, 1, 2, 3].map(|class| if class == *label { 10.0 + noise } else { noise })
        };
        let values = labels.iter().enumerate().flat_map(row).collect();
        FeatureSet::of(&Features::from_rows(4, values).unwrap()).unwrap()
    }

    #[test]
    fn a_class_that_no_training_image_has_is_not_counted_as_missed() {
        // Every fourth is held out, and is all that there is of the last class.
        let labels: Vec<usize> = (0..32).map(|i| i % 4).collect();
        let (held_out, train): (Vec<usize>, Vec<usize>) = (0..32).partition(|i| i % 4 == 3);
        let split = |labels: &[usize]| {
            Reference::split(rows(labels), [&train, &held_out], Some((labels, 4))).unwrap()
        };
        let reference = split(&labels);
        assert_eq!(reference.not_learned(&[0, 2, 1]), None);
        assert_eq!(reference.not_learned(&[0, 3, 1]), Some(3));
        let accuracy = |labels: &[usize]| {
            reference.compare(&rows(labels), Some(labels)).unwrap().class_accuracy
        };
        assert_eq!(accuracy(&[0, 1, 2, 0, 1, 2]), Some(1.0));
        assert_eq!(accuracy(&[0, 1, 2, 3, 0, 1]), None);
        let glance = reference.glance(&rows(&[3, 3, 3]), Some(&[3, 3, 3])).unwrap();
        assert!(glance.class_accuracy.is_none() && glance.kernel.is_some());
        let (n, floor) = reference.floor_at_a_glance().unwrap().unwrap();
        assert_eq!((n, floor.class_accuracy), (8, None));
        let floor = reference.floor().unwrap().unwrap();
        assert_eq!((floor.n, floor.n_reference, floor.class_accuracy), (8, Some(24), None));
        // Shuffled, there are some of each class on either side.
        let shuffled: Vec<usize> = (0..32).map(|i| (i / 2 + i) % 4).collect();
        let floor = split(&shuffled).floor().unwrap().unwrap();
        assert_eq!(floor.class_accuracy, Some(1.0));
    }
}
