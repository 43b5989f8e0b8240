//! SAR for a model of one's own: only `sar-rollout` and `sar-loss` are linked beside burn.
//!
//! The model has no attention and the images are pyramids of colors that follow a rule: the first
//! token is the class or its opposite, and each token of a finer scale is its parent's color, moved
//! on by its quarter. Two traits make a model fit for rollouts: `ScaleModel` runs it scale by scale,
//! `CodePyramid` turns tokens into the next scale's input.
//!
//! ```sh
//! cargo run --release -p sar-rollout --example own_model
//! ```
//!
//! Shapes: b batch, n tokens of one scale, l tokens of the pyramid, c channels, d width, v codes.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::activation::relu;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_loss::{Target, cross_entropy, mean_tokens, student_forcing};
use sar_rollout::sar_core::{CodePyramid, ScaleModel, ScaleSchedule, SeedTree, paint_all};
use sar_rollout::{Choice, Guidance, Sampler, StudentContext, Transitions, generate, stagger};

const COLORS: usize = 8;
const CLASSES: usize = 4;
/// Small, because half of the student's contexts here are of the other first color.
const STUDENT_WEIGHT: f64 = 0.02;

/// The rule of the data: a child's color.
fn child(parent: usize, y: usize, x: usize) -> usize {
    (parent + 1 + 2 * (y % 2) + x % 2) % COLORS
}

/// A pyramid of a class, coarse to fine; `flip` chooses between its two first colors.
fn pyramid(schedule: &ScaleSchedule, class: usize, flip: bool) -> Vec<usize> {
    let mut tokens = vec![class + if flip { COLORS / 2 } else { 0 }];
    for k in 1..schedule.len() {
        let (side, before) = (schedule.size(k).width, schedule.size(k - 1).width);
        let parents = schedule.range(k - 1).start;
        for y in 0..side {
            for x in 0..side {
                let parent = tokens[parents + y * before / side * before + x * before / side];
                tokens.push(child(parent, y, x));
            }
        }
    }
    tokens
}

/// A color's code is one-hot; the next input is the color map, enlarged.
struct Colors<B: Backend>(B::Device);

impl<B: Backend> CodePyramid<B> for Colors<B> {
    type Canvas = ();

    fn codes(&self) -> Tensor<B, 2> {
        Tensor::eye(COLORS, &self.0)
    }

    fn paint(
        &self,
        _: &mut (),
        schedule: &ScaleSchedule,
        k: usize,
        codes_bnc: Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>> {
        let side = schedule.sizes().get(k + 1)?.width;
        let before = schedule.size(k).width;
        let parents = (0..side * side).map(|i| {
            let (y, x) = (i / side, i % side);
            (y * before / side * before + x * before / side) as i64
        });
        let parents = TensorData::new(parents.collect::<Vec<_>>(), [side * side]);
        let parents = Tensor::from_data(parents, &codes_bnc.device());
        Some(codes_bnc.select(1, parents))
    }
}

/// An MLP on a token's input, its place and the class.
#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    class: Embedding<B>,
    place: Embedding<B>,
    input: Linear<B>,
    hidden: Linear<B>,
    output: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    fn new(places: usize, device: &B::Device) -> Self {
        let d = 64;
        Self {
            class: EmbeddingConfig::new(CLASSES + 1, d).init(device),
            place: EmbeddingConfig::new(places, d).init(device),
            input: LinearConfig::new(COLORS, d).init(device),
            hidden: LinearConfig::new(d, d).init(device),
            output: LinearConfig::new(d, COLORS).init(device),
        }
    }

    /// Tokens `places` of the pyramid; the first token's input is zero.
    fn forward(
        &self,
        labels_b: Tensor<B, 1, Int>,
        places: std::ops::Range<usize>,
        inputs_bnc: Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let [b] = labels_b.dims();
        let places = Tensor::arange(places.start as i64..places.end as i64, &labels_b.device());
        let class_b1d = self.class.forward(labels_b.reshape([b, 1]));
        let place_1nd = self.place.forward(places.unsqueeze());
        let x_bnd = self.input.forward(inputs_bnc) + class_b1d + place_1nd;
        self.output.forward(relu(self.hidden.forward(relu(x_bnd))))
    }

    /// All scales at once from the inputs of all but the first.
    fn all(&self, labels_b: Tensor<B, 1, Int>, inputs: Vec<Tensor<B, 3>>) -> Tensor<B, 3> {
        let first = Tensor::zeros([labels_b.dims()[0], 1, COLORS], &labels_b.device());
        let inputs_blc = Tensor::cat(std::iter::once(first).chain(inputs).collect(), 1);
        let l = inputs_blc.dims()[1];
        self.forward(labels_b, 0..l, inputs_blc)
    }
}

impl<B: Backend> ScaleModel<B> for Mlp<B> {
    type Cache = (usize, Tensor<B, 1, Int>);

    fn null_class(&self) -> usize {
        CLASSES
    }

    fn begin(&self, labels_b: Tensor<B, 1, Int>, _: &ScaleSchedule) -> Self::Cache {
        (0, labels_b)
    }

