//! How good samples are before SAR, after it, and those of the control: figures with intervals over seeds
//! of sampling.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_data::{DataError, Dataset, Prefetch, ReadAhead, UnreadableImage};
use sar_eval::{EvalError, Extractor, FeatureSet, Glance, Keep, Looking, Pictures, Reference};
use sar_metrics::Estimate;
use sar_pipeline::{Pipeline, RgbImage, TrainedBackbone, TrainedTokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::event::Event;
use crate::figures::wanted;
use crate::recipe::SampleQuality;
use crate::run::{Inner, Run};
use crate::run_dir::unreadable_of;
use crate::{Recipe, StageId, TrainError};

/// Real images that are looked at, at most.
const MOST_REAL: usize = 5000;

/// Samples beside the recipe's images. All weights draw from the same streams, so that their differences
/// are of pairs. Figures of so few images compare with those of as many only.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QualityReport {
    /// The network whose features are compared, and a checksum of its weights.
    pub extractor: [String; 2],
    /// Samples of one seed.
    pub samples: usize,
    /// Seeds.
    pub seeds: usize,
    /// Real images beside them, held-out ones included.
    pub reference: usize,
    /// How many of these had another size than the recipe's, and were cropped and resized to it.
    #[serde(default)]
    pub reference_cropped: usize,
    /// How many of these were smaller.
    #[serde(default)]
    pub reference_enlarged: usize,
    /// Held-out images beside the training images, where there are two at least.
    pub floor: Option<Floor>,
    /// The weights that SAR starts from.
    pub before: Figures,
    /// After SAR.
    pub after: Figures,
    /// After as many teacher-forced passes, where the recipe asks for it.
    pub control: Option<Figures>,
    /// What SAR changed.
    pub after_minus_before: Figures,
    /// SAR against the control.
    pub after_minus_control: Option<Figures>,
}

/// What real images have: nothing can be better, on average.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Floor {
    /// Held-out images.
    pub images: usize,
    /// Kernel distance.
    pub kid_effnetlite0: Option<f64>,
    /// How often the probe names their class.
    pub class_accuracy: Option<f64>,
}

/// Figures of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Figures {
    /// Fréchet distance of EfficientNet-Lite0's features: far too large for few images.
    pub fd_effnetlite0: Estimate,
    /// Kernel distance, unbiased.
    pub kid_effnetlite0: Estimate,
    /// How often a probe names the class that was asked for; none without classes.
    pub class_accuracy: Option<Estimate>,
}

/// The figure that a line of the metrics is known by.
const KID: &str = "kid_effnetlite0";

/// A figure of a seed.
type Figure = fn(&Glance) -> Option<f64>;

impl Figures {
    fn new(estimate: impl Fn(Figure) -> Option<Estimate>) -> Self {
        Self {
            fd_effnetlite0: estimate(|of| Some(of.frechet)).expect("always there"),
            kid_effnetlite0: estimate(|of| of.kernel).expect("features are kept"),
            class_accuracy: estimate(|of| of.class_accuracy),
        }
    }

    fn of(seeds: &[Glance]) -> Self {
        Self::new(|figure| Estimate::of_each(seeds, figure))
    }

    /// As a line of the metrics, at the last of a stage's steps: each figure's mean, and its interval where
    /// there are several seeds.
    fn line(&self, stage: StageId, steps: u64) -> Value {
        let figures = [
            ("fd_effnetlite0", Some(self.fd_effnetlite0)),
            (KID, Some(self.kid_effnetlite0)),
            ("class_accuracy", self.class_accuracy),
        ];
        let mut line = json!({ "stage": stage, "step": steps.saturating_sub(1) });
        for (name, figure) in figures {
            let Some(Estimate { mean, low, high }) = figure else { continue };
            line[name] = mean.into();
            if let Some((low, high)) = low.zip(high) {
                line[format!("{name}_interval")] = json!([low, high]);
            }
        }
        line
    }

    /// Of differences seed by seed.
    fn minus(a: &[Glance], b: &[Glance]) -> Self {
        Self::new(|figure| Estimate::of_pairs(a, b, figure))
    }
}

/// Real images that were looked at, and the network that looks.
#[derive(Debug)]
pub struct Judge<B: Backend> {
    extractor: Extractor<B>,
    reference: Reference,
    n_real: usize,
    n_cropped: usize,
    n_enlarged: usize,
    resized: Vec<String>,
    notes: Vec<String>,
    device: B::Device,
}

impl<B: Backend> Judge<B> {
    /// Looks at the images of a recipe, held-out ones included, without those that cannot be read.
    ///
    /// `run` is one of the recipe: what it found unreadable is not tried again.
    ///
    /// # Errors
    /// If more of them cannot be read than the recipe allows.
    pub fn of_run(recipe: &Recipe, run: &Path, device: &B::Device) -> Result<Self, TrainError> {
        Ok(Self::look_at(recipe, &unreadable_of(run)?, device, || {})?)
    }

