//! The half of `benches/models_side_by_side.py` that is headscope: loads a checkpoint, then times what it is asked for.
//!
//! `models FOLDER` writes one JSON object a line: first the seconds to load and to the first logits, and the peak memory; then,
//! for each line that it reads (`forward`, `tapped` or `generate`), the seconds that this took. `cargo bench --bench models`
//! without a folder does nothing.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use common::{processor_seconds, prompts_of};
use headscope::model::{Model, Plan, Site, Tokens};
use serde_json::{Value, json};

/// The same prompts as the script's.
fn prompts(model: &Model, batch: i64, positions: i64) -> Tokens {
    prompts_of(model.config().vocab as i64, batch, positions, 0)
}

fn seconds(work: impl FnOnce() -> Value) -> Value {
    let (start, before) = (Instant::now(), processor_seconds());
    let found = work();
    json!({"seconds": start.elapsed().as_secs_f64(), "processor": processor_seconds() - before, "found": found})
}

/// The most memory that this process has held, in bytes, as Linux counts it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
}

/// The last logit, to see that both sides compute the same.
fn last(run: &headscope::model::Run) -> Value {
    json!(run.logits().unwrap().flatten(0, -1).double_value(&[-1]))
}

fn answer(model: &Model, asked: &str) -> Value {
    let tokens = prompts(model, 8, 64);
    match asked {
        "forward" => seconds(|| last(&model.run(&tokens, &Plan::new().tap(Site::Logits)).unwrap())),
        "tapped" => seconds(|| last(&model.run(&tokens, &Plan::new().taps(Site::all(model.config()))).unwrap())),
        "generate" => {
            let prompt = prompts(model, 1, 16);
            seconds(|| json!(model.generate(&prompt).max_new(64).run().unwrap().continuations[0].ids))
        }
        _ => json!({"error": format!("expected forward, tapped or generate, found `{asked}`")}),
    }
}

fn main() {
    let Some(folder) = std::env::args().nth(1).filter(|given| Path::new(given).is_dir()) else { return };
    headscope::device::tune_process();
    let before = peak();
    let mut loaded = None;
    let mut first = seconds(|| {
        let model = Model::load(&folder).unwrap();
        let run = model.run(&prompts(&model, 1, 16), &Plan::new().tap(Site::Logits)).unwrap();
        let found = last(&run);
        loaded = Some(model);
        found
    });
    first["before"] = json!(before);
    first["peak"] = json!(peak());
    println!("{first}");
    let model = loaded.unwrap();
    for line in std::io::stdin().lock().lines() {
        println!("{}", answer(&model, line.unwrap().trim()));
    }
}
