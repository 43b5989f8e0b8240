//! Recipes: everything that decides a run, as one flat TOML file.
//!
//! A recipe is complete: no field has a default in code, so that the file says all. The command
//! line is a recipe plus `key.path=value` settings.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sar_core::{ScaleSchedule, TrainingSchedule};
use sar_data::DataRecipe;
use sar_model::{BackboneConfig, Init, PositionsConfig, Precision};
use sar_rollout::Sampler;
use sar_tokenizer::TokenizerConfig;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::latents::Latents;
use crate::objective::{BackboneMeasure, Objective, Regularisation};
use crate::step::Optimisation;
use crate::validate::validate;

/// Recipes that come with the program.
pub const BUILT_IN: [(&str, &str); 6] = [
    ("emoji-quick", include_str!("../../../assets/recipes/emoji-quick.toml")),
    ("emoji", include_str!("../../../assets/recipes/emoji.toml")),
    ("flexvar-d16-in256", include_str!("../../../assets/recipes/flexvar-d16-in256.toml")),
    ("sar-d16-in256", include_str!("../../../assets/recipes/sar-d16-in256.toml")),
    ("sar-d20-in256", include_str!("../../../assets/recipes/sar-d20-in256.toml")),
    ("sar-d24-in256", include_str!("../../../assets/recipes/sar-d24-in256.toml")),
];

/// A whole run: tokenizer, teacher forcing, SAR, evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run directory and the report.
    pub name: String,
    /// Root of all randomness of the run.
    pub seed: u64,
    /// Images.
    pub data: DataRecipe,
    /// First stage.
    pub tokenizer: TokenizerRecipe,
    /// Shape and initialisation of the backbone.
    pub backbone: BackboneRecipe,
    /// Second stage: teacher forcing.
    pub teacher: BackboneStage,
    /// Third stage: SAR from the teacher's weights.
    pub sar: SarStage,
    /// Whether the backbone stages encode images or read latents that were encoded before.
    pub latents: Latents,
    /// What is measured and drawn at the end.
    pub evaluation: EvaluationRecipe,
    /// What is written on the way.
    pub log: LogRecipe,
}

/// The weights that a stage starts from. Resuming a run is another thing: it goes on with weights,
/// optimizer and step of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum InitFrom {
    /// Random weights.
    Scratch {},
    /// The weights of a file in the released names, `.pth` or safetensors.
    Weights {
        /// The file; a relative path starts at the working directory.
        path: PathBuf,
    },
}

/// The tokenizer and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecipe {
    /// Optimisation steps; 0 keeps the weights that it starts from.
    pub steps: u64,
    /// The weights that it starts from.
    pub init_from: InitFrom,
    /// Shape.
    pub model: TokenizerConfig,
    /// Optimisation.
    pub optimisation: Optimisation,
    /// Weights of the loss terms.
    pub loss: TokenizerLoss,
    /// Steps between looks for codes that nothing used; 0 never looks.
    pub revive_every: u64,
    /// No code is revived after this step, so that the codebook can settle.
    pub revive_until: u64,
}

/// Weights of the tokenizer's loss terms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerLoss {
    /// Mean absolute error of pixels.
    pub l1: f64,
    /// Mean squared error of pixels.
    pub l2: f64,
    /// Codes to latents (published: 1).
    pub codebook: f64,
    /// Latents to codes (published: 0.25).
    pub commitment: f64,
    /// Certain and even assignments (published: 0).
    pub entropy: f64,
    /// Weight of the coarser scale that each step draws, relative to the finest.
    pub coarse: f64,
}

/// Shape of the backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneRecipe {
    /// Number of blocks.
    pub depth: usize,
    /// Channels of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden channels of the MLP as a multiple of `width`.
    pub mlp_ratio: usize,
    /// One adaptive projection for all blocks.
    pub shared_adaln: bool,
    /// l2-normalised queries and keys.
    pub qk_l2_norm: bool,
    /// Where positions come from.
    pub positions: PositionsRecipe,
    /// Initialisation.
    pub init: Init,
    /// Type of the matrix products in training; evaluation is in single precision.
    pub precision: Precision,
    /// The scales of each training step; its `scales` are also those of sampling and evaluation.
    pub schedule: TrainingSchedule,
}

