//! `sar tokenizer-eval`: how well a tokenizer does on a folder of images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{ScaleSchedule, ScaleSize};
use sar_data::{ImageSource, LeftOut, ReadAhead};
use sar_eval::{Distance, ImageSet, TokenizerFigures, TokenizerMeter};
use sar_features::{EfficientNetLite0, Lpips, PerceptualDistance, WEIGHTS};
use sar_pipeline::{
    Known, Model, RgbImage, TrainedTokenizer, reconstructions, to_tensor, tokenizer_of_run,
};
use sar_train::Recipe;
use sar_weights::write_bytes;
use serde_json::{Value, json};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::generation::{make_out, out_folder, save};
use crate::hub::WeightsPath;
use crate::table::aligned;
use crate::weights_source::WeightsSource;

/// Side and scales of the published tokenizers.
const PUBLISHED: (usize, &str) = (256, "256px");
/// Images of the sheet of reconstructions.
const SHOWN: usize = 8;
/// The largest side of an image.
const MAX_SIDE: usize = 1 << 14;

/// What `--help` says below the options.
const NOTES: &str = "\
The center of each image is resized to the side. What a scale decodes to is compared with the image at \
that size: the coarse scales of FlexVAR's tokenizers decode to small images. A network looks at 32 px at \
least, that of LPIPS at 16: smaller images have no distance, \"-\" in the table and null in eval.json. Their \
SSIM, below 11 px, is that of a smaller window. Distances of different networks do not compare.

This program holds the weights of EfficientNet-Lite0, Copyright (c) 2020 ML Illustrated, Apache License \
2.0: whoever passes it on passes on assets/features/LICENSE-APACHE-2.0.txt with it.";

#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    /// A run directory: its tokenizer, with the side and the scales of its recipe [default: the small emoji
    /// weights that the program carries]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Tokenizer weights, instead of the run's: a run's, or a released file of VAR or FlexVAR; with
    /// the feature `hub` also hf:OWNER/REPO/FILE.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<WeightsPath>,
    /// Which of several models in the file of the tokenizer, as in ema [default: the one that the released
    /// evaluation takes]
    #[arg(long, value_name = "NAME", requires = "tokenizer")]
    root: Option<String>,
    /// A folder of images, all of which are measured; of one with train and val folders the latter
    /// [default: the held-out emoji that come with the project]
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// The side of the images, in pixels [default: the run's, else 256, or what --scales decode to]
    #[arg(long, value_name = "PX")]
    side: Option<usize>,
    /// Scales as in 1_2_3_4, or a preset such as 512px or 8-steps [default: the run's, else the published
    /// ones; stretched to --side]
    #[arg(long)]
    scales: Option<String>,
    /// Measures so many images at most, from all over the folder; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max: usize,
    /// Images that are encoded and decoded together.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Also measures LPIPS: torchvision's VGG16 (vgg16-397923af.pth) and the file of its heads
    /// (lpips/weights/v0.1/vgg.pth of the package lpips).
    #[arg(long, value_name = "VGG_FILE,HEADS_FILE")]
    lpips: Option<String>,
    /// A new or empty folder for eval.json and reconstructions.png [default: tokenizer-eval, or the next
    /// that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { run, tokenizer, root, images, side, scales, max, batch_size, lpips, out, device } =
        args;
    ensure!(batch_size > 0, "--batch-size 0: must be at least 1");
    let out = out_folder(out, "tokenizer-eval")?;
    let scales = scales
        .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")))
        .transpose()?;
    let lpips = lpips.as_deref().map(two_files).transpose()?;
    let tokenizer = tokenizer.map(|path| path.file()).transpose()?;
    let (tokenizer, recipe) = match (run, tokenizer) {
        (None, None) => (WeightsSource::TOKENIZER, Some(Recipe::load(WeightsSource::RECIPE, &[])?)),
        (Some(run), None) => (tokenizer_of_run(&run)?.into(), recipe_of(&run)?),
        (Some(run), Some(file)) => (file.into(), recipe_of(&run)?),
        // Its own run's, if it still lies there.
        (None, Some(file)) => {
            let recipe = file.parent().and_then(|folder| recipe_of(folder).ok().flatten());
            (file.into(), recipe)
        }
    };
    device.run(Eval { tokenizer, recipe, root, images, side, scales, max, batch_size, lpips, out })
}

/// The recipe in a run's folder, if there is one.
fn recipe_of(run: &Path) -> Result<Option<Recipe>> {
    let path = run.join("recipe.toml");
    match path.is_file() {
        true => Ok(Some(Recipe::load(&path.to_string_lossy(), &[])?)),
        false => Ok(None),
    }
}

fn two_files(text: &str) -> Result<[PathBuf; 2]> {
    match text.split(',').collect::<Vec<_>>()[..] {
        [vgg, heads] if !vgg.is_empty() && !heads.is_empty() => Ok([vgg.into(), heads.into()]),
        _ => bail!("--lpips {text}: write two files, VGG_FILE,HEADS_FILE"),
    }
}

