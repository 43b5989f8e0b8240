//! The features of a set of images.

use burn::tensor::backend::Backend;
use sar_data::RgbImage;
use sar_metrics::{Features, Moments, RunningInceptionScore, RunningMoments, Spread};
use sar_weights::Crc32;

use crate::extractor::BATCH;
use crate::{EvalError, Extracted, Extractor, Pictures};

/// What is kept of images' features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// A row for each image.
    Features,
    /// Mean, covariance and the inception score alone: memory does not grow with the number of images.
    Moments,
}

/// Features of images, or what is left of them.
#[derive(Clone, Debug)]
pub struct FeatureSet {
    moments: Moments,
    features: Option<Features>,
    places: Option<Moments>,
    inception_score: Option<Spread>,
    hash: Option<String>,
}

/// Features on the way: images are looked at a batch at a time.
pub struct Looking<'a, B: Backend> {
    extractor: &'a Extractor<B>,
    device: &'a B::Device,
    moments: RunningMoments,
    features: Option<Features>,
    places: Option<RunningMoments>,
    inception_score: Option<RunningInceptionScore>,
    /// Of the inception score, where images take turns in them.
    splits: Option<usize>,
    /// Of the pixels so far, unless some were looked at elsewhere.
    pixels: Option<Crc32>,
}

impl<'a, B: Backend> Looking<'a, B> {
    /// Nothing was looked at yet.
    pub fn new(extractor: &'a Extractor<B>, keep: Keep, device: &'a B::Device) -> Self {
        let dim = extractor.dimension();
        let features = (keep == Keep::Features).then(|| Features::new(dim));
        Self {
            extractor,
            device,
            moments: RunningMoments::new(dim),
            features,
            places: None,
            inception_score: None,
            splits: None,
            pixels: Some(Crc32::default()),
        }
    }

    /// For `n` images that come class by class: the splits of the inception score take them in turn, where they
    /// would hold some classes alone one after the other.
    #[must_use]
    pub fn class_by_class(self, n: usize) -> Self {
        Self { splits: Some(n.div_ceil(FeatureSet::SPLIT).max(1)), ..self }
    }

    /// Looks at images of one size.
    ///
    /// # Errors
    /// If a feature is not finite.
    pub fn add(&mut self, images: &[RgbImage]) -> Result<(), EvalError> {
        if let Some(pixels) = &mut self.pixels {
            images.iter().for_each(|image| pixels.update(image.as_raw()));
        }
        self.absorb(self.extractor.look(images, self.device))
    }

    /// Adds what the network has [seen](Extractor::look) in some images, here or elsewhere.
    ///
    /// # Errors
    /// If a feature is not finite.
    pub fn take(&mut self, seen: Vec<Extracted>) -> Result<(), EvalError> {
        self.pixels = None;
        self.absorb(seen)
    }

    fn absorb(&mut self, seen: Vec<Extracted>) -> Result<(), EvalError> {
        for Extracted { pooled, places, logits } in seen {
            if let Some(features) = &mut self.features {
                features.push(&pooled)?;
            }
            self.moments.add(&Features::from_rows(self.extractor.dimension(), pooled)?)?;
            if let Some((dim, rows)) = places {
                let moments = self.places.get_or_insert_with(|| RunningMoments::new(dim));
                moments.add(&Features::from_rows(dim, rows)?)?;
            }
            if let Some((classes, rows)) = logits {
                let splits = self.splits;
                let new = || match splits {
                    Some(splits) => RunningInceptionScore::interleaved(classes, splits),
                    None => RunningInceptionScore::new(classes, FeatureSet::SPLIT),
                };
                let score = self.inception_score.get_or_insert_with(new);
                score.add(&Features::from_rows(classes, rows)?)?;
            }
        }
        Ok(())
    }

    /// The features of all images.
    ///
    /// # Errors
    /// If there were fewer than two.
    pub fn finish(self) -> Result<FeatureSet, EvalError> {
        let Self { moments, features, places, inception_score, pixels, .. } = self;
        let places = places.map(|places| places.moments()).transpose()?;
        let inception_score = inception_score.map(|score| score.score()).transpose()?;
        let hash = pixels.map(|pixels| pixels.to_string());
        Ok(FeatureSet { moments: moments.moments()?, features, places, inception_score, hash })
    }
}

impl FeatureSet {
    /// Images of a split of the inception score, as published.
    pub const SPLIT: usize = 5000;

    /// Looks at all images; `seen` is told how many were looked at so far. Those of an `.npz` file are in the order
    /// that published inception scores are of; all others, which come class by class,
    /// [take turns](Looking::class_by_class).
    ///
    /// # Errors
    /// If an image cannot be read or has another size, or there are fewer than two.
    pub fn of_pictures<B: Backend>(
        pictures: &Pictures,
        mut looking: Looking<'_, B>,
        mut seen: impl FnMut(usize, &[RgbImage]),
    ) -> Result<Self, EvalError> {
        let mut n = 0;
        if !pictures.is_npz() {
            looking = looking.class_by_class(pictures.len());
        }
        pictures.for_each_batch(BATCH, |images| {
            looking.add(&images)?;
            n += images.len();
            seen(n, &images);
            Ok::<(), EvalError>(())
        })?;
        looking.finish()
    }

    /// Features that are there.
    ///
    /// # Errors
    /// If there are fewer than two.
    pub fn of(features: &Features) -> Result<Self, EvalError> {
        let moments = Self::from_moments(Moments::of(features)?, None);
        Ok(Self { features: Some(features.clone()), ..moments })
    }

