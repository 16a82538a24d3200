//! Every estimator of information on every distribution of known information: bias, spread, time and flags.
//!
//! `cargo bench --bench information` writes `benches/results/information.md` (closed forms, neighbours, bins) and
//! `benches/results/information_trained.md` (probes and critics); with `-- --classical` or `-- --trained` only that one, and with
//! `--only NAME` it prints the rows of the distributions with NAME in theirs, and writes nothing.
//! `cargo bench --bench information -- --speed` times the two cases that `information_peers.py` holds against Python, and
//! `-- --scaling` writes `benches/results/information_scaling.md`: time against the number of samples and of threads.
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
    if asked("--scaling") {
        return scaling();
    }
    let all = !asked("--classical") && !asked("--trained");
    if all || asked("--classical") {
        let what = "Closed forms, neighbours and bins; default options.\n20, 4 and 1 draws of 500, 5,000 and 50,000 samples. `flagged`: \
            of the first two draws, those that carry a warning not to\ntake the estimate for a fact; quarters and halves of the samples are \
            looked at, too, but for neighbours in more\nthan 10 dimensions together, of 50,000 samples. \
            The local correction needs more neighbours (15) than\ndimensions together.";
        write("information.md", what, &CLASSICAL, &[(500, 20), (5000, 4), (50_000, 1)]);
    }
    if all || asked("--trained") {
        let what = "What a linear probe (vinfo) and a network of 16 hidden units (vinfo-mlp) can use of x to predict y, coordinate by\ncoordinate: \
            of one dimension at most the information; and lower bounds from trained critics (infonce, nwj, mine), held out.\n3 and 2 \
            draws of 500 and 5,000 samples, a critic trained for at most 1,000 steps: sizes for ten minutes on one thread. \
            NaN: there\nwas no answer. `flagged`: of the first two draws, those that carry a warning not to take the estimate for a fact \
            (of critics,\nwithout the one trained on half of the samples). `above`: of all draws, those whose 95 % interval lies above \
            the truth, which\na lower bound's should in one of 40.";
        write("information_trained.md", what, &TRAINED, &[(500, 3), (5000, 2)]);
    }
}

/// Neighbours of many samples in many dimensions take minutes: they are not asked again.
fn is_slow(name: &str, n: usize, together: usize) -> bool {
    n > 5000 && ["ksg", "ksg2"].contains(&name) && together > 10
}

/// Writes the table of some estimators at some (samples, draws of them).
fn write(name: &str, what: &str, estimators: &[&str], sizes: &[(usize, u64)]) {
    let mut report = format!(
        "# Information: estimates against the truth\n\n\
         Written by `cargo bench --bench information`. {what}\n\
         In nats; bias, and spread (standard deviation) over the draws; time of one estimate without its interval (the fastest, \
         on a machine\nthat did other work, too).\nThe truths are those of Czyż et al. 2023, \"Beyond Normal\".\n\n\
         | distribution | truth | estimator | samples | bias | spread | ms | flagged | above |\n|---|---|---|---|---|---|---|---|---|\n"
    );
    let only = std::env::args().skip_while(|argument| argument != "--only").nth(1);
    for truth in Truth::all() {
        if only.as_ref().is_some_and(|name| !truth.to_string().contains(name)) {
            continue;
        }
        let together = truth.dimensions() * 2;
        for estimator in estimators {
            for &(n, draws) in sizes {
                if *estimator == "lnc" && together >= 15 {
                    continue;
                }
                let line = row(&truth, estimator, n, draws);
                println!("{line}");
                writeln!(report, "{line}").unwrap();
            }
        }
    }
    if only.is_none() {
        save(name, &report);
    }
}

