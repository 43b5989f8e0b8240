//! What one optimizer trains: a model, the optimizer's moments, the average of the weights and the
//! scale of the loss, as one value.
//!
//! A step is [`accumulate`](Learner::accumulate), [`update`](Learner::update), edits of the model if
//! there are any, [`take_average`](Learner::take_average). Among several ranks the first ends, and the second
//! begins and ends, with an exchange.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use sar_exchange::{ExchangeError, Group, MicroBatches};
use sar_model::Precision;
use sar_weights::{Layout, ModuleTensors, NamedTensors, TensorInfo, bind, parameters};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::checkpoint::{Saved, model_of};
use crate::ema::Ema;
use crate::gradients::{Gradients, clip_factor, norm_of};
use crate::loss_scale::LossScale;
use crate::muon::Matrices;
use crate::optim::{AdamWConfig, NamedMoments, Optimizer};
use crate::schedule::{LrSchedule, WeightDecay};
use crate::slices::Slices;
use crate::step::{Accumulated, Terms, partial};
use crate::wire::Wire;

/// How a stage is optimized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimization {
    /// Images per step.
    pub batch_size: usize,
    /// The batch is split into this many parts whose gradients are added.
    pub grad_accum_steps: usize,
    /// Learning rate.
    pub lr: LrSchedule,
    /// Weight decay of the decayed group.
    pub weight_decay: WeightDecay,
    /// Constants of AdamW.
    pub adamw: AdamWConfig,
    /// What moves matrices and kernels inside the model; AdamW moves everything else.
    pub matrices: Matrices,
    /// Largest global norm of the gradients (published: 2.0); 0 for none.
    pub max_grad_norm: f64,
    /// Decay of the exponential moving average of the weights, in `[0, 1)`; 0 keeps none.
    pub ema: f64,
}

/// A model in training. Its parameters live on the backend without autodiff; each micro-batch makes
/// them the leaves of a graph of its own.
#[derive(Clone, Debug)]
pub struct Learner<A: AutodiffBackend, M: AutodiffModule<A>> {
    name: &'static str,
    layout: &'static Layout,
    optimization: Optimization,
    /// There but for the moment in which an update moves it: a second holder would make every update
    /// a copy.
    model: Option<M::InnerModule>,
    names: Arc<[String]>,
    optimizer: Optimizer<A::InnerBackend>,
    average: Option<Ema<M::InnerModule>>,
    loss_scale: Option<LossScale>,
    group: Group,
    slices: Slices,
    wire: Wire,
    /// Which parameters have moments, with their owners.
    moved: Vec<bool>,
}

/// What an update did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Update<B: Backend> {
    /// The learner's name.
    pub learner: &'static str,
    /// Global norm of the gradients before clipping, on the device.
    pub gradient_norm: Tensor<B, 1>,
    /// Squared norm of each gradient, `[p]`, on the device,
    pub squares_p: Tensor<B, 1>,
    /// and the places of their parameters in `names`.
    pub with_gradient: Vec<usize>,
    /// Names of all parameters.
    pub names: Arc<[String]>,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// What the loss was multiplied with.
    pub loss_scale: f64,
    /// The loss scale after the step, if the step did not count: gradients of a scaled loss were not
    /// finite.
    pub skipped: Option<LossScale>,
}

/// What a stage ends with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trained<M> {
    /// The weights after the last step.
    pub model: M,
    /// The average of the weights, where the recipe asks for one.
    pub average: Option<M>,
}

/// Reads a tensor by its name.
type ReadTensor<'l> = Box<dyn Fn(&str) -> Option<TensorData> + 'l>;

/// What a checkpoint holds of a learner: tensors that are read from the device one at a time, and text.
pub(crate) struct State<'l> {
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) read: ReadTensor<'l>,
    pub(crate) metadata: BTreeMap<String, String>,
}

const STEPS: &str = "steps";
const LOSS_SCALE: &str = "loss_scale";
const WITHOUT_MOMENTS: &str = "without_moments";

impl<A: AutodiffBackend, M: AutodiffModule<A, InnerModule: Send>> Learner<A, M> {
    /// A learner before its first step. The layout names the parameters in checkpoints; in half
    /// precision the loss is scaled where its gradients need it.
    pub fn new(
        name: &'static str,
        model: M::InnerModule,
        layout: &'static Layout,
        optimization: &Optimization,
        precision: Precision,
    ) -> Self {
        let infos = parameters(&model, layout);
        let sizes = infos.iter().map(|info| info.shape.iter().product()).collect();
        Self {
            name,
            group: Group::alone(),
            slices: Slices::new(sizes, 1),
            wire: Wire::F32,
            moved: vec![false; infos.len()],
            layout,
            names: infos.iter().map(|info| info.name.clone()).collect(),
            optimizer: Optimizer::new(optimization.adamw, optimization.matrices, infos),
            average: Ema::new(optimization.ema, model.clone()),
            loss_scale: LossScale::of(precision),
            optimization: optimization.clone(),
            model: Some(model),
        }
    }