    fn step(
        &self,
        (done, labels_b): &mut Self::Cache,
        input: Option<Tensor<B, 3>>,
    ) -> Tensor<B, 3> {
        let device = labels_b.device();
        let input =
            input.unwrap_or_else(|| Tensor::zeros([labels_b.dims()[0], 1, COLORS], &device));
        let places = *done..*done + input.dims()[1];
        *done = places.end;
        self.forward(labels_b.clone(), places, input)
    }
}

/// SAR on one batch: teacher pass, staggered pass on its predictions, both losses.
fn loss<A: AutodiffBackend>(
    model: &Mlp<A>,
    schedule: &ScaleSchedule,
    labels_b: Tensor<A::InnerBackend, 1, Int>,
    truth_bl: Tensor<A::InnerBackend, 2, Int>,
    step: SeedTree,
) -> Tensor<A, 1> {
    let colors = Colors::<A::InnerBackend>(labels_b.device());
    let labels_b = Tensor::<A, 1, Int>::from_inner(labels_b);
    let (inputs, _) = paint_all(&colors, schedule, truth_bl.clone());
    let inputs = inputs.into_iter().map(Tensor::from_inner).collect();
    let teacher_blv = model.all(labels_b.clone(), inputs);
    let predicted_bl = teacher_blv.clone().inner().argmax(2).squeeze_dim::<2>(2);

    let (context, transitions) = (StudentContext::All, Transitions::All);
    let (predicted, truth) = (predicted_bl.clone(), truth_bl.clone());
    let passes = stagger(&colors, schedule, predicted, truth, context, transitions, step);
    let truth_bl = Tensor::<A, 2, Int>::from_inner(truth_bl);
    let teacher_loss = mean_tokens(cross_entropy(teacher_blv, truth_bl, 0.0));
    let target = Target::Tokens(predicted_bl);
    let student_losses = passes.into_iter().map(|pass| {
        let inputs = vec![Tensor::from_inner(pass.inputs_blc)];
        let student_blv = model.all(labels_b.clone(), inputs).slice_dim(1, pass.predicts.clone());
        mean_tokens(student_forcing(student_blv, target.of_tokens(pass.predicts)))
    });
    student_losses.fold(teacher_loss, |sum, student| sum + student * STUDENT_WEIGHT)
}

/// Share of sampled tokens that follow the rule.
fn obedience<B: Backend>(model: &Mlp<B>, schedule: &ScaleSchedule, device: &B::Device) -> f64 {
    let labels: Vec<usize> = (0..64).map(|i| i % CLASSES).collect();
    let streams: Vec<SeedTree> = (0..64).map(|i| SeedTree::new(9).at(i)).collect();
    let sampler = Sampler {
        guidance: Guidance::Ramp { scale: 0.5 },
        choice: Choice::Sample { top_k: 4, top_p: 0.9 },
    };
    let colors = Colors(device.clone());
    let tokens = generate(model, &colors, &labels, schedule, sampler, &streams, device);
    let tokens = tokens.tokens_bl().into_data().convert::<i64>().into_vec::<i64>().expect("i64");
    let l = schedule.n_tokens();
    let good = labels.iter().zip(tokens.chunks(l)).map(|(class, tokens)| {
        let expected = pyramid(schedule, *class, tokens[0] as usize >= COLORS / 2);
        tokens.iter().zip(expected).filter(|(a, b)| **a as usize == *b).count()
    });
    good.sum::<usize>() as f64 / (labels.len() * l) as f64
}

fn main() {
    type B = Autodiff<Flex>;
    let device = Default::default();
    let schedule: ScaleSchedule = "1_2_4".parse().expect("a valid schedule");
    let mut model = Mlp::<B>::new(schedule.n_tokens(), &device);
    let mut optimizer = AdamConfig::new().init();
    println!(
        "before: {:.0} % of sampled tokens follow the rule",
        100.0 * obedience(&model.valid(), &schedule, &device)
    );
    let (b, l) = (32, schedule.n_tokens());
    for step in 0..1000 {
        let draws = SeedTree::new(1).at(step);
        let classes: Vec<usize> = (0..b).map(|i| draws.child("class").below(i, CLASSES)).collect();
        let labels = classes.iter().enumerate().map(|(i, class)| {
            // One image in ten is unconditional.
            if draws.child("drop").uniform(i as u64) < 0.1 { CLASSES as i64 } else { *class as i64 }
        });
        let labels = TensorData::new(labels.collect::<Vec<_>>(), [b as usize]);
        let tokens = classes.iter().enumerate().flat_map(|(i, class)| {
            pyramid(&schedule, *class, draws.child("flip").uniform(i as u64) < 0.5)
        });
        let tokens: Vec<i64> = tokens.map(|token| token as i64).collect();
        let loss = loss(
            &model,
            &schedule,
            Tensor::from_data(labels, &device),
            Tensor::from_data(TensorData::new(tokens, [b as usize, l]), &device),
            draws,
        );
        if step % 200 == 0 {
            println!("step {step}: loss {:.3}", loss.clone().into_scalar());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(3e-3, model, gradients);
    }
    println!("after: {:.0} %", 100.0 * obedience(&model.valid(), &schedule, &device));
}
