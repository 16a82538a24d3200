//! What a checkpoint folder may look like, and what bad ones say. Nothing here may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::Path;

use common::{Tol, assert_close, fixture, some_tokens};
use headscope::checkpoint::LoadOptions;
use headscope::model::{Model, Plan};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tempfile::TempDir;

/// A copy of a fixture that a test may spoil.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("golden") {
            fs::copy(&file, folder.path().join(name)).unwrap();
        }
    }
    folder
}

fn load(folder: &Path) -> headscope::Result<Model> {
    Model::load_with(folder.to_str().unwrap(), &LoadOptions { kind: Kind::Double, ..LoadOptions::default() })
}

/// Changes config.json.
fn configure(folder: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(&path, config.to_string()).unwrap();
}

/// Changes the tensors of model.safetensors.
fn rewrite(folder: &Path, change: impl FnOnce(Vec<(String, Tensor)>) -> Vec<(String, Tensor)>) {
    let path = folder.join("model.safetensors");
    let tensors = change(Tensor::read_safetensors(&path).unwrap());
    let named: Vec<(&str, Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shallow_clone())).collect();
    Tensor::write_safetensors(&named, &path).unwrap();
}

/// The error of loading, which must name every one of `parts`.
#[track_caller]
fn says(folder: &Path, parts: &[&str]) {
    let message = load(folder).unwrap_err().to_string();
    parts.iter().for_each(|part| assert!(message.contains(part), "`{message}` does not say `{part}`"));
}

fn logits(model: &Model) -> Tensor {
    let run = model.run(&some_tokens(2, 7, 97, 1), &Plan::new()).unwrap();
    run.taps().next().unwrap().1.shallow_clone()
}

#[track_caller]
fn same_as(folder: &Path, name: &str) {
    let (found, expected) = (load(folder).unwrap(), load(&fixture(name)).unwrap());
    assert_close(name, &logits(&found), &logits(&expected), Tol::Exact);
}

#[test]
fn names_as_the_hub_has_them() {
    let gpt2 = copy("tiny-gpt2");
    rewrite(gpt2.path(), |tensors| {
        let strip = |(name, tensor): (String, Tensor)| (name.trim_start_matches("transformer.").to_owned(), tensor);
        let mask = Tensor::ones([1, 1, 40, 40], (Kind::Float, tch::Device::Cpu));
        let buffers = (0..3).map(|layer| (format!("h.{layer}.attn.bias"), mask.shallow_clone()));
        tensors.into_iter().map(strip).chain(buffers).collect()
    });
    same_as(gpt2.path(), "tiny-gpt2");

    let bert = copy("tiny-bert");
    rewrite(bert.path(), |tensors| {
        let old = |name: String| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        };
        let tensors: Vec<(String, Tensor)> = tensors.into_iter().map(|(name, tensor)| (old(name), tensor)).collect();
        let extra = |name: &str, shape: &[i64]| (name.to_owned(), Tensor::ones(shape, (Kind::Float, tch::Device::Cpu)));
        let more = [
            extra("bert.pooler.dense.weight", &[32, 32]),
            extra("bert.pooler.dense.bias", &[32]),
            extra("cls.seq_relationship.weight", &[2, 32]),
            extra("cls.seq_relationship.bias", &[2]),
        ];
        let bias = tensors.iter().find(|(name, _)| name == "cls.predictions.bias").unwrap().1.shallow_clone();
        let repeated = ("cls.predictions.decoder.bias".to_owned(), bias);
        tensors.into_iter().chain(more).chain([repeated]).collect()
    });
    same_as(bert.path(), "tiny-bert");

    let llama = copy("tiny-llama");
    configure(llama.path(), |config| {
        let rope = config.remove("rope_parameters").unwrap();
        config.insert("rope_theta".into(), rope["rope_theta"].clone());
        config.insert("rope_scaling".into(), Value::Null);
        ["head_dim", "mlp_bias", "attention_bias", "dtype"].iter().for_each(|key| drop(config.remove(*key)));
    });
    same_as(llama.path(), "tiny-llama");

    let variant = copy("tiny-llama-variant");
    configure(variant.path(), |config| {
        let mut rope = config.remove("rope_parameters").unwrap();
        config.insert("rope_theta".into(), rope.as_object_mut().unwrap().remove("rope_theta").unwrap());
        config.insert("rope_scaling".into(), rope);
    });
    same_as(variant.path(), "tiny-llama-variant");
}