    fn look_at(
        recipe: &Recipe,
        unreadable: &[UnreadableImage],
        device: &B::Device,
        alive: impl Fn(),
    ) -> Result<Self, EvalError> {
        let data = &recipe.data;
        let dataset: Arc<dyn Dataset> = data.source.open(data.side, &alive)?.into();
        let mut unreadable: BTreeSet<usize> = unreadable.iter().map(|image| image.index).collect();
        let mut notes = Vec::new();
        loop {
            let chosen = chosen(&*dataset, &unreadable);
            let looked = Self::look_at_chosen(recipe, &dataset, &chosen, device, &alive);
            let Err(EvalError::Data(error @ DataError::Unreadable { .. })) = looked else {
                return looked.map(|judge| Self { notes, ..judge });
            };
            // Rare enough to look for the others only now.
            let found = unreadable_among(&dataset, chosen.concat());
            if found.is_empty() {
                return Err(error.into());
            }
            let (total, found_before) = (dataset.len(), unreadable.len());
            unreadable.extend(found.iter().map(|(index, _)| *index));
            let allowed = (data.max_unreadable * total as f64) as usize;
            if unreadable.len() > allowed {
                let (found, named) = (unreadable.len(), error.to_string());
                let more = DataError::TooManyUnreadable { found, total, allowed, named };
                return Err(more.into());
            }
            notes.extend(found.into_iter().enumerate().map(|(i, (_, error))| {
                let found = found_before + i + 1;
                format!(
                    "{error}; it is passed over ({found} of {total} unreadable, {allowed} allowed)"
                )
            }));
        }
    }

    fn look_at_chosen(
        recipe: &Recipe,
        dataset: &Arc<dyn Dataset>,
        [train, held_out]: &[Vec<usize>; 2],
        device: &B::Device,
        alive: impl Fn(),
    ) -> Result<Self, EvalError> {
        let data = &recipe.data;
        let indices = [train.as_slice(), held_out].concat();
        let labels: Vec<usize> = indices.iter().map(|i| dataset.label(*i)).collect();
        let n_classes = dataset.classes().len();
        let name = format!("recipe {}", recipe.name);
        let size = Some([data.side as usize; 2]);
        let pictures = Pictures::of_dataset(name, Arc::clone(dataset), indices, size)?;
        let extractor = Extractor::efficientnet_lite0(device);
        let looking = Looking::new(&extractor, Keep::Features, device);
        let set = FeatureSet::of_pictures(&pictures, looking, |_, _| alive())?;
        let places: Vec<usize> = (0..pictures.len()).collect();
        let (train, held_out) = places.split_at(train.len());
        let labels = (n_classes > 1).then_some((labels.as_slice(), n_classes));
        let reference = Reference::split(set, [train, held_out], labels)?;
        Ok(Self {
            extractor,
            reference,
            n_real: pictures.len(),
            n_cropped: pictures.n_cropped(),
            n_enlarged: pictures.n_enlarged(),
            resized: pictures.resized(),
            notes: Vec::new(),
            device: device.clone(),
        })
    }

    /// The features of images, which come a batch at a time.
    ///
    /// # Errors
    /// If there are fewer than two.
    pub fn look(
        &self,
        batches: impl IntoIterator<Item = Vec<RgbImage>>,
    ) -> Result<FeatureSet, EvalError> {
        let mut looking = Looking::new(&self.extractor, Keep::Features, &self.device);
        for images in batches {
            looking.add(&images)?;
        }
        looking.finish()
    }

    /// The real images.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// How many real images there are.
    pub fn n_real(&self) -> usize {
        self.n_real
    }

    /// What became of real images of another size than the recipe's, a line each.
    pub fn resized(&self) -> &[String] {
        &self.resized
    }

    /// Which images were passed over, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The network that looks, and a checksum of its weights.
    pub fn extractor(&self) -> [String; 2] {
        [self.extractor.name().into(), self.extractor.hash().into()]
    }
}

/// What samples are looked at with.
pub(crate) enum Eyes<B: Backend> {
    /// By the rank that leads, which compares them with the real images.
    Judge(Box<Judge<B>>),
    /// By any other.
    Extractor(Extractor<B>),
}

impl<B: Backend> Eyes<B> {
    fn extractor(&self) -> &Extractor<B> {
        match self {
            Self::Judge(judge) => &judge.extractor,
            Self::Extractor(extractor) => extractor,
        }
    }
}

