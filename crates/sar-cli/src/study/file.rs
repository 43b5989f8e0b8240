//! The file of a study: what is common to its arms, in what they differ, how they are judged.
//!
//! An arm is a recipe with settings. What makes arms comparable is not theirs to set: the weights that
//! they begin with, the seed of training, the number of steps (from the passes that all of them have) and
//! the measures.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use sar_pipeline::files_of_run;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::eval::sweep::Sweep;
use crate::job::difference;

/// The name of the weights that arms begin with.
pub(super) const START: &str = "start";

/// What else lies beside the folders of the arms.
const OWN_FILES: [&str; 5] =
    ["start.code.json", "study.toml", "study.json", "report.html", "real.json"];

/// A study. No field has a default, but those of an arm that say what is otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Study {
    /// Of the report.
    pub(super) name: String,
    /// A built-in recipe or a file.
    pub(super) recipe: String,
    /// What the start and all arms set in it.
    pub(super) set: Vec<String>,
    /// Seeds of training: each arm is trained with each.
    pub(super) seeds: Vec<u64>,
    /// Teacher-forced steps that an arm from the start may cost: one that makes p passes a step has 1/p of them.
    pub(super) passes: u64,
    /// The arm that those from the start are compared with.
    pub(super) control: String,
    /// The arm that those from scratch are compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scratch_control: Option<String>,
    /// The weights that arms begin with.
    pub(super) start: Start,
    /// How arms are judged.
    pub(super) samples: Samples,
    pub(super) arms: Vec<Arm>,
}

/// How the shared weights are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Start {
    /// By the first two stages of the recipe, once.
    Trained { seed: u64, set: Vec<String> },
    /// They are there.
    Files { tokenizer: PathBuf, backbone: PathBuf },
}

/// Samples that an arm is judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Samples {
    /// Settings of the sampler, as `sar eval --sweep` takes them; each arm is measured at its best.
    pub(super) grid: String,
    /// What the best is the lowest of.
    pub(super) choose_by: Measure,
    /// The samples that it is chosen by.
    pub(super) selection: Draw,
    /// The samples that are measured.
    pub(super) measure: Draw,
}

/// What the best setting of a sampler is the lowest of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Measure {
    Kid,
    Fd,
}

impl Measure {
    /// The one of two figures that it is.
    pub(super) fn of<T>(self, kid: T, fd: T) -> T {
        match self {
            Self::Kid => kid,
            Self::Fd => fd,
        }
    }
}

/// Samples of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Draw {
    /// With the seed of training it decides the samples: the same ones for all arms of that seed.
    pub(super) seed: u64,
    /// Of each class, 2 or more.
    pub(super) per_class: usize,
}

/// One way of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arm {
    /// It names a folder, too.
    pub(super) name: String,
    /// What it begins with.
    #[serde(default)]
    pub(super) from: Origin,
    /// In what its recipe differs.
    pub(super) set: Vec<String>,
    /// Steps, where they do not follow from the passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) steps: Option<u64>,
    /// What it is compared with, if not with the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) control: Option<String>,
}

/// What an arm begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Origin {
    /// The start's weights: the arm is a SAR stage.
    #[default]
    Start,
    /// The start's tokenizer and a random backbone: the arm is the stage of pre-training.
    Scratch,
    /// Random weights: the arm is the stages of the tokenizer and of pre-training.
    Images,
}

