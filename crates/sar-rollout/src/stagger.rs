//! Stagger-Scale Rollout (SAR, section 4.1) and the variants that the paper compares.
//!
//! One teacher pass predicts every scale; its predictions, shifted by one scale, are the input of
//! one more pass, the student's. No gradient flows through the predictions.
//!
//! ```text
//! teacher:  class+start, up(f_1), ..., up(f_{K-1})   ->  f^_1, ..., f^_K
//! student:  class,       up(f^_1), ..., up(f^_{K-1}) ->  scales 2 .. K
//! ```
//! `up` is what the tokenizer makes of tokens. For FlexVAR it enlarges the code map of one scale; for
//! VAR, whose scales are residuals, the map accumulates from the model's own tokens:
//!
//! ```text
//! f_hat^_k = f_hat^_{k-1} + phi_k(bicubic(look_up(f^_k) -> S)),   f_hat^_0 = 0
//! input of scale k+1 = area(f_hat^_k -> s_{k+1})
//! ```
//! Each f^_k is predicted from true coarser scales and yet added to predicted ones: the student meets
//! a map whose errors have not been corrected, which is what it meets in sampling, one step deep.
//! Where only some scales are the model's own ([`StudentContext`]), the others add their true codes. A
//! transition that is a sequence of its own has the map of the whole pyramid before it.
//!
//! A first scale of several tokens behind the class token has no coarser scale that the student could
//! meet: it has no student term. Its f^_1 is what one step of its decoding makes of the teacher pass: where
//! a token was masked the prediction, elsewhere the true one that stood there. In the student's sequence of
//! all scales it stands as in the teacher's, so that finer scales see of it what they always see.
//!
//! Shapes: b batch, l tokens of the pyramid, n tokens of one scale, c code channels.

use std::ops::Range;

use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::{CodePyramid, ScaleSchedule, SeedTree, paint_all};
use serde::{Deserialize, Serialize};

use crate::generate::Sampler;

/// Which transitions between scales the student pass predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Transitions {
    /// All K - 1, in one scale-causal sequence (the paper).
    All,
    /// Only the one into the last scale, behind the class token (the released trainer).
    Last,
    /// One that is drawn anew at every step, behind the class token.
    OneRandom,
    /// All K - 1, each a sequence of its own: class token and that scale.
    Separate,
}

/// Which scales of the student's context are the model's own predictions; the others are true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StudentContext {
    /// All of them.
    All,
    /// Those of odd index (second, fourth, ...).
    Odd,
    /// Those from this zero-based index on; coarser ones are teacher-forced.
    From(usize),
}

impl Transitions {
    /// The tokens of the student's sequences together, with the class tokens before them: the mean
    /// where one is drawn, 0 for a single scale.
    pub fn n_tokens(self, schedule: &ScaleSchedule) -> f64 {
        let last = schedule.len() - 1;
        if last == 0 {
            return 0.0;
        }
        // The class token comes before every transition that is a sequence of its own.
        let alone = |k: usize| 1.0 + schedule.size(k).tokens() as f64;
        let separate: f64 = (1..=last).map(alone).sum();
        match self {
            Self::All => schedule.n_tokens() as f64,
            Self::Last => alone(last),
            Self::OneRandom => separate / last as f64,
            Self::Separate => separate,
        }
    }
}

impl StudentContext {
    fn contains(self, k: usize) -> bool {
        match self {
            Self::All => true,
            Self::Odd => k % 2 == 1,
            Self::From(first) => k >= first,
        }
    }
}

/// Where the predictions come from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Predictions {
    /// The most probable tokens of the teacher pass: no further pass.
    TeacherArgmax,
    /// Drawn from guided, filtered logits of a teacher pass over labels and null labels.
    TeacherSample {
        /// Guidance and filters.
        sampler: Sampler,
    },
    /// A full rollout, one cached pass per scale (classic student forcing).
    FullRollout {
        /// Guidance and filters.
        sampler: Sampler,
    },
}

/// One student sequence.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StudentPass<B: Backend> {
    /// The scales of the sequence: the first, then the predicted ones.
    pub schedule: ScaleSchedule,
    /// Whether the first is the pyramid's, as it is in the teacher pass; else it is that of the bare class
    /// token.
    pub has_first_scale: bool,
    /// The inputs of the predicted scales, `[b, l' - n, c]`.
    pub inputs_blc: Tensor<B, 3>,
    /// The tokens of the full pyramid that it predicts; the first scale's logits are dropped.
    pub predicts: Range<usize>,
}

impl<B: Backend> StudentPass<B> {
    /// Where the sequence predicts: all but its first scale.
    pub fn places(&self) -> Range<usize> {
        self.schedule.range(0).end..self.schedule.n_tokens()
    }
}

