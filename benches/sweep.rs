//! Sweeps at GPT-2 small's width and a third of its depth (random weights, 8 prompts of 16 tokens): the engine against one whole forward pass a
//! variant.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use headscope::intervene::{Ablation, Every, Metric, Strategy, Sweep};
use headscope::model::{Model, ModelConfig, Site, Tokens};

fn sweep(c: &mut Criterion) {
    let config = ModelConfig {
        n_layers: 4,
        d_model: 768,
        n_heads: 12,
        n_kv_heads: 12,
        d_head: 64,
        d_mlp: 3072,
        vocab: 50_257,
        tied_unembed: true,
        ..ModelConfig::default()
    };
    let model = Model::random(&config, 0).unwrap();
    let rows: Vec<Vec<i64>> = (0..8).map(|b| (0..16).map(|p| (b * 6007 + p * 911) % 50_257).collect()).collect();
    let tokens = Tokens::new(&rows).unwrap();
    let mut group = c.benchmark_group("gpt2_small_4_layers_8x16");
    group.sample_size(10);
    let difference = || Metric::logit_difference(3, 5);
    let ablate = || Sweep::ablate(&model, &tokens, Ablation::Zero);
    let sweeps = [
        ("z, every head, logit difference", ablate().metric(difference())),
        ("z, every head, loss", ablate().metric(Metric::Loss)),
        (
            "resid_pre, every layer and position, logit difference",
            ablate().each(Site::ResidPre, Every::Position).metric(difference()),
        ),
    ];
    for (name, sweep) in sweeps {
        // The naive loop takes minutes: `HEADSCOPE_BENCH_NAIVE=1` asks for it.
        let naive = std::env::var_os("HEADSCOPE_BENCH_NAIVE").map(|_| Strategy::Naive);
        let mut sweep = Some(sweep);
        for strategy in [Some(Strategy::Auto), naive].into_iter().flatten() {
            let with = sweep.take().map(|sweep| sweep.strategy(strategy)).unwrap();
            group.bench_with_input(BenchmarkId::new(name, format!("{strategy:?}")), &with, |b, sweep| {
                b.iter(|| sweep.run().unwrap())
            });
            sweep = Some(with);
        }
    }
    group.finish();
}

criterion_group!(benches, sweep);
criterion_main!(benches);
