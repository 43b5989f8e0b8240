//! Recipes: everything that decides a run, as one flat TOML file.
//!
//! A recipe is complete: no field has a default in code, so that the file says all. The command
//! line is a recipe plus `key.path=value` settings.

mod fields;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sar_core::{ScaleSchedule, TrainingSchedule};
use sar_data::DataRecipe;
use sar_model::{BackboneConfig, BackboneShape, Init, PositionsConfig, Precision};
pub use sar_recipes::BUILT_IN;
use sar_rollout::Sampler;
use sar_weights::Crc32;
use serde::{Deserialize, Serialize};

use self::fields::{first_difference, forget, not_finite, set, unknown_key};
pub use self::tokenizer::{
    Adversary, Colors, DeadCodeRestart, Perceptual, TokenizerLoss, TokenizerRecipe,
    TokenizerRegularization,
};
use crate::latents::Latents;
use crate::learner::Optimization;
use crate::objective::{BackboneMeasure, Objective, Regularization};
use crate::schedule::Ramp;
use crate::validate::validate;
use crate::wire::ExchangeRecipe;
use crate::{StageId, TrainError};

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
    /// Shape and initialization of the backbone.
    pub backbone: BackboneRecipe,
    /// Second stage: teacher forcing.
    pub pretrain: PretrainRecipe,
    /// Third stage: SAR from the pre-trained weights.
    pub sar: SarRecipe,
    /// Whether the backbone stages encode images or read latents that were encoded before.
    pub latents: Latents,
    /// What ranks that train together give each other; it counts on one rank, too.
    pub exchange: ExchangeRecipe,
    /// What is measured and drawn at the end.
    pub evaluation: EvaluationRecipe,
    /// What is written on the way.
    pub log: LogRecipe,
}

/// The weights that a stage starts from. Resuming a run is another thing: it goes on with weights,
/// optimizer and step of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum InitFrom {
    /// Random weights.
    Scratch {},
    /// The weights of a file in the released names, `.pth` or safetensors.
    Weights {
        /// The file; a relative path starts at the working directory.
        path: PathBuf,
        /// What the file puts in front of the model's names, where it holds several models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        root: Option<String>,
        /// What of a backbone may be made anew where the file's does not fit.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        adapt: Vec<Adapt>,
    },
}

/// A part of a backbone that may be made anew, to fine-tune weights on other data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Adapt {
    /// The class embedding, for other classes; those of the same name are kept.
    Classes,
    /// The input embedding and the head, for another codebook.
    Codes,
}

/// Which weights a stage ends with: the next stage starts from them, the samples show them, and the file
/// that has the stage's name holds them. The others are written beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Output {
    /// Those after the last step.
    Last,
    /// Those of the checkpoint that measured best on held-out images.
    Best,
    /// Their average over the steps.
    Average,
    /// The same of a tokenizer, but for its codebook, which is that of the last step: a code that got a new
    /// place would be averaged with the place that it left.
    AverageButCodebook,
}

/// The backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneRecipe {
    /// Shape of the transformer.
    #[serde(flatten)]
    pub shape: BackboneShape,
    /// Where positions come from.
    pub positions: PositionsRecipe,
    /// Initialization.
    pub init: Init,
    /// Type of the matrix products in training; evaluation is in single precision.
    pub precision: Precision,
    /// The scales of each training step; its `scales` are also those of sampling and evaluation.
    pub schedule: TrainingSchedule,
}

/// Where a backbone's positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PositionsRecipe {
    /// A learned grid, resampled to every scale (FlexVAR).
    Grid {
        /// Its side (published: 32).
        side: usize,
    },
    /// One for every token of the schedule, which then is the only one that can be sampled (VAR).
    PerToken {},
}

/// Teacher forcing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Optimization steps; 0 keeps the weights that it starts from.
    pub steps: u64,
    /// The weights that it starts from.
    pub init_from: InitFrom,
    /// What decides which of its checkpoints is the best.
    pub monitor: BackboneMeasure,
    /// The weights that it ends with.
    pub output: Output,
    /// Optimization.
    pub optimization: Optimization,
    /// Regularization.
    pub regularization: Regularization,
}

/// The SAR stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SarRecipe {
    /// Optimization steps; 0: the run ends with the pre-trained weights.
    pub steps: u64,
    /// What decides which of its checkpoints is the best.
    pub monitor: BackboneMeasure,
    /// The weights that it, and its control, end with.
    pub output: Output,
    /// What is optimized.
    pub objective: Objective,
    /// How the weight of the student term changes over the stage.
    pub weight_schedule: Ramp,
    /// Whether teacher forcing for the same number of passes runs from the same weights, as the
    /// control that SAR is compared with.
    pub control: bool,
    /// Optimization; the learning rates are stated here and nowhere derived.
    pub optimization: Optimization,
    /// Regularization.
    pub regularization: Regularization,
}

