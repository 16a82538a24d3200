//! Checkpoints of every family and variant, saved by transformers, compute what transformers computes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Tol, assert_close, fixture, golden_tokens, read_tensors};
use headscope::checkpoint::LoadOptions;
use headscope::model::{Model, Plan, Site};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

/// The folders of the checkpoints that `fixtures/make_families.py` has made.
fn folders() -> Vec<PathBuf> {
    let only = std::env::var("HEADSCOPE_FAMILY").ok();
    let all = fs::read_dir(fixture("families")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| only.as_ref().is_none_or(|only| name(path) == only)).collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

fn load(folder: &Path, kind: Kind) -> headscope::Result<Model> {
    Model::load_with(folder.to_str().unwrap(), &LoadOptions { kind, ..LoadOptions::default() })
}

/// Every golden tensor of the folder beside what the model computes, with and without the fused attention kernel, which
/// computes no pattern.
fn compare(folder: &Path, kind: Kind) {
    let (model, golden) = (load(folder, kind).unwrap(), read_tensors(&folder.join("golden.safetensors")));
    let tokens = golden_tokens(&golden);
    let sites: Vec<Site> = golden.keys().filter_map(|key| key.parse().ok()).collect();
    assert!(sites.len() > model.config().n_layers, "{}: the golden file holds only {sites:?}", name(folder));
    let patterns = |site: &Site| matches!(site, Site::Pattern(_) | Site::CrossPattern(_));
    let fused: Vec<Site> = sites.iter().copied().filter(|site| !patterns(site)).collect();
    for (how, sites) in [("", &sites), (", fused", &fused)] {
        let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        for &site in sites {
            let what = format!("{} {site}{how}, {kind:?}", name(folder));
            let tol = if kind == Kind::Double { Tol::Model(kind) } else { Tol::of(model.config(), kind) };
            assert_close(&what, run.get(site).unwrap(), &golden[&site.to_string()], tol);
        }
    }
}

/// Runs `check` on every folder, and reports all that fail.
fn on_all(check: impl Fn(&Path)) {
    let failed: Vec<String> = folders()
        .iter()
        .filter(|folder| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(folder))).is_err())
        .map(|folder| name(folder).to_owned())
        .collect();
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
}

#[test]
fn float64_is_transformers_float64() {
    on_all(|folder| compare(folder, Kind::Double));
}

#[test]
fn float32_is_within_rounding() {
    on_all(|folder| compare(folder, Kind::Float));
}

/// The same config in the words of transformers before version 5; `None` if there is no other way to say it.
fn old_dialect(config: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut old = config.clone();
    if config.get("model_type") == Some(&json!("modernbert")) {
        return None; // its old dialect is another one: tests/encoders.rs
    }
    let rope = old.remove("rope_parameters")?;
    let mut rope = rope.as_object()?.clone();
    if let (Some(local), Some(global)) = (rope.get("sliding_attention"), rope.get("full_attention")) {
        old.insert("rope_local_base_freq".into(), local["rope_theta"].clone());
        rope = global.as_object()?.clone();
    }
    let neox = config["model_type"] == "gpt_neox";
    let keys = if neox { ["rotary_emb_base", "rotary_pct"] } else { ["rope_theta", "partial_rotary_factor"] };
    for (new, own) in ["rope_theta", "partial_rotary_factor"].iter().zip(keys) {
        rope.remove(*new).map(|value| old.insert(own.into(), value));
    }
    let kind = rope.remove("rope_type")?;
    rope.insert("type".into(), kind.clone());
    old.insert("rope_scaling".into(), if kind == "default" { Value::Null } else { json!(rope) });
    Some(old)
}

#[test]
fn both_dialects_say_the_same() {
    on_all(|folder| {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let Some(old) = old_dialect(config.as_object().unwrap()) else { return };
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
        fs::write(copy.path().join("config.json"), json!(old).to_string()).unwrap();
        let tokens = golden_tokens(&read_tensors(&folder.join("golden.safetensors")));
        let logits = |folder: &Path| -> Tensor {
            let run = load(folder, Kind::Double).unwrap().run(&tokens, &Plan::new()).unwrap();
            run.logits().unwrap().shallow_clone()
        };
        assert_close(name(folder), &logits(copy.path()), &logits(folder), Tol::Exact);
    });
}