#[test]
fn configs_that_do_not_fit() {
    let change = |name: &str, key: &'static str, value: Value| {
        let folder = copy(name);
        configure(folder.path(), |config| drop(config.insert(key.to_owned(), value)));
        folder
    };
    says(change("tiny-gpt2", "model_type", json!("gpt5")).path(), &["config.json", "gpt5", "llama"]);
    says(change("tiny-gpt2", "n_head", json!(5)).path(), &["config.json", "n_head", "divisor"]);
    says(change("tiny-gpt2", "n_head", json!(0)).path(), &["config.json", "n_head"]);
    says(change("tiny-gpt2", "n_layer", json!(2)).path(), &["12 tensor(s)", "transformer.h.2."]);
    says(change("tiny-gpt2", "n_layer", json!(4)).path(), &["transformer.h.3.", "missing"]);
    says(change("tiny-gpt2", "n_layer", json!(-1)).path(), &["n_layer", "whole number", "-1"]);
    says(change("tiny-gpt2", "n_layer", json!(u64::MAX)).path(), &["n_layers", "at most"]);
    says(change("tiny-gpt2", "vocab_size", json!(1_000_000_000_000_u64)).path(), &["vocab", "at most"]);
    says(change("tiny-gpt2", "vocab_size", json!(98)).path(), &["wte.weight", "[98, 32]", "[97, 32]"]);
    says(change("tiny-gpt2", "activation_function", json!("mish")).path(), &["activation_function", "mish"]);
    says(change("tiny-gpt2", "add_cross_attention", json!(true)).path(), &["add_cross_attention"]);
    says(change("tiny-gpt2", "quantization_config", json!({"bits": 4})).path(), &["quantization_config"]);
    says(change("tiny-llama", "num_key_value_heads", json!(3)).path(), &["n_kv_heads", "divisor"]);
    says(change("tiny-llama", "head_dim", json!(7)).path(), &["d_head", "even"]);
    says(change("tiny-llama", "rope_parameters", json!({"rope_type": "linear"})).path(), &["factor", "nothing"]);
    says(change("tiny-llama", "rope_parameters", json!({"rope_type": "spiral"})).path(), &["rope_type", "spiral"]);
    says(change("tiny-bert", "add_cross_attention", json!(true)).path(), &["add_cross_attention"]);
    let folder = copy("tiny-bert");
    fs::write(folder.path().join("config.json"), "{").unwrap();
    says(folder.path(), &["config.json", "JSON"]);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    says(folder.path(), &["config.json"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let spoil = |change: &dyn Fn(&str, Tensor) -> Option<Tensor>| {
        let folder = copy("tiny-llama");
        rewrite(folder.path(), |tensors| {
            tensors.into_iter().filter_map(|(name, t)| Some((name.clone(), change(&name, t)?))).collect()
        });
        folder
    };
    let target = "model.layers.1.self_attn.k_proj.weight";
    let at = |change: &'static dyn Fn(Tensor) -> Option<Tensor>| {
        spoil(&move |name, t| if name == target { change(t) } else { Some(t) })
    };
    says(at(&|_| None).path(), &[target, "missing", "[16, 32]"]);
    says(at(&|t| Some(t.tr().contiguous())).path(), &["model.safetensors", target, "[16, 32]", "[32, 16]"]);
    says(at(&|t| Some(t.to_kind(Kind::Int64))).path(), &["model.safetensors", target, "dtype", "I64"]);
    says(
        at(&|t| Some(t.to_kind(Kind::Half).to_kind(Kind::Float) * f64::NAN)).path(),
        &["model.safetensors", target, "NaN"],
    );
    let infinite =
        at(&|t| Some(t.flatten(0, -1).index_fill(0, &Tensor::from_slice(&[37i64]), f64::INFINITY).view([16, 32])));
    says(infinite.path(), &[target, "inf", "37"]);
    let surplus = copy("tiny-llama");
    rewrite(surplus.path(), |mut tensors| {
        tensors.push(("model.layers.0.extra.weight".into(), Tensor::ones([1], (Kind::Float, tch::Device::Cpu))));
        tensors
    });
    says(surplus.path(), &["1 tensor(s)", "model.layers.0.extra.weight"]);
}

