//! Laws of training: gradients, the optimizer, the one train step.
//!
//! Shapes: b batch, c channels, h height, w width, n latents; r rows, i inputs, o outputs.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use sar_core::first_scale::{MaskLoss, MaskShare, Reveal};
use sar_core::{CodePyramid, Filter, FirstScale, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_loss::Reduction;
use sar_model::{Backbone, Precision, Visibility};
use sar_tokenizer::{CodebookGrowth, Perturbation, Tokenizer, TokenizerConfig, codebook};
use sar_train::backbone_loss::backbone_loss;
use sar_train::context_noise::ContextNoise;
use sar_train::gradients::{Gradients, clip_factor};
use sar_train::learner::{Learner, Optimization};
use sar_train::muon::Matrices;
use sar_train::objective::{Objective, Regularization};
use sar_train::optim::{AdamWConfig, Optimizer};
use sar_train::recipe::{Perceptual, TokenizerLoss, TokenizerRegularization};
use sar_train::schedule::{Decay, LrSchedule, WeightDecay};
use sar_train::step::{Terms, accumulate, trainable};
use sar_train::tokenizer_loss::{TokenizerObjective, tokenizer_loss};
use sar_train::tokens::TokenBatch;
use sar_weights::{Layout, parameters};

use crate::differences::{assert_differences, length};
use crate::host::{assert_near, floats, normals, widened};
use crate::tiny;

/// What the laws of this part run on.
pub type Subject<A> = A;

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

const UNREGULARIZED: Regularization = Regularization {
    class_dropout_prob: 0.0,
    drop_path_rate: 0.0,
    label_smoothing: 0.0,
    reduction: Reduction::MeanTokens,
    context_noise: ContextNoise::NONE,
};

/// Teacher forcing, every parameter of the variants of the backbone, of the kinds of visibility and of
/// first scales.
pub fn gradients_of_the_backbone_equal_finite_differences<A: AutodiffBackend>(device: &A::Device) {
    let tokenizer = tiny::tokenizer::<Inner<A>>(device);
    let batch = token_batch::<Inner<A>>(0..3, device);
    let masked = |loss| FirstScale::Masked {
        share: MaskShare::Cosine,
        loss,
        steps: 2,
        reveal: Reveal::Random,
    };
    let coarse = TokenBatch { schedule: "2_3".parse().expect("a valid schedule"), ..batch.clone() };
    let coarse = TokenBatch {
        tokens_bl: coarse.tokens_bl.clone().repeat_dim(1, 2).slice_dim(1, 0..13),
        ..coarse
    };
    for (shared_adaln, visibility, first_scale) in [
        (false, Visibility::AllCoarser, FirstScale::ClassToken {}),
        (true, Visibility::Own, FirstScale::ClassToken {}),
        (false, Visibility::Last(1), FirstScale::ClassToken {}),
        (false, Visibility::Own, masked(MaskLoss::Masked)),
        (true, Visibility::AllCoarser, masked(MaskLoss::All)),
        (false, Visibility::AllCoarser, FirstScale::RandomOrder {}),
    ] {
        let mut config = tiny::backbone_config(shared_adaln, !shared_adaln);
        (config.shape.visibility, config.shape.first_scale) = (visibility, first_scale);
        let model = tiny::backbone_of::<Inner<A>>(&config, device);
        let batch = if first_scale.is_behind_the_class_token() { &coarse } else { &batch };
        let loss = |model: &Backbone<A>| {
            let objective = Objective::TeacherForcing;
            let step = SeedTree::new(0);
            backbone_loss(model, &tokenizer, batch, &objective, &UNREGULARIZED, step, device).loss
        };
        assert_differences::<A, Backbone<A>>(model, &sar_model::LAYOUT, loss, device);
    }
}

/// Teacher forcing where each scale may use its first codes only, every parameter; what the head says of codes that
/// no scale may use has no gradient.
pub fn gradients_behind_a_growing_codebook_equal_finite_differences<A: AutodiffBackend>(
    device: &A::Device,
) {
    // 4 sqrt(23 / 4) is 9.6, and 4 (23 / 4)^(ln 3 / ln 4) is 16.0.
    let growing = TokenizerConfig {
        codebook_growth: CodebookGrowth::Geometric { first: 4, full_side: 4 },
        ..tiny::tokenizer_config()
    };
    let tokenizer = tiny::tokenizer_of::<Inner<A>>(&growing, device);
    let n_codes = |size: ScaleSize| tokenizer.n_codes(size);
    let batch = token_batch_of::<Inner<A>>(0..3, n_codes, device);
    let limits: Vec<usize> = batch.schedule.sizes().iter().map(|size| n_codes(*size)).collect();
    assert_eq!(limits, [4, 10, 16]);
    let model = tiny::backbone::<Inner<A>>(false, true, device);
    let loss = |model: &Backbone<A>| {
        let (objective, step) = (Objective::TeacherForcing, SeedTree::new(0));
        backbone_loss(model, &tokenizer, &batch, &objective, &UNREGULARIZED, step, device).loss
    };
    assert_differences::<A, Backbone<A>>(model.clone(), &sar_model::LAYOUT, &loss, device);

    let infos = parameters(&model, &sar_model::LAYOUT);
    let place = infos.iter().position(|info| info.name == "head.bias").expect("the head's bias");
    let differentiable = trainable::<A, Backbone<A>>(model);
    let gradients = Gradients::of(loss(&differentiable), &differentiable);
    let gradient = gradients.iter().nth(place).flatten().expect("a gradient reaches it");
    let gradient = floats(gradient.clone());
    let (used, beyond) = gradient.split_at(16);
    assert!(used.iter().all(|g| *g != 0.0) && beyond.iter().all(|g| *g == 0.0), "{gradient:?}");
}

/// Encoder and decoder, every parameter: convolutions of all strides and sizes, group normalization,
/// attention, both kinds of resampling.
pub fn gradients_of_the_tokenizer_equal_finite_differences<A: AutodiffBackend>(device: &A::Device) {
    let stream = SeedTree::new(12);
    let image_bchw = normals::<A, 4>(stream.child("image"), [2, 3, 8, 8], device);
    let latent_bchw = normals::<A, 4>(stream.child("latent"), [2, tiny::CHANNELS, 4, 4], device);
    let loss = |model: &Tokenizer<A>| {
        let encoded = model.encode(image_bchw.clone()) - latent_bchw.clone();
        let decoded = model.decode(latent_bchw.clone()) - image_bchw.clone();
        let mean_square = |x: Tensor<A, 4>| x.square().mean().reshape([1]);
        mean_square(encoded) + mean_square(decoded)
    };
    let model = tiny::tokenizer::<Inner<A>>(device);
    let layout = tiny::tokenizer_config().layout();
    assert_differences::<A, Tokenizer<A>>(model, layout, loss, device);
}

/// Resampling is linear, so its gradient is its transpose: `U_h^T G U_w`. The sizes are those of a
/// learned position grid, whose gradient comes through nothing else.
pub fn gradients_of_resampling_are_its_transpose<A: AutodiffBackend>(device: &A::Device) {
    let (maps, from) = (6, 32);
    for filter in [Filter::Area, Filter::Bicubic, Filter::Nearest, Filter::Linear] {
        for to in [1, 2, 3, 5, 13, 16, 24, 40, 72] {
            let stream = SeedTree::new(22).at(to as u64);
            let gradient = stream.normals(maps * to * to);
            let matrix = widened(&filter.matrix(from, to));
            // Rows first, then columns.
            let transposed = gradient.chunks(to * to).flat_map(|map| {
                let half: Vec<f64> = (0..to * from)
                    .map(|at| {
                        let (row, x) = (at / from, at % from);
                        let terms =
                            (0..to).map(|j| f64::from(map[row * to + j]) * matrix[j * from + x]);
                        terms.sum()
                    })
                    .collect();
                let whole = (0..from * from).map(|at| {
                    let (y, x) = (at / from, at % from);
                    (0..to).map(|i| half[i * from + x] * matrix[i * from + y]).sum::<f64>()
                });
                whole.collect::<Vec<f64>>()
            });
            let expected: Vec<f64> = transposed.collect();

            let x_bchw = normals::<A, 4>(stream.child("x"), [2, maps / 2, from, from], device);
            let x_bchw = x_bchw.require_grad();
            let y_bchw = resample(x_bchw.clone(), ScaleSize::square(to), filter);
            let gradient_bchw =
                Tensor::<A, 1>::from_data(TensorData::new(gradient, [maps * to * to]), device)
                    .reshape([2, maps / 2, to, to]);
            let gradients = (y_bchw * gradient_bchw).sum().backward();
            let ours = floats(x_bchw.grad(&gradients).expect("a gradient reaches the input"));
            assert_near(&format!("{filter:?} to {to}"), &ours, &expected, 1e-5);
        }
    }
}

/// The value of the codes, the gradient of the normalized latents, nothing for the codebook.
pub fn the_quantizer_passes_gradients_straight_through<A: AutodiffBackend>(device: &A::Device) {
    let model = trainable::<A, Tokenizer<A>>(tiny::tokenizer(device));
    let shape = [2, tiny::CHANNELS, 2, 3];
    let latent_bchw = || normals::<A, 4>(SeedTree::new(14), shape, device).require_grad();
    let weight_bchw = normals::<A, 4>(SeedTree::new(15), shape, device);

    let ours_bchw = latent_bchw();
    let size = ScaleSize { height: 2, width: 3 };
    let quantized = model.quantizer().quantize(ours_bchw.clone(), &[size], None);
    let through_bchw = quantized.straight_through_bchw;
    let tokens_bn = quantized.indices_n.reshape([2, 6]);
    let codes_bnc: Tensor<A, 3> = model.look_up(tokens_bn);
    let codes_bchw = codes_bnc.swap_dims(1, 2).reshape(shape);
    assert_near("value", &floats(through_bchw.clone()), &floats(codes_bchw), 1e-6);
    let gradients = (through_bchw * weight_bchw.clone()).sum().backward();
    assert!(model.codebook().raw().grad(&gradients).is_none(), "a gradient reached the codebook");
    let ours = ours_bchw.grad(&gradients).expect("a gradient reaches the latents");

    let plain_bchw = latent_bchw();
    let normalized_nc = codebook::normalize(codebook::rows(plain_bchw.clone()));
    let gradients = (normalized_nc * codebook::rows(weight_bchw)).sum().backward();
    let expected = plain_bchw.grad(&gradients).expect("a gradient reaches the latents");
    assert_near("gradient", &floats(ours), &floats(expected), 1e-5);
}

const BARE: Layout = Layout { renames: &[], ignored: &[] };

/// A linear layer of 3 inputs and 2 outputs, and its gradients for the loss `sum of y * weight`.
fn linear_and_gradients<A: AutodiffBackend>(
    layer: &Linear<Inner<A>>,
    stream: SeedTree,
    device: &A::Device,
) -> (Gradients<Inner<A>>, [Vec<f64>; 2]) {
    let (x, weight) = (stream.child("x").normals(4 * 3), stream.child("weight").normals(4 * 2));
    let x_ri = Tensor::<A, 1>::from_data(TensorData::new(x.clone(), [12]), device).reshape([4, 3]);
    let weight_ro =
        Tensor::<A, 1>::from_data(TensorData::new(weight.clone(), [8]), device).reshape([4, 2]);
    let layer = trainable::<A, Linear<A>>(layer.clone());
    let loss = (layer.forward(x_ri) * weight_ro).sum().reshape([1]);
    let sum = |i: Option<usize>, o: usize| -> f64 {
        let row =
            |r: usize| i.map_or(1.0, |i| f64::from(x[3 * r + i])) * f64::from(weight[2 * r + o]);
        (0..4).map(row).sum()
    };
    let of_weight = (0..6).map(|place| sum(Some(place / 2), place % 2)).collect();
    let of_bias = (0..2).map(|o| sum(None, o)).collect();
    (Gradients::of(loss, &layer), [of_weight, of_bias])
}

fn linear<B: Backend>(device: &B::Device) -> Linear<B> {
    let layer: Linear<B> = LinearConfig::new(3, 2).init(device);
    let stream = SeedTree::new(16);
    sar_weights::fill(layer, &BARE, |name, shape| {
        stream.child(name).normals(shape.iter().product())
    })
}

/// Weight and bias of a layer as burn holds them, `[3, 2]` and `[2]`.
fn values<B: Backend>(layer: &Linear<B>) -> [Vec<f64>; 2] {
    let bias = layer.bias.as_ref().expect("built with a bias");
    [floats(layer.weight.val()), floats(bias.val())]
}

/// Four steps of a decayed weight and an undecayed bias against the equations in f64.
pub fn adamw_equals_its_equations<A: AutodiffBackend>(device: &A::Device) {
    // An eps that shows, and a decay that shows.
    let config = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 0.1 };
    let (lr, weight_decay) = (0.05, 0.3);
    let mut layer = linear::<Inner<A>>(device);
    let mut optimizer = Optimizer::new(config, Matrices::AdamW {}, parameters(&layer, &BARE));
    let mut expected = values(&layer);
    let mut moments = [[vec![0.0; 6], vec![0.0; 6]], [vec![0.0; 2], vec![0.0; 2]]];
    for step in 1..=4 {
        let stream = SeedTree::new(17).at(step as u64);
        let (gradients, by_hand) = linear_and_gradients::<A>(&layer, stream, device);
        // A factor that clips, and one of zero, whatever the gradient is.
        let factor = [1.0, 0.3, 0.0, 0.7][step as usize - 1];
        let gradients = if factor == 0.0 { gradients.scale(f64::NAN) } else { gradients };
        let clip = Tensor::full([1], factor, device);
        layer = optimizer.step(layer, &gradients, clip, lr, weight_decay);
        for (which, decay) in [(0, weight_decay), (1, 0.0)] {
            let [mean, square] = &mut moments[which];
            for (i, g) in by_hand[which].iter().map(|g| factor * g).enumerate() {
                mean[i] = config.beta1 * mean[i] + (1.0 - config.beta1) * g;
                square[i] = config.beta2 * square[i] + (1.0 - config.beta2) * g * g;
                let m = mean[i] / (1.0 - config.beta1.powi(step));
                let v = square[i] / (1.0 - config.beta2.powi(step));
                let p = &mut expected[which][i];
                *p -= lr * decay * *p;
                *p -= lr * m / (v.sqrt() + config.eps);
            }
            assert_near(&format!("step {step}"), &values(&layer)[which], &expected[which], 1e-5);
        }
    }
}

