//! What loading a model takes of memory, as a user's command shows it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{fixture, peak_memory};
use headscope::checkpoint::{LoadOptions, Preview};
use headscope::model::Model;
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

/// What the headers foretell is what loading and a run then take: loading within a fifth, a run at least half of it and at most
/// a third more (patterns that are fused away, products that take room of their own).
#[test]
fn headers_foretell_the_memory() {
    const PROMPTS: usize = 2;
    const LENGTH: usize = 1024;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), Kind::Half, true);
    let name = folder.path().to_str().unwrap();
    let preview = Preview::of(name, &LoadOptions::default()).unwrap();
    let peak = |arguments: &[&str]| {
        peak_memory(Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).env("OMP_NUM_THREADS", "1"))
    };
    let (headers, loaded) = (peak(&["inspect", name, "--headers"]), peak(&["inspect", name]));
    let ratio = (loaded - headers) / mib(preview.load_bytes());
    assert!((0.8..=1.2).contains(&ratio), "loading takes {ratio:.2} times what was foretold");
    let row: Vec<usize> = (0..LENGTH).map(|position| position * 7 % VOCAB as usize).collect();
    let tokens = folder.path().join("tokens.json");
    std::fs::write(&tokens, serde_json::to_string(&vec![row; PROMPTS]).unwrap()).unwrap();
    let tokens = format!("@{}", tokens.display());
    let out = folder.path().join("out.safetensors");
    // Behind the last block, so that the logits are computed, and small.
    let run = ["activations", name, "--tokens", &tokens, "--sites", "ln_final_scale", "--out", out.to_str().unwrap()];
    let ratio = (peak(&run) - loaded) / mib(preview.run_bytes(PROMPTS, LENGTH));
    assert!((0.5..=1.33).contains(&ratio), "a run takes {ratio:.2} times what was foretold");
}

/// The sizes that headers give are those of the loaded model, in every layout: folders, shards, half precision, GGUF.
#[test]
fn headers_give_the_size() {
    let mut names: Vec<_> =
        ["tiny-gpt2-sharded", "tiny-gpt2-bf16", "tiny-llama-variant", "tiny-bert", "tiny-bert-encoder"]
            .map(fixture)
            .to_vec();
    names.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf/tiny-llama.gguf"));
    names.push(fixture("induction"));
    for name in names {
        let name = name.to_str().unwrap();
        let (preview, model) = (Preview::of(name, &LoadOptions::default()).unwrap(), Model::load(name).unwrap());
        assert_eq!((&preview.config, preview.parameters), (model.config(), model.n_parameters()), "{name}");
        let inspect = |more: &[&str]| {
            let output =
                Command::new(env!("CARGO_BIN_EXE_headscope")).args(["inspect", name]).args(more).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let json: serde_json::Value =
            serde_json::from_str(&inspect(&["--headers", "--json", "--length", "7"])).unwrap();
        assert_eq!(json["memory"]["load"], 4 * model.n_parameters());
        assert_eq!(json["memory"]["run"], preview.run_bytes(1, 7));
        assert!(inspect(&[]).lines().nth(1).unwrap().starts_with("memory "));
    }
}
