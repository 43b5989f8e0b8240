//! Laws of generation.

use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{ScaleSchedule, SeedTree};
use sar_model::{Backbone, FirstToken, Pass};
use sar_rollout::{Choice, Guidance, Sampler, generate};
use sar_tokenizer::Tokenizer;
use sar_train::tokens::{inputs, labels_tensor};

use crate::host::{floats, ints};
use crate::tiny;

/// What the laws of this part run on.
pub type Subject<A> = <A as AutodiffBackend>::InnerBackend;

/// Guided, filtered samples one by one, in pairs and seven at a time: the same tokens.
pub fn samples_do_not_depend_on_their_batch<B: Backend>(device: &B::Device) {
    let model = tiny::backbone::<B>(false, true, device);
    let tokenizer = tiny::tokenizer::<B>(device);
    let scales: ScaleSchedule = "1_2_3_4".parse().expect("a valid schedule");
    same_in_any_batch(&model, &tokenizer, &scales, 14, [2, 7], device);
}

/// Draws guided, filtered samples one by one and in batches of two sizes, which have to be the same, and
/// not the same for all images; gives the tokens of each.
pub(crate) fn same_in_any_batch<B: Backend>(
    model: &Backbone<B>,
    tokenizer: &Tokenizer<B>,
    scales: &ScaleSchedule,
    n_images: usize,
    batches: [usize; 2],
    device: &B::Device,
) -> Vec<Vec<usize>> {
    let sampler = Sampler {
        guidance: Guidance::flexvar(2.0),
        choice: Choice::Sample { top_k: 20, top_p: 0.9 },
    };
    let images: Vec<usize> = (0..n_images).collect();
    let tokens = |batch: usize| -> Vec<Vec<usize>> {
        let parts = images.chunks(batch).flat_map(|part| {
            let labels: Vec<usize> = part.iter().map(|i| i % tiny::CLASSES).collect();
            let streams: Vec<SeedTree> =
                part.iter().map(|i| SeedTree::new(5).at(*i as u64)).collect();
            let generated = generate(model, tokenizer, &labels, scales, sampler, &streams, device);
            let tokens = ints(generated.tokens_bl());
            tokens.chunks(scales.n_tokens()).map(<[usize]>::to_vec).collect::<Vec<_>>()
        });
        parts.collect()
    };
    let single = tokens(1);
    for batch in batches {
        assert_eq!(single, tokens(batch));
    }
    assert!(single.iter().any(|tokens| *tokens != single[0]), "all images are the same");
    single
}

/// The tokens of a greedy rollout are the most probable ones of a teacher-forced pass over them:
/// cache, look-up, resampling and mask agree.
pub fn greedy_tokens_are_what_the_parallel_pass_predicts<B: Backend>(device: &B::Device) {
    let model = tiny::backbone::<B>(true, true, device);
    let tokenizer = tiny::tokenizer::<B>(device);
    let scales: ScaleSchedule = "1_2_2x3_4x5".parse().expect("a valid schedule");
    let labels = [0, 2];
    let sampler = Sampler { guidance: Guidance::flexvar(0.0), choice: Choice::Argmax };
    let streams = [SeedTree::new(0); 2];
    let generated = generate(&model, &tokenizer, &labels, &scales, sampler, &streams, device);
    let tokens_bl = generated.tokens_bl();
    let logits_blv = model.forward(Pass {
        labels_b: labels_tensor(labels.into_iter(), device),
        inputs_blc: inputs(&tokenizer, &scales, tokens_bl.clone()),
        schedule: &scales,
        first: FirstToken::Start,
        depth_drops: None,
    });
    let [b, l, v] = logits_blv.dims();
    assert_eq!([b, l], [2, scales.n_tokens()]);
    for (row, token) in floats(logits_blv).chunks(v).zip(ints(tokens_bl)) {
        let best = row.iter().fold(f64::MIN, |a, b| a.max(*b));
        assert!(row[token] > best - 1e-4, "code {token} has {}, the best {best}", row[token]);
    }
}
