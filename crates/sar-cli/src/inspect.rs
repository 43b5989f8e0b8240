//! `sar inspect`: what a file of weights, a recipe, a run directory or a device is.
//!
//! Only headers are held in memory; checksums are compared by reading through.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::backend::{AutodiffBackend, Backend};
#[cfg(feature = "flex")]
use sar_kernels::CpuLevel;
use sar_model::{BackboneConfig, BackboneShape, Precision};
use sar_pipeline::{
    EditOrigin, EditedPart, Known, MadeWith, Model, Origin, Recognized, SourceFile, Wanted,
};
use sar_rollout::{Choice, Filters};
use sar_tokenizer::{CodebookGrowth, Family, TokenizerConfig};
use sar_train::{Recipe, StageId};
use sar_weights::{Checksum, Format, TensorInfo, Unreadable, WeightsFile};
use serde_json::Value;

use crate::Verdict;
#[cfg(feature = "flex")]
use crate::device::serves;
use crate::device::{DeviceArg, HostBackend, Job};
use crate::generation::{WeightsArgs, shell_quote};
use crate::hub::WeightsPath;

/// The longest metadata value that is shown whole, in characters.
const SHOWN: usize = 200;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A .pth or safetensors file (with the feature `hub` also hf:OWNER/REPO/FILE), a recipe (.toml), a
    /// run directory, or a picture that was sampled or edited (.png).
    #[arg(value_name = "FILE", required_unless_present = "device")]
    path: Option<WeightsPath>,
    /// Lists every tensor instead of one line per kind of tensor.
    #[arg(long)]
    all: bool,
    /// Which of several models in the file, as in ema or trainer.var_wo_ddp.
    #[arg(long, value_name = "NAME")]
    root: Option<String>,
    /// Says what a device is, instead of a file, and checks a GPU: flex (the CPU, with the vector
    /// instructions that run), ndarray, wgpu or cuda.
    #[arg(
        long,
        value_name = "NAME[:i]",
        num_args = 0..=1,
        default_missing_value = "flex",
        conflicts_with_all = ["path", "all", "root"]
    )]
    device: Option<String>,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { path, all, root, device } = args;
    if let Some(device) = device {
        DeviceArg::named(device).run(Described)?;
        return Ok(Verdict::Good);
    }
    let path = path.expect("there unless a device is named").file()?;
    if path.join("recipe.toml").is_file() {
        return run_dir(&path);
    }
    if path.extension().is_some_and(|ending| ending == "toml") {
        return recipe(&path);
    }
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png")) {
        return picture(&path);
    }
    let mut file = WeightsFile::open(&path).map_err(|error| match path.is_dir() {
        true => anyhow!("{error}, or the folder of a run, which has a recipe.toml"),
        false => error.into(),
    })?;
    // Before a line is printed: what is said of a damaged file may be wrong.
    let checksum = file.verify()?;
    let summary = Summary::of(&mut file, root);
    weights(&file, &summary, checksum, all);
    Ok(Verdict::Good)
}

/// What a sampled or edited picture is made from, and the command that draws it again.
fn picture(path: &Path) -> Result<Verdict> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let Some(origin) = Origin::of_png(&bytes) else {
        bail!(
            "{}: does not say what it is made from; pictures of `sar sample`, `sar edit` and `sar serve` do",
            path.display()
        );
    };
    let MadeWith { tokenizer, backbone, .. } = &origin.job.made_with;
    println!("{}", made_from(&origin));
    if let Some(edit) = &origin.edit {
        println!("{}", edit_of(edit));
    }
    let in_the_box = WeightsArgs::in_the_box().files().and_then(|files| {
        let device = Default::default();
        Ok(files.made_with(&files.load::<HostBackend>(&device)?, &device))
    });
    let is_in_the_box =
        in_the_box.is_ok_and(|known| (&known.tokenizer, &known.backbone) == (tokenizer, backbone));
    let weights = if is_in_the_box { "" } else { " --run DIR" };
    if !is_in_the_box {
        println!(
            "DIR below: the run, or --tokenizer and --backbone (and --root), with these checksums"
        );
    }
    println!("{}", again(&origin, weights));
    Ok(Verdict::Good)
}

