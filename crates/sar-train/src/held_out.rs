//! Figures on held-out images, in evaluation mode and without guidance.
//!
//! ```text
//! teacher_loss  cross-entropy against ground truth, context ground truth
//! student_loss  the same for scales 1..K-1, context the staggered pyramid of the model's own argmax
//!               predictions behind the first token that sampling uses
//! exposure_gap  student_loss - teacher_loss over scales 1..K-1
//! ```
//! A masked first scale is masked whole, as in the first step of its decoding; one of random order is behind
//! its true tokens, in an order of each image's own. Each is a mean over images with a bootstrap 95 % interval over images.
//!
//! Shapes: b batch, l tokens.

use std::ops::Range;

use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::{CodePyramid, ScaleModel, ScaleSchedule, SeedTree, restrict};
use sar_loss::{ScaleStats, StatsByScale, cross_entropy};
use sar_model::{Backbone, Pass};
use sar_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::tokens::{FirstGiven, Masking, TokenBatch, argmax_tokens, inputs, labels_tensor};
use crate::turns::HeldOutImages;

/// A mean with its bootstrap 95 % interval.
pub type Interval = [f64; 2];

/// The three figures of a set of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
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
#[non_exhaustive]
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
#[non_exhaustive]
pub struct ScaleFigures {
    /// The scale, as written in a schedule.
    pub scale: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a set of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
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

/// Token losses of the teacher and of the student pass, by image and scale.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldOutMeter {
    schedule: ScaleSchedule,
    statistics: StatsByScale,
    pub(crate) teacher: Losses,
    pub(crate) student: Losses,
}

/// Sums of token losses by image and scale.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Losses(Vec<Vec<f64>>);

impl Losses {
    /// Adds a batch, `[b, l]`; waits for the device.
    pub(crate) fn add<B: Backend>(&mut self, loss_bl: Tensor<B, 2>, schedule: &ScaleSchedule) {
        let [_, l] = loss_bl.dims();
        let losses = loss_bl.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        for image in losses.chunks_exact(l) {
            let sum = |range: Range<usize>| image[range].iter().map(|x| f64::from(*x)).sum();
            self.0.push(schedule.ranges().map(sum).collect());
        }
    }

    /// Nats per token of each image over some scales.
    pub(crate) fn per_image(&self, scales: Range<usize>, schedule: &ScaleSchedule) -> Vec<f64> {
        let n: f64 = scales.clone().map(|k| schedule.size(k).tokens() as f64).sum();
        self.0.iter().map(|sums| sums[scales.clone()].iter().sum::<f64>() / n).collect()
    }

    fn minus(&self, other: &Self) -> Self {
        let minus = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a - b).collect();
        Self(self.0.iter().zip(&other.0).map(minus).collect())
    }
}

impl HeldOutMeter {
    /// Nothing measured yet.
    pub fn new(schedule: &ScaleSchedule, codes: usize) -> Self {
        let statistics = StatsByScale::new(schedule, codes);
        let (teacher, student) = Default::default();
        Self { schedule: schedule.clone(), statistics, teacher, student }
    }

    /// Measures held-out images, the ranks in turns.
    ///
    /// # Errors
    /// If they cannot be read, or a rank has failed.
    pub(crate) fn of<B: Backend>(
        images: HeldOutImages<'_>,
        model: &Backbone<B>,
        tokenizer: &Tokenizer<B>,
        schedule: &ScaleSchedule,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let empty = Self::new(schedule, tokenizer.codebook().size());
        let mut meter = empty.clone();
        let see = |batch| {
            let batch = TokenBatch::encode(tokenizer, batch, schedule.clone(), device);
            let mut seen = empty.clone();
            seen.add(model, tokenizer, &batch, device);
            seen
        };
        images.each(see, |seen| meter.merge(seen))?;
        Ok(meter)
    }

    /// Adds what was measured elsewhere.
    fn merge(&mut self, other: Self) {
        self.statistics.merge(other.statistics);
        self.teacher.0.extend(other.teacher.0);
        self.student.0.extend(other.student.0);
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
        let teacher_blv = logits_in(batch.tokens_bl.clone(), model, pyramid, batch, device);
        let predicted_bl = argmax_tokens(teacher_blv.clone());
        let student_blv = logits_in(predicted_bl.clone(), model, pyramid, batch, device);
        let teacher_bl = cross_entropy(teacher_blv, batch.tokens_bl.clone(), 0.0);
        let student_bl = cross_entropy(student_blv, batch.tokens_bl.clone(), 0.0);
        self.statistics.add(teacher_bl.clone(), predicted_bl, batch.tokens_bl.clone());
        self.teacher.add(teacher_bl, &self.schedule);
        self.student.add(student_bl, &self.schedule);
    }

    /// Mean teacher loss over all scales and mean student loss over scales `1..K` (the teacher loss
    /// where there is but one), nats per token.
    pub(crate) fn means(&self) -> [f64; 2] {
        let all = 0..self.schedule.len();
        let mean_of = |losses: &Losses, scales| mean(&losses.per_image(scales, &self.schedule));
        let teacher = mean_of(&self.teacher, all.clone());
        let student = if all.len() > 1 { mean_of(&self.student, 1..all.end) } else { teacher };
        [teacher, student]
    }

