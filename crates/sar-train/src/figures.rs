//! What a run measures and draws outside its stages.

use burn::tensor::backend::AutodiffBackend;
use sar_core::SeedTree;
use sar_pipeline::{
    Pipeline, Request, RgbImage, TrainedBackbone, TrainedTokenizer, enlarge, grid, magnification,
    sample_stream, to_images, to_tensor,
};
use sar_tokenizer::Tokenizer;

use crate::event::Event;
use crate::held_out::{HeldOut, HeldOutMeter};
use crate::report::TokenizerReport;
use crate::run::{Inner, Run};
use crate::tokenizer_meter::TokenizerMeter;
use crate::tokens::TokenBatch;
use crate::{StageId, TrainError};

/// Rows of a sample sheet: of a thousand classes the first ones say enough.
const MOST_SAMPLED_CLASSES: usize = 32;

impl<A: AutodiffBackend> Run<'_, A> {
    /// PSNR and code use on held-out images, of the tokenizer and of its average.
    ///
    /// # Errors
    /// If images cannot be read, or the PSNR is not a number.
    pub(crate) fn tokenizer_report(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        average: Option<&Tokenizer<Inner<A>>>,
    ) -> Result<TokenizerReport, TrainError> {
        let mut report = self.measure_tokenizer(tokenizer)?.report();
        report.average_psnr_db = match average {
            Some(average) => Some(self.measure_tokenizer(average)?.psnr_db()),
            None => None,
        };
        Ok(report)
    }

    fn measure_tokenizer(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<TokenizerMeter, TrainError> {
        let what = "measuring the tokenizer on held-out images";
        self.journal.observer.event(&Event::Working { what });
        let codes = self.recipe.tokenizer.model.codebook_size;
        let mut meter = TokenizerMeter::new(self.scales(), codes);
        let evaluation = &self.recipe.evaluation;
        for images in self.images.held_out(evaluation.images, evaluation.batch_size) {
            meter.add(tokenizer, images?.tensor(self.device));
        }
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
        for batch in self.images.held_out(n, self.recipe.evaluation.batch_size) {
            originals.extend(batch?.images);
        }
        let n = originals.len();
        let h_bchw = tokenizer.encode(to_tensor(&originals, self.device));
        let tokens_bl = tokenizer.tokens(h_bchw, self.scales());
        let side = self.recipe.data.side;
        let mut rows: Vec<Vec<RgbImage>> = vec![originals];
        for f_hat_bchw in tokenizer.canvases(tokens_bl, self.scales()).into_iter().rev() {
            let decoded = to_images(tokenizer.decode(f_hat_bchw));
            rows.push(decoded.iter().map(|image| enlarge(image, side, side)).collect());
        }
        let sheet = grid(&rows.concat(), n, 4, magnification(side));
        let path = self.journal.dir.write_png("reconstructions.png", &sheet)?;
        self.journal.wrote(&path);
        Ok(())
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
        let schedule = self.scales().clone();
        let mut meter = HeldOutMeter::new(&schedule, backbone.config.codebook_size);
        let evaluation = &self.recipe.evaluation;
        for images in self.images.held_out(evaluation.images, evaluation.batch_size) {
            let batch = TokenBatch::encode(tokenizer, images?, schedule.clone(), self.device);
            meter.add(&backbone.model, tokenizer, &batch, self.device);
        }
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
        let evaluation = &self.recipe.evaluation;
        let columns = evaluation.samples_per_class;
        let pipeline = Pipeline::new(tokenizer.clone(), backbone.clone(), self.device);
        let classes = backbone.classes.len().min(MOST_SAMPLED_CLASSES);
        let wanted: Vec<(usize, usize)> =
            (0..classes).flat_map(|class| (0..columns).map(move |i| (class, i))).collect();
        let stream =
            |&(class, i): &(usize, usize)| -> SeedTree { sample_stream(self.seed, class, i) };
        let mut images = Vec::new();
        // Two rows to an image: with its class and without.
        for part in wanted.chunks(evaluation.batch_size.div_ceil(2)) {
            images.extend(pipeline.sample(&Request {
                labels: part.iter().map(|(class, _)| *class).collect(),
                streams: part.iter().map(stream).collect(),
                scales: self.scales().clone(),
                sampler: evaluation.sampler,
            }));
        }
        let sheet = grid(&images, columns, 4, magnification(self.recipe.data.side));
        let path = self.journal.dir.write_png(name, &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }
}