struct Eval {
    tokenizer: WeightsSource,
    recipe: Option<Recipe>,
    root: Option<String>,
    images: Option<PathBuf>,
    side: Option<usize>,
    scales: Option<ScaleSchedule>,
    max: usize,
    batch_size: usize,
    lpips: Option<[PathBuf; 2]>,
    out: PathBuf,
}

impl Job for Eval {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        self.eval::<A::InnerBackend>(&device)?;
        Ok(Verdict::Good)
    }
}

impl Eval {
    fn eval<B: Backend>(self, device: &B::Device) -> Result<()> {
        let known = Known { root: self.root.clone(), ..Known::default() };
        let loaded = TrainedTokenizer::<B>::load(self.tokenizer.open()?, &known, device)?;
        for note in loaded.notes() {
            eprintln!("{}: {note}", self.tokenizer.path().display());
        }
        let TrainedTokenizer { model, config } = loaded.value;
        // What lies beside a file may be a run of another tokenizer.
        let recipe = self.recipe.as_ref().filter(|recipe| recipe.tokenizer.model == config);
        let (side, scales) = self.sizes(config.downsampling(), recipe)?;
        let distances = self.distances::<B>(device)?;
        let images = self.open_images(side)?;
        eprintln!(
            "measuring {} images of {side}x{side} px at scales {scales}, {} px a token",
            images.len(),
            config.downsampling()
        );

        let codes = model.codebook().size();
        let mut meter = TokenizerMeter::new(&scales, codes).with_distances(distances);
        let mut seen = Seen::new(images.len());
        let mut reader = images.read(self.batch_size, ReadAhead::default());
        while let Some(batch) = seen.next_batch(&mut reader, self.batch_size) {
            meter.add(&model, to_tensor(&batch, device));
            eprintln!("{} of {} images", meter.images(), images.len());
        }
        let Seen { enlarged, unreadable, shown, .. } = seen;
        if meter.images() == 0 {
            let first = unreadable.first().map_or("", String::as_str);
            bail!("none of {} images can be read: {first}", images.len());
        }
        let figures = meter.figures();
        ensure!(
            figures.by_scale.iter().all(|scale| scale.psnr_db.is_finite()),
            "{}: its reconstructions are not finite numbers; are the weights whole?",
            self.tokenizer.path().display()
        );

        print!("{}", table(&figures));
        println!("{}", self.images_line(&images, &unreadable, enlarged, side));
        make_out(&self.out)?;
        let report = json!({
            "tokenizer": self.tokenizer.path().display().to_string(),
            "kind": Model::Tokenizer(config.clone()).kind(),
            "published": Model::Tokenizer(config).published_name(),
            "side": side,
            "scales": scales,
            "images": {
                "source": self.source_name(),
                "held_out_only": images.is_held_out(),
                "found": images.n_found(),
                "measured": meter.images(),
                "enlarged": enlarged,
                "unreadable": unreadable,
                "left_out": images.left_out().iter().map(left_out).collect::<Vec<_>>(),
                "crop": ImageSet::CROP,
            },
            "figures": figures,
        });
        let path = self.out.join("eval.json");
        write_bytes(&path, format!("{report:#}\n").as_bytes())?;
        let sheet = reconstructions(&model, &shown, &scales, self.batch_size, device);
        let picture = self.out.join("reconstructions.png");
        save(&sheet, &picture)?;
        eprintln!(
            "wrote {} and {}: originals, and below them each scale, finest first",
            path.display(),
            picture.display()
        );
        Ok(())
    }

    /// The side of the images and the scales, of what was said and of what the run says.
    fn sizes(&self, unit: usize, recipe: Option<&Recipe>) -> Result<(u32, ScaleSchedule)> {
        let side = match (self.side, &self.scales) {
            (Some(side), _) => side,
            (None, Some(scales)) => {
                let ScaleSize { height, width } = scales.last();
                ensure!(
                    height == width,
                    "--scales {scales}: the last one is no square, images are; end with a square"
                );
                height * unit
            }
            (None, None) => recipe.map_or(PUBLISHED.0, |recipe| recipe.data.side as usize),
        };
        let most = MAX_SIDE.min(unit * ScaleSchedule::MAX_SIDE);
        ensure!(
            side > 0 && side <= most && side.is_multiple_of(unit),
            "--side {side}: must be a multiple of {unit}, the pixels of a token, up to {most}"
        );
        let scales = match (&self.scales, recipe) {
            (Some(scales), _) => scales.clone(),
            (None, Some(recipe)) if recipe.data.side as usize == side => recipe.scales().clone(),
            (None, recipe) => {
                let scales = match recipe {
                    Some(recipe) => recipe.scales().clone(),
                    None => ScaleSchedule::preset(PUBLISHED.1).expect("a known preset"),
                };
                let last = ScaleSize::square(side / unit);
                let stretched = scales.with_last(last).context("--side")?;
                let whose = if recipe.is_some() { "the run's" } else { "the published ones" };
                eprintln!("assumed scales {stretched}: {whose}, stretched to {side} px");
                stretched
            }
        };
        Ok((side as u32, scales))
    }

