//! What a run measures and draws outside its stages.

use burn::tensor::backend::AutodiffBackend;
use sar_core::SeedTree;
use sar_data::{DataError, ImageBatch};
use sar_eval::TokenizerMeter;
use sar_pipeline::{
    Pipeline, Request, RgbImage, TrainedBackbone, TrainedTokenizer, grid, magnification,
    reconstructions,
};
use sar_tokenizer::Tokenizer;

use crate::event::Event;
use crate::held_out::{HeldOut, HeldOutMeter};
use crate::recipe::EvaluationRecipe;
use crate::report::TokenizerReport;
use crate::run::{Inner, Run};
use crate::{StageId, TrainError};

/// Rows of a sample sheet: of a thousand classes the first ones say enough.
const MOST_SAMPLED_CLASSES: usize = 32;

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
        let meter = TokenizerMeter::of(images, tokenizer, self.scales(), self.device)?;
        self.journal.warn(self.images)?;
        if meter.psnr_db().is_nan() {
            let (stage, step) = (StageId::Tokenizer, self.recipe.tokenizer.steps);
            return Err(TrainError::BadMeasure { stage, step, name: "PSNR" });
        }
        Ok(meter)
    }

    /// Rows of held-out originals and their reconstruction at every scale.
    pub(crate) fn draw_reconstructions(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<(), TrainError> {
        let n = self.recipe.evaluation.reconstructions;
        let mut originals: Vec<RgbImage> = Vec::with_capacity(n);
        for batch in self.held_out(n) {
            originals.extend(batch?.images);
        }
        let sheet = reconstructions(tokenizer, &originals, self.scales(), n, self.device);
        let path = self.journal.dir.write_png("reconstructions.png", &sheet)?;
        self.journal.metrics.picture("reconstructions", &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }

    /// Held-out images, while other ranks wait.
    fn held_out(
        &self,
        n: usize,
    ) -> impl Iterator<Item = Result<ImageBatch, DataError>> + use<'_, A> {
        let images = self.images.held_out(n, self.recipe.evaluation.batch_size);
        images.inspect(|_| self.group.alive())
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
        let images: Vec<RgbImage> = self.samples(&pipeline, self.seed, &wanted).flatten().collect();
        let sheet = grid(&images, columns, 4, magnification(self.recipe.data.side));
        let path = self.journal.dir.write_png(name, &sheet)?;
        self.journal.metrics.picture(name.trim_end_matches(".png"), &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }

    /// Samples with the recipe's sampler, a batch at a time.
    pub(crate) fn samples(
        &self,
        pipeline: &Pipeline<Inner<A>>,
        root: SeedTree,
        wanted: &[(usize, usize)],
    ) -> impl Iterator<Item = Vec<RgbImage>> {
        let EvaluationRecipe { batch_size, sampler, .. } = self.recipe.evaluation;
        // Two rows to an image: with its class and without.
        wanted.chunks(batch_size.div_ceil(2)).map(move |part| {
            self.group.alive();
            let scales = self.scales().clone();
            pipeline.sample(&Request::of(root, part.iter().copied(), scales, sampler))
        })
    }
}

/// Class and number of each of so many samples of every class.
pub(crate) fn wanted(classes: usize, per_class: usize) -> Vec<(usize, usize)> {
    (0..classes).flat_map(|class| (0..per_class).map(move |i| (class, i))).collect()
}
