//! What a file of weights holds: which model, of which configuration, and what belongs to it.

use std::collections::BTreeMap;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use sar_core::{FirstScale, ScaleSchedule};
use sar_model::{Backbone, BackboneConfig, Hints, Visibility};
use sar_rollout::Sampler;
use sar_tokenizer::{CodebookGrowth, Tokenizer, TokenizerConfig};
use sar_weights::{
    Anchor, Layout, Located, NamedTensors, ParameterInfo, WeightsError, WeightsFile, parameters,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::weights::published_sampler;
use crate::{CodebookSketch, PipelineError};

const KIND: &str = "kind";
const CONFIG: &str = "config";
const CLASSES: &str = "classes";
const SCALES: &str = "scales";
const SAMPLER: &str = "sampler";
const CODEBOOK: &str = "codebook";

/// Which model of a file is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// Whatever there is, the backbone first.
    Any,
    /// A tokenizer.
    Tokenizer,
    /// A backbone.
    Backbone,
}

/// What somebody knows of a model beside its file. What nobody says is taken from the file's metadata,
/// is shown by its tensors, or is assumed to be as published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// What the file puts in front of the model's names, where it holds several models.
    pub root: Option<String>,
    /// Attention heads of a backbone.
    pub heads: Option<usize>,
    /// Names of the classes of a backbone.
    pub classes: Option<Vec<String>>,
    /// The scales that a backbone is sampled with.
    pub scales: Option<ScaleSchedule>,
    /// What a token of a backbone sees of coarser scales, where its file does not say.
    pub visibility: Option<Visibility>,
    /// How the first scale of a backbone is trained and sampled, where its file does not say.
    pub first_scale: Option<FirstScale>,
}

/// A model and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Model {
    /// Images to tokens and back.
    Tokenizer(TokenizerConfig),
    /// Tokens from coarser tokens.
    Backbone {
        /// Its configuration.
        config: BackboneConfig,
        /// Names of the classes.
        classes: Vec<String>,
        /// The scales that it is sampled with.
        scales: ScaleSchedule,
        /// How it is sampled.
        sampler: Sampler,
        /// Some of the codes that it was trained with; none where its file does not say.
        codebook: Option<CodebookSketch>,
    },
}

/// A model in a file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recognized {
    /// Where it lies.
    pub located: Located,
    /// What it is.
    pub model: Model,
    /// What nobody said and nothing showed, in words: it is assumed to be as published.
    pub assumed: Vec<String>,
}

/// Where in a file a model lies, and what was assumed of it, in words.
pub(crate) fn notes(place: Option<String>, assumed: &[String]) -> impl Iterator<Item = String> {
    place.into_iter().chain(assumed.iter().map(|what| format!("assumed {what}")))
}

impl Recognized {
    /// Recognizes the model of a file, and checks that all of its parameters are there in the right
    /// shape, and nothing else but the buffers of the released files.
    ///
    /// # Errors
    /// If there is no such model, it is not whole, it does not show what nobody says, or it shows
    /// something else than is said.
    pub fn of<B: Backend>(
        file: &mut WeightsFile,
        wanted: Wanted,
        known: &Known,
    ) -> Result<Self, PipelineError> {
        let path = file.path().to_owned();
        let unrecognized =
            |reason: String| WeightsError::Unrecognized { path: path.clone(), reason };
        let anchors: &[(Wanted, Anchor)] =
            &[(Wanted::Backbone, sar_model::ANCHOR), (Wanted::Tokenizer, sar_tokenizer::ANCHOR)];
        let mut other = None;
        for &(kind, anchor) in anchors {
            let found = anchor.locate(file, known.root.as_deref());
            if wanted != Wanted::Any && wanted != kind {
                other = found.ok().flatten().map(|_| kind);
                continue;
            }
            let Some(located) = found? else { continue };
            let recognized = match kind {
                Wanted::Tokenizer => {
                    let mut config =
                        TokenizerConfig::recognize(located.shapes()).map_err(&unrecognized)?;
                    if let Some(growth) = growth_of(file)? {
                        config.codebook_growth = growth;
                        config.validate().map_err(|error| unrecognized(error.to_string()))?;
                    }
                    let model = Model::Tokenizer(config);
                    Self { located, model, assumed: Vec::new() }
                }
                _ => Self::backbone(file, located, known)?,
            };
            recognized.located.check(&path, &recognized.parameters::<B>()?, recognized.layout())?;
            return Ok(recognized);
        }
        match other {
            Some(kind) => {
                let name = |kind| match kind {
                    Wanted::Tokenizer => "a tokenizer",
                    _ => "a backbone",
                };
                let (expected, found) = (name(wanted), name(kind).to_owned());
                Err(PipelineError::Kind { path, expected, found })
            }
            None => {
                let names: Vec<&str> = anchors
                    .iter()
                    .filter(|(kind, _)| wanted == Wanted::Any || wanted == *kind)
                    .map(|(_, anchor)| anchor.tensor)
                    .collect();
                Err(unrecognized(format!("there is no {}", names.join(" and no "))).into())
            }
        }
    }

