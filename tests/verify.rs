//! `headscope verify`: the invariants hold whatever the architecture; a file of transformers' numbers is compared site by site.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::architectures::any_config;
use common::{fixture, load, read_tensors};
use headscope::Error;
use headscope::prelude::*;
use headscope::verify::{Verification, rounding};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn headscope(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).output().unwrap()
}

/// What the command prints, and its exit code.
fn told(arguments: &[&str]) -> (String, i32) {
    let output = headscope(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("panicked"), "{error}");
    (String::from_utf8(output.stdout).unwrap() + &error, output.status.code().unwrap())
}

fn golden(name: &str) -> PathBuf {
    fixture(name).join("golden-verify.safetensors")
}

/// The same file with a tensor changed.
fn changed(name: &str, into: &Path, tensor: &str, change: impl Fn(Tensor) -> Tensor) {
    let change = |(own, value): (String, Tensor)| match own == tensor {
        true => (own, change(value).contiguous()),
        false => (own, value),
    };
    let tensors: Vec<_> = read_tensors(&golden(name)).into_iter().map(change).collect();
    Tensor::write_safetensors(&tensors, into).unwrap();
}

/// Every invariant holds in every architecture, in both types, on prompts of one length and of several.
#[test]
fn invariants_hold_everywhere() {
    let (mut names, mut all, mut beyond) = (BTreeSet::new(), 0, 0);
    for seed in 0..u64::from(common::cases(24)) {
        let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
        for kind in [Kind::Float, Kind::Double] {
            let model = Model::random_as(&config, seed, kind, Device::Cpu).unwrap();
            let uneven = Tokens::new(&[vec![3, 4, 5, 6, 7, 8], vec![9, 8, 7]]).unwrap();
            for tokens in [Tokens::for_verification(&model).unwrap(), uneven] {
                let found = model.verify(&tokens).unwrap();
                for check in &found.checks {
                    // Architectures this small are chaotic: where a norm divides by nearly nothing, errors grow.
                    let far = check.difference / check.bound;
                    assert!(far < 30.0, "{kind:?} {config:?}: {check}");
                    all += 1;
                    beyond += u32::from(!check.passed());
                }
                names.extend(found.checks.iter().map(|check| check.name));
                assert_eq!(config.causal, found.checks.iter().any(|check| check.name == "causality"));
                assert_eq!(found.table().unwrap().len(), found.checks.len());
            }
        }
    }
    assert!(beyond * 200 < all, "{beyond} of {all} checks failed");
    assert_eq!(Vec::from_iter(names), ["additivity", "causality", "padding", "patch from self", "patterns"]);
}

/// What transformers computed by the ten lines is what we compute; every site is compared, and only those of the file.
#[test]
fn transformers_finds_the_same() {
    for (name, sites) in [("tiny-llama", 8), ("tiny-bert", 8)] {
        for kind in [Kind::Float, Kind::Double] {
            let model = load(name, kind);
            let found = model.verify_against(golden(name)).unwrap();
            found.require().unwrap();
            assert_eq!(found.checks.len(), sites, "{name}");
            let last = found.checks.last().unwrap();
            assert_eq!(last.bound, rounding(Kind::Float, 4, 11.max(model.config().d_mlp)));
            let share = |check: &headscope::verify::Check| check.difference / check.bound;
            let most = found.checks.iter().map(share).fold(0.0, f64::max);
            // In float32, libtorch may well do the same operations in both.
            assert!(kind == Kind::Float || most > 1e-4, "{name}: bounds that nothing comes near say nothing: {most:e}");
        }
    }
}

