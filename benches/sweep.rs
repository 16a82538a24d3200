//! How fast the engine is, and what it takes.
//!
//!     cargo bench --bench sweep
//!
//! At GPT-2 small's shape (random weights, 8 prompts of 16 tokens): the time of whole sweeps, and which share of the
//! machine's own rate at a large matrix product the engine reaches on the least arithmetic, the multiplications that
//! `Sweep::explain` counts. Then how time grows with layers, heads, positions, prompts and width; and how much memory a
//! sweep takes beside its budget. Rates are of processor seconds of one thread, which a busy machine disturbs least, and of
//! the clock with all threads. Prints the tables and writes them to benches/results/sweep.md;
//! `HEADSCOPE_BENCH_THREADS=1` leaves the latter out, `HEADSCOPE_BENCH_NAIVE=1` adds the loop over whole passes, which takes minutes.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fmt::Write;
use std::time::Instant;

use common::{gpt2_small, prompts};
use headscope::intervene::{Ablation, Every, Metric, Strategy, Sweep};
use headscope::model::{Model, ModelConfig, Site, Tokens};
use tch::{Device, Kind, Tensor};

/// Seconds of the clock, or of this process' threads.
#[derive(Clone, Copy)]
struct Spent {
    clock: f64,
    processor: f64,
}

/// Seconds that this process' threads have computed, as Linux counts them.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field).and_then(|n| n.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

fn timed(mut work: impl FnMut()) -> Spent {
    let (start, before) = (Instant::now(), processor_seconds());
    work();
    Spent { clock: start.elapsed().as_secs_f64(), processor: processor_seconds() - before }
}

/// The machine's own rate at a large float32 product, in G multiplications a second of clock and of processor; the best of
/// several, by either of libtorch's two libraries for it.
fn rate() -> Spent {
    let (rows, inner, columns) = (2048i64, 768i64, 3072i64);
    let make = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let (left, right) = (make([rows, inner]), make([inner, columns]));
    let giga = 6.0 * (rows * inner * columns) as f64 / 1e9;
    let mut best = Spent { clock: 0.0, processor: 0.0 };
    let (mkl, turned) = (|| drop(left.matmul(&right)), right.tr().contiguous());
    let input = left.g_to_mkldnn(None);
    let onednn = || drop(input.mkldnn_linear(&turned, None::<Tensor>));
    for _ in 0..3 {
        for product in [&mkl as &dyn Fn(), &onednn] {
            let spent = timed(|| (0..6).for_each(|_| product()));
            best.clock = best.clock.max(giga / spent.clock);
            best.processor = best.processor.max(giga / spent.processor.max(0.01));
        }
    }
    best
}

/// The best of `rounds` runs of a sweep, its G multiplications, and the machine's rate measured around them.
fn measured(sweep: &Sweep<'_>, rounds: usize) -> (Spent, f64, Spent) {
    let needed = sweep.explain().unwrap().needed / 1e9;
    let mut own = rate();
    let mut best = Spent { clock: f64::INFINITY, processor: f64::INFINITY };
    for _ in 0..rounds {
        let spent = timed(|| drop(sweep.run().unwrap()));
        best.clock = best.clock.min(spent.clock);
        best.processor = best.processor.min(spent.processor);
        let again = rate();
        own.clock = own.clock.max(again.clock);
        own.processor = own.processor.max(again.processor);
    }
    (best, needed, own)
}

/// Every head zeroed in turn.
fn heads<'a>(model: &'a Model, tokens: &'a Tokens) -> Sweep<'a> {
    Sweep::ablate(model, tokens, Ablation::Zero).metric(Metric::logit_difference(3, 5))
}

