//! One optimisation step of any task: micro-batches, clipping, schedules, AdamW.

use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::gradients::Gradients;
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
}

/// The loss of a micro-batch and its parts.
#[derive(Debug)]
pub struct Terms<A: AutodiffBackend> {
    /// What is differentiated, `[1]`.
    pub loss: Tensor<A, 1>,
    /// Named parts, on the device until somebody reads them.
    pub parts: Vec<(&'static str, Tensor<A::InnerBackend, 1>)>,
}

/// What a step reports; tensors stay on the device until somebody reads them.
#[derive(Debug)]
pub struct StepOutcome<A: AutodiffBackend> {
    /// Named parts of the loss, means over the micro-batches.
    pub parts: Vec<(&'static str, Tensor<A::InnerBackend, 1>)>,
    /// Global norm of the gradients before clipping.
    pub gradient_norm: Tensor<A::InnerBackend, 1>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Weight decay of this step.
    pub weight_decay: f64,
}

/// One step of `model`, whose parameters live on the backend without autodiff.
///
/// `loss` gives the terms of a micro-batch, `0..micro_batches`, for the differentiable model.
///
/// # Errors
/// Whatever `loss` fails with; the model is lost then only to the caller who gave it away.
pub fn train_step<A, M>(
    model: M::InnerModule,
    optimizer: &mut AdamW<A::InnerBackend>,
    settings: &Optimisation,
    step: u64,
    steps: u64,
    mut loss: impl FnMut(&M, usize) -> Result<Terms<A>, TrainError>,
) -> Result<(M::InnerModule, StepOutcome<A>), TrainError>
where
    A: AutodiffBackend,
    M: AutodiffModule<A>,
{
    let n = settings.micro_batches;
    let mut total: Option<Gradients<A::InnerBackend>> = None;
    let mut parts: Vec<(&'static str, Tensor<A::InnerBackend, 1>)> = Vec::new();
    for micro in 0..n {
        let differentiable = trainable::<A, M>(model.clone());
        let terms = loss(&differentiable, micro)?;
        let gradients = Gradients::of(terms.loss, &differentiable);
        total = Some(match total {
            Some(sum) => sum.add(gradients),
            None => gradients,
        });
        if parts.is_empty() {
            parts = terms.parts;
        } else {
            let both = parts.into_iter().zip(terms.parts);
            parts = both.map(|((name, a), (_, b))| (name, a + b)).collect();
        }
    }
    let mut gradients = total.expect("at least one micro-batch");
    if n > 1 {
        let share = 1.0 / n as f64;
        gradients = gradients.scale(share);
        parts = parts.into_iter().map(|(name, sum)| (name, sum * share)).collect();
    }
    let gradient_norm = gradients.norm();
    if settings.clip > 0.0 {
        gradients = gradients.clip(gradient_norm.clone(), settings.clip);
    }
    let lr = settings.lr.at(step, steps);
    let weight_decay = settings.weight_decay.at(step, steps);
    let model = optimizer.step(model, &gradients, lr, weight_decay);
    Ok((model, StepOutcome { parts, gradient_norm, lr, weight_decay }))
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
