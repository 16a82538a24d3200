//! Questions about the weights of GPT-2 small's shape (random weights, 12 layers x 12 heads, d_model 768): no forward pass.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use headscope::circuits::{Circuit, Circuits, Composition, Measure, Offset};
use headscope::heads::CircuitOptions;
use headscope::model::{Model, ModelConfig};
use ndarray_linalg::SVD;
use rayon::prelude::*;

fn heads() -> Circuits {
    let config = ModelConfig { d_mlp: 0, vocab: 50, ..common::gpt2_small(12) };
    Model::random(&config, 0).unwrap().circuits(&CircuitOptions::default()).unwrap()
}

fn circuits(c: &mut Criterion) {
    headscope::device::tune_process();
    let circuits = heads();
    let offset = Offset::default();
    let mut group = c.benchmark_group("circuits_gpt2_small");
    group.sample_size(10);
    let products = circuits.all(Circuit::Qk(offset)).unwrap();
    group.bench_function("QK, SVD of 144 heads", |b| {
        b.iter(|| products.par_iter().map(|qk| qk.svd().unwrap()).collect::<Vec<_>>());
    });
    let dense = products[0].left().dot(&products[0].right());
    group.bench_function("QK, dense SVD of one head", |b| b.iter(|| dense.svd(true, true).unwrap()));
    for kind in [Composition::Q, Composition::K, Composition::V] {
        group.bench_function(kind.name(), |b| b.iter(|| circuits.composition_scores(kind, offset).unwrap()));
    }
    for measure in [Measure::WriteOverlap, Measure::QkCosine] {
        group.bench_function(measure.name(), |b| b.iter(|| circuits.similarity(measure, offset).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, circuits);
criterion_main!(benches);
