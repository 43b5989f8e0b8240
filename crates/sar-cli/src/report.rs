//! `report.html`: one file that shows a whole run, pictures and curves inside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plotters::prelude::*;
use sar_eval::TokenizerColor;
use sar_train::held_out::{Figures, HeldOut};
use sar_train::quality::{Figures as SampleFigures, QualityReport};
use sar_train::report::Report;
use sar_weights::write_bytes;

use crate::chart::{self, Curve, Horizontal};

/// Writes `report.html` and the loss curves, `losses-<stage>.svg`, from what a run left.
pub(crate) fn write_html(run_dir: &Path, report: &Report) -> Result<PathBuf> {
    let recipe = read(run_dir, "recipe.toml")?;
    let curves = Curves::parse(&read(run_dir, "metrics.jsonl")?)?;
    let mut charts = Vec::new();
    for stage in &report.stages {
        let Some(svg) = curves.chart(&stage.name)? else { continue };
        write_bytes(&run_dir.join(format!("losses-{}.svg", stage.name)), svg.as_bytes())?;
        charts.push((stage.name.as_str(), svg));
    }
    let mut pictures = BTreeMap::new();
    for name in PICTURES {
        let path = run_dir.join(name);
        let png = fs::read(&path).with_context(|| path.display().to_string())?;
        pictures.insert(name, STANDARD.encode(png));
    }
    let html = page(report, &recipe, &charts, &pictures);
    let path = run_dir.join("report.html");
    write_bytes(&path, html.as_bytes())?;
    Ok(path)
}

/// What a run amounts to, in a few lines.
pub(crate) fn summary(report: &Report) -> String {
    let tokenizer = &report.tokenizer.figures;
    let mut text = format!(
        "tokenizer: {:.2} dB, {} of {} codes in use on held-out images\n",
        tokenizer.psnr_db, tokenizer.codes_used, tokenizer.codes
    );
    text += &colors(&tokenizer.by_color);
    text += "held-out nats per token [95 % interval]:\n";
    let head = ["", "teacher loss", "student loss", "exposure gap"];
    text += &format!("{:18}{:25}{:25}{}\n", head[0], head[1], head[2], head[3]);
    let weights = weights(report).map(|(name, held_out)| (name, &held_out.figures));
    for (name, of) in weights.chain(differences(report)) {
        text += &format!("{name:18}");
        for column in figures(of) {
            text += &format!("{:25}", column.map_or(String::new(), shown));
        }
        text.truncate(text.trim_end().len());
        text += "\n";
    }
    if let Some(quality) = &report.quality {
        text += &format!(
            "samples beside real images, {} of each of {} seeds [95 % interval over seeds]:\n",
            quality.samples, quality.seeds
        );
        text +=
            &format!("{:18}{:25}{:25}{}\n", "", "KID x1000", "class accuracy", "FD-EffNetLite0");
        for (name, of) in qualities(quality) {
            let [kernel, accuracy, frechet] = cells(of);
            text += format!("{name:18}{kernel:25}{accuracy:25}{frechet}").trim_end();
            text += "\n";
        }
    }
    let memory = report.peak_rss_mb.map_or(String::new(), |mb| format!(", peak memory {mb:.0} MB"));
    text + &format!("{:.1} minutes{memory}", report.wall_s / 60.0)
}

/// A line about the weakest color; none of a report of before there were colors.
fn colors(by_color: &[TokenizerColor]) -> String {
    let shares: Vec<f64> = by_color.iter().filter_map(|color| color.error_share).collect();
    let which = match (shares.len(), by_color.len()) {
        (_, 0) => return String::new(),
        (0, _) => return "colors: the images do not vary\n".into(),
        (1, 2..) => "only axis that the images vary along",
        (varied, all) if varied < all => "weaker of two axes that the images vary along",
        _ => "axis of least variance",
    };
    let weakest = shares[shares.len() - 1];
    format!("colors: the error along the {which} is {weakest:.2} of its variance\n")
}

const RECONSTRUCTIONS: &str = "reconstructions.png";
const BEFORE: &str = "samples-before.png";
const AFTER: &str = "samples-after.png";
const PICTURES: [&str; 3] = [RECONSTRUCTIONS, BEFORE, AFTER];