/// What a picture says of itself, in three lines. Whoever wrote the file wrote the texts.
fn made_from(origin: &Origin) -> String {
    let MadeWith { precision, device, tokenizer, backbone } = &origin.job.made_with;
    let class = one_line(origin.class.as_deref().unwrap_or("no class"));
    let (sar, device) = (one_line(&origin.job.sar), one_line(device));
    let [tokenizer, backbone] = [tokenizer, backbone].map(|checksum| one_line(checksum));
    format!(
        "picture {} of {} of {class}, seed {}\nmade by sar {sar}, {device}, products in {precision}\n\
         tokenizer {tokenizer}, backbone {backbone} (checksums)",
        origin.number, origin.job.n, origin.job.seed
    )
}

/// The files that an edit needs, in a line.
fn edit_of(edit: &EditOrigin) -> String {
    let file = |SourceFile { name, checksum }: &SourceFile, sent: &str| {
        let name = name.as_deref().map_or_else(|| sent.to_owned(), one_line);
        format!("{name} (CRC-32 {})", one_line(checksum))
    };
    let EditOrigin { image, part, .. } = edit;
    let mask = match part {
        EditedPart::Mask(mask) => format!(", by the mask {}", file(mask, "that was sent with it")),
        _ => String::new(),
    };
    let needed = match (part, &image.name) {
        (_, Some(_)) => "where they lie elsewhere, put their paths below",
        (EditedPart::Mask(_), None) => {
            "put both for FILE below; what was painted on the page is kept nowhere: paint it again, bright on dark"
        }
        (_, None) => "put it for FILE below",
    };
    format!("an edit of {}{mask}; {needed}", file(image, "a picture that was sent"))
}

/// What an edit was told of its picture, as options of the command.
fn told(edit: &EditOrigin) -> String {
    let EditOrigin { image, part, outside, keep_scales, blend, size } = edit;
    // What was sent has no name, and one that controls a terminal is not passed on.
    let path = |file: &SourceFile| match file.name.as_deref() {
        Some(name) if !name.chars().any(|c| c.is_control() || turns(c)) => shell_quote(name),
        _ => "FILE".to_owned(),
    };
    let four = |sides: &[u32; 4]| sides.map(|side| side.to_string()).join(",");
    let part = match part {
        EditedPart::Mask(mask) => format!("--mask={}", path(mask)),
        EditedPart::Box(sides) => format!("--box={}", four(sides)),
        EditedPart::Margins(sides) => format!("--expand={}", four(sides)),
        EditedPart::Refine => "--refine".into(),
    };
    let mut text = format!(" --image={} {part}", path(image));
    if *outside {
        text += " --outside";
    }
    if let Some(scales) = keep_scales {
        text += &format!(" --keep-scales {scales}");
    }
    if let Some(pixels) = blend {
        text += &format!(" --blend {pixels}");
    }
    if let Some([height, width]) = size {
        text += &format!(" --size {height}x{width}");
    }
    text
}

/// The command that draws a picture again.
fn again(origin: &Origin, weights: &str) -> String {
    let Origin { job, label, class, edit, .. } = origin;
    let class = match (class, edit) {
        // The index whatever the names are: some are numbers. Within a word # begins no comment.
        (Some(_), _) => format!(" --class=#{label}"),
        (None, None) => " --unconditional".into(),
        (None, Some(_)) => String::new(),
    };
    let (what, told) = match edit {
        Some(edit) => ("edit", told(edit)),
        None => ("sample", String::new()),
    };
    let Filters { top_k, top_p } = job.sampler.choice.filters();
    let choice = match job.sampler.choice {
        // Only weights can say it; what is said beside would draw.
        Choice::Argmax => String::new(),
        _ => format!(" --top-k {top_k} --top-p {top_p}"),
    };
    let mut text = format!(
        "sar {what}{weights}{told}{class} --n {} --batch {} --seed {} --guidance {}{choice} --scales {}",
        job.n,
        job.batch,
        job.seed,
        job.sampler.guidance.scale(),
        job.scales,
    );
    if job.sampler.choice.mixes() {
        text += " --more-smooth";
    }
    if job.made_with.precision != Precision::F32 {
        text += &format!(" --precision {}", job.made_with.precision);
    }
    let [variable, device] = of_device(&job.made_with.device);
    format!("{variable}{text}{device}")
}

