//! Every estimator of information on every distribution of known information: bias, spread, time and flags.
//!
//! `cargo bench --bench information` writes `benches/results/information.md` (closed forms, neighbours, bins) and
//! `benches/results/information_trained.md` (probes and critics); with `-- --classical` or `-- --trained` only that one.
//! `cargo bench --bench information -- --speed` times the two cases that `information_peers.py` holds against Python.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::time::Instant;

use headscope::information::{
    Certainty, Estimate, ProbeFamily, ProbeOptions, Truth, Warning, mutual_information, v_information,
};
use headscope::neural::{NeuralOptions, neural_information};

const CLASSICAL: [&str; 6] = ["ksg", "ksg2", "lnc", "gaussian", "cca", "binned"];
const TRAINED: [&str; 5] = ["vinfo", "vinfo-mlp", "infonce", "nwj", "mine"];

fn main() {
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    if asked("--speed") {
        return speed();
    }
    let all = !asked("--classical") && !asked("--trained");
    if all || asked("--classical") {
        let what = "Closed forms, neighbours and bins; default options.\n20, 4 and 1 draws of 500, 5,000 and 50,000 samples. Neighbours of \
            50,000 samples in more than 10 dimensions\ntogether are left out: they take minutes and are flagged at any size. The local \
            correction needs more neighbours (15)\nthan dimensions together.";
        write("information.md", what, &CLASSICAL, [(500, 20), (5000, 4), (50_000, 1)]);
    }
    if all || asked("--trained") {
        let what = "What a linear probe (vinfo) and a network of 16 hidden units (vinfo-mlp) can use of x to predict y, coordinate by\ncoordinate: \
            of one dimension at most the information; and lower bounds from trained critics (infonce, nwj, mine), held out.\n3, 2 and 1 \
            draws of 500, 5,000 and 50,000 samples, the last for vinfo and infonce only. NaN: there was no answer.";
        write("information_trained.md", what, &TRAINED, [(500, 3), (5000, 2), (50_000, 1)]);
    }
}

/// Writes the table of some estimators at some (samples, draws of them).
fn write(name: &str, what: &str, estimators: &[&str], sizes: [(usize, u64); 3]) {
    let mut report = format!(
        "# Information: estimates against the truth\n\n\
         Written by `cargo bench --bench information`. {what}\n\
         In nats; bias, and spread (standard deviation) over the draws; time of one estimate without its interval (the fastest, \
         on a machine\nthat did other work, too). `flagged`: of the first two draws, those that carry a warning not to take the \
         estimate for a fact\n(of 50,000 samples and for critics without the check that halves say the same).\nThe truths are those of Czyż et al. 2023, \"Beyond Normal\".\n\n\
         | distribution | truth | estimator | samples | bias | spread | ms | flagged |\n|---|---|---|---|---|---|---|---|\n"
    );
    for truth in Truth::all() {
        let together = truth.dimensions() * 2;
        for estimator in estimators {
            for (n, draws) in sizes {
                let neighbours = ["ksg", "ksg2", "lnc"].contains(estimator);
                let slow = ["vinfo-mlp", "nwj", "mine"].contains(estimator);
                if (neighbours && n > 5000 && together > 10)
                    || (*estimator == "lnc" && together >= 15)
                    || (slow && n > 5000)
                {
                    continue;
                }
                let line = row(&truth, estimator, n, draws);
                println!("{line}");
                writeln!(report, "{line}").unwrap();
            }
        }
    }
    std::fs::write(format!("{}/benches/results/{name}", env!("CARGO_MANIFEST_DIR")), report).unwrap();
}

/// One estimate, alone or with what is needed to judge it.
fn estimate(truth: &Truth, name: &str, n: usize, seed: u64, judged: bool) -> headscope::Result<Estimate> {
    let (x, y) = truth.sample(n, seed)?;
    let (x, y) = (x.view(), y.view());
    match name {
        "vinfo" | "vinfo-mlp" => {
            let family = if name == "vinfo" { ProbeFamily::Linear } else { ProbeFamily::Network { hidden: 16 } };
            v_information(x, y, &ProbeOptions { family, convergence: judged, ..ProbeOptions::default() }, seed)
        }
        "infonce" | "nwj" | "mine" => {
            let options = NeuralOptions { bound: name.parse()?, convergence: false, ..NeuralOptions::default() };
            neural_information(x, y, &options, seed)
        }
        _ => {
            let certainty = if judged { Certainty { halves: 8, ..Certainty::default() } } else { Certainty::NONE };
            mutual_information(x, y, &name.parse()?, &certainty, seed)
        }
    }
}

fn row(truth: &Truth, name: &str, n: usize, draws: u64) -> String {
    let nats = truth.information().unwrap();
    let mut found = vec![];
    let (mut seconds, mut flagged, mut judged) = (f64::INFINITY, 0, 0);
    for seed in 0..draws {
        let start = Instant::now();
        let alone = estimate(truth, name, n, seed, false);
        seconds = seconds.min(start.elapsed().as_secs_f64());
        found.push(alone.as_ref().map_or(f64::NAN, Estimate::nats));
        if seed < 2 {
            let same = TRAINED[2..].contains(&name) || n > 5000;
            let again = if same { alone } else { estimate(truth, name, n, seed, true) };
            flagged += u32::from(again.is_ok_and(|found| found.warnings.iter().any(Warning::is_fatal)));
            judged += 1;
        }
    }
    let mean = found.iter().sum::<f64>() / draws as f64;
    let spread = (found.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (draws as f64 - 1.0)).sqrt();
    let spread = if draws > 1 { format!("{spread:.4}") } else { "-".to_owned() };
    let (bias, ms) = (mean - nats, 1e3 * seconds);
    format!("| {truth} | {nats:.4} | {name} | {n} | {bias:+.4} | {spread} | {ms:.1} | {flagged} of {judged} |")
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
