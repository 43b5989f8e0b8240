//! The chain on the CPU backend, at the shapes of `emoji-quick`.

use std::hint::black_box;
use std::time::Duration;

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::backend::Backend;
use burn_flex::Flex;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use sar_bench::Subject;
use sar_exchange::{Group, MicroBatches, threads};
use sar_model::Precision;
use sar_train::Recipe;
use sar_train::learner::Learner;
use sar_train::step::Terms;
use sar_train::wire::Wire;
use sar_weights::Layout;

const BATCH: usize = 16;

fn tokenizer(c: &mut Criterion) {
    let mut subject = Subject::<Autodiff<Flex>>::new(Default::default());
    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Elements(BATCH as u64));
    let images = subject.images(BATCH);
    group.bench_function("encode", |b| b.iter(|| black_box(subject.encode(images.clone()))));
    let tokens = subject.encode(images.clone());
    group.bench_function("decode", |b| b.iter(|| black_box(subject.decode(tokens.clone()))));
    for workers in [1, 2] {
        group.bench_function(BenchmarkId::new("train step, workers", workers), |b| {
            b.iter(|| subject.tokenizer_step(images.clone(), workers));
        });
    }
    group.finish();
}

fn backbone(c: &mut Criterion) {
    let mut subject = Subject::<Autodiff<Flex>>::new(Default::default());
    let mut group = c.benchmark_group("backbone");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("sample, guided", |b| b.iter(|| black_box(subject.sample(BATCH))));
    let tokens = subject.encode(subject.images(BATCH));
    for (name, is_sar) in [("teacher-forcing step, workers", false), ("SAR step, workers", true)] {
        for workers in [1, 2] {
            group.bench_function(BenchmarkId::new(name, workers), |b| {
                b.iter(|| subject.backbone_step(tokens.clone(), is_sar, workers));
            });
        }
    }
    group.finish();
}

/// Eight layers of a million weights each.
#[derive(Module, Debug)]
struct Layers<B: Backend> {
    layers: Vec<Linear<B>>,
}

type Exchanging = Learner<Autodiff<Flex>, Layers<Autodiff<Flex>>>;

/// A step that is little but the exchange of its gradients and weights, on ranks that are threads: what ranks cost
/// through memory, without a link.
fn exchange(c: &mut Criterion) {
    const LAYOUT: Layout = Layout { renames: &[], ignored: &[] };
    let recipe = Recipe::load("emoji-quick", &[]).expect("a valid recipe");
    let mut bench = c.benchmark_group("exchange of 8 M gradients and weights");
    let kinds = [(1, Wire::F32), (2, Wire::F32), (2, Wire::Bf16), (4, Wire::F32)];
    for (ranks, wire) in kinds {
        let groups = match ranks {
            1 => vec![Group::alone()],
            _ => threads(ranks, Duration::from_secs(60)),
        };
        let learner = |group: &Group| {
            let layer = || LinearConfig::new(1000, 1000).with_bias(false).init(&Default::default());
            let model = Layers::<Flex> { layers: (0..8).map(|_| layer()).collect() };
            let settings = &recipe.pretrain.optimization;
            let learner = Exchanging::new("layers", model, &LAYOUT, settings, Precision::F32);
            (learner.among(group, wire), group.clone())
        };
        let mut learners: Vec<_> = groups.iter().map(learner).collect();
        let loss = |model: &Layers<Autodiff<Flex>>, ()| {
            let sums = model.layers.iter().map(|layer| layer.weight.val().sum());
            let loss = sums.reduce(|a, b| a + b).expect("some layers");
            (Terms { loss, parts: Vec::new(), scales: Vec::new() }, ())
        };
        let step = |(learner, group): &mut (Exchanging, Group)| {
            let share = group.share(ranks);
            let inputs = MicroBatches::new(vec![(); share.len()], share);
            let sum = learner.accumulate(inputs, 1, loss).expect("all ranks are there");
            learner.update(sum.gradients, (0, 100)).expect("all ranks are there");
        };
        bench.bench_function(BenchmarkId::new(format!("{wire}, ranks"), ranks), |b| {
            b.iter(|| {
                std::thread::scope(|scope| {
                    for learner in &mut learners {
                        scope.spawn(|| step(learner));
                    }
                });
            });
        });
    }
    bench.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(8));
    targets = tokenizer, backbone, exchange
}

fn main() {
    // As the programs do.
    sar_memory::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
