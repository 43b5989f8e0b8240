//! Hand-written operators for CPUs: each a [`Kernel`](kernel::Kernel) on slices, run on the tensors
//! of `burn-flex`.

mod adamw;
mod attention;
mod bottleneck;
mod conv;
mod cross_entropy;
mod depthwise;
mod filtered;
mod gelu;
mod gemm;
mod group_norm;
mod kernel;
mod layer_norm;
mod level;
mod linear;
mod resize;
mod rows;
mod simd;
#[cfg(test)]
mod testing;

use burn::tensor::{Int, Tensor, backend::Backend};

use self::kernel::{from_values, primitive, read, run, run_in_place};
use crate::visible::Seen;
use crate::{AdamWStep, AttentionConfig, GroupNormConfig};

pub(crate) use self::attention::cached_attention;
pub(crate) use self::kernel::{serves, serves_untracked};
pub use self::level::CpuLevel;

pub(crate) fn linear<B: Backend>(
    x_ri: Tensor<B, 2>,
    weight_io: Tensor<B, 2>,
    bias_o: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let ([rows, inputs], [_, outputs]) = (x_ri.dims(), weight_io.dims());
    let tensors = [primitive(x_ri), primitive(weight_io), primitive(bias_o)];
    run(linear::Linear { inputs, outputs }, tensors, [rows, outputs])
}

pub(crate) fn filtered<B: Backend>(
    logits_rv: Tensor<B, 2>,
    top_k: Option<usize>,
    top_p: Option<f64>,
) -> Tensor<B, 2> {
    let shape = logits_rv.dims();
    let rows = filtered::Rows { cols: shape[1], top_k, top_p };
    from_values(read::<B, _, 1>([primitive(logits_rv)], |[x]| rows.filter(x)), shape)
}

pub(crate) fn gelu_tanh<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let shape = x.dims();
    run(gelu::Gelu, [primitive(x)], shape)
}

pub(crate) fn layer_norm_modulated<B: Backend>(
    x_rd: Tensor<B, 2>,
    scale_bd: Tensor<B, 2>,
    shift_bd: Tensor<B, 2>,
    epsilon: f64,
) -> Tensor<B, 2> {
    let (shape, [batch, dim]) = (x_rd.dims(), scale_bd.dims());
    let tensors = [primitive(x_rd), primitive(scale_bd), primitive(shift_bd)];
    run(layer_norm::LayerNorm { batch, dim, eps: epsilon as f32 }, tensors, shape)
}

pub(crate) fn gated_residual<B: Backend>(
    x_rd: Tensor<B, 2>,
    branch_rd: Tensor<B, 2>,
    gate_bd: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let (shape, [batch, _]) = (x_rd.dims(), gate_bd.dims());
    let tensors = [primitive(x_rd), primitive(branch_rd), primitive(gate_bd)];
    run(layer_norm::GatedResidual { batch }, tensors, shape)
}

pub(crate) fn attention<B: Backend>(
    qkv_r3d: Tensor<B, 2>,
    temperature_h: Tensor<B, 1>,
    seen: &Seen,
    config: AttentionConfig,
) -> Tensor<B, 2> {
    let [rows, d3] = qkv_r3d.dims();
    let kernel = attention::Windowed {
        attention: attention::Attention::new(config, rows, d3),
        seen: seen.clone(),
    };
    run(kernel, [primitive(qkv_r3d), primitive(temperature_h)], [rows, d3 / 3])
}

pub(crate) fn group_norm<B: Backend>(
    x_bchw: Tensor<B, 4>,
    gamma_c: Tensor<B, 1>,
    beta_c: Tensor<B, 1>,
    config: GroupNormConfig,
) -> Tensor<B, 4> {
    let shape = x_bchw.dims();
    let tensors = [primitive(x_bchw), primitive(gamma_c), primitive(beta_c)];
    run(of_groups(shape, config), tensors, shape)
}

/// Mean and variance of each group of each image, `[b groups, 1]`.
pub(crate) fn group_moments<B: Backend>(x_bchw: Tensor<B, 4>, groups: usize) -> [Tensor<B, 2>; 2] {
    let shape = x_bchw.dims();
    let kernel = of_groups(shape, GroupNormConfig { groups, epsilon: 0.0, silu: false });
    let moments = read::<B, _, 1>([primitive(x_bchw)], |[x]| kernel.moments(x));
    moments.map(|moments| from_values(moments, [shape[0] * groups, 1]))
}

pub(crate) fn group_norm_by<B: Backend>(
    x_bchw: Tensor<B, 4>,
    moments_r1: [Tensor<B, 2>; 2],
    parameters_c: [Tensor<B, 1>; 2],
    config: GroupNormConfig,
) -> Tensor<B, 4> {
    let shape = x_bchw.dims();
    let kernel = of_groups(shape, config);
    let ([mean_r1, variance_r1], [gamma_c, beta_c]) = (moments_r1, parameters_c);
    let [x, mean, variance] = [primitive(x_bchw), primitive(mean_r1), primitive(variance_r1)];
    let inputs = [x, mean, variance, primitive(gamma_c), primitive(beta_c)];
    let y = read::<B, _, 5>(inputs, |[x, mean, variance, gamma, beta]| {
        kernel.forward_by([x, gamma, beta], [mean, variance])
    });
    from_values(y, shape)
}

