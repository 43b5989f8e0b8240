//! Looks for numbers gone bad, after the fact: steps leave small tensors on the device, and they are
//! read together where the loop waits for the device anyway.

use burn::tensor::{Tensor, backend::Backend};

use crate::StageId;
use crate::error::{NotFinite, TrainError};
use crate::stage::Learned;

/// What a step leaves.
pub(crate) struct Seen<B: Backend> {
    pub(crate) step: u64,
    pub(crate) learners: Vec<Learned<B>>,
}

/// The steps of a stage that nobody has looked at yet.
pub(crate) struct Watch<B: Backend> {
    stage: StageId,
    unseen: Vec<Seen<B>>,
}

impl<B: Backend> Watch<B> {
    pub(crate) fn new(stage: StageId) -> Self {
        Self { stage, unseen: Vec::new() }
    }

    pub(crate) fn step(&mut self, seen: Seen<B>) {
        self.unseen.push(seen);
    }

    /// Reads what the steps since the last look left: the parts of the last step's losses and the norms
    /// of its gradients. Those of a second learner have its name in front.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] of the first step with a value that is not finite, but for updates that
    /// were skipped.
    ///
    /// # Panics
    /// If there was no step.
    pub(crate) fn look(&mut self) -> Result<Vec<(String, f64)>, TrainError> {
        let unseen = std::mem::take(&mut self.unseen);
        let values = unseen.iter().flat_map(|seen| &seen.learners).flat_map(|learned| {
            let parts = learned.parts.iter().map(|(_, value)| value.clone());
            parts.chain([learned.update.gradient_norm.clone()])
        });
        let mut values = host(Tensor::cat(values.collect(), 0)).into_iter();
        let mut last = Vec::new();
        for Seen { step, learners } in unseen {
            last.clear();
            for (i, learned) in learners.into_iter().enumerate() {
                let names = learned.parts.iter().map(|(part, _)| *part).chain(["gradient_norm"]);
                let read: Vec<(&str, f64)> = names.zip(values.by_ref()).collect();
                let bad = read.iter().find(|(_, value)| !value.is_finite()).copied();
                let learner = learned.update.learner;
                if let Some((part, value)) = bad.filter(|_| learned.update.skipped.is_none()) {
                    return Err(TrainError::NotFinite(self.name(step, learned, part, value)));
                }
                last.extend(read.into_iter().map(|(part, value)| match i {
                    0 => (part.to_owned(), value),
                    _ => (format!("{learner}.{part}"), value),
                }));
            }
        }
        assert!(!last.is_empty(), "a look follows a step");
        Ok(last)
    }

    fn name(&self, step: u64, learned: Learned<B>, part: &str, value: f64) -> NotFinite {
        let mut bad: Vec<_> = learned
            .scales
            .into_iter()
            .filter(|(_, loss)| !host(loss.clone())[0].is_finite())
            .map(|(size, _)| size)
            .collect();
        bad.sort_by_key(|size| size.tokens());
        let update = learned.update;
        let squares = host(update.squares_p);
        let first = squares.iter().position(|x| !x.is_finite());
        NotFinite {
            stage: self.stage,
            step,
            part: part.to_owned(),
            value,
            scale: bad.first().copied(),
            parameter: first.map(|i| update.names[update.with_gradient[i]].clone()),
            loss_scale: update.loss_scale,
        }
    }
}

fn host<B: Backend>(x: Tensor<B, 1>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec::<f64>().expect("f64")
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sar_core::ScaleSize;
    use sar_model::Precision;

    use super::*;
    use crate::learner::Update;
    use crate::loss_scale::LossScale;

    fn one(x: f32) -> Tensor<Flex, 1> {
        Tensor::from_floats([x], &Default::default())
    }

    fn learned(loss: f32, scales: [f32; 2], squares: [f32; 2]) -> Learned<Flex> {
        let scales = scales.iter().enumerate().map(|(k, x)| (ScaleSize::square(k + 1), one(*x)));
        Learned {
            parts: vec![("teacher", one(1.0)), ("total", one(loss))],
            scales: scales.collect(),
            update: Update {
                learner: "net",
                gradient_norm: one(squares.iter().sum::<f32>().sqrt()),
                squares_p: Tensor::from_floats(squares, &Default::default()),
                with_gradient: vec![0, 2],
                names: ["a", "unused", "b"].map(String::from).into(),
                lr: 0.1,
                weight_decay: 0.0,
                loss_scale: 1.0,
                skipped: None,
            },
        }
    }

    fn seen(step: u64, loss: f32, scales: [f32; 2], squares: [f32; 2]) -> Seen<Flex> {
        Seen { step, learners: vec![learned(loss, scales, squares)] }
    }

    fn watch() -> Watch<Flex> {
        Watch::new(StageId::Sar)
    }

    fn named(losses: &[(String, f64)]) -> Vec<(&str, f64)> {
        losses.iter().map(|(name, value)| (name.as_str(), *value)).collect()
    }

    #[test]
    fn good_steps_give_the_last_ones_losses() {
        let mut watch = watch();
        watch.step(seen(3, 2.0, [1.0, 1.0], [9.0, 16.0]));
        watch.step(seen(4, 1.5, [1.0, 1.0], [0.0, 4.0]));
        let losses = watch.look().unwrap();
        assert_eq!(named(&losses), [("teacher", 1.0), ("total", 1.5), ("gradient_norm", 2.0)]);
        let mut two = seen(5, 1.0, [1.0, 1.0], [1.0, 0.0]);
        two.learners.push(learned(7.0, [1.0, 1.0], [9.0, 0.0]));
        watch.step(two);
        let losses = watch.look().unwrap();
        assert_eq!(named(&losses)[1], ("total", 1.0));
        assert_eq!(named(&losses)[4..], [("net.total", 7.0), ("net.gradient_norm", 3.0)]);
    }

    #[test]
    fn a_skipped_step_may_hold_anything() {
        let mut watch = watch();
        for (loss, square) in [(2.0, f32::INFINITY), (f32::NAN, f32::NAN)] {
            let mut bad = seen(3, loss, [1.0, loss], [square, 1.0]);
            bad.learners[0].update.skipped = LossScale::of(Precision::F16);
            watch.step(bad);
        }
        assert_eq!(named(&watch.look().unwrap())[0], ("teacher", 1.0));
        let mut bad = seen(4, 1.5, [1.0, 1.0], [f32::NAN, 4.0]);
        bad.learners[0].update.loss_scale = 0.5;
        watch.step(bad);
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
        assert_eq!((bad.step, bad.part.as_str()), (7, "total"));
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
            (bad.part.as_str(), bad.scale, bad.parameter.as_deref()),
            ("gradient_norm", None, Some("a"))
        );
    }
}