/// Whole sweeps at GPT-2 small's shape.
fn whole(out: &mut String, cores: i32) {
    let (model, tokens) = (Model::random(&gpt2_small(12), 0).unwrap(), prompts(8, 16, 0));
    let sweeps = || {
        [
            ("z, every head; logit difference", heads(&model, &tokens)),
            (
                "resid_pre, every layer x position; logit difference",
                heads(&model, &tokens).each(Site::ResidPre, Every::Position),
            ),
            ("z, every head; loss of all positions", heads(&model, &tokens).metric(Metric::Loss)),
            (
                "scores, every edge of the last query; logit difference",
                Sweep::knock_out(&model, &tokens)
                    .metric(Metric::logit_difference(3, 5))
                    .only(|keys| keys.query == Some(15)),
            ),
        ]
    };
    let naive = std::env::var_os("HEADSCOPE_BENCH_NAIVE").is_some();
    out.push_str("## Whole sweeps\n\n");
    out.push_str("| sweep | variants | threads | seconds | processor seconds | G multiplications | of the loop | rate (G/s) | the machine's own | share |\n");
    out.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    for threads in if cores > 1 { vec![1, cores] } else { vec![1] } {
        tch::set_num_threads(threads);
        for (name, sweep) in sweeps() {
            let loops = sweep.explain().unwrap().naive / 1e9;
            let (spent, needed, own) = measured(&sweep, 1);
            // One thread's rate is of processor seconds: another process only takes turns with it.
            let (seconds, own) = if threads == 1 { (spent.processor, own.processor) } else { (spent.clock, own.clock) };
            let rate = needed / seconds;
            row(
                out,
                format!(
                    "| {name} | {} | {threads} | {:.2} | {:.2} | {needed:.0} | 1/{:.1} | {rate:.1} | {own:.1} | {:.0} % |",
                    sweep.planned().len(),
                    spent.clock,
                    spent.processor,
                    loops / needed,
                    100.0 * rate / own
                ),
            );
            if naive {
                let sweep = sweep.strategy(Strategy::Naive);
                let slow = timed(|| drop(sweep.run().unwrap()));
                row(
                    out,
                    format!(
                        "| the same, one whole pass a variant | | {threads} | {:.2} | {:.2} | {loops:.0} | | | | |",
                        slow.clock, slow.processor
                    ),
                );
            }
        }
    }
}

fn row(out: &mut String, row: String) {
    println!("{row}");
    writeln!(out, "{row}").unwrap();
}

/// Every head zeroed, at other sizes: one thread, processor seconds.
fn scaling(out: &mut String) {
    tch::set_num_threads(1);
    out.push_str("\n## Scaling\n\nEvery head zeroed, logit difference; one thread, processor seconds. What is not said is 4 layers, 12 heads, width 768, 8 prompts of 16 tokens.\n\n");
    out.push_str("| | variants | processor seconds | G multiplications | of the loop | share of the machine's rate |\n|---|---:|---:|---:|---:|---:|\n");
    let mut one = |name: String, config: &ModelConfig, tokens: &Tokens| {
        let model = Model::random(config, 0).unwrap();
        let sweep = heads(&model, tokens);
        let loops = sweep.explain().unwrap().naive / 1e9;
        let (spent, needed, own) = measured(&sweep, 1);
        row(
            out,
            format!(
                "| {name} | {} | {:.2} | {needed:.1} | 1/{:.1} | {:.0} % |",
                sweep.planned().len(),
                spent.processor,
                loops / needed,
                100.0 * needed / spent.processor.max(0.01) / own.processor
            ),
        );
    };
    for layers in [2, 4, 8] {
        one(format!("{layers} layers"), &gpt2_small(layers), &prompts(8, 16, 0));
    }
    for n_heads in [4, 12, 24] {
        let config = ModelConfig { n_heads, n_kv_heads: n_heads, d_head: 768 / n_heads, ..gpt2_small(4) };
        one(format!("{n_heads} heads"), &config, &prompts(8, 16, 0));
    }
    for positions in [4, 16, 64] {
        one(format!("{positions} positions"), &gpt2_small(4), &prompts(8, positions, 0));
    }
    for batch in [1, 8, 32] {
        one(format!("{batch} prompts"), &gpt2_small(4), &prompts(batch, 16, 0));
    }
    for width in [192, 384, 768, 1536] {
        let config = ModelConfig { d_model: width, d_head: width / 12, d_mlp: 4 * width, ..gpt2_small(4) };
        one(format!("width {width}"), &config, &prompts(8, 16, 0));
    }
}

