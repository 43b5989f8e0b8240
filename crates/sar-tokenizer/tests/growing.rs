//! A growing codebook: latents of a scale become the first codes alone.

use burn::tensor::{Distribution, Tensor};
use burn_flex::Flex;
use sar_core::{CodePyramid, ScaleSchedule, SeedTree};
use sar_tokenizer::{
    CodebookGrowth, Disturbance, Family, Init, Perturbation, Phi, Tokenizer, TokenizerConfig, init,
};

type B = Flex;

fn tokenizer(family: Family, codebook_growth: CodebookGrowth) -> Tokenizer<B> {
    let config = TokenizerConfig {
        family,
        base_channels: 32,
        channel_multipliers: vec![1],
        res_blocks: 1,
        z_channels: 4,
        codebook_size: 64,
        codebook_dim: 4,
        codebook_growth,
    };
    let tokenizer = init(&config, Init::Torch {}, SeedTree::new(1), &Default::default()).unwrap();
    // Codes all over the latents.
    let codes = SeedTree::new(2).normals(64 * 4);
    tokenizer.with_codebook(|codebook| {
        let codes = burn::tensor::TensorData::new(codes, [64, 4]);
        codebook.with_raw(Tensor::from_data(codes, &Default::default()))
    })
}

#[test]
fn scales_keep_to_their_codes_in_both_families() {
    let schedule: ScaleSchedule = "1_2_4".parse().unwrap();
    let growth = CodebookGrowth::Geometric { first: 4, full_side: 4 };
    for family in [Family::Flexvar, Family::Var { phi: Phi::Shared(2) }] {
        let (grows, free) = (tokenizer(family, growth), tokenizer(family, CodebookGrowth::None {}));
        let limits: Vec<usize> = schedule.sizes().iter().map(|size| grows.n_codes(*size)).collect();
        assert_eq!(limits, [4, 16, 64]);
        let h = Tensor::<B, 4>::random(
            [20, 4, 4, 4],
            Distribution::Normal(0.0, 1.0),
            &Default::default(),
        );
        let tokens = |of: &Tokenizer<B>| -> Vec<i64> {
            of.tokens(h.clone(), &schedule).into_data().convert::<i64>().into_vec().unwrap()
        };
        let beyond = |tokens: &[i64]| -> usize {
            let limit = |place: usize| limits[[0, 1, 1, 1, 1].get(place).map_or(2, |k| *k)];
            let places = tokens.iter().enumerate().map(|(i, code)| (i % 21, *code as usize));
            places.filter(|(place, code)| *code >= limit(*place)).count()
        };
        assert_eq!(beyond(&tokens(&grows)), 0);
        assert!(beyond(&tokens(&free)) > 20);
        // The codes in training are those of the tokens, and so are replaced ones.
        let sizes = schedule.sizes();
        let found = grows.quantizer().quantize(h.clone(), sizes, None).indices_n;
        let found: Vec<i64> = found.into_data().convert::<i64>().into_vec().unwrap();
        assert!(found[..20].iter().all(|code| *code < 4), "one token of each image");
        assert!(found[20..100].iter().all(|code| *code < 16));
        assert!(found.iter().any(|code| *code >= 16));
        let streams: Vec<SeedTree> = (0..20).map(|i| SeedTree::new(3).at(i)).collect();
        let perturbation = Perturbation { share: 1.0, nearest: 64 };
        let disturbance = Disturbance { perturbation, dropout: 0.0, streams: &streams };
        let coarse = Tensor::<B, 4>::random(
            [20, 4, 1, 1],
            Distribution::Normal(0.0, 1.0),
            &Default::default(),
        );
        let quantized = grows.quantizer().quantize(coarse.clone(), &sizes[..1], Some(&disturbance));
        if family == Family::Flexvar {
            // What is decoded is one of the first four codes.
            let codes = grows.codes().slice_dim(0, 0..4).into_data().into_vec::<f32>().unwrap();
            let decoded = quantized.straight_through_bchw.into_data().into_vec::<f32>().unwrap();
            for row in decoded.chunks(4) {
                let is_near =
                    |code: &[f32]| code.iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-5);
                assert!(codes.chunks(4).any(is_near), "{row:?}");
            }
        }
        // What training moves keeps the growth.
        let moved = grows.clone().with_codebook(|codebook| {
            let raw = codebook.raw();
            codebook.with_raw(raw * 2.0)
        });
        assert_eq!(moved.n_codes(schedule.size(0)), 4);
    }
}
