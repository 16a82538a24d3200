//! Ablating every head of a small model: the engine against one whole forward pass a variant.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use headscope::intervene::{Ablation, Metric, Strategy, Sweep};
use headscope::model::{Model, ModelConfig, Tokens};

fn sweep(c: &mut Criterion) {
    let config = ModelConfig {
        n_layers: 6,
        d_model: 384,
        n_heads: 12,
        n_kv_heads: 12,
        d_head: 32,
        d_mlp: 1536,
        vocab: 10_000,
        ..ModelConfig::default()
    };
    let model = Model::random(&config, 0).unwrap();
    let rows: Vec<Vec<i64>> = (0..8).map(|b| (0..16).map(|p| (b * 6007 + p * 911) % 10_000).collect()).collect();
    let tokens = Tokens::new(&rows).unwrap();
    let mut group = c.benchmark_group("zero_every_head_6x12_8x16");
    group.sample_size(10);
    for (name, metric) in [("logit difference", Metric::logit_difference(3, 5)), ("loss", Metric::Loss)] {
        for strategy in [Strategy::Auto, Strategy::Naive] {
            let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(metric.clone()).strategy(strategy);
            group.bench_with_input(BenchmarkId::new(name, format!("{strategy:?}")), &sweep, |b, sweep| {
                b.iter(|| sweep.run().unwrap())
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sweep);
criterion_main!(benches);