/// Where a backbone's positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PositionsRecipe {
    /// A learned grid, resampled to every scale (FlexVAR).
    Grid {
        /// Its side (published: 32).
        side: usize,
    },
    /// One for every token of the schedule, which then is the only one that can be sampled (VAR).
    PerToken {},
}

/// A stage that trains the backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneStage {
    /// Optimisation steps; 0 keeps the weights that it starts from.
    pub steps: u64,
    /// The weights that it starts from.
    pub init_from: InitFrom,
    /// What decides which of its checkpoints is the best.
    pub best_by: BackboneMeasure,
    /// Optimisation.
    pub optimisation: Optimisation,
    /// Regularisation.
    pub regularisation: Regularisation,
}

/// The SAR stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SarStage {
    /// Optimisation steps.
    pub steps: u64,
    /// What decides which of its checkpoints is the best.
    pub best_by: BackboneMeasure,
    /// What is optimised.
    pub objective: Objective,
    /// Whether teacher forcing for the same number of passes runs from the same weights, as the
    /// control that SAR is compared with.
    pub control: bool,
    /// Optimisation; the learning rates are stated here and nowhere derived.
    pub optimisation: Optimisation,
    /// Regularisation.
    pub regularisation: Regularisation,
}

/// Evaluation and pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationRecipe {
    /// Held-out images that the figures are of, from all over the split; 0: all of them.
    pub images: usize,
    /// Images per class in the sample grids.
    pub samples_per_class: usize,
    /// How they are sampled.
    pub sampler: Sampler,
    /// Images in the reconstruction grid.
    pub reconstructions: usize,
    /// Resamplings of the bootstrap intervals.
    pub bootstrap: usize,
}

/// Logging and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRecipe {
    /// Steps between lines of metrics.jsonl.
    pub every: u64,
    /// Steps between checkpoints; 0: no matter how many.
    pub checkpoint_steps: u64,
    /// Minutes between checkpoints; 0: no matter how many. Each stage ends with one.
    pub checkpoint_minutes: f64,
    /// Steps between measurements on held-out images, each with a checkpoint, the best of which is
    /// kept; 0 never measures.
    pub measure_steps: u64,
    /// Held-out images that such a measurement takes, from all over the split.
    pub measure_images: usize,
}

impl LogRecipe {
    /// Whether anything is measured while a stage goes on.
    pub(crate) fn measures(&self) -> bool {
        self.measure_steps > 0
    }

    /// Whether a measurement is due after `done` steps.
    pub(crate) fn is_measured(&self, done: u64) -> bool {
        self.measures() && done.is_multiple_of(self.measure_steps)
    }

    /// Whether a checkpoint is due after `done` steps, when the last is `elapsed` ago.
    pub(crate) fn is_due(&self, done: u64, elapsed: Duration) -> bool {
        let by_steps = self.checkpoint_steps > 0 && done.is_multiple_of(self.checkpoint_steps);
        let minutes = elapsed.as_secs_f64() / 60.0;
        by_steps || (self.checkpoint_minutes > 0.0 && minutes >= self.checkpoint_minutes)
    }
}

