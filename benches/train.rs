//! Ten steps of 64 runs of the one-layer experiment (E1, `gated-heads4-width11`): one after another, and stacked, on one thread
//! and on two.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use headscope::lab::experiment::{Training, Work};
use headscope::lab::{Experiment, Grid, Trainer};

const RUNS: u64 = 64;
const STEPS: usize = 10;

fn one_layer() -> Training {
    let experiment = Experiment::named("E1", Grid::Small).unwrap();
    match &experiment.cell("gated-heads4-width11").unwrap().work {
        Work::Training(training) => (**training).clone(),
        _ => unreachable!("E1 trains"),
    }
}

fn trainer(of: &Training, seeds: &[u64]) -> Trainer {
    let mut trainer = Trainer::with_seeds(&of.model, &of.language, &of.train, seeds).unwrap();
    trainer.train_to(2).unwrap();
    trainer
}

fn step(trainer: &mut Trainer) {
    trainer.train_to(trainer.step() + STEPS).unwrap();
}

fn train(c: &mut Criterion) {
    let of = one_layer();
    let seeds: Vec<u64> = (0..RUNS).collect();
    let mut group = c.benchmark_group("64 runs of one layer, 10 steps");
    group.sample_size(10);
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        group.bench_function(format!("one after another, {threads} threads"), |b| {
            let singles = || seeds.iter().map(|seed| trainer(&of, &[*seed])).collect::<Vec<_>>();
            b.iter_batched(singles, |mut all| all.iter_mut().for_each(step), BatchSize::PerIteration);
        });
        group.bench_function(format!("stacked, {threads} threads"), |b| {
            b.iter_batched(|| trainer(&of, &seeds), |mut all| step(&mut all), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, train);
criterion_main!(benches);
