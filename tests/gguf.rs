//! A GGUF file as a user loads it: the numbers, the tokens and the prompts of a small Llama whose golden values are by
//! transformers and the `gguf` package (fixtures/make_gguf.py), and what files say that cannot be read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Tol, assert_close, read_tensors, tokens_of};
use headscope::checkpoint::{LoadOptions, Tokenizer};
use headscope::model::{Model, Plan, Site};
use headscope::text::prompts;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf").join(name)
}

fn load(kind: Kind) -> Model {
    let options = LoadOptions { kind, ..LoadOptions::default() };
    Model::load_with(file("tiny-llama.gguf").to_str().unwrap(), &options).unwrap()
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(file("tiny-llama.json")).unwrap()).unwrap()
}

/// Matrices in seven codings, queries and keys put back into halves: the logits are those of transformers, whose rotary tables
/// and norms round to float32 even in float64.
#[test]
fn logits() {
    let golden = golden();
    let expected: Vec<f64> = serde_json::from_value(golden["logits_of_the_last"].clone()).unwrap();
    for kind in [Kind::Float, Kind::Double] {
        let model = load(kind);
        let tokens = model.tokens(&[golden["text"].as_str().unwrap()]).unwrap();
        assert_eq!(json!(tokens.row(0)), golden["ids"]);
        let run = model.run(&tokens, &Plan::new().tap(Site::Logits)).unwrap();
        let last = run.get(Site::Logits).unwrap().get(0).get(tokens.positions() as i64 - 1);
        assert_close("logits", &last, &Tensor::from_slice(&expected), Tol::of(model.config(), Kind::Float));
    }
}

/// A file of every architecture that is read, laid out as llama.cpp lays it out, computes what transformers computes in float64
/// from the weights that went in (fixtures/make_gguf_families.py); so does the folder that it is converted to.
#[test]
fn architectures() {
    let files = std::fs::read_dir(file("families")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "gguf")).collect();
    assert!(files.len() > 20, "{files:?}");
    for path in files {
        let golden = read_tensors(&path.with_extension("safetensors"));
        let options = LoadOptions { kind: Kind::Double, ..LoadOptions::default() };
        let model = Model::load_with(path.to_str().unwrap(), &options).unwrap();
        let tokens = tokens_of(&golden["tokens"]);
        let run = model.run(&tokens, &Plan::new()).unwrap();
        // llama.cpp's divisors of Llama 3's frequencies are float32, and so are the quotients.
        let divided = path.ends_with("llama3.gguf");
        let (layers, positions) = (model.config().n_layers, tokens.positions());
        let tol = if divided { Tol::Tables { layers, positions } } else { Tol::Model(Kind::Double) };
        assert_close(&path.display().to_string(), run.logits().unwrap(), &golden["logits"], tol);
    }
}

/// An architecture that is not read says which are, and a key that would change what is computed is not passed over.
#[test]
fn others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let says = |like: &str, text: &str, with: &str, parts: &[&str]| {
        assert_eq!(text.len(), with.len());
        let mut bytes = std::fs::read(file("families").join(like)).unwrap();
        let places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(text.as_bytes())).collect();
        assert!(!places.is_empty(), "{text}");
        places.iter().for_each(|&at| bytes[at..at + text.len()].copy_from_slice(with.as_bytes()));
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        let error = Model::load(path.to_str().unwrap()).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "`{error}` does not say `{part}`"));
    };
    says("gemma3.gguf", "gemma3", "gemma9", &["general.architecture", "gemma9", "bloom", "command-r", "starcoder2"]);
    says("gemma2.gguf", "final_logit_softcapping", "final_logit_softcoating", &["known here"]);
    says("qwen2.gguf", "yarn", "spun", &["rope.scaling.type", "none, linear or yarn", "spun"]);
    says("gpt2.gguf", "attention.head_count", "attention.dead_count", &["attention.head_count", "nothing"]);
    says("gptneox.gguf", "rope.dimension_count", "rope.dimension_kount", &["rope.dimension_kount", "known here"]);
    says("falcon.gguf", "jploski", "unknown", &["tensor_data_layout", "unknown"]);
    says("llama3.gguf", "rope_freqs", "rope_treqs", &["rope_treqs.weight"]);
    says("qwen3moe.gguf", "ffn_gate_exps", "ffn_gate_expo", &["mlp.experts.0.gate_proj.weight", "missing"]);
}

