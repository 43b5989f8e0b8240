//! Released files of weights as what this project builds: from what their tensors show to
//! configurations, and to the metadata of a file that describes itself.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::DType;
use sar_core::ScaleSchedule;
use sar_model::{BackboneConfig, PositionsConfig};
use sar_tokenizer::{Family, Phi, TokenizerConfig};
use sar_weights::{
    BackboneShape, PositionsShape, Recognised, Released, TensorInfo, TokenizerFamily,
    TokenizerShape, WeightsFile,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;
use crate::weights::{CLASSES, CONFIG, KIND, SCALES};

/// What is known of a backbone beside its file. What is not comes from the file's metadata, from its
/// tensors, or is as published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Attention heads, which no tensor shows without q/k normalisation.
    pub heads: Option<usize>,
    /// Names of the classes.
    pub classes: Option<Vec<String>>,
    /// The scales that it is sampled with.
    pub scales: Option<ScaleSchedule>,
}

/// A file of weights as one that describes itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Its metadata with kind, configuration, classes and scales.
    pub metadata: BTreeMap<String, String>,
    /// What in it is neither known nor in the file, and taken as published instead.
    pub assumed: Vec<String>,
}

/// Describes a released file.
///
/// # Errors
/// If the file cannot be read, does not show what is not known, or shows something else.
pub fn describe(
    file: &mut WeightsFile,
    found: &Recognised,
    known: Known,
) -> Result<Description, TrainError> {
    let mut assumed = Vec::new();
    let mut fields = vec![(KIND, found.model.kind().to_owned())];
    match &found.model {
        Released::Tokenizer(shape) => fields.push((CONFIG, json(&tokenizer_config(shape)))),
        Released::Backbone(shape) => {
            let classes = classes(file, shape, known.classes, &mut assumed)?;
            let scales = scales(file, found, shape, known.scales, &mut assumed)?;
            let heads = heads(file, shape, known.heads, &mut assumed)?;
            fields.push((CONFIG, json(&backbone_config(shape, heads, &scales))));
            fields.push((CLASSES, json(&classes)));
            fields.push((SCALES, json(&scales)));
        }
    }
    let mut metadata = file.metadata().clone();
    metadata.extend(fields.into_iter().map(|(field, value)| (field.to_owned(), value)));
    Ok(Description { metadata, assumed })
}

/// The configuration of a tokenizer of this shape.
fn tokenizer_config(shape: &TokenizerShape) -> TokenizerConfig {
    let TokenizerShape {
        family,
        base_channels,
        channel_multipliers,
        res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
    } = shape.clone();
    let family = match family {
        TokenizerFamily::Flexvar => Family::Flexvar,
        TokenizerFamily::Var { phi } => Family::Var {
            phi: match phi {
                sar_weights::Phi::Shared(n) => Phi::Shared(n),
                sar_weights::Phi::PerScale(n) => Phi::PerScale(n),
            },
        },
    };
    TokenizerConfig {
        family,
        base_channels,
        channel_multipliers,
        res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
    }
}

/// The configuration of a backbone of this shape.
fn backbone_config(shape: &BackboneShape, heads: usize, scales: &ScaleSchedule) -> BackboneConfig {
    let BackboneShape {
        depth,
        width,
        heads: _,
        mlp_ratio,
        classes,
        codebook_size,
        codebook_dim,
        shared_adaln,
        qk_l2_norm,
        positions,
    } = *shape;
    let positions = match positions {
        PositionsShape::Grid { side } => PositionsConfig::Grid { side },
        PositionsShape::PerToken { .. } => PositionsConfig::PerToken { scales: scales.clone() },
    };
    BackboneConfig {
        depth,
        width,
        heads,
        mlp_ratio,
        classes,
        codebook_size,
        codebook_dim,
        shared_adaln,
        qk_l2_norm,
        positions,
    }
}

fn heads(
    file: &WeightsFile,
    shape: &BackboneShape,
    known: Option<usize>,
    assumed: &mut Vec<String>,
) -> Result<usize, TrainError> {
    let fail = |problem: String| Err(contradiction(file.path(), "heads", problem));
    if let (Some(known), Some(seen)) = (known, shape.heads)
        && known != seen
    {
        return fail(format!("there are {seen}, not {known}"));
    }
    let described = || of_metadata(file, CONFIG).map(|config: BackboneConfig| config.heads);
    let heads = match known.or(shape.heads).or_else(described) {
        Some(heads) => heads,
        None => {
            let Some(heads) = shape.published_heads() else {
                return fail("the tensors do not show them; say them (sar convert --heads)".into());
            };
            assumed.push(format!("{heads} heads, as published for this width"));
            heads
        }
    };
    if heads == 0 || !shape.width.is_multiple_of(heads) {
        return fail(format!("{heads} do not divide the width, {}", shape.width));
    }
    Ok(heads)
}

fn classes(
    file: &WeightsFile,
    shape: &BackboneShape,
    known: Option<Vec<String>>,
    assumed: &mut Vec<String>,
) -> Result<Vec<String>, TrainError> {
    let n = shape.classes;
    let names = known.or_else(|| of_metadata(file, CLASSES)).unwrap_or_else(|| {
        assumed.push(format!("the names of the {n} classes, which are numbers"));
        (0..n).map(|class| class.to_string()).collect()
    });
    if names.len() != n {
        let problem = format!("{} names for {n} classes", names.len());
        return Err(contradiction(file.path(), CLASSES, problem));
    }
    Ok(names)
}