    /// The same learner as one of several: each computes some micro-batches of a step and moves some of
    /// the parameters, and all end with the weights that one alone ends with. Gradients are rounded as they
    /// travel, by one alone as well.
    pub fn among(self, group: &Group, wire: Wire) -> Self {
        let sizes = (0..self.names.len()).map(|place| self.slices.size(place)).collect();
        Self { slices: Slices::new(sizes, group.ranks()), group: group.clone(), wire, ..self }
    }

    /// The weights.
    pub fn model(&self) -> &M::InnerModule {
        self.model.as_ref().expect("there between updates")
    }

    /// Other weights to begin with; their average begins there, too.
    pub fn begin_with(&mut self, model: M::InnerModule) {
        self.average = Ema::new(self.optimization.ema, model.clone());
        self.model = Some(model);
    }

    /// Begins with the weights of the rank that leads.
    ///
    /// # Errors
    /// If a rank has failed, or was waited for in vain.
    pub(crate) fn begin_together(&mut self) -> Result<(), ExchangeError> {
        if !self.group.is_alone() {
            let model = self.slices.as_leader(self.model().clone(), &self.group)?;
            self.begin_with(model);
        }
        Ok(())
    }

    /// Changes the weights between steps; their average takes it in as it takes in a step.
    pub fn edit(&mut self, edit: impl FnOnce(M::InnerModule) -> M::InnerModule) {
        self.model = self.model.take().map(edit);
    }

    /// The first half of a step, of all micro-batches or, among several ranks, of those that are
    /// [this one's](Group::share): see [`crate::step::accumulate`]. The gradients are those of the parameters
    /// that it moves.
    ///
    /// # Errors
    /// If another rank has failed, or was waited for in vain.
    ///
    /// # Panics
    /// If the step has no micro-batch, or `workers` is 0.
    pub fn accumulate<I: Send, O: Send>(
        &self,
        micro_batches: impl Into<MicroBatches<I>>,
        workers: usize,
        loss: impl Fn(&M, I) -> (Terms<A>, O) + Sync,
    ) -> Result<Accumulated<A::InnerBackend, O>, ExchangeError> {
        let loss = |model: &M, input, ()| loss(model, input);
        self.accumulate_staged(micro_batches, workers, |_, input| (input, ()), |()| (), loss)
    }

