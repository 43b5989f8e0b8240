//! `report.html`: the whole study in one file.

use std::fs;
use std::path::Path;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plotters::prelude::*;
use sar_train::quality::Estimate;

use super::Summary;
use super::file::Study;
use super::results::{Arm, Figures, Scale};
use crate::chart::{self, Curve, Horizontal};
use crate::report::{STYLE, escape, table};

/// A figure of a scale.
type Figure = fn(&Scale) -> Option<Estimate>;

/// The page; `picture` is where an arm's samples lie.
pub(super) fn page(
    study: &Study,
    summary: &Summary,
    picture: impl Fn(&str) -> std::path::PathBuf,
) -> Result<String> {
    let name = escape(&study.name);
    let arms = &summary.arms;
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n<p>{} arms of {} seeds of training; \
         {:.1} hours. Means with 95 % intervals over seeds by Student's t; an arm is measured at the \
         setting of the sampler that was best for it on other samples. Samples of a seed are of the same \
         streams for all arms. The interval of the start is over streams of samples alone.",
        study.arms.len(),
        study.seeds.len(),
        summary.hours,
    );
    if !summary.unfinished.is_empty() {
        html += &format!(" <b>Not finished: {}.</b>", escape(&summary.unfinished.join(", ")));
    }
    html += "</p>\n";
    if let Some(real) = &summary.real {
        html += &format!(
            "<p>{} samples of each arm and seed beside {} real images, as {} sees them.",
            real.samples,
            real.reference,
            escape(&real.extractor[0])
        );
        if let Some(floor) = &real.floor {
            html += &format!(
                " {} held-out real images have a KID x1000 of {:.1} and a class accuracy of {}.",
                floor.images,
                1000.0 * floor.kid.unwrap_or(f64::NAN),
                floor.class_accuracy.map_or("-".into(), |of| format!("{of:.3}"))
            );
        }
        html += "</p>\n";
    }
    let settings = |arm: &Arm| -> String {
        let Some(fields) = arm.settings.as_object() else { return String::new() };
        let fields = fields.iter().map(|(name, value)| format!("{name} {value}"));
        fields.collect::<Vec<_>>().join(", ")
    };
    html += "<h2>Arms</h2>\n";
    let head = ["arm", "sampler", "steps", "s/step"];
    html += &table(
        &[head.as_slice(), &HEAD, &["precision", "recall"]].concat(),
        arms.iter().map(|arm| {
            let mut row = vec![
                escape(&arm.name),
                settings(arm),
                arm.steps.to_string(),
                format!("{:.3}", arm.seconds_per_step),
            ];
            row.extend(cells(&arm.figures));
            let Figures { precision, recall, .. } = &arm.figures;
            row.extend([precision, recall].map(|of| cell(of.as_ref(), 1.0, 3)));
            row
        }),
    );
    for (title, of) in [
        ("Minus the control, seed by seed", (|arm| arm.minus_control.as_ref()) as Difference),
        ("Minus the start, seed by seed", |arm| arm.minus_start.as_ref()),
    ] {
        let rows = arms.iter().filter_map(|arm| Some((arm, of(arm)?)));
        let rows = rows.map(|(arm, minus)| {
            std::iter::once(escape(&arm.name)).chain(cells(minus)).collect::<Vec<_>>()
        });
        html += &format!("<h2>{title}</h2>\n");
        html += &table(&[["arm"].as_slice(), &HEAD].concat(), rows);
    }
    html += "<h2>By scale</h2>\n";
    for (title, figure) in [
        ("Exposure gap, nats per token", (|of| of.exposure_gap) as Figure),
        ("Student loss, nats per token", |of| of.student_loss),
        ("Teacher loss, nats per token", |of| Some(of.teacher_loss)),
    ] {
        html +=
            &format!("<figure>{}<figcaption>{title}</figcaption></figure>\n", plot(arms, figure)?);
    }
    html +=
        "<h2>Samples</h2>\n<p>The first seed's, a column a class; the same streams for all.</p>\n";
    for arm in arms {
        let Ok(png) = fs::read(picture(&arm.name)) else { continue };
        let name = escape(&arm.name);
        html += &format!(
            "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{}\"><figcaption>{name}</figcaption></figure>\n",
            STANDARD.encode(png)
        );
    }
    html += "<h2>Settings of the sampler</h2>\n<p>KID x1000 on the samples that the setting was chosen by.</p>\n";
    if let Some(first) = arms.first() {
        let head = first.grid.iter().map(|row| row.settings.to_string());
        let head: Vec<String> = std::iter::once("arm".into()).chain(head).collect();
        html += &table(
            &head.iter().map(String::as_str).collect::<Vec<_>>(),
            arms.iter().map(|arm| {
                let kids = arm.grid.iter().map(|row| format!("{:.1}", 1000.0 * row.kid));
                std::iter::once(escape(&arm.name)).chain(kids).collect()
            }),
        );
    }
    let code: Vec<String> = summary
        .code
        .iter()
        .map(|code| {
            let commit = code.commit.as_deref().unwrap_or("unknown commit");
            format!("sar {} at {commit}, on {}", code.version, code.machine)
        })
        .collect();
    html += &format!(
        "<h2>Made by</h2>\n<p>{}<br><code>{}</code></p>\n<h2>File</h2>\n<pre>{}</pre>\n</body></html>\n",
        escape(&code.join("; ")),
        escape(&summary.command),
        escape(&toml::to_string(study)?)
    );
    Ok(html)
}