    fn distances<B: Backend>(&self, device: &B::Device) -> Result<Vec<Distance<B>>> {
        let network = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), device)?;
        let mut distances = vec![Distance::EfficientNetLite0(PerceptualDistance::new(network))];
        if let Some([vgg, heads]) = &self.lpips {
            let lpips = Lpips::open(vgg, heads, device).context("--lpips")?;
            distances.push(Distance::LpipsVgg(lpips));
        }
        Ok(distances)
    }

    fn open_images(&self, side: u32) -> Result<ImageSet> {
        let images = match &self.images {
            Some(path) => {
                let folder = ImageSource::Folder { path: path.clone(), held_out: None };
                ImageSet::open(&folder, side, self.max).context("--images")?
            }
            None => ImageSet::open(&ImageSource::Emoji {}, side, self.max)
                .context("without --images the embedded emoji are measured")?,
        };
        images.notes().iter().for_each(|note| eprintln!("{note}"));
        Ok(images)
    }

    fn source_name(&self) -> String {
        self.images.as_ref().map_or("embedded emoji".into(), |path| path.display().to_string())
    }

    /// How many images were measured, how they were cropped, and what was left out.
    fn images_line(
        &self,
        images: &ImageSet,
        unreadable: &[String],
        enlarged: usize,
        side: u32,
    ) -> String {
        let which = if images.is_held_out() { "held-out images" } else { "images" };
        let mut line = format!(
            "measured {} of {} {which} of {}, the center of each, resized to {side}x{side} px \
             ({enlarged} were smaller and enlarged)",
            images.len() - unreadable.len(),
            images.n_found(),
            self.source_name(),
        );
        if let Some(first) = unreadable.first() {
            line += &format!("; {} could not be read (first: {first})", unreadable.len());
        }
        for kind in images.left_out() {
            line += &format!("; left out {kind}");
        }
        line
    }
}

/// What was read so far.
struct Seen {
    total: usize,
    /// Images whose short side was below the side.
    enlarged: usize,
    /// Why images could not be read, a line each.
    unreadable: Vec<String>,
    /// Some images from all over the set.
    shown: Vec<RgbImage>,
    position: usize,
}

impl Seen {
    fn new(total: usize) -> Self {
        Self { total, enlarged: 0, unreadable: Vec::new(), shown: Vec::new(), position: 0 }
    }

    /// The next readable images, as many as fit a batch; nothing after the last.
    fn next_batch<E: std::fmt::Display>(
        &mut self,
        images: &mut impl Iterator<Item = Result<sar_eval::Square, E>>,
        batch_size: usize,
    ) -> Option<Vec<RgbImage>> {
        let mut batch = Vec::new();
        for image in images {
            self.position += 1;
            match image {
                Ok(square) => {
                    self.enlarged += usize::from(square.is_enlarged);
                    // As many as are due at this position, if all are readable.
                    if self.shown.len() * self.total < self.position * SHOWN.min(self.total) {
                        self.shown.push(square.image.clone());
                    }
                    batch.push(square.image);
                }
                Err(error) => {
                    eprintln!("{error}; not measured");
                    self.unreadable.push(error.to_string());
                }
            }
            if batch.len() == batch_size {
                break;
            }
        }
        (!batch.is_empty()).then_some(batch)
    }
}

fn left_out(LeftOut { why, count, first, .. }: &LeftOut) -> Value {
    json!({ "why": why, "count": count, "first": first })
}

/// A row for each scale, and the codes of all of them.
fn table(figures: &TokenizerFigures) -> String {
    let names = figures.by_scale[0].distances.keys();
    let mut rows =
        vec![vec!["scale".to_owned(), "pixels".into(), "PSNR, dB".into(), "SSIM".into()]];
    rows[0].extend(names.cloned());
    rows[0].extend(["codes used", "dead", "perplexity"].map(str::to_owned));
    for scale in &figures.by_scale {
        let [height, width] = scale.pixels;
        let mut row = vec![
            scale.scale.clone(),
            format!("{height}x{width}"),
            format!("{:.2}", scale.psnr_db),
            format!("{:.4}", scale.ssim),
        ];
        let shown = |value: &Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
        row.extend(scale.distances.values().map(shown));
        row.push(format!("{} of {}", scale.codes_used, scale.codes_usable));
        row.push(scale.codes_dead_of_usable.to_string());
        row.push(format!("{:.1}", scale.perplexity));
        rows.push(row);
    }
    let TokenizerFigures { codes_used, codes, .. } = figures;
    aligned(&rows) + &format!("all scales: {codes_used} of {codes} codes used\n")
}
