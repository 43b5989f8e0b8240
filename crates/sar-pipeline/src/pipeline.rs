//! Tokenizer and backbone together: images from classes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use sar_core::{ScaleSchedule, ScaleSize, SeedTree};
use sar_model::Precision;
use sar_rollout::{KeptTokens, Request as Generation, Sampler, generate, generate_watched};
use sar_weights::WeightsFile;

use crate::recognize::Known;
use crate::weights::{Loaded, TrainedBackbone, TrainedTokenizer};
use crate::{PipelineError, RgbImage, StageId, find_class, to_images};

/// Attention over more tokens than this asks for more memory than machines have; the largest
/// published schedule has 9,451.
const MOST_TOKENS: usize = 1 << 16;

/// The backbone of a run that is sampled: the one refined by SAR, else the pre-trained one.
const BACKBONES: [StageId; 2] = [StageId::Sar, StageId::Pretrain];

/// A tokenizer and a backbone that belong together, on a device.
#[derive(Clone, Debug)]
pub struct Pipeline<B: Backend> {
    pub(crate) tokenizer: TrainedTokenizer<B>,
    pub(crate) backbone: TrainedBackbone<B>,
    pub(crate) device: B::Device,
    notes: Vec<String>,
}

/// What to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Class of each image; the number of classes is the null class, which is no class at all.
    pub labels: Vec<usize>,
    /// The stream of each image: an image is a function of its stream, its label, the scales and the
    /// sampler, and of nothing else in the request.
    pub streams: Vec<SeedTree>,
    /// The scales.
    pub scales: ScaleSchedule,
    /// Guidance and filters.
    pub sampler: Sampler,
}

/// The stream of the `i`-th sample of a class: the sheets of a run and `sar sample` with the run's seed
/// show the same images.
pub fn sample_stream(seed: SeedTree, class: usize, i: usize) -> SeedTree {
    seed.child("samples").at(class as u64).at(i as u64)
}

impl Request {
    /// Images from a seed, each a label and its number among the label's samples.
    pub fn of(
        seed: SeedTree,
        wanted: impl Iterator<Item = (usize, usize)>,
        scales: ScaleSchedule,
        sampler: Sampler,
    ) -> Self {
        let image = |(label, i)| (label, sample_stream(seed, label, i));
        let (labels, streams) = wanted.map(image).unzip();
        Self { labels, streams, scales, sampler }
    }
}

/// The tokenizer and the backbone of a run's folder: those refined by SAR, else the pre-trained ones.
///
/// # Errors
/// If one of them is not there.
pub fn files_of_run(run: &Path) -> Result<[PathBuf; 2], PipelineError> {
    Ok([tokenizer_of_run(run)?, find(run, &BACKBONES)?])
}

/// The tokenizer of a run's folder, which may have come no further.
///
/// # Errors
/// If it is not there.
pub fn tokenizer_of_run(run: &Path) -> Result<PathBuf, PipelineError> {
    find(run, &[StageId::Tokenizer])
}

/// The weights of the first of some stages that has any.
fn find(run: &Path, stages: &[StageId]) -> Result<PathBuf, PipelineError> {
    let names: Vec<String> = stages.iter().map(|stage| stage.weights_file()).collect();
    let found = names.iter().map(|name| run.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| PipelineError::Run { path: run.into(), names })
}

impl<B: Backend> Pipeline<B> {
    /// Opens the weights of a run's folder.
    ///
    /// # Errors
    /// If they are not there, or damaged.
    pub fn open_run(run: &Path, device: &B::Device) -> Result<Self, PipelineError> {
        let [tokenizer, backbone] = files_of_run(run)?;
        Self::load(
            WeightsFile::open(&tokenizer)?,
            WeightsFile::open(&backbone)?,
            &Known::default(),
            device,
        )
    }

