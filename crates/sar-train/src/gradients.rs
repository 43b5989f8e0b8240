//! Gradients of a module in the order in which its parameters are visited.
//!
//! The order is fixed by the module's structure, so that sums over parameters are the same in every
//! process; parameter ids are not.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorPrimitive};
use sar_kernels::sum_of_squares;

use crate::wire::Wire;

/// One flat gradient per parameter; `None` where no gradient arrived.
#[derive(Clone, Debug)]
pub struct Gradients<B: Backend> {
    flat: Vec<Option<Tensor<B, 1>>>,
}

impl<B: Backend> Gradients<B> {
    /// Runs the backward pass of `loss` and collects the gradients of `module`.
    pub fn of<A, M>(loss: Tensor<A, 1>, module: &M) -> Self
    where
        A: AutodiffBackend<InnerBackend = B>,
        M: AutodiffModule<A>,
    {
        let mut collector = Collector::<A> { grads: loss.backward(), flat: Vec::new() };
        module.visit(&mut collector);
        Self { flat: collector.flat }
    }

    /// Flat gradients in visit order.
    pub fn iter(&self) -> impl Iterator<Item = Option<&Tensor<B, 1>>> {
        self.flat.iter().map(Option::as_ref)
    }

    /// Adds the gradients of another micro-batch of the same module.
    ///
    /// # Panics
    /// If the other gradients are of a module of another structure.
    pub fn plus(self, other: Self) -> Self {
        assert_eq!(self.flat.len(), other.flat.len(), "gradients of one module");
        let pairs = self.flat.into_iter().zip(other.flat);
        let flat = pairs.map(|pair| match pair {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        });
        Self { flat: flat.collect() }
    }

    /// As [`plus`](Self::plus), for a node of the tree.
    pub(crate) fn plus_on(self, other: Self, wire: Wire) -> Self {
        self.plus(other).rounded(wire)
    }

    /// As they travel.
    pub(crate) fn rounded(self, wire: Wire) -> Self {
        match wire {
            Wire::F32 => self,
            Wire::Bf16 => {
                Self { flat: self.flat.into_iter().map(|g| g.map(|g| wire.round(g))).collect() }
            }
        }
    }

    /// Gradients in visit order, those of some parameters only.
    pub(crate) fn from_flat(flat: Vec<Option<Tensor<B, 1>>>) -> Self {
        Self { flat }
    }

    /// The gradients themselves, in visit order.
    pub(crate) fn into_flat(self) -> Vec<Option<Tensor<B, 1>>> {
        self.flat
    }

    /// Every gradient times a factor, which may be 1.
    pub(crate) fn times(self, factor: f64) -> Self {
        if factor == 1.0 { self } else { self.scale(factor) }
    }

    /// Every gradient times a factor.
    pub fn scale(self, factor: f64) -> Self {
        let flat = self.flat.into_iter().map(|g| g.map(|g| g * factor));
        Self { flat: flat.collect() }
    }

    /// Squared l2 norm of each gradient, on the device: `[p]`, in the order of the parameters that
    /// have one, as [`with_gradient`](Self::with_gradient) lists them.
    ///
    /// # Panics
    /// If there is no gradient at all.
    pub fn squares(&self) -> Tensor<B, 1> {
        let squares: Vec<_> =
            self.flat.iter().flatten().map(|g| sum_of_squares(g.clone())).collect();
        Tensor::cat(squares, 0)
    }

    /// The places, in visit order, of the parameters that have a gradient.
    pub fn with_gradient(&self) -> Vec<usize> {
        let places = self.flat.iter().enumerate().filter(|(_, g)| g.is_some());
        places.map(|(place, _)| place).collect()
    }

    /// Global l2 norm, on the device: `[1]`.
    ///
    /// # Panics
    /// If there is no gradient at all.
    pub fn norm(&self) -> Tensor<B, 1> {
        norm_of(self.squares())
    }
}

/// What clips gradients of a global norm `[1]` to `limit` (0 for no limit), without waiting for the
/// device: `[1]`.
///
/// ```text
/// min(1, limit / (norm + 1e-6))
/// ```
/// It is 0 where the norm is no finite number: what is no number never reaches the weights, and
/// nobody waits for the device to know.
pub fn clip_factor<B: Backend>(norm: Tensor<B, 1>, limit: f64) -> Tensor<B, 1> {
    let bad = norm.clone().is_finite().bool_not();
    let factor = match limit > 0.0 {
        true => ((norm + 1e-6).recip() * limit).clamp_max(1.0),
        false => norm.ones_like(),
    };
    factor.mask_fill(bad, 0.0)
}

/// The global norm that squared norms of parts make up: `[p]` to `[1]`.
pub(crate) fn norm_of<B: Backend>(squares_p: Tensor<B, 1>) -> Tensor<B, 1> {
    squares_p.sum_dim(0).sqrt()
}

struct Collector<A: AutodiffBackend> {
    grads: A::Gradients,
    flat: Vec<Option<Tensor<A::InnerBackend, 1>>>,
}

impl<A: AutodiffBackend> ModuleVisitor<A> for Collector<A> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        let TensorPrimitive::Float(primitive) = param.val().into_primitive() else {
            panic!("quantized parameters cannot be trained");
        };
        let grad = A::grad_remove(&primitive, &mut self.grads)
            .map(|g| Tensor::<A::InnerBackend, D>::from_primitive(TensorPrimitive::Float(g)));
        self.flat.push(grad.map(|g| {
            let n = g.shape().num_elements();
            g.reshape([n])
        }));
    }

    fn visit_int<const D: usize>(&mut self, _: &Param<Tensor<A, D, Int>>) {}

    fn visit_bool<const D: usize>(&mut self, _: &Param<Tensor<A, D, Bool>>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn gradients(values: [f32; 4]) -> Gradients<Flex> {
        let device = Default::default();
        let part = |x: &[f32]| Some(Tensor::<Flex, 1>::from_floats(x, &device));
        Gradients { flat: vec![part(&values[..1]), None, part(&values[1..])] }
    }

    #[test]
    fn norms_by_hand() {
        let g = gradients([3.0, 0.0, 4.0, 12.0]);
        assert_eq!(g.squares().to_data().to_vec::<f32>().unwrap(), [9.0, 160.0]);
        assert_eq!(g.with_gradient(), [0, 2]);
        let norm = g.norm();
        assert_eq!(norm.to_data().to_vec::<f32>().unwrap(), [13.0]);
        for (limit, factor) in [(1.3, 0.1), (20.0, 1.0), (0.0, 1.0)] {
            let found = clip_factor(norm.clone(), limit).to_data().to_vec::<f32>().unwrap();
            assert!((found[0] - factor).abs() < 1e-6, "{limit}");
        }
    }

    #[test]
    fn what_is_no_number_counts_for_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let g = gradients([3.0, bad, 4.0, 12.0]);
            for limit in [0.0, 1.0] {
                let factor = clip_factor(g.norm(), limit).to_data().to_vec::<f32>().unwrap();
                assert_eq!(factor, [0.0], "{bad} {limit}");
            }
        }
    }
}