/// Four steps of a matrix against the equations in f64; the bias beside it is AdamW's.
pub fn muon_equals_its_equations<A: AutodiffBackend>(device: &A::Device) {
    let config = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 0.1 };
    let (momentum, update_rms, lr, weight_decay) = (0.8, 0.3, 0.05, 0.3);
    let mut layer = linear::<Inner<A>>(device);
    let infos = parameters(&layer, &BARE);
    let optimizer = |matrices| Optimizer::<Inner<A>>::new(config, matrices, infos.clone());
    let mut muon = optimizer(Matrices::Muon { momentum, update_rms, iterations: 3 });
    let (mut beside, mut adamw) = (layer.clone(), optimizer(Matrices::AdamW {}));
    let [mut expected, _] = values(&layer);
    let mut mean = [0.0; 6];
    for step in 0..4 {
        let (gradients, [by_hand, _]) =
            linear_and_gradients::<A>(&layer, SeedTree::new(19).at(step), device);
        // A factor that clips, and one of zero, whatever the gradient is.
        let factor = [1.0, 0.3, 0.0, 0.7][step as usize];
        let gradients = if factor == 0.0 { gradients.scale(f64::NAN) } else { gradients };
        let clip = Tensor::full([1], factor, device);
        layer = muon.step(layer, &gradients, clip.clone(), lr, weight_decay);
        beside = adamw.step(beside, &gradients, clip, lr, weight_decay);
        let mut ahead = vec![0.0; 6];
        for (i, g) in by_hand.iter().map(|g| factor * g).enumerate() {
            mean[i] = momentum * mean[i] + (1.0 - momentum) * g;
            ahead[i] = momentum * mean[i] + (1.0 - momentum) * g;
        }
        for (p, o) in expected.iter_mut().zip(orthogonalized_by_hand(&ahead)) {
            *p -= lr * weight_decay * *p;
            *p -= lr * update_rms * 3f64.sqrt() * o;
        }
        let [weight, bias] = values(&layer);
        assert_near(&format!("step {step}"), &weight, &expected, 1e-5);
        assert_eq!(bias, values(&beside)[1], "step {step}");
    }
}

