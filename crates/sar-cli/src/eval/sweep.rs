//! `--sweep`: samples at many settings of the sampler.

use std::str::FromStr;

use anyhow::Result;
use burn::tensor::backend::Backend;
use plotters::prelude::*;
use sar_eval::{Extractor, Quality};
use sar_pipeline::{PipelineError, Wishes};
use sar_rollout::Sampler;
use serde_json::{Value, json};

use super::report::Kind;
use crate::chart::{Curve, Horizontal, color, draw, legend};

/// The most settings of one sweep.
const MOST: usize = 1000;
/// What can be swept.
const KNOWN: [&str; 3] = ["guidance", "top_k", "top_p"];

/// A figure of images, if it is known.
type Measure = fn(&Quality) -> Option<f64>;

/// Values of some settings; all combinations are measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sweep {
    /// The first one is the horizontal axis.
    axes: Vec<(&'static str, Vec<f64>)>,
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut axes: Vec<(&'static str, Vec<f64>)> = Vec::new();
        for part in text.split(',') {
            let (name, values) = part
                .split_once('=')
                .ok_or_else(|| format!("'{part}': write NAME=FROM:TO:STEP or NAME=VALUE"))?;
            let known = KNOWN.into_iter().find(|known| *known == name);
            let name = known.ok_or_else(|| format!("'{name}': known are {}", KNOWN.join(", ")))?;
            if axes.iter().any(|(other, _)| *other == name) {
                return Err(format!("{name} stands there twice"));
            }
            let values =
                values_of(values).map_err(|problem| format!("{name}={values}: {problem}"))?;
            for value in &values {
                check(name, *value).map_err(|problem| format!("{name}={value}: {problem}"))?;
            }
            axes.push((name, values));
        }
        let n: usize = axes.iter().map(|(_, values)| values.len()).product();
        match n {
            0..=MOST => Ok(Self { axes }),
            _ => Err(format!("{n} settings; {MOST} at most")),
        }
    }
}

/// `from:to:step`, with `to` where steps reach it, or one number.
fn values_of(text: &str) -> Result<Vec<f64>, String> {
    let numbers =
        text.split(':').map(|text| text.trim().parse::<f64>().ok().filter(|x| x.is_finite()));
    match numbers.collect::<Option<Vec<_>>>().as_deref() {
        Some([value]) => Ok(vec![*value]),
        Some([from, to, step]) if *step > 0.0 && from <= to => {
            let n = ((to - from) / step + 1e-9).floor();
            if n >= MOST as f64 {
                return Err(format!("{} values; {MOST} at most", n + 1.0));
            }
            // Of 0.1 three times 0.3 is wanted, not 0.30000000000000004.
            let rounded = |x: f64| (x * 1e9).round() / 1e9;
            Ok((0..=n as usize).map(|i| rounded(from + i as f64 * step)).collect())
        }
        _ => Err("write FROM:TO:STEP with FROM <= TO and STEP > 0, or one number".into()),
    }
}

/// Sets what has a name to a value.
fn wish(wishes: &mut Wishes, name: &str, value: f64) {
    match name {
        "guidance" => wishes.guidance = Some(value),
        "top_k" => wishes.top_k = Some(value as usize),
        _ => wishes.top_p = Some(value),
    }
}

/// Checks a value as the option of the same name is checked.
fn check(name: &str, value: f64) -> Result<(), String> {
    if name == "top_k" && (value < 0.0 || value.fract() != 0.0) {
        return Err("must be a whole number, 0 for all codes".into());
    }
    let mut wishes = Wishes::default();
    wish(&mut wishes, name, value);
    match wishes.check() {
        Err(PipelineError::Setting { problem, .. }) => Err(problem.into()),
        checked => checked.map_err(|error| error.to_string()),
    }
}

impl Sweep {
    /// The samplers of all combinations, the first setting changing last: a name, the settings, the sampler.
    pub(crate) fn samplers(&self, base: Sampler) -> Vec<(String, Value, Sampler)> {
        self.samplers_of(&Wishes::default(), base)
    }

    /// As [`samplers`](Self::samplers), where something is wished beside.
    pub(super) fn samplers_of(
        &self,
        wishes: &Wishes,
        base: Sampler,
    ) -> Vec<(String, Value, Sampler)> {
        let combinations = self.combinations().into_iter();
        combinations.map(|values| self.sampler(&values, wishes.clone(), base)).collect()
    }

    fn combinations(&self) -> Vec<Vec<f64>> {
        let mut all = vec![Vec::new()];
        for (_, values) in &self.axes {
            let longer = |one: &Vec<f64>| {
                let one = one.clone();
                values
                    .iter()
                    .map(move |value| [one.as_slice(), &[*value]].concat())
                    .collect::<Vec<_>>()
            };
            all = all.iter().flat_map(longer).collect();
        }
        all
    }

    fn sampler(
        &self,
        values: &[f64],
        mut wishes: Wishes,
        base: Sampler,
    ) -> (String, Value, Sampler) {
        let (mut names, mut settings) = (Vec::new(), json!({}));
        for ((name, _), value) in self.axes.iter().zip(values) {
            names.push(format!("{name} {value}"));
            settings[*name] = json!(value);
            wish(&mut wishes, name, *value);
        }
        (names.join(", "), settings, wishes.sampler(base))
    }