    fn backbone(
        file: &mut WeightsFile,
        located: Located,
        known: &Known,
    ) -> Result<Self, PipelineError> {
        let described: Option<Described> = of_metadata(file, CONFIG)?;
        let mut scales = known.scales.clone();
        if scales.is_none() {
            scales = of_metadata(file, SCALES)?;
        }
        if scales.is_none() {
            scales = scales_of_levels(file, &located)?;
        }
        let hints = Hints {
            heads: known.heads.or(described.as_ref().map(|config| config.heads)),
            scales: scales.clone(),
            visibility: match &described {
                Some(described) => described.visibility.or(Some(Visibility::AllCoarser)),
                None => known.visibility,
            },
            first_scale: match &described {
                Some(described) => described.first_scale.or(Some(FirstScale::ClassToken {})),
                None => known.first_scale,
            },
        };
        let path = file.path().to_owned();
        let (config, mut assumed) = BackboneConfig::recognize(located.shapes(), &hints)
            .map_err(|reason| WeightsError::Unrecognized { path: path.clone(), reason })?;
        if hints.visibility.is_none() && file.metadata().contains_key(KIND) {
            // Released files say nothing of themselves, and need not.
            assumed.push("that a token sees all coarser scales".into());
        }
        let scales = scales.unwrap_or_else(|| {
            let scales = config.published_scales();
            if config.positions.only_scales().is_none() {
                assumed.push(format!("scales {scales}, as published"));
            }
            scales
        });
        let n = config.classes;
        let names = match known.classes.clone() {
            Some(names) => Some(names),
            None => of_metadata(file, CLASSES)?,
        };
        let classes: Vec<String> = names.unwrap_or_else(|| {
            assumed.push(format!("the names of the {n} classes, which are numbers"));
            (0..n).map(|class| class.to_string()).collect()
        });
        if classes.len() != n {
            let problem = format!("{} names for {n} classes", classes.len());
            return Err(PipelineError::Contradiction { path, field: CLASSES, problem });
        }
        let sampler = match of_metadata(file, SAMPLER)? {
            Some(sampler) => sampler,
            None => published_sampler(&config),
        };
        let codebook = of_metadata(file, CODEBOOK)?;
        let model = Model::Backbone { config, classes, scales, sampler, codebook };
        Ok(Self { located, model, assumed })
    }

    /// What the user should know of how the file was read: a line each.
    pub fn notes(&self) -> Vec<String> {
        notes(self.located.note(), &self.assumed).collect()
    }

    /// The names and layout of the model's file.
    pub fn layout(&self) -> &'static Layout {
        match &self.model {
            Model::Tokenizer(config) => config.layout(),
            Model::Backbone { .. } => &sar_model::LAYOUT,
        }
    }

    /// The parameters of the model; nothing is allocated.
    ///
    /// # Errors
    /// If the configuration cannot be built.
    pub fn parameters<B: Backend>(&self) -> Result<Vec<ParameterInfo>, PipelineError> {
        let device = B::Device::default();
        Ok(match &self.model {
            Model::Tokenizer(config) => {
                parameters(&Tokenizer::<B>::new(config, &device)?, self.layout())
            }
            Model::Backbone { config, .. } => {
                parameters(&Backbone::<B>::new(config, &device)?, self.layout())
            }
        })
    }
}

