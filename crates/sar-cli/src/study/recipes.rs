//! The recipes of a study: that of the start, and that of each arm and seed.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sar_train::recipe::InitFrom;
use sar_train::{Recipe, StageId};

use super::file::{Arm, Origin, START, Start, Study};

/// What an arm may not set, as it is the study's to say: what makes its steps cost as much, its images the
/// same and its figures comparable.
const SET_BY_STUDY: [&str; 14] = [
    "name",
    "seed",
    "data",
    "latents",
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

/// What an arm may not set beside that, by what it begins with. A backbone that begins at random may have scales of
/// its own.
fn set_by_study(from: Origin) -> &'static [&'static str] {
    match from {
        Origin::Start => {
            &["backbone.schedule", "tokenizer.steps", "tokenizer.init_from", "pretrain.steps"]
        }
        Origin::Scratch => &["tokenizer.steps", "tokenizer.init_from"],
        Origin::Images => &["tokenizer.init_from"],
    }
}

/// What does nothing in an arm, as it is of a stage that the arm has not, and what to do about it.
fn idle(from: Origin) -> &'static [(&'static str, &'static str)] {
    const TOKENIZER: (&str, &str) = (
        StageId::Tokenizer.name(),
        "the arm has the start's tokenizer; leave it out, or write from = \"images\"",
    );
    const PRETRAIN: (&str, &str) = (
        StageId::Pretrain.name(),
        "the start has been pre-trained; leave it out, set sar.*, or write from = \"scratch\"",
    );
    const SAR: (&str, &str) = (
        StageId::Sar.name(),
        "the arm ends with pre-training; leave it out, set pretrain.*, or write from = \"start\"",
    );
    match from {
        Origin::Start => &[
            TOKENIZER,
            PRETRAIN,
            (
                "backbone.init",
                "the arm has the start's weights; leave it out, or write from = \"scratch\"",
            ),
        ],
        Origin::Scratch => &[TOKENIZER, SAR],
        Origin::Images => &[SAR],
    }
}