fn save(name: &str, report: &str) {
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
            let options =
                NeuralOptions { bound: name.parse()?, convergence: false, steps: 1000, ..NeuralOptions::default() };
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
    let critic = TRAINED[2..].contains(&name);
    let mut found = vec![];
    let (mut seconds, mut flagged, mut judged, mut above) = (f64::INFINITY, 0, 0, 0);
    for seed in 0..draws {
        let start = Instant::now();
        let alone = estimate(truth, name, n, seed, false);
        seconds = seconds.min(start.elapsed().as_secs_f64());
        found.push(alone.as_ref().map_or(f64::NAN, Estimate::nats));
        above +=
            u32::from(alone.as_ref().is_ok_and(|found| found.interval.is_some_and(|interval| interval.low > nats)));
        if seed < 2 {
            let same = critic || is_slow(name, n, 2 * truth.dimensions());
            let again = if same { alone } else { estimate(truth, name, n, seed, true) };
            flagged += u32::from(again.is_ok_and(|found| found.warnings.iter().any(Warning::is_fatal)));
            judged += 1;
        }
    }
    let mean = found.iter().sum::<f64>() / draws as f64;
    let spread = (found.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (draws as f64 - 1.0)).sqrt();
    let spread = if draws > 1 { format!("{spread:.4}") } else { "-".to_owned() };
    let above = if critic { format!("{above} of {draws}") } else { "-".to_owned() };
    let (bias, ms) = (mean - nats, 1e3 * seconds);
    format!(
        "| {truth} | {nats:.4} | {name} | {n} | {bias:+.4} | {spread} | {ms:.1} | {flagged} of {judged} | {above} |"
    )
}

/// The fastest of some estimates by KSG-1 from `n` samples with so many threads, in seconds.
fn fastest(truth: &Truth, n: usize, threads: usize, repeats: usize) -> f64 {
    let (x, y) = truth.sample(n, 0).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let estimator = "ksg".parse().unwrap();
    let once = |_| {
        let start = Instant::now();
        pool.install(|| mutual_information(x.view(), y.view(), &estimator, &Certainty::NONE, 0)).unwrap();
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(once).fold(f64::INFINITY, f64::min)
}

fn threads() -> impl Iterator<Item = usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    [1, 2, 4, 8, 16].into_iter().filter(move |threads| *threads <= cores)
}

/// Writes how the time of KSG-1 grows with the number of samples, and falls with that of threads.
fn scaling() {
    let mut report = String::from(
        "# Information: time of KSG-1 against samples and threads\n\nWritten by `cargo bench --bench information -- --scaling`. \
         k = 5, one estimate without its interval, the fastest of 3.\n`power`: p if the time grew as N^p since the line above; N log N is \
         about 1.1. `gain`: one thread's time over this one's.\n\n| case | samples | threads | ms | us a sample | power | gain \
         |\n|---|---|---|---|---|---|---|\n",
    );
    for (case, truth) in [("1 x 1", Truth::Normal { rho: 0.75 }), ("5 x 5", Truth::Dense { n: 5, rho: 0.5 })] {
        let mut before: Vec<(usize, f64)> = vec![];
        for n in [1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000] {
            let now: Vec<(usize, f64)> = threads().map(|threads| (n, fastest(&truth, n, threads, 3))).collect();
            for (i, threads) in threads().enumerate() {
                let seconds = now[i].1;
                let power = before.get(i).map_or("-".to_owned(), |(fewer, faster)| {
                    format!("{:.2}", (seconds / faster).ln() / (n as f64 / *fewer as f64).ln())
                });
                let (ms, each, gain) = (1e3 * seconds, 1e6 * seconds / n as f64, now[0].1 / seconds);
                let line = format!("| {case} | {n} | {threads} | {ms:.2} | {each:.2} | {power} | {gain:.2} |");
                println!("{line}");
                writeln!(report, "{line}").unwrap();
            }
            before = now;
        }
    }
    save("information_scaling.md", &report);
}

/// Prints seconds of one estimate: 1 x 1 with 20,000 samples, 5 x 5 with 10,000; best of several, by number of threads.
fn speed() {
    for (case, truth, n) in
        [("1x1", Truth::Normal { rho: 0.75 }, 20_000), ("5x5", Truth::Dense { n: 5, rho: 0.5 }, 10_000)]
    {
        threads().for_each(|threads| println!("{case} {threads} {:.6}", fastest(&truth, n, threads, 10)));
    }
}
