//! Every site holds what TransformerLens 3.9 finds at the hook that the docs of `Site` name, in its own checkpoints and in those
//! of GPT-2, GPT-NeoX, Llama, Gemma 2 and BERT. `fixtures/make_hooked.py` has the table of sites and hooks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use common::{Tol, assert_close, fixture, load, read_tensors, tokens_of};
use headscope::model::{LayerRotary, ModelConfig, Plan, Position, Site};
use tch::{Kind, Tensor};

/// The golden files of this name beside the checkpoints whose names begin with `prefix`.
fn golden(prefix: &str, file: &str) -> Vec<(String, HashMap<String, Tensor>)> {
    let folders = std::fs::read_dir(fixture("families")).unwrap();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| name(path).starts_with(prefix));
    let mut all: Vec<_> = folders
        .filter(|path| path.join(file).exists())
        .map(|path| (format!("families/{}", name(&path)), read_tensors(&path.join(file))))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Compares every site, and fails with the names of all models in which one differs.
fn compare(all: &[(String, HashMap<String, Tensor>)], tol: impl Fn(&ModelConfig, usize) -> Tol) {
    let fails = |(name, golden): &&(String, HashMap<String, Tensor>)| {
        let model = load(name, Kind::Double);
        let tokens = tokens_of(&golden["tokens"]);
        let tol = tol(model.config(), tokens.positions());
        let check = || {
            let run = model.run(&tokens, &Plan::new().tap("*")).unwrap();
            for site in Site::all(model.config()) {
                let expected = golden.get(&site.to_string()).unwrap_or_else(|| panic!("{name}: no hook for {site}"));
                assert_close(&format!("{name} {site}"), run.get(site).unwrap(), expected, tol);
            }
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err()
    };
    let failed: Vec<&String> = all.iter().filter(fails).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn its_own_checkpoints() {
    let all = golden("tl-", "golden.safetensors");
    assert_eq!(all.len(), 13);
    compare(&all, |_, _| Tol::Model(Kind::Double));
}

/// TransformerLens divides positions by wavelengths, transformers multiplies them by frequencies: their float32 tables of
/// rotary positions differ by rounding.
#[test]
fn converted_checkpoints() {
    let all = golden("", "golden-transformer-lens.safetensors");
    assert_eq!(all.len(), 5);
    compare(&all, |config, positions| {
        let own = config.layers.iter().any(|layer| matches!(layer.rotary, LayerRotary::Own(_)));
        match matches!(config.position, Position::Rotary(_)) || own {
            true => Tol::Tables { layers: config.n_layers, positions },
            false => Tol::Model(Kind::Double),
        }
    });
}
