//! Pattern scores of all heads at GPT-2 small's width and a third of its depth (random weights, 100 prompts of 32 tokens)
//! beside the forward pass alone.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use headscope::heads::{PatternOptions, pattern_scores};
use headscope::model::{Model, ModelConfig, Plan, Site, Tokens};

fn heads(c: &mut Criterion) {
    headscope::device::tune_process();
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
    let rows: Vec<Vec<i64>> = (0..100).map(|b| (0..32).map(|p| (b * 6007 + p * 911) % 50_257).collect()).collect();
    let tokens = Tokens::new(&rows).unwrap();
    let mut group = c.benchmark_group("gpt2_small_4_layers_100x32");
    group.sample_size(10);
    let end = || Plan::new().tap(Site::ResidPost(3));
    group.bench_function("the forward pass alone, without logits", |b| b.iter(|| model.run(&tokens, &end()).unwrap()));
    group.bench_function("pattern scores of every head", |b| {
        b.iter(|| pattern_scores(&model, &tokens, &PatternOptions::default()).unwrap())
    });
    group.finish();
}

criterion_group!(benches, heads);
criterion_main!(benches);