fn scales(
    file: &mut WeightsFile,
    found: &Recognised,
    shape: &BackboneShape,
    known: Option<ScaleSchedule>,
    assumed: &mut Vec<String>,
) -> Result<ScaleSchedule, TrainError> {
    let scales = match known.or_else(|| of_metadata(file, SCALES)) {
        Some(scales) => scales,
        None => match scales_of_levels(file, found, shape)? {
            Some(scales) => scales,
            None => {
                let scales = published_scales(shape).ok_or_else(|| {
                    let problem = "the tensors do not show them; say them (sar convert --scales)";
                    contradiction(file.path(), SCALES, problem.into())
                })?;
                assumed.push(format!("scales {scales}, as published"));
                scales
            }
        },
    };
    match shape.positions {
        PositionsShape::PerToken { tokens, scales: levels }
            if (scales.n_tokens(), scales.len()) != (tokens, levels) =>
        {
            let problem = format!(
                "{scales} are {} tokens in {} scales, the positions are for {tokens} in {levels}",
                scales.n_tokens(),
                scales.len()
            );
            Err(contradiction(file.path(), SCALES, problem))
        }
        _ => Ok(scales),
    }
}

/// The published scales that a backbone of this shape was trained with.
fn published_scales(shape: &BackboneShape) -> Option<ScaleSchedule> {
    let published = |name| ScaleSchedule::preset(name).expect("a known preset");
    match shape.positions {
        PositionsShape::Grid { .. } => Some(published("256px")),
        PositionsShape::PerToken { tokens, scales } => ScaleSchedule::PRESETS
            .map(|(name, _)| published(name))
            .into_iter()
            .find(|known| known.n_tokens() == tokens && known.len() == scales),
    }
}

/// The scales by VAR's buffer `lvl_1L`, which has the number of its scale for every token.
fn scales_of_levels(
    file: &mut WeightsFile,
    found: &Recognised,
    shape: &BackboneShape,
) -> Result<Option<ScaleSchedule>, TrainError> {
    let PositionsShape::PerToken { tokens, scales: levels } = shape.positions else {
        return Ok(None);
    };
    let is_levels = |info: &&TensorInfo| {
        found.strip(&info.name) == Some("lvl_1L")
            && info.dtype == DType::I64
            && info.n_elements() == tokens
    };
    let Some(name) = file.tensors().iter().find(is_levels).map(|info| info.name.clone()) else {
        return Ok(None);
    };
    let mut counts = vec![0usize; levels];
    for level in file.read(&name)?.iter::<i64>() {
        match usize::try_from(level).ok().and_then(|level| counts.get_mut(level)) {
            Some(count) => *count += 1,
            None => return Ok(None),
        }
    }
    let sides: Vec<usize> = counts.iter().map(|count| count.isqrt()).collect();
    Ok(ScaleSchedule::squares(&sides).ok().filter(|scales| scales.n_tokens() == tokens))
}

fn contradiction(path: &Path, field: &'static str, problem: String) -> TrainError {
    TrainError::Released { path: path.into(), field, problem }
}

fn of_metadata<T: DeserializeOwned>(file: &WeightsFile, field: &str) -> Option<T> {
    serde_json::from_str(file.metadata().get(field)?).ok()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values")
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sar_model::Backbone;
    use sar_tokenizer::Tokenizer;
    use sar_weights::{ParameterInfo, parameters};

    use super::*;

    fn listed(parameters: Vec<ParameterInfo>) -> BTreeMap<String, Vec<usize>> {
        parameters.into_iter().map(|parameter| (parameter.name, parameter.shape)).collect()
    }

    /// What is recognised in a file is what the modules ask for, name by name.
    #[test]
    fn the_modules_have_the_parameters_of_the_released_files() {
        let device = Default::default();
        for (name, model) in Released::presets() {
            let built = match &model {
                Released::Tokenizer(shape) => {
                    let config = tokenizer_config(shape);
                    let tokenizer = Tokenizer::<Flex>::new(&config, &device).unwrap();
                    parameters(&tokenizer, config.layout())
                }
                Released::Backbone(shape) => {
                    let px = if name == "var-d36-s" { "512px" } else { "256px" };
                    let scales = ScaleSchedule::preset(px).unwrap();
                    assert_eq!(published_scales(shape), Some(scales.clone()));
                    let config = backbone_config(shape, shape.heads.unwrap(), &scales);
                    let backbone = Backbone::<Flex>::new(&config, &device).unwrap();
                    parameters(&backbone, &sar_model::LAYOUT)
                }
            };
            assert_eq!(listed(built), model.parameters(), "{name}");
        }
    }

    #[test]
    fn presets_are_the_published_configurations() {
        let shape = |name| Released::preset(name).unwrap();
        let Released::Tokenizer(flexvar) = shape("flexvar-tokenizer") else { panic!() };
        assert_eq!(tokenizer_config(&flexvar), TokenizerConfig::flexvar());
        let Released::Tokenizer(var) = shape("var-tokenizer") else { panic!() };
        assert_eq!(tokenizer_config(&var), TokenizerConfig::var());

        let scales = ScaleSchedule::preset("256px").unwrap();
        let Released::Backbone(flexvar) = shape("sar-d20") else { panic!() };
        assert_eq!(backbone_config(&flexvar, 20, &scales), BackboneConfig::flexvar(20));
        let Released::Backbone(var) = shape("var-d20") else { panic!() };
        assert_eq!(backbone_config(&var, 20, &scales), BackboneConfig::var(20, scales));
    }
}
