//! Named pieces of work, to be timed next to what others need for the same.
//!
//! `pytorch/eager.py` has the same names.

use burn::tensor::backend::AutodiffBackend;
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::RgbImage;
use sar_eval::{Extractor, Keep, Looking};
use sar_features::InceptionInput;
use sar_model::Precision;
use sar_rollout::{Choice, Guidance, Predictions, Sampler};
use sar_train::objective::Objective;

use crate::{CLASSES, Subject};

/// Guided sampling without filters, as the PyTorch side does it.
const GREEDY: Sampler = Sampler {
    guidance: Guidance::FlexRamp { scale: 2.5, constant_over: 16 },
    choice: Choice::Argmax,
};

/// Images that are looked at, in memory at most.
const IMAGES: usize = 48;

/// The released models at 256 px, depth 16.
const D16: &str = "flexvar-d16-in256";

/// A piece of work that is set up, to be run any number of times; `None` for an unknown name.
///
/// | name | what one run does |
/// |---|---|
/// | `encode-256`, `decode-256` | one image of 256 px through the released tokenizer's shapes |
/// | `sample-d16-b1`, `sample-d4-b2-512px`, .. | guided sampling at a depth, with a batch, at a schedule, decoded |
/// | `tokenizer-step` | a training step of the tokenizer of `emoji-quick`, batch 32 |
/// | `emoji-teacher-step` | a teacher-forced step of the backbone of `emoji-quick`, batch 16 |
/// | `teacher-step` | a teacher-forced step, depth-16 shapes at depth 4, batch 2 |
/// | `features-efficientnet`, `features-efficientnet-n64`, .. | features of 256 images of 64 px, or of as many as are said, through EfficientNet-Lite0 at 160 px |
/// | `inception-pytorch-fid`, `inception-torch-fidelity-n2000`, .. | features of 48 images of 256 px, or of as many as are said, through the network of FID, by either package's resampling, with the weights of the file that `SAR_BENCH_INCEPTION` names |
/// | `sar-released-argmax`, `sar-paper-argmax`, `..-sampled` | a SAR step on the same |
/// | `teacher-step-d16-b32`, `sar-released-argmax-d4-b1-512px`, .. | these steps at other sizes |
///
/// `precision` is that of the backbone's matrix products, `workers` the number of micro-batches side
/// by side.
pub fn setup<A: AutodiffBackend>(
    name: &str,
    precision: Precision,
    workers: usize,
    device: A::Device,
) -> Option<Box<dyn FnMut()>> {
    let (what, shape) = match name.find("-d").map(|at| name.split_at(at)) {
        Some((what, shape)) => (what, Shape::read(&shape[1..])?),
        None => (name, Shape { depth: 4, batch: 2, px: 256 }),
    };
    let in_precision = format!("backbone.precision=\"{precision}\"");
    let at = |Shape { depth, px, batch }: Shape| {
        // The width and the heads of depth 16 stay.
        let depth = format!("backbone.depth={depth}");
        let scales = ScaleSchedule::preset(&format!("{px}px")).expect("a known preset");
        let schedule = format!("backbone.schedule={{ kind = \"fixed\", scales = \"{scales}\" }}");
        let side = format!("data.side={px}");
        // Two or more parts for as many workers, of eight images or fewer.
        let parts = (batch / 8).max(2);
        let parts = if batch.is_multiple_of(parts) { parts } else { 1 };
        let batch = format!("sar.optimization.batch_size={batch}");
        let parts = format!("sar.optimization.grad_accum_steps={parts}");
        let settings = [&side, &schedule, &depth, &batch, &parts, &in_precision];
        Subject::<A>::of(D16, &settings.map(String::as_str), 1000, device.clone())
    };
    let tokenizer_alone = || at(Shape { depth: 1, ..shape });
    Some(match what {
        "sample" => {
            let subject = at(shape);
            Box::new(move || {
                subject.decode(subject.sample_with(shape.batch, GREEDY)).into_data();
            })
        }
        "encode-256" => {
            let subject = tokenizer_alone();
            let images = subject.images(1);
            Box::new(move || subject.latents(images.clone()))
        }
        "decode-256" => {
            let subject = tokenizer_alone();
            let tokens = subject.encode(subject.images(1));
            Box::new(move || {
                subject.decode(tokens.clone()).into_data();
            })
        }
        "tokenizer-step" => {
            let settings = ["tokenizer.loss.coarse=0.0"];
            let mut subject = Subject::<A>::of("emoji-quick", &settings, CLASSES, device);
            let images = subject.images(32);
            Box::new(move || subject.tokenizer_step(images.clone(), workers))
        }
        "emoji-teacher-step" => {
            let settings = [in_precision.as_str()];
            let mut subject = Subject::<A>::of("emoji-quick", &settings, CLASSES, device);
            let tokens = subject.encode(subject.images(16));
            Box::new(move || subject.step_of(tokens.clone(), &Objective::TeacherForcing, workers))
        }
        _ if what.starts_with("inception-") || what.starts_with("features-") => {
            features::<A>(what, device)?
        }
        _ => {
            let objective = objective(what)?;
            let mut subject = at(shape);
            let tokens = subject.encode(subject.images(shape.batch));
            Box::new(move || subject.step_of(tokens.clone(), &objective, workers))
        }
    })
}

