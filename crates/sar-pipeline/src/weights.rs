//! Tokenizers and backbones in and out of files that describe themselves.
//!
//! Tensors carry the names and layout of the released checkpoints; the metadata says what belongs to
//! them, so that a file is all that sampling needs.

use std::path::Path;

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_model::{Backbone, BackboneConfig};
use sar_rollout::{Choice, Guidance, Sampler};
use sar_tokenizer::{Tokenizer, TokenizerConfig};
use sar_weights::{WeightsFile, bind, collect};

use crate::recognize::{Known, Model, Recognized, Wanted, notes};
use crate::{CodebookSketch, PipelineError};

/// Something out of a file, and what the user should know of how it was read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded<T> {
    /// What was loaded.
    pub value: T,
    /// Where in the file it lay, if there was a choice or a root.
    pub place: Option<String>,
    /// What the file leaves open, and what was assumed of it.
    pub assumed: Vec<String>,
}

impl<T> Loaded<T> {
    /// What the user should know: a line each; none for files that leave nothing open.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        notes(self.place.clone(), &self.assumed)
    }
}

/// A tokenizer with what belongs to it.
#[derive(Clone, Debug)]
pub struct TrainedTokenizer<B: Backend> {
    /// The weights.
    pub model: Tokenizer<B>,
    /// Their configuration.
    pub config: TokenizerConfig,
}

/// A backbone with what belongs to it.
#[derive(Clone, Debug)]
pub struct TrainedBackbone<B: Backend> {
    /// The weights.
    pub model: Backbone<B>,
    /// Their configuration.
    pub config: BackboneConfig,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The scales that it was trained and is sampled with.
    pub scales: ScaleSchedule,
    /// How it is sampled.
    pub sampler: Sampler,
    /// Some of the codes that it was trained with; none where nobody says.
    pub codebook: Option<CodebookSketch>,
}

/// How the authors sample a model of this family: guidance of 2.5 by FlexVAR's rule, top-k 900 and
/// top-p 0.95; of 1.5 by the plain ramp, top-k 900 and top-p 0.96 for VAR.
pub fn published_sampler(config: &BackboneConfig) -> Sampler {
    let (guidance, top_p) = match config.positions.only_scales() {
        None => (Guidance::flexvar(2.5), 0.95),
        Some(_) => (Guidance::Ramp { scale: 1.5 }, 0.96),
    };
    Sampler { guidance, choice: Choice::Sample { top_k: 900, top_p } }
}

impl<B: Backend> TrainedTokenizer<B> {
    /// Reads a tokenizer of a run or a released one.
    ///
    /// # Errors
    /// If the file holds no tokenizer, or is damaged.
    pub fn load(
        mut file: WeightsFile,
        known: &Known,
        device: &B::Device,
    ) -> Result<Loaded<Self>, PipelineError> {
        let found = Recognized::of::<B>(&mut file, Wanted::Tokenizer, known)?;
        let (place, assumed) = (found.located.note(), found.assumed.clone());
        let layout = found.layout();
        let Model::Tokenizer(config) = found.model else { unreachable!("a tokenizer was wanted") };
        let tensors = found.located.read(file)?;
        let model = bind(Tokenizer::new(&config, device)?, tensors, layout)?;
        Ok(Loaded { value: Self { model, config }, place, assumed })
    }

    /// Writes the tokenizer.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PipelineError> {
        let mut tensors = collect(&self.model, self.config.layout());
        *tensors.metadata_mut() = Model::Tokenizer(self.config.clone()).metadata();
        Ok(tensors.write_safetensors(path)?)
    }
}

impl<B: Backend> TrainedBackbone<B> {
    /// Reads a backbone of a run or a released one.
    ///
    /// # Errors
    /// If the file holds no backbone, is damaged, or leaves open what is not known.
    pub fn load(
        mut file: WeightsFile,
        known: &Known,
        device: &B::Device,
    ) -> Result<Loaded<Self>, PipelineError> {
        let found = Recognized::of::<B>(&mut file, Wanted::Backbone, known)?;
        let (place, assumed) = (found.located.note(), found.assumed.clone());
        let Model::Backbone { config, classes, scales, sampler, codebook } = found.model else {
            unreachable!("a backbone was wanted")
        };
        let tensors = found.located.read(file)?;
        let model = bind(Backbone::new(&config, device)?, tensors, &sar_model::LAYOUT)?;
        let value = Self { model, config, classes, scales, sampler, codebook };
        Ok(Loaded { value, place, assumed })
    }

    /// Writes the backbone.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PipelineError> {
        let Self { model, config, classes, scales, sampler, codebook } = self;
        let mut tensors = collect(model, &sar_model::LAYOUT);
        let description = Model::Backbone {
            config: config.clone(),
            classes: classes.clone(),
            scales: scales.clone(),
            sampler: *sampler,
            codebook: codebook.clone(),
        };
        *tensors.metadata_mut() = description.metadata();
        Ok(tensors.write_safetensors(path)?)
    }

    /// Checks that a tokenizer has the codes that the backbone was trained with, as far as its file says. The
    /// paths are those of the tokenizer and the backbone.
    ///
    /// # Errors
    /// If it has another number of codes, or other ones.
    pub fn check_tokenizer(
        &self,
        tokenizer: &TrainedTokenizer<B>,
        paths: [&Path; 2],
    ) -> Result<(), PipelineError> {
        let found = (tokenizer.config.codebook_size, tokenizer.config.codebook_dim);
        let wanted = (self.config.codebook_size, self.config.codebook_dim);
        let codes = tokenizer.model.codebook();
        let [tokenizer, backbone] = paths.map(Path::to_owned);
        if found != wanted {
            return Err(PipelineError::Apart { tokenizer, backbone, wanted, found });
        }
        match &self.codebook {
            Some(sketch) if !sketch.is_of(codes) => {
                Err(PipelineError::OtherCodes { tokenizer, backbone })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_sampled_as_its_authors_do() {
        let sampler =
            |guidance, top_p| Sampler { guidance, choice: Choice::Sample { top_k: 900, top_p } };
        let flexvar = published_sampler(&BackboneConfig::flexvar(16));
        let rule = Guidance::FlexRamp { scale: 2.5, constant_over: 16 };
        assert_eq!(flexvar, sampler(rule, 0.95));
        let of_512px = ScaleSchedule::preset("512px").unwrap();
        let var = published_sampler(&BackboneConfig::var(36, of_512px));
        assert_eq!(var, sampler(Guidance::Ramp { scale: 1.5 }, 0.96));
    }
}