    /// Loads a tokenizer and a backbone, of a run or released. `known` is about the backbone.
    ///
    /// # Errors
    /// If one of them is not what its file should hold, or they do not belong together.
    pub fn load(
        tokenizer: WeightsFile,
        backbone: WeightsFile,
        known: &Known,
        device: &B::Device,
    ) -> Result<Self, PipelineError> {
        let paths = [&tokenizer, &backbone].map(|file| file.path().to_owned());
        // A root is of the file that has it: where the other has no such root, its own is taken.
        let of_tokenizer = Known::default();
        let tokenizer = TrainedTokenizer::load(tokenizer, &of_tokenizer, device)?;
        let backbone = TrainedBackbone::load(backbone, known, device)?;
        let mut notes = Vec::new();
        let of_file = |path: &Path, line: String| format!("{}: {line}", path.display());
        notes.extend(tokenizer.notes().map(|line| of_file(&paths[0], line)));
        notes.extend(backbone.notes().map(|line| of_file(&paths[1], line)));
        let (Loaded { value: tokenizer, .. }, Loaded { value: backbone, .. }) =
            (tokenizer, backbone);
        backbone.check_tokenizer(&tokenizer, [&paths[0], &paths[1]])?;
        Ok(Self { tokenizer, backbone, device: device.clone(), notes })
    }

    /// A pipeline of weights in memory.
    ///
    /// # Panics
    /// If they are of another number of codes or of other channels.
    pub fn new(
        tokenizer: TrainedTokenizer<B>,
        backbone: TrainedBackbone<B>,
        device: &B::Device,
    ) -> Self {
        let codes = (tokenizer.config.codebook_size, tokenizer.config.codebook_dim);
        assert_eq!(codes, (backbone.config.codebook_size, backbone.config.codebook_dim));
        Self { tokenizer, backbone, device: device.clone(), notes: Vec::new() }
    }

