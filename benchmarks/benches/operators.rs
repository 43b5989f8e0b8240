//! Operators one by one, as the CPU backend serves them, at the shapes of depth 16 and 256 px.
//!
//! `forward` is timed without a tape, `with gradients` with one, the backward pass and the sum that it
//! starts from included. Matrix products, convolutions and attention count floating-point operations,
//! everything else bytes of its largest tensor (AdamW: of all four), so `floor` has the rates that both
//! can be held against: a bare matrix product and a bare copy.

use std::hint::black_box;
use std::time::Duration;

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Int, Tensor};
use burn_flex::Flex;
use criterion::{Criterion, Throughput, criterion_group};
use sar_core::{Filter, ScaleSchedule, ScaleSize, resample};
use sar_kernels::{
    AdamWStep, AttentionConfig, GroupNormConfig, KeyValueCache, Visible, adamw, attention, conv2d,
    cross_entropy, double_sides, gated_residual, gelu_tanh, group_norm, layer_norm_modulated,
    linear, soft_cross_entropy, sum_of_squares,
};
use sar_rollout::{Filters, draw};

type A = Autodiff<Flex>;

/// Tokens of the ten scales at 256 px.
const TOKENS: usize = 680;
const BATCH: usize = 2;
const ROWS: usize = TOKENS * BATCH;
const DIM: usize = 1024;
const HEADS: usize = 16;
const CODES: usize = 8912;
/// No inputs of a second rank.
const NONE: [[usize; 1]; 0] = [];

/// Values in [-1, 1].
fn random<const D: usize>(shape: [usize; D]) -> Tensor<A, D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Default::default())
}

/// The same on the backend without a tape.
fn plain<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    random(shape).inner()
}

fn bytes(elements: usize) -> Throughput {
    Throughput::Bytes(4 * elements as u64)
}

/// Times an operator of inputs of two ranks, and its gradients by all of them.
fn operator<const P: usize, const Q: usize, const R: usize, const N: usize, const M: usize>(
    c: &mut Criterion,
    name: &str,
    work: impl Fn(u64) -> Throughput,
    (left, right): ([[usize; P]; N], [[usize; Q]; M]),
    run: impl Fn([Tensor<A, P>; N], [Tensor<A, Q>; M]) -> Tensor<A, R>,
) {
    let mut group = c.benchmark_group(name);
    let (left, right) = (left.map(random), right.map(random));
    group.throughput(work(1));
    group.bench_function("forward", |b| {
        b.iter(|| black_box(run(left.clone(), right.clone())));
    });
    group.throughput(work(3));
    let left = left.map(Tensor::require_grad);
    let right = right.map(Tensor::require_grad);
    group.bench_function("with gradients", |b| {
        b.iter(|| black_box(run(left.clone(), right.clone()).sum().backward()));
    });
    group.finish();
}