/// Of a matrix `[3, 2]`: three iterations, by their polynomials.
fn orthogonalized_by_hand(matrix: &[f64]) -> Vec<f64> {
    let norm = length(matrix) + 1e-7;
    let mut x: Vec<f64> = matrix.iter().map(|x| x / norm).collect();
    for [a0, b0, c0] in
        [[8.0934, -23.6204, 17.4462], [3.6366, -2.7219, 0.5365], [2.6613, -1.9772, 0.4526]]
    {
        // X (a + b A + c A^2), A = X^T X of 2 x 2.
        let of = |i: usize, j: usize| (0..3).map(|r| x[2 * r + i] * x[2 * r + j]).sum::<f64>();
        let a = [[of(0, 0), of(0, 1)], [of(1, 0), of(1, 1)]];
        let by = |i: usize, j: usize| {
            let square = a[i][0] * a[0][j] + a[i][1] * a[1][j];
            let one = if i == j { a0 } else { 0.0 };
            one + b0 * a[i][j] + c0 * square
        };
        x = (0..6).map(|at| (0..2).map(|i| x[at / 2 * 2 + i] * by(i, at % 2)).sum()).collect();
    }
    x
}

/// `g * min(1, limit / (norm + 1e-6))` over all parameters together.
pub fn clipping_limits_the_norm<A: AutodiffBackend>(device: &A::Device) {
    let layer = linear::<Inner<A>>(device);
    let (gradients, by_hand) = linear_and_gradients::<A>(&layer, SeedTree::new(18), device);
    let by_hand = by_hand.concat();
    let norm = length(&by_hand);
    assert_near("norm", &floats(gradients.norm()), &[norm], 1e-5);
    for (limit, factor) in [(norm / 3.0, 1.0 / 3.0), (norm * 3.0, 1.0), (0.0, 1.0)] {
        assert_near("clip", &floats(clip_factor(gradients.norm(), limit)), &[factor], 1e-5);
    }
}