/// An error at one place of one site is found there, in a file and in the model.
#[test]
fn a_difference_is_found_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("golden.safetensors");
    let nudged = |x: Tensor| {
        let nudge = x.zeros_like();
        let _ = nudge.get(1).get(2).get(3).fill_(0.01);
        x + nudge
    };
    changed("tiny-llama", &file, "hidden_states.1", nudged);
    let found: Verification = load("tiny-llama", Kind::Float).verify_against(&file).unwrap();
    let failed: Vec<_> = found.checks.iter().filter(|check| !check.passed()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].site, failed[0].at.as_slice()), (Some(Site::ResidPre(1)), [1, 2, 3].as_slice()));
    assert!((failed[0].expected - failed[0].found - 0.01).abs() < 1e-4);
    let Err(Error::NotVerified { failed: 1, worst, .. }) = found.require() else { panic!("passed") };
    assert!(worst.contains("resid_pre.1") && worst.contains("[1, 2, 3]"), "{worst}");
    // Another model's numbers differ nearly everywhere.
    let other = load("tiny-gpt2", Kind::Float).verify_against(golden("tiny-llama")).unwrap();
    assert!(other.checks.iter().filter(|check| !check.passed()).count() > 5);
}

/// Files that are not what the ten lines make are errors that name the tensor.
#[test]
fn files_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("golden.safetensors");
    let model = load("tiny-llama", Kind::Float);
    let refused = |tensor: &str, change: &dyn Fn(Tensor) -> Tensor, says: &[&str]| {
        changed("tiny-llama", &file, tensor, change);
        let error = model.verify_against(&file).unwrap_err().to_string();
        assert!(says.iter().all(|word| error.contains(word)), "{error}");
    };
    refused("tokens", &|x| x.to_kind(Kind::Float), &["tokens", "int64"]);
    refused("tokens", &|x| x + 1000, &["token ids", "out of range"]);
    refused("logits", &|x| x.narrow(2, 0, 5), &["logits", "shape"]);
    refused("attentions.0", &|x| x / 0.0, &["attentions.0", "finite"]);
    let ids = ("tokens".to_owned(), Tensor::from_slice(&[5i64, 6]).view([1, 2]));
    Tensor::write_safetensors(&[&ids].map(|(name, ids)| (name.clone(), ids.shallow_clone())), &file).unwrap();
    assert!(model.verify_against(&file).unwrap_err().to_string().contains("only tokens"));
    let odd = ("hidden_states.9".to_owned(), Tensor::zeros([1, 2, 32], (Kind::Float, Device::Cpu)));
    Tensor::write_safetensors(&[(ids.0.clone(), ids.1.shallow_clone()), odd], &file).unwrap();
    assert!(model.verify_against(&file).unwrap_err().to_string().contains("hidden_states.9"));
}

/// As the command is used: without a file, with a good one, with a bad one.
#[test]
fn the_command_passes_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let file = folder.path().join("bad.safetensors");
    let table = folder.path().join("checks.parquet");
    for name in ["tiny-llama", "tiny-bert", "tiny-gpt2", "induction"] {
        let (said, code) = told(&["verify", &path(name), "--out", table.to_str().unwrap()]);
        assert_eq!(code, 0, "{said}");
        let bidirectional = name == "tiny-bert";
        assert_eq!(said.contains("left out: causality: the model is bidirectional"), bidirectional, "{said}");
        assert!(said.contains("pass  patch from self at z.0") && !said.contains("FAIL"), "{said}");
        assert_eq!(said.contains("output_attentions=True"), name != "induction", "{said}");
        assert_eq!(said.contains("headscope's own format"), name == "induction", "{said}");
        let table = Table::read(&table).unwrap();
        assert_eq!(table.columns(), ["layer", "site", "metric", "value", "unit", "high"]);
    }
    let (said, code) = told(&["verify", &path("tiny-bert"), "--against", golden("tiny-bert").to_str().unwrap()]);
    assert!(code == 0 && said.contains("pass  file at logits") && said.contains("all 8 comparisons"), "{said}");
    changed("tiny-bert", &file, "logits", |x| x * 1.01);
    let (said, code) = told(&["verify", &path("tiny-bert"), "--against", file.to_str().unwrap()]);
    assert!(code == 1 && said.contains("FAIL  file at logits") && said.contains("1 of 8 checks failed"), "{said}");
    let (said, code) = told(&["verify", &path("tiny-llama"), "--text", "once upon a time", "the end of it"]);
    assert!(code == 0 && said.contains("prompts of one length"), "{said}");
}
