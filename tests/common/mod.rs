//! What the tests share: tolerances and comparison with the worst index, fixtures and small random models.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod architectures;
pub mod reference;
pub mod samples;
mod tolerance;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use headscope::checkpoint::LoadOptions;
use headscope::model::{
    Activation, Model, ModelConfig, NormKind, NormPlace, Position, QkvBias, Rotary, Tokens, Unembed,
};
use tch::{Device, Kind, Tensor};

pub use tolerance::{
    Tol, assert_as_accurate, assert_close, assert_close_at, assert_near, assert_same, assert_zero, scale,
};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints").join(name)
}

pub fn load(name: &str, kind: Kind) -> Model {
    set_threads();
    let options = LoadOptions { kind, ..LoadOptions::default() };
    Model::load_with(fixture(name).to_str().unwrap(), &options).unwrap()
}

/// The variables by which `code_paths` asks for threads of libtorch's own, and for fewer cases of a property.
pub const THREADS: &str = "HEADSCOPE_TEST_THREADS";
pub const CASES: &str = "HEADSCOPE_TEST_CASES";

/// One thread: tests run side by side, and their models are too small to gain from more. `code_paths` asks for others.
fn set_threads() {
    tch::set_num_threads(std::env::var(THREADS).map_or(1, |threads| threads.parse().unwrap()));
}

/// How many random cases a property is held to.
pub fn cases(usual: u32) -> u32 {
    std::env::var(CASES).map_or(usual, |cases| cases.parse().unwrap())
}

/// The tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Rows of token ids.
pub fn tokens_of(ids: &Tensor) -> Tokens {
    let rows: Vec<Vec<i64>> = ids.unbind(0).into_iter().map(|row| Vec::try_from(row).unwrap()).collect();
    Tokens::new(&rows).unwrap()
}

/// The tokens of a golden file: `tokens`, with `source_tokens` in an encoder-decoder's.
pub fn golden_tokens(golden: &HashMap<String, Tensor>) -> Tokens {
    let tokens = tokens_of(&golden["tokens"]);
    match golden.get("source_tokens") {
        Some(source) => tokens.with_source(tokens_of(source)).unwrap(),
        None => tokens,
    }
}

/// Deterministic token ids below `vocab`.
pub fn some_tokens(batch: usize, positions: usize, vocab: usize, seed: usize) -> Tokens {
    let id = |i: usize| ((i * 7919 + seed * 104_729 + i * i * 31) % vocab) as i64;
    let rows: Vec<Vec<i64>> = (0..batch).map(|b| (0..positions).map(|p| id(b * positions + p)).collect()).collect();
    Tokens::new(&rows).unwrap()
}

/// Small configs that between them use every feature of the forward pass.
pub fn configs() -> Vec<ModelConfig> {
    let gpt2 = ModelConfig { family: "like gpt2".into(), n_layers: 3, ..ModelConfig::default() };
    let llama = ModelConfig {
        family: "like llama".into(),
        n_kv_heads: 2,
        norm: NormKind::Rms,
        position: Position::Rotary(Rotary::default()),
        activation: Activation::Silu,
        gated_mlp: true,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        mlp_bias: false,
        ..gpt2.clone()
    };
    let bert = ModelConfig {
        family: "like bert".into(),
        n_token_types: 2,
        causal: false,
        norm_place: NormPlace::Post,
        embed_norm: true,
        activation: Activation::Gelu,
        unembed: Unembed::MaskedLm,
        tied_unembed: true,
        ..gpt2.clone()
    };
    let attention_only = ModelConfig { family: "attention only".into(), d_mlp: 0, ..gpt2.clone() };
    let linear = ModelConfig { family: "no norms".into(), norm: NormKind::None, ..gpt2.clone() };
    vec![gpt2, llama, bert, attention_only, linear]
}

/// A float64 random model.
pub fn random(config: &ModelConfig, seed: u64) -> Model {
    set_threads();
    Model::random_as(config, seed, Kind::Double, Device::Cpu).unwrap()
}

/// Runs a command to its end, which must be a success, and returns the most memory that it held at a time, in MiB.
#[cfg(target_os = "linux")]
pub fn peak_memory(command: &mut std::process::Command) -> f64 {
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0.0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        most = f64::max(most, line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    most
}

/// The numbers of nested lists, in order.
pub fn flat(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(all) => all.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}
