//! What a study amounts to: means over seeds of training, and differences seed by seed.
//!
//! Intervals are 95 %, by Student's t over the seeds. An arm and its control of one seed begin with the same
//! weights, see the same images and are measured on samples of the same streams, so that a difference of the
//! two is one of a pair; the interval is that of the mean of these differences. The start was trained once:
//! its interval is over the streams of its samples alone.
//!
//! Of many differences some are large by chance: their p-values are also given as Holm corrects them for the
//! number of arms that have a control. A seed whose training went wrong is in no figure, and is counted.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use sar_metrics::{Estimate, holm};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::code::Code;
use super::file::{START, Study};
use super::unit::{Failed, Grid, Outcome};

/// An arm, or the weights that arms begin with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Arm {
    pub(super) name: String,
    /// How many seeds of training are in the figures; for the start, of sampling.
    pub(super) seeds: usize,
    /// The seeds of training that went wrong.
    pub(super) diverged: Vec<Failed>,
    /// In what its recipe differs; none for the start, and in files of before it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) set: Option<Vec<String>>,
    /// Of the sampler, the best of the grid for this arm.
    pub(super) settings: Value,
    /// None if all seeds went wrong.
    #[serde(flatten)]
    pub(super) figures: Option<Figures>,
    pub(super) steps: Option<u64>,
    /// What these cost, in teacher-forced steps.
    pub(super) passes: Option<f64>,
    pub(super) seconds_per_step: Option<f64>,
    /// Held-out losses by scale, means over seeds.
    pub(super) scales: Vec<Scale>,
    /// What it is compared with, where it is not a control itself.
    pub(super) control: Option<String>,
    pub(super) minus_control: Option<Figures>,
    /// P-values of these differences, by Holm over all arms that have a control.
    pub(super) minus_control_p: BTreeMap<String, f64>,
    pub(super) minus_start: Option<Figures>,
    /// What trained, drew and measured it.
    pub(super) programs: BTreeSet<String>,
    /// Whether it and its control were made by more than one program.
    pub(super) mixed_programs: bool,
    /// How the samples for choosing did, means over seeds.
    pub(super) grid: Vec<GridRow>,
}

impl Arm {
    /// `1 of 3`, where training went wrong.
    pub(super) fn diverged_of(&self) -> Option<String> {
        let n = self.diverged.len();
        (n > 0).then(|| format!("diverged {n} of {}", n + self.seeds))
    }
}

/// Figures with their intervals.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) kid: Estimate,
    pub(super) fd: Estimate,
    pub(super) class_accuracy: Option<Estimate>,
    pub(super) precision: Option<Estimate>,
    pub(super) recall: Option<Estimate>,
    pub(super) teacher_loss: Estimate,
    pub(super) student_loss: Option<Estimate>,
    pub(super) exposure_gap: Option<Estimate>,
}

/// A scale's losses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Scale {
    pub(super) scale: String,
    pub(super) teacher_loss: Estimate,
    pub(super) student_loss: Option<Estimate>,
    pub(super) exposure_gap: Option<Estimate>,
}

/// A setting of the sampler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GridRow {
    pub(super) settings: Value,
    pub(super) kid: f64,
    pub(super) fd: f64,
    pub(super) class_accuracy: Option<f64>,
}

/// An arm with all of its seeds, in their order: what became of those that went well, and of the others.
pub(super) struct Finished {
    pub(super) name: String,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) grids: Vec<Grid>,
    pub(super) failed: Vec<Failed>,
}

impl Finished {
    /// What trained, drew and measured it.
    pub(super) fn code(&self) -> impl Iterator<Item = &Code> {
        let outcomes = self.outcomes.iter().flat_map(|of| of.trained.code.iter().chain([&of.code]));
        let grids = self.grids.iter().flat_map(|of| &of.code);
        outcomes.chain(grids).chain(self.failed.iter().flat_map(|of| &of.code))
    }

    fn programs(&self) -> BTreeSet<String> {
        self.code().map(|code| code.program.clone()).collect()
    }
}

/// A figure of an arm and a seed.
type Figure = fn(&Outcome) -> Option<f64>;

/// All of them.
const FIGURES: [(&str, Figure); 8] = [
    ("kid", |of| Some(of.kid)),
    ("fd", |of| Some(of.fd)),
    ("class_accuracy", |of| of.class_accuracy),
    ("precision", |of| of.precision),
    ("recall", |of| of.recall),
    ("teacher_loss", |of| Some(of.trained.teacher_loss)),
    ("student_loss", |of| of.trained.student_loss),
    ("exposure_gap", |of| of.trained.exposure_gap),
];

