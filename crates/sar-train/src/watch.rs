//! Looks for numbers gone bad, after the fact: steps leave small tensors on the device, and they are
//! read together where the loop waits for the device anyway.

use burn::tensor::{Tensor, backend::Backend};
use sar_weights::ParameterInfo;

use crate::error::{NotFinite, TrainError};
use crate::step::{ByScale, Parts};

/// What a step leaves.
pub(crate) struct Seen<B: Backend> {
    pub(crate) step: u64,
    pub(crate) parts: Parts<B>,
    pub(crate) scales: Vec<ByScale<B>>,
    pub(crate) gradient_norm: Tensor<B, 1>,
    /// Whether it counted for nothing: then it may hold what it wants.
    pub(crate) is_skipped: bool,
    /// What the loss was multiplied with.
    pub(crate) loss_scale: f64,
    /// Squared norms of the gradients, `[p]`,
    pub(crate) squares_p: Tensor<B, 1>,
    /// and the places of their parameters.
    pub(crate) with_gradient: Vec<usize>,
}

/// The steps of a stage that nobody has looked at yet.
pub(crate) struct Watch<B: Backend> {
    stage: &'static str,
    parameters: Vec<ParameterInfo>,
    unseen: Vec<Seen<B>>,
}

impl<B: Backend> Watch<B> {
    pub(crate) fn new(stage: &'static str, parameters: Vec<ParameterInfo>) -> Self {
        Self { stage, parameters, unseen: Vec::new() }
    }

    pub(crate) fn step(&mut self, seen: Seen<B>) {
        self.unseen.push(seen);
    }

    /// Reads what the steps since the last look left: the parts of the last step's loss and the norm
    /// of its gradients.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] of the first step with a value that is no finite number, but for
    /// steps that were skipped.
    ///
    /// # Panics
    /// If there was no step.
    pub(crate) fn look(&mut self) -> Result<Vec<(&'static str, f64)>, TrainError> {
        let unseen = std::mem::take(&mut self.unseen);
        let values = unseen.iter().flat_map(|seen| {
            let parts = seen.parts.iter().map(|(_, value)| value.clone());
            parts.chain([seen.gradient_norm.clone()])
        });
        let mut values = host(Tensor::cat(values.collect(), 0)).into_iter();
        let mut last = Vec::new();
        for seen in unseen {
            let names = seen.parts.iter().map(|(part, _)| *part).chain(["gradient_norm"]);
            last = names.zip(values.by_ref()).collect();
            let bad = last.iter().find(|(_, value)| !value.is_finite());
            if let Some(&(part, value)) = bad.filter(|_| !seen.is_skipped) {
                return Err(TrainError::NotFinite(self.name(seen, part, value)));
            }
        }
        assert!(!last.is_empty(), "a look follows a step");
        Ok(last)
    }

    fn name(&self, seen: Seen<B>, part: &'static str, value: f64) -> NotFinite {
        let scales = seen.scales.into_iter().flatten();
        let mut bad: Vec<_> = scales
            .filter(|(_, loss)| !host(loss.clone())[0].is_finite())
            .map(|(size, _)| size)
            .collect();
        bad.sort_by_key(|size| size.tokens());
        let squares = host(seen.squares_p);
        let first = squares.iter().position(|x| !x.is_finite());
        let parameter = first.map(|i| self.parameters[seen.with_gradient[i]].name.clone());
        let scale = bad.first().copied();
        let (step, loss_scale) = (seen.step, seen.loss_scale);
        NotFinite { stage: self.stage, step, part, value, scale, parameter, loss_scale }
    }
}

fn host<B: Backend>(x: Tensor<B, 1>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec::<f64>().expect("f64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::ParamId;
    use burn_flex::Flex;
    use sar_core::ScaleSize;

    fn one(x: f32) -> Tensor<Flex, 1> {
        Tensor::from_floats([x], &Default::default())
    }

    fn seen(step: u64, loss: f32, scales: [f32; 2], squares: [f32; 2]) -> Seen<Flex> {
        let by_scale = |values: [f32; 2]| {
            values.iter().enumerate().map(|(k, x)| (ScaleSize::square(k + 1), one(*x))).collect()
        };
        Seen {
            step,
            parts: vec![("teacher", one(1.0)), ("total", one(loss))],
            scales: vec![by_scale([1.0, 1.0]), by_scale(scales)],
            gradient_norm: one(squares.iter().sum::<f32>().sqrt()),
            is_skipped: false,
            loss_scale: 1.0,
            squares_p: Tensor::from_floats(squares, &Default::default()),
            with_gradient: vec![0, 2],
        }
    }

    fn watch() -> Watch<Flex> {
        let info =
            |name: &str| ParameterInfo { name: name.into(), id: ParamId::new(), shape: vec![1] };
        Watch::new("sar", ["a", "unused", "b"].map(info).to_vec())
    }

    #[test]
    fn good_steps_give_the_last_ones_losses() {
        let mut watch = watch();
        watch.step(seen(3, 2.0, [1.0, 1.0], [9.0, 16.0]));
        watch.step(seen(4, 1.5, [1.0, 1.0], [0.0, 4.0]));
        let losses = watch.look().unwrap();
        assert_eq!(losses, [("teacher", 1.0), ("total", 1.5), ("gradient_norm", 2.0)]);
        watch.step(seen(5, 1.0, [1.0, 1.0], [1.0, 0.0]));
        assert_eq!(watch.look().unwrap()[1], ("total", 1.0));
    }

    #[test]
    fn a_skipped_step_may_hold_what_it_wants() {
        let mut watch = watch();
        for (loss, square) in [(2.0, f32::INFINITY), (f32::NAN, f32::NAN)] {
            let bad = seen(3, loss, [1.0, loss], [square, 1.0]);
            watch.step(Seen { is_skipped: true, ..bad });
        }
        assert_eq!(watch.look().unwrap()[0], ("teacher", 1.0));
        let bad = seen(4, 1.5, [1.0, 1.0], [f32::NAN, 4.0]);
        watch.step(Seen { loss_scale: 0.5, ..bad });
        let text = watch.look().unwrap_err().to_string();
        for part in ["loss is multiplied by 0.5", "bf16"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_first_bad_step_is_named_with_scale_and_parameter() {
        let mut watch = watch();
        watch.step(seen(6, 2.0, [1.0, 1.0], [1.0, 1.0]));
        watch.step(seen(7, f32::NAN, [1.0, f32::NAN], [1.0, f32::NAN]));
        watch.step(seen(8, 1.0, [f32::NAN, 1.0], [f32::NAN, 1.0]));
        let TrainError::NotFinite(bad) = watch.look().unwrap_err() else { panic!() };
        assert_eq!((bad.step, bad.part), (7, "total"));
        assert_eq!(bad.scale, Some(ScaleSize::square(2)));
        assert_eq!(bad.parameter.as_deref(), Some("b"));
        let text = bad.to_string();
        for part in ["sar, step 7", "total is NaN", "scale 2", "gradient of b"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_bad_gradient_behind_good_losses_is_found() {
        let mut watch = watch();
        watch.step(seen(0, 1.0, [1.0, 1.0], [f32::INFINITY, 1.0]));
        let TrainError::NotFinite(bad) = watch.look().unwrap_err() else { panic!() };
        assert_eq!(
            (bad.part, bad.scale, bad.parameter.as_deref()),
            ("gradient_norm", None, Some("a"))
        );
    }
}
