//! The features of a set of images.

use burn::tensor::backend::Backend;
use sar_data::RgbImage;
use sar_metrics::{Features, Moments, RunningMoments};

use crate::extractor::BATCH;
use crate::{EvalError, Extracted, Extractor, Pictures};

/// What is kept of images' features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// A row for each image.
    Features,
    /// Mean and covariance alone: memory does not grow with the number of images.
    Moments,
}

/// Features of images, or what is left of them.
#[derive(Clone, Debug)]
pub struct FeatureSet {
    moments: Moments,
    features: Option<Features>,
    places: Option<Moments>,
    logits: Option<Features>,
}

/// Features on the way: images are looked at a batch at a time.
pub struct Looking<'a, B: Backend> {
    extractor: &'a Extractor<B>,
    device: &'a B::Device,
    moments: RunningMoments,
    features: Option<Features>,
    places: Option<RunningMoments>,
    logits: Option<Features>,
}

impl<'a, B: Backend> Looking<'a, B> {
    /// Nothing was looked at yet.
    pub fn new(extractor: &'a Extractor<B>, keep: Keep, device: &'a B::Device) -> Self {
        let dim = extractor.dimension();
        let features = (keep == Keep::Features).then(|| Features::new(dim));
        let moments = RunningMoments::new(dim);
        Self { extractor, device, moments, features, places: None, logits: None }
    }

    /// Looks at images of one size.
    ///
    /// # Errors
    /// If a feature is not finite.
    pub fn add(&mut self, images: &[RgbImage]) -> Result<(), EvalError> {
        self.take(self.extractor.look(images, self.device))
    }

    /// Adds what the network has [seen](Extractor::look) in some images, here or elsewhere.
    ///
    /// # Errors
    /// If a feature is not finite.
    pub fn take(&mut self, seen: Vec<Extracted>) -> Result<(), EvalError> {
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
                self.logits.get_or_insert_with(|| Features::new(classes)).push(&rows)?;
            }
        }
        Ok(())
    }

    /// The features of all images.
    ///
    /// # Errors
    /// If there were fewer than two.
    pub fn finish(self) -> Result<FeatureSet, EvalError> {
        let Self { moments, features, places, logits, .. } = self;
        let places = places.map(|places| places.moments()).transpose()?;
        Ok(FeatureSet { moments: moments.moments()?, features, places, logits })
    }
}

impl FeatureSet {
    /// Looks at all images; `seen` is told how many were looked at so far.
    ///
    /// # Errors
    /// If an image cannot be read or has another size, or there are fewer than two.
    pub fn of_pictures<B: Backend>(
        pictures: &Pictures,
        mut looking: Looking<'_, B>,
        mut seen: impl FnMut(usize, &[RgbImage]),
    ) -> Result<Self, EvalError> {
        let mut n = 0;
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
        let moments = Moments::of(features)?;
        Ok(Self { moments, features: Some(features.clone()), places: None, logits: None })
    }

    /// Moments alone, also of the features of places.
    pub fn from_moments(moments: Moments, places: Option<Moments>) -> Self {
        Self { moments, features: None, places, logits: None }
    }

    /// The number of images; 0 where that is not known.
    pub fn len(&self) -> usize {
        self.moments.rows().unwrap_or_default()
    }

    /// Whether no images are known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    /// Logits of a network's own classes.
    pub fn logits(&self) -> Option<&Features> {
        self.logits.as_ref()
    }
}
