//! Replaced codes and dropped scales where they act: in what the decoder gets, and in nothing else.
//!
//! One test, as burn may lose gradients of a graph that another thread builds beside it.

use std::collections::BTreeSet;

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{ScaleSchedule, SeedTree};
use sar_tokenizer::{
    CodebookGrowth, Disturbance, Family, Perturbation, Phi, Quantized, Tokenizer, TokenizerConfig,
};

type A = Autodiff<Flex>;

/// Images of the same latents, so many that every way to replace their codes occurs.
const IMAGES: usize = 512;

/// What a tokenizer without weights, whose phi halves, makes of an image.
struct Case {
    family: Family,
    schedule: &'static str,
    /// `[v, c]`
    codes: &'static [f32],
    /// `[c, 2, 2]`
    latents: &'static [f32],
    /// By hand: the two codes nearest to each token, coarse to fine.
    nearest: &'static [[i64; 2]],
}

const CASES: [Case; 2] = [
    // Codes in the directions (1, 0), (0.6, 0.8), (0, 1), (-1, 0), and latents in (0.8, 0.6), (12, 5) / 13,
    // (-0.6, 0.8), (-5, -12) / 13: the largest cosines are 0.96 and 0.8; 0.92 and 0.86; 0.8 and 0.6; 0.38 and -0.38.
    Case {
        family: Family::Flexvar,
        schedule: "2",
        codes: &[2.0, 0.0, 3.0, 4.0, 0.0, 0.5, -1.0, 0.0],
        latents: &[4.0, 12.0, -3.0, -5.0, 3.0, 5.0, 4.0, -12.0],
        nearest: &[[1, 0], [0, 1], [2, 3], [3, 0]],
    },
    // The mean is 1.5, its code 1, half of it 0.5; what is left is 5.5, -0.5, -1.5, 0.5, whatever replaces that code.
    Case {
        family: Family::Var { phi: Phi::Shared(1) },
        schedule: "1_2",
        codes: &[-1.5, 1.0, 3.0],
        latents: &[6.0, 0.0, -1.0, 1.0],
        nearest: &[[1, 2], [2, 1], [0, 1], [0, 1], [1, 0]],
    },
];

/// The different maps of some images, in thousandths.
fn maps(x_bchw: Tensor<A, 4>) -> BTreeSet<Vec<i32>> {
    let [_, c, h, w] = x_bchw.dims();
    let values = x_bchw.into_data().into_vec::<f32>().unwrap();
    let thousandths: Vec<i32> = values.iter().map(|x| (*x * 1000.0).round() as i32).collect();
    thousandths.chunks(c * h * w).map(<[i32]>::to_vec).collect()
}

/// What the gradient of the decoder's input, `[b, c, 2, 2]`, has to be at the latents `h`: itself, or, where the input is
/// in place of directions `z = h / |h|` of two channels, `(g - z (z . g)) / |h|`.
fn straight_through(family: Family, latents: &[f32], weights: &[f32]) -> Vec<f32> {
    if family != Family::Flexvar {
        return weights.to_vec();
    }
    let of_image = |g: &[f32]| -> [f32; 8] {
        std::array::from_fn(|i| {
            let place = i % 4;
            let [x, y] = [latents[place], latents[place + 4]];
            let turn = (x * g[place + 4] - y * g[place]) / x.hypot(y).powi(3);
            if i < 4 { -y * turn } else { x * turn }
        })
    };
    weights.chunks(8).flat_map(of_image).collect()
}

