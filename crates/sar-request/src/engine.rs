//! A pipeline without its backend's type: what is asked of it, and what it draws.

use std::ops::ControlFlow;

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_pipeline::{EditSettings, Origin, Pipeline, PipelineError, Request, RgbImage, Wishes};
use sar_rollout::{Filters, Sampler};
use serde_json::{Value, json};

/// Work that has been checked.
#[derive(Clone, Debug)]
pub struct Work {
    /// What is to be drawn.
    pub what: What,
    /// How many pictures.
    pub count: usize,
    /// Whether every scale is shown.
    pub previews: bool,
    /// What goes into the files of finished pictures, but for their numbers.
    pub origin: Option<Origin>,
}

/// What is to be drawn.
#[derive(Clone, Debug)]
pub enum What {
    /// Pictures of a class.
    Sample {
        /// The class; the number of classes is no class at all.
        label: usize,
        /// The seed of all pictures.
        seed: u64,
        /// The scales.
        scales: ScaleSchedule,
        /// Guidance and filters.
        sampler: Sampler,
    },
    /// Parts of a picture anew.
    Edit {
        /// The picture.
        source: RgbImage,
        /// How it is edited.
        settings: Box<EditSettings>,
    },
}

/// What the work has come to.
pub enum Seen<'a> {
    /// It begins.
    Begins {
        /// The scales.
        scales: &'a ScaleSchedule,
        /// What an edit begins with: the picture as the model sees it, and with a hole.
        before: Vec<RgbImage>,
        /// What the user should know, a line each.
        notes: &'a [String],
    },
    /// A scale is painted, and can be decoded.
    Scale(usize, &'a dyn Fn() -> Vec<RgbImage>),
}

/// A pipeline on some backend.
pub trait Engine: Send {
    /// What clients need to know of the model.
    fn about(&self) -> Value;

    /// Names of the classes.
    fn classes(&self) -> &[String];

    /// The label of a class by name or index; of no class at all without one.
    ///
    /// # Errors
    /// If no class or more than one is meant.
    fn label(&self, class: Option<&str>) -> Result<usize, PipelineError>;

    /// The scales that are wished for.
    ///
    /// # Errors
    /// If the model cannot run at them.
    fn scales(&self, wishes: &Wishes) -> Result<ScaleSchedule, PipelineError>;

    /// The scales of an edit of a source of some width and height, margins included.
    ///
    /// # Errors
    /// If the model cannot run at them.
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
    ///
    /// # Errors
    /// If an edit leaves nothing to draw.
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
        let presets = ScaleSchedule::PRESETS.iter().filter(|(name, _)| {
            ScaleSchedule::preset(name).is_ok_and(|scales| self.check_scales(&scales).is_ok())
        });
        let Sampler { guidance, choice } = backbone.sampler;
        let Filters { top_k, top_p } = choice.filters();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "family": backbone.config.kind(),
            "classes": self.classes(),
            "codes": tokenizer.config.codebook_size,
            "scales": backbone.scales.to_string(),
            "height": last.height * unit,
            "width": last.width * unit,
            "unit": unit,
            "presets": presets.map(|(name, _)| *name).collect::<Vec<_>>(),
            // Learned positions belong to one schedule.
            "fixed_scales": backbone.config.positions.only_scales().is_some(),
            "sampler": {
                "rule": json!(guidance)["rule"],
                "guidance": guidance.scale(),
                "choice": json!(choice)["kind"],
                "top_k": top_k,
                "top_p": top_p,
            },
            "notes": self.notes(),
        })
    }

    fn classes(&self) -> &[String] {
        Pipeline::classes(self)
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