/// A difference of an arm.
type Difference = fn(&Arm) -> Option<&Figures>;

const HEAD: [&str; 6] = [
    "KID x1000",
    "FD-EffNetLite0",
    "class accuracy",
    "teacher loss",
    "student loss",
    "exposure gap",
];

fn cells(figures: &Figures) -> [String; 6] {
    let Figures { kid, fd, class_accuracy, teacher_loss, student_loss, exposure_gap, .. } = figures;
    [
        cell(Some(kid), 1000.0, 1),
        cell(Some(fd), 1.0, 1),
        cell(class_accuracy.as_ref(), 1.0, 3),
        cell(Some(teacher_loss), 1.0, 3),
        cell(student_loss.as_ref(), 1.0, 3),
        cell(exposure_gap.as_ref(), 1.0, 3),
    ]
}

fn cell(estimate: Option<&Estimate>, by: f64, digits: usize) -> String {
    estimate.map_or(String::new(), |Estimate { mean, low, high }| {
        let [mean, low, high] = [mean, low, high].map(|x| format!("{:.digits$}", by * x));
        format!("{mean} <small>[{low}, {high}]</small>")
    })
}

/// A figure over the scales, a curve for each arm; as SVG.
fn plot(arms: &[Arm], figure: Figure) -> Result<String> {
    let curve = |(at, arm): (usize, &Arm)| {
        let points = arm.scales.iter().enumerate();
        Curve {
            name: arm.name.clone(),
            color: chart::color(at),
            points: points.filter_map(|(k, of)| Some((k as f64, figure(of)?.mean))).collect(),
        }
    };
    let curves: Vec<Curve> = arms.iter().enumerate().map(curve).collect();
    let longest = arms.iter().map(|arm| &arm.scales).max_by_key(|scales| scales.len());
    let label = |k: f64| {
        let scale = longest.and_then(|scales| scales.get(k.round() as usize));
        scale.filter(|_| k.fract() == 0.0).map_or(String::new(), |of| of.scale.clone())
    };
    let n_scales = longest.map_or(0, Vec::len);
    let x = Horizontal { name: "scale", labels: n_scales, label: &label };
    let height = 320.max(40 + 18 * curves.len() as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (960, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let (plot, legend) = area.split_horizontally(760);
        chart::draw(&plot, None, &x, curves.iter())?;
        chart::legend(&legend, curves.iter().map(|curve| (curve.name.as_str(), curve.color)))?;
        area.present()?;
    }
    Ok(svg)
}

/// The arms in a few lines.
pub(super) fn shown(arms: &[Arm]) -> String {
    let text = |cell: String| cell.replace("<small>", "").replace("</small>", "");
    let mut rows = vec![
        ["arm", "seeds", "KID x1000", "class accuracy", "FD", "KID x1000 minus control"]
            .map(String::from)
            .to_vec(),
    ];
    for arm in arms {
        let of = &arm.figures;
        rows.push(vec![
            arm.name.clone(),
            arm.seeds.to_string(),
            text(cell(Some(&of.kid), 1000.0, 1)),
            text(cell(of.class_accuracy.as_ref(), 1.0, 3)),
            text(cell(Some(&of.fd), 1.0, 1)),
            text(cell(arm.minus_control.as_ref().map(|minus| &minus.kid), 1000.0, 1)),
        ]);
    }
    crate::table::aligned(&rows)
}

/// Writes the page into the study's folder.
pub(super) fn write(folder: &Path, html: &str) -> Result<()> {
    Ok(sar_weights::write_bytes(&folder.join("report.html"), html.as_bytes())?)
}
