//! The recipes of a study: that of the start, and that of each arm and seed.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sar_train::Recipe;
use sar_train::recipe::InitFrom;

use super::file::{Arm, Origin, START, Start, Study};

/// What an arm may not set, as it is the study's to say: what makes its steps cost as much, its images the
/// same and its figures comparable.
const SET_BY_STUDY: [&str; 14] = [
    "name",
    "seed",
    "data",
    "backbone.schedule",
    "tokenizer.optimization.batch_size",
    "pretrain.optimization.batch_size",
    "pretrain.output",
    "pretrain.init_from",
    "sar.steps",
    "sar.control",
    "sar.optimization.batch_size",
    "sar.output",
    "evaluation",
    "log",
];

/// What an arm may not set beside that, by what it begins with.
fn set_by_study(from: Origin) -> &'static [&'static str] {
    match from {
        Origin::Start => &["tokenizer.steps", "tokenizer.init_from", "pretrain.steps"],
        Origin::Scratch => &["tokenizer.steps", "tokenizer.init_from"],
        Origin::Images => &["tokenizer.init_from"],
    }
}

/// What an arm costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) steps: u64,
    /// Of a step, in teacher-forced steps.
    pub(super) passes_a_step: f64,
}

impl Cost {
    /// Of the whole arm, its tokenizer left out.
    pub(super) fn passes(self) -> f64 {
        self.steps as f64 * self.passes_a_step
    }
}

impl Study {
    /// The recipe that makes the shared weights.
    pub(super) fn start_recipe(&self) -> Result<Recipe> {
        let mut settings = self.set.clone();
        match &self.start {
            Start::Trained { seed, set } => {
                settings.extend(set.iter().cloned());
                settings.push(format!("seed={seed}"));
            }
            Start::Files { tokenizer, backbone } => {
                settings.extend(["tokenizer.steps=0".into(), "pretrain.steps=0".into()]);
                settings.push(init_from("tokenizer", tokenizer)?);
                settings.push(init_from("pretrain", backbone)?);
            }
        }
        settings.push(format!("name={}-{START}", self.name));
        settings.extend(NO_SAR.map(String::from));
        Ok(Recipe::load(&self.recipe, &settings)?)
    }

    /// The recipe of an arm and a seed; `start` is the folder of the shared weights.
    pub(super) fn recipe(&self, arm: &Arm, seed: u64, start: &Path) -> Result<Recipe> {
        self.recipe_of(arm, seed, start).with_context(|| format!("arm '{}'", arm.name))
    }

    fn recipe_of(&self, arm: &Arm, seed: u64, start: &Path) -> Result<Recipe> {
        self.check_settings(arm)?;
        let [tokenizer, backbone] =
            ["tokenizer.safetensors", "backbone-pretrain.safetensors"].map(|name| start.join(name));
        let mut settings = [self.set.as_slice(), &arm.set].concat();
        settings.push(format!("name={}-{}", self.name, arm.name));
        settings.push(format!("seed={seed}"));
        settings.extend(NO_SAR.map(String::from));
        if arm.from != Origin::Images {
            settings.push("tokenizer.steps=0".into());
            settings.push(init_from("tokenizer", &tokenizer)?);
        }
        if arm.from != Origin::Start {
            if let Some(steps) = arm.steps {
                settings.push(format!("pretrain.steps={steps}"));
            }
            return Ok(Recipe::load(&self.recipe, &settings)?);
        }
        settings.push("pretrain.steps=0".into());
        settings.push(init_from("pretrain", &backbone)?);
        let mut recipe = Recipe::load(&self.recipe, &settings)?;
        recipe.sar.steps = arm.steps.unwrap_or_else(|| {
            let passes = recipe.sar.objective.passes(recipe.scales());
            ((self.passes as f64 / passes).round() as u64).max(1)
        });
        Ok(recipe)
    }

    /// Checks that an arm sets nothing that is not its own to set.
    fn check_settings(&self, arm: &Arm) -> Result<()> {
        for setting in &arm.set {
            let key = setting.split('=').next().unwrap_or_default().trim();
            let is_below = |key: &str, field: &str| {
                key.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            for field in SET_BY_STUDY.iter().chain(set_by_study(arm.from)) {
                // A table around the field may leave it as it is.
                let sets = is_below(key, field)
                    || (is_below(field, key) && self.changes(field, setting)?);
                let hint = match *field {
                    "sar.steps" => "; write steps = N beside its settings",
                    _ => "",
                };
                ensure!(!sets, "{setting}: {field} is for the study to set{hint}");
            }
        }
        Ok(())
    }

    /// Whether a setting changes a field of what is common to all arms.
    fn changes(&self, field: &str, setting: &str) -> Result<bool> {
        let value = |more: &[String]| -> Result<Option<toml::Value>> {
            let settings = [self.set.as_slice(), more].concat();
            let table = toml::Value::try_from(Recipe::load(&self.recipe, &settings)?)?;
            Ok(field.split('.').try_fold(&table, |table, key| table.get(key)).cloned())
        };
        Ok(value(&[])? != value(&[setting.to_owned()])?)
    }

    /// What an arm costs.
    pub(super) fn cost(&self, arm: &Arm) -> Result<Cost> {
        let recipe = self.recipe(arm, self.seeds[0], Path::new(""))?;
        Ok(match arm.from {
            Origin::Start => Cost {
                steps: recipe.sar.steps,
                passes_a_step: recipe.sar.objective.passes(recipe.scales()),
            },
            Origin::Scratch | Origin::Images => {
                Cost { steps: recipe.pretrain.steps, passes_a_step: 1.0 }
            }
        })
    }
}

/// Checks that a run, if there is one, is of a recipe as it is now; `what` it is.
pub(super) fn check_run(run: &Path, what: &str, ours: &Recipe) -> Result<()> {
    let path = run.join("recipe.toml");
    if !path.is_file() {
        return Ok(());
    }
    let mut theirs = Recipe::load(&path.to_string_lossy(), &[]).with_context(|| what.to_owned())?;
    // The whole study may have been moved; what lies there is compared where it was made.
    moved(&mut theirs.tokenizer.init_from, &ours.tokenizer.init_from);
    moved(&mut theirs.pretrain.init_from, &ours.pretrain.init_from);
    if let Some((field, theirs, ours)) = ours.difference(&theirs) {
        bail!(
            "{}: {what} was trained with {field} = {theirs}, not {ours}; give the recipe as it was, or choose another --out",
            path.display()
        );
    }
    Ok(())
}

fn moved(theirs: &mut InitFrom, ours: &InitFrom) {
    if let (InitFrom::Weights { path, .. }, InitFrom::Weights { path: ours, .. }) = (theirs, ours) {
        path.clone_from(ours);
    }
}

/// A run that ends with its pre-trained weights, and measures no samples: the study does.
const NO_SAR: [&str; 3] =
    ["sar.steps=0", "sar.control=false", "evaluation.quality={ kind = \"none\" }"];

fn init_from(stage: &str, path: &Path) -> Result<String> {
    let text = path.to_str();
    let text = text.with_context(|| format!("{}: is no Unicode path", path.display()))?;
    let path = toml::Value::String(text.into());
    Ok(format!("{stage}.init_from={{ kind = \"weights\", path = {path} }}"))
}