fn of_groups(
    [batch, channels, height, width]: [usize; 4],
    config: GroupNormConfig,
) -> group_norm::GroupNorm {
    group_norm::GroupNorm {
        batch,
        channels,
        spatial: height * width,
        groups: config.groups,
        eps: config.epsilon as f32,
        silu: config.silu,
    }
}

pub(crate) fn conv2d<B: Backend>(
    x_bchw: Tensor<B, 4>,
    weight_ockl: Tensor<B, 4>,
    bias_o: Tensor<B, 1>,
    stride: usize,
    pad: [usize; 4],
) -> Tensor<B, 4> {
    let ([batch, c_in, height, width], [c_out, _, k, l]) = (x_bchw.dims(), weight_ockl.dims());
    let kernel = [k, l];
    let conv = conv::Conv { batch, c_in, c_out, height, width, kernel, stride, pad };
    let [out_height, out_width] = conv.out_size();
    let tensors = [primitive(x_bchw), primitive(weight_ockl), primitive(bias_o)];
    run(conv, tensors, [batch, c_out, out_height, out_width])
}

pub(crate) fn inverted_bottleneck<B: Backend>(
    x_bchw: Tensor<B, 4>,
    expand: Option<(Tensor<B, 4>, Tensor<B, 1>)>,
    depthwise: (Tensor<B, 4>, Tensor<B, 1>),
    project: (Tensor<B, 4>, Tensor<B, 1>),
    (stride, pad, is_residual): (usize, [usize; 4], bool),
) -> Tensor<B, 4> {
    let ([batch, c_in, height, width], [channels, _, _, kernel]) =
        (x_bchw.dims(), depthwise.0.dims());
    let [c_out, ..] = project.0.dims();
    let depthwise_conv = depthwise::Depthwise { channels, height, width, kernel, stride, pad };
    let [out_height, out_width] = depthwise_conv.out_size();
    let bottleneck =
        bottleneck::Bottleneck { batch, c_in, c_out, depthwise: depthwise_conv, is_residual };
    let shape = [batch, c_out, out_height, out_width];
    let x = primitive(x_bchw);
    let [d, of_d] = [primitive(depthwise.0), primitive(depthwise.1)];
    let [p, of_p] = [primitive(project.0), primitive(project.1)];
    match expand {
        None => run(bottleneck, [x, d, of_d, p, of_p], shape),
        Some((weight, bias)) => {
            let inputs = [x, primitive(weight), primitive(bias), d, of_d, p, of_p];
            run(bottleneck, inputs, shape)
        }
    }
}

pub(crate) fn double_sides<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    let [b, c, h, w] = x_bchw.dims();
    run(resize::Double { width: w }, [primitive(x_bchw)], [b, c, 2 * h, 2 * w])
}

pub(crate) fn cross_entropy<B: Backend>(
    logits_rv: Tensor<B, 2>,
    target_r: Tensor<B, 1, Int>,
    smoothing: f64,
) -> Tensor<B, 1> {
    let [rows, classes] = logits_rv.dims();
    let targets: Vec<i64> = target_r.into_data().convert::<i64>().into_vec().expect("integers");
    let all = 0..classes as i64;
    assert!(targets.iter().all(|target| all.contains(target)), "targets within {classes} classes");
    let kernel = cross_entropy::Hard { targets, smoothing: smoothing as f32 };
    run(kernel, [primitive(logits_rv)], [rows])
}

pub(crate) fn soft_cross_entropy<B: Backend>(
    logits_rv: Tensor<B, 2>,
    target_logits_rv: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let [rows, classes] = logits_rv.dims();
    let targets = target_logits_rv.detach();
    run(cross_entropy::Soft { classes }, [primitive(logits_rv), primitive(targets)], [rows])
}

pub(crate) fn adamw<B: Backend>(
    p_n: Tensor<B, 1>,
    moments_n: [Tensor<B, 1>; 2],
    g_n: Tensor<B, 1>,
    factor_1: Tensor<B, 1>,
    step: AdamWStep,
) -> (Tensor<B, 1>, [Tensor<B, 1>; 2]) {
    let [mean, square] = moments_n;
    let inputs = [primitive(g_n), primitive(factor_1)];
    let ((), [p_n, mean, square]) =
        run_in_place(inputs, [p_n, mean, square], |[g, factor], [p, mean, square]| {
            adamw::step(p, mean, square, g, factor[0], step);
        });
    (p_n, [mean, square])
}

pub(crate) fn sum_of_squares<B: Backend>(x_n: Tensor<B, 1>) -> Tensor<B, 1> {
    from_values(vec![read::<B, _, 1>([primitive(x_n)], |[x]| adamw::sum_of_squares(x))], [1])
}