/// What a command has before and after it so that it computes with the same: the vector instructions, where
/// they are not those of this process, and the device. Of the text only known words are passed on.
fn of_device(made_with: &str) -> [String; 2] {
    let (backend, level) = made_with.split_once(", ").unwrap_or((made_with, ""));
    let other = ["wgpu", "cuda", "ndarray"].into_iter().find(|name| backend.contains(name));
    let device = other.map_or(String::new(), |name| format!(" --device {name}"));
    #[cfg(feature = "flex")]
    if other.is_none() && ["scalar", "neon", "avx2", "avx512"].contains(&level) {
        let is_chosen = CpuLevel::chosen().is_ok_and(|chosen| chosen.to_string() == level);
        if !is_chosen {
            return [format!("{}={level} ", CpuLevel::VARIABLE), device];
        }
    }
    #[cfg(not(feature = "flex"))]
    let _ = level;
    [String::new(), device]
}

/// What a device is.
struct Described;

impl Job for Described {
    type Output = ();

    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<()> {
        row("backend", <A::InnerBackend as Backend>::name(&device));
        row("device", format!("{device:?}"));
        row("workers", workers);
        #[cfg(feature = "flex")]
        if serves::<A::InnerBackend>() {
            let level = CpuLevel::chosen().map_err(|error| anyhow!(error))?;
            let available: Vec<String> =
                CpuLevel::available().iter().map(CpuLevel::to_string).collect();
            let (variable, available) = (CpuLevel::VARIABLE, available.join(", "));
            row("instructions", format!("{level} of {available} ({variable} names another)"));
        }
        Ok(())
    }
}

fn recipe(path: &Path) -> Result<Verdict> {
    let recipe = Recipe::load(&path.to_string_lossy(), &[])?;
    row("kind", "recipe, complete and valid");
    recipe_rows(&recipe);
    println!("\n{}", recipe.to_toml().trim_end());
    Ok(Verdict::Good)
}

fn recipe_rows(recipe: &Recipe) {
    row("name", &recipe.name);
    row("seed", recipe.seed);
    let steps: Vec<String> = StageId::ALL
        .into_iter()
        .map(|stage| format!("{stage} {}", grouped(recipe.steps(stage))))
        .collect();
    row("steps", steps.join(", "));
    row("scales", recipe.scales());
}

/// A run: its recipe, its files of weights, and how far its metrics go.
fn run_dir(dir: &Path) -> Result<Verdict> {
    let file = dir.join("recipe.toml");
    let recipe = Recipe::load(&file.to_string_lossy(), &[])?;
    row("kind", "run directory");
    recipe_rows(&recipe);
    if let Some((lines, last)) = metrics(&dir.join("metrics.jsonl"))? {
        row("metrics", format!("{} lines{last}", grouped(lines)));
    }
    let report = if dir.join("report.json").is_file() { "written" } else { "not yet" };
    row("report", report);

    let mut verdict = Verdict::Good;
    println!();
    for path in weights_below(dir)? {
        let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        match line(&path) {
            Ok(line) => println!("{name}: {line}"),
            Err(error) => {
                verdict = Verdict::Bad;
                println!("{name}: DAMAGED: {error:#}");
            }
        }
    }
    Ok(verdict)
}

/// Number of lines, and what the last whole one says.
fn metrics(path: &Path) -> Result<Option<(u64, String)>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let last = last.map_or(String::new(), |last| {
        let stage = last["stage"].as_str().unwrap_or("?").to_owned();
        format!(", the last of {stage}, step {}", last["step"])
    });
    Ok(Some((lines.len() as u64, last)))
}

/// The files of weights of a run and its checkpoints, by stage and step.
fn weights_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in [dir.to_owned(), dir.join("checkpoints")] {
        if !folder.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut here: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
            .collect();
        here.sort_by_key(|path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match stem.rsplit_once('-').and_then(|(stage, step)| Some((stage, step.parse().ok()?)))
            {
                Some((stage, step)) => (stage.to_owned(), step),
                None => (stem, 0u64),
            }
        });
        found.extend(here);
    }
    Ok(found)
}