fn read(run_dir: &Path, name: &str) -> Result<String> {
    let path = run_dir.join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Differences on the same images.
fn differences(report: &Report) -> impl Iterator<Item = (&'static str, &Figures)> {
    let paired = &report.held_out.paired;
    let control = [
        ("control - before", &paired.control_minus_before),
        ("after - control", &paired.after_minus_control),
    ];
    let control = control.into_iter().filter_map(|(name, figures)| Some((name, figures.as_ref()?)));
    std::iter::once(("after - before", &paired.after_minus_before)).chain(control)
}

/// The sets of weights that are compared.
fn weights(report: &Report) -> impl Iterator<Item = (&'static str, &HeldOut)> {
    let held_out = &report.held_out;
    let others = [
        ("control", &held_out.control),
        ("before, averaged", &held_out.before_average),
        ("after, averaged", &held_out.after_average),
    ];
    let others = others.into_iter().filter_map(|(name, of)| Some((name, of.as_ref()?)));
    [("before", &held_out.before), ("after", &held_out.after)].into_iter().chain(others)
}

/// Samples of each set of weights, and differences of pairs.
fn qualities(quality: &QualityReport) -> impl Iterator<Item = (&'static str, &SampleFigures)> {
    let rows = [
        ("before", Some(&quality.before)),
        ("after", Some(&quality.after)),
        ("control", quality.control.as_ref()),
        ("after - before", Some(&quality.after_minus_before)),
        ("after - control", quality.after_minus_control.as_ref()),
    ];
    rows.into_iter().filter_map(|(name, of)| Some((name, of?)))
}

/// Kernel distance times 1000, class accuracy, Fréchet distance.
fn cells(figures: &SampleFigures) -> [String; 3] {
    [
        format!("{:.1}", figures.kid_effnetlite0.times(1000.0)),
        figures.class_accuracy.map_or(String::new(), |of| format!("{of:.3}")),
        format!("{:.1}", figures.fd_effnetlite0),
    ]
}

type Shown = (f64, [f64; 2]);

/// Teacher loss, student loss, gap; the latter two not for a first scale.
fn figures(figures: &Figures) -> [Option<Shown>; 3] {
    let Figures { teacher_loss, student_loss, exposure_gap, intervals, .. } = figures;
    [
        Some((*teacher_loss, intervals.teacher_loss)),
        student_loss.zip(intervals.student_loss),
        exposure_gap.zip(intervals.exposure_gap),
    ]
}

fn shown((value, [low, high]): Shown) -> String {
    format!("{value:.3} [{low:.3}, {high:.3}]")
}

/// Losses by stage and name, as points (step, value).
struct Curves(BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>>);

/// Fields of a metrics line that are no losses.
const NO_LOSS: [&str; 12] = [
    "step",
    "fd_effnetlite0",
    "kid_effnetlite0",
    "class_accuracy",
    "gradient_norm",
    "lr",
    "weight_decay",
    "codes_used",
    "perplexity",
    "held_out_psnr_db",
    "loss_scale",
    "steps_skipped",
];

impl Curves {
    fn parse(jsonl: &str) -> Result<Self> {
        let mut stages = BTreeMap::<String, BTreeMap<String, Vec<(f64, f64)>>>::new();
        for (number, line) in jsonl.lines().enumerate() {
            let context = || format!("metrics.jsonl: line {}", number + 1);
            let line: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).with_context(context)?;
            let stage = line.get("stage").and_then(|stage| stage.as_str()).with_context(context)?;
            let step = line.get("step").and_then(|step| step.as_f64()).with_context(context)?;
            let curves = stages.entry(stage.to_owned()).or_default();
            for (name, value) in &line {
                let Some(value) = value.as_f64() else { continue };
                if !NO_LOSS.contains(&name.as_str()) {
                    curves.entry(name.clone()).or_default().push((step, value));
                }
            }
        }
        Ok(Self(stages))
    }

    /// The stage's losses over its steps, as SVG; none where fewer than two steps were logged.
    fn chart(&self, stage: &str) -> Result<Option<String>> {
        let Some(curves) = self.0.get(stage) else { return Ok(None) };
        let points = || curves.values().flatten();
        let steps = points().map(|(step, _)| *step).fold(0.0, f64::max);
        if steps == 0.0 {
            return Ok(None);
        }
        let colored = curves.iter().enumerate().map(|(at, (name, points))| Curve {
            name: name.clone(),
            color: chart::color(at),
            points: points.clone(),
        });
        let curves: Vec<Curve> = colored.collect();
        let x = Horizontal { name: "step", labels: 11, label: &|step| format!("{step:.0}") };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (760, 320)).into_drawing_area();
            area.fill(&WHITE)?;
            let (plot, legend) = area.split_horizontally(620);
            chart::draw(&plot, None, &x, curves.iter())?;
            chart::legend(&legend, curves.iter().map(|curve| (curve.name.as_str(), curve.color)))?;
            area.present()?;
        }
        Ok(Some(svg))
    }
}