    /// The figures over the first setting, a curve for each combination of the others; as SVG.
    pub(super) fn plot<B: Backend>(
        &self,
        rows: &[(&str, &Quality)],
        extractor: &Extractor<B>,
    ) -> Result<String> {
        let (name, values) = &self.axes[0];
        let others = rows.len() / values.len();
        let measures: [(&str, Measure); 4] = [
            (Kind::of(extractor).frechet(), |of| Some(of.frechet)),
            ("KID x1000", |of| of.kernel.map(|kernel| 1000.0 * kernel)),
            ("class accuracy", |of| of.class_accuracy),
            ("recall", |of| of.recall),
        ];
        let of_others =
            |at: usize| -> &str { rows[at].0.split_once(", ").map_or("", |(_, others)| others) };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (1000, 640)).into_drawing_area();
            area.fill(&WHITE)?;
            let (plots, names) = area.split_horizontally(820);
            for (part, (title, measure)) in plots.split_evenly((2, 2)).iter().zip(measures) {
                let curves: Vec<Curve> = (0..others)
                    .map(|other| Curve {
                        name: of_others(other).into(),
                        color: color(other),
                        points: (0..values.len())
                            .filter_map(|i| Some((values[i], measure(rows[i * others + other].1)?)))
                            .collect(),
                    })
                    .collect();
                let label = |x: f64| format!("{x:.2}");
                let x = Horizontal { name, labels: values.len().min(10), label: &label };
                draw(part, Some(title), &x, curves.iter())?;
            }
            if others > 1 {
                legend(&names, (0..others).map(|other| (of_others(other), color(other))))?;
            }
            area.present()?;
        }
        Ok(svg)
    }
}

#[cfg(test)]
mod tests {
    use sar_rollout::{Choice, Guidance};

    use super::*;

    #[test]
    fn values_are_ranges_or_numbers() {
        let sweep: Sweep = "guidance=0:0.3:0.1,top_p=0.5".parse().unwrap();
        assert_eq!(sweep.axes[0], ("guidance", vec![0.0, 0.1, 0.2, 0.3]));
        assert_eq!(sweep.axes[1], ("top_p", vec![0.5]));
        for (text, values) in [
            ("guidance=0:5:2", vec![0.0, 2.0, 4.0]),
            ("guidance=2:2:1", vec![2.0]),
            ("guidance=1:1.05:0.1", vec![1.0]),
        ] {
            assert_eq!(text.parse::<Sweep>().unwrap().axes[0].1, values, "{text}");
        }
        for (text, part) in [
            ("guidance", "NAME=FROM:TO:STEP"),
            ("temperature=1", "guidance, top_k, top_p"),
            ("guidance=2:1:1", "FROM <= TO"),
            ("guidance=1:2:0", "STEP > 0"),
            ("guidance=-1", "guidance=-1: must be in [0, 1000]"),
            ("guidance=1e38", "must be in [0, 1000]"),
            ("top_k=1.5", "whole number"),
            ("top_k=-1", "whole number"),
            ("top_p=0:2:1", "[0, 1]"),
            ("top_p=nan", "one number"),
            ("top_p=0,top_p=1", "twice"),
            ("guidance=0:5000:1", "at most"),
            ("guidance=0:99:1,top_k=0:99:1", "10000 settings"),
        ] {
            let error = text.parse::<Sweep>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn all_combinations_change_what_they_name_alone() {
        let base = Sampler {
            guidance: Guidance::Ramp { scale: 3.0 },
            choice: Choice::Sample { top_k: 7, top_p: 0.7 },
        };
        let sweep: Sweep = "guidance=1:2:1,top_p=0.1:0.3:0.2".parse().unwrap();
        let samplers = sweep.samplers(base);
        let names: Vec<&str> = samplers.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "guidance 1, top_p 0.1",
                "guidance 1, top_p 0.3",
                "guidance 2, top_p 0.1",
                "guidance 2, top_p 0.3"
            ]
        );
        assert_eq!(samplers[1].1, json!({ "guidance": 1.0, "top_p": 0.3 }));
        assert_eq!(
            samplers[2].2,
            Sampler {
                guidance: Guidance::Ramp { scale: 2.0 },
                choice: Choice::Sample { top_k: 7, top_p: 0.1 }
            }
        );
        let argmax = Sampler { choice: Choice::Argmax, ..base };
        let only: Sweep = "guidance=1".parse().unwrap();
        assert_eq!(only.samplers(argmax)[0].2.choice, Choice::Argmax);
    }

    #[test]
    fn a_swept_value_is_the_option_of_its_name() {
        let guidance = Guidance::Ramp { scale: 3.0 };
        let choices = [
            Choice::Argmax,
            Choice::Sample { top_k: 7, top_p: 0.7 },
            Choice::MoreSmooth { top_k: 7, top_p: 0.7 },
        ];
        for choice in choices {
            let base = Sampler { guidance, choice };
            for more_smooth in [false, true] {
                let said = Wishes { more_smooth, top_k: Some(5), ..Wishes::default() };
                for (text, wishes) in [
                    ("top_p=0", Wishes { top_p: Some(0.0), ..said.clone() }),
                    ("top_p=0.5", Wishes { top_p: Some(0.5), ..said.clone() }),
                    ("top_k=0", Wishes { top_k: Some(0), ..said.clone() }),
                    ("guidance=2", Wishes { guidance: Some(2.0), ..said.clone() }),
                ] {
                    let sweep: Sweep = text.parse().unwrap();
                    let swept = sweep.samplers_of(&said, base)[0].2;
                    assert_eq!(swept, wishes.sampler(base), "{text} of {base:?}");
                }
            }
        }
        let sweep: Sweep = "top_p=0".parse().unwrap();
        let argmax = Sampler { guidance, choice: Choice::Argmax };
        let drawn = Choice::Sample { top_k: 0, top_p: 0.0 };
        assert_eq!(sweep.samplers(argmax)[0].2.choice, drawn);
    }
}