    /// As [`accumulate`](Self::accumulate), for a loss that depends on gradients of what the model made: in
    /// between, graphs of their own are differentiated.
    ///
    /// - `forward` gives what the loss needs of the forward pass, and graphs `P` that do not reach back to
    ///   the model;
    /// - `settle` differentiates these;
    /// - `loss` gives the terms out of both.
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate).
    ///
    /// # Panics
    /// As [`accumulate`](Self::accumulate).
    pub fn accumulate_staged<I: Send, S: Send, P: Send, Q: Send, O: Send>(
        &self,
        micro_batches: impl Into<MicroBatches<I>>,
        workers: usize,
        forward: impl Fn(&M, I) -> (S, P) + Sync,
        settle: impl Fn(P) -> Q + Sync,
        loss: impl Fn(&M, S, Q) -> (Terms<A>, O) + Sync,
    ) -> Result<Accumulated<A::InnerBackend, O>, ExchangeError> {
        let (model, factor) = (self.model(), (self.loss_factor(), self.wire));
        let micro_batches = micro_batches.into();
        let share = micro_batches.share();
        let workers = (workers, || self.group.alive());
        let partial = partial(model, micro_batches, workers, factor, forward, settle, loss);
        if self.group.is_alone() {
            return Ok(partial.whole());
        }
        assert_eq!(share, self.group.share(share.of), "the micro-batches of this rank");
        self.slices.sum(partial, &self.group, &self.device())
    }

    fn device(&self) -> A::Device {
        self.model().devices().swap_remove(0)
    }

    fn loss_factor(&self) -> f64 {
        self.loss_scale.map_or(1.0, |scale| scale.factor())
    }

    /// The second half of a step: clips, looks up the schedules at `step` of `steps`, and moves the
    /// weights.
    ///
    /// Gradients that are not finite count as zero: momentum and weight decay still move the weights,
    /// and whoever looks at the norm afterwards ends the run. A scaled loss is another matter: the
    /// learner then waits for the device to say whether the gradients are finite, and where they are
    /// not, the step does not count at all. Without a scale nothing waits.
    ///
    /// # Errors
    /// If another rank has failed, or was waited for in vain.
    pub fn update(
        &mut self,
        gradients: Gradients<A::InnerBackend>,
        (step, steps): (u64, u64),
    ) -> Result<Update<A::InnerBackend>, ExchangeError> {
        let (squares_p, with_gradient) = match self.group.is_alone() {
            true => (gradients.squares(), gradients.with_gradient()),
            false => self.slices.squares(&gradients, &self.group, &self.device())?,
        };
        let Optimization { lr, weight_decay, max_grad_norm, .. } = &self.optimization;
        let gradient_norm = norm_of(squares_p.clone());
        let loss_scale = self.loss_factor();
        let counts = match &mut self.loss_scale {
            Some(scale) => scale.admits(is_finite(gradient_norm.clone())),
            None => true,
        };
        let update = Update {
            learner: self.name,
            gradient_norm,
            squares_p,
            with_gradient,
            names: Arc::clone(&self.names),
            lr: lr.at(step, steps),
            weight_decay: weight_decay.at(step, steps),
            loss_scale,
            skipped: self.loss_scale.filter(|_| !counts),
        };
        if counts {
            let factor = clip_factor(update.gradient_norm.clone(), *max_grad_norm);
            let Update { lr, weight_decay, .. } = update;
            let model = self.model.take().expect("there between updates");
            let mut model = self.optimizer.step(model, &gradients, factor, lr, weight_decay);
            update.with_gradient.iter().for_each(|place| self.moved[*place] = true);
            if !self.group.is_alone() {
                let moved = |place| update.with_gradient.binary_search(&place).is_ok();
                model = self.slices.spread(model, moved, &self.group)?;
            }
            self.model = Some(model);
        }
        Ok(update)
    }

    /// Takes the weights into their average, unless the update was skipped: the end of a step.
    pub fn take_average(&mut self, update: &Update<A::InnerBackend>) {
        if update.skipped.is_some() {
            return;
        }
        if let Some(average) = self.average.take() {
            self.average = Some(average.update(self.model()));
        }
    }

    /// Changes the average of the weights, if there is one, beside the weights themselves.
    pub(crate) fn edit_average(
        &mut self,
        edit: impl FnOnce(M::InnerModule, &M::InnerModule) -> M::InnerModule,
    ) {
        let model = self.model.as_ref().expect("there between updates");
        let edit = |average| edit(average, model);
        self.average = self.average.take().map(|average| average.map(edit));
    }

    /// What it ends with.
    pub fn into_trained(self) -> Trained<M::InnerModule> {
        let model = self.model.expect("there between updates");
        Trained { model, average: self.average.map(Ema::into_average) }
    }

    /// What a checkpoint keeps, under the name of the learner; moments are read where their owner is.
    pub(crate) fn state(&self) -> State<'_> {
        let name = self.name;
        let of = |part, module| {
            ModuleTensors::<A::InnerBackend, _>::new(
                &format!("{name}.{part}."),
                module,
                self.layout,
            )
        };
        let model = of("model", self.model());
        let average = self.average.as_ref().map(|average| of("average", average.average()));
        let mut infos = model.infos().to_vec();
        infos.extend(average.iter().flat_map(|average| average.infos()).cloned());
        let mut moments_by_name = BTreeMap::new();
        let mut without = Vec::new();
        for (place, of_one) in self.optimizer.moments().enumerate() {
            let NamedMoments { parameter, names, moments } = of_one;
            if !self.moved[place] {
                without.push(parameter);
                continue;
            }
            let mut moments = moments.into_iter();
            for part in names {
                let name = format!("{name}.{part}.{parameter}");
                let shape = vec![self.slices.size(place)];
                infos.push(TensorInfo { name: name.clone(), dtype: DType::F32, shape });
                moments_by_name.extend(moments.next().map(|tensor| (name, tensor)));
            }
        }
        let mut metadata = BTreeMap::new();
        let mut note =
            |field: &str, value: String| metadata.insert(format!("{name}.{field}"), value);
        note(STEPS, self.optimizer.steps().to_string());
        note(WITHOUT_MOMENTS, serde_json::to_string(&without).expect("plain values"));
        if let Some(scale) = &self.loss_scale {
            note(LOSS_SCALE, serde_json::to_string(scale).expect("numbers"));
        }
        let read = move |name: &str| {
            let moment = || moments_by_name.get(name).map(|x| x.to_data().convert::<f32>());
            let average = || average.as_ref().and_then(|average| average.read(name));
            model.read(name).or_else(average).or_else(moment)
        };
        State { infos, read: Box::new(read), metadata }
    }

    /// Takes back what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If anything of it is missing, left over or of another shape.
    pub(crate) fn restore(
        &mut self,
        saved: &mut Saved,
        device: &A::Device,
    ) -> Result<(), TrainError> {
        let mut part = |part: &str| saved.take(&format!("{}.{part}", self.name));
        let [model, average, mean, square] = ["model", "average", "mean", "square"].map(&mut part);
        let mut by_name = BTreeMap::from([("mean", mean), ("square", square)]);
        let field = |field: &str| format!("{}.{field}", self.name);
        let without: Vec<String> = saved.value(&field(WITHOUT_MOMENTS))?;
        let steps = saved.value(&field(STEPS))?;
        if self.loss_scale.is_some() {
            self.loss_scale = Some(saved.value(&field(LOSS_SCALE))?);
        }
        let mut problem = None;
        let mut place = 0;
        let mut moments = |parameter: &str, names: &[&str]| {
            let mut take = |name: &&str| by_name.get_mut(*name)?.remove(parameter);
            let found: Option<Vec<TensorData>> = names.iter().map(&mut take).collect();
            if found.is_none() != without.iter().any(|name| name == parameter) {
                problem.get_or_insert(format!("has no optimizer moments of {parameter}"));
            }
            self.moved[place] = found.is_some();
            place += 1;
            let owned = self.slices.owns(self.group.rank(), place - 1);
            let found = found.filter(|_| owned).into_iter().flatten();
            found.map(|data| Tensor::from_data(data, device)).collect::<Vec<_>>()
        };
        self.optimizer.restore(steps, &mut moments);
        let left = by_name.values().flat_map(NamedTensors::names).next();
        if let Some(name) = left {
            problem.get_or_insert(format!("holds unknown optimizer moments of '{name}'"));
        }
        if let Some(problem) = problem {
            return Err(TrainError::RunDir { path: saved.path().into(), problem });
        }
        let bound = |module: &M::InnerModule, tensors: NamedTensors| {
            bind::<A::InnerBackend, _>(module.clone(), tensors, self.layout)
        };
        let average = match self.average.take() {
            Some(ema) => Some(ema.try_map(|module| bound(&module, average))?),
            None if average.is_empty() => None,
            None => {
                let problem = "holds an average of weights, which the recipe does not keep".into();
                return Err(TrainError::RunDir { path: saved.path().into(), problem });
            }
        };
        self.model = Some(bound(self.model(), model)?);
        self.average = average;
        Ok(())
    }

    /// The weights of another checkpoint of the learner.
    ///
    /// # Errors
    /// If they are not all there.
    pub(crate) fn weights_of(&self, saved: &mut Saved) -> Result<M::InnerModule, TrainError> {
        let weights = saved.take(&model_of(self.name));
        Ok(bind(self.model().clone(), weights, self.layout)?)
    }

    /// Number of parameters that it trains.
    pub fn n_parameters(&self) -> usize {
        self.model().num_params()
    }
}

