//! Checkpoints of every family compute what transformers computes, at every layer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, fixture, load, read_tensors, tokens_of};
use headscope::model::{Generation, Plan, Site, Tokens};
use tch::Kind;

const CHECKPOINTS: [&str; 8] = [
    "tiny-gpt2",
    "tiny-gpt2-sharded",
    "tiny-gpt2-bf16",
    "tiny-llama",
    "tiny-llama-f16",
    "tiny-llama-variant",
    "tiny-bert",
    "tiny-bert-encoder",
];

/// Taps everything that the golden file holds and compares it, with and without the fused attention kernel.
fn compare(name: &str, kind: Kind, file: &str) {
    let model = load(name, kind);
    let golden = read_tensors(&fixture(name).join(file));
    let tokens = tokens_of(&golden["tokens"]);
    let sites: Vec<Site> = golden.keys().filter_map(|key| key.parse().ok()).collect();
    assert!(sites.len() >= 10, "{name}: the golden file holds only {sites:?}");
    let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
    for &site in &sites {
        assert_close(&format!("{name} {site}"), run.get(site).unwrap(), &golden[&site.to_string()], Tol::Model(kind));
    }
    let fused: Vec<Site> = sites.iter().copied().filter(|site| !matches!(site, Site::Pattern(_))).collect();
    let run = model.run(&tokens, &Plan::new().taps(fused.iter().copied())).unwrap();
    for site in fused {
        assert_close(
            &format!("{name} {site}, fused"),
            run.get(site).unwrap(),
            &golden[&site.to_string()],
            Tol::Fused(kind),
        );
    }
}

#[test]
fn float32_is_transformers_float32() {
    CHECKPOINTS.iter().for_each(|name| compare(name, Kind::Float, "golden-float32.safetensors"));
}

#[test]
fn float64_is_transformers_float64() {
    CHECKPOINTS.iter().for_each(|name| compare(name, Kind::Double, "golden-float64.safetensors"));
}

#[test]
fn padding_is_hidden_from_a_bidirectional_model() {
    let model = load("tiny-bert", Kind::Double);
    let golden = read_tensors(&fixture("tiny-bert").join("golden-padded-float64.safetensors"));
    let lengths: Vec<i64> = Vec::try_from(&golden["padded_lengths"]).unwrap();
    let rows: Vec<Vec<i64>> = lengths
        .iter()
        .zip(golden["padded_tokens"].unbind(0))
        .map(|(&length, row)| Vec::try_from(row.narrow(0, 0, length)).unwrap())
        .collect();
    let run = model.run(&Tokens::new(&rows).unwrap(), &Plan::new()).unwrap();
    for (row, &length) in lengths.iter().enumerate() {
        let valid = |logits: &tch::Tensor| logits.get(row as i64).narrow(0, 0, length);
        let (found, expected) = (valid(run.logits().unwrap()), valid(&golden["padded_logits"]));
        assert_close(&format!("row {row}"), &found, &expected, Tol::Model(Kind::Double));
    }
}

#[test]
fn greedy_generation_is_transformers() {
    for name in ["tiny-gpt2", "tiny-llama"] {
        let text = std::fs::read_to_string(fixture(name).join("golden-generation.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ids = |key: &str| -> Vec<i64> { serde_json::from_value(golden[key].clone()).unwrap() };
        let options = Generation { max_new: ids("new_tokens").len(), ..Generation::default() };
        let new = load(name, Kind::Float).generate(&Tokens::new(&[ids("prompt")]).unwrap(), &options, |_| {}).unwrap();
        assert_eq!(new, ids("new_tokens"), "{name}");
    }
}

#[test]
fn tokenizers_agree() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-bert"] {
        let model = load(name, Kind::Float);
        let text = std::fs::read_to_string(fixture(name).join("golden-tokenizer.json")).unwrap();
        let golden: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert!(!golden.is_empty());
        for case in &golden {
            let tokens = model.tokens(&[case["text"].as_str().unwrap()]);
            let ids: Vec<i64> = serde_json::from_value(case["ids"].clone()).unwrap();
            match ids.is_empty() {
                true => assert!(tokens.is_err(), "{name}: a text without tokens"),
                false => assert_eq!(tokens.unwrap().row(0), ids, "{name}: {}", case["text"]),
            }
        }
    }
}

/// A cached step reads the same as a whole run, for learned and rotary positions.
#[test]
fn sampling_is_seeded_and_bounded_by_the_context() {
    let model = load("tiny-gpt2", Kind::Float);
    let prompt = Tokens::new(&[vec![5, 6, 7]]).unwrap();
    let options = Generation { max_new: 1000, temperature: 0.8, top_k: Some(20), seed: 1 };
    let one = model.generate(&prompt, &options, |_| {}).unwrap();
    assert_eq!(one, model.generate(&prompt, &options, |_| {}).unwrap());
    assert_ne!(one, model.generate(&prompt, &Generation { seed: 2, ..options.clone() }, |_| {}).unwrap());
    assert!(one.len() <= 1 + model.config().n_positions - 3);
    assert!(model.generate(&prompt, &Generation { temperature: f64::NAN, ..options }, |_| {}).is_err());
}

#[test]
fn babyllama_continues_its_known_text() {
    let Ok(data) = std::env::var("HEADSCOPE_DATA") else {
        println!("skipped: HEADSCOPE_DATA is not set");
        return;
    };
    let model = headscope::model::Model::load(&format!("{data}/checkpoints/babyllama-105")).unwrap();
    let prompt = model.tokens(&["Once upon a time"]).unwrap();
    let known = ", there was a little girl named Lily. She loved to play outside in the sunshine. \
                 One day, she went to the park with her mommy and daddy.";
    let options = Generation { max_new: known.len(), ..Generation::default() };
    let new = model.generate(&prompt, &options, |_| {}).unwrap();
    assert_eq!(model.tokenizer().unwrap().decode(&new).unwrap(), known);
}
