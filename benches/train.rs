//! Ten steps of 64 runs of the one-layer experiment (E1, `gated-heads4-width11`): one after another, and stacked, on one thread
//! and on two. And what the trace costs at its default interval: of one run of it, of eight stacked, and of `induction`.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use headscope::lab::experiment::{Training, Work};
use headscope::lab::train::TraceOptions;
use headscope::lab::{Declaration, Experiment, Grid, TrainOptions, Trainer};

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

fn steps(trainer: &mut Trainer, n: usize) {
    trainer.train_to(trainer.step() + n).unwrap();
}

fn runs(c: &mut Criterion) {
    headscope::device::tune_process();
    let of = one_layer();
    let seeds: Vec<u64> = (0..RUNS).collect();
    let mut group = c.benchmark_group("64 runs of one layer, 10 steps");
    group.sample_size(10);
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        group.bench_function(format!("one after another, {threads} threads"), |b| {
            let singles = || seeds.iter().map(|seed| trainer(&of, &[*seed])).collect::<Vec<_>>();
            b.iter_batched(
                singles,
                |mut all| all.iter_mut().for_each(|one| steps(one, STEPS)),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("stacked, {threads} threads"), |b| {
            b.iter_batched(|| trainer(&of, &seeds), |mut all| steps(&mut all, STEPS), BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// As many steps as lie between two measurements, with one measurement and with none.
fn trace(c: &mut Criterion) {
    headscope::device::tune_process();
    tch::set_num_threads(1);
    let (of, induction) = (one_layer(), Declaration::named("induction").unwrap());
    let eight: Vec<u64> = (0..8).collect();
    let cases = [
        ("one layer", &of.model, &of.language, &of.train, &eight[..1]),
        ("one layer, 8 runs", &of.model, &of.language, &of.train, &eight[..]),
        ("induction", &induction.model, &induction.language, &induction.train, &eight[..1]),
    ];
    let mut group = c.benchmark_group("trace");
    group.sample_size(10);
    for (name, model, language, train, seeds) in cases {
        for (what, trace) in [("untraced", None), ("traced", Some(TraceOptions::default()))] {
            let options = TrainOptions { trace, ..train.clone() };
            let start = || Trainer::with_seeds(model, language, &options, seeds).unwrap();
            let every = TraceOptions::default().every;
            group.bench_function(format!("{name}, {what}"), |b| {
                b.iter_batched(start, |mut trainer| steps(&mut trainer, every), BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, runs, trace);
criterion_main!(benches);