impl Figures {
    /// None without any seed.
    fn new(estimate: impl Fn(Figure) -> Option<Estimate>) -> Option<Self> {
        let [kid, fd, class_accuracy, precision, recall, teacher_loss, student_loss, exposure_gap] =
            FIGURES.map(|(_, figure)| estimate(figure));
        Some(Self {
            kid: kid?,
            fd: fd?,
            class_accuracy,
            precision,
            recall,
            teacher_loss: teacher_loss?,
            student_loss,
            exposure_gap,
        })
    }

    fn of_arm(outcomes: &[Outcome]) -> Option<Self> {
        Self::new(|figure| Estimate::of_each(outcomes, figure))
    }

    /// Of differences seed by seed.
    fn minus((a, b): &Pairs<'_>) -> Option<Self> {
        Self::new(|figure| Estimate::of_pairs(a, b, |of| figure(of)))
    }

    /// In the order of `FIGURES`.
    fn all(&self) -> [Option<Estimate>; FIGURES.len()] {
        let Self {
            kid,
            fd,
            class_accuracy,
            precision,
            recall,
            teacher_loss,
            student_loss,
            exposure_gap,
        } = *self;
        let (kid, fd, teacher_loss) = (Some(kid), Some(fd), Some(teacher_loss));
        [kid, fd, class_accuracy, precision, recall, teacher_loss, student_loss, exposure_gap]
    }
}

/// Two arms' outcomes of the same seeds.
type Pairs<'a> = (Vec<&'a Outcome>, Vec<&'a Outcome>);

fn pairs<'a>(a: &'a Finished, b: &'a Finished) -> Pairs<'a> {
    let of_seed = |seed: u64| b.outcomes.iter().find(|of| of.seed == seed);
    a.outcomes.iter().filter_map(|of| Some((of, of_seed(of.seed)?))).unzip()
}

/// The arms that are finished, the start first, then in the order of the study; p-values are still to be
/// corrected.
///
/// # Errors
/// If a recipe cannot be read any more.
pub(super) fn arms(study: &Study, finished: &[Finished]) -> Result<Vec<Arm>> {
    let named = |name: &str| finished.iter().find(|of| of.name == name);
    let beside = |of: &'_ Finished| named(study.control_of(&of.name)?);
    let order = std::iter::once(START).chain(study.arms.iter().map(|arm| arm.name.as_str()));
    let order: Vec<&Finished> = order.filter_map(named).collect();
    let arm = |of: &&Finished| -> Result<Arm> {
        let start = study.begins_with_start(&of.name).then(|| named(START)).flatten();
        let mean_seconds = Estimate::of_each(&of.outcomes, |of| Some(of.trained.seconds_per_step));
        let steps = of.outcomes.first().map(|of| of.trained.steps);
        let of_study = study.arms.iter().find(|arm| arm.name == of.name);
        let passes_a_step = match of_study {
            Some(arm) => Some(study.cost(arm)?.passes_a_step),
            None => None,
        };
        let programs = of.programs();
        let both = beside(of).map_or(programs.clone(), |control| &programs | &control.programs());
        Ok(Arm {
            name: of.name.clone(),
            seeds: of.outcomes.len(),
            diverged: of.failed.clone(),
            set: of_study.map(|arm| arm.set.clone()),
            settings: of.outcomes.first().map_or(Value::Null, |of| of.settings.clone()),
            figures: Figures::of_arm(&of.outcomes),
            steps,
            passes: steps.zip(passes_a_step).map(|(steps, passes)| steps as f64 * passes),
            seconds_per_step: mean_seconds.map(|seconds| seconds.mean),
            scales: scales(&of.outcomes),
            control: study.control_of(&of.name).map(str::to_owned),
            minus_control: beside(of).and_then(|control| Figures::minus(&pairs(of, control))),
            minus_control_p: BTreeMap::new(),
            minus_start: start.and_then(|start| Figures::minus(&pairs(of, start))),
            mixed_programs: both.len() > 1,
            programs,
            grid: grid(&of.grids),
        })
    };
    order.iter().map(arm).collect()
}

/// Corrects the p-values of all differences from a control together, by Holm.
pub(super) fn correct(arms: &mut [Arm]) {
    for (at, (name, _)) in FIGURES.into_iter().enumerate() {
        let p_of = |arm: &Arm| {
            let control = arms.iter().find(|of| arm.control.as_ref() == Some(&of.name))?;
            arm.minus_control.as_ref()?.all()[at]?.p_value(n_pairs(arm, control))
        };
        let (which, p): (Vec<usize>, Vec<f64>) =
            arms.iter().enumerate().filter_map(|(i, arm)| Some((i, p_of(arm)?))).unzip();
        for (i, p) in which.into_iter().zip(holm(&p)) {
            arms[i].minus_control_p.insert(name.into(), p);
        }
    }
}