/// Evaluation and pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationRecipe {
    /// Held-out images that the figures are of, from all over the split; 0: all of them.
    pub images: usize,
    /// Images at a time when nothing is trained: figures, samples, cached latents. It decides how much
    /// memory these take, and nothing else.
    pub batch_size: usize,
    /// Images per class in the sample grids.
    pub samples_per_class: usize,
    /// How they are sampled, and those that are measured.
    pub sampler: Sampler,
    /// What samples are measured for, before SAR, after it and with the control's weights.
    pub quality: SampleQuality,
    /// Images in the reconstruction grid.
    pub reconstructions: usize,
    /// Resamplings of the bootstrap intervals.
    pub bootstrap: usize,
}

/// Samples beside the recipe's images, as a network sees both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum SampleQuality {
    /// Not measured.
    None {},
    /// By EfficientNet-Lite0: Fréchet and kernel distance, and how often a probe names the class that was asked for.
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0 {
        /// Samples per class, 2 or more.
        per_class: usize,
        /// How often they are drawn anew: intervals are over these.
        seeds: usize,
    },
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
    /// The newest checkpoints of a stage that are kept, beside the best. Where one alone is kept and damaged, its
    /// stage begins anew.
    pub checkpoints_kept: usize,
    /// Steps between measurements on held-out images, each with a sheet of what the weights make and with a
    /// checkpoint, the best of which is kept; 0 never measures.
    pub measure_steps: u64,
    /// Held-out images that such a measurement takes, from all over the split.
    pub measure_images: usize,
    /// Writes TensorBoard's event files, too, into the folder `tensorboard`.
    pub tensorboard: bool,
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
#[non_exhaustive]
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
        let text = match BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(name_or_path).map_err(|error| {
                let known = BUILT_IN.map(|(name, _)| name).join(", ");
                RecipeError {
                    origin: name_or_path.into(),
                    field: String::new(),
                    problem: format!(
                        "no built-in recipe of that name ({known}) and no readable file: {error}"
                    ),
                }
            })?,
        };
        Self::parse(name_or_path, &text, settings)
    }

    /// Reads the text of a recipe, which errors call by a name, and applies `key.path=value` settings.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(name: &str, text: &str, settings: &[String]) -> Result<Self, RecipeError> {
        let fail = |field: &str, problem: String| RecipeError {
            origin: name.into(),
            field: field.into(),
            problem,
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
        let BackboneRecipe { shape, positions, .. } = self.backbone;
        BackboneConfig {
            shape,
            classes,
            codebook_size: self.tokenizer.model.codebook_size,
            codebook_dim: self.tokenizer.model.codebook_dim,
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

    /// Steps of a stage.
    pub fn steps(&self, stage: StageId) -> u64 {
        match stage {
            StageId::Tokenizer => self.tokenizer.steps,
            StageId::Pretrain => self.pretrain.steps,
            StageId::Sar => self.sar.steps,
            StageId::Control if self.sar.control => self.control_steps(),
            StageId::Control => 0,
        }
    }

    /// How a stage is optimized.
    pub fn optimization(&self, stage: StageId) -> &Optimization {
        match stage {
            StageId::Tokenizer => &self.tokenizer.optimization,
            StageId::Pretrain => &self.pretrain.optimization,
            StageId::Sar | StageId::Control => &self.sar.optimization,
        }
    }

    /// The weights that a stage ends with.
    pub fn output(&self, stage: StageId) -> Output {
        match stage {
            StageId::Tokenizer => self.tokenizer.output,
            StageId::Pretrain => self.pretrain.output,
            StageId::Sar | StageId::Control => self.sar.output,
        }
    }

    /// Steps of the control: as many teacher-forced passes as SAR makes.
    pub fn control_steps(&self) -> u64 {
        let passes = self.sar.objective.passes(self.scales());
        (self.sar.steps as f64 * passes).round() as u64
    }

    /// Names what decides a cached latent beside the tokenizer's weights and the images: CRC-32, in
    /// hexadecimal.
    pub(crate) fn latent_settings_checksum(&self) -> String {
        let mut table = toml::Value::try_from(self).expect("plain values");
        // Where images and latents lie decides nothing.
        MAY_CHANGE.iter().chain(&["latents.folder"]).for_each(|field| forget(&mut table, field));
        let text = ["seed", "data", "latents"].map(|part| table[part].to_string()).join("\n");
        Crc32::of(text.as_bytes()).to_string()
    }

    /// Checks that this recipe is that of a run that it is to resume, but for [`MAY_CHANGE`].
    ///
    /// # Errors
    /// [`TrainError::RecipeChanged`] with the first field that differs.
    pub(crate) fn check_resumes(&self, theirs: &Self, path: &Path) -> Result<(), TrainError> {
        match self.difference(theirs) {
            None => Ok(()),
            Some((field, theirs, ours)) => {
                Err(TrainError::RecipeChanged { path: path.into(), field, theirs, ours })
            }
        }
    }

    /// The first field in which another recipe makes other results, its value there and its value here.
    pub fn difference(&self, theirs: &Self) -> Option<(String, String, String)> {
        let table = |recipe: &Self| {
            let mut table = toml::Value::try_from(recipe).expect("plain values");
            MAY_CHANGE.iter().for_each(|field| forget(&mut table, field));
            table
        };
        first_difference("", &table(theirs), &table(self))
    }
}

/// What may change when a run is resumed, as it changes no result: where the images lie (that they are
/// the same is checked by their fingerprint), how many of them may be unreadable, how much is done at a
/// time when nothing is trained, when checkpoints are written, and how many are kept.
const MAY_CHANGE: [&str; 10] = [
    "data.source.path",
    "data.source.root",
    "data.source.shards",
    "data.source.held_out.path",
    "data.max_unreadable",
    "evaluation.batch_size",
    "log.checkpoint_steps",
    "log.checkpoint_minutes",
    "log.checkpoints_kept",
    "log.tensorboard",
];

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use sar_tokenizer::TokenizerConfig;

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
            ("flexvar-tokenizer-in256", 16, 4.7e-5),
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
            let drop = recipe.sar.regularization.drop_path_rate;
            assert!((drop - 0.1 * depth as f64 / 24.0).abs() < 1e-6, "{name}");
            // The rates go on from the tail of the published schedule to its end.
            let (lr, n) = (recipe.sar.optimization.lr, recipe.sar.steps);
            assert!((lr.at(0, n) / peak - 1.0).abs() < 0.03, "{name}: {}", lr.at(0, n));
            let last = if depth == 24 { 2.4e-6 } else { 3e-5 };
            assert!((lr.at(n - 1, n) / last - 1.0).abs() < 1e-3, "{name}: {}", lr.at(n - 1, n));
        }
    }

    #[test]
    fn recipes_of_var_hold_the_published_settings() {
        for name in ["var-tokenizer-in256", "var-d16-in256"] {
            let recipe = Recipe::load(name, &[]).unwrap();
            let scales = ScaleSchedule::preset("256px").unwrap();
            assert_eq!(recipe.backbone_config(1000), BackboneConfig::var(16, scales), "{name}");
            assert_eq!(recipe.tokenizer.model, TokenizerConfig::var(), "{name}");
            assert_eq!(recipe.backbone.init, Init::published(16), "{name}");
            let PretrainRecipe { steps, optimization, regularization, .. } = recipe.pretrain;
            // 200 epochs of 1281167 images, of which four are the warm-up.
            assert_eq!((steps, optimization.batch_size), (200 * (1281167 / 768), 768), "{name}");
            let rates = [0, steps / 50, steps - 1].map(|step| optimization.lr.at(step, steps));
            for (rate, expected) in rates.into_iter().zip([1.5e-6, 3e-4, 3e-5]) {
                assert!((rate / expected - 1.0).abs() < 1e-6, "{name}: {rate}");
            }
            assert!((regularization.drop_path_rate - 0.1 * 16.0 / 24.0).abs() < 1e-6, "{name}");
        }
    }

    #[test]
    fn recipes_of_tokenizers_hold_the_published_settings() {
        let of = |name| Recipe::load(name, &[]).unwrap().tokenizer;
        let perceptual = Perceptual::Lpips {
            weight: 1.0,
            enlarge: 1,
            vgg: "released/vgg16-397923af.pth".into(),
            channel_weights: "released/lpips-vgg.pth".into(),
        };
        // Of so many of ImageNet's images, epochs and images a step.
        let steps = |epochs: u64, batch: usize| (epochs * (1_281_167 / batch as u64), batch);
        for (recipe, length, [l1, weight, start, warmup], is_adaptive) in [
            // From step 20,000 on.
            (of("flexvar-tokenizer-in256"), steps(40, 128), [0.0, 0.5, 20_000.0, 0.0], false),
            // From 22 % of the steps on, over 2 %.
            (
                of("var-tokenizer-in256"),
                steps(250, 768),
                [0.2, 0.4, 0.22 * 417e3, 0.02 * 417e3],
                true,
            ),
        ] {
            assert_eq!((recipe.steps, recipe.optimization.batch_size), length);
            let TokenizerLoss { l1: found, l2, codebook, commitment, entropy, .. } = recipe.loss;
            let found = [found, l2, codebook, commitment, entropy];
            assert_eq!(found, [l1, 1.0, 1.0, 0.25, 0.0]);
            assert_eq!(recipe.loss.perceptual, perceptual);
            assert_eq!(recipe.optimization.ema, 0.9999);
            let Adversary::Discriminator { weight: w, adaptive, start: s, warmup_steps, .. } =
                recipe.adversary
            else {
                panic!("no adversary");
            };
            assert_eq!((w, adaptive), (weight, is_adaptive));
            assert_eq!((s, warmup_steps), (start as u64, warmup as u64));
        }
    }

    #[test]
    fn weights_of_scales_and_growing_codebooks_are_taken() {
        let settings = [
            "pretrain.regularization.reduction={ scales = [3.0, 1.0, 1.0, 1.0, 1.0, 1.0] }",
            "tokenizer.model.codebook_growth={ kind = \"geometric\", first = 16, full_side = 8 }",
            "sar.weight_schedule={ warmup = 0.5, end = 0.1 }",
            "sar.regularization.context_noise={ max_share = 0.3, nearest = 32 }",
        ];
        let recipe = Recipe::load("emoji-quick", &settings.map(String::from)).unwrap();
        let table = recipe.to_toml().parse().unwrap();
        assert_eq!(Recipe::from_table(table).unwrap(), recipe);
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
        check(
            &["backbone.schedule.scales=4_8"],
            &["backbone.schedule.scales", "start at 1", "masked"],
        );
        check(&["backbone.visibility={ last = 0 }"], &["backbone.visibility", "own"]);
        let masked = "backbone.first_scale={ kind = \"masked\", share = \"cosine\", loss = \"all\", steps = 17, \
                      reveal = \"random\" }";
        check(&["backbone.schedule.scales=4_8", masked], &["backbone.first_scale.steps", "16"]);
        check(&["backbone.first_scale={ kind = \"masked\" }"], &["backbone", "share"]);
        check(&["data.side=30"], &["data.side", "30"]);
        check(&["pretrain.optimization.grad_accum_steps=5"], &["grad_accum_steps", "5"]);
        check(&["sar.objective.student_target=nothing"], &["sar.objective", "nothing"]);
        check(&["sar.objective.student_context={ from = 2, to = 3 }"], &["sar.objective"]);
        check(
            &["tokenizer.optimization.lr.decay.flat=0.1"],
            &["tokenizer.optimization.lr.decay.flat"],
        );
        check(&["pretrain.init_from.path=x"], &["pretrain.init_from", "path"]);
        let noise = |value: &str| format!("sar.regularization.context_noise.{value}");
        check(
            &[&noise("max_share=1.1")],
            &["sar.regularization.context_noise.max_share", "[0, 1]"],
        );
        check(&[&noise("nearest=513")], &["context_noise.nearest", "512"]);
        let weights =
            |list: &str| format!("pretrain.regularization.reduction={{ scales = {list} }}");
        check(&[&weights("[1.0, 2.0]")], &["reduction.scales", "2 weights", "as many scales"]);
        check(&[&weights("[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]")], &["reduction.scales", "one of them"]);
        check(&["sar.weight_schedule.warmup=1"], &["weight_schedule.warmup"]);
        check(&["sar.weight_schedule.end=-1"], &["weight_schedule.end"]);
        let growth = |first: usize, side: usize| {
            format!(
                "tokenizer.model.codebook_growth={{ kind = \"geometric\", first = {first}, full_side = {side} }}"
            )
        };
        check(&[&growth(0, 8)], &["tokenizer.model.codebook_growth.first", "1..=512"]);
        check(&[&growth(16, 1)], &["tokenizer.model.codebook_growth.full_side"]);
        check(&[&growth(16, 9)], &["codebook_growth.full_side", "last scale's side, 8"]);
        let smooth = "pretrain.regularization.label_smoothing=0.1";
        check(&[&growth(16, 8), smooth], &["pretrain.regularization.label_smoothing", "growing"]);
        check(&[&growth(16, 8), "tokenizer.loss.entropy=0.1"], &["tokenizer.loss.entropy"]);
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
