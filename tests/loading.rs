//! What loading a model takes of memory, as a user's command shows it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{fixture, peak_memory};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const WIDTH: i64 = 512;
const INNER: i64 = 1536;
const LAYERS: i64 = 4;
const VOCAB: i64 = 16_000;

/// Writes a Llama of random weights in `kind`; a tied one holds its embedding twice, as some files do. Returns how many
/// parameters a model has that loads it.
fn write(folder: &Path, kind: Kind, tied: bool) -> usize {
    let random =
        |rows: i64, columns: i64| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(kind) * 0.02;
    let ones = || Tensor::ones([WIDTH], (kind, Device::Cpu));
    let embedding = random(VOCAB, WIDTH);
    let head = if tied { embedding.copy() } else { random(VOCAB, WIDTH) };
    let mut tensors =
        vec![("model.embed_tokens.weight".to_owned(), embedding), ("model.norm.weight".to_owned(), ones())];
    for layer in 0..LAYERS {
        let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((name(&format!("self_attn.{part}")), random(WIDTH, WIDTH)));
        }
        tensors.push((name("mlp.gate_proj"), random(INNER, WIDTH)));
        tensors.push((name("mlp.up_proj"), random(INNER, WIDTH)));
        tensors.push((name("mlp.down_proj"), random(WIDTH, INNER)));
        tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|norm| (name(norm), ones())));
    }
    let own: usize = tensors.iter().map(|(_, tensor)| tensor.numel()).sum();
    let parameters = if tied { own } else { own + head.numel() };
    tensors.push(("lm_head.weight".to_owned(), head));
    Tensor::write_safetensors(&tensors, folder.join("model.safetensors")).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "vocab_size": VOCAB, "tie_word_embeddings": tied,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    parameters
}

/// At its peak, a process that loads weights takes at most 1.2 times what they take in the model's type, beside what one takes
/// that loads hardly any: of float32, of half precision that is widened, into float64, and of tied weights that are stored twice.
#[test]
fn loading_takes_little_more_than_the_weights() {
    let peak = |folder: &Path, dtype: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headscope"));
        peak_memory(command.args(["inspect", "--dtype", dtype]).arg(folder).env("OMP_NUM_THREADS", "1"))
    };
    let without = peak(&fixture("tiny-llama"), "float32");
    for (stored, dtype, tied) in [
        (Kind::Float, "float32", false),
        (Kind::Half, "float32", false),
        (Kind::BFloat16, "float64", false),
        (Kind::Float, "float32", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let size = if dtype == "float64" { 8 } else { 4 };
        let weights = (write(folder.path(), stored, tied) * size) as f64 / f64::from(1 << 20);
        let ratio = (peak(folder.path(), dtype) - without) / weights;
        assert!((0.9..=1.2).contains(&ratio), "{stored:?} as {dtype}, tied {tied}: {ratio:.2} times {weights:.0} MiB");
    }
}