/// Micro-batches give the gradients of the whole batch, and the number of workers changes no bit.
pub fn micro_batches_add_up_whatever_the_workers<A: AutodiffBackend>(device: &A::Device) {
    let tokenizer = tiny::tokenizer::<Inner<A>>(device);
    let model = tiny::backbone::<Inner<A>>(false, true, device);
    let objective = Objective::paper(0.7);
    let run = |size: usize, workers: usize| -> Vec<Vec<f64>> {
        let starts = (0..4).step_by(size);
        let batches = starts.map(|start| token_batch::<Inner<A>>(start..start + size, device));
        let loss = |model: &Backbone<A>, batch: TokenBatch<Inner<A>>| {
            let step = SeedTree::new(0);
            let terms =
                backbone_loss(model, &tokenizer, &batch, &objective, &UNREGULARIZED, step, device);
            (terms, ())
        };
        let sum = accumulate::<A, Backbone<A>, _, _>(&model, batches.collect(), workers, 1.0, loss);
        sum.gradients.iter().flatten().map(|gradient| floats(gradient.clone())).collect()
    };
    let whole = run(4, 1);
    let halves = run(2, 1);
    assert_eq!(halves, run(2, 2));
    for (whole, halves) in whole.iter().zip(&halves) {
        assert_near("gradient", halves, whole, 1e-4);
    }
}