/// Whether a value on the device is a finite number: waits for it.
fn is_finite<B: Backend>(x: Tensor<B, 1>) -> bool {
    x.into_data().iter::<f64>().all(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::nn::{Linear, LinearConfig};
    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_weights::fill;

    use super::*;
    use crate::Recipe;
    use crate::testing::on_ranks;

    type A = Autodiff<Flex>;

    const BARE: Layout = Layout { renames: &[], ignored: &[] };

    /// Of a weight and a bias two ranks own one each, and the third nothing.
    #[test]
    fn moments_live_with_the_owner_of_a_parameter_alone() {
        let optimization = Recipe::load("emoji-quick", &[]).unwrap().sar.optimization;
        let moments = on_ranks(3, |group| {
            let linear = LinearConfig::new(3, 2).init::<Flex>(&Default::default());
            let draws = SeedTree::new(4);
            let linear = fill(linear, &BARE, |name, shape| {
                draws.child(name).normals(shape.iter().product())
            });
            let learner =
                Learner::<A, Linear<A>>::new("layer", linear, &BARE, &optimization, Precision::F32);
            let mut learner = learner.among(&group, Wire::F32);
            let share = group.share(3);
            let micro_batches = MicroBatches::new(vec![(); share.len()], share);
            let sum = learner.accumulate(micro_batches, 1, |model, ()| {
                let x = Tensor::<A, 2>::ones([2, 3], &Default::default());
                let loss = model.forward(x).square().mean();
                (Terms { loss, parts: Vec::new(), scales: Vec::new() }, ())
            });
            learner.update(sum.unwrap().gradients, (0, 1)).unwrap();
            learner.optimizer.moments().map(|of| of.moments.len()).collect::<Vec<_>>()
        });
        assert_eq!(moments, [[2, 0], [0, 2], [0, 0]]);
    }
}
