//! What a batch of predictions says about each scale, computed on the host.

use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::ScaleSchedule;
use serde::{Deserialize, Serialize};

/// Figures of one scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScaleStats {
    /// The scale, as written in a schedule.
    pub scale: String,
    /// Mean cross-entropy, nats per token.
    pub loss: f64,
    /// Share of tokens predicted exactly.
    pub accuracy: f64,
    /// Different codes among the targets.
    pub codes_used: usize,
    /// Entropy of the targets' histogram, nats: what predicting frequencies alone would reach, the
    /// baseline that a loss has to beat.
    pub histogram_entropy: f64,
}

/// Collects tokens over batches and reports by scale.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatsByScale {
    schedule: ScaleSchedule,
    codes: usize,
    scales: Vec<Tally>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tally {
    /// Of each image, so that their sum does not depend on how they came in batches.
    losses: Vec<f64>,
    correct: usize,
    tokens: usize,
    histogram: Vec<usize>,
}

impl StatsByScale {
    /// Nothing collected yet, for the tokens of `schedule` out of `codes` codes.
    pub fn new(schedule: &ScaleSchedule, codes: usize) -> Self {
        let empty = Tally { losses: Vec::new(), correct: 0, tokens: 0, histogram: vec![0; codes] };
        Self { schedule: schedule.clone(), codes, scales: vec![empty; schedule.len()] }
    }

    /// Adds a batch; waits for the device.
    ///
    /// # Shapes
    /// - `loss_bl`: `[b, l]`, nats
    /// - `predicted_bl`, `target_bl`: `[b, l]`, each in `0..codes`
    ///
    /// # Panics
    /// If the shapes are not those of the schedule's tokens, or a target is not a code.
    pub fn add<B: Backend>(
        &mut self,
        loss_bl: Tensor<B, 2>,
        predicted_bl: Tensor<B, 2, Int>,
        target_bl: Tensor<B, 2, Int>,
    ) {
        let [b, l] = loss_bl.dims();
        assert_eq!(l, self.schedule.n_tokens(), "tokens of the batch and of {}", self.schedule);
        assert_eq!(predicted_bl.dims(), [b, l], "one prediction per token");
        assert_eq!(target_bl.dims(), [b, l], "one target per token");
        let losses: Vec<f32> = loss_bl.into_data().convert::<f32>().into_vec().expect("f32");
        let ints = |x: Tensor<B, 2, Int>| -> Vec<i64> {
            x.into_data().convert::<i64>().into_vec().expect("i64")
        };
        let (predicted, target) = (ints(predicted_bl), ints(target_bl));
        for (tally, range) in self.scales.iter_mut().zip(self.schedule.ranges()) {
            for row in 0..b {
                let mut loss = 0.0;
                for i in row * l + range.start..row * l + range.end {
                    let (code, codes) = (target[i], self.codes);
                    assert!(
                        (0..codes as i64).contains(&code),
                        "token {} of image {row} has the target {code}: codes are 0..{codes}",
                        i % l
                    );
                    tally.histogram[code as usize] += 1;
                    loss += f64::from(losses[i]);
                    tally.correct += usize::from(predicted[i] == target[i]);
                    tally.tokens += 1;
                }
                tally.losses.push(loss);
            }
        }
    }

    /// Adds what was collected elsewhere.
    ///
    /// # Panics
    /// If that is of other scales or codes.
    pub fn merge(&mut self, other: Self) {
        assert_eq!((&self.schedule, self.codes), (&other.schedule, other.codes), "one of a kind");
        for (tally, Tally { losses, correct, tokens, histogram }) in
            self.scales.iter_mut().zip(other.scales)
        {
            tally.losses.extend(losses);
            tally.correct += correct;
            tally.tokens += tokens;
            tally.histogram.iter_mut().zip(histogram).for_each(|(n, more)| *n += more);
        }
    }

    /// The figures of every scale, coarse to fine.
    pub fn report(&self) -> Vec<ScaleStats> {
        let sizes = self.schedule.sizes().iter();
        let stats = sizes.zip(&self.scales).map(|(size, tally)| ScaleStats {
            scale: size.to_string(),
            loss: tally.losses.iter().sum::<f64>() / tally.tokens as f64,
            accuracy: tally.correct as f64 / tally.tokens as f64,
            codes_used: tally.histogram.iter().filter(|n| **n > 0).count(),
            histogram_entropy: histogram_entropy(&tally.histogram),
        });
        stats.collect()
    }
}

/// Entropy of a histogram in nats; its exponential is the perplexity.
pub fn histogram_entropy(counts: &[usize]) -> f64 {
    let total = counts.iter().sum::<usize>() as f64;
    let terms = counts.iter().filter(|n| **n > 0).map(|n| {
        let p = *n as f64 / total;
        -p * p.ln()
    });
    // Of a single code it is zero, not minus zero.
    0.0 + terms.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    #[test]
    fn figures_of_a_hand_made_batch() {
        let device = Default::default();
        let schedule: ScaleSchedule = "1_2".parse().unwrap();
        let mut stats = StatsByScale::new(&schedule, 8);
        let loss = Tensor::<Flex, 2>::from_floats(
            [[1.0, 2.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0, 4.0]],
            &device,
        );
        let target = Tensor::<Flex, 2, Int>::from_ints([[0, 1, 1, 2, 2], [7, 1, 1, 2, 2]], &device);
        let predicted =
            Tensor::<Flex, 2, Int>::from_ints([[0, 1, 0, 0, 0], [0, 1, 1, 2, 0]], &device);
        stats.add(loss, predicted, target);
        let report = stats.report();
        assert_eq!((report[0].loss, report[0].accuracy, report[0].codes_used), (2.0, 0.5, 2));
        assert_eq!((report[1].loss, report[1].accuracy, report[1].codes_used), (1.5, 0.5, 2));
        assert!((report[1].histogram_entropy - 2f64.ln()).abs() < 1e-12);
        assert!(histogram_entropy(&[0, 3]).is_sign_positive());
        // The same batch once more, by another collector: the same means.
        stats.merge(stats.clone());
        assert_eq!(stats.report(), report);
        assert_eq!(stats.scales[1].tokens, 16);
    }

    fn add_target(target: i64) {
        let device = Default::default();
        let mut stats = StatsByScale::new(&"1_2".parse().unwrap(), 8);
        let tokens = |last: i64| {
            let tokens = [0, 0, 0, 0, 0, 7, 7, 7, last, 7].to_vec();
            Tensor::<Flex, 2, Int>::from_data(TensorData::new(tokens, [2, 5]), &device)
        };
        stats.add(Tensor::<Flex, 2>::zeros([2, 5], &device), tokens(0), tokens(target));
    }

    #[test]
    #[should_panic(expected = "token 3 of image 1 has the target 8: codes are 0..8")]
    fn a_target_past_the_codes_is_named() {
        add_target(8);
    }

    #[test]
    #[should_panic(expected = "token 3 of image 1 has the target -1: codes are 0..8")]
    fn a_negative_target_is_named() {
        add_target(-1);
    }
}