/// What describes given weights, and has to be theirs.
const OF_GIVEN_WEIGHTS: &str = "tokenizer.model";

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
        let recipe = self.recipe_with(arm, &arm.set, seed, start)?;
        self.check_effects(arm, &recipe, |set| self.recipe_with(arm, set, seed, start))?;
        if arm.from != Origin::Start {
            let [theirs, ours] = [&self.start_recipe()?, &recipe].map(|of| of.scales().last());
            ensure!(
                ours == theirs,
                "backbone.schedule: ends at {ours}, that of the start at {theirs}; end where it does, or samples \
                 are of another size"
            );
        }
        Ok(recipe)
    }

    /// The recipe of an arm with some settings.
    fn recipe_with(&self, arm: &Arm, set: &[String], seed: u64, start: &Path) -> Result<Recipe> {
        let [tokenizer, backbone] =
            [StageId::Tokenizer, StageId::Pretrain].map(|stage| start.join(stage.weights_file()));
        let mut settings = [self.set.as_slice(), set].concat();
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
            let key = key_of(setting);
            for field in SET_BY_STUDY.iter().chain(set_by_study(arm.from)) {
                // A table around the field may leave it as it is.
                let sets = is_below(key, field)
                    || (is_below(field, key) && self.changes(field, setting)?);
                let hint = match *field {
                    "sar.steps" => "; write steps = N beside its settings",
                    "backbone.schedule" => ", but for arms with from = \"scratch\" or \"images\"",
                    _ => "",
                };
                ensure!(!sets, "{setting}: {field} is for the study to set{hint}");
            }
        }
        Ok(())
    }

    /// Checks that none of an arm's settings is of a stage that the arm has not: it would be its control under
    /// another name. `recipe_with` gives the arm's recipe with other settings.
    fn check_effects(
        &self,
        arm: &Arm,
        recipe: &Recipe,
        recipe_with: impl Fn(&[String]) -> Result<Recipe>,
    ) -> Result<()> {
        for (i, setting) in arm.set.iter().enumerate() {
            let key = key_of(setting);
            for (field, why) in idle(arm.from) {
                let touches = is_below(key, field) || is_below(field, key);
                if !touches || is_below(key, OF_GIVEN_WEIGHTS) {
                    continue;
                }
                let mut others = arm.set.clone();
                others.remove(i);
                // What a recipe is not valid without has to stand there.
                let Ok(without) = recipe_with(&others) else { continue };
                let does_nothing = part(&without, field)? == part(recipe, field)?;
                ensure!(does_nothing, "{setting}: has no effect: {why}");
            }
        }
        Ok(())
    }

    /// Whether a setting changes a field of what is common to all arms.
    fn changes(&self, field: &str, setting: &str) -> Result<bool> {
        let value = |more: &[String]| -> Result<Option<toml::Value>> {
            let settings = [self.set.as_slice(), more].concat();
            part(&Recipe::load(&self.recipe, &settings)?, field)
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

/// What a setting sets.
fn key_of(setting: &str) -> &str {
    setting.split('=').next().unwrap_or_default().trim()
}

/// Whether a key is a field or lies in it.
fn is_below(key: &str, field: &str) -> bool {
    key.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A field of a recipe; of the tokenizer without what describes given weights.
fn part(recipe: &Recipe, field: &str) -> Result<Option<toml::Value>> {
    let table = toml::Value::try_from(recipe)?;
    let mut part = field.split('.').try_fold(&table, |table, key| table.get(key)).cloned();
    if let Some(inside) = OF_GIVEN_WEIGHTS.strip_prefix(field).and_then(|it| it.strip_prefix('.'))
        && let Some(toml::Value::Table(table)) = &mut part
    {
        table.remove(inside);
    }
    Ok(part)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::file::tests::{SMALL, load, refuses};

    /// `SMALL` with other settings of an arm.
    fn with_settings(arm: &str, settings: &str) -> String {
        let known = match arm {
            "sar-soft" => "[\"sar.objective.weight=0.2\"]",
            "scratch-control" => "from = \"scratch\"\nset = []",
            "scratch-wide" => "[\"backbone.width=96\"]",
            _ => panic!("{arm}"),
        };
        assert!(SMALL.contains(known), "{known}");
        SMALL.replacen(known, &known.replacen(&known[known.find('[').unwrap()..], settings, 1), 1)
    }

    #[test]
    fn settings_without_effect_are_refused() {
        let from = |origin: &str| format!("write from = \"{origin}\"");
        let noise = "regularization.context_noise={ max_share = 0.3, nearest = 0 }";
        let [of_sar, of_pretraining] = ["sar", "pretrain"].map(|stage| format!("{stage}.{noise}"));
        let cases: [(&str, &str, String); 10] = [
            ("scratch-control", "sar.objective.weight=0.2", from("start")),
            ("scratch-control", r#"sar.objective={ kind = "teacher-forcing" }"#, from("start")),
            ("scratch-control", &of_sar, "set pretrain.*".into()),
            ("scratch-control", "tokenizer.regularization.perturbation.share=0.2", from("images")),
            ("scratch-wide", "sar.weight_schedule.end=0.0", from("start")),
            ("sar-soft", "tokenizer.regularization.perturbation.share=0.2", from("images")),
            ("sar-soft", "tokenizer.loss.l1=0.5", from("images")),
            ("sar-soft", &of_pretraining, "set sar.*".into()),
            ("sar-soft", "pretrain.optimization.lr.peak=1e-2", from("scratch")),
            ("sar-soft", "backbone.init.adaln_gamma=1e-2", from("scratch")),
        ];
        for (arm, setting, what_to_do) in cases {
            // Also behind a setting that has an effect.
            for before in ["", "\"backbone.precision=f32\", "] {
                let text = with_settings(arm, &format!("[{before}'{setting}']"));
                let error = format!("{:#}", load(&text).unwrap_err());
                let starts = format!("s.toml: arm '{arm}': {setting}: has no effect: ");
                assert!(error.contains(&starts), "{starts} is not in: {error}");
                assert!(error.contains(&what_to_do) && !error.contains('\n'), "{error}");
            }
        }
        // What changes nothing does no harm, what describes given weights has to be right, and some settings are
        // needed for others.
        let known = "quantizer_dropout = 0.0, perturbation = { share = 0.1, nearest = 16 }";
        let known = format!("tokenizer.regularization={{ {known} }}");
        let cases: [(&str, &str); 5] = [
            ("sar-soft", &known),
            ("sar-soft", "tokenizer.model.codebook_size=256"),
            ("scratch-control", "sar.objective.weight=0.1"),
            ("scratch-control", &of_pretraining),
            ("scratch-wide", "tokenizer.regularization.perturbation.share=0.2"),
        ];
        for (arm, setting) in cases {
            load(&with_settings(arm, &format!("['{setting}']"))).unwrap();
        }
        let weighted = |scales: &str| {
            let set = "set = [\"pretrain.steps=50\", 'sar.regularization.reduction={ scales = [1.0, 1.0, 1.0, 1.0, \
                       1.0, 1.0] }']";
            let settings = format!("[\"backbone.schedule.scales=1_2_3_5_8\"{scales}]");
            let text = with_settings("scratch-wide", &settings);
            load(&text.replacen("set = [\"pretrain.steps=50\"]", set, 1))
        };
        weighted(", 'sar.regularization.reduction=mean-tokens'").unwrap();
        assert!(
            format!("{:#}", weighted("").unwrap_err()).contains("sar.regularization.reduction")
        );
    }

    #[test]
    fn an_arm_that_does_not_begin_with_the_start_may_have_scales_of_its_own() {
        let (own, common) = ("1_2_3_5_8", "1_2_3_4_6_8");
        for (arm, expected) in [("scratch-wide", [own, common]), ("scratch-control", [common, own])]
        {
            let study = load(&with_settings(arm, "[\"backbone.schedule.scales=1_2_3_5_8\"]"));
            let study = study.unwrap();
            let scales = |name: &str| {
                let recipe = study.recipe(study.arm(name).unwrap(), 1, Path::new("")).unwrap();
                recipe.scales().to_string()
            };
            assert_eq!(["scratch-wide", "scratch-control"].map(scales), expected);
        }
        let wide = "backbone.width=96";
        let parts = ["'scratch-wide'", "backbone.schedule", "ends at 4", "the start at 8"];
        refuses([wide, "backbone.schedule.scales=1_2_4"], &parts);
        let text = with_settings("sar-soft", "[\"backbone.schedule.scales=1_2_3_5_8\"]");
        let error = format!("{:#}", load(&text).unwrap_err());
        assert!(error.contains("from = \"scratch\" or \"images\""), "{error}");
    }
}