/// Teacher forcing, SAR as the paper states it and as it was released, each through the one train
/// step, on a batch that can be learned by heart.
pub fn training_a_backbone_lowers_its_losses<A: AutodiffBackend>(device: &A::Device) {
    let tokenizer = tiny::tokenizer::<Inner<A>>(device);
    for objective in [Objective::TeacherForcing, Objective::paper(1.0), Objective::released()] {
        let model = tiny::backbone::<Inner<A>>(false, true, device);
        let loss = |model: &Backbone<A>, step| {
            let batch = token_batch::<Inner<A>>(0..4, device);
            backbone_loss(model, &tokenizer, &batch, &objective, &UNREGULARIZED, step, device)
        };
        assert_falls::<A, Backbone<A>>(model, &sar_model::LAYOUT, loss);
    }
}

/// Pixels, codebook and commitment through the one train step.
pub fn training_a_tokenizer_lowers_its_loss<A: AutodiffBackend>(device: &A::Device) {
    let schedule: ScaleSchedule = "1_2_4".parse().expect("a valid schedule");
    let weights = TokenizerLoss {
        color_power: 0.0,
        l1: 1.0,
        l2: 1.0,
        codebook: 1.0,
        commitment: 0.25,
        entropy: 0.01,
        perceptual: Perceptual::None {},
        coarse: 0.5,
        coarse_scales: 2,
    };
    let regularization = TokenizerRegularization {
        quantizer_dropout: 0.0,
        perturbation: Perturbation { share: 0.2, nearest: 2 },
    };
    let objective = TokenizerObjective {
        schedule: &schedule,
        loss: &weights,
        regularization: &regularization,
        perception: None,
    };
    let streams = [0, 1].map(SeedTree::new);
    let model = tiny::tokenizer::<Inner<A>>(device);
    let loss = |model: &Tokenizer<A>, _| {
        let images_bchw = normals::<Inner<A>, 4>(SeedTree::new(19), [2, 3, 8, 8], device);
        // The same coarse scales and the same codes replaced at every step.
        tokenizer_loss(model, images_bchw, &streams, &objective, SeedTree::new(0)).0
    };
    assert_falls::<A, Tokenizer<A>>(model, tiny::tokenizer_config().layout(), loss);
}