/// How many seeds went well in both: all arms have the same ones.
fn n_pairs(arm: &Arm, control: &Arm) -> usize {
    let went_well = |of: &&Failed| arm.diverged.iter().all(|own| own.seed != of.seed);
    arm.seeds.saturating_sub(control.diverged.iter().filter(went_well).count())
}

fn scales(outcomes: &[Outcome]) -> Vec<Scale> {
    let Some(first) = outcomes.first() else { return Vec::new() };
    let of_scale = |k: usize| {
        let scales = || outcomes.iter().map(|of| &of.trained.scales[k]);
        let optional = |figure: fn(&super::unit::Scale) -> Option<f64>| {
            let values = scales().map(figure).collect::<Option<Vec<f64>>>()?;
            Some(Estimate::of(&values))
        };
        Scale {
            scale: first.trained.scales[k].scale.clone(),
            teacher_loss: Estimate::of(&scales().map(|of| of.teacher_loss).collect::<Vec<_>>()),
            student_loss: optional(|of| of.student_loss),
            exposure_gap: optional(|of| of.exposure_gap),
        }
    };
    (0..first.trained.scales.len()).map(of_scale).collect()
}

fn grid(grids: &[Grid]) -> Vec<GridRow> {
    let Some(first) = grids.first() else { return Vec::new() };
    let n = grids.len() as f64;
    let row = |at: usize| {
        let rows = || grids.iter().map(|grid| &grid.rows[at]);
        let accuracies = rows().map(|row| row.class_accuracy).sum::<Option<f64>>();
        GridRow {
            settings: first.rows[at].settings.clone(),
            kid: rows().map(|row| row.kid).sum::<f64>() / n,
            fd: rows().map(|row| row.fd).sum::<f64>() / n,
            class_accuracy: accuracies.map(|sum| sum / n),
        }
    };
    (0..first.rows.len()).map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::study::code::Code;
    use crate::study::file::tests::small;
    use crate::study::unit::{self, Row, Trained};

    fn code(program: &str) -> Code {
        Code { program: program.into(), commit: None, machine: "m".into() }
    }

    /// An arm of some seeds with made-up figures, a tenth of each being the class accuracy.
    pub(in crate::study) fn finished(name: &str, kids: &[f64]) -> Finished {
        let outcome = |(i, kid): (usize, &f64)| {
            let scale = |scale: &str, gap: Option<f64>| unit::Scale {
                scale: scale.into(),
                teacher_loss: *kid,
                student_loss: gap.map(|gap| kid + gap),
                exposure_gap: gap,
            };
            Outcome {
                arm: name.into(),
                seed: i as u64 + 1,
                settings: json!({ "guidance": 4.0 }),
                kid: *kid,
                fd: 100.0 * kid,
                class_accuracy: Some(kid / 10.0),
                precision: Some(0.5),
                recall: None,
                trained: Trained {
                    steps: 50,
                    seconds_per_step: kid / 2.0,
                    wall_s: 1.0,
                    teacher_loss: 2.0,
                    student_loss: Some(2.5),
                    exposure_gap: Some(0.5),
                    scales: vec![scale("1x1", None), scale("2x2", Some(1.0))],
                    code: vec![code("1")],
                },
                wall_s: 3600.0,
                code: code("1"),
            }
        };
        let row = |kid: f64| Row {
            settings: json!({ "guidance": 4.0 }),
            kid,
            fd: kid,
            class_accuracy: None,
        };
        let outcomes: Vec<Outcome> = kids.iter().enumerate().map(outcome).collect();
        let grids = outcomes.iter().map(|of| Grid {
            trained: of.trained.clone(),
            rows: vec![row(of.kid)],
            wall_s: 1.0,
            code: vec![code("1")],
        });
        Finished { name: name.into(), grids: grids.collect(), outcomes, failed: Vec::new() }
    }

    fn close(estimate: Estimate, [mean, low, high]: [f64; 3]) {
        let Estimate { mean: m, low: Some(l), high: Some(h) } = estimate else {
            panic!("{estimate:?}")
        };
        let near = |a: f64, b: f64| (a - b).abs() < 1e-3;
        assert!(near(m, mean) && near(l, low) && near(h, high), "{estimate:?}");
    }

    #[test]
    fn means_and_paired_differences_by_hand() {
        let study = small();
        let all = [
            finished("sar-soft", &[2.0, 5.0]),
            finished("control", &[1.0, 3.0]),
            finished("start", &[4.0, 4.0]),
        ];
        let mut arms = arms(&study, &all).unwrap();
        correct(&mut arms);
        let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["start", "control", "sar-soft"], "in the order of the study");
        let [start, control, sar] = &arms[..] else { panic!() };
        // Two seeds: half the difference times 12.706.
        let figures = sar.figures.as_ref().unwrap();
        close(figures.kid, [3.5, 3.5 - 1.5 * 12.706, 3.5 + 1.5 * 12.706]);
        close(figures.fd, [350.0, 350.0 - 150.0 * 12.706205, 350.0 + 150.0 * 12.706205]);
        close(figures.class_accuracy.unwrap(), [0.35, -1.5559, 2.2559]);
        assert!(figures.recall.is_none() && sar.seeds == 2);
        close(start.figures.as_ref().unwrap().kid, [4.0, 4.0, 4.0]);
        // 1 and 2: 1.5, half their difference times 12.706.
        let minus = sar.minus_control.as_ref().unwrap();
        close(minus.kid, [1.5, 1.5 - 6.353, 1.5 + 6.353]);
        close(minus.precision.unwrap(), [0.0; 3]);
        // -2 and 1.
        close(sar.minus_start.as_ref().unwrap().kid, [-0.5, -0.5 - 19.059, -0.5 + 19.059]);
        assert!(control.minus_control.is_none() && control.minus_start.is_some());
        assert!(start.minus_control.is_none() && start.minus_start.is_none());
        assert_eq!((sar.seconds_per_step, sar.passes), (Some(1.75), Some(100.0)));
        // One degree of freedom: t is 3, and a quarter turn less the angle of it, twice, is outside.
        let p = 1.0 - 3.0_f64.atan() * std::f64::consts::FRAC_2_PI;
        assert!((sar.minus_control_p["kid"] - p).abs() < 1e-12 && start.minus_control_p.is_empty());
        assert!(!sar.minus_control_p.contains_key("recall") && !sar.mixed_programs);
        assert_eq!((sar.grid[0].kid, sar.grid[0].class_accuracy), (3.5, None));
        assert_eq!(sar.scales[1].exposure_gap.unwrap().mean, 1.0);
        assert!(sar.scales[0].student_loss.is_none());
        // What there is no control of has no difference.
        assert!(super::arms(&study, &all[..1]).unwrap()[0].minus_control.is_none());
    }

    #[test]
    fn seeds_that_diverged_are_counted_and_left_out() {
        let failed = |seed| Failed {
            seed,
            stage: "sar".into(),
            step: 3,
            reason: "loss is NaN".into(),
            code: vec![code("2")],
        };
        let mut one = finished("sar-soft", &[2.0, 5.0]);
        one.outcomes.remove(0);
        one.grids.remove(0);
        one.failed.push(failed(1));
        let all = [finished("control", &[1.0, 3.0]), one];
        let mut arms = super::arms(&small(), &all).unwrap();
        correct(&mut arms);
        let sar = &arms[1];
        assert_eq!((sar.seeds, sar.diverged_of().unwrap().as_str()), (1, "diverged 1 of 2"));
        // Of the seed that both have; of one seed there is no interval, and nothing to correct.
        let alone = Estimate { mean: 2.0, low: None, high: None };
        assert_eq!(sar.minus_control.as_ref().unwrap().kid, alone);
        assert!(sar.minus_control_p.is_empty());
        assert!(sar.mixed_programs && !arms[0].mixed_programs, "another program trained it");

        let mut none = finished("sar-soft", &[]);
        none.failed.extend([failed(1), failed(2)]);
        let arms = super::arms(&small(), &[finished("control", &[1.0, 3.0]), none]).unwrap();
        assert_eq!(arms[1].diverged_of().unwrap(), "diverged 2 of 2");
        assert!(arms[1].figures.is_none() && arms[1].minus_control.is_none());
        let json = serde_json::to_value(&arms[1]).unwrap();
        assert!(json.get("kid").is_none() && json["diverged"][1]["step"] == 3, "{json}");
    }

    #[test]
    fn three_seeds_by_hand() {
        let arms = arms(&small(), &[finished("control", &[1.0, 2.0, 6.0])]).unwrap();
        // Deviation 2.6458, its mean's 1.5275, times 4.303.
        close(arms[0].figures.as_ref().unwrap().kid, [3.0, -3.5729, 9.5729]);
    }
}
