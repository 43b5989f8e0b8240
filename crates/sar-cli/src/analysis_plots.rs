//! The plots of `sar analyze`: sheets of panels, one for each quantity.

use anyhow::Result;
use plotters::prelude::*;
use sar_train::StageId;
use sar_train::analysis::{Analysis, Analyzed};
use sar_train::dynamics::ScaleDynamics;

use crate::chart::{self, Curve, Horizontal};

/// A quantity of one scale.
struct Quantity {
    title: &'static str,
    of: fn(&ScaleDynamics) -> Option<f64>,
}

const QUANTITIES: [Quantity; 9] = [
    Quantity { title: "teacher loss, nats", of: |scale| Some(scale.losses.teacher_loss) },
    Quantity { title: "student loss, nats", of: |scale| Some(scale.losses.student_loss) },
    Quantity { title: "rollout loss, nats", of: |scale| Some(scale.losses.rollout_loss) },
    Quantity { title: "accuracy", of: |scale| Some(scale.accuracy) },
    Quantity {
        title: "rollout loss - teacher loss, nats",
        of: |scale| Some(scale.losses.rollout_gap),
    },
    Quantity { title: "gradient norm", of: |scale| scale.gradient_norm },
    Quantity { title: ROLLOUT_ENTROPY, of: |scale| Some(scale.rollout_histogram_entropy) },
    Quantity { title: "token divergence", of: |scale| Some(scale.token_divergence) },
    Quantity { title: "latent divergence", of: |scale| Some(scale.latent_divergence) },
];
/// The panel that shows the true tokens, too.
const ROLLOUT_ENTROPY: &str = "entropy of the rollout's tokens, nats";
const TRUE_TOKENS: &str = "true tokens";

const COLUMNS: usize = 3;
/// Of a panel and of the legend, in pixels.
const PANEL: (u32, u32) = (400, 280);
const LEGEND: u32 = 200;
const GRAY: RGBColor = RGBColor(120, 120, 120);

/// Every quantity over the scales, a curve for each set of weights.
pub(crate) fn by_scale(analysis: &Analysis) -> Result<String> {
    let colors = colors(&analysis.weights);
    let curves = |quantity: &Quantity| {
        let of = |(weights, color): (&Analyzed, &RGBColor)| {
            let scales = weights.dynamics.by_scale.iter().enumerate();
            let points = scales.filter_map(|(k, scale)| Some((k as f64, (quantity.of)(scale)?)));
            Curve { name: weights.name.clone(), color: *color, points: points.collect() }
        };
        let mut curves: Vec<Curve> = analysis.weights.iter().zip(&colors).map(of).collect();
        if let (ROLLOUT_ENTROPY, Some(any)) = (quantity.title, analysis.weights.first()) {
            let truth = any.dynamics.by_scale.iter().map(|scale| scale.histogram_entropy);
            let points = truth.enumerate().map(|(k, entropy)| (k as f64, entropy)).collect();
            curves.push(Curve { name: TRUE_TOKENS.into(), color: GRAY, points });
        }
        curves
    };
    let names: Vec<String> = analysis.scales.sizes().iter().map(|size| size.to_string()).collect();
    let label = |at: f64| {
        let is_scale = (at - at.round()).abs() < 1e-6 && at > -0.5;
        let name = is_scale.then(|| names.get(at.round() as usize)).flatten();
        name.cloned().unwrap_or_default()
    };
    let x = Horizontal { name: "scale", labels: names.len(), label: &label };
    sheet(&QUANTITIES.each_ref().map(|quantity| (quantity.title, curves(quantity))), &x)
}

/// Every quantity over the steps of a stage, a curve for each scale; nothing where the weights of fewer than
/// two steps were measured.
pub(crate) fn by_step(analysis: &Analysis, stage: StageId) -> Result<Option<String>> {
    let course = analysis.course(stage);
    if course.len() < 2 {
        return Ok(None);
    }
    let n_scales = analysis.scales.len();
    let curves = |quantity: &Quantity| -> Vec<Curve> {
        let of = |(k, size): (usize, &_)| {
            let points = course.iter().filter_map(|(step, dynamics)| {
                Some((*step as f64, (quantity.of)(&dynamics.by_scale[k])?))
            });
            let share = k as f64 / (n_scales - 1).max(1) as f64;
            let color = mixed(chart::color(0), chart::color(1), share);
            Curve { name: format!("scale {size}"), color, points: points.collect() }
        };
        analysis.scales.sizes().iter().enumerate().map(of).collect()
    };
    let name = format!("step of {stage}");
    let x = Horizontal { name: &name, labels: 6, label: &|step| format!("{step:.0}") };
    let panels = QUANTITIES.each_ref().map(|quantity| (quantity.title, curves(quantity)));
    sheet(&panels, &x).map(Some)
}

/// Panels with their titles beside one legend, as SVG; those without any point are left out.
fn sheet(panels: &[(&str, Vec<Curve>)], x: &Horizontal<'_>) -> Result<String> {
    let has_points = |curves: &[Curve]| curves.iter().any(|curve| !curve.points.is_empty());
    let panels: Vec<_> = panels.iter().filter(|(_, curves)| has_points(curves)).collect();
    let rows = panels.len().div_ceil(COLUMNS);
    let mut named: Vec<(&str, RGBColor)> = Vec::new();
    for curve in panels.iter().flat_map(|(_, curves)| curves) {
        if !named.contains(&(curve.name.as_str(), curve.color)) {
            named.push((&curve.name, curve.color));
        }
    }
    let width = COLUMNS as u32 * PANEL.0;
    let height = (rows as u32 * PANEL.1).max(40 + 18 * named.len() as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width + LEGEND, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let (plots, legend) = area.split_horizontally(width);
        for (area, (title, curves)) in plots.split_evenly((rows, COLUMNS)).iter().zip(panels) {
            chart::draw(area, Some(*title), x, curves.iter())?;
        }
        chart::legend(&legend, named.into_iter())?;
        area.present()?;
    }
    Ok(svg)
}

/// A color for each set of weights: the weights that a stage ends with have its own, its checkpoints lighter
/// ones, the lighter the earlier.
fn colors(weights: &[Analyzed]) -> Vec<RGBColor> {
    let of = |(at, weights_at): (usize, &Analyzed)| {
        let Some(stage) = weights_at.stage else { return chart::color(at) };
        let color = match stage {
            StageId::Tokenizer | StageId::Pretrain => chart::color(0),
            StageId::Sar => chart::color(1),
            StageId::Control => chart::color(2),
        };
        let is_of_stage = |other: &&Analyzed| other.stage == Some(stage);
        let n = weights.iter().filter(is_of_stage).count();
        let later = weights[at + 1..].iter().filter(is_of_stage).count();
        mixed(color, WHITE, 0.75 * later as f64 / n as f64)
    };
    weights.iter().enumerate().map(of).collect()
}

/// A color between two: `share` 0 is the first, 1 the second.
fn mixed(a: RGBColor, b: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