impl Study {
    /// Reads and checks a file, with the recipes of all arms.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| name.to_string())?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            anyhow!("{name}: line {line}: {}", one_line(error.message()))
        })?;
        let study: Self = serde_path_to_error::deserialize(table).map_err(|error| {
            anyhow!("{name}: {}: {}", error.path(), one_line(error.inner().message()))
        })?;
        study.check().with_context(|| name.to_string())?;
        Ok(study)
    }

    fn check(&self) -> Result<()> {
        let Self { name, seeds, passes, control, scratch_control, samples, arms, .. } = self;
        ensure!(is_plain(name), "name: use letters, digits, '-', '_' and '.'");
        ensure!(!seeds.is_empty(), "seeds: name at least 1; intervals need 3 or so");
        let different: BTreeSet<_> = seeds.iter().collect();
        ensure!(different.len() == seeds.len(), "seeds: one of them stands there twice");
        ensure!(*passes > 0, "passes: must be at least 1");
        samples.sweep().map_err(|problem| anyhow!("samples.grid: {problem}"))?;
        for (at, draw) in [("selection", samples.selection), ("measure", samples.measure)] {
            ensure!(draw.per_class >= 2, "samples.{at}.per_class: must be at least 2");
        }
        ensure!(
            samples.selection.seed != samples.measure.seed,
            "samples: selection and measure have the same seed; what is measured has to be drawn anew"
        );
        let mut names = BTreeSet::new();
        for arm in arms {
            let name = arm.name.as_str();
            ensure!(is_plain(name), "arm '{name}': use letters, digits, '-', '_' and '.'");
            // Not all file systems tell capitals apart.
            let is_file = OWN_FILES.iter().any(|file| name.eq_ignore_ascii_case(file));
            ensure!(!is_file, "arm '{name}': is a file of the study; choose another name");
            ensure!(
                !name.eq_ignore_ascii_case(START),
                "arm '{name}': there is another of this name, the weights that arms begin with"
            );
            ensure!(names.insert(name), "arm '{name}': there is another of this name");
        }
        self.check_control("control", control, true)?;
        if let Some(control) = scratch_control {
            self.check_control("scratch_control", control, false)?;
        }
        for arm in arms {
            ensure!(
                arm.from == Origin::Start || scratch_control.is_some() || arm.control.is_some(),
                "arm '{}': is from scratch, and there is no scratch_control",
                arm.name
            );
            if let Some(control) = &arm.control {
                let field = format!("arm '{}': control", arm.name);
                ensure!(
                    *control != arm.name,
                    "{field}: is the arm itself; name another, or leave it out"
                );
                self.check_control(&field, control, arm.from == Origin::Start)?;
            }
        }
        let nowhere = Path::new("");
        self.start_recipe().context("start")?;
        for arm in arms {
            self.recipe(arm, self.seeds[0], nowhere)?;
        }
        Ok(())
    }

    fn check_control(&self, field: &str, name: &str, from_start: bool) -> Result<()> {
        let arm = self.arm(name).context(field.to_owned())?;
        let what = if from_start { "from the start" } else { "from scratch" };
        ensure!(
            (arm.from == Origin::Start) == from_start,
            "{field}: '{name}' is not {what}; name one that is"
        );
        Ok(())
    }

    /// The arm of a name.
    pub(super) fn arm(&self, name: &str) -> Result<&Arm> {
        let arm = self.arms.iter().find(|arm| arm.name == name);
        arm.with_context(|| {
            let known: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
            format!("no arm '{name}'; there are {}", known.join(", "))
        })
    }

    /// What an arm is compared with; nothing for a control itself.
    pub(super) fn control_of(&self, name: &str) -> Option<&str> {
        let arm = self.arms.iter().find(|arm| arm.name == name)?;
        let control = match (&arm.control, arm.from) {
            (Some(own), _) => Some(own.as_str()),
            (None, Origin::Start) => Some(self.control.as_str()),
            (None, Origin::Scratch | Origin::Images) => self.scratch_control.as_deref(),
        };
        control.filter(|control| *control != name)
    }

    /// Whether an arm begins with the start's weights.
    pub(super) fn begins_with_start(&self, name: &str) -> bool {
        self.arms.iter().any(|arm| arm.name == name && arm.from == Origin::Start)
    }

    /// Makes a folder that of this study: a new one, or one to go on in.
    pub(super) fn settle(&self, folder: &Path) -> Result<()> {
        let path = folder.join("study.toml");
        if path.is_file() {
            self.check_resumes(&path)?;
        } else if folder.exists() {
            let context = || folder.display().to_string();
            let mut entries = fs::read_dir(folder).with_context(context)?;
            let is_ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
            let is_used =
                entries.any(|entry| entry.is_ok_and(|entry| !is_ours(&entry.file_name())));
            ensure!(!is_used, "--out {}: holds files of no study", folder.display());
        }
        fs::create_dir_all(folder).with_context(|| format!("--out {}", folder.display()))?;
        let text = toml::to_string(self).expect("a study is TOML");
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        Ok(sar_weights::write_bytes(&path, text.as_bytes())?)
    }

    /// Checks that a folder's study is this one, which may have more arms.
    fn check_resumes(&self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let theirs: Self = toml::from_str(&text)
            .map_err(|error| anyhow!("{}: {}", path.display(), one_line(error.message())))?;
        let refuse = |field: &str, theirs: &str, ours: &str| {
            anyhow!(
                "{}: was started with {field} = {theirs}, not {ours}; give the same file, or choose another --out",
                path.display()
            )
        };
        let common = |study: &Self| -> Value {
            // What there were no arms for may be said with the first of them.
            let scratch_control =
                theirs.scratch_control.as_ref().and(study.scratch_control.clone());
            let study = Self { arms: Vec::new(), scratch_control, ..study.clone() };
            serde_json::to_value(study).expect("plain values")
        };
        if let Some((field, theirs, ours)) = difference("", &common(&theirs), &common(self)) {
            return Err(refuse(&field, &theirs, &ours));
        }
        for arm in &theirs.arms {
            let field = format!("arm '{}'", arm.name);
            let Some(ours) = self.arms.iter().find(|ours| ours.name == arm.name) else {
                return Err(refuse(&field, "one of them", "any more"));
            };
            let [theirs, ours] =
                [arm, ours].map(|arm| serde_json::to_value(arm).expect("plain values"));
            if let Some((inside, theirs, ours)) = difference("", &theirs, &ours) {
                return Err(refuse(&format!("{field}: {inside}"), &theirs, &ours));
            }
        }
        Ok(())
    }
}

