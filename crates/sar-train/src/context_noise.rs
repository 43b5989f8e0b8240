//! Noise in the context of a teacher-forced pass, so that a model learns to go on from codes that are not quite
//! right (xAR, arXiv:2502.20388; reAR, arXiv:2510.04450).
//!
//! Each image draws a share p ~ U(0, max_share); that share of its context codes is replaced before look-up. What the
//! pass has to predict stays true, and there is no other pass. Next to SAR it is the teacher pass whose context is
//! noisy, and with it the predictions that its logits give (`teacher-argmax`); the student's context is what the
//! rollout makes, and true codes in it (`student_context`) are not replaced, nor are those behind which a rollout samples.
//!
//! Shapes: b images, l tokens of the pyramid, m replaced tokens, c code channels, v codes.

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use sar_core::{CodePyramid, ScaleSchedule, SeedTree};
use serde::{Deserialize, Serialize};

/// How many codes of the context are replaced, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextNoise {
    /// The largest share of an image's context that is replaced, in [0, 1]; 0: none is.
    pub max_share: f64,
    /// Each by one of so many codes nearest to the true one, itself among them, all as likely; 0: by any code.
    pub nearest: usize,
}

impl ContextNoise {
    /// No noise.
    pub const NONE: Self = Self { max_share: 0.0, nearest: 0 };

    /// The tokens of a context. Every draw is a function of an image's stream; a scale gets codes that it may use.
    ///
    /// # Shapes
    /// - `tokens_bl` and output: `[b, l]`, all scales, coarse to fine; the last is nobody's context and stays
    ///
    /// # Panics
    /// If there is not one stream per image.
    pub fn apply<B: Backend, P: CodePyramid<B>>(
        self,
        pyramid: &P,
        schedule: &ScaleSchedule,
        tokens_bl: Tensor<B, 2, Int>,
        streams: &[SeedTree],
    ) -> Tensor<B, 2, Int> {
        let Self { max_share, nearest } = self;
        let [b, l] = tokens_bl.dims();
        assert_eq!(b, streams.len(), "one stream per image");
        let scales = schedule.len() - 1;
        let context = schedule.range(scales).start;
        if max_share == 0.0 || context == 0 {
            return tokens_bl;
        }
        // Of every token of a context how many codes its scale has.
        let limits: Vec<usize> = (0..scales)
            .flat_map(|k| {
                let limit = pyramid.n_codes(schedule.size(k));
                schedule.range(k).map(move |_| limit)
            })
            .collect();
        let mut replaced = Vec::new();
        for (image, stream) in streams.iter().enumerate() {
            let draws = stream.child("context-noise");
            let share = max_share * f64::from(draws.uniform(0));
            let which = draws.child("token").uniforms(context);
            let choices = draws.child("choice");
            for (token, uniform) in which.into_iter().enumerate() {
                if f64::from(uniform) < share {
                    let limit = limits[token];
                    let of = if nearest == 0 { limit } else { nearest.min(limit) };
                    let choice = choices.below(token as u64, of);
                    replaced.push([image * l + token, choice, limit]);
                }
            }
        }
        let m = replaced.len();
        if m == 0 {
            return tokens_bl;
        }
        let device = tokens_bl.device();
        let column = |i: usize| -> Tensor<B, 1, Int> {
            let values: Vec<i64> = replaced.iter().map(|row| row[i] as i64).collect();
            Tensor::from_data(TensorData::new(values, [m]), &device)
        };
        let [rows_m, choices_m, limits_m] = [0, 1, 2].map(column);
        let tokens_r = tokens_bl.reshape([b * l]);
        let true_m = tokens_r.clone().select(0, rows_m.clone());
        let others_m = match nearest {
            0 => choices_m,
            _ => nearby(pyramid.codes(), true_m.clone(), choices_m, limits_m),
        };
        let tokens_r = tokens_r.select_assign(0, rows_m, others_m - true_m, IndexingUpdateOp::Add);
        tokens_r.reshape([b, l])
    }
}

