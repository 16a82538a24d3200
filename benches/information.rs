//! Every estimator of information on every distribution of known information: bias, spread and time.
//!
//! `cargo bench --bench information` prints the table and writes it to `benches/results/information.md`;
//! `cargo bench --bench information -- --speed` times the two cases that `information_peers.py` holds against Python.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::time::Instant;

use headscope::information::{Certainty, Estimator, Truth, mutual_information};

/// (samples, draws of them)
const SIZES: [(usize, u64); 3] = [(500, 20), (5000, 8), (50_000, 2)];

const ESTIMATORS: [&str; 5] = ["ksg", "ksg2", "gaussian", "cca", "binned"];

fn main() {
    if std::env::args().any(|argument| argument == "--speed") {
        return speed();
    }
    let mut report = String::from(
        "# Information: estimates against the truth\n\n\
         Written by `cargo bench --bench information`. Nats; bias and spread (standard deviation) over 20, 8 and 2 draws of 500,\n\
         5,000 and 50,000 samples; time of one estimate without its interval. Default options. Neighbours of 50,000 samples in\n\
         more than 10 dimensions together are left out: they take minutes and say nothing. `flagged`: estimates that carry a\n\
         warning. The truths are those of Czyż et al. 2023, \"Beyond Normal\".\n\n\
         | distribution | truth | estimator | samples | bias | spread | ms | flagged |\n|---|---|---|---|---|---|---|---|\n",
    );
    for truth in Truth::all() {
        let nats = truth.information().unwrap();
        for name in ESTIMATORS {
            let estimator: Estimator = name.parse().unwrap();
            for (n, draws) in SIZES {
                if n > 5000 && name.starts_with("ksg") && 2 * truth.dimensions() > 10 {
                    continue;
                }
                let line = row(&truth, nats, &estimator, n, draws);
                println!("{line}");
                writeln!(report, "{line}").unwrap();
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/information.md");
    std::fs::write(path, report).unwrap();
}

fn row(truth: &Truth, nats: f64, estimator: &Estimator, n: usize, draws: u64) -> String {
    let mut found = vec![];
    let (mut seconds, mut flagged) = (f64::INFINITY, 0);
    for seed in 0..draws {
        let (x, y) = truth.sample(n, seed).unwrap();
        let start = Instant::now();
        let estimate = mutual_information(x.view(), y.view(), estimator, &Certainty::NONE, seed).unwrap();
        seconds = seconds.min(start.elapsed().as_secs_f64());
        flagged += u32::from(estimate.warnings.iter().any(|warning| warning.is_fatal()));
        found.push(estimate.nats());
    }
    let mean = found.iter().sum::<f64>() / draws as f64;
    let spread = (found.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (draws - 1) as f64).sqrt();
    let (name, bias, ms) = (estimator.name(), mean - nats, 1e3 * seconds);
    format!("| {truth} | {nats:.4} | {name} | {n} | {bias:+.4} | {spread:.4} | {ms:.1} | {flagged} of {draws} |")
}

/// Prints seconds of one estimate: 1 x 1 with 20,000 samples, 5 x 5 with 10,000; best of several, by number of threads.
fn speed() {
    for (case, truth, n) in
        [("1x1", Truth::Normal { rho: 0.75 }, 20_000), ("5x5", Truth::Dense { n: 5, rho: 0.5 }, 10_000)]
    {
        let (x, y) = truth.sample(n, 0).unwrap();
        for threads in [1, 2, 4, 8, 16] {
            if threads > std::thread::available_parallelism().map_or(1, usize::from) {
                break;
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut best = f64::INFINITY;
            for _ in 0..10 {
                let start = Instant::now();
                let estimator = "ksg".parse().unwrap();
                pool.install(|| mutual_information(x.view(), y.view(), &estimator, &Certainty::NONE, 0)).unwrap();
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!("{case} {threads} {best:.6}");
        }
    }
}