#[test]
fn tokens() {
    let (model, golden) = (load(Kind::Float), golden());
    for text in golden["texts"].as_array().unwrap() {
        let (text, ids) = (text["text"].as_str().unwrap(), &text["ids"]);
        let tokens = model.tokens(&[text]).unwrap();
        assert_eq!(json!(tokens.row(0)), *ids, "{text}");
        let tokenizer = model.tokenizer().unwrap();
        if !text.contains("<|") {
            assert_eq!(tokenizer.decode(tokens.row(0)).unwrap(), text);
        }
    }
    let end = model.token("<|im_end|>").unwrap();
    assert!(model.tokenizer().unwrap().is_special(end));
    assert_eq!(model.origin().end_tokens, [end]);
    assert_eq!(model.tokens(&["The key"]).unwrap().pieces(0), ["The", " key"], "nothing is added before or after");
}

/// Vocabularies of every kind that is read split and merge texts as the tokenizers that they were made from
/// (fixtures/make_gguf_vocabularies.py), and give them back.
#[test]
fn vocabularies() {
    let files = std::fs::read_dir(file("vocabularies")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "gguf")).collect();
    assert!(files.len() > 6, "{files:?}");
    for path in files {
        let model = Model::load(path.to_str().unwrap()).unwrap();
        let golden: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        for text in golden["texts"].as_array().unwrap() {
            let (text, ids) = (text["text"].as_str().unwrap(), &text["ids"]);
            let tokens = model.tokens(&[text]).unwrap();
            assert_eq!(json!(tokens.row(0)), *ids, "{}: {text:?}", path.display());
            let tokenizer = model.tokenizer().unwrap();
            let own = &tokens.row(0)[usize::from(tokenizer.prepends_bos())..];
            let composed = ["command-r.gguf", "qwen2.gguf"].iter().any(|name| path.ends_with(name));
            if !composed {
                assert_eq!(tokenizer.decode(own).unwrap(), text, "{}", path.display());
            }
        }
    }
}

/// Generators draw from the words that this small vocabulary has as single tokens.
#[test]
fn generated_prompts() {
    let model = load(Kind::Float);
    for recipe in
        [prompts::ioi(12, 5), prompts::greater_than(12, 5), prompts::induction(12, 5), prompts::agreement(12, 5)]
    {
        let prompts = model.prompts(recipe.clone()).unwrap();
        prompts.check_aligned().unwrap();
        for i in 0..12 {
            let (clean, corrupt) = (prompts.clean().row(i), prompts.corrupt().row(i));
            assert_eq!(clean.iter().zip(corrupt).filter(|(a, b)| a != b).count(), 1, "{recipe:?}");
            let (right, wrong) = &prompts.answer_texts()[i];
            assert_eq!((model.token(right).unwrap(), model.token(wrong).unwrap()), prompts.answers()[i]);
        }
    }
}

/// The SHA-256 of such a model is its file's, and the command loads it by path.
#[test]
fn the_command_reads_it() {
    let path = file("tiny-llama.gguf");
    let shown = Command::new(env!("CARGO_BIN_EXE_headscope")).args(["inspect", "--json"]).arg(&path).output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["config"]["family"], "llama");
    assert_eq!(shown["sha256"], load(Kind::Float).sha256().unwrap());
}

/// A tokenizer.json beside the file is used, and what is no GGUF file says so.
#[test]
fn beside_and_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::copy(file("tiny-llama.gguf"), &path).unwrap();
    let beside = common::fixture("tiny-gpt2").join("tokenizer.json");
    std::fs::copy(&beside, folder.path().join("tokenizer.json")).unwrap();
    let (model, text) = (Model::load(path.to_str().unwrap()).unwrap(), ["When the heads met"]);
    let own = load(Kind::Float).tokens(&text).unwrap();
    let found = model.tokens(&text).unwrap();
    assert_eq!(found, Tokenizer::read(&beside).unwrap().encode(&text).unwrap());
    assert_ne!(found, own);
    std::fs::write(&path, "{}").unwrap();
    let error = Model::load(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("model.gguf") && error.contains("more bytes"), "{error}");
    let error = Model::load(file("codings.gguf").to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("general.architecture") && error.contains("llama"), "{error}");
    assert!(Model::load(file("no-such.gguf").to_str().unwrap()).is_err());
}