fn floor(c: &mut Criterion) {
    let mut group = c.benchmark_group("floor");
    let (x, weight) = (plain([ROWS, DIM]), plain([DIM, 4 * DIM]));
    group.throughput(Throughput::Elements(8 * (ROWS * DIM * DIM) as u64));
    group.bench_function("matrix product", |b| {
        b.iter(|| black_box(x.clone().matmul(weight.clone())));
    });
    let from = vec![1.0f32; 1 << 25];
    let mut to = from.clone();
    group.throughput(Throughput::Bytes(8 << 25));
    group.bench_function("copy, read and written bytes", |b| {
        b.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
    group.finish();
}

fn transformer(c: &mut Criterion) {
    let products = |inputs: usize, outputs: usize| {
        move |passes| Throughput::Elements(passes * 2 * (ROWS * inputs * outputs) as u64)
    };
    for (name, [i, o]) in [
        ("linear, queries keys values", [DIM, 3 * DIM]),
        ("linear, up", [DIM, 4 * DIM]),
        ("linear, down", [4 * DIM, DIM]),
        ("linear, head", [DIM, CODES]),
    ] {
        let shapes = ([[ROWS, i], [i, o]], [[o]]);
        operator(c, name, products(i, o), shapes, |[x, w], [bias]| linear(x, w, bias));
    }
    let schedule = ScaleSchedule::preset("256px").expect("a known preset");
    let seen_from = |first: fn(usize) -> usize| {
        schedule.ranges().flat_map(move |range| vec![first(range.start)..range.end; range.len()])
    };
    let config = AttentionConfig { batch: BATCH, heads: HEADS, normalize: true };
    for (name, first) in
        [("attention", (|_| 0) as fn(usize) -> usize), ("attention, own scale", |start| start)]
    {
        let seen: usize = seen_from(first).map(|range| range.len()).sum();
        let visible = Visible::new(1, seen_from(first));
        // Two products forward; five backward, of which the scores are computed again.
        let flops = |passes: u64| {
            let products = if passes == 1 { 2 } else { 7 };
            Throughput::Elements((products * 2 * BATCH * seen * DIM) as u64)
        };
        operator(c, name, flops, ([[ROWS, 3 * DIM]], [[HEADS]]), |[qkv], [temperature]| {
            attention(qkv, temperature, &visible, config)
        });
    }
    let rows = ([[ROWS, DIM], [BATCH, DIM], [BATCH, DIM]], NONE);
    operator(
        c,
        "layer norm, modulated",
        |_| bytes(ROWS * DIM),
        rows,
        |[x, scale, shift], []| layer_norm_modulated(x, scale, shift, 1e-6),
    );
    let rows = ([[ROWS, DIM], [ROWS, DIM], [BATCH, DIM]], NONE);
    operator(
        c,
        "gated residual",
        |_| bytes(ROWS * DIM),
        rows,
        |[x, branch, gate], []| gated_residual(x, branch, gate),
    );
    let rows = ([[ROWS, 4 * DIM]], NONE);
    operator(c, "gelu", |_| bytes(4 * ROWS * DIM), rows, |[x], []| gelu_tanh(x));

    let mut group = c.benchmark_group("cached attention");
    group.throughput(bytes(ROWS * 3 * DIM));
    let (qkv, temperature) = (plain([ROWS, 3 * DIM]), plain([HEADS]));
    group.bench_function("all scales", |b| {
        b.iter(|| {
            let mut cache = KeyValueCache::new(config, 1, TOKENS);
            for range in schedule.ranges() {
                let rows = qkv.clone().slice(range.start * BATCH..range.end * BATCH);
                black_box(cache.attend(rows, temperature.clone(), range.end));
            }
        });
    });
    group.finish();
}

fn tokenizer(c: &mut Criterion) {
    for [channels, side] in [[128, 256], [256, 64], [512, 16]] as [[usize; 2]; 3] {
        let shape = [1, channels, side, side];
        let flops =
            |passes| Throughput::Elements(passes * 18 * u64::pow((channels * side) as u64, 2));
        let name = format!("convolution, {channels} channels, {side} px");
        let shapes = ([shape, [channels, channels, 3, 3]], [[channels]]);
        operator(c, &name, flops, shapes, |[x, weight], [bias]| conv2d(x, weight, bias, 1, [1; 4]));
        let config = GroupNormConfig { groups: 32, epsilon: 1e-6, silu: true };
        let name = format!("group norm and silu, {channels} channels, {side} px");
        let shapes = ([shape], [[channels]; 2]);
        operator(
            c,
            &name,
            |_| bytes(channels * side * side),
            shapes,
            |[x], [gamma, beta]| group_norm(x, gamma, beta, config),
        );
    }
    let shapes = ([[1, 128, 128, 128]], NONE);
    operator(c, "doubled sides", |_| bytes(128 << 16), shapes, |[x], []| double_sides(x));
    let (shapes, size) = (([[BATCH, 32, 16, 16]], NONE), ScaleSize::square(13));
    operator(
        c,
        "resampling",
        |_| bytes(BATCH << 13),
        shapes,
        |[x], []| resample(x, size, Filter::Area),
    );
}

fn objectives(c: &mut Criterion) {
    let targets: Tensor<A, 1, Int> = Tensor::arange(0..ROWS as i64, &Default::default());
    let logits = || ([[ROWS, CODES]], NONE);
    operator(
        c,
        "cross-entropy",
        |_| bytes(ROWS * CODES),
        logits(),
        |[x], []| cross_entropy(x, targets.clone(), 0.0),
    );
    let target = random([ROWS, CODES]);
    operator(
        c,
        "soft cross-entropy",
        |_| bytes(ROWS * CODES),
        logits(),
        |[x], []| soft_cross_entropy(x, target.clone()),
    );
}

fn rollout(c: &mut Criterion) {
    let mut group = c.benchmark_group("rollout");
    let (logits, uniforms) = (plain([ROWS, CODES]), plain([ROWS]).abs());
    group.throughput(bytes(ROWS * CODES));
    let filters = Filters { top_k: 900, top_p: 0.96 };
    group.bench_function("filters", |b| b.iter(|| black_box(filters.apply(logits.clone()))));
    group.bench_function("draw", |b| b.iter(|| black_box(draw(logits.clone(), uniforms.clone()))));
    group.bench_function("argmax", |b| b.iter(|| black_box(logits.clone().argmax(1))));
    group.finish();
}

fn optimizer(c: &mut Criterion) {
    let mut group = c.benchmark_group("optimizer");
    let n = 12 * DIM * DIM;
    let (gradient, factor) = (plain([n]), plain([1]));
    let step =
        AdamWStep { beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.0, rate: 1e-4, correction: 1.0 };
    let mut state = Some((plain([n]), [plain([n]).abs(), plain([n]).abs()]));
    group.throughput(bytes(4 * n));
    group.bench_function("adamw, a block", |b| {
        b.iter(|| {
            let (parameter, moments) = state.take().expect("put back by every step");
            state = Some(adamw(parameter, moments, gradient.clone(), factor.clone(), step));
        });
    });
    group.throughput(bytes(n));
    group.bench_function("sum of squares, a block", |b| {
        b.iter(|| black_box(sum_of_squares(gradient.clone())));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = floor, transformer, tokenizer, objectives, rollout, optimizer
}

fn main() {
    // As the programs do.
    sar_memory::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
