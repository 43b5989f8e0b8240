//! One optimisation step of any task: gradients of micro-batches, then clipping, schedules, AdamW.

use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::ScaleSize;
use serde::{Deserialize, Serialize};

use crate::gradients::{Gradients, clip_factor, norm_of};
use crate::loss_scale::LossScale;
use crate::optim::{AdamW, AdamWConfig};
use crate::schedule::{LrSchedule, WeightDecay};

/// How a stage is optimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimisation {
    /// Images per step.
    pub batch: usize,
    /// The batch is split into this many parts whose gradients are added.
    pub micro_batches: usize,
    /// Learning rate.
    pub lr: LrSchedule,
    /// Weight decay of the decayed group.
    pub weight_decay: WeightDecay,
    /// Constants of AdamW.
    pub adamw: AdamWConfig,
    /// Largest global norm of the gradients (published: 2.0); 0 for none.
    pub clip: f64,
    /// Decay of the exponential moving average of the weights, in `[0, 1)`; 0 keeps none.
    pub ema: f64,
}

/// Named values, on the device until somebody reads them.
pub type Parts<B> = Vec<(&'static str, Tensor<B, 1>)>;

/// The loss of a micro-batch.
#[derive(Debug)]
pub struct Terms<A: AutodiffBackend> {
    /// What is differentiated, `[1]`.
    pub loss: Tensor<A, 1>,
    /// What it consists of.
    pub parts: Parts<A::InnerBackend>,
    /// The loss of each scale, `[1]`: read only to say where numbers went bad.
    pub scales: ByScale<A::InnerBackend>,
}

/// A value of each scale, on the device.
pub type ByScale<B> = Vec<(ScaleSize, Tensor<B, 1>)>;

type Sum<B> = (Gradients<B>, Parts<B>);

/// The mean over the micro-batches of a step.
#[derive(Debug)]
pub struct Accumulated<B: Backend, O> {
    /// Mean gradients.
    pub gradients: Gradients<B>,
    /// Mean parts of the loss.
    pub parts: Parts<B>,
    /// Losses by scale of each micro-batch, which may differ in their scales.
    pub scales: Vec<ByScale<B>>,
    /// What else each micro-batch gave, in their order.
    pub outputs: Vec<O>,
}

/// The first half of a step: the gradients of `model`, whose parameters live on the backend without
/// autodiff.
///
/// `loss` gives the terms of one micro-batch for the differentiable model, and anything else that
/// the caller wants back. What is differentiated is the loss times `loss_scale`; the gradients are
/// divided by it again.
///
/// Up to `workers` micro-batches run at the same time, each on a graph of its own; gradients are added
/// in the order of the micro-batches, so that nothing depends on `workers`.
///
/// # Panics
/// If there is no micro-batch, or `workers` is 0.
pub fn accumulate<A, M, I, O>(
    model: &M::InnerModule,
    micro_batches: Vec<I>,
    workers: usize,
    loss_scale: f64,
    loss: impl Fn(&M, I) -> (Terms<A>, O) + Sync,
) -> Accumulated<A::InnerBackend, O>
where
    A: AutodiffBackend,
    M: AutodiffModule<A>,
    M::InnerModule: Send,
    I: Send,
    O: Send,
{
    let n = micro_batches.len();
    // All graphs are built before the first backward pass: at its end burn-autodiff frees what it
    // takes for orphans in every graph of the process, and may take a node of a graph that another
    // thread is still building for one. Its gradient would be lost without a word.
    let forward = |(model, input): (M::InnerModule, I)| {
        let differentiable = trainable::<A, M>(model);
        let (terms, output) = loss(&differentiable, input);
        (differentiable, terms, output)
    };
    let backward = |(differentiable, terms, output): (M, Terms<A>, O)| {
        let Terms { loss, parts, scales } = terms;
        let loss = if loss_scale == 1.0 { loss } else { loss * loss_scale };
        (Gradients::of(loss, &differentiable), parts, scales, output)
    };
    let mut sum: Option<Sum<A::InnerBackend>> = None;
    let mut by_scale = Vec::with_capacity(n);
    let mut outputs = Vec::with_capacity(n);
    let mut waiting = micro_batches.into_iter().map(|input| (model.clone(), input));
    loop {
        let group: Vec<_> = waiting.by_ref().take(workers).collect();
        if group.is_empty() {
            break;
        }
        let group = side_by_side(group, &forward);
        for (gradients, parts, scales, output) in side_by_side(group, &backward) {
            by_scale.push(scales);
            outputs.push(output);
            sum = Some(match sum {
                Some((all, named)) => {
                    let named = named.into_iter().zip(parts);
                    let named = named.map(|((name, a), (_, b))| (name, a + b)).collect();
                    (all.plus(gradients), named)
                }
                None => (gradients, parts),
            });
        }
    }
    assert_eq!(outputs.len(), n, "at least one worker");
    let (mut gradients, mut parts) = sum.expect("at least one micro-batch");
    let share = 1.0 / n as f64;
    let factor = share / loss_scale;
    if factor != 1.0 {
        gradients = gradients.scale(factor);
    }
    if n > 1 {
        parts = parts.into_iter().map(|(name, sum)| (name, sum * share)).collect();
    }
    Accumulated { gradients, parts, scales: by_scale, outputs }
}

/// Applies `work` to every item, each on a thread of its own.
pub(crate) fn side_by_side<I: Send, T: Send>(
    items: Vec<I>,
    work: &(impl Fn(I) -> T + Sync),
) -> Vec<T> {
    let mut items = items.into_iter();
    let Some(first) = items.next() else { return Vec::new() };
    std::thread::scope(|scope| {
        let others: Vec<_> = items.map(|item| scope.spawn(move || work(item))).collect();
        let mut results = vec![work(first)];
        for other in others {
            results.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    })
}

/// What an update did.
#[derive(Clone, Debug)]
pub struct Update<B: Backend> {
    /// Global norm of the gradients before clipping, on the device.
    pub gradient_norm: Tensor<B, 1>,
    /// Squared norm of each gradient, `[p]`, on the device.
    pub squares_p: Tensor<B, 1>,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether nothing was moved, because a scaled loss had gradients that are no numbers.
    pub is_skipped: bool,
}

impl Optimisation {
    /// The second half of a step: clips, looks up the schedules at `step` of `steps`, and moves the
    /// parameters. Gradients that are no numbers move nothing.
    ///
    /// Whoever scales the loss hands the scale in: it then waits for the device to say whether the
    /// gradients are finite, and decides whether the step counts. Without it nothing waits.
    pub fn update<B: Backend, M: Module<B>>(
        &self,
        model: M,
        optimizer: &mut AdamW<B>,
        gradients: Gradients<B>,
        (step, steps): (u64, u64),
        loss_scale: Option<&mut LossScale>,
    ) -> (M, Update<B>) {
        let squares_p = gradients.squares();
        let gradient_norm = norm_of(squares_p.clone());
        let lr = self.lr.at(step, steps);
        let weight_decay = self.weight_decay.at(step, steps);
        let is_skipped =
            loss_scale.is_some_and(|scale| !scale.admits(is_finite(gradient_norm.clone())));
        let update = Update { gradient_norm, squares_p, lr, weight_decay, is_skipped };
        if is_skipped {
            return (model, update);
        }
        let factor = clip_factor(update.gradient_norm.clone(), self.clip);
        (optimizer.step(model, &gradients, factor, lr, weight_decay), update)
    }
}

/// Whether a value on the device is a finite number: waits for it.
fn is_finite<B: Backend>(x: Tensor<B, 1>) -> bool {
    x.into_data().iter::<f64>().all(f64::is_finite)
}

/// The differentiable form of a module, every parameter a leaf of its own graph.
pub fn trainable<A, M>(model: M::InnerModule) -> M
where
    A: AutodiffBackend,
    M: AutodiffModule<A>,
{
    struct RequireGrad;

    impl<A: AutodiffBackend> ModuleMapper<A> for RequireGrad {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
            param.map(|tensor| tensor.set_require_grad(true))
        }
    }

    M::from_inner(model).map(&mut RequireGrad)
}