/// A copy of a checkpoint with another config and other tensors.
fn changed(
    like: &str,
    config: impl Fn(&mut Map<String, Value>),
    tensors: impl Fn(String, Tensor) -> (String, Tensor),
) -> headscope::Result<Model> {
    let (copy, path) = (tempfile::tempdir().unwrap(), fixture("families").join(like));
    let all = Tensor::read_safetensors(path.join("model.safetensors")).unwrap();
    let all: Vec<_> = all.into_iter().map(|(name, x)| tensors(name, x)).collect();
    Tensor::write_safetensors(&all, copy.path().join("model.safetensors")).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
    config(json.as_object_mut().unwrap());
    fs::write(copy.path().join("config.json"), json.to_string()).unwrap();
    load(copy.path(), Kind::Double)
}

/// The width of windows that a config leaves out is transformers' default; `null` is none.
#[test]
fn windows_that_are_left_out() {
    let window = |like: &str, said: Option<Value>| {
        let config = |json: &mut Map<String, Value>| match &said {
            Some(said) => drop(json.insert("sliding_window".into(), said.clone())),
            None => drop(json.remove("sliding_window")),
        };
        let model = changed(like, config, |name, x| (name, x)).unwrap();
        let windows: Vec<Option<usize>> =
            (0..model.config().n_layers).map(|l| model.config().layer(l).window).collect();
        windows
    };
    assert_eq!(window("mistral", None), [Some(4096); 2]);
    assert_eq!(window("mistral", Some(Value::Null)), [None; 2]);
    assert_eq!(window("mistral", Some(json!(3))), [Some(3); 2]);
    assert_eq!(window("qwen2-sliding", None), [None, Some(4096), Some(4096)]);
    assert_eq!(window("gpt_oss", None), [Some(128), None]);
    assert_eq!(window("phi3", None), [None; 2]);
}

/// A head for another task reads the residual stream, which is as it was; one beside the vocabulary's is passed over.
#[test]
fn heads_for_other_tasks() {
    for (like, head) in [("llama", "lm_head.weight"), ("gpt_neox", "embed_out.weight")] {
        let tokens = golden_tokens(&read_tensors(&fixture("families").join(like).join("golden.safetensors")));
        let other = |name: String, x: Tensor| match name == head {
            true => ("score.weight".to_owned(), x.narrow(0, 0, 2).contiguous()),
            false => (name, x),
        };
        let own = |name, x| (name, x);
        let [found, whole] = [changed(like, |_| {}, other).unwrap(), changed(like, |_| {}, own).unwrap()];
        assert!(!found.config().has_logits() && whole.config().has_logits());
        let last = Site::ResidPost(found.config().n_layers - 1);
        let stream = |model: &Model| model.run(&tokens, &Plan::new().tap(last)).unwrap().get(last).unwrap().copy();
        assert_close(like, &stream(&found), &stream(&whole), Tol::Exact);
    }
}