/// Some images that train and some that are held out, from all over them, in the proportion that they have.
fn chosen(dataset: &dyn Dataset, unreadable: &BTreeSet<usize>) -> [Vec<usize>; 2] {
    let split = dataset.split();
    let share = (MOST_REAL as f64 / dataset.len() as f64).min(1.0);
    [&split.train, &split.held_out].map(|all| {
        let readable: Vec<usize> =
            all.iter().copied().filter(|i| !unreadable.contains(i)).collect();
        let n = (readable.len() as f64 * share).ceil() as usize;
        (0..n).map(|i| readable[i * readable.len() / n]).collect()
    })
}

/// Those of some images that cannot be read, and why.
fn unreadable_among(dataset: &Arc<dyn Dataset>, indices: Vec<usize>) -> Vec<(usize, DataError)> {
    let (of, ReadAhead { threads, batches }) = (Arc::clone(dataset), ReadAhead::default());
    let positions = 0..indices.len() as u64;
    let read = move |position| {
        let index = indices[position as usize];
        of.image(index).err().map(|error| (index, error))
    };
    Prefetch::new(positions, threads, threads * batches, read).flatten().collect()
}

/// What a recipe wants to know of samples.
#[derive(Clone, Copy)]
struct Wanted {
    per_class: usize,
    seeds: usize,
}

impl Wanted {
    fn of(recipe: &Recipe) -> Option<Self> {
        match recipe.evaluation.quality {
            SampleQuality::None {} => None,
            SampleQuality::EfficientNetLite0 { per_class, seeds } => {
                Some(Self { per_class, seeds })
            }
        }
    }
}

