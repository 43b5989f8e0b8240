//! AdamW with decoupled weight decay and two parameter groups (Loshchilov and Hutter, 2019), and beside it
//! [Muon](crate::muon), where a recipe asks for it.
//!
//! ```text
//! p -= lr wd p                                        (decayed group only)
//! m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
//! p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{AdamWStep, adamw};
use sar_weights::ParameterInfo;
use serde::{Deserialize, Serialize};

use crate::gradients::Gradients;
use crate::muon::{self, Matrices, Matrix, is_orthogonalized};

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

/// The names of the moments of a parameter: the mean of its gradients, and AdamW's mean of squares.
pub(crate) fn moments_of(matrices: Matrices, info: &ParameterInfo) -> &'static [&'static str] {
    if is_by_muon(matrices, info) { &["mean"] } else { &["mean", "square"] }
}

fn is_by_muon(matrices: Matrices, info: &ParameterInfo) -> bool {
    matches!(matrices, Matrices::Muon { .. }) && is_orthogonalized(&info.name, &info.shape)
}

/// The moments of a parameter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NamedMoments<'a, B: Backend> {
    /// The parameter's name.
    pub parameter: &'a str,
    /// The names of its moments,
    pub names: &'static [&'static str],
    /// and these, in the same order, once it had a gradient; none before.
    pub moments: Vec<Tensor<B, 1>>,
}

/// The optimizer's state: the moments of each parameter, in visit order.
#[derive(Clone, Debug)]
pub struct Optimizer<B: Backend> {
    adamw: AdamWConfig,
    matrices: Matrices,
    /// Steps taken.
    steps: u64,
    slots: Vec<Slot<B>>,
}

#[derive(Clone, Debug)]
struct Slot<B: Backend> {
    info: ParameterInfo,
    decayed: bool,
    by_muon: bool,
    names: &'static [&'static str],
    /// As many as there are names, or none.
    moments: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Optimizer<B> {
    /// An optimizer for a module with these parameters, in visit order.
    pub fn new(adamw: AdamWConfig, matrices: Matrices, parameters: Vec<ParameterInfo>) -> Self {
        let slot = |info: ParameterInfo| Slot {
            decayed: is_decayed(&info.name, &info.shape),
            by_muon: is_by_muon(matrices, &info),
            names: moments_of(matrices, &info),
            info,
            moments: Vec::new(),
        };
        let slots = parameters.into_iter().map(slot).collect();
        Self { adamw, matrices, steps: 0, slots }
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
        let AdamWConfig { beta1, beta2, eps } = self.adamw;
        let directions = self.directions(&module, gradients, &factor);
        let mut update = Update {
            step: AdamWStep {
                beta1,
                beta2,
                eps,
                decay: lr * weight_decay,
                rate: lr / (1.0 - beta1.powf(t)),
                correction: (1.0 - beta2.powf(t)).sqrt(),
            },
            lr,
            factor,
            slots: self.slots.iter_mut(),
            gradients: gradients.iter(),
            directions: directions.into_iter(),
        };
        let module = module.map(&mut update);
        assert!(update.slots.next().is_none(), "more optimizer state than parameters");
        module
    }

    /// What Muon moves parameters along, all at once, in visit order; none for those that AdamW moves and those
    /// without a gradient. The means of their gradients are moved on the way.
    fn directions<M: Module<B>>(
        &mut self,
        module: &M,
        gradients: &Gradients<B>,
        factor: &Tensor<B, 1>,
    ) -> Vec<Option<Tensor<B, 1>>> {
        let mut directions = vec![None; self.slots.len()];
        let Matrices::Muon { momentum, update_rms, iterations } = self.matrices else {
            return directions;
        };
        let mut rows = Rows(Vec::new());
        module.visit(&mut rows);
        let mut places = Vec::new();
        let mut matrices = Vec::new();
        let all = self.slots.iter_mut().zip(gradients.iter()).zip(rows.0).enumerate();
        for (place, ((slot, gradient), rows)) in all {
            let Some(gradient_n) = gradient.cloned() else { continue };
            if slot.by_muon {
                let size = [rows, gradient_n.dims()[0] / rows];
                places.push(place);
                matrices.push(Matrix { size, mean_n: slot.moments.pop(), gradient_n });
            }
        }
        let moved = muon::directions(matrices, factor, [momentum, update_rms], iterations);
        for (place, (mean_n, direction_n)) in places.into_iter().zip(moved) {
            self.slots[place].moments = vec![mean_n];
            directions[place] = Some(direction_n);
        }
        directions
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments of all parameters, for a checkpoint.
    pub fn moments(&self) -> impl Iterator<Item = NamedMoments<'_, B>> {
        self.slots.iter().map(|slot| NamedMoments {
            parameter: &slot.info.name,
            names: slot.names,
            moments: slot.moments.clone(),
        })
    }

    /// Goes on after `steps` steps with what [`moments`](Self::moments) gave; `moments` is asked for
    /// every parameter by its name and the names of its moments.
    pub fn restore(
        &mut self,
        steps: u64,
        mut moments: impl FnMut(&str, &[&str]) -> Vec<Tensor<B, 1>>,
    ) {
        self.steps = steps;
        for slot in &mut self.slots {
            slot.moments = moments(&slot.info.name, slot.names);
        }
    }
}

