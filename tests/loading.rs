//! What loading a model takes of memory, as a user's command shows it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{fixture, peak_memory};
use headscope::checkpoint::{LoadOptions, Preview};
use headscope::model::{Model, Plan, Tokens};
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

/// What a process of its own does for [`headers_foretell_the_memory`]: nothing, unless it is asked to.
#[test]
fn as_asked() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let model = Model::load(&folder).unwrap();
    let Ok(prompts) = std::env::var(PROMPTS) else { return };
    tch::set_num_threads(1);
    let row: Vec<i64> = (0..LENGTH as i64).map(|position| position * 7 % VOCAB).collect();
    let tokens = Tokens::new(&vec![row; prompts.parse().unwrap()]).unwrap();
    let run = model.run(&tokens, &Plan::new()).unwrap();
    assert_eq!(run.logits().unwrap().size()[1], LENGTH as i64);
}

const FOLDER: &str = "HEADSCOPE_TEST_FOLDER";
const PROMPTS: &str = "HEADSCOPE_TEST_PROMPTS";
const LENGTH: usize = 1024;

/// What the headers foretell is what loading and a run then take: loading within a fifth; a run within a factor
/// of 1.6, since allocators keep more or less of what is freed.
#[test]
fn headers_foretell_the_memory() {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), Kind::Half, true);
    let preview = Preview::of(folder.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
    let peak = |given: &[(&str, &str)]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        peak_memory(command.args(["--exact", "as_asked"]).envs(given.iter().copied()).env("OMP_NUM_THREADS", "1"))
    };
    let load = (FOLDER, folder.path().to_str().unwrap());
    // What the process itself takes that loads hardly anything.
    let tiny = fixture("tiny-llama");
    let (without, loaded) = (peak(&[(FOLDER, tiny.to_str().unwrap())]), peak(&[load]));
    let ratio = (loaded - without) / mib(preview.load_bytes());
    assert!((0.8..=1.2).contains(&ratio), "loading takes {ratio:.2} times what was foretold");
    for prompts in [1, 3] {
        let ratio = (peak(&[load, (PROMPTS, &prompts.to_string())]) - loaded) / mib(preview.run_bytes(prompts, LENGTH));
        assert!((0.625..=1.6).contains(&ratio), "{prompts} prompts take {ratio:.2} times what was foretold");
    }
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
