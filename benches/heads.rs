//! Pattern scores of all heads at GPT-2 small's width and a third of its depth (random weights, 100 prompts of 32 tokens)
//! beside the forward pass alone.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{gpt2_small, prompts};
use criterion::{Criterion, criterion_group, criterion_main};
use headscope::heads::{PatternOptions, pattern_scores};
use headscope::model::{Model, Plan, Site};

fn heads(c: &mut Criterion) {
    headscope::device::tune_process();
    let model = Model::random(&gpt2_small(4), 0).unwrap();
    let tokens = prompts(100, 32, 0);
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
