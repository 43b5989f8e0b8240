//! AdamW with decoupled weight decay and two parameter groups (Loshchilov and Hutter, 2019).
//!
//! ```text
//! p -= lr wd p                                        (decayed group only)
//! m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
//! p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{AdamWStep, adamw};
use sar_weights::ParameterInfo;
use serde::{Deserialize, Serialize};

use crate::gradients::Gradients;

/// Constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients (published: 0.9).
    pub beta1: f64,
    /// Decay of the mean of squares (published: 0.95).
    pub beta2: f64,
    /// Added to the root of the mean of squares (published: 1e-8).
    pub eps: f64,
}

/// Parameters that are never decayed: biases, 1-D tensors, and these.
const UNDECAYED: [&str; 7] =
    ["pos_1LC", "pos_start", "mask_token", "pos_instruction", "lvl_embed", "ada_gss", "scale_mul"];

/// Whether a parameter belongs to the decayed group.
pub fn is_decayed(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with("bias") && !UNDECAYED.iter().any(|part| name.contains(part))
}

/// A parameter's name and its moments, the mean and the mean of squares, once it had a gradient.
pub type NamedMoments<'a, B> = (&'a str, Option<[Tensor<B, 1>; 2]>);

/// The optimizer's state: one pair of moments per parameter, in visit order.
#[derive(Clone, Debug)]
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    /// Steps taken.
    steps: u64,
    slots: Vec<Slot<B>>,
}

#[derive(Clone, Debug)]
struct Slot<B: Backend> {
    info: ParameterInfo,
    decayed: bool,
    moments: Option<Moments<B>>,
}

#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    mean: Tensor<B, 1>,
    square: Tensor<B, 1>,
}

impl<B: Backend> AdamW<B> {
    /// An optimizer for a module with these parameters, in visit order.
    pub fn new(config: AdamWConfig, parameters: Vec<ParameterInfo>) -> Self {
        let slot = |info: ParameterInfo| Slot {
            decayed: is_decayed(&info.name, &info.shape),
            info,
            moments: None,
        };
        Self { config, steps: 0, slots: parameters.into_iter().map(slot).collect() }
    }

    /// One step of every parameter that has a gradient, multiplied by a factor `[1]` (0 makes it
    /// zero, whatever it is).
    ///
    /// # Panics
    /// If the module or the gradients are not of the structure that this optimizer was made for.
    pub fn step<M: Module<B>>(
        &mut self,
        module: M,
        gradients: &Gradients<B>,
        factor: Tensor<B, 1>,
        lr: f64,
        weight_decay: f64,
    ) -> M {
        self.steps += 1;
        let t = self.steps as f64;
        let AdamWConfig { beta1, beta2, eps } = self.config;
        let mut update = Update {
            step: AdamWStep {
                beta1,
                beta2,
                eps,
                decay: lr * weight_decay,
                rate: lr / (1.0 - beta1.powf(t)),
                correction: (1.0 - beta2.powf(t)).sqrt(),
            },
            factor,
            slots: self.slots.iter_mut(),
            gradients: gradients.iter(),
        };
        let module = module.map(&mut update);
        assert!(update.slots.next().is_none(), "more optimizer state than parameters");
        module
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments by parameter name, for a checkpoint.
    pub fn moments(&self) -> impl Iterator<Item = NamedMoments<'_, B>> {
        self.slots.iter().map(|slot| {
            let moments = slot.moments.as_ref().map(|m| [m.mean.clone(), m.square.clone()]);
            (slot.info.name.as_str(), moments)
        })
    }

    /// Goes on after `steps` steps with what [`moments`](Self::moments) gave; `moments` is asked for
    /// every parameter by name.
    pub fn restore(
        &mut self,
        steps: u64,
        mut moments: impl FnMut(&str) -> Option<[Tensor<B, 1>; 2]>,
    ) {
        self.steps = steps;
        for slot in &mut self.slots {
            slot.moments = moments(&slot.info.name).map(|[mean, square]| Moments { mean, square });
        }
    }
}

struct Update<'a, B: Backend, G> {
    step: AdamWStep,
    factor: Tensor<B, 1>,
    slots: std::slice::IterMut<'a, Slot<B>>,
    gradients: G,
}

impl<'g, B: Backend, G: Iterator<Item = Option<&'g Tensor<B, 1>>>> ModuleMapper<B>
    for Update<'_, B, G>
{
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let slot = self.slots.next().expect("optimizer state for every parameter");
        let gradient = self.gradients.next().expect("a gradient slot for every parameter");
        let Some(g) = gradient else { return param };
        param.map(|p| {
            let shape = p.dims();
            let step = match slot.decayed {
                true => self.step,
                false => AdamWStep { decay: 0.0, ..self.step },
            };
            let moments = match slot.moments.take() {
                Some(Moments { mean, square }) => [mean, square],
                None => [g.zeros_like(), g.zeros_like()],
            };
            let p = p.reshape([g.dims()[0]]);
            let (p, [mean, square]) = adamw(p, moments, g.clone(), self.factor.clone(), step);
            slot.moments = Some(Moments { mean, square });
            p.reshape(shape)
        })
    }
}
