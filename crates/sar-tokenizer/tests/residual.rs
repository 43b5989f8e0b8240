//! VAR's tokenizer: an encoding by hand, and laws.

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{ScaleSchedule, SeedTree, paint_all};
use sar_tokenizer::{
    CodebookGrowth, Disturbance, Family, Perturbation, Phi, Tokenizer, TokenizerConfig, init,
};

fn config(phi: Phi, c: usize, codes: usize) -> TokenizerConfig {
    TokenizerConfig {
        family: Family::Var { phi },
        base_channels: 32,
        channel_multipliers: vec![1, 1],
        res_blocks: 1,
        z_channels: 2,
        codebook_size: codes,
        codebook_dim: c,
        codebook_growth: CodebookGrowth::None {},
    }
}

type A = Autodiff<Flex>;

fn values<const D: usize>(x: Tensor<A, D>) -> Vec<f32> {
    x.into_data().into_vec::<f32>().unwrap()
}

fn near(found: &[f32], expected: &[f32]) {
    let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(found.len() == expected.len() && close, "{found:?} not {expected:?}");
}

/// Without weights a phi halves: everything can be followed on paper.
#[test]
fn an_encoding_by_hand() {
    let device = Default::default();
    let schedule: ScaleSchedule = "1_2".parse().unwrap();
    let codes = Tensor::<A, 2>::from_floats([[-1.0], [1.2], [3.0]], &device);
    let tokenizer = Tokenizer::<A>::new(&config(Phi::Shared(1), 1, 3), &device).unwrap();
    let tokenizer = tokenizer.with_codebook(|book| book.with_raw(codes.require_grad()));
    let f = Tensor::<A, 4>::from_floats([[[[4.0, 0.0], [0.0, 0.0]]]], &device).require_grad();

    // The mean is 1, its code 1.2, half of it 0.6; what is left is 3.4, -0.6, -0.6, -0.6.
    let tokens_bl = tokenizer.tokens(f.clone(), &schedule);
    let tokens = tokens_bl.clone().into_data().convert::<i64>().into_vec::<i64>().unwrap();
    assert_eq!(tokens, [1, 2, 0, 0, 0]);
    let canvases = tokenizer.canvases(tokens_bl.clone(), &schedule);
    near(&values(canvases[0].clone()), &[0.6; 4]);
    near(&values(canvases[1].clone()), &[2.1, 0.1, 0.1, 0.1]);
    let (inputs, canvas) = paint_all(&tokenizer, &schedule, tokens_bl);
    near(&values(inputs[0].clone()), &[0.6; 4]);
    near(&values(canvas.unwrap()), &[2.1, 0.1, 0.1, 0.1]);

    let quantized = tokenizer.quantizer().quantize(f.clone(), schedule.sizes(), None);
    near(&values(quantized.straight_through_bchw.clone()), &[2.1, 0.1, 0.1, 0.1]);
    let errors: Vec<f32> = quantized
        .pairs
        .iter()
        .map(|[z, q]| (z.clone() - q.clone()).square().mean().into_scalar())
        .collect();
    // ((4 - 0.6)^2 + 3 * 0.6^2) / 4 and ((4 - 2.1)^2 + 3 * 0.1^2) / 4.
    near(&errors, &[3.16, 0.91]);

    // Straight through: the latent gets the map's gradient, the codes none of it.
    let grads = quantized.straight_through_bchw.sum().backward();
    let gradient = f.grad(&grads).unwrap().into_data().into_vec::<f32>().unwrap();
    near(&gradient, &[1.0; 4]);
    assert!(tokenizer.codebook().raw().grad(&grads).is_none());
    // What is painted after the last scale reaches every code that was chosen.
    let quantized = tokenizer.quantizer().quantize(f, schedule.sizes(), None);
    let [_, painted] = quantized.pairs[1].clone();
    let grads = painted.sum().backward();
    let gradient = tokenizer.codebook().raw().grad(&grads).unwrap();
    // Half of four places for 1.2, of three for -1, of one for 3.
    near(&gradient.into_data().into_vec::<f32>().unwrap(), &[1.5, 2.0, 0.5]);
}