/// Of each code the one that is so many places farther, among the first `limits_m`.
fn nearby<B: Backend>(
    codes_vc: Tensor<B, 2>,
    tokens_m: Tensor<B, 1, Int>,
    places_m: Tensor<B, 1, Int>,
    limits_m: Tensor<B, 1, Int>,
) -> Tensor<B, 1, Int> {
    let ([v, _], [m]) = (codes_vc.dims(), tokens_m.dims());
    let half_1v = codes_vc.clone().square().sum_dim(1).transpose() * 0.5;
    let own_mc = codes_vc.clone().select(0, tokens_m);
    // Minus half the squared distance, up to a constant for each row.
    let nearness_mv = own_mc.matmul(codes_vc.transpose()) - half_1v;
    let codes_1v = Tensor::<B, 1, Int>::arange(0..v as i64, &nearness_mv.device());
    let is_beyond = codes_1v.reshape([1, v]).repeat_dim(0, m);
    let is_beyond = is_beyond.greater_equal(limits_m.reshape([m, 1]).repeat_dim(1, v));
    let nearness_mv = nearness_mv.mask_fill(is_beyond, f32::MIN);
    let (_, order_mv) = nearness_mv.sort_descending_with_indices(1);
    order_mv.gather(1, places_m.reshape([m, 1])).reshape([m])
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sar_core::ScaleSize;

    use super::*;

    type B = Flex;

    /// Ten codes at 0, 1, 2, …; a scale of side s may use the first 3 s.
    struct Line {
        grows: bool,
    }

    impl CodePyramid<B> for Line {
        type Canvas = ();

        fn codes(&self) -> Tensor<B, 2> {
            Tensor::arange(0..10, &Default::default()).float().reshape([10, 1])
        }

        fn n_codes(&self, size: ScaleSize) -> usize {
            if self.grows { (3 * size.height).min(10) } else { 10 }
        }

        fn paint(
            &self,
            _: &mut (),
            _: &ScaleSchedule,
            _: usize,
            _: Tensor<B, 3>,
        ) -> Option<Tensor<B, 3>> {
            unreachable!("nothing is painted")
        }
    }

    const IMAGES: usize = 200;

    /// Scales of 1, 4 and 9 tokens, all of them code 2.
    fn noisy(max_share: f64, nearest: usize, grows: bool) -> Vec<Vec<i64>> {
        let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
        let streams: Vec<SeedTree> = (0..IMAGES as u64).map(|i| SeedTree::new(5).at(i)).collect();
        let tokens = Tensor::<B, 2, Int>::full([IMAGES, 14], 2, &Default::default());
        let noise = ContextNoise { max_share, nearest };
        let found = noise.apply(&Line { grows }, &schedule, tokens, &streams);
        let found = found.into_data().convert::<i64>().into_vec::<i64>().unwrap();
        found.chunks(14).map(<[i64]>::to_vec).collect()
    }

    #[test]
    fn a_share_of_each_image_is_replaced_by_any_code() {
        assert!(noisy(0.0, 0, false).iter().flatten().all(|code| *code == 2));
        let found = noisy(1.0, 0, false);
        assert!(found.iter().all(|image| image[5..].iter().all(|code| *code == 2)), "no context");
        let context: Vec<i64> = found.iter().flat_map(|image| image[..5].to_vec()).collect();
        let count = |code| context.iter().filter(|found| **found == code).count();
        // Of 1,000 a half is replaced on average, a tenth of these by itself.
        assert!((500..600).contains(&count(2)), "{}", count(2));
        assert!((0..10).filter(|code| *code != 2).all(|code| (25..80).contains(&count(code))));
        // Shares differ by image, from none to all.
        let replaced = |image: &[i64]| image[..5].iter().filter(|code| **code != 2).count();
        let all: Vec<usize> = found.iter().map(|image| replaced(image)).collect();
        assert!(all.contains(&0) && all.contains(&5), "{all:?}");
        let half = noisy(0.5, 0, false);
        let half: usize = half.iter().map(|image| replaced(image)).sum();
        assert!((170..280).contains(&half), "{half}");
    }

    #[test]
    fn near_codes_are_near_and_scales_keep_to_their_codes() {
        let found = noisy(1.0, 3, false);
        let context: Vec<i64> = found.iter().flat_map(|image| image[..5].to_vec()).collect();
        let count = |code| context.iter().filter(|found| **found == code).count();
        assert_eq!(count(1) + count(2) + count(3), 1000, "the nearest of 2 are 2, 1 and 3");
        assert!([1, 3].iter().all(|code| (110..230).contains(&count(*code))));
        for nearest in [0, 3, 99] {
            let found = noisy(1.0, nearest, true);
            assert!(found.iter().all(|image| image[0] < 3), "three codes at the first scale");
            assert!(found.iter().all(|image| image[1..5].iter().all(|code| *code < 6)));
            // Here 1 and 0 are the nearest besides itself, or any.
            assert!(found.iter().any(|image| image[0] == 0));
        }
    }

    #[test]
    fn an_image_depends_on_its_own_stream_alone() {
        let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
        let stream = [SeedTree::new(5).at(7)];
        let tokens = Tensor::<B, 2, Int>::full([1, 14], 2, &Default::default());
        let noise = ContextNoise { max_share: 1.0, nearest: 0 };
        let alone = noise.apply(&Line { grows: false }, &schedule, tokens, &stream);
        let alone = alone.into_data().convert::<i64>().into_vec::<i64>().unwrap();
        assert_eq!(alone, noisy(1.0, 0, false)[7]);
    }
}
