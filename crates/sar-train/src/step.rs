//! The gradients of a step: those of its micro-batches, side by side, added along a fixed tree.

use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::ScaleSize;
use sar_exchange::{MicroBatches, Node, TreeSum};

use crate::gradients::Gradients;
use crate::graphs;
use crate::threads::side_by_side;
use crate::wire::Wire;

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

/// The mean over the micro-batches of a step.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accumulated<B: Backend, O> {
    /// Mean gradients.
    pub gradients: Gradients<B>,
    /// Mean parts of the loss.
    pub parts: Parts<B>,
    /// Sums of the losses of each scale over the micro-batches that have it: where one of them is not
    /// finite, the sum is not.
    pub scales: ByScale<B>,
    /// What else each micro-batch gave that was computed here.
    pub outputs: MicroBatches<O>,
}

/// What the micro-batches that are computed here gave, before anything is exchanged.
pub(crate) struct Partial<B: Backend, O> {
    /// Sums of gradients along the tree of all micro-batches.
    pub(crate) gradients: TreeSum<Gradients<B>>,
    /// The losses of each micro-batch.
    pub(crate) losses: Vec<Losses<B>>,
    pub(crate) outputs: MicroBatches<O>,
    /// What makes the sum of the gradients of all micro-batches a mean, and undoes the scale of the loss.
    pub(crate) factor: f64,
    /// What the sums are rounded to.
    pub(crate) wire: Wire,
}

/// The values of a micro-batch.
pub(crate) type Losses<B> = (Parts<B>, ByScale<B>);

/// The gradients of all micro-batches of a step, of `model`, whose parameters live on the backend without
/// autodiff.
///
/// `loss` gives the terms of one micro-batch for the differentiable model, and anything else that
/// the caller wants back. What is differentiated is the loss times `loss_scale`; the gradients are
/// divided by it again.
///
/// Up to `workers` micro-batches run at the same time, each on a graph of its own; gradients are added
/// along the tree of [`TreeSum`], so that nothing depends on `workers`. Other threads of the process may do the
/// same: see [`graphs`].
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
    assert!(n > 0, "{n} micro-batches");
    let partial = partial(
        model,
        micro_batches.into(),
        (workers, || ()),
        (loss_scale, Wire::F32),
        |_, input| (input, ()),
        |()| (),
        |differentiable, input, ()| loss(differentiable, input),
    );
    partial.whole()
}

impl<B: Backend, O> Partial<B, O> {
    /// The mean, where all micro-batches are here.
    pub(crate) fn whole(self) -> Accumulated<B, O> {
        let Self { gradients, losses, outputs, factor, wire } = self;
        let sum = gradients.finish(|a, b| a.plus_on(b, wire)).expect("at least one micro-batch");
        let (parts, scales) = fold(losses);
        Accumulated { gradients: sum.times(factor), parts, scales, outputs }
    }
}

/// The first half of a step: the gradients of the micro-batches that are computed here, for a loss that
/// may depend on gradients of what the model made: in between, graphs of their own are differentiated.
///
/// - `forward` gives what the loss needs of the forward pass, and graphs `P` that do not reach back to the
///   model;
/// - `settle` differentiates these;
/// - `loss` gives the terms out of both.
///
/// Gradients and their sums are rounded as they travel. `alive` is called before each of these, and before the
/// backward pass, of every `workers` micro-batches, on the thread of the caller.
///
/// # Panics
/// If `workers` is 0.
pub(crate) fn partial<A, M, I, S, P, Q, O>(
    model: &M::InnerModule,
    micro_batches: MicroBatches<I>,
    (workers, alive): (usize, impl Fn()),
    (loss_scale, wire): (f64, Wire),
    forward: impl Fn(&M, I) -> (S, P) + Sync,
    settle: impl Fn(P) -> Q + Sync,
    loss: impl Fn(&M, S, Q) -> (Terms<A>, O) + Sync,
) -> Partial<A::InnerBackend, O>
where
    A: AutodiffBackend,
    M: AutodiffModule<A>,
    M::InnerModule: Send,
    I: Send,
    S: Send,
    P: Send,
    Q: Send,
    O: Send,
{
    let share = micro_batches.share();
    assert!(workers > 0, "no workers");
    let forward = |(model, input): (M::InnerModule, I)| {
        let differentiable = trainable::<A, M>(model);
        let (made, graphs) = forward(&differentiable, input);
        (differentiable, made, graphs)
    };
    let settle = |(differentiable, made, graphs): (M, S, P)| (differentiable, made, settle(graphs));
    let loss = |(differentiable, made, settled): (M, S, Q)| {
        let (terms, output) = loss(&differentiable, made, settled);
        (differentiable, terms, output)
    };
    let backward = |(differentiable, terms, output): (M, Terms<A>, O)| {
        let Terms { loss, parts, scales } = terms;
        let loss = if loss_scale == 1.0 { loss } else { loss * loss_scale };
        (Gradients::of(loss, &differentiable), parts, scales, output)
    };
    let mut gradients = TreeSum::default();
    let mut losses = Vec::with_capacity(share.len());
    let mut outputs = Vec::with_capacity(share.len());
    let micro_batches = micro_batches.into_items();
    let mut waiting = micro_batches.into_iter().map(|input| (model.clone(), input));
    while outputs.len() < share.len() {
        let group: Vec<_> = waiting.by_ref().take(workers).collect();
        let group = {
            alive();
            let _building = graphs::building();
            side_by_side(group, &forward)
        };
        let group = {
            alive();
            let _differentiating = graphs::differentiating();
            side_by_side(group, &settle)
        };
        let group = {
            alive();
            let _building = graphs::building();
            side_by_side(group, &loss)
        };
        let group = {
            alive();
            let _differentiating = graphs::differentiating();
            side_by_side(group, &backward)
        };
        for (of_one, parts, scales, output) in group {
            let leaf = Node::leaf(share.start + outputs.len());
            gradients.push(leaf, of_one.rounded(wire), |a, b| a.plus_on(b, wire));
            losses.push((parts, scales));
            outputs.push(output);
        }
    }
    let outputs = MicroBatches::new(outputs, share);
    let factor = 1.0 / share.of as f64 / loss_scale;
    Partial { gradients, losses, outputs, factor, wire }
}