/// Features of images of random pixels, a few at a time as `sar eval` takes them.
fn features<A: AutodiffBackend>(name: &str, device: A::Device) -> Option<Box<dyn FnMut()>> {
    let (network, said) = match name.split_once("-n") {
        Some((network, n)) => (network, Some(n.parse::<usize>().ok()?)),
        None => (name, None),
    };
    let inception = |input: InceptionInput| {
        let path = std::env::var_os("SAR_BENCH_INCEPTION");
        let path = path.expect("SAR_BENCH_INCEPTION names a file");
        let extractor = Extractor::<A::InnerBackend>::inception(path.as_ref(), input, &device);
        extractor.expect("weights of the network")
    };
    let (extractor, side, usual) = match network {
        "features-efficientnet" => (Extractor::efficientnet_lite0(&device), 64, 256),
        "inception-pytorch-fid" => (inception(InceptionInput::PytorchFid), 256, IMAGES),
        "inception-torch-fidelity" => (inception(InceptionInput::Adm), 256, IMAGES),
        _ => return None,
    };
    let n = said.unwrap_or(usual);
    let pixels = SeedTree::new(0).uniforms((side * side * 3) as usize);
    let pixels: Vec<u8> = pixels.iter().map(|u| (256.0 * u) as u8).collect();
    let image = RgbImage::from_raw(side, side, pixels).expect("as many bytes as pixels");
    let images = vec![image; IMAGES.min(n)];
    Some(Box::new(move || {
        let mut looking = Looking::new(&extractor, Keep::Features, &device);
        for at in (0..n).step_by(IMAGES) {
            looking.add(&images[..IMAGES.min(n - at)]).expect("finite features");
        }
    }))
}

/// Sizes in a name.
#[derive(Clone, Copy)]
struct Shape {
    depth: usize,
    batch: usize,
    px: usize,
}

impl Shape {
    /// Reads `d4-b2` or `d4-b2-512px`.
    fn read(text: &str) -> Option<Self> {
        let (depth, rest) = text.strip_prefix('d')?.split_once("-b")?;
        let (batch, px) = rest.split_once('-').unwrap_or((rest, "256px"));
        let number = |text: &str| text.parse().ok();
        Some(Self {
            depth: number(depth)?,
            batch: number(batch)?,
            px: number(px.strip_suffix("px")?)?,
        })
    }
}

fn objective(name: &str) -> Option<Objective> {
    let (released, paper) = (Objective::released(), Objective::paper(1.0));
    let with = |mut objective: Objective, drawn: Predictions| {
        if let Objective::Sar { predictions, .. } = &mut objective {
            *predictions = drawn;
        }
        objective
    };
    Some(match name {
        "teacher-step" => Objective::TeacherForcing,
        "sar-released-argmax" => with(released, Predictions::TeacherArgmax),
        "sar-released-sampled" => released,
        "sar-paper-argmax" => paper,
        "sar-paper-sampled" => match released {
            Objective::Sar { predictions, .. } => with(paper, predictions),
            _ => unreachable!("the preset is SAR"),
        },
        _ => return None,
    })
}