/// Settings that transformers ignores or that would be computed wrongly are errors that name the key.
#[test]
fn settings_that_are_refused() {
    let cases = [
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("gemma", "hidden_activation", json!("relu")),
        ("gemma3_text", "attn_logit_softcapping", json!(2.0)),
        ("bloom", "slow_but_exact", json!(true)),
        ("cohere2", "use_qk_norm", json!(true)),
        ("exaone4", "hidden_act", json!("mish")),
    ];
    for (like, key, value) in cases {
        let config = |json: &mut Map<String, Value>| drop(json.insert(key.into(), value.clone()));
        let error = changed(like, config, |name, x| (name, x)).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

/// A family that is not known is told apart by what the nearest known one makes of its config.
#[test]
fn unknown_families_name_the_nearest() {
    let says = |like: &str, change: &dyn Fn(&mut Map<String, Value>), parts: &[&str]| {
        let message = changed(like, change, |name, x| (name, x)).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "`{message}` does not say `{part}`"));
    };
    let named = |name: &'static str, key: &'static str, value: Value| {
        move |config: &mut Map<String, Value>| {
            config.insert("model_type".into(), json!(name));
            config.insert(key.into(), value.clone());
        }
    };
    let odd = named("llama9", "swirl_factor", json!(3));
    says("llama3", &odd, &["llama9", "nearest is `llama`", "swirl_factor", "CONTRIBUTING.md"]);
    says("gemma2", &named("gemma9", "vocab_size", json!(40)), &["gemma9", "nearest is `gemma2`"]);
    let other = named("gpt_neox_next", "hidden_act", json!("mish"));
    says("gpt_neox", &other, &["nearest is `gpt_neox`", "hidden_act", "mish"]);
}

/// A tensor that is missing, too many, of another shape or not finite, and numbers that make no sense, are errors that name
/// what is wrong, in every family.
#[test]
fn spoilt_checkpoints_are_refused() {
    on_all(|folder| {
        let copy = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        let mut tensors = Tensor::read_safetensors(folder.join("model.safetensors")).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0)); // read in another order by every process
        let write = |config: &str, tensors: &[(String, Tensor)]| {
            fs::write(copy.path().join("config.json"), config).unwrap();
            Tensor::write_safetensors(tensors, copy.path().join("model.safetensors")).unwrap();
            load(copy.path(), Kind::Float)
        };
        let whole = || tensors.iter().map(|(name, x)| (name.clone(), x.shallow_clone())).collect::<Vec<_>>();
        for (i, (name, _)) in tensors.iter().enumerate().step_by(3) {
            let mut fewer = whole();
            drop(fewer.remove(i));
            match write(&config, &fewer) {
                // Saved without a head, or by heads that are tied: nothing says that it was there.
                Ok(_) => {
                    let of_block = ["layers.", "h.", "block."].iter().any(|part| name.contains(part));
                    assert!(!of_block, "{name} is not needed");
                }
                // Or without the tensor by which a head is known: what remains of it has no place.
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains("missing") || said.contains("no place for"), "{name}: {said}");
                }
            }
        }
        let spoil = |change: &dyn Fn(&Tensor) -> Tensor, part: &str| {
            let mut all = whole();
            // One of a layer, which has to be there: a pooler, a classifier or a mask may be left over.
            let of_a_layer = |name: &str| name.contains(".0.") && (name.contains("weight") || name.contains(".W_"));
            let spoilt = all.iter().position(|(name, _)| of_a_layer(name) || name.starts_with("h.0.")).unwrap();
            all[spoilt].1 = change(&all[spoilt].1);
            let message = write(&config, &all).unwrap_err().to_string();
            assert!(message.contains(&all[spoilt].0) && message.contains(part), "{message}");
        };
        spoil(&|x| x.unsqueeze(0), "shape");
        spoil(&|x| x * f64::NAN, "finite");
        let mut more = whole();
        more.push(("extra.weight".to_owned(), Tensor::ones([2], (Kind::Float, tch::Device::Cpu))));
        let message = write(&config, &more).unwrap_err().to_string();
        assert!(message.contains("extra.weight"), "{message}");
        let values: Value = serde_json::from_str(&config).unwrap();
        drop(write(&config, &whole()));
        for (number, key) in values.as_object().unwrap().keys().enumerate() {
            let odd =
                [json!(0), json!(u64::MAX), json!(-1), json!(1e300), json!("odd"), json!([]), json!({}), json!(true)];
            for odd in [&odd[number % 2], &odd[2 + number % 6]] {
                let mut values = values.clone();
                values[key] = odd.clone();
                fs::write(copy.path().join("config.json"), values.to_string()).unwrap();
                let _ = load(copy.path(), Kind::Float); // an error or a model, never a panic
            }
        }
    });
}
