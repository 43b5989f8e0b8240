//! Figures on held-out images, in evaluation mode and without guidance.
//!
//! ```text
//! teacher_loss  cross-entropy against ground truth, context ground truth
//! student_loss  the same for scales 1..K-1, context the staggered pyramid of the model's own argmax
//!               predictions behind the first token that sampling uses
//! exposure_gap  student_loss - teacher_loss over scales 1..K-1
//! ```
//! Each is a mean over images with a bootstrap 95 % interval over images.
//!
//! Shapes: b batch, l tokens.

use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::{CodePyramid, ScaleSchedule, SeedTree};
use sar_data::{DataError, Loader};
use sar_loss::{ScaleStats, StatsByScale, cross_entropy};
use sar_model::{Backbone, FirstToken, Pass};
use sar_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::tokens::{TokenBatch, argmax_tokens, inputs, labels_tensor};

/// A mean with its bootstrap 95 % interval.
pub type Interval = [f64; 2];

/// The three figures of a set of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Nats per token with ground-truth context.
    pub teacher_loss: f64,
    /// Nats per token with the model's own context; none for the first scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_loss: Option<f64>,
    /// Their difference over the same scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposure_gap: Option<f64>,
    /// Bootstrap 95 % intervals of the figures above.
    pub intervals: Intervals,
}

/// Bootstrap 95 % intervals, `[low, high]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Of the teacher loss.
    pub teacher_loss: Interval,
    /// Of the student loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_loss: Option<Interval>,
    /// Of the gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposure_gap: Option<Interval>,
}

/// One scale's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleFigures {
    /// The scale, as written in a schedule.
    pub scale: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a set of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Over all scales (the student's and the gap over all but the first).
    #[serde(flatten)]
    pub figures: Figures,
    /// By scale, coarse to fine.
    pub by_scale: Vec<ScaleFigures>,
    /// Teacher pass by scale: accuracy, codes used, entropy of the token histogram.
    pub statistics: Vec<ScaleStats>,
    /// Number of images.
    pub images: usize,
}

/// Sums of token losses by image and scale.
#[derive(Clone, Debug)]
pub struct HeldOutMeter {
    schedule: ScaleSchedule,
    statistics: StatsByScale,
    /// For each image and scale: teacher and student sums.
    sums: Vec<Vec<[f64; 2]>>,
}

impl HeldOutMeter {
    /// Nothing measured yet.
    pub fn new(schedule: &ScaleSchedule, codes: usize) -> Self {
        let statistics = StatsByScale::new(schedule, codes);
        Self { schedule: schedule.clone(), statistics, sums: Vec::new() }
    }