    /// The same means of each scale, coarse to fine; the student has none at the first.
    pub(crate) fn means_by_scale(&self) -> [Vec<Option<f64>>; 2] {
        let of = |losses: &Losses, first: usize| {
            let mean_at = |k: usize| mean(&losses.per_image(k..k + 1, &self.schedule));
            (0..self.schedule.len()).map(|k| (k >= first).then(|| mean_at(k))).collect()
        };
        [of(&self.teacher, 0), of(&self.student, 1)]
    }

    /// Number of images measured.
    pub(crate) fn images(&self) -> usize {
        self.teacher.0.len()
    }

    /// Teacher pass by scale.
    pub(crate) fn statistics(&self) -> Vec<ScaleStats> {
        self.statistics.report()
    }

    /// The figures of everything measured.
    ///
    /// # Panics
    /// If nothing was measured.
    pub fn report(&self, resamplings: usize, seed: SeedTree) -> HeldOut {
        assert!(self.images() > 0, "held-out figures of no images");
        let n_scales = self.schedule.len();
        let figures = |teacher: Range<usize>, student: Range<usize>| {
            self.figures(teacher, student, resamplings, seed)
        };
        let by_scale = (0..n_scales).map(|k| ScaleFigures {
            scale: self.schedule.size(k).to_string(),
            figures: figures(k..k + 1, k.max(1)..k + 1),
        });
        HeldOut {
            figures: figures(0..n_scales, 1..n_scales),
            by_scale: by_scale.collect(),
            statistics: self.statistics(),
            images: self.images(),
        }
    }

    /// Figures of the differences to other weights on the same images, image by image: what two sets
    /// of weights have in common, hard and easy images, is not in these intervals.
    ///
    /// # Panics
    /// If the other meter measured other images or scales.
    pub fn minus(&self, other: &Self, resamplings: usize, seed: SeedTree) -> Figures {
        assert_eq!(self.schedule, other.schedule, "differences of one schedule");
        assert_eq!(self.images(), other.images(), "differences on the same images");
        let teacher = self.teacher.minus(&other.teacher);
        let student = self.student.minus(&other.student);
        let difference = Self { teacher, student, ..self.clone() };
        let scales = self.schedule.len();
        difference.figures(0..scales, 1..scales, resamplings, seed)
    }

    fn figures(
        &self,
        teacher: Range<usize>,
        student: Range<usize>,
        resamplings: usize,
        seed: SeedTree,
    ) -> Figures {
        let measure = |values: Vec<f64>| (mean(&values), bootstrap(&values, resamplings, seed));
        let per_image = |losses: &Losses, scales| losses.per_image(scales, &self.schedule);
        let (teacher_loss, teacher_interval) = measure(per_image(&self.teacher, teacher));
        let own = (!student.is_empty()).then(|| {
            let theirs = per_image(&self.student, student.clone());
            let teachers = per_image(&self.teacher, student);
            let gap = theirs.iter().zip(teachers).map(|(s, t)| s - t).collect();
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

/// The logits of all scales behind a context, in evaluation mode and without guidance: `[b, l, v]`.
pub(crate) fn logits_in<B: Backend, P: CodePyramid<B>>(
    context_bl: Tensor<B, 2, Int>,
    model: &Backbone<B>,
    pyramid: &P,
    batch: &TokenBatch<B>,
    device: &B::Device,
) -> Tensor<B, 3> {
    let logits_blv = model.forward(Pass {
        labels_b: labels_tensor(batch.labels.iter().copied(), device),
        inputs_blc: inputs(pyramid, &batch.schedule, context_bl),
        schedule: &batch.schedule,
        first: FirstGiven::of(model.first_scale(), pyramid, batch, Masking::All).token,
        depth_drops: None,
    });
    restrict(logits_blv, batch.schedule.sizes(), |size| pyramid.n_codes(size))
}

/// The mean of some values, not none.
pub(crate) fn mean(values: &[f64]) -> f64 {
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
        meter.teacher = Losses(vec![vec![1.0, 4.0], vec![3.0, 8.0]]);
        meter.student = Losses(vec![vec![99.0, 8.0], vec![99.0, 8.0]]);
        let figures = meter.figures(0..2, 1..2, 200, SeedTree::new(0));
        assert_eq!(figures.teacher_loss, (5.0 / 5.0 + 11.0 / 5.0) / 2.0);
        assert_eq!(figures.student_loss, Some(2.0));
        assert_eq!(figures.exposure_gap, Some((1.0 + 0.0) / 2.0));
        let by_scale = [vec![Some(2.0), Some(1.5)], vec![None, Some(2.0)]];
        assert_eq!(meter.means_by_scale(), by_scale);
        let mut other = meter.clone();
        other.teacher.0[0] = vec![1.0, 3.0];
        other.student.0[0] = vec![99.0, 4.0];
        let paired = meter.minus(&other, 200, SeedTree::new(0));
        assert_eq!(paired.teacher_loss, (1.0 / 5.0 + 0.0) / 2.0);
        assert_eq!(paired.student_loss, Some((1.0 + 0.0) / 2.0));
        assert_eq!(paired.exposure_gap, Some((0.75 + 0.0) / 2.0));
        let first = meter.figures(0..1, 1..1, 200, SeedTree::new(0));
        assert_eq!((first.teacher_loss, first.student_loss), (2.0, None));
    }
}
