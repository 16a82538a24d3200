//! Checkpoints of every family compute what transformers computes, at every layer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;

use common::{Tol, assert_as_accurate, assert_close, fixture, load, read_tensors, tokens_of};
use headscope::model::{Plan, Site, Tokens};
use tch::{Kind, Tensor};

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

/// Every tensor of a golden file as the model computes it, with and without the fused attention kernel, which computes no
/// pattern.
fn computed(name: &str, kind: Kind, golden: &HashMap<String, Tensor>) -> Vec<(String, Site, Tensor)> {
    let model = load(name, kind);
    let tokens = tokens_of(&golden["tokens"]);
    let sites: Vec<Site> = golden.keys().filter_map(|key| key.parse().ok()).collect();
    assert!(sites.len() >= 10, "{name}: the golden file holds only {sites:?}");
    let fused: Vec<Site> = sites.iter().copied().filter(|site| !matches!(site, Site::Pattern(_))).collect();
    let mut all = vec![];
    for (how, sites) in [("", sites), (", fused", fused)] {
        let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        let found = |site| (format!("{name} {site}{how}"), site, run.get(site).unwrap().shallow_clone());
        all.extend(sites.into_iter().map(found));
    }
    all
}

fn golden(name: &str, kind: &str) -> HashMap<String, Tensor> {
    read_tensors(&fixture(name).join(format!("golden-{kind}.safetensors")))
}

/// The truth is what transformers computes in float64 from the same float32 (or 16-bit) weights. We are within what float32
/// can hold of it, and no farther off than transformers' own float32, which differs from processor to processor.
#[test]
fn float32_is_as_good_as_transformers_float32() {
    for name in CHECKPOINTS {
        let (truth, theirs) = (golden(name, "float64"), golden(name, "float32"));
        let config = load(name, Kind::Float).config().clone();
        for (what, site, found) in computed(name, Kind::Float, &truth) {
            let key = site.to_string();
            assert_close(&what, &found, &truth[&key], Tol::of(&config, Kind::Float));
            assert_as_accurate(&what, &found, &theirs[&key], &truth[&key], &config);
        }
    }
}

#[test]
fn float64_is_transformers_float64() {
    for name in CHECKPOINTS {
        let truth = golden(name, "float64");
        for (what, site, found) in computed(name, Kind::Double, &truth) {
            assert_close(&what, &found, &truth[&site.to_string()], Tol::Model(Kind::Double));
        }
    }
}

/// The bounds see what they are there to see: float64 that passed through float32, a result that is off by a part in a
/// thousand, and one that is ten times as far from the truth as rounding explains.
#[test]
fn the_bounds_tell_mistakes_from_rounding() {
    for name in CHECKPOINTS {
        let truth = golden(name, "float64");
        let config = load(name, Kind::Float).config().clone();
        let fails = |check: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err();
        let theirs = golden(name, "float32");
        for key in [format!("z.{}", config.n_layers - 1), format!("resid_post.{}", config.n_layers - 1)] {
            let (truth, theirs) = (&truth[&key], &theirs[&key]);
            let narrowed = truth.to_kind(Kind::Float).to_kind(Kind::Double);
            assert!(fails(&|| assert_close("narrowed", &narrowed, truth, Tol::Model(Kind::Double))), "{name} {key}");
            let off = truth + truth.flip([0]) * 1e-3;
            assert!(fails(&|| assert_close("off", &off, truth, Tol::of(&config, Kind::Float))), "{name} {key}");
            let worse = truth + (theirs.to_kind(Kind::Double) - truth) * 10.0;
            assert!(fails(&|| assert_as_accurate("worse", &worse, theirs, truth, &config)), "{name} {key}");
        }
    }
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
        let valid = |logits: &Tensor| logits.get(row as i64).narrow(0, 0, length);
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
        let (model, prompt) = (load(name, Kind::Float), Tokens::new(&[ids("prompt")]).unwrap());
        let new = model.generate(&prompt).max_new(ids("new_tokens").len()).run().unwrap();
        assert_eq!(new.continuations[0].ids, ids("new_tokens"), "{name}");
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

#[test]
fn sampling_is_seeded_and_bounded_by_the_context() {
    let model = load("tiny-gpt2", Kind::Float);
    let prompt = Tokens::new(&[vec![5, 6, 7]]).unwrap();
    let new = |seed| {
        let generation = model.generate(&prompt).max_new(1000).temperature(0.8).top_k(20).seed(seed);
        generation.run().unwrap().continuations.remove(0).ids
    };
    let one = new(1);
    assert_eq!(one, new(1));
    assert_ne!(one, new(2));
    assert!(one.len() <= 1 + model.config().n_positions - 3);
}