impl Samples {
    /// The settings of the sampler.
    pub(super) fn sweep(&self) -> Result<Sweep, String> {
        self.grid.parse()
    }
}

/// The weights that a run has ended with, if it has.
pub(super) fn has_ended(run: &Path) -> bool {
    run.join("report.json").is_file() && files_of_run(run).is_ok()
}

/// Whether a name is fit for a folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !name.starts_with('.')
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A study of two arms from the start and two from scratch.
    pub(in crate::study) const SMALL: &str = r#"
name = "small"
recipe = "emoji-quick"
set = ["pretrain.steps=50"]
seeds = [1, 2]
passes = 100
control = "control"
scratch_control = "scratch-control"
start = { kind = "trained", seed = 0, set = ["pretrain.steps=300"] }

[samples]
grid = "guidance=2:6:2,top_p=0.3"
choose_by = "kid"
selection = { seed = 1, per_class = 10 }
measure = { seed = 2, per_class = 20 }

[[arms]]
name = "control"
set = ['sar.objective={ kind = "teacher-forcing" }']

[[arms]]
name = "sar-soft"
set = ["sar.objective.weight=0.2"]

[[arms]]
name = "scratch-control"
from = "scratch"
set = []

[[arms]]
name = "scratch-wide"
from = "images"
set = ["backbone.width=96"]
steps = 60
"#;

    pub(in crate::study) fn small() -> Study {
        load(SMALL).unwrap()
    }

    pub(in crate::study) fn load(text: &str) -> Result<Study> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        fs::write(&path, text).unwrap();
        Study::load(&path)
    }

    pub(in crate::study) fn refuses(change: [&str; 2], parts: &[&str]) {
        let [from, to] = change;
        assert!(SMALL.contains(from), "{from}");
        let error = format!("{:#}", load(&SMALL.replacen(from, to, 1)).unwrap_err());
        for part in parts.iter().chain(&["s.toml: "]) {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn the_studies_that_come_along_are_fit() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/studies");
        let files: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 2);
        for file in files {
            Study::load(&file).unwrap();
        }
    }

    #[test]
    fn arms_have_equal_passes_and_what_is_theirs_alone() {
        let study = load(SMALL).unwrap();
        let start = Path::new("out/start");
        let recipe = |name: &str| study.recipe(study.arm(name).unwrap(), 7, start).unwrap();
        // Two passes a step.
        let (control, sar) = (recipe("control"), recipe("sar-soft"));
        assert_eq!((control.sar.steps, sar.sar.steps), (100, 50));
        assert_eq!((sar.seed, sar.tokenizer.steps, sar.pretrain.steps), (7, 0, 0));
        assert!(!sar.sar.control && sar.name == "small-sar-soft");
        let sar_train::recipe::InitFrom::Weights { path, .. } = &sar.pretrain.init_from else {
            panic!("{:?}", sar.pretrain.init_from)
        };
        assert_eq!(path, &start.join("backbone-pretrain.safetensors"));
        let (scratch, images) = (recipe("scratch-control"), recipe("scratch-wide"));
        assert_eq!(
            (scratch.tokenizer.steps, scratch.pretrain.steps, scratch.sar.steps),
            (0, 50, 0)
        );
        assert_eq!((images.tokenizer.steps, images.pretrain.steps), (650, 60));
        let passes = |name: &str| study.cost(study.arm(name).unwrap()).unwrap().passes();
        assert_eq!((passes("control"), passes("sar-soft")), (100.0, 100.0));
        assert_eq!((passes("scratch-control"), passes("scratch-wide")), (50.0, 60.0));
        assert_eq!(study.start_recipe().unwrap().pretrain.steps, 300);
        let controls = ["control", "sar-soft", "scratch-control", "scratch-wide", START];
        assert_eq!(
            controls.map(|name| study.control_of(name)),
            [None, Some("control"), None, Some("scratch-control"), None]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        refuses(["seeds = [1, 2]", "seeds = []"], &["seeds", "at least 1"]);
        refuses(["seeds = [1, 2]", "seeds = [2, 2]"], &["seeds", "twice"]);
        refuses(["seeds =", "sedes ="], &["sedes"]);
        refuses(["passes = 100", "passes = many"], &["line 6"]);
        refuses(["passes = 100", "passes = 0"], &["passes", "at least 1"]);
        refuses(["control = \"control\"", "control = \"none\""], &["no arm 'none'", "sar-soft"]);
        refuses(["control = \"control\"", "control = \"scratch-control\""], &["from the start"]);
        refuses(
            ["scratch_control = \"scratch-control\"", ""],
            &["'scratch-control'", "no scratch_control"],
        );
        refuses(["name = \"sar-soft\"", "name = \"control\""], &["arm 'control'", "another"]);
        refuses(["name = \"sar-soft\"", "name = \"start\""], &["arm 'start'", "begin with"]);
        refuses(["name = \"sar-soft\"", "name = \"a/b\""], &["arm 'a/b'", "letters"]);
        refuses(
            ["sar.objective.weight=0.2", "sar.objective.wait=0.2"],
            &["arm 'sar-soft'", "sar.objective", "wait"],
        );
        refuses(["sar.objective.weight=0.2", "seed=3"], &["arm 'sar-soft'", "seed", "study"]);
        refuses(["sar.objective.weight=0.2", "sar.steps=3"], &["'sar-soft'", "steps = N"]);
        refuses(["sar.objective.weight=0.2", "pretrain.steps=3"], &["'sar-soft'", "study"]);
        // What would make an arm's steps cost more, or its figures others, than those of the control.
        for (setting, field) in [
            ("sar.optimization.batch_size=64", "sar.optimization.batch_size"),
            ("backbone.schedule.scales=1_2_4", "backbone.schedule"),
            ("data.side=16", "data"),
            ("evaluation.images=1", "evaluation"),
            ("log.measure_steps=7", "log"),
            ("sar.output=best", "sar.output"),
        ] {
            let is_for = format!("{field} is for the study to set");
            refuses(["sar.objective.weight=0.2", setting], &["'sar-soft'", setting, &is_for]);
        }
        let cached =
            r#"'latents={ kind = "cached", folder = "l", variants = 1, precision = "half" }'"#;
        let soft = "\"sar.objective.weight=0.2\"";
        refuses([soft, cached], &["'sar-soft'", "latents is for the study to set"]);
        // Nor with the table around it; the same value does no harm.
        let lr = "adamw = { beta1 = 0.9, beta2 = 0.95, eps = 1e-8 }, matrices = { kind = \"adamw\" }, max_grad_norm = 2.0, ema = 0.0, lr = { peak = \
                  1e-3, warmup_steps = 0.0, warmup_from = 1.0, end = 0.2, decay = { kind = \"linear\", flat = 0.0 } }, \
                  weight_decay = { start = 0.05, end = 0.05 }, grad_accum_steps = 1";
        let known = load(SMALL).unwrap().start_recipe().unwrap().sar.optimization.batch_size;
        let table = |batch: usize| format!("'sar.optimization={{ batch_size = {batch}, {lr} }}'");
        let batch = "sar.optimization.batch_size is for the study";
        refuses([soft, &table(2 * known)], &["'sar-soft'", batch]);
        load(&SMALL.replacen(soft, &table(known), 1)).unwrap();
        refuses(["backbone.width=96", "backbone.width=97"], &["'scratch-wide'", "backbone.width"]);
        refuses(["guidance=2:6:2", "temperature=1"], &["samples.grid", "guidance, top_k, top_p"]);
        refuses(["seed = 2, per_class", "seed = 1, per_class"], &["samples", "same seed"]);
        refuses(["per_class = 20", "per_class = 1"], &["samples.measure.per_class"]);
        refuses(["pretrain.steps=300", "pretrain.stops=300"], &["start", "pretrain.stops"]);
        refuses(["emoji-quick", "emoji-slow"], &["emoji-slow"]);
        refuses(["steps = 60", "stops = 60"], &["arms", "stops"]);
    }

    #[test]
    fn an_arm_has_a_control_of_its_own_kind_and_a_name_of_its_own() {
        let arm = |name: &str, control: &str| {
            let set = format!("[[arms]]\nname = \"{name}\"\n");
            assert!(SMALL.contains(&set), "{set}");
            load(&SMALL.replacen(&set, &format!("{set}control = \"{control}\"\n"), 1))
        };
        let error = |name: &str, control: &str| format!("{:#}", arm(name, control).unwrap_err());
        arm("sar-soft", "control").unwrap();
        arm("scratch-wide", "scratch-control").unwrap();
        let itself = error("sar-soft", "sar-soft");
        assert!(itself.contains("arm 'sar-soft': control: is the arm itself"), "{itself}");
        let other = error("sar-soft", "scratch-control");
        assert!(other.contains("control: 'scratch-control' is not from the start"), "{other}");
        let other = error("scratch-wide", "control");
        assert!(
            other.contains("arm 'scratch-wide': control: 'control' is not from scratch"),
            "{other}"
        );
        assert!(error("sar-soft", "none").contains("arm 'sar-soft': control: no arm 'none'"));

        let name = "name = \"sar-soft\"";
        for file in [
            "study.toml",
            "study.json",
            "report.html",
            "real.json",
            "start.code.json",
            "Study.JSON",
        ] {
            let to = format!("name = \"{file}\"");
            refuses([name, &to], &[&format!("arm '{file}'"), "a file of the study"]);
        }
        refuses([name, "name = \"Start\""], &["arm 'Start'", "the weights that arms begin with"]);
    }

    #[test]
    fn a_folder_is_of_one_study_which_may_gain_arms() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("out");
        let study = load(SMALL).unwrap();
        study.settle(&folder).unwrap();
        study.settle(&folder).unwrap();
        let more = format!("{SMALL}\n[[arms]]\nname = \"new\"\nset = []\n");
        load(&more).unwrap().settle(&folder).unwrap();
        let error = |text: &str| load(text).unwrap().settle(&folder).unwrap_err().to_string();
        let found = error(SMALL);
        assert!(found.contains("study.toml") && found.contains("arm 'new'"), "{found}");
        let found = error(&more.replace("passes = 100", "passes = 90"));
        assert!(found.contains("passes = 100, not 90"), "{found}");
        let found = error(&more.replace("weight=0.2", "weight=0.3"));
        assert!(found.contains("arm 'sar-soft': set[0]") && found.contains("0.3"), "{found}");
        // The first arms from scratch bring their control along, which then stays.
        let folder = root.path().join("later");
        let scratch = SMALL.find("[[arms]]\nname = \"scratch-control\"").unwrap();
        let without = SMALL[..scratch].replace("scratch_control = \"scratch-control\"\n", "");
        load(&without).unwrap().settle(&folder).unwrap();
        study.settle(&folder).unwrap();
        let other = SMALL
            .replace("scratch_control = \"scratch-control\"", "scratch_control = \"scratch-wide\"");
        let found = load(&other).unwrap().settle(&folder).unwrap_err().to_string();
        assert!(found.contains("scratch_control"), "{found}");
        let foreign = root.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), "").unwrap();
        let found = study.settle(&foreign).unwrap_err().to_string();
        assert!(found.contains("no study"), "{found}");
    }
}
