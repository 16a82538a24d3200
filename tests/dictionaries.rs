//! Sparse dictionaries: what NumPy makes of them, their identities, and files that are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::{Path, PathBuf};

use common::{Tol, assert_close, load, read_tensors};
use headscope::Error;
use headscope::prelude::*;

const LAYER: Tol = Tol::Layer(Kind::Double);

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dictionaries").join(name)
}

#[test]
fn features_are_those_of_numpy() {
    let model = load("tiny-gpt2", Kind::Double);
    for (name, site) in [("relu", Site::ResidPre(1)), ("jumprelu", Site::ResidPost(2)), ("topk", Site::Z(0))] {
        let dictionary = Dictionary::load(&model, folder(name)).unwrap();
        assert_eq!((dictionary.site(), dictionary.n_features()), (site, 48));
        let golden = read_tensors(&folder(name).join("golden.safetensors"));
        let shape = site.shape(model.config(), 2, 3);
        let x = golden["x"].view(shape.as_slice());
        let features = dictionary.encode(&x).unwrap();
        assert_close(&format!("{name} features"), &features, &golden["features"], LAYER);
        let decoded = dictionary.decode(&features).unwrap();
        assert_close(&format!("{name} decoded"), &decoded, &golden["decoded"].view(shape.as_slice()), LAYER);
        let error = dictionary.error(&x).unwrap();
        assert_close(&format!("{name} error"), &error, &golden["error"].view(shape.as_slice()), LAYER);
        assert_close("whole", &(decoded + error), &x, LAYER);
    }
}

/// Features change by number; what they do not explain stays.
#[test]
fn features_are_edited_by_number() {
    let model = load("tiny-gpt2", Kind::Double);
    for name in ["relu", "jumprelu", "topk"] {
        let dictionary = Dictionary::load(&model, folder(name)).unwrap();
        let tokens = Tokens::new(&[vec![5, 6, 7, 8]]).unwrap();
        let run = model.run(&tokens, &Plan::new().tap(dictionary.site())).unwrap();
        let x = run.get(dictionary.site()).unwrap();
        let features = dictionary.features(&run).unwrap();
        assert_eq!(features.size(), [1, 4, 48]);
        let own = features.double_value(&[0, 2, 9]);
        let moved = dictionary.with_features(x, &[(9, 2.5)]).unwrap();
        // Where features are scaled by the length of their direction, a unit of one is the direction itself of length 1.
        let direction = dictionary.direction(9).unwrap();
        let unit = if name == "topk" { &direction / direction.norm() } else { direction };
        let expected = x.get(0).get(2) + unit * (2.5 - own);
        assert_close(name, &moved.get(0).get(2), &expected, LAYER);
        assert_close(name, &dictionary.with_features(x, &[]).unwrap(), x, LAYER);
        assert!(matches!(dictionary.with_features(x, &[(48, 0.0)]), Err(Error::OutOfRange { axis: "feature", .. })));
        assert!(dictionary.with_features(x, &[(0, f64::NAN)]).is_err());
        // Another type than the dictionary's is converted.
        assert_eq!(dictionary.encode(&x.to_kind(Kind::Half)).unwrap().kind(), Kind::Double);
        assert!(matches!(dictionary.encode(&x.narrow(-1, 0, 4)), Err(Error::Shape { .. })));
        assert!(dictionary.decode(&features.narrow(-1, 0, 4)).is_err() && dictionary.direction(48).is_err());
    }
}

/// What a file says and this library does not compute is an error that names it; so is what does not fit the model.
#[test]
fn other_dictionaries_are_refused() {
    let model = load("tiny-gpt2", Kind::Float);
    let copy = tempfile::tempdir().unwrap();
    let (config, weights) = (copy.path().join("cfg.json"), copy.path().join("sae_weights.safetensors"));
    let whole = std::fs::read_to_string(folder("relu").join("cfg.json")).unwrap();
    let bytes = std::fs::read(folder("relu").join("sae_weights.safetensors")).unwrap();
    std::fs::write(&weights, &bytes).unwrap();
    let error = |key: &str, value: serde_json::Value| {
        let mut all: serde_json::Value = serde_json::from_str(&whole).unwrap();
        all[key] = value;
        std::fs::write(&config, all.to_string()).unwrap();
        Dictionary::load(&model, copy.path()).unwrap_err().to_string()
    };
    for (key, value, says) in [
        ("architecture", "gated".into(), "standard, jumprelu or topk"),
        ("architecture", "jumprelu".into(), "threshold"),
        ("architecture", "topk".into(), "1 to 48 features"),
        ("normalize_activations", "layer_norm".into(), "normalize_activations"),
        ("activation_fn_str", "tanh-relu".into(), "relu or topk"),
        ("finetuning_scaling_factor", true.into(), "finetuning_scaling_factor"),
        ("hook_name", "blocks.1.ln1.hook_normalized".into(), "hook_normalized"),
        ("hook_name", "blocks.7.hook_resid_pre".into(), "layers 0 to 2"),
        ("hook_name", "blocks.1.mlp.hook_post".into(), "the width of `mlp_post.1`"),
        ("d_in", 0.into(), "1 or more"),
        ("d_sae", 47.into(), "shape"),
    ] {
        let found = error(key, value);
        assert!(found.contains(says), "{key}: {found}");
    }
    std::fs::write(&config, &whole).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 3]).unwrap();
    assert!(matches!(Dictionary::load(&model, copy.path()), Err(Error::Format { .. })));
    std::fs::remove_file(&weights).unwrap();
    assert!(matches!(Dictionary::load(&model, copy.path()), Err(Error::Io { .. })));
    std::fs::write(&config, "{").unwrap();
    assert!(Dictionary::load(&model, copy.path()).unwrap_err().to_string().contains("cfg.json"));
}