/// A file of weights in a line.
fn line(path: &Path) -> Result<String> {
    let mut file = WeightsFile::open(path)?;
    let checksum = file.verify()?;
    let summary = Summary::of(&mut file, None);
    let step = file.metadata().get("step").map_or(String::new(), |step| format!(", step {step}"));
    Ok(format!(
        "{}{step}, {} parameters, {}, checksum {}",
        summary.kind,
        grouped(summary.n_parameters as u64),
        size(file.n_bytes()),
        said(checksum, file.format())
    ))
}

fn weights(file: &WeightsFile, summary: &Summary, checksum: Checksum, all: bool) {
    row("kind", &summary.kind);
    row("format", format!("{}, {}", file.format(), size(file.n_bytes())));
    row("checksum", said(checksum, file.format()));
    row(
        "parameters",
        format!("{} in {} tensors", grouped(summary.n_parameters as u64), summary.n_tensors),
    );
    if !summary.floats.is_empty() {
        row("floats", &summary.floats);
    }
    if summary.n_others > 0 {
        row("besides", format!("{} that are no parameters of it", summary.n_others));
    }
    for (field, value) in &summary.fields {
        row(field, value);
    }
    if !file.metadata().is_empty() {
        println!("\nmetadata");
    }
    for (field, value) in file.metadata() {
        println!("  {} = {}", one_line(field), one_line(value));
    }
    for Unreadable { name, what, .. } in file.unreadable() {
        row("unreadable", format!("{} is {what}", one_line(name)));
    }
    println!("\ntensors");
    if all {
        for TensorInfo { name, dtype, shape } in file.tensors() {
            println!("  {} {shape:?}  {}", dtype.name(), one_line(name));
        }
        return;
    }
    let mut groups: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for TensorInfo { name, dtype, shape } in file.tensors() {
        let about = format!("{} {shape:?}", dtype.name());
        groups.entry((pattern(name), about)).or_default().push(name);
    }
    for ((pattern, about), names) in groups {
        match names.as_slice() {
            [name] => println!("  {about}  {}", one_line(name)),
            names => println!("  {} x {about}  {}", names.len(), one_line(&pattern)),
        }
    }
}

