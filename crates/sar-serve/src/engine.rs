//! A pipeline without its backend's type: what handlers ask, and what the worker draws.

use std::ops::ControlFlow;

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_model::PositionsConfig;
use sar_pipeline::{
    EditSettings, Model, Origin, Pipeline, PipelineError, Request, RgbImage, Wishes,
};
use sar_rollout::{Choice, Guidance, Sampler};
use serde_json::{Value, json};

/// Work that has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) what: What,
    /// How many pictures.
    pub(crate) count: usize,
    /// Whether every scale is shown.
    pub(crate) previews: bool,
    /// What goes into the files of finished pictures, but for their numbers.
    pub(crate) origin: Option<Origin>,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Sample { label: usize, seed: u64, scales: ScaleSchedule, sampler: Sampler },
    Edit { source: RgbImage, settings: Box<EditSettings> },
}

/// What the work has come to.
pub(crate) enum Seen<'a> {
    /// It begins: the scales, and what the user should know.
    Begins { scales: &'a ScaleSchedule, before: Vec<RgbImage>, notes: &'a [String] },
    /// A scale is painted, and can be decoded.
    Scale(usize, &'a dyn Fn() -> Vec<RgbImage>),
}

/// A pipeline on some backend.
pub(crate) trait Engine: Send {
    /// What clients need to know of the model.
    fn about(&self) -> Value;

    /// The label of a class by name or index; of no class at all without one.
    fn label(&self, class: Option<&str>) -> Result<usize, PipelineError>;

    /// The scales that are wished for.
    fn scales(&self, wishes: &Wishes) -> Result<ScaleSchedule, PipelineError>;

    /// The scales of an edit of a source of some width and height, margins included.
    fn edit_scales(
        &self,
        source: (u32, u32),
        settings: &EditSettings,
    ) -> Result<ScaleSchedule, PipelineError>;

    /// The sampler that is wished for.
    fn sampler(&self, wishes: &Wishes) -> Sampler;

    /// Pixels per token along one axis.
    fn unit(&self) -> usize;

    /// Draws until it is done or `seen` breaks.
    fn draw(
        &self,
        work: &Work,
        seen: &mut dyn FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> Result<(), PipelineError>;
}

impl<B: Backend> Engine for Pipeline<B> {
    fn about(&self) -> Value {
        let (backbone, tokenizer, unit) = (self.backbone(), self.tokenizer(), self.downsampling());
        let last = backbone.scales.last();
        let model = Model::Backbone {
            config: backbone.config.clone(),
            classes: Vec::new(),
            scales: backbone.scales.clone(),
            sampler: backbone.sampler,
        };
        let presets = ScaleSchedule::PRESETS.iter().filter(|(name, _)| {
            ScaleSchedule::preset(name).is_ok_and(|scales| self.check_scales(&scales).is_ok())
        });
        let guidance = backbone.sampler.guidance;
        let rule = match guidance {
            Guidance::Ramp { .. } => "ramp",
            Guidance::FlexRamp { .. } => "flex-ramp",
            Guidance::Constant { .. } => "constant",
            Guidance::HalfRamp { .. } => "half-ramp",
        };
        let (top_k, top_p, choice) = match backbone.sampler.choice {
            Choice::Argmax => (0, 0.0, "argmax"),
            Choice::Sample { top_k, top_p } => (top_k, top_p, "sample"),
            Choice::MoreSmooth { top_k, top_p } => (top_k, top_p, "more-smooth"),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "family": model.kind(),
            "classes": self.classes(),
            "codes": tokenizer.config.codebook_size,
            "scales": backbone.scales.to_string(),
            "height": last.height * unit,
            "width": last.width * unit,
            "unit": unit,
            "presets": presets.map(|(name, _)| *name).collect::<Vec<_>>(),
            // Learned positions belong to one schedule.
            "fixed_scales": matches!(backbone.config.positions, PositionsConfig::PerToken { .. }),
            "sampler": {
                "rule": rule, "guidance": guidance.scale(), "choice": choice, "top_k": top_k, "top_p": top_p,
            },
            "notes": self.notes(),
        })
    }

    fn label(&self, class: Option<&str>) -> Result<usize, PipelineError> {
        class.map_or(Ok(self.null_label()), |class| Pipeline::label(self, class))
    }

    fn scales(&self, wishes: &Wishes) -> Result<ScaleSchedule, PipelineError> {
        wishes.scales(self)
    }

    fn edit_scales(
        &self,
        source: (u32, u32),
        settings: &EditSettings,
    ) -> Result<ScaleSchedule, PipelineError> {
        Pipeline::edit_scales(self, source, settings)
    }

    fn sampler(&self, wishes: &Wishes) -> Sampler {
        wishes.sampler(self.backbone().sampler)
    }

    fn unit(&self) -> usize {
        self.downsampling()
    }

    fn draw(
        &self,
        Work { what, count, .. }: &Work,
        seen: &mut dyn FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> Result<(), PipelineError> {
        match what {
            What::Sample { label, seed, scales, sampler } => {
                let mut request = self.request(*label, *count, *seed);
                (request.scales, request.sampler) = (scales.clone(), *sampler);
                let begins = Seen::Begins { scales, before: Vec::new(), notes: &[] };
                if seen(begins).is_continue() {
                    let request: &Request = &request;
                    self.sample_previews(request, |k, decode| seen(Seen::Scale(k, decode)));
                }
            }
            What::Edit { source, settings } => {
                let edit = self.edit(source, settings)?;
                let before = vec![edit.canvas().clone(), edit.holed()];
                let begins = Seen::Begins { scales: edit.scales(), before, notes: edit.notes() };
                if seen(begins).is_continue() {
                    edit.draw_previews(0..*count, |k, decode| seen(Seen::Scale(k, decode)));
                }
            }
        }
        Ok(())
    }
}