    /// The same pipeline with matrix products of the transformer in another precision.
    ///
    /// # Errors
    /// If the device does not compute in it.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self, PipelineError> {
        if !precision.is_supported::<B>(&self.device) {
            return Err(PipelineError::Precision(precision));
        }
        self.backbone.model = precision.view(&self.backbone.model);
        Ok(self)
    }

    /// What the user should know of how the files were read: a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TrainedTokenizer<B> {
        &self.tokenizer
    }

    /// The backbone.
    pub fn backbone(&self) -> &TrainedBackbone<B> {
        &self.backbone
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.backbone.classes
    }

    /// The label of a class by name or index.
    ///
    /// # Errors
    /// If no class or more than one is meant.
    pub fn label(&self, query: &str) -> Result<usize, PipelineError> {
        Ok(find_class(&self.backbone.classes, query)?)
    }

    /// The label of no class at all.
    pub fn null_label(&self) -> usize {
        self.backbone.config.classes
    }

    /// Pixels per token of the last scale along one axis.
    pub fn downsampling(&self) -> usize {
        self.tokenizer.config.downsampling()
    }

    /// A request for the images `0..n` of a class from a seed, at the scales and with the sampler of the
    /// weights.
    pub fn request(&self, label: usize, n: usize, seed: u64) -> Request {
        let (scales, sampler) = (self.backbone.scales.clone(), self.backbone.sampler);
        Request::of(SeedTree::new(seed), (0..n).map(|i| (label, i)), scales, sampler)
    }

    /// Checks that images can be sampled at some scales.
    ///
    /// # Errors
    /// If the model runs at others only, or there are too many tokens.
    pub fn check_scales(&self, scales: &ScaleSchedule) -> Result<(), PipelineError> {
        let fits = self.backbone.config.check_scales(scales);
        fits.map_err(|error| PipelineError::Size(error.problem))?;
        let tokens = scales.n_tokens();
        if tokens > MOST_TOKENS {
            let problem = format!("{tokens} tokens an image, at most {MOST_TOKENS}");
            return Err(PipelineError::Size(problem));
        }
        Ok(())
    }

    /// Scales for images of a size in pixels, stretched from others.
    ///
    /// # Errors
    /// If a side is no multiple of [`downsampling`](Self::downsampling), or as
    /// [`check_scales`](Self::check_scales).
    pub fn stretched(
        &self,
        scales: &ScaleSchedule,
        pixels: ScaleSize,
    ) -> Result<ScaleSchedule, PipelineError> {
        let ScaleSize { height, width } = pixels;
        let n = self.downsampling();
        if !height.is_multiple_of(n) || !width.is_multiple_of(n) {
            let problem = format!(
                "{height}x{width} px: both must be multiples of {n}, the pixels of a token"
            );
            return Err(PipelineError::Size(problem));
        }
        let last = ScaleSize { height: height / n, width: width / n };
        if last.height.max(last.width) > ScaleSchedule::MAX_SIDE {
            let most = n * ScaleSchedule::MAX_SIDE;
            let problem = format!("{height}x{width} px: a side has at most {most} px");
            return Err(PipelineError::Size(problem));
        }
        let scales = scales.with_last(last)?;
        let tokens = scales.n_tokens();
        if tokens > MOST_TOKENS {
            // Coarse scales grow with the last.
            let share = MOST_TOKENS as f64 / tokens as f64;
            let most = (last.tokens() as f64 * share).sqrt() as usize * n;
            let problem = format!(
                "{height}x{width} px: {tokens} tokens an image, at most {MOST_TOKENS}; a square has \
                 about {most}x{most} px then"
            );
            return Err(PipelineError::Size(problem));
        }
        self.check_scales(&scales)?;
        Ok(scales)
    }

    /// Samples and decodes.
    pub fn sample(&self, request: &Request) -> Vec<RgbImage> {
        self.generate(request, None)
    }

    /// Samples, and shows what there is after every scale: `seen` is called with each scale, coarse to
    /// fine, and with what decodes its images, of the size that the scale decodes to. It may break there:
    /// nothing more is drawn then.
    pub fn sample_previews(
        &self,
        request: &Request,
        seen: impl FnMut(usize, &dyn Fn() -> Vec<RgbImage>) -> ControlFlow<()>,
    ) {
        self.generate_previews(request, None, seen);
    }

    /// The tokens of each image of a request, coarse to fine: what two machines that draw the same have in common,
    /// where pixels differ by rounding.
    pub fn tokens(&self, request: &Request) -> Vec<Vec<u32>> {
        let Request { labels, streams, scales, sampler } = request;
        let (model, tokenizer) = (&self.backbone.model, &self.tokenizer.model);
        let generated = generate(model, tokenizer, labels, scales, *sampler, streams, &self.device);
        let tokens: Vec<u32> = generated.tokens_bl().into_data().convert::<u32>().iter().collect();
        tokens.chunks(scales.n_tokens()).map(<[u32]>::to_vec).collect()
    }

    /// The images of a request, with tokens that may be kept.
    pub(crate) fn generate(
        &self,
        request: &Request,
        kept: Option<&KeptTokens<B>>,
    ) -> Vec<RgbImage> {
        let last = request.scales.len() - 1;
        let mut images = Vec::new();
        self.generate_previews(request, kept, |k, decode| {
            if k == last {
                images = decode();
            }
            ControlFlow::Continue(())
        });
        images
    }

    /// As [`sample_previews`](Self::sample_previews), with tokens that may be kept.
    pub(crate) fn generate_previews(
        &self,
        request: &Request,
        kept: Option<&KeptTokens<B>>,
        mut seen: impl FnMut(usize, &dyn Fn() -> Vec<RgbImage>) -> ControlFlow<()>,
    ) {
        let Request { labels, streams, scales, sampler } = request;
        let generation = Generation { labels, streams, schedule: scales, sampler: *sampler, kept };
        let (model, tokenizer) = (&self.backbone.model, &self.tokenizer.model);
        generate_watched(model, tokenizer, generation, &self.device, |k, f_hat| {
            seen(k, &|| {
                let f_hat_bchw = f_hat.clone().expect("a scale has been added");
                to_images(tokenizer.decode(f_hat_bchw))
            })
        });
    }
}