/// The student's sequences for given predictions.
///
/// A single-scale schedule has no transitions and gives no sequence.
///
/// # Shapes
/// - `predicted_bl`, `truth_bl`: `[b, l]`, all scales, coarse to fine
/// - `step`: the stream of this step, for [`Transitions::OneRandom`]
pub fn stagger<B: Backend, P: CodePyramid<B>>(
    pyramid: &P,
    schedule: &ScaleSchedule,
    predicted_bl: Tensor<B, 2, Int>,
    truth_bl: Tensor<B, 2, Int>,
    context: StudentContext,
    transitions: Transitions,
    step: SeedTree,
) -> Vec<StudentPass<B>> {
    let n_scales = schedule.len();
    if n_scales == 1 {
        return Vec::new();
    }
    let tokens = schedule.ranges().enumerate().map(|(k, range)| {
        let source = if context.contains(k) { &predicted_bl } else { &truth_bl };
        source.clone().slice_dim(1, range)
    });
    let context_bl = Tensor::cat(tokens.collect(), 1);
    let (inputs, _) = paint_all(pyramid, schedule, context_bl);
    let single = |k: usize| StudentPass {
        schedule: schedule.transition(k),
        has_first_scale: false,
        inputs_blc: inputs[k - 1].clone(),
        predicts: schedule.range(k),
    };
    match transitions {
        Transitions::All => vec![StudentPass {
            schedule: schedule.clone(),
            has_first_scale: true,
            inputs_blc: Tensor::cat(inputs, 1),
            predicts: schedule.range(0).end..schedule.n_tokens(),
        }],
        Transitions::Last => vec![single(n_scales - 1)],
        Transitions::OneRandom => {
            vec![single(1 + step.child("transition").below(0, n_scales - 1))]
        }
        Transitions::Separate => (1..n_scales).map(single).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    /// A pyramid whose next input repeats the mean token of the scale before.
    struct Mean;

    impl CodePyramid<Flex> for Mean {
        type Canvas = ();

        /// A token is its own code.
        fn codes(&self) -> Tensor<Flex, 2> {
            Tensor::arange(0..32, &Default::default()).float().reshape([32, 1])
        }

        fn paint(
            &self,
            _: &mut (),
            schedule: &ScaleSchedule,
            k: usize,
            codes_bnc: Tensor<Flex, 3>,
        ) -> Option<Tensor<Flex, 3>> {
            let next = schedule.sizes().get(k + 1)?.tokens();
            Some(codes_bnc.mean_dim(1).repeat_dim(1, next))
        }
    }

    fn run(
        context: StudentContext,
        transitions: Transitions,
    ) -> Vec<(String, Vec<f32>, Range<usize>)> {
        let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
        let ids = |scales: [i64; 3]| {
            let mut tokens = vec![scales[0]];
            tokens.extend([scales[1]; 4]);
            tokens.extend([scales[2]; 9]);
            Tensor::<Flex, 2, Int>::from_data(TensorData::new(tokens, [1, 14]), &Default::default())
        };
        let (predicted, truth) = (ids([1, 2, 3]), ids([10, 20, 30]));
        stagger(&Mean, &schedule, predicted, truth, context, transitions, SeedTree::new(0))
            .into_iter()
            .map(|pass| {
                let inputs = pass.inputs_blc.to_data().to_vec::<f32>().unwrap();
                (pass.schedule.to_string(), inputs, pass.predicts)
            })
            .collect()
    }

    use burn::tensor::TensorData;

    #[test]
    fn each_scale_sees_the_one_before() {
        let mut expected = vec![1.0; 4];
        expected.extend([2.0; 9]);
        assert_eq!(run(StudentContext::All, Transitions::All), [("1_2_3".into(), expected, 1..14)]);
        assert_eq!(
            run(StudentContext::All, Transitions::Last),
            [("1_3".into(), vec![2.0; 9], 5..14)]
        );
        let separate = run(StudentContext::All, Transitions::Separate);
        assert_eq!(separate[0], ("1_2".into(), vec![1.0; 4], 1..5));
        assert_eq!(separate[1], ("1_3".into(), vec![2.0; 9], 5..14));
        assert_eq!(run(StudentContext::All, Transitions::OneRandom).len(), 1);
    }

    #[test]
    fn tokens_are_those_of_the_sequences() {
        let of =
            |scales: &str, transitions: Transitions| transitions.n_tokens(&scales.parse().unwrap());
        for transitions in [Transitions::All, Transitions::Last, Transitions::Separate] {
            let sequences = run(StudentContext::All, transitions).into_iter();
            let tokens =
                sequences.map(|(scales, ..)| scales.parse::<ScaleSchedule>().unwrap().n_tokens());
            assert_eq!(of("1_2_3", transitions), tokens.sum::<usize>() as f64);
        }
        assert_eq!(of("1_2_3", Transitions::OneRandom), 7.5, "5 or 10");
        assert_eq!(of("2", Transitions::All), 0.0);
    }

    #[test]
    fn mixed_contexts_take_the_truth_where_they_should() {
        let firsts = |context| {
            let inputs = &run(context, Transitions::All)[0].1;
            (inputs[0], inputs[4])
        };
        assert_eq!(firsts(StudentContext::Odd), (10.0, 2.0));
        assert_eq!(firsts(StudentContext::From(1)), (10.0, 2.0));
        assert_eq!(firsts(StudentContext::From(2)), (10.0, 20.0));
        assert_eq!(firsts(StudentContext::From(0)), (1.0, 2.0));
    }
}