/// Gradients through matrix products in half precision reach every parameter, in f32, and differ from
/// those of f32 by what the mantissa loses, 8 bits of it or 11. Nothing is asked of a backend without
/// the types.
pub fn products_in_half_precision_give_nearly_the_same_gradients<A: AutodiffBackend>(
    device: &A::Device,
) {
    let tokenizer = tiny::tokenizer::<Inner<A>>(device);
    let batch = token_batch::<Inner<A>>(0..3, device);
    for (shared_adaln, qk_l2_norm) in [(false, true), (true, false)] {
        let model = tiny::backbone::<Inner<A>>(shared_adaln, qk_l2_norm, device);
        let gradients = |precision: Precision, factor: f64| -> Vec<Vec<f64>> {
            let model = trainable::<A, Backbone<A>>(model.clone());
            let view = precision.view(&model);
            let (objective, step) = (Objective::paper(0.7), SeedTree::new(0));
            let terms =
                backbone_loss(&view, &tokenizer, &batch, &objective, &UNREGULARIZED, step, device);
            let found = Gradients::of(terms.loss * factor, &model).scale(1.0 / factor);
            let one = |gradient: Option<&Tensor<Inner<A>, 1>>| {
                let gradient = gradient.expect("a gradient reaches every parameter");
                assert_eq!(gradient.dtype(), DType::F32);
                floats(gradient.clone())
            };
            found.iter().map(one).collect()
        };
        let exact = gradients(Precision::F32, 1.0);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let all = norm(&mut exact.iter().flatten().copied());
        for (precision, factor, bounds) in
            [(Precision::Bf16, 1.0, 1e-4..2e-2), (Precision::F16, 2048.0, 1e-5..2.5e-3)]
        {
            if !precision.is_supported::<Inner<A>>(device) {
                continue;
            }
            let half = gradients(precision, factor);
            let off = |(half, exact): (&Vec<f64>, &Vec<f64>)| {
                norm(&mut half.iter().zip(exact).map(|(half, exact)| half - exact))
            };
            let off: Vec<f64> = half.iter().zip(&exact).map(off).collect();
            let share = norm(&mut off.iter().copied()) / all;
            assert!(bounds.contains(&share), "{precision}: {share} of the gradients' norm");
        }
    }
}