/// What is said of a file of weights before its tensors are listed.
struct Summary {
    kind: String,
    fields: Vec<(&'static str, String)>,
    n_parameters: usize,
    n_tensors: usize,
    /// The element types of its parameters.
    floats: String,
    /// Tensors that are no parameters of the model.
    n_others: usize,
}

impl Summary {
    fn of(file: &mut WeightsFile, root: Option<String>) -> Self {
        let own = file.metadata().get("kind").cloned();
        let known = Known { root, ..Known::default() };
        let found = Recognized::of::<HostBackend>(file, Wanted::Any, &known);
        let mut fields = Vec::new();
        let (kind, counted): (String, Vec<&TensorInfo>) = match found {
            Ok(found) => {
                fields.extend(found.notes().into_iter().map(|note| ("note", note)));
                fields.extend(model_fields(&found.model));
                let model = found.model.kind();
                let preset = found.model.published_name().filter(|preset| *preset != model);
                let preset = preset.map_or(String::new(), |name| format!(" ({name})"));
                let kind = match own {
                    Some(own) if own != model => format!("{} of a {model}", one_line(&own)),
                    _ => model.to_owned(),
                };
                let layout = found.layout();
                let parameters: BTreeSet<&str> = found
                    .located
                    .tensors()
                    .filter(|(name, _)| !layout.is_ignored(name))
                    .map(|(_, info)| info.name.as_str())
                    .collect();
                let is_parameter = |info: &&TensorInfo| parameters.contains(info.name.as_str());
                (kind + &preset, file.tensors().iter().filter(is_parameter).collect())
            }
            Err(error) => {
                // One line of a message that names the file, which the user has just named.
                let reason = error.to_string();
                let reason = reason.strip_prefix(&format!("{}: ", file.path().display()));
                fields.extend(reason.map(|reason| ("note", one_line(reason))));
                let kind = own.map_or("tensors of no known model".into(), |own| one_line(&own));
                (kind, file.tensors().iter().collect())
            }
        };
        let floats = counted.iter().filter(|info| info.dtype.is_float());
        let floats: BTreeSet<&str> = floats.map(|info| info.dtype.name()).collect();
        Self {
            kind,
            fields,
            floats: floats.into_iter().collect::<Vec<_>>().join(" and "),
            n_parameters: counted.iter().map(|info| info.n_elements()).sum(),
            n_tensors: counted.len(),
            n_others: file.tensors().len() - counted.len(),
        }
    }
}

fn model_fields(model: &Model) -> Vec<(&'static str, String)> {
    let codebook = |v: usize, c: usize| format!("{v} codes of {c} channels");
    match model {
        Model::Tokenizer(TokenizerConfig {
            family,
            base_channels,
            channel_multipliers,
            res_blocks,
            z_channels,
            codebook_size,
            codebook_dim,
            codebook_growth,
        }) => {
            let mut fields = vec![
                ("channels", format!("{base_channels} times {channel_multipliers:?}")),
                ("blocks", format!("{res_blocks} a level")),
                ("z_channels", z_channels.to_string()),
                ("codebook", codebook(*codebook_size, *codebook_dim)),
            ];
            if let CodebookGrowth::Geometric { first, full_side } = codebook_growth {
                let growth =
                    format!("from {first} codes at one token to all at a side of {full_side}");
                fields.push(("codebook growth", growth));
            }
            if let Family::Var { phi } = family {
                fields.push(("phi", format!("{phi:?}")));
            }
            fields
        }
        Model::Backbone { config, classes: _, scales, sampler: _, codebook: _ } => {
            let BackboneConfig { shape, classes, codebook_size, codebook_dim, positions } = config;
            let BackboneShape {
                depth,
                width,
                heads,
                mlp_ratio,
                shared_adaln,
                qk_l2_norm,
                visibility,
                first_scale,
            } = shape;
            let yes = |yes: &bool| if *yes { "yes" } else { "no" }.to_owned();
            vec![
                ("depth", depth.to_string()),
                ("width", width.to_string()),
                ("heads", heads.to_string()),
                ("mlp_ratio", mlp_ratio.to_string()),
                ("classes", classes.to_string()),
                ("codebook", codebook(*codebook_size, *codebook_dim)),
                ("shared_adaln", yes(shared_adaln)),
                ("qk_l2_norm", yes(qk_l2_norm)),
                ("sees", visibility.to_string()),
                ("first scale", first_scale.to_string()),
                ("positions", positions.to_string()),
                ("scales", scales.to_string()),
            ]
        }
        _ => Vec::new(),
    }
}

fn said(checksum: Checksum, format: Format) -> &'static str {
    match (checksum, format) {
        (Checksum::Absent, _) => "none in the file",
        (Checksum::Verified, Format::Pth) => "matches, of every storage",
        (Checksum::Verified, _) => "matches",
    }
}