impl Model {
    /// `flexvar-tokenizer`, `var-tokenizer`, `flexvar-backbone` or `var-backbone`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tokenizer(config) => config.kind(),
            Self::Backbone { config, .. } => config.kind(),
        }
    }

    /// The name of the published model of this configuration, if it is one.
    pub fn published_name(&self) -> Option<&'static str> {
        match self {
            Self::Tokenizer(config) => {
                let mut published = TokenizerConfig::published().into_iter();
                published.find(|(_, known)| known == config).map(|(name, _)| name)
            }
            Self::Backbone { config, .. } => {
                let mut published = BackboneConfig::published().into_iter();
                published.find(|(_, known)| known == config).map(|(name, _)| name)
            }
        }
    }

    /// The metadata with which a file describes itself: kind, configuration, and what belongs to a
    /// backbone.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let fields = match self {
            Self::Tokenizer(config) => vec![(CONFIG, json(config))],
            Self::Backbone { config, classes, scales, sampler, codebook } => [
                (CONFIG, json(config)),
                (CLASSES, json(classes)),
                (SCALES, json(scales)),
                (SAMPLER, json(sampler)),
            ]
            .into_iter()
            .chain(codebook.as_ref().map(|codebook| (CODEBOOK, json(codebook))))
            .collect(),
        };
        let kind = (KIND.to_owned(), self.kind().to_owned());
        fields.into_iter().map(|(field, value)| (field.to_owned(), value)).chain([kind]).collect()
    }

    /// What released files hold beside the parameters. `scales` is the number of scales that a
    /// tokenizer was trained with; a backbone has its own.
    pub fn buffers(&self, scales: usize) -> NamedTensors {
        match self {
            Self::Tokenizer(config) => config.buffers(scales),
            Self::Backbone { config, scales, .. } => config.buffers(scales),
        }
    }
}

/// What tensors do not show of a backbone, in the metadata of its file. Those written before there was a
/// choice do not speak of what a token sees, and of a first scale.
#[derive(Deserialize)]
struct Described {
    heads: usize,
    visibility: Option<Visibility>,
    first_scale: Option<FirstScale>,
}

/// The scales by VAR's buffer `lvl_1L`, which has the number of its scale for every token.
fn scales_of_levels(
    file: &mut WeightsFile,
    located: &Located,
) -> Result<Option<ScaleSchedule>, PipelineError> {
    let Some(levels) = located.get("lvl_1L").filter(|info| info.dtype == DType::I64) else {
        return Ok(None);
    };
    let mut counts: Vec<usize> = Vec::new();
    for level in file.read(&levels.name)?.iter::<i64>() {
        match usize::try_from(level) {
            Ok(level) if level < counts.len() => counts[level] += 1,
            Ok(level) if level == counts.len() => counts.push(1),
            _ => return Ok(None),
        }
    }
    let sides: Vec<usize> = counts.iter().map(|count| count.isqrt()).collect();
    let is_square = sides.iter().zip(&counts).all(|(side, count)| side * side == *count);
    Ok(ScaleSchedule::squares(&sides).ok().filter(|_| is_square))
}

/// How the codebook of a tokenizer grows, of which its shapes show nothing; older files say nothing of it.
fn growth_of(file: &WeightsFile) -> Result<Option<CodebookGrowth>, PipelineError> {
    let described: Option<serde_json::Value> = of_metadata(file, CONFIG)?;
    let growth = described.as_ref().and_then(|config| config.get("codebook_growth"));
    let growth = growth.map(|growth| serde_json::from_value(growth.clone()));
    growth.transpose().map_err(|error| PipelineError::Metadata {
        path: file.path().into(),
        field: CONFIG,
        problem: error.to_string(),
    })
}

/// What a file of ours says of itself; files of others may use the same words for something else.
fn of_metadata<T: DeserializeOwned>(
    file: &WeightsFile,
    field: &'static str,
) -> Result<Option<T>, PipelineError> {
    let kinds = [TokenizerConfig::KINDS, BackboneConfig::KINDS].concat();
    let is_ours = file.metadata().get(KIND).is_some_and(|kind| kinds.contains(&kind.as_str()));
    let Some(text) = file.metadata().get(field).filter(|_| is_ours) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| PipelineError::Metadata {
        path: file.path().into(),
        field,
        problem: error.to_string(),
    })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values")
}