    /// Measures held-out images.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn of<B: Backend>(
        images: Loader,
        model: &Backbone<B>,
        tokenizer: &Tokenizer<B>,
        schedule: &ScaleSchedule,
        device: &B::Device,
    ) -> Result<Self, DataError> {
        let mut meter = Self::new(schedule, tokenizer.codebook().size());
        for batch in images {
            let batch = TokenBatch::encode(tokenizer, batch?, schedule.clone(), device);
            meter.add(model, tokenizer, &batch, device);
        }
        Ok(meter)
    }

    /// Measures a batch.
    ///
    /// # Panics
    /// If the batch has another schedule.
    pub fn add<B: Backend, P: CodePyramid<B>>(
        &mut self,
        model: &Backbone<B>,
        pyramid: &P,
        batch: &TokenBatch<B>,
        device: &B::Device,
    ) {
        assert_eq!(batch.schedule, self.schedule, "one meter measures one schedule");
        let run = |context_bl: Tensor<B, 2, Int>| {
            model.forward(Pass {
                labels_b: labels_tensor(batch.labels.iter().copied(), device),
                inputs_blc: inputs(pyramid, &self.schedule, context_bl),
                schedule: &self.schedule,
                first: FirstToken::Start,
                depth_drops: None,
            })
        };
        let teacher_blv = run(batch.tokens_bl.clone());
        let predicted_bl = argmax_tokens(teacher_blv.clone());
        let student_blv = run(predicted_bl.clone());
        let teacher_bl = cross_entropy(teacher_blv, batch.tokens_bl.clone(), 0.0);
        let student_bl = cross_entropy(student_blv, batch.tokens_bl.clone(), 0.0);
        self.statistics.add(teacher_bl.clone(), predicted_bl, batch.tokens_bl.clone());

        let host = |x: Tensor<B, 2>| x.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        let (teacher, student) = (host(teacher_bl), host(student_bl));
        let l = self.schedule.n_tokens();
        for image in 0..batch.labels.len() {
            let sum = |x: &[f32], k: usize| {
                x[image * l..][self.schedule.range(k)].iter().map(|x| f64::from(*x)).sum()
            };
            let scales = 0..self.schedule.len();
            self.sums.push(scales.map(|k| [sum(&teacher, k), sum(&student, k)]).collect());
        }
    }

    /// Mean teacher loss over all scales and mean student loss over scales `1..K` (the teacher loss
    /// where there is but one), nats per token.
    pub(crate) fn means(&self) -> [f64; 2] {
        let all = 0..self.schedule.len();
        let teacher = mean(&self.per_image(all.clone(), 0));
        let student = if all.len() > 1 { mean(&self.per_image(1..all.end, 1)) } else { teacher };
        [teacher, student]
    }

    /// Nats per token of each image over some scales: `which` is 0 for the teacher, 1 for the student.
    fn per_image(&self, scales: std::ops::Range<usize>, which: usize) -> Vec<f64> {
        let n: f64 = scales.clone().map(|k| self.schedule.size(k).tokens() as f64).sum();
        let sums = self.sums.iter();
        sums.map(|s| s[scales.clone()].iter().map(|pair| pair[which]).sum::<f64>() / n).collect()
    }

    /// The figures of everything measured.
    ///
    /// # Panics
    /// If nothing was measured.
    pub fn report(&self, resamplings: usize, seed: SeedTree) -> HeldOut {
        assert!(!self.sums.is_empty(), "held-out figures of no images");
        let n_scales = self.schedule.len();
        let figures = |teacher: std::ops::Range<usize>, student: std::ops::Range<usize>| {
            self.figures(teacher, student, resamplings, seed)
        };
        let by_scale = (0..n_scales).map(|k| ScaleFigures {
            scale: self.schedule.size(k).to_string(),
            figures: figures(k..k + 1, k.max(1)..k + 1),
        });
        HeldOut {
            figures: figures(0..n_scales, 1..n_scales),
            by_scale: by_scale.collect(),
            statistics: self.statistics.report(),
            images: self.sums.len(),
        }
    }

    /// Figures of the differences to other weights on the same images, image by image: what two sets
    /// of weights have in common, hard and easy images, is not in these intervals.
    ///
    /// # Panics
    /// If the other meter measured other images or scales.
    pub fn minus(&self, other: &Self, resamplings: usize, seed: SeedTree) -> Figures {
        assert_eq!(self.schedule, other.schedule, "differences of one schedule");
        assert_eq!(self.sums.len(), other.sums.len(), "differences on the same images");
        let minus = |(a, b): (&[f64; 2], &[f64; 2])| [a[0] - b[0], a[1] - b[1]];
        let images = self.sums.iter().zip(&other.sums);
        let sums = images.map(|(a, b)| a.iter().zip(b).map(minus).collect());
        let difference = Self { sums: sums.collect(), ..self.clone() };
        let scales = self.schedule.len();
        difference.figures(0..scales, 1..scales, resamplings, seed)
    }

    fn figures(
        &self,
        teacher: std::ops::Range<usize>,
        student: std::ops::Range<usize>,
        resamplings: usize,
        seed: SeedTree,
    ) -> Figures {
        let measure = |values: Vec<f64>| (mean(&values), bootstrap(&values, resamplings, seed));
        let (teacher_loss, teacher_interval) = measure(self.per_image(teacher, 0));
        let own = (!student.is_empty()).then(|| {
            let theirs = self.per_image(student.clone(), 1);
            let gap = theirs.iter().zip(self.per_image(student, 0)).map(|(s, t)| s - t).collect();
            (measure(theirs), measure(gap))
        });
        Figures {
            teacher_loss,
            student_loss: own.map(|(student, _)| student.0),
            exposure_gap: own.map(|(_, gap)| gap.0),
            intervals: Intervals {
                teacher_loss: teacher_interval,
                student_loss: own.map(|(student, _)| student.1),
                exposure_gap: own.map(|(_, gap)| gap.1),
            },
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The 2.5 % and 97.5 % quantiles of the means of resampled values.
pub fn bootstrap(values: &[f64], resamplings: usize, seed: SeedTree) -> Interval {
    let n = values.len();
    let mut means: Vec<f64> = (0..resamplings as u64)
        .map(|r| {
            let draws = seed.at(r);
            (0..n as u64).map(|i| values[draws.below(i, n)]).sum::<f64>() / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let quantile = |q: f64| means[((resamplings - 1) as f64 * q).round() as usize];
    [quantile(0.025), quantile(0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_covers_the_standard_error() {
        let values: Vec<f64> =
            SeedTree::new(1).normals(400).into_iter().map(|x| f64::from(x) * 2.0 + 5.0).collect();
        let [low, high] = bootstrap(&values, 2000, SeedTree::new(2));
        // Standard error 2 / sqrt(400) = 0.1; the interval is about 1.96 of them to each side.
        let center = mean(&values);
        assert!(
            (center - low - 0.196).abs() < 0.03 && (high - center - 0.196).abs() < 0.03,
            "{low} {high}"
        );
    }

    #[test]
    fn figures_by_hand() {
        let schedule: ScaleSchedule = "1_2".parse().unwrap();
        let mut meter = HeldOutMeter::new(&schedule, 4);
        // Two images: teacher sums 1 and 4 of 1 + 4 tokens, student sum 8; then 3, 8 and 8.
        meter.sums = vec![vec![[1.0, 99.0], [4.0, 8.0]], vec![[3.0, 99.0], [8.0, 8.0]]];
        let figures = meter.figures(0..2, 1..2, 200, SeedTree::new(0));
        assert_eq!(figures.teacher_loss, (5.0 / 5.0 + 11.0 / 5.0) / 2.0);
        assert_eq!(figures.student_loss, Some(2.0));
        assert_eq!(figures.exposure_gap, Some((1.0 + 0.0) / 2.0));
        let mut other = meter.clone();
        other.sums[0] = vec![[1.0, 99.0], [3.0, 4.0]];
        let paired = meter.minus(&other, 200, SeedTree::new(0));
        assert_eq!(paired.teacher_loss, (1.0 / 5.0 + 0.0) / 2.0);
        assert_eq!(paired.student_loss, Some((1.0 + 0.0) / 2.0));
        assert_eq!(paired.exposure_gap, Some((0.75 + 0.0) / 2.0));
        let first = meter.figures(0..1, 1..1, 200, SeedTree::new(0));
        assert_eq!((first.teacher_loss, first.student_loss), (2.0, None));
    }
}