/// A name with its numbers left out: `blocks.*.attn.q_bias`.
fn pattern(name: &str) -> String {
    let part = |part: &str| {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { "*".to_owned() } else { part.to_owned() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn row(field: &str, value: impl std::fmt::Display) {
    println!("{field:<13} {value}");
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn size(n_bytes: u64) -> String {
    match n_bytes {
        0..10_000 => format!("{n_bytes} bytes"),
        10_000..1_000_000 => format!("{:.1} kB", n_bytes as f64 / 1e3),
        _ => format!("{:.1} MB", n_bytes as f64 / 1e6),
    }
}

/// Text out of a file: without characters that control a terminal or turn its direction, and not endless.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().take(SHOWN).flat_map(escaped).collect();
    if text.chars().nth(SHOWN).is_some() {
        line.push('…');
    }
    line
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let escaped = (c.is_control() || turns(c)).then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

/// Whether text after it runs the other way (Unicode Standard Annex 9).
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use sar_pipeline::JobOrigin;
    use sar_rollout::{Guidance, Sampler};

    use super::*;

    #[test]
    fn a_picture_says_nothing_to_the_terminal() {
        let evil = "a\u{1b}[2J\u{9b}31m\rb\n\u{202e}c";
        let made_with = MadeWith {
            precision: Precision::F32,
            device: evil.into(),
            tokenizer: evil.into(),
            backbone: evil.into(),
        };
        let job = JobOrigin {
            sar: evil.into(),
            seed: 1,
            n: 2,
            batch: 16,
            scales: "1_2".parse().unwrap(),
            sampler: Sampler { guidance: Guidance::Ramp { scale: 1.0 }, choice: Choice::Argmax },
            made_with,
        };
        let file = || SourceFile { name: Some(evil.into()), checksum: evil.into() };
        let edit = EditOrigin {
            image: file(),
            part: EditedPart::Mask(file()),
            outside: true,
            keep_scales: None,
            blend: None,
            size: None,
        };
        let edited = edit_of(&edit);
        assert!(!edited.contains('\n') && edited.matches("\\u{1b}[2J").count() == 4, "{edited:?}");
        let origin =
            Origin { job, label: 3, class: Some(evil.into()), number: 0, edit: Some(edit) };
        let command = again(&origin, "");
        let start = "sar edit --image=FILE --mask=FILE --outside --class=#3 ";
        assert!(command.starts_with(start) && !command.contains("[2J"), "{command}");
        let origin = Origin { edit: None, ..origin };
        let said = made_from(&origin);
        assert_eq!(said.lines().count(), 3, "{said:?}");
        assert!(said.chars().all(|c| c == '\n' || !(c.is_control() || turns(c))), "{said:?}");
        assert_eq!(said.matches("\\u{1b}[2J").count(), 5, "{said:?}");
        let command = again(&origin, "");
        assert!(command.starts_with("sar sample --class=#3 "), "{command}");
        assert!(!command.contains("[2J"), "{command}");
    }

    #[test]
    fn what_was_sent_has_no_name() {
        let mask = SourceFile::of(None, b"mask");
        let of = |part| EditOrigin {
            image: SourceFile::of(None, b"123456789"),
            part,
            outside: false,
            keep_scales: None,
            blend: Some(2),
            size: None,
        };
        let painted = of(EditedPart::Mask(mask.clone()));
        let start = format!(
            "an edit of a picture that was sent (CRC-32 cbf43926), by the mask that was sent with it (CRC-32 {}); ",
            mask.checksum
        );
        assert!(edit_of(&painted).starts_with(&start), "{}", edit_of(&painted));
        assert_eq!(told(&painted), " --image=FILE --mask=FILE --blend 2");
        let in_a_box = of(EditedPart::Box([1, 2, 3, 4]));
        let said = "an edit of a picture that was sent (CRC-32 cbf43926); put it for FILE below";
        assert_eq!(edit_of(&in_a_box), said);
        assert_eq!(told(&in_a_box), " --image=FILE --box=1,2,3,4 --blend 2");
    }

    #[test]
    fn a_command_names_the_device() {
        assert_eq!(of_device("cuda"), ["", " --device cuda"]);
        assert_eq!(of_device("fusion<cubecl<wgpu<wgsl>>>"), ["", " --device wgpu"]);
        assert_eq!(of_device("flex, $(x)"), ["", ""]);
        #[cfg(feature = "flex")]
        {
            let chosen = CpuLevel::chosen().unwrap();
            assert_eq!(of_device(&format!("flex, {chosen}")), ["", ""]);
            // No machine has both.
            let other = if chosen.to_string() == "neon" { "avx2" } else { "neon" };
            assert_eq!(
                of_device(&format!("flex, {other}")),
                [format!("SAR_CPU={other} "), String::new()]
            );
        }
    }

    #[test]
    fn names_numbers_and_text() {
        assert_eq!(pattern("blocks.12.attn.q_bias"), "blocks.*.attn.q_bias");
        assert_eq!(pattern("pos_1LC"), "pos_1LC");
        let check = |n, text: &str| assert_eq!(grouped(n), text);
        check(0, "0");
        check(999, "999");
        check(1000, "1,000");
        check(315_560_123, "315,560,123");
        assert_eq!(one_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(one_line(&"x".repeat(300)).chars().count(), SHOWN + 1);
    }
}