#[test]
fn what_quantizing_paints_is_what_its_tokens_paint() {
    let device = Default::default();
    let schedule: ScaleSchedule = "1_2x3_4x6".parse().unwrap();
    for phi in [Phi::Shared(1), Phi::Shared(4), Phi::PerScale(3)] {
        let config = config(phi, 4, 16);
        let tokenizer: Tokenizer<A> =
            init(&config, sar_tokenizer::Init::Torch {}, SeedTree::new(4), &device).unwrap();
        let pixels = Tensor::random([2, 3, 8, 12], Distribution::Uniform(-1.0, 1.0), &device);
        let h_bchw = tokenizer.encode(pixels);
        let tokens_bl = tokenizer.tokens(h_bchw.clone(), &schedule);
        let canvases = tokenizer.canvases(tokens_bl.clone(), &schedule);
        let quantized = tokenizer.quantizer().quantize(h_bchw.clone(), schedule.sizes(), None);
        assert_eq!(quantized.indices_n.dims(), [2 * schedule.n_tokens()]);
        for (canvas, [_, painted]) in canvases.iter().zip(&quantized.pairs) {
            near(&values(canvas.clone()), &values(painted.clone()));
        }
        let last = values(canvases[2].clone());
        near(&values(quantized.straight_through_bchw), &last);
        let (_, canvas) = paint_all(&tokenizer, &schedule, tokens_bl);
        near(&values(canvas.unwrap()), &last);
        assert_eq!(tokenizer.decode(canvases[2].clone()).dims(), [2, 3, 8, 12]);
        let searched = tokenizer.quantizer().targets(h_bchw, schedule.sizes());
        let rows: Vec<_> = searched.iter().map(|rows| rows.dims()).collect();
        assert_eq!(rows, [[2, 4], [12, 4], [48, 4]]);
    }
}

#[test]
fn released_names_and_size() {
    let names = |config: &TokenizerConfig| -> Vec<(String, usize)> {
        let tokenizer = Tokenizer::<Flex>::new(config, &Default::default()).unwrap();
        let parameters = sar_weights::parameters(&tokenizer, config.layout());
        parameters.into_iter().map(|p| (p.name, p.shape.iter().product())).collect()
    };
    let has = |config: &TokenizerConfig, name: &str| {
        assert!(names(config).iter().any(|(found, _)| found == name), "{name}");
    };
    let millions = |config| names(&config).iter().map(|(_, n)| n).sum::<usize>() as f64 / 1e6;
    assert!((millions(TokenizerConfig::var()) - 108.95).abs() < 0.01);
    assert!((millions(TokenizerConfig::flexvar()) - 72.05).abs() < 0.01);
    has(&config(Phi::Shared(1), 4, 8), "quantize.quant_resi.qresi.weight");
    has(&config(Phi::Shared(4), 4, 8), "quantize.quant_resi.qresi_ls.3.bias");
    has(&config(Phi::PerScale(6), 4, 8), "quantize.quant_resi.5.weight");
    // The coarsest level is the last of either list.
    has(&TokenizerConfig::var(), "decoder.up.4.attn.2.qkv.weight");
    has(&TokenizerConfig::var(), "encoder.down.4.attn.1.proj_out.weight");
    has(&TokenizerConfig::var(), "decoder.up.1.upsample.conv.weight");
    has(&TokenizerConfig::flexvar(), "decoder.conv_blocks.0.attn.2.q.weight");
}

/// A dropped image is decoded from the sum of its coarser scales, whatever the others keep; losses of the
/// codebook see all scales.
#[test]
fn what_is_dropped_is_missing_from_the_sum() {
    let device = Default::default();
    let schedule: ScaleSchedule = "1_2_4".parse().unwrap();
    let config = config(Phi::PerScale(3), 4, 16);
    let tokenizer: Tokenizer<A> =
        init(&config, sar_tokenizer::Init::Torch {}, SeedTree::new(4), &device).unwrap();
    let pixels = SeedTree::new(5).normals(6 * 3 * 8 * 8);
    let pixels = Tensor::from_data(TensorData::new(pixels, [6, 3, 8, 8]), &device);
    let h_bchw = tokenizer.encode(pixels);
    let tokens_bl = tokenizer.tokens(h_bchw.clone(), &schedule);
    let canvases = tokenizer.canvases(tokens_bl, &schedule);
    let streams: Vec<SeedTree> = (0..6).map(|image| SeedTree::new(8).at(image)).collect();
    let perturbation = Perturbation { share: 0.0, nearest: 1 };
    let disturbance = Disturbance { perturbation, dropout: 0.6, streams: &streams };
    let scales = schedule.sizes();
    let quantized = tokenizer.quantizer().quantize(h_bchw.clone(), scales, Some(&disturbance));
    let plain = tokenizer.quantizer().quantize(h_bchw, scales, None);
    near(&values(quantized.pairs[2][1].clone()), &values(plain.pairs[2][1].clone()));
    let mut seen = [0; 3];
    for image in 0..6 {
        let found = quantized.straight_through_bchw.clone().narrow(0, image, 1);
        let is = |canvas: &&Tensor<A, 4>| {
            let error = (found.clone() - (*canvas).clone().narrow(0, image, 1)).abs().max();
            error.into_scalar() < 1e-5
        };
        let kept = canvases.iter().position(|canvas| is(&canvas)).expect("one of the sums");
        seen[kept] += 1;
    }
    assert!(seen[2] > 0 && seen[0] + seen[1] > 0, "{seen:?}");
}
