//! Encoders: what transformers computes in float64 for rows of unequal lengths and for tokens with types, and what it means to
//! lack a head.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::{Tol, assert_close, read_tensors, tokens_of};
use headscope::checkpoint::LoadOptions;
use headscope::model::{Model, Plan, Site, Tokens, Unembed};
use tch::{Kind, Tensor};

const TOL: Tol = Tol::Model(Kind::Double);

fn folder(name: &str) -> PathBuf {
    common::fixture("families").join(name)
}

fn load(path: &Path, kind: Kind) -> Model {
    let options = LoadOptions { kind, ..LoadOptions::default() };
    Model::load_with(path.to_str().unwrap(), &options).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The checkpoints of encoders, which are those with padded rows.
fn encoders() -> Vec<(String, HashMap<String, Tensor>)> {
    let mut all = vec![];
    for entry in std::fs::read_dir(common::fixture("families")).unwrap() {
        let path = entry.unwrap().path();
        let golden = read_tensors(&path.join("golden.safetensors"));
        if golden.contains_key("padded_tokens") {
            all.push((path.file_name().unwrap().to_str().unwrap().to_owned(), golden));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(all.len() >= 20, "{}", all.len());
    all
}

/// Checks every encoder, and fails with all that went wrong.
fn each(check: impl Fn(&str, &HashMap<String, Tensor>)) {
    let fails = |(name, golden): &(String, HashMap<String, Tensor>)| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(name, golden))).is_err().then(|| name.clone())
    };
    let failed: Vec<String> = encoders().iter().filter_map(fails).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// The logits, or in a model without a head what its last block writes.
fn last(model: &Model, tokens: &Tokens) -> (&'static str, Tensor) {
    let end = Site::ResidPost(model.config().n_layers - 1);
    let run = model.run(tokens, &Plan::new().tap(end).tap_logits(model)).unwrap();
    match model.config().unembed {
        Unembed::None => ("last", run.get(end).unwrap().shallow_clone()),
        _ => ("logits", run.logits().unwrap().shallow_clone()),
    }
}

trait TapLogits {
    fn tap_logits(self, model: &Model) -> Self;
}

impl TapLogits for Plan {
    /// The logits, where there are any.
    fn tap_logits(self, model: &Model) -> Self {
        if model.config().has_logits() { self.tap(Site::Logits) } else { self }
    }
}

#[test]
fn padding_is_hidden() {
    each(|name, golden| {
        let model = load(&folder(name), Kind::Double);
        let lengths: Vec<i64> = Vec::try_from(&golden["padded_lengths"]).unwrap();
        let row = |(&length, row): (&i64, Tensor)| Vec::try_from(row.narrow(0, 0, length)).unwrap();
        let rows: Vec<Vec<i64>> = lengths.iter().zip(golden["padded_tokens"].unbind(0)).map(row).collect();
        // What stands in the place of padding does not matter.
        for pad in [0, 7] {
            let (kind, found) = last(&model, &Tokens::new(&rows).unwrap().with_pad(pad));
            let expected = &golden[&format!("padded_{kind}")];
            for (row, &length) in lengths.iter().enumerate() {
                let valid = |x: &Tensor| x.get(row as i64).narrow(0, 0, length);
                assert_close(&format!("{name}, row {row}"), &valid(&found), &valid(expected), TOL);
            }
        }
    });
}

#[test]
fn tokens_have_types() {
    let typed = std::cell::Cell::new(0);
    each(|name, golden| {
        let Some(types) = golden.get("types") else { return };
        let model = load(&folder(name), Kind::Double);
        let types = types.unbind(0).into_iter().map(|row| Vec::try_from(row).unwrap()).collect();
        let (kind, found) = last(&model, &tokens_of(&golden["tokens"]).with_types(types).unwrap());
        assert_close(name, &found, &golden[&format!("typed_{kind}")], TOL);
        typed.set(typed.get() + 1);
    });
    assert!(typed.get() >= 8, "{typed:?}");
}

#[test]
fn every_site_is_transformers() {
    each(|name, golden| {
        let model = load(&folder(name), Kind::Double);
        let sites: Vec<Site> = golden.keys().filter_map(|key| key.parse().ok()).collect();
        assert!(sites.len() >= 2 * model.config().n_layers, "{name}: {sites:?}");
        let run = model.run(&tokens_of(&golden["tokens"]), &Plan::new().taps(sites.iter().copied())).unwrap();
        for site in sites {
            assert_close(&format!("{name} {site}"), run.get(site).unwrap(), &golden[&site.to_string()], TOL);
        }
        assert_eq!(model.config().has_logits(), golden.contains_key("logits"), "{name}");
    });
}

/// The files of a checkpoint with another config.
fn with_config(name: &str, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder(name).join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let text = std::fs::read(folder(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    copy
}

/// ModernBERT's bases and kinds of layers have keys of their own in files from before transformers 5.
#[test]
fn an_older_modernbert_says_the_same() {
    for (name, every) in [("modernbert", 3), ("modernbert-biased", 2)] {
        let old = with_config(name, |config| {
            let rope = config.remove("rope_parameters").unwrap();
            config.insert("global_rope_theta".into(), rope["full_attention"]["rope_theta"].clone());
            config.insert("local_rope_theta".into(), rope["sliding_attention"]["rope_theta"].clone());
            config.remove("layer_types");
            config.insert("global_attn_every_n_layers".into(), every.into());
        });
        let [old, new] = [load(old.path(), Kind::Double), load(&folder(name), Kind::Double)];
        assert_eq!(old.config(), new.config());
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let error = |name: &str, key: &str, value: serde_json::Value| {
        let copy = with_config(name, |config| {
            config.insert(key.to_owned(), value);
        });
        Model::load(copy.path().to_str().unwrap()).unwrap_err().to_string()
    };
    for (name, key, value) in [
        ("roberta", "is_decoder", true.into()),
        ("roberta", "max_position_embeddings", 1.into()),
        ("bert", "position_embedding_type", "relative_key".into()),
        ("bert", "add_cross_attention", true.into()),
        ("albert", "inner_group_num", 3.into()),
        ("albert", "num_hidden_groups", 0.into()),
        ("electra", "hidden_act", "gelu_10".into()),
        ("modernbert", "layer_types", serde_json::json!(["full_attention"])),
        ("tl-solu", "final_rms", true.into()),
        ("tl-solu", "normalization_type", "BN".into()),
        ("tl-solu", "d_vocab_out", 7.into()),
        ("tl-solu", "num_experts", 2.into()),
        ("tl-solu", "use_yarn_rope", true.into()),
        ("tl-solu", "positional_embedding_type", "relative_positional_bias".into()),
        ("tl-solu", "original_architecture", "Olmo2ForCausalLM".into()),
        ("tl-alibi", "attn_scores_soft_cap", 2.0.into()),
    ] {
        let found = error(name, key, value);
        let named = found.contains(key) || key == "inner_group_num" || (name, key) == ("albert", "num_hidden_groups");
        assert!(named, "{name}, {key}: {found}");
    }
}