/// 500 steps on batches that change: every mean over 50 steps of the loss is as near to that of f32 as
/// another order of the batches is, at most. Nothing is asked of a backend without the types.
pub fn training_in_half_precision_follows_the_curve_of_f32<A: AutodiffBackend>(device: &A::Device) {
    const STEPS: u64 = 500;
    let half = [Precision::Bf16, Precision::F16];
    let half = half.into_iter().filter(|precision| precision.is_supported::<Inner<A>>(device));
    let half: Vec<_> = half.collect();
    if half.is_empty() {
        return;
    }
    let tokenizer = tiny::tokenizer::<Inner<A>>(device);
    let objective = Objective::paper(0.3);
    let curve = |precision: Precision, order: &str| -> Vec<f64> {
        let model = tiny::backbone::<Inner<A>>(false, true, device);
        let loss = |model: &Backbone<A>, step: SeedTree| {
            let first = step.child(order).below(0, 16);
            let batch = token_batch::<Inner<A>>(first..first + 4, device);
            let view = precision.view(model);
            backbone_loss(&view, &tokenizer, &batch, &objective, &UNREGULARIZED, step, device)
        };
        let history = trained::<A, Backbone<A>>(model, &sar_model::LAYOUT, STEPS, precision, loss);
        let teacher: Vec<f64> = history.iter().map(|parts| parts[0].1).collect();
        teacher.chunks(50).map(|chunk| chunk.iter().sum::<f64>() / 50.0).collect()
    };
    let exact = curve(Precision::F32, "order");
    let distance = |other: Vec<f64>| {
        let each = other.iter().zip(&exact).map(|(other, exact)| (other - exact).abs());
        each.fold(0.0, f64::max)
    };
    let noise = distance(curve(Precision::F32, "another order"));
    assert!(exact[9] < 0.8 * exact[0], "{exact:?}");
    for precision in half {
        let off = distance(curve(precision, "order"));
        assert!(
            0.0 < off && off < noise,
            "{precision}: {off}, another order {noise}, of {exact:?}"
        );
        println!("{precision} is {off:.4} nats from f32, another order {noise:.4}: {exact:.3?}");
    }
}

/// A loss that is scaled by a power of two has the same gradients, bit for bit.
pub fn a_scaled_loss_has_the_same_gradients<A: AutodiffBackend>(device: &A::Device) {
    let tokenizer = tiny::tokenizer::<Inner<A>>(device);
    let model = tiny::backbone::<Inner<A>>(false, true, device);
    let gradients = |factor: f64| -> Vec<Vec<f64>> {
        let batches = vec![0..2, 2..4];
        let loss = |model: &Backbone<A>, images| {
            let batch = token_batch::<Inner<A>>(images, device);
            let (objective, step) = (Objective::paper(0.7), SeedTree::new(0));
            let terms =
                backbone_loss(model, &tokenizer, &batch, &objective, &UNREGULARIZED, step, device);
            (terms, ())
        };
        let sum = accumulate::<A, Backbone<A>, _, _>(&model, batches, 1, factor, loss);
        sum.gradients.iter().flatten().map(|gradient| floats(gradient.clone())).collect()
    };
    assert_eq!(gradients(1.0), gradients(2048.0));
    // It was there: one that is too large for single precision leaves nothing finite.
    assert!(gradients(1e39).concat().iter().any(|g| !g.is_finite()));
}

/// A step whose scaled gradients overflowed moves nothing, remembers nothing and halves the scale; the
/// next one is as if it had not been.
pub fn a_step_that_overflowed_is_not_taken<A: AutodiffBackend>(device: &A::Device) {
    let layer = linear::<Inner<A>>(device);
    let learner = |precision| {
        Learner::<A, Linear<A>>::new("layer", layer.clone(), &BARE, &optimization(), precision)
    };
    let gradients =
        |step: u64| linear_and_gradients::<A>(&layer, SeedTree::new(22).at(step), device).0;
    let mut scaled = learner(Precision::F16);
    for (bad, factor) in [(f64::INFINITY, 1024.0), (f64::NAN, 512.0)] {
        let update = scaled.update(gradients(0).scale(bad), (0, 10)).expect("alone");
        let scale = update.skipped.expect("the step does not count");
        assert_eq!(scale.factor(), factor);
        assert_eq!(values(scaled.model()), values(&layer));
    }
    assert!(scaled.update(gradients(1), (0, 10)).expect("alone").skipped.is_none());
    let mut untouched = learner(Precision::F32);
    untouched.update(gradients(1), (0, 10)).expect("alone");
    assert_eq!(values(scaled.model()), values(untouched.model()));
    assert_ne!(values(scaled.model()), values(&layer));
}

