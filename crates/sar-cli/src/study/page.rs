//! `report.html`: the whole study in one file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plotters::prelude::*;
use sar_core::ScaleSize;
use sar_metrics::Estimate;
use serde_json::Value;

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
    picture: impl Fn(&str) -> Option<std::path::PathBuf>,
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
    if !summary.elsewhere.is_empty() {
        let names = escape(&summary.elsewhere.join(", "));
        html += &format!(
            " Measured in other folders, whose start and control are those of this one to the last digit (FD and KID to 1e-6): {names}."
        );
    }
    html += "</p>\n";
    for line in mixed(arms) {
        html += &format!("<p><b>{}</b></p>\n", escape(&line));
    }
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
    let settings = |settings: &Value| -> String {
        let Some(fields) = settings.as_object() else { return String::new() };
        let fields = fields.iter().map(|(name, value)| format!("{name} {value}"));
        fields.collect::<Vec<_>>().join(", ")
    };
    html += "<h2>Arms</h2>\n";
    let head = ["arm", "seeds", "sampler", "steps", "passes", "s/step"];
    html += &table(
        &[head.as_slice(), &HEAD, &["precision", "recall"]].concat(),
        arms.iter().map(|arm| {
            let number = |x: Option<f64>, digits: usize| {
                x.map_or(String::new(), |x| format!("{x:.digits$}"))
            };
            let mut row = vec![
                escape(&arm.name),
                seeds(arm),
                settings(&arm.settings),
                arm.steps.map_or(String::new(), |steps| steps.to_string()),
                number(arm.passes, 0),
                number(arm.seconds_per_step, 3),
            ];
            if let Some(figures) = &arm.figures {
                row.extend(cells(figures));
                let Figures { precision, recall, .. } = figures;
                row.extend([precision, recall].map(|of| cell(of.as_ref(), 1.0, 3)));
            }
            row
        }),
    );
    let failed = arms.iter().flat_map(|arm| arm.diverged.iter().map(move |of| (arm, of)));
    for (arm, of) in failed {
        html += &format!(
            "<p>{}, seed {}: training went wrong in {}, step {}: {}</p>\n",
            escape(&arm.name),
            of.seed,
            of.stage,
            of.step,
            escape(&of.reason)
        );
    }
    let by = study.samples.choose_by;
    let (field, name, scale) = by.of(("kid", "KID x1000", 1000.0), ("fd", "FD-EffNetLite0", 1.0));
    let holm = format!("p of {}, by Holm", name.trim_end_matches(" x1000"));
    for (title, of) in [
        ("Minus the control, seed by seed", (|arm| arm.minus_control.as_ref()) as Difference),
        ("Minus the start, seed by seed", |arm| arm.minus_start.as_ref()),
    ] {
        let rows = arms.iter().filter_map(|arm| Some((arm, of(arm)?)));
        let is_corrected = title.contains("control");
        let rows = rows.map(|(arm, minus)| {
            let p = arm.minus_control_p.get(field);
            let p = p.map_or(String::new(), |p| format!("{p:.3}"));
            let p = is_corrected.then_some(p);
            std::iter::once(escape(&arm.name)).chain(cells(minus)).chain(p).collect::<Vec<_>>()
        });
        html += &format!("<h2>{title}</h2>\n");
        let mut head = [["arm"].as_slice(), &HEAD].concat();
        if is_corrected {
            html += "<p>Each interval is at 95 %, whatever their number: of twenty that hide no difference about one \
                     leaves out 0. The last column is corrected for the number of arms: below 0.05 it says that \
                     there is a difference.</p>\n";
            head.push(&holm);
        }
        html += &table(&head, rows);
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
    html += "<h2>Samples</h2>\n<p>The first seed's that went well, a column a class; the same streams for all.</p>\n";
    for arm in arms {
        let Some(Ok(png)) = picture(&arm.name).map(fs::read) else { continue };
        let name = escape(&arm.name);
        html += &format!(
            "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{}\"><figcaption>{name}</figcaption></figure>\n",
            STANDARD.encode(png)
        );
    }
    html += &format!(
        "<h2>Settings of the sampler</h2>\n<p>{name} on the samples that the setting was chosen by.</p>\n"
    );
    if let Some(first) = arms.iter().find(|arm| !arm.grid.is_empty()) {
        let head = first.grid.iter().map(|row| settings(&row.settings));
        let head: Vec<String> = std::iter::once("arm".into()).chain(head).collect();
        html += &table(
            &head.iter().map(String::as_str).collect::<Vec<_>>(),
            arms.iter().map(|arm| {
                let values =
                    arm.grid.iter().map(|row| format!("{:.1}", scale * by.of(row.kid, row.fd)));
                std::iter::once(escape(&arm.name)).chain(values).collect()
            }),
        );
    }
    let code: Vec<String> = summary
        .code
        .iter()
        .map(|code| {
            let commit = code.commit.as_deref().unwrap_or("unknown commit");
            format!("sar {} at {commit}, on {}", code.program, code.machine)
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
    estimate.map_or(String::new(), |of| format!("{:.digits$}", of.times(by)))
}

/// How many seeds an arm has.
fn seeds(arm: &Arm) -> String {
    std::iter::once(arm.seeds.to_string()).chain(arm.diverged_of()).collect::<Vec<_>>().join(", ")
}

/// Arms that were made by more than one program, with their controls, a line each.
fn mixed(arms: &[Arm]) -> impl Iterator<Item = String> {
    arms.iter().filter(|arm| arm.mixed_programs).map(move |arm| {
        let control = arm.control.as_ref().and_then(|name| arms.iter().find(|of| of.name == *name));
        let programs = |arm: &Arm| arm.programs.iter().cloned().collect::<Vec<_>>().join(", ");
        let beside = control
            .map_or(String::new(), |of| format!("; its control {} by {}", of.name, programs(of)));
        format!("made by different programs: {} by {}{beside}", arm.name, programs(arm))
    })
}

/// The scales of all arms, the coarsest first: an arm from images may have others than the rest.
fn axis(arms: &[Arm]) -> Vec<&str> {
    let scales = arms.iter().flat_map(|arm| &arm.scales).map(|of| of.scale.as_str());
    let size = |scale: &str| {
        let size = scale.parse::<ScaleSize>().ok();
        size.map(|size| (size.tokens(), size.height))
    };
    let by_size: BTreeSet<_> = scales.map(|scale| (size(scale), scale)).collect();
    by_size.into_iter().map(|(_, scale)| scale).collect()
}

/// A figure over the scales, a curve for each arm; as SVG.
fn plot(arms: &[Arm], figure: Figure) -> Result<String> {
    let axis = axis(arms);
    let curve = |(at, arm): (usize, &Arm)| {
        let point = |of: &Scale| {
            let k = axis.iter().position(|scale| *scale == of.scale)?;
            Some((k as f64, figure(of)?.mean))
        };
        Curve {
            name: arm.name.clone(),
            color: chart::color(at),
            points: arm.scales.iter().filter_map(point).collect(),
        }
    };
    let curves: Vec<Curve> = arms.iter().enumerate().map(curve).collect();
    let label = |k: f64| {
        let scale = axis.get(k.round() as usize).filter(|_| k.fract() == 0.0);
        scale.map_or(String::new(), |scale| (*scale).to_owned())
    };
    let x = Horizontal { name: "scale", labels: axis.len(), label: &label };
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
pub(super) fn shown(summary: &Summary) -> String {
    let arms = summary.arms.as_slice();
    let mut rows = vec![
        ["arm", "seeds", "KID x1000", "class accuracy", "FD", "KID x1000 minus control", "p"]
            .map(String::from)
            .to_vec(),
    ];
    for arm in arms {
        let mut row = vec![arm.name.clone(), seeds(arm)];
        if let Some(of) = &arm.figures {
            row.extend([
                cell(Some(&of.kid), 1000.0, 1),
                cell(of.class_accuracy.as_ref(), 1.0, 3),
                cell(Some(&of.fd), 1.0, 1),
                cell(arm.minus_control.as_ref().map(|minus| &minus.kid), 1000.0, 1),
                arm.minus_control_p.get("kid").map_or(String::new(), |p| format!("{p:.3}")),
            ]);
        }
        row.resize(rows[0].len(), String::new());
        rows.push(row);
    }
    let mut lines = crate::table::aligned(&rows);
    if arms.iter().any(|arm| arm.minus_control.is_some()) {
        lines += "intervals are each at 95 %, not corrected for their number; p is, by Holm\n";
    }
    mixed(arms).for_each(|line| lines += &(line + "\n"));
    if !summary.elsewhere.is_empty() {
        lines += &format!("measured in other folders: {}\n", summary.elsewhere.join(", "));
    }
    lines
}

/// Writes the page into the study's folder.
pub(super) fn write(folder: &Path, html: &str) -> Result<()> {
    Ok(sar_weights::write_bytes(&folder.join("report.html"), html.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::file::tests::small;
    use crate::study::results::arms;
    use crate::study::results::tests::finished;

    #[test]
    fn scales_of_other_schedules_have_places_of_their_own() {
        let mut other = finished("scratch-wide", &[1.0]);
        let scales = &mut other.outcomes[0].trained.scales;
        ["1x1", "10x10"].iter().zip(scales).for_each(|(name, of)| of.scale = (*name).into());
        let arms = arms(&small(), &[finished("control", &[1.0]), other]).unwrap();
        assert_eq!(axis(&arms[..1]), ["1x1", "2x2"]);
        assert_eq!(axis(&arms), ["1x1", "2x2", "10x10"]);
    }
}
