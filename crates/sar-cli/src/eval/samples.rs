//! Samples of weights, looked at as they are drawn.

use anyhow::Result;
use burn::tensor::backend::Backend;
use sar_core::SeedTree;
use sar_eval::{FeatureSet, Looking};
use sar_pipeline::{MadeWith, Pipeline, Request, RgbImage};
use sar_rollout::Sampler;
use serde_json::{Value, json};

use super::sweep::Sweep;
use super::{Progress, SHOWN, SHOWN_OF_CLASS};
use crate::generation::{Files, Settings};
use crate::job::n_images;

/// Weights that are sampled from.
pub(super) struct Weights {
    pub(super) files: Files,
    pub(super) settings: Settings,
    pub(super) n: usize,
    pub(super) sweep: Option<Sweep>,
}

impl Weights {
    /// Height and width of a sample, pixels.
    pub(super) fn size<B: Backend>(&self, pipeline: &Pipeline<B>) -> Result<[usize; 2]> {
        let last = self.settings.scales(pipeline)?.last();
        let unit = pipeline.downsampling();
        Ok([last.height * unit, last.width * unit])
    }

    /// Class and number of every sample, as many of each class.
    pub(super) fn wanted<B: Backend>(&self, pipeline: &Pipeline<B>) -> Result<Vec<(usize, usize)>> {
        let classes = pipeline.classes().len();
        n_images(self.n, classes)?;
        Ok((0..classes).flat_map(|label| (0..self.n).map(move |i| (label, i))).collect())
    }

    /// The samplers to measure: a name for the table, what the report says, and the sampler.
    pub(super) fn samplers<B: Backend>(
        &self,
        pipeline: &Pipeline<B>,
    ) -> Vec<(String, Value, Sampler)> {
        let base = pipeline.backbone().sampler;
        match &self.sweep {
            None => vec![("samples".into(), json!({}), self.settings.sampler(base))],
            Some(sweep) => sweep.samplers_of(self.settings.wishes(), base),
        }
    }

    pub(super) fn described<B: Backend>(
        &self,
        pipeline: &Pipeline<B>,
        made_with: &MadeWith,
    ) -> Result<Value> {
        // Of several, what they are made from.
        let sampler = match self.samplers(pipeline).as_slice() {
            [(_, _, only)] => *only,
            _ => self.settings.sampler(pipeline.backbone().sampler),
        };
        Ok(json!({
            "source": "samples",
            "tokenizer": made_with.tokenizer,
            "backbone": made_with.backbone,
            "precision": made_with.precision,
            "size": self.size(pipeline)?,
            "seed": self.settings.seed,
            "per_class": self.n,
            "batch": self.settings.batch,
            "scales": self.settings.scales(pipeline)?,
            "sampler": sampler,
        }))
    }

    /// Draws samples and looks at them; the samples themselves are not kept.
    pub(super) fn sample<B: Backend>(
        &self,
        pipeline: &Pipeline<B>,
        sampler: Sampler,
        wanted: &[(usize, usize)],
        mut looking: Looking<'_, B>,
        progress: &mut Progress,
    ) -> Result<(FeatureSet, Vec<RgbImage>)> {
        let (scales, root) = (self.settings.scales(pipeline)?, SeedTree::new(self.settings.seed));
        let (mut shown, mut done) = (Vec::new(), 0);
        for part in wanted.chunks(self.settings.batch) {
            let request = Request::of(root, part.iter().copied(), scales.clone(), sampler);
            let images = pipeline.sample(&request);
            looking.add(&images)?;
            done += images.len();
            for ((_, i), image) in part.iter().zip(images) {
                if *i < SHOWN_OF_CLASS && shown.len() < SHOWN {
                    shown.push(image);
                }
            }
            progress.at(done);
        }
        Ok((looking.finish()?, shown))
    }
}

/// The labels of samples among the classes of the reference, or why there are none.
pub(super) fn labels_among(
    own: &[String],
    classes: &[String],
    wanted: &[(usize, usize)],
) -> Result<Vec<usize>, String> {
    if classes.is_empty() {
        return Err("the reference has no classes".into());
    }
    let of = |name: &String| {
        let place = classes.iter().position(|class| class == name);
        place.ok_or_else(|| format!("the reference has no class '{name}', the weights have"))
    };
    let labels = own.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    Ok(wanted.iter().map(|(label, _)| labels[*label]).collect())
}
