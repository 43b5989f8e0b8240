//! What a run measures and draws outside its stages.

use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{ScaleSchedule, SeedTree};
use sar_eval::TokenizerMeter;
use sar_exchange::Group;
use sar_model::Backbone;
use sar_pipeline::{
    Pipeline, Request, RgbImage, TrainedBackbone, TrainedTokenizer, grid, magnification,
    reconstructions, to_images,
};
use sar_rollout::generate;
use sar_tokenizer::Tokenizer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::event::Event;
use crate::held_out::{HeldOut, HeldOutMeter};
use crate::recipe::{EvaluationRecipe, Recipe};
use crate::report::TokenizerReport;
use crate::run::{Inner, Run};
use crate::turns::{HeldOutImages, in_turns};
use crate::{StageId, TrainError};

/// Rows of a sample sheet: of a thousand classes the first ones say enough.
const MOST_SAMPLED_CLASSES: usize = 32;
/// Images of the sheets that are drawn while a stage goes on: they are many, and so small.
const MOST_SAMPLED: usize = 16;
const MOST_RECONSTRUCTED: usize = 8;
/// Pixels of such a sheet of reconstructions, about.
const MOST_PIXELS: usize = 1 << 20;

/// Held-out images on each sheet of reconstructions that is drawn while a stage goes on.
pub(crate) fn reconstructed(recipe: &Recipe) -> usize {
    let column = (recipe.data.side as usize).pow(2) * (recipe.scales().len() + 1);
    let most = (MOST_PIXELS / column).clamp(1, MOST_RECONSTRUCTED);
    recipe.evaluation.reconstructions.min(most)
}

