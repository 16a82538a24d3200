//! `headscope lab train` as a user runs it: a killed run goes on to the same bytes, the trace is what was asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use headscope::lab::Declaration;
use headscope::model::Model;
use headscope::table::Table;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headscope"));
    command.args(["lab", "train"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn done(arguments: &[&str]) -> Output {
    let output = command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The declaration of `induction`, of a model that trains in seconds.
fn declaration(folder: &Path) -> String {
    let mut tiny = Declaration::named("induction").unwrap();
    (tiny.model.d_model, tiny.model.d_head, tiny.model.n_heads, tiny.model.n_kv_heads) = (8, 4, 2, 2);
    (tiny.train.batch, tiny.train.steps, tiny.train.warmup) = (2, 1200, 10);
    let path = folder.join("tiny.json");
    std::fs::write(&path, serde_json::to_vec(&tiny).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn metrics(folder: &Path) -> BTreeSet<String> {
    let rows = Table::read(folder.join("trace.parquet")).unwrap().rows().unwrap();
    rows.into_iter().map(|row| row.metric).collect()
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = declaration(folder.path());
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let arguments = |out: &Path| [tiny.clone(), "--out".to_owned(), out.to_str().unwrap().to_owned()];
    let run = |out: &Path, more: &[&str]| {
        let own = arguments(out);
        let all: Vec<&str> = own.iter().map(String::as_str).chain(more.iter().copied()).collect();
        done(&all)
    };
    run(&whole, &[]);
    let own = arguments(&killed);
    let mut child = command(&own.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
    let begun = Instant::now();
    while !killed.join("training.safetensors").exists() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no save in two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    run(&killed, &["--resume"]);
    for file in ["trace.parquet", "trace.parquet.provenance.json", "model.safetensors", "training.safetensors"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(&whole) == read(&killed), "{file} differs");
    }
    for metric in ["loss", "held_out_loss", "role", "shapley", "gradient_norm", "interference", "cka", "effective_rank"]
    {
        assert!(metrics(&whole).contains(metric), "{metric}");
    }
    assert_eq!(Model::load(whole.to_str().unwrap()).unwrap().config().d_model, 8);
}

#[test]
fn the_trace_is_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (tiny, out) = (declaration(folder.path()), folder.path().join("out"));
    let out = out.to_str().unwrap();
    done(&[&tiny, "--out", out, "--steps", "20", "--trace-every", "0"]);
    assert_eq!(metrics(Path::new(out)), BTreeSet::from(["accuracy".to_owned(), "loss".to_owned()]));
    done(&[&tiny, "--out", out, "--steps", "20", "--trace-every", "10", "--trace", "ranks,patterns"]);
    let found = metrics(Path::new(out));
    assert!(
        found.contains("effective_rank") && found.contains("jensen_shannon") && !found.contains("role"),
        "{found:?}"
    );
    let failed = command(&[&tiny, "--out", out, "--trace", "nothing"]).output().unwrap();
    let error = String::from_utf8(failed.stderr).unwrap();
    assert!(failed.status.code() == Some(2) && error.contains("shapley, roles"), "{error}");
    let failed = command(&[&tiny, "--out", out, "--steps", "30", "--resume"]).output().unwrap();
    let error = String::from_utf8(failed.stderr).unwrap();
    let named = ["was started", "train.steps 20", "train.steps 30", "train.trace.every 10", "every 200"];
    assert!(failed.status.code() == Some(2) && named.iter().all(|part| error.contains(part)), "{error}");
}