/// A recipe that cannot be used: one line with source, field and problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {field}{}{problem}", if field.is_empty() { "" } else { ": " })]
pub struct RecipeError {
    /// File or built-in name.
    pub origin: String,
    /// Dotted path of the field, empty when there is none.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Recipe {
    /// Reads a built-in recipe by name or a file by path, and applies `key.path=value` settings.
    ///
    /// # Errors
    /// If there is no such recipe, it is no TOML, a key is unknown, missing or of the wrong type,
    /// or values contradict each other.
    pub fn load(name_or_path: &str, settings: &[String]) -> Result<Self, RecipeError> {
        let fail = |field: &str, problem: String| RecipeError {
            origin: name_or_path.into(),
            field: field.into(),
            problem,
        };
        let text = match BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(name_or_path).map_err(|error| {
                let known = BUILT_IN.map(|(name, _)| name).join(", ");
                fail(
                    "",
                    format!(
                        "no built-in recipe of that name ({known}) and no readable file: {error}"
                    ),
                )
            })?,
        };
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            fail("", format!("line {line}: {}", one_line(error.message())))
        })?;
        for setting in settings {
            set(&mut table, setting).map_err(|(field, problem)| RecipeError {
                origin: format!("--set {setting}"),
                field,
                problem,
            })?;
        }
        Self::from_table(table).map_err(|(field, problem)| fail(&field, problem))
    }

    fn from_table(table: toml::Table) -> Result<Self, (String, String)> {
        let value = toml::Value::Table(table);
        if let Some((field, value)) = not_finite("", &value) {
            return Err((field, format!("{value} is no finite number")));
        }
        let recipe: Self = serde_path_to_error::deserialize(value.clone())
            .map_err(|error| (error.path().to_string(), one_line(error.inner().message())))?;
        // A key too many in a tagged table whose kind has no fields is not seen by serde.
        let ours = toml::Value::try_from(&recipe).expect("plain values");
        if let Some(field) = unknown_key("", &value, &ours) {
            return Err((field, "unknown key".into()));
        }
        validate(&recipe)?;
        Ok(recipe)
    }

    /// The backbone's full configuration for a number of classes.
    pub fn backbone_config(&self, classes: usize) -> BackboneConfig {
        let BackboneRecipe {
            depth,
            width,
            heads,
            mlp_ratio,
            shared_adaln,
            qk_l2_norm,
            positions,
            init: _,
            precision: _,
            schedule: _,
        } = self.backbone;
        BackboneConfig {
            depth,
            width,
            heads,
            mlp_ratio,
            classes,
            codebook_size: self.tokenizer.model.codebook_size,
            codebook_dim: self.tokenizer.model.codebook_dim,
            shared_adaln,
            qk_l2_norm,
            positions: match positions {
                PositionsRecipe::Grid { side } => PositionsConfig::Grid { side },
                PositionsRecipe::PerToken {} => {
                    PositionsConfig::PerToken { scales: self.scales().clone() }
                }
            },
        }
    }

    /// The schedule of sampling and evaluation.
    pub fn scales(&self) -> &ScaleSchedule {
        self.backbone.schedule.fixed()
    }

    /// The recipe as TOML, complete and readable by [`Recipe::load`].
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("recipes are tables of plain values")
    }

    /// Steps of the control: as many teacher-forced passes as SAR makes.
    pub fn control_steps(&self) -> u64 {
        let passes = self.sar.objective.passes(self.scales());
        (self.sar.steps as f64 * passes).round() as u64
    }

    /// Names what decides a cached latent beside the tokenizer's weights and the images: CRC-32, in
    /// hexadecimal.
    pub(crate) fn latent_settings_checksum(&self) -> String {
        let Self { seed, data, latents, .. } = self;
        let latents = match latents {
            Latents::Online {} => None,
            // Where they lie decides nothing.
            Latents::Cached { folder: _, variants, precision } => Some((variants, precision)),
        };
        let text = serde_json::to_string(&(seed, data, latents)).expect("plain values");
        format!("{:08x}", crc32fast::hash(text.as_bytes()))
    }

    /// Checks that this recipe is that of a run that it is to resume.
    ///
    /// # Errors
    /// [`TrainError::RecipeChanged`] with the first field that differs.
    pub(crate) fn check_same_as(&self, theirs: &Self, path: &Path) -> Result<(), TrainError> {
        let table = |recipe: &Self| toml::Value::try_from(recipe).expect("plain values");
        match first_difference("", &table(theirs), &table(self)) {
            None => Ok(()),
            Some((field, theirs, ours)) => {
                Err(TrainError::RecipeChanged { path: path.into(), field, theirs, ours })
            }
        }
    }
}

/// The first float that is none, and its path.
fn not_finite(path: &str, value: &toml::Value) -> Option<(String, f64)> {
    match value {
        toml::Value::Float(x) if !x.is_finite() => Some((path.to_owned(), *x)),
        toml::Value::Table(table) => {
            table.iter().find_map(|(key, value)| not_finite(&below(path, key), value))
        }
        toml::Value::Array(values) => values.iter().find_map(|value| not_finite(path, value)),
        _ => None,
    }
}