impl<A: AutodiffBackend> Run<'_, A> {
    /// PSNR, SSIM and code use on held-out images, of the tokenizer and of its average.
    ///
    /// # Errors
    /// If images cannot be read, or the PSNR is not a number.
    pub(crate) fn tokenizer_report(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        average: Option<&Tokenizer<Inner<A>>>,
    ) -> Result<TokenizerReport, TrainError> {
        let figures = self.measure_tokenizer(tokenizer)?.figures();
        let average_psnr_db = match average {
            Some(average) => Some(self.measure_tokenizer(average)?.psnr_db()),
            None => None,
        };
        Ok(TokenizerReport { figures, average_psnr_db })
    }

    fn measure_tokenizer(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<TokenizerMeter<Inner<A>>, TrainError> {
        let what = "measuring the tokenizer on held-out images";
        self.journal.observer.event(&Event::Working { what });
        let evaluation = &self.recipe.evaluation;
        let images = self.held_out(evaluation.images);
        let meter = images.measure_tokenizer(tokenizer, self.scales(), self.device)?;
        self.journal.warn(self.images)?;
        if meter.psnr_db().is_nan() {
            let (stage, step) = (StageId::Tokenizer, self.recipe.tokenizer.steps);
            return Err(TrainError::BadMeasure { stage, step, name: "PSNR" });
        }
        Ok(meter)
    }

    /// Rows of held-out originals and their reconstruction at every scale, by the rank that leads.
    pub(crate) fn draw_reconstructions(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<(), TrainError> {
        if !self.group.leads() {
            return Ok(());
        }
        let images = self.held_out(self.recipe.evaluation.reconstructions);
        let sheet = reconstruction_sheet(tokenizer, images, self.scales(), self.device)?;
        let path = self.journal.dir.write_png("reconstructions.png", &sheet)?;
        self.journal.metrics.picture("reconstructions", &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }

    /// So many held-out images, 0 for all.
    fn held_out(&self, n: usize) -> HeldOutImages<'_> {
        let batch = self.recipe.evaluation.batch_size;
        HeldOutImages { images: self.images, group: self.group, n, batch }
    }

    /// Losses on held-out images.
    pub(crate) fn measure(
        &mut self,
        what: &str,
        tokenizer: &Tokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<(HeldOut, HeldOutMeter), TrainError> {
        let what = format!("measuring the {what} weights on held-out images");
        self.journal.observer.event(&Event::Working { what: &what });
        let evaluation = &self.recipe.evaluation;
        let images = self.held_out(evaluation.images);
        let (model, scales) = (&backbone.model, self.scales());
        let meter = HeldOutMeter::of(images, model, tokenizer, scales, self.device)?;
        self.journal.warn(self.images)?;
        Ok((meter.report(evaluation.bootstrap, self.seed.child("bootstrap")), meter))
    }

    pub(crate) fn measure_average(
        &mut self,
        what: &str,
        tokenizer: &Tokenizer<Inner<A>>,
        average: Option<TrainedBackbone<Inner<A>>>,
    ) -> Result<Option<HeldOut>, TrainError> {
        let Some(average) = average else { return Ok(None) };
        let what = format!("average of the {what}");
        Ok(Some(self.measure(&what, tokenizer, &average)?.0))
    }

    /// One row of samples per class, from the same streams whatever the weights.
    pub(crate) fn draw_samples(
        &mut self,
        name: &str,
        tokenizer: &TrainedTokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<(), TrainError> {
        self.journal.observer.event(&Event::Working { what: "sampling" });
        let columns = self.recipe.evaluation.samples_per_class;
        let pipeline = Pipeline::new(tokenizer.clone(), backbone.clone(), self.device);
        let classes = backbone.classes.len().min(MOST_SAMPLED_CLASSES);
        let wanted = wanted(classes, columns);
        let mut images: Vec<RgbImage> = Vec::with_capacity(wanted.len());
        let pixels = |samples: Vec<RgbImage>| -> Vec<_> {
            samples.into_iter().map(|image| (image.dimensions(), image.into_raw())).collect()
        };
        self.samples(&pipeline, self.seed, &wanted, pixels, |samples| {
            images.extend(samples.into_iter().map(|((width, height), pixels)| {
                RgbImage::from_raw(width, height, pixels).expect("an image's own pixels")
            }));
            Ok(())
        })?;
        if !self.group.leads() {
            return Ok(());
        }
        let sheet = grid(&images, columns, 4, magnification(self.recipe.data.side));
        let path = self.journal.dir.write_png(name, &sheet)?;
        self.journal.metrics.picture(name.trim_end_matches(".png"), &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }

    /// Draws samples with the recipe's sampler, the ranks a batch each in turns; `take` what there is to `see`
    /// of each batch, in order, on all ranks.
    pub(crate) fn samples<T: Serialize + DeserializeOwned>(
        &self,
        pipeline: &Pipeline<Inner<A>>,
        root: SeedTree,
        wanted: &[(usize, usize)],
        see: impl Fn(Vec<RgbImage>) -> T,
        take: impl FnMut(T) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let EvaluationRecipe { batch_size, sampler, .. } = self.recipe.evaluation;
        // Two rows to an image: with its class and without.
        let parts: Vec<_> = wanted.chunks(batch_size.div_ceil(2)).collect();
        let draw = |i: usize| {
            let (part, scales) = (parts[i].iter().copied(), self.scales().clone());
            Ok(see(pipeline.sample(&Request::of(root, part, scales, sampler))))
        };
        in_turns(self.group, parts.len(), draw, take)
    }
}

/// Rows of held-out originals and their reconstruction at every scale; one rank alone draws it.
pub(crate) fn reconstruction_sheet<B: Backend>(
    tokenizer: &Tokenizer<B>,
    held_out: HeldOutImages<'_>,
    scales: &ScaleSchedule,
    device: &B::Device,
) -> Result<RgbImage, TrainError> {
    let HeldOutImages { images, group, n, batch } = held_out;
    let mut originals: Vec<RgbImage> = Vec::with_capacity(n);
    for batch in images.held_out(n, batch) {
        group.alive();
        originals.extend(batch?.images);
    }
    Ok(reconstructions(tokenizer, &originals, scales, batch, device))
}

/// A few of the samples that the sheets of a whole run have, class by class in a square; one rank alone
/// draws it.
pub(crate) fn sample_sheet<B: Backend>(
    recipe: &Recipe,
    (tokenizer, backbone): (&Tokenizer<B>, &Backbone<B>),
    classes: usize,
    group: &Group,
    device: &B::Device,
) -> RgbImage {
    let EvaluationRecipe { batch_size, samples_per_class, sampler, .. } = recipe.evaluation;
    let (root, scales) = (SeedTree::new(recipe.seed), recipe.scales());
    let classes = classes.min(MOST_SAMPLED);
    let wanted = wanted(classes, samples_per_class.min(MOST_SAMPLED / classes));
    let mut images: Vec<RgbImage> = Vec::with_capacity(wanted.len());
    // Two rows to an image: with its class and without.
    for part in wanted.chunks(batch_size.div_ceil(2)) {
        group.alive();
        let Request { labels, streams, scales, sampler } =
            Request::of(root, part.iter().copied(), scales.clone(), sampler);
        let generated = generate(backbone, tokenizer, &labels, &scales, sampler, &streams, device);
        let canvas_bchw = generated.canvas.expect("a scale has been added");
        images.extend(to_images(tokenizer.decode(canvas_bchw)));
    }
    let columns = (images.len() - 1).isqrt() + 1;
    grid(&images, columns, 4, magnification(recipe.data.side))
}

/// Class and number of each of so many samples of every class.
pub(crate) fn wanted(classes: usize, per_class: usize) -> Vec<(usize, usize)> {
    (0..classes).flat_map(|class| (0..per_class).map(move |i| (class, i))).collect()
}
