//! Recipes: everything that decides a run, as one flat TOML file.
//!
//! A recipe is complete: no field has a default in code, so that the file says all. The command
//! line is a recipe plus `key.path=value` settings.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use sar_core::{ScaleSchedule, TrainingSchedule};
use sar_data::{Augmentation, ImageSource};
use sar_model::{BackboneConfig, Init, PositionsConfig};
use sar_rollout::Sampler;
use sar_tokenizer::TokenizerConfig;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::objective::{Objective, Regularisation};
use crate::step::Optimisation;

/// Recipes that come with the program.
pub const BUILT_IN: [(&str, &str); 1] =
    [("emoji-quick", include_str!("../../../assets/recipes/emoji-quick.toml"))];

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
    /// What is measured and drawn at the end.
    pub evaluation: EvaluationRecipe,
    /// What is written on the way.
    pub log: LogRecipe,
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// The embedded emoji or a folder.
    pub source: ImageSource,
    /// Side of the images, pixels.
    pub side: u32,
    /// Random changes of training images.
    pub augmentation: Augmentation,
}

/// The tokenizer and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecipe {
    /// Optimisation steps.
    pub steps: u64,
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
    /// Side of the position grid.
    pub position_grid: usize,
    /// Initialisation.
    pub init: Init,
    /// The scales of each training step; its `scales` are also those of sampling and evaluation.
    pub schedule: TrainingSchedule,
}

/// A stage that trains the backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneStage {
    /// Optimisation steps.
    pub steps: u64,
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
}

impl LogRecipe {
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
        let recipe: Self = serde_path_to_error::deserialize(toml::Value::Table(table))
            .map_err(|error| (error.path().to_string(), one_line(error.inner().message())))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Checks what types cannot: values that contradict each other.
    fn validate(&self) -> Result<(), (String, String)> {
        let check = |ok: bool, field: &str, problem: &str| {
            if ok { Ok(()) } else { Err((field.to_owned(), problem.to_owned())) }
        };
        let plain = !self.name.is_empty()
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !self.name.starts_with('.');
        check(plain, "name", "use letters, digits, '-', '_' and '.': it names a folder")?;
        self.tokenizer
            .model
            .validate()
            .map_err(|e| (format!("tokenizer.model.{}", e.field), e.problem))?;
        self.backbone_config(1)
            .validate()
            .map_err(|e| (format!("backbone.{}", e.field), e.problem))?;
        self.backbone
            .schedule
            .validate()
            .map_err(|problem| ("backbone.schedule".into(), problem))?;

        let downsampling = self.tokenizer.model.downsampling();
        let side = self.data.side as usize;
        let latent = side / downsampling;
        check(
            side > 0 && side.is_multiple_of(downsampling),
            "data.side",
            &format!("{side} px is not a multiple of the tokenizer's downsampling, {downsampling}"),
        )?;
        let last = self.backbone.schedule.fixed().last();
        check(
            last.height <= latent && last.width <= latent,
            "backbone.schedule.scales",
            &format!(
                "the last scale {last} is larger than the latent, {latent}x{latent} for {side} px"
            ),
        )?;
        let stages = [
            ("tokenizer", self.tokenizer.steps, &self.tokenizer.optimisation),
            ("teacher", self.teacher.steps, &self.teacher.optimisation),
            ("sar", self.sar.steps, &self.sar.optimisation),
        ];
        for (stage, steps, optimisation) in stages {
            check(steps > 0, &format!("{stage}.steps"), "must be at least 1")?;
            let field = |name: &str| format!("{stage}.optimisation.{name}");
            check(optimisation.batch > 0, &field("batch"), "must be at least 1")?;
            let micro = optimisation.micro_batches;
            check(
                micro > 0 && optimisation.batch.is_multiple_of(micro),
                &field("micro_batches"),
                &format!("{micro} does not divide the batch of {}", optimisation.batch),
            )?;
            let lr = optimisation.lr;
            check(lr.peak.is_finite() && lr.peak > 0.0, &field("lr.peak"), "must be positive")?;
            check(
                lr.end > 0.0 && lr.end <= 1.0,
                &field("lr.end"),
                "is a share of the peak in (0, 1]",
            )?;
            check(optimisation.clip >= 0.0, &field("clip"), "must not be negative")?;
            for (name, beta) in
                [("beta1", optimisation.adamw.beta1), ("beta2", optimisation.adamw.beta2)]
            {
                check(
                    (0.0..1.0).contains(&beta),
                    &field(&format!("adamw.{name}")),
                    "must be in [0, 1)",
                )?;
            }
        }
        for (stage, r) in
            [("teacher", self.teacher.regularisation), ("sar", self.sar.regularisation)]
        {
            for (name, value) in [
                ("condition_dropout", r.condition_dropout),
                ("stochastic_depth", r.stochastic_depth),
                ("label_smoothing", r.label_smoothing),
            ] {
                let field = format!("{stage}.regularisation.{name}");
                check((0.0..1.0).contains(&value), &field, "must be in [0, 1)")?;
            }
        }
        check(self.log.every > 0, "log.every", "must be at least 1")?;
        check(
            self.log.checkpoint_minutes >= 0.0,
            "log.checkpoint_minutes",
            "must not be negative",
        )?;
        check(self.evaluation.bootstrap >= 100, "evaluation.bootstrap", "needs at least 100")?;
        check(
            self.evaluation.samples_per_class > 0,
            "evaluation.samples_per_class",
            "must be at least 1",
        )?;
        check(
            self.evaluation.reconstructions > 0,
            "evaluation.reconstructions",
            "must be at least 1",
        )
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
            position_grid,
            init: _,
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
            positions: PositionsConfig::Grid { side: position_grid },
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
        let scales = self.scales();
        let passes = self.sar.objective.passes(scales.n_tokens(), scales.last().tokens());
        (self.sar.steps as f64 * passes).round() as u64
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
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
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
                (Some(toml::Value::String(_)), value) if !value.is_str() => {
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