#[test]
fn files_that_do_not_fit() {
    let folder = copy("tiny-gpt2");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        says(folder.path(), &["model.safetensors"]);
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &huge).unwrap();
    says(folder.path(), &["model.safetensors", "header"]);
    fs::remove_file(&path).unwrap();
    says(folder.path(), &["model.safetensors"]);
    fs::create_dir(&path).unwrap();
    says(folder.path(), &["model.safetensors"]);
}

#[test]
fn indices_that_do_not_fit() {
    let with = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let folder = copy("tiny-gpt2-sharded");
        let path = folder.path().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(index["weight_map"].as_object_mut().unwrap());
        fs::write(&path, index.to_string()).unwrap();
        folder
    };
    same_as(with(&|_| {}).path(), "tiny-gpt2");
    says(
        with(&|map| drop(map.insert("transformer.wte.weight".into(), json!("../elsewhere")))).path(),
        &["plain file names", "elsewhere"],
    );
    says(
        with(&|map| drop(map.insert("transformer.wte.weight".into(), json!("/etc/passwd")))).path(),
        &["plain file names"],
    );
    says(
        with(&|map| drop(map.insert("transformer.wte.weight".into(), json!("none.safetensors")))).path(),
        &["none.safetensors"],
    );
    says(with(&|map| drop(map.remove("transformer.wte.weight"))).path(), &["transformer.wte.weight", "not listed"]);
    says(
        with(&|map| drop(map.insert("new".into(), json!("model-00001-of-00003.safetensors")))).path(),
        &["new", "none there"],
    );
}

/// A header changed anywhere, in bytes or in structure, gives a model or an error, never a panic.
#[test]
fn mutated_headers_never_panic() {
    let folder = copy("tiny-llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let tokens = [
        &b"0"[..],
        b"-1",
        b"18446744073709551615",
        b"1e99",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\"F32\"",
        b"\"BF16\"",
        b"null",
        b",",
        b":",
        b"\"\"",
    ];
    let rounds = std::env::var("HEADSCOPE_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1_500);
    let mut refused = 0;
    for _ in 0..rounds {
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..8 + length);
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => bytes[at] = b"0123456789[]{},:\""[rng.random_range(0..17)],
                2 => {
                    drop(bytes.splice(
                        at..(at + 3).min(8 + length),
                        tokens[rng.random_range(0..tokens.len())].iter().copied(),
                    ))
                }
                _ => drop(bytes.splice(at..at, tokens[rng.random_range(0..tokens.len())].iter().copied())),
            }
        }
        fs::write(&path, &bytes).unwrap();
        refused += usize::from(load(folder.path()).is_err());
    }
    assert!(refused * 10 > rounds * 9, "only {refused} of {rounds} mutated headers were refused");
}

#[test]
fn tokens_that_do_not_fit() {
    let model = load(&fixture("tiny-gpt2")).unwrap();
    let fails = |rows: &[Vec<i64>]| {
        headscope::model::Tokens::new(rows)
            .and_then(|tokens| model.run(&tokens, &Plan::new()).map(drop))
            .unwrap_err()
            .to_string()
    };
    assert!(fails(&[]).contains("at least one prompt"));
    assert!(fails(&[vec![]]).contains("prompt 0 is empty"));
    assert!(fails(&[vec![1], vec![-1]]).contains("prompt 1"));
    assert!(fails(&[vec![i64::MAX]]).contains("expected less than 97"));
    assert!(model.token("two words").is_err());
    let encoder = load(&fixture("tiny-bert-encoder")).unwrap();
    assert!(encoder.tokens(&["text"]).unwrap_err().to_string().contains("no tokenizer.json"));
    let bad = copy("tiny-gpt2");
    fs::write(bad.path().join("tokenizer.json"), "{}").unwrap();
    says(bad.path(), &["tokenizer.json"]);
}

/// The names and shapes of parameters, one by one: what no output shows (key biases cancel in the softmax).
#[test]
fn every_tensor_arrives_at_its_place() {
    let (model, file) =
        (load(&fixture("tiny-bert")).unwrap(), common::read_tensors(&fixture("tiny-bert").join("model.safetensors")));
    let parameters: std::collections::HashMap<String, &Tensor> = model.parameters().into_iter().collect();
    let key = &file["bert.encoder.layer.2.attention.self.key.bias"];
    assert_close("b_k", parameters["blocks.2.b_k"], key, Tol::Exact);
    assert_close("w_type", parameters["w_type"], &file["bert.embeddings.token_type_embeddings.weight"], Tol::Exact);
    let w_q = &file["bert.encoder.layer.1.attention.self.query.weight"];
    assert_close("w_q", &model.w_q(1).unwrap().get(3), &w_q.tr().narrow(1, 24, 8), Tol::Exact);
    let w_o = &file["bert.encoder.layer.1.attention.output.dense.weight"];
    assert_close("w_o", &model.w_o(1).unwrap().get(2), &w_o.tr().narrow(0, 16, 8), Tol::Exact);
    assert!(model.w_v(3).is_err());
}

