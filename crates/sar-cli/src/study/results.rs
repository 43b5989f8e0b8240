//! What a study amounts to: means over seeds of training, and differences seed by seed.
//!
//! Intervals are 95 %, by Student's t over the seeds. An arm and its control of one seed begin with the same
//! weights, see the same images and are measured on samples of the same streams, so that a difference of the
//! two is one of a pair; the interval is that of the mean of these differences. The start was trained once:
//! its interval is over the streams of its samples alone.

use sar_train::quality::Estimate;
use serde::Serialize;
use serde_json::Value;

use super::file::{START, Study};
use super::unit::{Grid, Outcome};

/// An arm, or the weights that arms begin with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Arm {
    pub(super) name: String,
    /// How many seeds of training; for the start, of sampling.
    pub(super) seeds: usize,
    /// Of the sampler, the best of the grid for this arm.
    pub(super) settings: Value,
    #[serde(flatten)]
    pub(super) figures: Figures,
    pub(super) steps: u64,
    pub(super) seconds_per_step: f64,
    /// Held-out losses by scale, means over seeds.
    pub(super) scales: Vec<Scale>,
    /// What it is compared with, where it is not a control itself.
    pub(super) control: Option<String>,
    pub(super) minus_control: Option<Figures>,
    pub(super) minus_start: Option<Figures>,
    /// How the samples for choosing did, means over seeds.
    pub(super) grid: Vec<GridRow>,
}

/// Figures with their intervals.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub(super) struct Scale {
    pub(super) scale: String,
    pub(super) teacher_loss: Estimate,
    pub(super) student_loss: Option<Estimate>,
    pub(super) exposure_gap: Option<Estimate>,
}

/// A setting of the sampler.
#[derive(Clone, Debug, Serialize)]
pub(super) struct GridRow {
    pub(super) settings: Value,
    pub(super) kid: f64,
    pub(super) fd: f64,
    pub(super) class_accuracy: Option<f64>,
}

/// An arm with all of its seeds, in their order.
pub(super) struct Finished {
    pub(super) name: String,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) grids: Vec<Grid>,
}

/// A figure of an arm and a seed.
type Figure = fn(&Outcome) -> Option<f64>;

impl Figures {
    /// Of one value for each seed.
    fn of(value: impl Fn(Figure) -> Option<Vec<f64>>) -> Self {
        let estimate = |figure: Figure| value(figure).map(|values| Estimate::of(&values));
        Self {
            kid: estimate(|of| Some(of.kid)).expect("always there"),
            fd: estimate(|of| Some(of.fd)).expect("always there"),
            class_accuracy: estimate(|of| of.class_accuracy),
            precision: estimate(|of| of.precision),
            recall: estimate(|of| of.recall),
            teacher_loss: estimate(|of| Some(of.trained.teacher_loss)).expect("always there"),
            student_loss: estimate(|of| of.trained.student_loss),
            exposure_gap: estimate(|of| of.trained.exposure_gap),
        }
    }

    fn of_arm(outcomes: &[Outcome]) -> Self {
        Self::of(|figure| outcomes.iter().map(figure).collect())
    }

    /// Of differences seed by seed.
    fn minus(a: &[Outcome], b: &[Outcome]) -> Self {
        assert!(a.iter().map(|of| of.seed).eq(b.iter().map(|of| of.seed)), "pairs of one seed");
        Self::of(|figure| {
            let minus = |(a, b): (&Outcome, &Outcome)| Some(figure(a)? - figure(b)?);
            a.iter().zip(b).map(minus).collect()
        })
    }
}

/// The arms that are finished, the start first, then in the order of the study.
pub(super) fn arms(study: &Study, finished: &[Finished]) -> Vec<Arm> {
    let named = |name: &str| finished.iter().find(|of| of.name == name);
    let minus = |arm: &Finished, other: Option<&str>| {
        other.and_then(named).map(|other| Figures::minus(&arm.outcomes, &other.outcomes))
    };
    let order = std::iter::once(START).chain(study.arms.iter().map(|arm| arm.name.as_str()));
    let arm = |of: &Finished| {
        let control = study.control_of(&of.name);
        let start = (study.begins_with_start(&of.name)).then_some(START);
        let n = of.outcomes.len();
        let seconds = of.outcomes.iter().map(|of| of.trained.seconds_per_step).sum::<f64>();
        Arm {
            name: of.name.clone(),
            seeds: n,
            settings: of.outcomes[0].settings.clone(),
            figures: Figures::of_arm(&of.outcomes),
            steps: of.outcomes[0].trained.steps,
            seconds_per_step: seconds / n as f64,
            scales: scales(&of.outcomes),
            control: control.map(str::to_owned),
            minus_control: minus(of, control),
            minus_start: minus(of, start),
            grid: grid(&of.grids),
        }
    };
    order.filter_map(named).map(arm).collect()
}