/// The first dimension of each parameter, as the module holds it.
struct Rows(Vec<usize>);

impl<B: Backend> ModuleVisitor<B> for Rows {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.push(param.val().dims()[0]);
    }
}

struct Update<'a, B: Backend, G> {
    step: AdamWStep,
    lr: f64,
    factor: Tensor<B, 1>,
    slots: std::slice::IterMut<'a, Slot<B>>,
    gradients: G,
    directions: std::vec::IntoIter<Option<Tensor<B, 1>>>,
}

impl<'g, B: Backend, G: Iterator<Item = Option<&'g Tensor<B, 1>>>> ModuleMapper<B>
    for Update<'_, B, G>
{
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let slot = self.slots.next().expect("optimizer state for every parameter");
        let gradient = self.gradients.next().expect("a gradient slot for every parameter");
        let direction = self.directions.next().flatten();
        let Some(g) = gradient else { return param };
        let step = match slot.decayed {
            true => self.step,
            false => AdamWStep { decay: 0.0, ..self.step },
        };
        if let Some(direction_n) = direction {
            return param.map(|p| {
                let along = direction_n.reshape(p.dims()) * self.lr;
                p * (1.0 - step.decay) - along
            });
        }
        param.map(|p| {
            let shape = p.dims();
            let mut moments = std::mem::take(&mut slot.moments).into_iter();
            let mut moment = || moments.next().unwrap_or_else(|| g.zeros_like());
            let moments = [moment(), moment()];
            let p = p.reshape([g.dims()[0]]);
            let (p, moments) = adamw(p, moments, g.clone(), self.factor.clone(), step);
            slot.moments = moments.into();
            p.reshape(shape)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn_flex::Flex;
    use sar_weights::{Layout, parameters};

    use super::*;

    const BARE: Layout = Layout { renames: &[], ignored: &[] };

    fn tensor<const D: usize>(values: [f32; 6], shape: [usize; D]) -> Tensor<Flex, D> {
        Tensor::<Flex, 1>::from_floats(values, &Default::default()).reshape(shape)
    }

    /// Two steps of a matrix of 3 rows and 2 columns, the second one with half its gradient, computed in f64 with
    /// NumPy.
    #[test]
    fn muon_moves_a_matrix_as_its_equations_say() {
        let matrices = Matrices::Muon { momentum: 0.9, update_rms: 0.2, iterations: 5 };
        let adamw = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
        let mut layer: Linear<Flex> =
            LinearConfig::new(3, 2).with_bias(false).init(&Default::default());
        layer.weight = Param::from_tensor(tensor([1.0, -2.0, 0.5, 0.25, -1.0, 3.0], [3, 2]));
        let mut optimizer = Optimizer::new(adamw, matrices, parameters(&layer, &BARE));
        let steps = [
            (
                ([0.3, -0.1, 0.2, 0.4, -0.5, 0.6], 1.0),
                [0.97724234, -1.9899806, 0.47723327, 0.22338746, -0.9732302, 2.9614047],
                [0.03, -0.01, 0.02, 0.04, -0.05, 0.06],
            ),
            (
                ([-0.2, 0.7, 0.1, -0.3, 0.9, 0.5], 0.5),
                [0.98518456, -2.0025377, 0.4482757, 0.22882432, -0.9865129, 2.9210932],
                [0.017, 0.026, 0.023, 0.021, 0.0, 0.079],
            ),
        ];
        for ((gradient, factor), weight, mean) in steps {
            let gradients = Gradients::from_flat(vec![Some(tensor(gradient, [6]))]);
            let factor = Tensor::full([1], factor, &Default::default());
            layer = optimizer.step(layer, &gradients, factor, 0.1, 0.05);
            let apart = layer.weight.val() - tensor(weight, [3, 2]);
            let apart = apart.abs().max().into_scalar();
            assert!(apart < 1e-6, "{apart} apart: {weight:?}");
            let kept = optimizer.moments().next().unwrap();
            assert_eq!((kept.parameter, kept.names), ("weight", &["mean"][..]));
            let apart = (kept.moments[0].clone() - tensor(mean, [6])).abs().max().into_scalar();
            assert!(apart < 1e-7, "{apart} apart: {mean:?}");
        }
    }
}
