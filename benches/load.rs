//! What it takes to load GPT-2 small's shape from float32 and from float16: memory beside the weights', and time.
//!
//! `cargo bench --bench load`. Each loading has a process of its own, whose peak the kernel counts.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use headscope::model::{Model, ModelConfig};
use tch::{Kind, Tensor};

/// Where a process of its own finds the folder that it is to load.
const FOLDER: &str = "HEADSCOPE_BENCH_LOAD";

/// GPT-2 small's shape with some more positions: 540 MB of float32.
fn config() -> ModelConfig {
    ModelConfig { n_positions: 14_500, ..common::gpt2_small(12) }
}

/// A line of this process' status, in MB.
fn status(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// Loads a model and prints its weights' size, the peak beside what was there before, and the seconds.
fn load(folder: &str) {
    headscope::device::tune_process();
    // What libtorch needs for itself is there before anything is counted.
    let small = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/checkpoints/tiny-gpt2");
    drop(Model::load(small).unwrap());
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak is counted from here on
    let (before, start) = (status("VmRSS:"), Instant::now());
    let model = Model::load(folder).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let weights = (model.n_parameters() * model.kind().elt_size_in_bytes()) as f64 / 1e6;
    println!("{weights} {} {seconds}", status("VmHWM:") - before);
}

/// Writes the same weights in half precision beside them.
fn halve(whole: &Path, half: &Path) {
    let tensors = Tensor::read_safetensors(whole.join("model.safetensors")).unwrap();
    let tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::Half))).collect();
    Tensor::write_safetensors(&tensors, half.join("model.safetensors")).unwrap();
    std::fs::copy(whole.join("config.json"), half.join("config.json")).unwrap();
}

fn main() {
    // `cargo test --benches` asks whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if let Ok(folder) = std::env::var(FOLDER) {
        return load(&folder);
    }
    let (whole, half) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Model::random(&config(), 0).unwrap().save(whole.path()).unwrap();
    halve(whole.path(), half.path());
    let mut out = String::from(
        "# Loading a checkpoint\n\nWritten by `cargo bench --bench load`. GPT-2 small's shape with 14,500 positions, random weights, into float32 on the CPU. Peak: the most that the process held at a time, less what it held before; the largest and the fastest of three processes, the files in the system's cache.\n\n| stored as | weights in the model (MB) | peak (MB) | of the weights | seconds |\n|---|---:|---:|---:|---:|\n",
    );
    for (name, folder) in [("float32", &whole), ("float16", &half)] {
        let (mut weights, mut peak, mut seconds) = (0.0, 0.0, f64::INFINITY);
        for _ in 0..3 {
            let own = std::env::current_exe().unwrap();
            let done = std::process::Command::new(own).env(FOLDER, folder.path()).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let text = String::from_utf8_lossy(&done.stdout);
            let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
            (weights, peak, seconds) = (numbers[0], f64::max(peak, numbers[1]), f64::min(seconds, numbers[2]));
        }
        let row = format!("| {name} | {weights:.0} | {peak:.0} | {:.2} | {seconds:.2} |", peak / weights);
        println!("{row}");
        writeln!(out, "{row}").unwrap();
    }
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/load.md"), out).unwrap();
}