/// A file that says tied and holds another head means what it holds; one that repeats the embedding is tied.
#[test]
fn tied_and_untied_heads() {
    for (name, head) in [
        ("tiny-gpt2", "lm_head.weight"),
        ("tiny-llama", "lm_head.weight"),
        ("tiny-bert", "cls.predictions.decoder.weight"),
    ] {
        let (tied, untied, same) = (copy(name), copy(name), copy(name));
        let other = Tensor::randn([97, 32], (Kind::Float, tch::Device::Cpu));
        let with = |folder: &TempDir, tensor: Option<Tensor>, says_tied: bool| {
            configure(folder.path(), |config| drop(config.insert("tie_word_embeddings".into(), json!(says_tied))));
            rewrite(folder.path(), |tensors| {
                let rest = tensors.into_iter().filter(|(name, _)| name != head);
                rest.chain(tensor.map(|tensor| (head.to_owned(), tensor))).collect()
            });
        };
        with(&tied, Some(other.shallow_clone()), true);
        with(&untied, Some(other), false);
        assert_close(name, &logits(&load(tied.path()).unwrap()), &logits(&load(untied.path()).unwrap()), Tol::Exact);
        assert!(!load(tied.path()).unwrap().config().tied_unembed);
        let embedding = load(same.path()).unwrap().parameters()[0].1.to_kind(Kind::Float);
        with(&same, Some(embedding), true);
        assert!(load(same.path()).unwrap().config().tied_unembed, "{name}");
        let none = copy(name);
        with(&none, None, false);
        says(none.path(), &[head, "missing"]);
    }
    let twice = copy("tiny-bert");
    rewrite(twice.path(), |mut tensors| {
        let gamma = Tensor::ones([32], (Kind::Float, tch::Device::Cpu));
        tensors.push(("bert.embeddings.LayerNorm.gamma".into(), gamma));
        tensors
    });
    says(twice.path(), &["bert.embeddings.LayerNorm.", "two"]);
}

/// A padding token that only the tokenizer knows is hidden; broken tokenizer files are errors, not panics.
#[test]
fn tokenizers_that_do_not_fit() {
    let folder = copy("tiny-bert");
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["added_tokens"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .filter(|token| token["content"] == "[PAD]")
        .for_each(|token| token["id"] = json!(500));
    json["model"]["vocab"]["[PAD]"] = json!(500);
    fs::write(&path, json.to_string()).unwrap();
    let model = load(folder.path()).unwrap();
    let tokens = model.tokens(&["the cat", "a dog ran"]).unwrap();
    model.run(&tokens, &Plan::new()).unwrap();
    let text = fs::read_to_string(fixture("tiny-llama").join("tokenizer.json")).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    for _ in 0..150 {
        let mut bytes = text.clone().into_bytes();
        let at = rng.random_range(0..bytes.len());
        bytes[at] = b"0123456789[]{},:\"x"[rng.random_range(0..18)];
        fs::write(&path, &bytes).unwrap();
        let _ = load(folder.path()).map(|model| {
            model.tokens(&["once upon a time"]).map(|tokens| model.tokenizer().unwrap().decode(tokens.row(0)))
        });
    }
}

/// Generation ends at the tokens of generation_config.json, else at config.json's.
#[test]
fn end_tokens() {
    let folder = copy("tiny-gpt2");
    let ends = |folder: &TempDir| load(folder.path()).unwrap().origin().end_tokens.clone();
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [7, 8]}"#).unwrap();
    assert_eq!(ends(&folder), [7, 8]);
    fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
    assert_eq!(ends(&folder), [0]);
    configure(folder.path(), |config| drop(config.insert("eos_token_id".into(), json!("end"))));
    says(folder.path(), &["eos_token_id", "a token id"]);
}

/// Devices, pipes and giants in the place of small files are refused before they are read.
#[test]
fn special_files_are_refused() {
    let folder = copy("tiny-gpt2");
    let path = folder.path().join("config.json");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    says(folder.path(), &["config.json", "no file"]);
}