/// The means of the parts of the losses of all micro-batches, and the sums by scale, both in their order.
pub(crate) fn fold<B: Backend>(losses: Vec<Losses<B>>) -> Losses<B> {
    let mut means = Means(Vec::new());
    let mut by_scale: ByScale<B> = Vec::new();
    for (parts, scales) in losses {
        parts.into_iter().for_each(|(name, value)| means.add(name, value));
        for (size, loss) in scales {
            match by_scale.iter_mut().find(|(known, _)| *known == size) {
                Some((_, sum)) => *sum = sum.clone() + loss,
                None => by_scale.push((size, loss)),
            }
        }
    }
    (means.finish(), by_scale)
}

/// Means of named values, each over the micro-batches that have it.
struct Means<B: Backend>(Vec<(&'static str, Tensor<B, 1>, usize)>);

impl<B: Backend> Means<B> {
    fn add(&mut self, name: &'static str, value: Tensor<B, 1>) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, sum, n)) => {
                *sum = sum.clone() + value;
                *n += 1;
            }
            None => self.0.push((name, value, 1)),
        }
    }

    fn finish(self) -> Parts<B> {
        let mean = |(name, sum, n)| (name, if n > 1 { sum * (1.0 / n as f64) } else { sum });
        self.0.into_iter().map(mean).collect()
    }
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

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn value(x: f32) -> Tensor<Flex, 1> {
        Tensor::from_floats([x], &Default::default())
    }

    fn losses(parts: &[(&'static str, f32)], scales: &[(usize, f32)]) -> Losses<Flex> {
        let parts = parts.iter().map(|(name, x)| (*name, value(*x)));
        let scales = scales.iter().map(|(side, x)| (ScaleSize::square(*side), value(*x)));
        (parts.collect(), scales.collect())
    }

    #[test]
    fn losses_are_folded_by_name_and_by_scale() {
        let (parts, by_scale) = fold(vec![
            losses(&[("total", 1.0), ("teacher", 2.0)], &[(1, 10.0), (2, 20.0)]),
            // In another order, and with what the first had not.
            losses(
                &[("teacher", 5.0), ("student", f32::NAN), ("total", 4.0)],
                &[(2, 1.5), (4, f32::NAN)],
            ),
            losses(&[("student", 4.0), ("teacher", 8.0), ("gap", 0.25)], &[(4, 3.0), (1, 0.5)]),
        ]);
        let parts: Vec<_> = parts.into_iter().map(|(name, x)| (name, x.into_scalar())).collect();
        // Over the two, three, two and one that have it.
        let expected = [("total", 2.5), ("teacher", 5.0), ("student", f32::NAN), ("gap", 0.25)];
        assert_eq!(format!("{parts:?}"), format!("{expected:?}"));
        let by_scale: Vec<_> =
            by_scale.into_iter().map(|(size, x)| (size.height, x.into_scalar())).collect();
        assert_eq!(format!("{by_scale:?}"), "[(1, 10.5), (2, 21.5), (4, NaN)]");
    }
}