impl<A: AutodiffBackend> Run<'_, A> {
    /// Looks at the real images, where the recipe asks for it: the rank that leads does. Nothing if one
    /// cannot be read, which is said.
    pub(crate) fn judge(&mut self) -> Result<Option<Eyes<Inner<A>>>, TrainError> {
        if Wanted::of(self.recipe).is_none() {
            return Ok(None);
        }
        let judge = if self.group.leads() { self.judge_of_leader() } else { None };
        let [is_there] = self.group.any([judge.is_some()])?;
        Ok(match judge {
            Some(judge) => Some(Eyes::Judge(Box::new(judge))),
            None if is_there => Some(Eyes::Extractor(Extractor::efficientnet_lite0(self.device))),
            None => None,
        })
    }

    fn judge_of_leader(&mut self) -> Option<Judge<Inner<A>>> {
        self.journal.observer.event(&Event::Working { what: "looking at the real images" });
        let alive = || self.group.alive();
        match Judge::look_at(self.recipe, &self.images.unreadable(), self.device, alive) {
            Ok(judge) => {
                for message in judge.notes() {
                    self.journal.observer.event(&Event::Warning { message });
                }
                for message in judge.resized() {
                    self.journal.observer.event(&Event::Note { message });
                }
                Some(judge)
            }
            Err(error) => {
                let message = format!("no figures of samples: {error}");
                self.journal.observer.event(&Event::Warning { message: &message });
                None
            }
        }
    }

    /// The figures of the weights that a stage ends with, one for each seed; none on a rank that only looks.
    /// They are in the metrics as soon as they are known.
    pub(crate) fn glances(
        &mut self,
        eyes: Option<&Eyes<Inner<A>>>,
        (what, stage): (&str, StageId),
        tokenizer: &TrainedTokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<Vec<Glance>, TrainError> {
        let Some((eyes, Wanted { per_class, seeds })) = eyes.zip(Wanted::of(self.recipe)) else {
            return Ok(Vec::new());
        };
        let what = format!("looking at samples of the {what} weights");
        self.journal.observer.event(&Event::Working { what: &what });
        let pipeline = Pipeline::new(tokenizer.clone(), backbone.clone(), self.device);
        let wanted = wanted(backbone.classes.len(), per_class);
        let labels: Vec<usize> = wanted.iter().map(|(label, _)| *label).collect();
        let labels = (backbone.classes.len() > 1).then_some(labels.as_slice());
        let mut glances = Vec::new();
        for seed in 0..seeds as u64 {
            let root = self.seed.child("quality").at(seed);
            let extractor = eyes.extractor();
            let mut looking = Looking::new(extractor, Keep::Features, self.device);
            let see = |samples: Vec<RgbImage>| extractor.look(&samples, self.device);
            self.samples(&pipeline, root, &wanted, see, |seen| Ok(looking.take(seen)?))?;
            if let Eyes::Judge(judge) = eyes {
                glances.push(judge.reference.glance(&looking.finish()?, labels)?);
            }
        }
        if !glances.is_empty() {
            let line = Figures::of(&glances).line(stage, self.recipe.steps(stage));
            self.journal.metrics.line_once(KID, &line)?;
        }
        Ok(glances)
    }

    /// What the run reports, of the figures of each seed; the rank that leads knows it.
    pub(crate) fn quality_report(
        &self,
        eyes: Option<&Eyes<Inner<A>>>,
        before: &[Glance],
        after: &[Glance],
        control: Option<&[Glance]>,
    ) -> Result<Option<QualityReport>, TrainError> {
        let (Some(Eyes::Judge(judge)), Some(Wanted { per_class, seeds })) =
            (eyes, Wanted::of(self.recipe))
        else {
            return Ok(None);
        };
        let floor = judge.reference.floor_at_a_glance()?;
        Ok(Some(QualityReport {
            extractor: judge.extractor(),
            samples: per_class * self.images.classes().len(),
            seeds,
            reference: judge.n_real,
            reference_cropped: judge.n_cropped,
            reference_enlarged: judge.n_enlarged,
            floor: floor.map(|(images, floor)| Floor {
                images,
                kid_effnetlite0: floor.kernel,
                class_accuracy: floor.class_accuracy,
            }),
            before: Figures::of(before),
            after: Figures::of(after),
            control: control.map(Figures::of),
            after_minus_before: Figures::minus(after, before),
            after_minus_control: control.map(|control| Figures::minus(after, control)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_a_line_of_the_metrics() {
        let of = |mean, interval: Option<(f64, f64)>| {
            let (low, high) = interval.unzip();
            Estimate { mean, low, high }
        };
        let figures = Figures {
            fd_effnetlite0: of(210.0, Some((200.0, 220.0))),
            kid_effnetlite0: of(0.5, Some((0.25, 0.75))),
            class_accuracy: None,
        };
        let line = json!({
            "stage": "sar", "step": 7,
            "fd_effnetlite0": 210.0, "fd_effnetlite0_interval": [200.0, 220.0],
            "kid_effnetlite0": 0.5, "kid_effnetlite0_interval": [0.25, 0.75],
        });
        assert_eq!(figures.line(StageId::Sar, 8), line);
        // Of one seed, and of weights that a recipe without the stage starts from.
        let one = Figures {
            fd_effnetlite0: of(210.0, None),
            kid_effnetlite0: of(0.5, None),
            class_accuracy: Some(of(0.125, None)),
        };
        let line = json!({
            "stage": "pretrain", "step": 0,
            "fd_effnetlite0": 210.0, "kid_effnetlite0": 0.5, "class_accuracy": 0.125,
        });
        assert_eq!(one.line(StageId::Pretrain, 0), line);
    }

    #[test]
    fn real_images_of_another_size_are_counted_and_said() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..20u32 {
            let [width, height] = match i {
                0..12 => [32, 32],
                12..17 => [48, 40],
                _ => [20, 24],
            };
            let image = RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([(12 * i) as u8, (5 * x) as u8, (5 * y) as u8])
            });
            image.save(folder.path().join(format!("{i:02}.png"))).unwrap();
        }
        let source = format!("data.source={{ kind = \"folder\", path = {:?} }}", folder.path());
        let settings = [source, "data.augmentation.flip_except=[]".to_owned()];
        let recipe = Recipe::load("emoji-quick", &settings).unwrap();
        let device = Default::default();
        let judge = Judge::<burn_flex::Flex>::look_at(&recipe, &[], &device, || {}).unwrap();
        assert_eq!((judge.n_real(), judge.n_cropped, judge.n_enlarged), (20, 8, 3));
        let [cropped, enlarged] = judge.resized() else { panic!("{:?}", judge.resized()) };
        let line =
            "recipe emoji-quick: 8 of 20 images have another size than 32x32 px and were cropped";
        assert!(cropped.starts_with(line), "{cropped}");
        let line = "recipe emoji-quick: 3 of 20 images are smaller than 32x32 px and were enlarged";
        assert!(enlarged.starts_with(line), "{enlarged}");
    }

    #[test]
    fn differences_are_of_pairs() {
        let glance = |frechet: f64, accuracy: Option<f64>| -> Glance {
            let glance = json!({
                "frechet": frechet, "kernel": frechet / 10.0, "class_accuracy": accuracy
            });
            serde_json::from_value(glance).unwrap()
        };
        // Seeds differ a lot, the weights always by 1.
        let [a, b] = [1.0, 0.0].map(|by| [10.0, 50.0, 90.0].map(|x| glance(x + by, Some(0.5))));
        let minus = Figures::minus(&a, &b);
        let one = Estimate { mean: 1.0, low: Some(1.0), high: Some(1.0) };
        assert_eq!(minus.fd_effnetlite0, one);
        assert!((minus.kid_effnetlite0.mean - 0.1).abs() < 1e-12);
        assert_eq!(minus.class_accuracy.unwrap().mean, 0.0);
        let alone = Figures::of(&[glance(1.0, None)]);
        assert!(alone.class_accuracy.is_none());
    }
}
