//! What the tests share: the tolerance table, comparison with the worst index, fixtures and small random models.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod samples;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use headscope::checkpoint::LoadOptions;
use headscope::model::{Activation, Model, ModelConfig, NormKind, NormPlace, Position, RotaryScaling, Tokens, Unembed};
use tch::{Device, Kind, Tensor};

/// How far two computations of the same quantity may differ, by type and by what was computed. The only tolerances.
#[derive(Debug, Clone, Copy)]
pub enum Tol {
    /// The same formula in another order of summation, through a whole model.
    Model(Kind),
    /// A whole model with the fused attention kernel against one without: on the fixtures' large weights transformers'
    /// own float32 lies 1.7e-5 from its float64.
    Fused(Kind),
    /// One layer's identity.
    Layer(Kind),
    /// A derivative beside a fourth-order finite difference, float64.
    Difference,
    /// Bit for bit.
    Exact,
}

impl Tol {
    /// Largest allowed |a - b| / max(1, |b|).
    pub fn bound(self) -> f64 {
        match self {
            Self::Model(Kind::Double) => 1e-10,
            Self::Layer(Kind::Double) => 1e-11,
            Self::Fused(Kind::Double) => 1e-10,
            Self::Model(_) => 1e-5,
            Self::Fused(_) => 3e-5,
            Self::Layer(_) => 1e-6,
            Self::Difference => 1e-6,
            Self::Exact => 0.0,
        }
    }
}

/// Fails with the worst index and both values where the tensors differ by more than the tolerance.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tol: Tol) {
    assert_eq!(found.size(), expected.size(), "{what}: shapes");
    let (found, expected) = (found.to_kind(Kind::Double).flatten(0, -1), expected.to_kind(Kind::Double).flatten(0, -1));
    let same = found.eq_tensor(&expected); // also where both are infinite
    let error = ((&found - &expected).abs() / expected.abs().clamp_min(1.0)).masked_fill(&same, 0.0);
    let worst = error.argmax(0, false).int64_value(&[]);
    let (error, a, b) = (error.double_value(&[worst]), found.double_value(&[worst]), expected.double_value(&[worst]));
    assert!(
        error <= tol.bound(),
        "{what}: {a:e} where {b:e} was expected at flat index {worst}, error {error:e}, {tol:?}"
    );
}

/// [`assert_close`] for numbers.
#[track_caller]
pub fn assert_near(what: &str, found: f64, expected: f64, tol: Tol) {
    let error = (found - expected).abs() / expected.abs().max(1.0);
    assert!(error <= tol.bound(), "{what}: {found:e} where {expected:e} was expected, error {error:e}, {tol:?}");
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints").join(name)
}

pub fn load(name: &str, kind: Kind) -> Model {
    one_thread();
    let options = LoadOptions { kind, ..LoadOptions::default() };
    Model::load_with(fixture(name).to_str().unwrap(), &options).unwrap()
}

/// Tests run side by side, and their models are too small to gain from threads of their own.
fn one_thread() {
    tch::set_num_threads(1);
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
        position: Position::Rotary { base: 10_000.0, scaling: RotaryScaling::None },
        activation: Activation::Silu,
        gated_mlp: true,
        qkv_bias: false,
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
    one_thread();
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
