//! Gradients against central differences.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use sar_core::SeedTree;
use sar_train::gradients::Gradients;
use sar_train::step::trainable;
use sar_weights::{Layout, parameters};

use crate::host::{floats, widened};

/// Central differences of `loss`, one parameter at a time, along its gradient mixed with a random
/// direction.
pub(crate) fn assert_differences<A, M>(
    module: M::InnerModule,
    layout: &Layout,
    loss: impl Fn(&M) -> Tensor<A, 1>,
    device: &A::Device,
) where
    A: AutodiffBackend,
    M: burn::module::AutodiffModule<A>,
    M::InnerModule: Module<A::InnerBackend>,
{
    /// Half the distance that a parameter is moved.
    const STEP: f64 = 0.01;
    /// What f32 leaves of a loss of magnitude one, divided by the distance.
    const NOISE: f64 = 1e-4;

    let differentiable = trainable::<A, M>(module.clone());
    let gradients = Gradients::of(loss(&differentiable), &differentiable);
    let infos = parameters(&module, layout);
    let gradients: Vec<_> = gradients.iter().map(|g| g.cloned()).collect();
    assert_eq!(infos.len(), gradients.len());
    let mut steep = 0;
    for (place, (info, gradient)) in infos.iter().zip(gradients).enumerate() {
        let n = info.shape.iter().product();
        let gradient = gradient.map_or_else(|| vec![0.0; n], floats);
        let norm = length(&gradient);
        let random = widened(&SeedTree::new(13).child(&info.name).normals(n));
        let random_norm = length(&random);
        let mixed = gradient.iter().zip(&random).map(|(g, r)| {
            let own = if norm > 0.0 { g / norm } else { 0.0 };
            own + 0.5 * r / random_norm
        });
        let mixed: Vec<f64> = mixed.collect();
        let scale = length(&mixed).recip();
        let direction: Vec<f64> = mixed.into_iter().map(|x| x * scale).collect();
        let at = |distance: f64| {
            let by = direction.iter().map(|x| (x * distance) as f32).collect();
            let moved = module.clone().map(&mut Shift { place, by, device });
            floats(loss(&M::from_inner(moved)))[0]
        };
        let found = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let apart = (found - expected).abs();
        let name = &info.name;
        assert!(apart <= 0.02 * norm + NOISE, "{name}: {found}, by the gradient {expected}");
        steep += usize::from(norm > 20.0 * NOISE);
    }
    assert!(2 * steep > infos.len(), "{steep} of {} parameters matter", infos.len());
}

/// Moves the parameter at one place of the order of visits.
struct Shift<'a, B: Backend> {
    place: usize,
    by: Vec<f32>,
    device: &'a B::Device,
}

impl<B: Backend> ModuleMapper<B> for Shift<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let is_here = self.place == 0;
        self.place = self.place.wrapping_sub(1);
        if !is_here {
            return param;
        }
        let by = TensorData::new(std::mem::take(&mut self.by), param.shape());
        param.map(|value| value + Tensor::from_data(by, self.device))
    }
}

pub(crate) fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