#[test]
fn disturbances_reach_the_decoder_and_no_loss_of_the_codebook() {
    let device = Default::default();
    let streams: Vec<SeedTree> =
        (0..IMAGES as u64).map(|image| SeedTree::new(3).at(image)).collect();
    for Case { family, schedule, codes, latents, nearest } in CASES {
        let schedule: ScaleSchedule = schedule.parse().unwrap();
        let (c, scales) = (latents.len() / 4, schedule.sizes());
        let config = TokenizerConfig {
            family,
            base_channels: 32,
            channel_multipliers: vec![1],
            res_blocks: 1,
            z_channels: 2,
            codebook_size: codes.len() / c,
            codebook_dim: c,
            codebook_growth: CodebookGrowth::None {},
        };
        let codes = TensorData::new(codes.to_vec(), [codes.len() / c, c]);
        let codes = Tensor::<A, 2>::from_data(codes, &device).require_grad();
        let tokenizer = Tokenizer::<A>::new(&config, &device).unwrap();
        let tokenizer = tokenizer.with_codebook(|book| book.with_raw(codes));
        let h_bchw = TensorData::new(latents.repeat(IMAGES), [IMAGES, c, 2, 2]);
        let h_bchw = Tensor::<A, 4>::from_data(h_bchw, &device).require_grad();
        let weights = SeedTree::new(5).normals(IMAGES * c * 4);
        let gradient = straight_through(family, latents, &weights);
        let weights = TensorData::new(weights, [IMAGES, c, 2, 2]);
        let weights_bchw = Tensor::<A, 4>::from_data(weights, &device);

        let plain = || tokenizer.quantizer().quantize(h_bchw.clone(), scales, None);
        let quantize = |share, nearest, dropout| {
            let perturbation = Perturbation { share, nearest };
            let disturbance = Disturbance { perturbation, dropout, streams: &streams };
            tokenizer.quantizer().quantize(h_bchw.clone(), scales, Some(&disturbance))
        };
        // The codes, the pairs that losses compare, and the gradients of their errors at latents and codes.
        let of_losses = |quantized: Quantized<A>| -> Vec<TensorData> {
            let errors = quantized.pairs.iter().map(|[z, q]| (z.clone() - q.clone()).square());
            let error = errors.map(|error| error.sum()).reduce(|sum, error| sum + error);
            let grads = error.unwrap().backward();
            let at_latents = h_bchw.grad(&grads).unwrap().into_data();
            let at_codes = tokenizer.codebook().raw().grad(&grads).unwrap().into_data();
            let pairs = quantized.pairs.into_iter().flatten().map(|side| side.into_data());
            let others = [quantized.indices_n.into_data(), at_latents, at_codes];
            others.into_iter().chain(pairs).collect()
        };
        // What the decoder gets, whose gradient goes to the latents as it is, and none to the codes.
        let decoded = |quantized: Quantized<A>| -> Tensor<A, 4> {
            let map_bchw = quantized.straight_through_bchw;
            let grads = (map_bchw.clone() * weights_bchw.clone()).sum().backward();
            let found = h_bchw.grad(&grads).unwrap().into_data().into_vec::<f32>().unwrap();
            let is_near = found.iter().zip(&gradient).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(found.len() == gradient.len() && is_near, "{family:?}");
            assert!(tokenizer.codebook().raw().grad(&grads).is_none(), "{family:?}");
            map_bchw
        };

        let (losses, map) = (of_losses(plain()), decoded(plain()).into_data());
        let chosen = schedule.ranges().flat_map(|range| {
            let of_image: Vec<i64> = nearest[range].iter().map(|codes| codes[0]).collect();
            of_image.repeat(IMAGES)
        });
        let found = losses[0].clone().convert::<i64>().into_vec::<i64>().unwrap();
        assert!(found == chosen.collect::<Vec<_>>(), "{family:?}");

        // Nothing asked, nothing drawn, and each code replaced by itself: the same to the bit.
        for (share, nearest) in [(0.0, 2), (1e-9, 2), (1.0, 1)] {
            let what = format!("{family:?}: {share} by one of {nearest}");
            assert!(decoded(quantize(share, nearest, 0.0)).into_data() == map, "{what}");
            assert!(of_losses(quantize(share, nearest, 0.0)) == losses, "{what}");
        }

        let check = |share, dropout, expected: BTreeSet<Vec<i32>>| {
            let what = format!("{family:?}: {share}, dropout {dropout}");
            assert_eq!(maps(decoded(quantize(share, 2, dropout))), expected, "{what}");
            assert!(of_losses(quantize(share, 2, dropout)) == losses, "{what}");
        };
        // Every token becomes either of its two codes, and no other.
        let (ways, l) = (1 << nearest.len(), nearest.len());
        let one_way =
            |way: usize| nearest.iter().enumerate().map(move |(at, codes)| codes[(way >> at) & 1]);
        let tokens: Vec<i64> = (0..ways).flat_map(one_way).collect();
        let tokens_bl = TensorData::new(tokens, [ways, l]);
        let tokens_bl = Tensor::<A, 2, Int>::from_data(tokens_bl, &device);
        let all = maps(tokenizer.canvases(tokens_bl, &schedule).pop().unwrap());
        assert_eq!(all.len(), ways);
        check(1.0, 0.0, all);
        if family != Family::Flexvar {
            // Halves of the sums of 1 and 3, -1.5, -1.5, 1, or of 1 alone; and of 1 or 3, which may replace it, alone.
            check(0.0, 0.5, BTreeSet::from([vec![2000, -250, -250, 1000], vec![500; 4]]));
            check(1.0, 1.0, BTreeSet::from([vec![500; 4], vec![1500; 4]]));
        }
    }
}