    /// Moments alone, also of the features of places.
    pub fn from_moments(moments: Moments, places: Option<Moments>) -> Self {
        Self { moments, features: None, places, inception_score: None, hash: None }
    }

    /// The same with a [`hash`](Self::hash) of its moments.
    pub(crate) fn hashed(self) -> Self {
        let mut crc = Crc32::default();
        for moments in [Some(&self.moments), self.places.as_ref()].into_iter().flatten() {
            let values = moments.mean().iter().chain(moments.covariance());
            values.for_each(|value| crc.update(&value.to_le_bytes()));
        }
        Self { hash: Some(crc.to_string()), ..self }
    }

    /// The same features beside other moments, of which all Fréchet distances are: those that published
    /// figures are of.
    pub fn with_moments(self, other: Self) -> Self {
        Self { moments: other.moments, places: other.places, ..self }
    }

    /// The number of images; 0 where that is not known.
    pub fn len(&self) -> usize {
        let kept = self.features.as_ref().map(Features::len);
        kept.or(self.moments.rows()).unwrap_or_default()
    }

    /// Whether no images are known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// CRC-32, in hexadecimal, of what it is made from: the pixels of the images in their order as the network was
    /// given them, or the moments in a file; none of features that come from elsewhere.
    pub fn hash(&self) -> Option<&str> {
        self.hash.as_deref()
    }

    /// Mean and covariance.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// The features, if they were kept.
    pub fn features(&self) -> Option<&Features> {
        self.features.as_ref()
    }

    /// Moments of the features of places, of a network that has these.
    pub fn moments_of_places(&self) -> Option<&Moments> {
        self.places.as_ref()
    }

    /// Inception score of a network that has classes of its own, splits of [`SPLIT`](Self::SPLIT), or of equal
    /// parts of at most as many where images [take turns](Looking::class_by_class).
    pub fn inception_score(&self) -> Option<Spread> {
        self.inception_score
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use burn_flex::Flex;

    use super::*;

    #[test]
    fn moments_and_the_inception_score_need_no_features() {
        let device = Default::default();
        let extractor = Extractor::<Flex>::efficientnet_lite0(&device);
        let dim = extractor.dimension();
        let seen = |level: f32| Extracted {
            pooled: (0..2 * dim).map(|i| (i as f32 * level).sin()).collect(),
            places: Some((2, vec![level, 0.0, 1.0, level])),
            logits: Some((2, vec![level, 0.0, 0.0, 1.0])),
        };
        let [all, moments] = [Keep::Features, Keep::Moments].map(|keep| {
            let mut looking = Looking::new(&extractor, keep, &device);
            looking.take(vec![seen(1.0), seen(2.0)]).unwrap();
            looking.finish().unwrap()
        });
        assert_eq!(all.features().map(Features::len), Some(4));
        assert!(moments.features().is_none() && moments.len() == 4);
        assert_eq!(moments.moments(), all.moments());
        assert_eq!(moments.moments_of_places(), all.moments_of_places());
        assert!(moments.inception_score().unwrap().mean > 1.0);
        assert_eq!(moments.inception_score(), all.inception_score());

        assert_eq!(all.hash(), None, "nobody saw pixels");

        let other = FeatureSet::from_moments(
            Moments::new(vec![0.0; 2], vec![1.0, 0.0, 0.0, 1.0], None).unwrap(),
            None,
        );
        let both = all.clone().with_moments(other);
        assert_eq!((both.moments().dim(), both.len()), (2, 4));
        assert!(both.features() == all.features() && both.moments_of_places().is_none());
    }

    #[test]
    fn images_that_come_class_by_class_take_turns_in_the_splits() {
        let device = Default::default();
        let extractor = Extractor::<Flex>::efficientnet_lite0(&device);
        // Two classes, one after the other: a second split of the last two images has one class alone.
        let n = FeatureSet::SPLIT + 2;
        let seen = Extracted {
            pooled: vec![0.0; n * extractor.dimension()],
            places: None,
            logits: Some((
                2,
                (0..n).flat_map(|i| if 2 * i < n { [1e4, 0.0] } else { [0.0, 1e4] }).collect(),
            )),
        };
        let score = |mut looking: Looking<'_, Flex>| {
            looking.take(vec![seen.clone()]).unwrap();
            looking.finish().unwrap().inception_score().unwrap()
        };
        let [in_order, in_turn] = [false, true].map(|takes_turns| {
            let looking = Looking::new(&extractor, Keep::Moments, &device);
            score(if takes_turns { looking.class_by_class(n) } else { looking })
        });
        assert_eq!((in_order.n, in_turn.n), (2, 2));
        assert!((in_order.mean - 1.5).abs() < 1e-6, "{in_order:?}");
        assert!((in_turn.mean - 2.0).abs() < 1e-6, "{in_turn:?}");
    }

    #[test]
    fn the_hash_is_of_pixels_in_their_order() {
        let device = Default::default();
        let extractor = Extractor::<Flex>::efficientnet_lite0(&device);
        let images = [1u8, 2].map(|level| RgbImage::from_pixel(8, 8, image::Rgb([level; 3])));
        let hash = |images: [&RgbImage; 2]| {
            let mut looking = Looking::new(&extractor, Keep::Moments, &device);
            images.into_iter().for_each(|one| looking.add(from_ref(one)).unwrap());
            looking.finish().unwrap().hash().unwrap().to_owned()
        };
        let [one, two] = &images;
        // Python: "%08x" % zlib.crc32(bytes([1] * 192 + [2] * 192))
        assert_eq!(hash([one, two]), "ae828807");
        assert_ne!(hash([two, one]), hash([one, two]));
    }
}