/// Twelve steps lower every part of the loss that is compared with fixed data.
fn assert_falls<A, M>(
    model: M::InnerModule,
    layout: &'static Layout,
    loss: impl Fn(&M, SeedTree) -> Terms<A> + Sync,
) where
    A: AutodiffBackend,
    M: burn::module::AutodiffModule<A>,
    M::InnerModule: Module<Inner<A>> + Send,
{
    let history = trained::<A, M>(model, layout, 12, Precision::F32, loss);
    let (first, last) = (&history[0], &history[history.len() - 1]);
    for ((name, before), (_, after)) in first.iter().zip(last) {
        // The student's targets move with the teacher.
        let share = if *name == "student" { 1.0 } else { 0.8 };
        assert!(*after < share * before, "{name} went from {before} to {after}");
    }
}

fn optimization() -> Optimization {
    Optimization {
        batch_size: 4,
        grad_accum_steps: 1,
        lr: LrSchedule {
            peak: 1e-2,
            warmup_steps: 0.0,
            warmup_from: 1.0,
            end: 0.5,
            decay: Decay::Cosine,
        },
        weight_decay: WeightDecay { start: 0.0, end: 0.0 },
        adamw: AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8 },
        matrices: Matrices::AdamW {},
        max_grad_norm: 2.0,
        ema: 0.0,
    }
}

/// The parts of the loss at every step of a training.
fn trained<A, M>(
    model: M::InnerModule,
    layout: &'static Layout,
    steps: u64,
    precision: Precision,
    loss: impl Fn(&M, SeedTree) -> Terms<A> + Sync,
) -> Vec<Vec<(&'static str, f64)>>
where
    A: AutodiffBackend,
    M: burn::module::AutodiffModule<A>,
    M::InnerModule: Module<Inner<A>> + Send,
{
    let mut learner = Learner::<A, M>::new("model", model, layout, &optimization(), precision);
    let mut history = Vec::new();
    for step in 0..steps {
        let draws = SeedTree::new(20).at(step);
        let sum = learner.accumulate(vec![()], 1, |model, ()| (loss(model, draws), ()));
        let sum = sum.expect("alone");
        history.push(sum.parts.into_iter().map(|(name, x)| (name, floats(x)[0])).collect());
        learner.update(sum.gradients, (step, steps)).expect("alone");
    }
    history
}

/// Images of the tiny world: image `i` always has the same class and tokens.
fn token_batch<B: Backend>(images: std::ops::Range<usize>, device: &B::Device) -> TokenBatch<B> {
    token_batch_of(images, |_| tiny::CODES, device)
}

/// As [`token_batch`], where a scale of a size has so many codes.
fn token_batch_of<B: Backend>(
    images: std::ops::Range<usize>,
    n_codes: impl Fn(ScaleSize) -> usize,
    device: &B::Device,
) -> TokenBatch<B> {
    let schedule: ScaleSchedule = "1_2_2x3".parse().expect("a valid schedule");
    let l = schedule.n_tokens();
    let sizes = schedule.sizes().iter();
    let limits: Vec<usize> =
        sizes.flat_map(|size| std::iter::repeat_n(n_codes(*size), size.tokens())).collect();
    let stream = SeedTree::new(21);
    let tokens: Vec<i64> = images
        .clone()
        .flat_map(|i| {
            let of_image = stream.at(i as u64);
            let drawn = limits.iter().enumerate();
            drawn.map(move |(t, limit)| of_image.below(t as u64, *limit) as i64)
        })
        .collect();
    TokenBatch {
        labels: images.clone().map(|i| i % tiny::CLASSES).collect(),
        streams: images.clone().map(|i| stream.at(i as u64)).collect(),
        tokens_bl: Tensor::<B, 2, Int>::from_data(
            TensorData::new(tokens, [images.len(), l]),
            device,
        ),
        schedule,
    }
}