/// The first key of `theirs` that `ours` has not, and its path.
fn unknown_key(path: &str, theirs: &toml::Value, ours: &toml::Value) -> Option<String> {
    match (theirs, ours) {
        (toml::Value::Table(theirs), toml::Value::Table(ours)) => {
            theirs.iter().find_map(|(key, value)| {
                let path = below(path, key);
                match ours.get(key) {
                    Some(ours) => unknown_key(&path, value, ours),
                    None => Some(path),
                }
            })
        }
        (toml::Value::Array(theirs), toml::Value::Array(ours)) => {
            theirs.iter().zip(ours).enumerate().find_map(|(i, (theirs, ours))| {
                unknown_key(&below(path, &i.to_string()), theirs, ours)
            })
        }
        _ => None,
    }
}

/// The path of a key below another.
fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The first field, in the order of names, whose values differ: its path and both values.
fn first_difference(
    path: &str,
    theirs: &toml::Value,
    ours: &toml::Value,
) -> Option<(String, String, String)> {
    let (toml::Value::Table(a), toml::Value::Table(b)) = (theirs, ours) else {
        return (theirs != ours).then(|| (path.to_owned(), theirs.to_string(), ours.to_string()));
    };
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let at = below(path, key);
        match (a.get(key), b.get(key)) {
            (Some(theirs), Some(ours)) => first_difference(&at, theirs, ours),
            (theirs, ours) => {
                let text =
                    |v: Option<&toml::Value>| v.map_or("nothing".into(), ToString::to_string);
                Some((at, text(theirs), text(ours)))
            }
        }
    })
}