/// A line of this process' status, in MiB.
fn status(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

/// The most that a sweep holds beside the model, each budget in a process of its own: what memory one took stays with it.
fn memory(out: &mut String) {
    out.push_str("\n## Memory\n\nz of 12 heads of 2 layers, 8 prompts of 64 tokens, one thread; the loss reads all logits. Peak: the most that the process held at a time, less what it held before.\n\n");
    out.push_str("| metric | budget (MiB) | prompts in parts | at once | peak (MiB) |\n|---|---:|---:|---:|---:|\n");
    let budgets = [16, 32, 64, 128, 256, 512];
    for (metric, budget) in ["logit_difference", "loss"].into_iter().flat_map(|m| budgets.map(|budget| (m, budget))) {
        let own = std::env::current_exe().unwrap();
        let done = std::process::Command::new(own).env(BUDGET, format!("{metric} {budget}")).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        row(out, String::from_utf8_lossy(&done.stdout).trim().to_owned());
    }
}

/// Where a process of its own finds the metric and the budget, in MiB, that it is to measure.
const BUDGET: &str = "HEADSCOPE_BENCH_BUDGET";

unsafe extern "C" {
    fn malloc_trim(pad: usize) -> std::ffi::c_int;
}

/// One row of that table.
fn memory_of(metric: &str, budget: usize) {
    let of = |name: &str| if name == "loss" { Metric::Loss } else { Metric::logit_difference(3, 5) };
    let (model, clean, corrupt) = (Model::random(&gpt2_small(2), 0).unwrap(), prompts(8, 64, 0), prompts(8, 64, 1));
    let sweep = |memory: usize| {
        let sweep = Sweep::patch(&model, &clean, &corrupt).metric(of(metric)).memory(memory);
        sweep.only(|keys| keys.head.is_some_and(|head| head < 6))
    };
    let warm = Sweep::ablate(&model, &clean, Ablation::Zero).only(|keys| keys.head == Some(0));
    drop(warm.memory(0).run().unwrap());
    // SAFETY: gives what is free in the heap back to the system, so that it is not taken for the sweep's.
    unsafe { malloc_trim(0) };
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak is counted from here on
    let before = status("VmRSS:");
    drop(sweep(budget << 20).run().unwrap());
    let peak = status("VmHWM:") - before;
    let plan = sweep(budget << 20).explain().unwrap();
    let at_once = plan.groups.iter().map(|group| group.at_once).max().unwrap_or(0);
    println!("| {metric} | {budget} | {} | {at_once} | {peak:.0} |", plan.parts);
}

fn main() {
    // `cargo test --benches` asks whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let asked = std::env::var("HEADSCOPE_BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    let cores = asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as i32));
    headscope::device::tune_process();
    tch::set_num_threads(1);
    if let Ok(asked) = std::env::var(BUDGET) {
        let (metric, budget) = asked.split_once(' ').unwrap();
        return memory_of(metric, budget.parse().unwrap());
    }
    let mut out = String::from(
        "# The sweep engine\n\nWritten by `cargo bench --bench sweep`. GPT-2 small's shape where nothing else is said, random weights, 8 prompts of 16 tokens, float32, CPU.\nOf the loop: the multiplications of one whole pass a variant, as a multiple. One thread's rates are of processor seconds, those of all threads of the clock; the machine's own is that of a product of 2048 x 768 with 768 x 3072 by MKL or oneDNN, whichever is faster, measured before and after each sweep.\n\n",
    );
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/sweep.md");
    // Each part is written as it is done.
    memory(&mut out);
    std::fs::write(file, &out).unwrap();
    out.push('\n');
    whole(&mut out, cores);
    std::fs::write(file, &out).unwrap();
    scaling(&mut out);
    std::fs::write(file, &out).unwrap();
    println!("written to {file}");
}