fn scales(outcomes: &[Outcome]) -> Vec<Scale> {
    let of_scale = |k: usize| {
        let scales = || outcomes.iter().map(|of| &of.trained.scales[k]);
        let optional = |figure: fn(&super::unit::Scale) -> Option<f64>| {
            let values = scales().map(figure).collect::<Option<Vec<f64>>>()?;
            Some(Estimate::of(&values))
        };
        Scale {
            scale: outcomes[0].trained.scales[k].scale.clone(),
            teacher_loss: Estimate::of(&scales().map(|of| of.teacher_loss).collect::<Vec<_>>()),
            student_loss: optional(|of| of.student_loss),
            exposure_gap: optional(|of| of.exposure_gap),
        }
    };
    (0..outcomes[0].trained.scales.len()).map(of_scale).collect()
}

fn grid(grids: &[Grid]) -> Vec<GridRow> {
    let n = grids.len() as f64;
    let row = |at: usize| {
        let rows = || grids.iter().map(|grid| &grid.rows[at]);
        let accuracies = rows().map(|row| row.class_accuracy).sum::<Option<f64>>();
        GridRow {
            settings: grids[0].rows[at].settings.clone(),
            kid: rows().map(|row| row.kid).sum::<f64>() / n,
            fd: rows().map(|row| row.fd).sum::<f64>() / n,
            class_accuracy: accuracies.map(|sum| sum / n),
        }
    };
    (0..grids[0].rows.len()).map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::study::code::Code;
    use crate::study::file::tests::small;
    use crate::study::unit::{self, Row, Trained};

    /// An arm of three seeds with made-up figures, a tenth of each being the class accuracy.
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
                },
                wall_s: 3600.0,
                code: Code {
                    version: "0".into(),
                    commit: None,
                    program: None,
                    machine: "m".into(),
                },
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
        });
        Finished { name: name.into(), grids: grids.collect(), outcomes }
    }

    fn close(estimate: Estimate, [mean, low, high]: [f64; 3]) {
        let Estimate { mean: m, low: l, high: h } = estimate;
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
        let arms = arms(&study, &all);
        let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["start", "control", "sar-soft"], "in the order of the study");
        let [start, control, sar] = &arms[..] else { panic!() };
        // Two seeds: half the difference times 12.706.
        close(sar.figures.kid, [3.5, 3.5 - 1.5 * 12.706, 3.5 + 1.5 * 12.706]);
        close(sar.figures.fd, [350.0, 350.0 - 150.0 * 12.706, 350.0 + 150.0 * 12.706]);
        close(sar.figures.class_accuracy.unwrap(), [0.35, -1.5559, 2.2559]);
        assert!(sar.figures.recall.is_none() && sar.seeds == 2);
        close(start.figures.kid, [4.0, 4.0, 4.0]);
        // 1 and 2: 1.5, half their difference times 12.706.
        let minus = sar.minus_control.as_ref().unwrap();
        close(minus.kid, [1.5, 1.5 - 6.353, 1.5 + 6.353]);
        close(minus.precision.unwrap(), [0.0; 3]);
        // -2 and 1.
        close(sar.minus_start.as_ref().unwrap().kid, [-0.5, -0.5 - 19.059, -0.5 + 19.059]);
        assert!(control.minus_control.is_none() && control.minus_start.is_some());
        assert!(start.minus_control.is_none() && start.minus_start.is_none());
        assert_eq!(sar.seconds_per_step, 1.75);
        assert_eq!((sar.grid[0].kid, sar.grid[0].class_accuracy), (3.5, None));
        assert_eq!(sar.scales[1].exposure_gap.unwrap().mean, 1.0);
        assert!(sar.scales[0].student_loss.is_none());
        // What there is no control of has no difference.
        assert!(super::arms(&study, &all[..1])[0].minus_control.is_none());
    }

    #[test]
    fn three_seeds_by_hand() {
        let arms = arms(&small(), &[finished("control", &[1.0, 2.0, 6.0])]);
        // Deviation 2.6458, its mean's 1.5275, times 4.303.
        close(arms[0].figures.kid, [3.0, -3.5729, 9.5729]);
    }
}
