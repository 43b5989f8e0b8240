//! The chain on the CPU backend, at the shapes of `emoji-quick`.

use std::hint::black_box;
use std::time::Duration;

use burn::backend::Autodiff;
use burn_flex::Flex;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use sar_bench::Subject;

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

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(8));
    targets = tokenizer, backbone
}

fn main() {
    // As the programs do.
    sar_memory::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
