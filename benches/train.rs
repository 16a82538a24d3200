//! 64 runs of cells of E1, one after another and stacked, as a table. And what the trace costs at its default interval: of one
//! run of such a cell, of eight stacked, and of `induction`.
//!
//! `cargo bench --bench train` does all; with `-- --table` only the table, which it prints and writes to
//! `benches/results/train.md`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::time::Instant;

use common::processor_seconds;
use criterion::{BatchSize, Criterion, criterion_group};
use headscope::lab::experiment::Training;
use headscope::lab::train::TraceOptions;
use headscope::lab::{Declaration, Experiment, Grid, TrainOptions, Trainer};

const RUNS: u64 = 64;
const STEPS: usize = 10;
const ROUNDS: usize = 15;

fn one_layer(cell: &str) -> Training {
    Experiment::named("E1", Grid::Full).unwrap().training(cell).unwrap().clone()
}

fn trainer(of: &Training, seeds: &[u64]) -> Trainer {
    let mut trainer = Trainer::with_seeds(&of.model, &of.language, &of.train, seeds).unwrap();
    trainer.train_to(2).unwrap();
    trainer
}

fn steps(trainer: &mut Trainer, n: usize) {
    trainer.train_to(trainer.step() + n).unwrap();
}

/// Seconds of the clock, and seconds that the threads of this process have computed.
#[derive(Clone, Copy)]
struct Spent {
    clock: f64,
    processor: f64,
}

fn timed(work: impl FnOnce()) -> Spent {
    let (start, before) = (Instant::now(), processor_seconds());
    work();
    Spent { clock: start.elapsed().as_secs_f64(), processor: processor_seconds() - before }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The runs one after another and stacked take turns: what each of `rounds` rounds took. Threads of workers that have
/// ended no longer count as the process's, so the processor seconds of stacked runs are taken on one thread.
fn rounds(of: &Training, rounds: usize) -> Vec<[Spent; 3]> {
    let seeds: Vec<u64> = (0..RUNS).collect();
    let mut singles: Vec<Trainer> = seeds.iter().map(|seed| trainer(of, &[*seed])).collect();
    let mut stacked = trainer(of, &seeds);
    let on = |threads: i32, all: &mut [Trainer]| {
        tch::set_num_threads(threads);
        timed(|| all.iter_mut().for_each(|one| steps(one, STEPS)))
    };
    let each = |_| {
        let stack = std::slice::from_mut(&mut stacked);
        [on(2, &mut singles), on(2, stack), on(1, stack)]
    };
    (0..rounds).map(each).collect()
}

fn table() {
    headscope::device::tune_process();
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let mut out = format!(
        "# {RUNS} runs stacked beside one after another\n\nWritten by `cargo bench --bench train -- --table`. Cells of E1 (one attention-only layer of d_model 44, batches of 64, float32), two cores of an {}.\nMedians of {ROUNDS} rounds of {STEPS} steps, in which the three take turns. A single run of a model this small uses one thread, whatever libtorch may use.\n\n| cell | one after another (s) | stacked, two threads (s) | of the time | stacked, one thread (processor s) | of the processor time | run-steps a second and core |\n|---|---:|---:|---:|---:|---:|---:|\n",
        processor.map_or("unknown processor", |(_, name)| name),
    );
    for cell in ["gated-heads4-width11", "gated-heads4-width4", "gated-heads4-width44"] {
        let found = rounds(&one_layer(cell), ROUNDS);
        let of = |each: &dyn Fn(&[Spent; 3]) -> f64| median(found.iter().map(each));
        writeln!(
            out,
            "| {cell} | {:.3} | {:.3} | 1/{:.2} | {:.3} | 1/{:.2} | {:.0} |",
            of(&|round| round[0].clock),
            of(&|round| round[1].clock),
            of(&|round| round[0].clock / round[1].clock),
            of(&|round| round[2].processor),
            of(&|round| round[0].processor / round[2].processor),
            of(&|round| (RUNS as usize * STEPS) as f64 / round[2].processor),
        )
        .unwrap();
    }
    print!("{out}");
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/train.md"), out).unwrap();
}

/// As many steps as lie between two measurements, with one measurement and with none.
fn trace(c: &mut Criterion) {
    headscope::device::tune_process();
    tch::set_num_threads(1);
    let (of, induction) = (one_layer("gated-heads4-width11"), Declaration::named("induction").unwrap());
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

criterion_group!(benches, trace);

fn main() {
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    if !asked("--table") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
    // `cargo test --benches` asks whether it starts.
    if !asked("--test") {
        table();
    }
}
