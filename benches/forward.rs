//! One forward pass at GPT-2 small's shape (random weights, 8 prompts of 16 tokens): bare, and with taps.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use headscope::model::{Model, ModelConfig, Plan, Site, Tokens};

/// GPT-2 small's shape.
fn gpt2_small() -> ModelConfig {
    ModelConfig {
        family: "gpt2 small's shape".into(),
        n_layers: 12,
        d_model: 768,
        n_heads: 12,
        n_kv_heads: 12,
        d_head: 64,
        d_mlp: 3072,
        vocab: 50_257,
        n_positions: 1024,
        tied_unembed: true,
        ..ModelConfig::default()
    }
}

fn forward(c: &mut Criterion) {
    headscope::device::tune_process();
    let model = Model::random(&gpt2_small(), 0).unwrap();
    let rows: Vec<Vec<i64>> = (0..8).map(|b| (0..16).map(|p| (b * 6007 + p * 911) % 50_257).collect()).collect();
    let tokens = Tokens::new(&rows).unwrap();
    type Make = fn() -> Plan;
    let plans: [(&str, Make); 4] = [
        ("logits", || Plan::new()),
        ("last residual only", || Plan::new().tap(Site::ResidPost(11))),
        ("all patterns", || Plan::new().taps((0..12).map(Site::Pattern)).tap(Site::Logits)),
        ("all sites", || Plan::new().taps(Site::all(&gpt2_small()))),
    ];
    let mut group = c.benchmark_group("forward_gpt2_small_8x16");
    group.sample_size(10);
    for (name, plan) in plans {
        group.bench_function(name, |b| b.iter(|| model.run(&tokens, &plan()).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
