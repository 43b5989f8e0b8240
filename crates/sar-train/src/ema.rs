//! Exponential moving average of the weights.
//!
//! ```text
//! a_0 = w_0,   a_t = decay a_(t-1) + (1 - decay) w_t
//! ```

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};

/// The average of a module's weights, as a module of the same structure.
#[derive(Clone, Debug)]
pub struct Ema<M> {
    decay: f64,
    average: M,
}

impl<M> Ema<M> {
    /// An average that starts at `weights`, or goes on with a stored one; none if `decay` is 0.
    pub fn new(decay: f64, weights: M) -> Option<Self> {
        (decay > 0.0).then_some(Self { decay, average: weights })
    }

    /// Takes the weights after a step in.
    ///
    /// # Panics
    /// If `weights` is a module of another structure.
    pub fn update<B: Backend>(self, weights: &M) -> Self
    where
        M: Module<B>,
    {
        let mut flat = Flat { tensors: Vec::new() };
        weights.visit(&mut flat);
        let mut mix = Mix { decay: self.decay, weights: flat.tensors.into_iter() };
        let average = self.average.map(&mut mix);
        assert!(mix.weights.next().is_none(), "more weights than averages");
        Self { decay: self.decay, average }
    }

    /// The same average with other values.
    pub(crate) fn map(self, edit: impl FnOnce(M) -> M) -> Self {
        Self { decay: self.decay, average: edit(self.average) }
    }

    /// As [`map`](Self::map), where that can fail.
    pub(crate) fn try_map<E>(self, edit: impl FnOnce(M) -> Result<M, E>) -> Result<Self, E> {
        Ok(Self { decay: self.decay, average: edit(self.average)? })
    }

    /// The average.
    pub fn average(&self) -> &M {
        &self.average
    }

    /// The average alone.
    pub fn into_average(self) -> M {
        self.average
    }
}

struct Flat<B: Backend> {
    tensors: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for Flat<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        let n = tensor.shape().num_elements();
        self.tensors.push(tensor.reshape([n]));
    }
}

struct Mix<B: Backend> {
    decay: f64,
    weights: std::vec::IntoIter<Tensor<B, 1>>,
}

impl<B: Backend> ModuleMapper<B> for Mix<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let weights = self.weights.next().expect("a weight for every average");
        param.map(|average| {
            let shape = average.dims();
            average * self.decay + weights.reshape(shape) * (1.0 - self.decay)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn_flex::Flex;

    use super::*;

    #[derive(Module, Debug)]
    struct Two<B: Backend> {
        a: Param<Tensor<B, 1>>,
        b: Param<Tensor<B, 2>>,
    }

    fn two(a: f32, b: f32) -> Two<Flex> {
        let device = Default::default();
        Two {
            a: Param::from_tensor(Tensor::from_floats([a], &device)),
            b: Param::from_tensor(Tensor::from_floats([[b, -b]], &device)),
        }
    }

    #[test]
    fn by_hand() {
        assert!(Ema::new(0.0, two(1.0, 1.0)).is_none());
        let ema = Ema::new(0.75, two(1.0, 2.0)).unwrap();
        let ema = ema.update::<Flex>(&two(5.0, 2.0)).update::<Flex>(&two(2.0, -6.0));
        // a: 1 -> 2 -> 2; b: 2 -> 2 -> 0.
        assert_eq!(ema.average().a.val().to_data().to_vec::<f32>().unwrap(), [2.0]);
        assert_eq!(ema.average().b.val().to_data().to_vec::<f32>().unwrap(), [0.0, 0.0]);
    }
}
