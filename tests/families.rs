//! Checkpoints of every family and variant, saved by transformers, compute what transformers computes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Tol, assert_close, fixture, read_tensors, tokens_of};
use headscope::checkpoint::LoadOptions;
use headscope::model::{Model, Plan, Site};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

/// The folders of the checkpoints that `fixtures/make_families.py` has made.
fn folders() -> Vec<PathBuf> {
    let only = std::env::var("HEADSCOPE_FAMILY").ok();
    let all = fs::read_dir(fixture("families")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| only.as_ref().is_none_or(|only| name(path) == only)).collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

fn load(folder: &Path, kind: Kind) -> headscope::Result<Model> {
    Model::load_with(folder.to_str().unwrap(), &LoadOptions { kind, ..LoadOptions::default() })
}

/// Every golden tensor of the folder beside what the model computes, with and without the fused attention kernel, which
/// computes no pattern.
fn compare(folder: &Path, kind: Kind) {
    let (model, golden) = (load(folder, kind).unwrap(), read_tensors(&folder.join("golden.safetensors")));
    let tokens = tokens_of(&golden["tokens"]);
    let sites: Vec<Site> = golden.keys().filter_map(|key| key.parse().ok()).collect();
    assert!(sites.len() > model.config().n_layers, "{}: the golden file holds only {sites:?}", name(folder));
    let fused: Vec<Site> = sites.iter().copied().filter(|site| !matches!(site, Site::Pattern(_))).collect();
    for (how, sites) in [("", &sites), (", fused", &fused)] {
        let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        for &site in sites {
            let what = format!("{} {site}{how}, {kind:?}", name(folder));
            let tol = if kind == Kind::Double { Tol::Model(kind) } else { Tol::of(model.config(), kind) };
            assert_close(&what, run.get(site).unwrap(), &golden[&site.to_string()], tol);
        }
    }
}

/// Runs `check` on every folder, and reports all that fail.
fn on_all(check: impl Fn(&Path)) {
    let failed: Vec<String> = folders()
        .iter()
        .filter(|folder| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(folder))).is_err())
        .map(|folder| name(folder).to_owned())
        .collect();
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
}

#[test]
fn float64_is_transformers_float64() {
    on_all(|folder| compare(folder, Kind::Double));
}

#[test]
fn float32_is_within_rounding() {
    on_all(|folder| compare(folder, Kind::Float));
}

/// The same config in the words of transformers before version 5; `None` if there is no other way to say it.
fn old_dialect(config: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut old = config.clone();
    if config.get("model_type") == Some(&json!("modernbert")) {
        return None; // its old dialect is another one: tests/encoders.rs
    }
    let rope = old.remove("rope_parameters")?;
    let mut rope = rope.as_object()?.clone();
    if let (Some(local), Some(global)) = (rope.get("sliding_attention"), rope.get("full_attention")) {
        old.insert("rope_local_base_freq".into(), local["rope_theta"].clone());
        rope = global.as_object()?.clone();
    }
    let neox = config["model_type"] == "gpt_neox";
    let keys = if neox { ["rotary_emb_base", "rotary_pct"] } else { ["rope_theta", "partial_rotary_factor"] };
    for (new, own) in ["rope_theta", "partial_rotary_factor"].iter().zip(keys) {
        rope.remove(*new).map(|value| old.insert(own.into(), value));
    }
    let kind = rope.remove("rope_type")?;
    rope.insert("type".into(), kind.clone());
    old.insert("rope_scaling".into(), if kind == "default" { Value::Null } else { json!(rope) });
    Some(old)
}

#[test]
fn both_dialects_say_the_same() {
    on_all(|folder| {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let Some(old) = old_dialect(config.as_object().unwrap()) else { return };
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
        fs::write(copy.path().join("config.json"), json!(old).to_string()).unwrap();
        let tokens = tokens_of(&read_tensors(&folder.join("golden.safetensors"))["tokens"]);
        let logits = |folder: &Path| -> Tensor {
            let run = load(folder, Kind::Double).unwrap().run(&tokens, &Plan::new()).unwrap();
            run.logits().unwrap().shallow_clone()
        };
        assert_close(name(folder), &logits(copy.path()), &logits(folder), Tol::Exact);
    });
}