pub(crate) const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2em .8em; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td small { color: #777; }
img, svg { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
figure { margin: 1em 0; } figcaption { color: #555; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px; }";

fn page(
    report: &Report,
    recipe: &str,
    charts: &[(&str, String)],
    pictures: &BTreeMap<&str, String>,
) -> String {
    let mut html = String::new();
    let name = escape(&report.recipe);
    let picture = |name: &str, caption: &str| {
        format!(
            "<figure><img alt=\"{caption}\" src=\"data:image/png;base64,{}\"><figcaption>{caption}</figcaption></figure>\n",
            pictures[name]
        )
    };
    html += &format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n<p>Seed {}, {} training and {} held-out \
         images, {:.1} minutes",
        report.seed,
        report.images.train,
        report.images.held_out,
        report.wall_s / 60.0
    );
    if let Some(mb) = report.peak_rss_mb {
        html += &format!(", peak memory {mb:.0} MB");
    }
    html += ".</p>\n<h2>Samples</h2>\n";
    html += "<p>One row a class, from the same seeds before and after SAR.</p>\n";
    html += &picture(BEFORE, "Before SAR");
    html += &picture(AFTER, "After SAR");

    if let Some(quality) = &report.quality {
        html += &format!(
            "<h2>Samples beside real images</h2>\n<p>{} samples of each of {} seeds, the same streams for all \
             weights, beside {} real images, as {} sees them; means with 95 % intervals over seeds, \
             differences seed by seed. Lower distances are better, and so is a higher accuracy. A \
             Fréchet distance of so few samples is far too large, and compares with those of as many only.",
            quality.samples,
            quality.seeds,
            quality.reference,
            escape(&quality.extractor[0])
        );
        if let Some(floor) = &quality.floor
            && let (Some(kernel), Some(accuracy)) = (floor.kid_effnetlite0, floor.class_accuracy)
        {
            html += &format!(
                " The {} held-out real images have a KID x1000 of {:.1} and an accuracy of {accuracy:.3}.",
                floor.images,
                1000.0 * kernel
            );
        }
        html += "</p>\n";
        html += &table(
            &["weights", "KID x1000", "class accuracy", "FD-EffNetLite0"],
            qualities(quality)
                .map(|(name, of)| std::iter::once(escape(name)).chain(cells(of)).collect()),
        );
    }

    html += "<h2>Held-out losses around SAR</h2>\n<p>Nats per token on held-out images, evaluation \
             mode, no guidance, with 95 % intervals over images. Teacher: the context is the ground \
             truth. Student: the context is the model's own argmax, one scale behind. The gap is the \
             difference over the same scales. Control: teacher forcing for as many passes as SAR \
             made.</p>\n";
    html += &table(
        &["weights", "teacher loss", "student loss", "exposure gap"],
        weights(report).map(|(name, held_out)| row(name, &held_out.figures)),
    );
    html += "<p>Differences image by image, so that hard and easy images cancel:</p>\n";
    html += &table(
        &["weights", "teacher loss", "student loss", "exposure gap"],
        differences(report).map(|(name, figures)| row(name, figures)),
    );
    html += "<h3>By scale</h3>\n";
    for (name, held_out) in weights(report) {
        html += &table(
            &[
                name,
                "teacher loss",
                "student loss",
                "exposure gap",
                "accuracy",
                "histogram entropy",
            ],
            held_out.by_scale.iter().zip(&held_out.statistics).map(|(scale, statistics)| {
                let mut cells = row(&scale.scale, &scale.figures);
                cells.push(format!("{:.1} %", 100.0 * statistics.accuracy));
                cells.push(format!("{:.3}", statistics.histogram_entropy));
                cells
            }),
        );
    }

    let tokenizer = &report.tokenizer.figures;
    html += &format!(
        "<h2>Tokenizer</h2>\n<p>{:.2} dB on held-out images at the finest scale{}; {} of {} codes in \
         use.</p>\n",
        tokenizer.psnr_db,
        report
            .tokenizer
            .average_psnr_db
            .map_or(String::new(), |db| format!(", {db:.2} dB with averaged weights")),
        tokenizer.codes_used,
        tokenizer.codes
    );
    html +=
        &picture(RECONSTRUCTIONS, "Held-out originals, and below them each scale, finest first");
    html += &table(
        &["scale", "PSNR, dB", "SSIM", "codes used", "dead", "perplexity"],
        tokenizer.by_scale.iter().map(|scale| {
            vec![
                scale.scale.clone(),
                format!("{:.2}", scale.psnr_db),
                format!("{:.3}", scale.ssim),
                format!("{} of {}", scale.codes_used, scale.codes_usable),
                scale.codes_dead_of_usable.to_string(),
                format!("{:.1}", scale.perplexity),
            ]
        }),
    );
    html += "<p>Codes are counted of those that a scale can use: no more than it has tokens in these \
             images. The others of these are dead.</p>\n";

    html += &table(
        &["color axis (red, green, blue)", "deviation", "PSNR, dB", "error, share of the variance"],
        tokenizer.by_color.iter().map(|color| {
            let [r, g, b] = color.axis;
            vec![
                format!("{r:.2}, {g:.2}, {b:.2}"),
                format!("{:.3}", color.deviation),
                format!("{:.2}", color.psnr_db),
                color.error_share.map_or("-".into(), |share| format!("{share:.3}")),
            ]
        }),
    );

    html += "<h2>Training</h2>\n";
    html += &table(
        &[
            "stage",
            "steps",
            "batch",
            "parameters",
            "minutes",
            "images/s",
            "best on held-out images",
        ],
        report.stages.iter().map(|stage| {
            let images = stage.steps as f64 * stage.batch as f64;
            vec![
                escape(&stage.name),
                stage.steps.to_string(),
                stage.batch.to_string(),
                stage.parameters.to_string(),
                format!("{:.1}", stage.wall_s / 60.0),
                format!("{:.1}", images / stage.wall_s),
                stage.best_step.map_or(String::new(), |step| format!("step {step}")),
            ]
        }),
    );
    for (stage, svg) in charts {
        html += &format!("<figure>{svg}<figcaption>Losses, {stage}</figcaption></figure>\n");
    }
    html += &format!("<h2>Recipe</h2>\n<pre>{}</pre>\n</body></html>\n", escape(recipe));
    html
}

fn row(name: &str, of: &Figures) -> Vec<String> {
    let cell = |shown: Option<Shown>| {
        shown.map_or(String::new(), |(value, [low, high])| {
            format!("{value:.3} <small>[{low:.3}, {high:.3}]</small>")
        })
    };
    std::iter::once(escape(name)).chain(figures(of).map(cell)).collect()
}

/// A table; cells are HTML.
pub(crate) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{cell}</{tag}>")).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head: Vec<String> = head.iter().map(|cell| escape(cell)).collect();
    let rows: String = rows.map(|cells| line("td", &cells)).collect();
    format!("<div class=\"scroll\"><table>\n{}{rows}</table></div>\n", line("th", &head))
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn curves_hold_losses_only() {
        let jsonl = "{\"stage\":\"sar\",\"step\":0,\"teacher\":3.0,\"lr\":0.1}\n\
                     {\"stage\":\"sar\",\"step\":3,\"loss_scale\":512,\"steps_skipped\":1}\n\
                     {\"stage\":\"sar\",\"step\":10,\"teacher\":2.0,\"student\":4.0,\"lr\":0.1}\n";
        let curves = Curves::parse(jsonl).unwrap();
        let sar = &curves.0["sar"];
        assert_eq!(sar.keys().collect::<Vec<_>>(), ["student", "teacher"]);
        assert_eq!(sar["teacher"], [(0.0, 3.0), (10.0, 2.0)]);
        let svg = curves.chart("sar").unwrap().unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("student"));
        // A single point shows, too.
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(curves.chart("teacher").unwrap().is_none());
        assert!(Curves::parse("{\"step\":0}").is_err());
    }

    #[test]
    fn the_weakest_color_is_one_that_there_is() {
        let line = |shares: &[Option<f64>]| {
            let color = |share: &Option<f64>| -> TokenizerColor {
                let axis = [1.0, 0.0, 0.0];
                let color = json!({
                    "axis": axis, "deviation": 0.1, "psnr_db": 20.0, "error_share": share
                });
                serde_json::from_value(color).unwrap()
            };
            colors(&shares.iter().map(color).collect::<Vec<_>>())
        };
        let least = "colors: the error along the axis of least variance is 0.50 of its variance\n";
        assert_eq!(line(&[Some(0.1), Some(0.2), Some(0.5)]), least);
        let gray = line(&[Some(0.25), None, None]);
        assert!(gray.contains("only axis that the images vary along is 0.25"), "{gray}");
        let two = line(&[Some(0.25), Some(0.75), None]);
        assert!(two.contains("weaker of two axes that the images vary along is 0.75"), "{two}");
        assert_eq!(line(&[None; 3]), "colors: the images do not vary\n");
        assert_eq!(line(&[]), "");
    }

    #[test]
    fn markup_in_names_stays_text() {
        assert_eq!(escape("<b> & \"c\""), "&lt;b&gt; &amp; &quot;c&quot;");
        let cell = table(&["<x>"], std::iter::empty());
        assert!(cell.contains("&lt;x&gt;"));
    }
}