/// Applies one `key.path=value`; the value is TOML, or else a string.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), (String, String)> {
    let Some((path, text)) = setting.split_once('=') else {
        return Err((String::new(), "write it as key.path=value".into()));
    };
    let (path, text) = (path.trim(), text.trim());
    let value = format!("value = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.into()));
    let unknown = |at: &str, known: &toml::Table| {
        let nearest = known
            .keys()
            .map(|key| (strsim::jaro_winkler(key, at), key))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(String::new(), |(_, key)| format!("; nearest: {key}"));
        (path.to_owned(), format!("no such key '{at}'{nearest}"))
    };
    let mut keys = path.split('.').peekable();
    let mut here = table;
    while let Some(key) = keys.next() {
        if keys.peek().is_none() {
            // A tagged table (`kind = ...`) may gain keys when its kind changes.
            if !here.contains_key(key) && !here.contains_key("kind") && !here.contains_key("rule") {
                return Err(unknown(key, here));
            }
            let value = match (here.get(key), value) {
                // `1_2_3` is text where text stands, though TOML reads an integer.
                (Some(toml::Value::String(_)), value)
                    if !value.is_str() && !value.is_table() && !value.is_array() =>
                {
                    toml::Value::String(text.into())
                }
                // An integer where a decimal stands is meant as one.
                (Some(toml::Value::Float(_)), toml::Value::Integer(i)) => {
                    toml::Value::Float(i as f64)
                }
                (_, value) => value,
            };
            here.insert(key.to_owned(), value);
            return Ok(());
        }
        if !here.contains_key(key) {
            return Err(unknown(key, here));
        }
        here = match here.get_mut(key) {
            Some(toml::Value::Table(inner)) => inner,
            _ => return Err((path.to_owned(), format!("'{key}' is a value, not a table"))),
        };
    }
    Err((path.to_owned(), "empty key".into()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(settings: &[&str]) -> String {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Recipe::load("emoji-quick", &settings).unwrap_err().to_string()
    }

    #[test]
    fn built_in_recipes_load_and_survive_a_round_trip() {
        for (name, _) in BUILT_IN {
            let recipe = Recipe::load(name, &[]).unwrap();
            let table = recipe.to_toml().parse().unwrap();
            assert_eq!(Recipe::from_table(table).unwrap(), recipe);
        }
    }

    #[test]
    fn published_recipes_hold_the_published_settings() {
        for (name, depth, peak) in [
            ("flexvar-d16-in256", 16, 4.7e-5),
            ("sar-d16-in256", 16, 4.7e-5),
            ("sar-d20-in256", 20, 4.2e-5),
            ("sar-d24-in256", 24, 1.0e-5),
        ] {
            let recipe = Recipe::load(name, &[]).unwrap();
            assert_eq!(recipe.backbone_config(1000), BackboneConfig::flexvar(depth), "{name}");
            assert_eq!(recipe.tokenizer.model, TokenizerConfig::flexvar(), "{name}");
            assert_eq!(recipe.backbone.init, Init::published(depth), "{name}");
            assert_eq!(recipe.backbone.schedule, TrainingSchedule::published_256px(true), "{name}");
            assert_eq!(recipe.sar.objective, Objective::released(), "{name}");
            let drop = recipe.sar.regularisation.stochastic_depth;
            assert!((drop - 0.1 * depth as f64 / 24.0).abs() < 1e-6, "{name}");
            // The rates go on from the tail of the published schedule to its end.
            let (lr, n) = (recipe.sar.optimisation.lr, recipe.sar.steps);
            assert!((lr.at(0, n) / peak - 1.0).abs() < 0.03, "{name}: {}", lr.at(0, n));
            let last = if depth == 24 { 2.4e-6 } else { 3e-5 };
            assert!((lr.at(n - 1, n) / last - 1.0).abs() < 1e-3, "{name}: {}", lr.at(n - 1, n));
        }
    }

    #[test]
    fn settings_replace_values() {
        let recipe = Recipe::load(
            "emoji-quick",
            &["tokenizer.steps=7".into(), "sar.objective.weight=2".into(), "name=mine".into()],
        )
        .unwrap();
        assert_eq!(recipe.tokenizer.steps, 7);
        assert_eq!(recipe.name, "mine");
        let Objective::Sar { weight, .. } = recipe.sar.objective else { panic!() };
        assert_eq!(weight, 2.0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |settings: &[&str], parts: &[&str]| {
            let error = error(settings);
            for part in parts {
                assert!(error.contains(part), "{settings:?}: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        };
        check(&["tokenizer.step=7"], &["tokenizer.step", "nearest: steps"]);
        check(&["tokenizer.steps=many"], &["tokenizer.steps"]);
        check(&["tokenizer.steps"], &["key.path=value"]);
        check(&["name.x=1"], &["'name' is a value"]);
        check(&["backbone.heads=5"], &["backbone.width", "heads (5)"]);
        check(&["backbone.schedule.scales=1_3_2"], &["backbone.schedule", "2 after 3"]);
        check(&["backbone.schedule.scales=1_2_9"], &["larger than the latent"]);
        check(&["data.side=30"], &["data.side", "30"]);
        check(&["teacher.optimisation.micro_batches=5"], &["micro_batches", "5"]);
        check(&["sar.objective.contrast=nothing"], &["sar.objective", "nothing"]);
        check(&["sar.objective.own={ from = 2, to = 3 }"], &["sar.objective"]);
        check(
            &["tokenizer.optimisation.lr.decay.flat=0.1"],
            &["tokenizer.optimisation.lr.decay.flat"],
        );
        check(&["teacher.init_from.path=x"], &["teacher.init_from", "path"]);
        let error = Recipe::load("no-such", &[]).unwrap_err().to_string();
        assert!(error.contains("no-such") && error.contains("emoji-quick"), "{error}");
    }

    #[test]
    fn a_file_with_an_unknown_or_missing_key_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        let good = Recipe::load("emoji-quick", &[]).unwrap().to_toml();
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Recipe::load(path.to_str().unwrap(), &[]).unwrap_err().to_string()
        };
        let error = load(&good.replace("seed =", "sede ="));
        assert!(error.contains("r.toml") && error.contains("sede"), "{error}");
        let error = load(&good.replacen("steps =", "# steps =", 1));
        assert!(error.contains("steps"), "{error}");
        let error = load("seed = = 1");
        assert!(error.contains("line 1"), "{error}");
    }
}
