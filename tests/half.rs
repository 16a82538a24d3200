//! Half precision computes: beside float64 on the same weights, beside transformers in the same type, and through the engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::Command;

use common::architectures::any_config;
use common::{Tol, assert_as_accurate, assert_close, fixture, load, read_tensors, scale, some_tokens, tokens_of};
use headscope::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const HALVES: [(Kind, &str); 2] = [(Kind::Half, "float16"), (Kind::BFloat16, "bfloat16")];

/// The float64 model of the same weights: those that half precision has rounded already.
fn exact(model: &Model) -> Model {
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    let options = LoadOptions { kind: Kind::Double, ..LoadOptions::default() };
    Model::load_with(folder.path().to_str().unwrap(), &options).unwrap()
}

fn tokens(name: &str) -> Tokens {
    tokens_of(&read_tensors(&fixture(name).join("golden-float64.safetensors"))["tokens"])
}

/// Weights and activations are of the type asked for, whatever the checkpoint's, and every site is as near to float64 as the
/// table of tolerances says.
#[test]
fn sites_are_those_of_float64() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-bert", "tiny-llama-variant", "tiny-gpt2-bf16", "tiny-llama-f16"] {
        for (kind, _) in HALVES {
            let model = load(name, kind);
            assert!(model.kind() == kind && model.parameters().iter().all(|(_, w)| w.kind() == kind), "{name}");
            let exact = exact(&model);
            let tokens = tokens(&name.split('-').take(2).collect::<Vec<_>>().join("-"));
            let sites: Vec<Site> =
                Site::all(model.config()).into_iter().filter(|site| site.kind() != "scores").collect();
            let plan = || Plan::new().taps(sites.iter().copied());
            let (found, expected) = (model.run(&tokens, &plan()).unwrap(), exact.run(&tokens, &plan()).unwrap());
            for &site in &sites {
                let (found, expected) = (found.get(site).unwrap(), expected.get(site).unwrap());
                assert_eq!(found.kind(), kind, "{name} {site}");
                let tol = Tol::of(model.config(), kind);
                assert_close(&format!("{name} {kind:?} {site}"), found, expected, tol);
                // Not only the worst element: the root mean square is six times smaller.
                let error = scale(&(found.to_kind(Kind::Double) - expected));
                assert!(error <= tol.bound() / 6.0 * scale(expected), "{name} {kind:?} {site}: {error:e}");
            }
            model.verify(&tokens).unwrap().require().unwrap();
        }
    }
}

/// As near to the truth as transformers is in the same type, with and without fused attention.
#[test]
fn logits_are_as_accurate_as_those_of_transformers() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-bert"] {
        let golden = read_tensors(&fixture(name).join("golden-half.safetensors"));
        for (kind, label) in HALVES {
            let (model, tokens) = (load(name, kind), tokens(name));
            let (theirs, truth) = (&golden[&format!("logits.{label}")], &golden[&format!("truth.{label}")]);
            let plan = || Plan::new().tap(Site::Logits);
            for plan in [plan(), plan().explicit(), plan().tap("*_scale*")] {
                let run = model.run(&tokens, &plan).unwrap();
                let what = format!("{name} {label}");
                assert_as_accurate(&what, run.logits().unwrap(), theirs, truth, model.config());
            }
        }
    }
}

/// Every architecture computes in half precision, within the bounds; only which experts are chosen may turn on a rounding.
#[test]
fn every_architecture_computes() {
    let mut far = vec![];
    let n = common::cases(40);
    for seed in 0..u64::from(n) {
        let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
        let config = ModelConfig { experts: None, ..config };
        let tokens = some_tokens(2, 6, config.vocab, seed as usize);
        for (kind, label) in HALVES {
            let model = Model::random_as(&config, seed, kind, Device::Cpu).unwrap();
            let logits =
                |model: &Model| model.run(&tokens, &Plan::new()).unwrap().logits().unwrap().to_kind(Kind::Double);
            let (found, expected) = (logits(&model), logits(&exact(&model)));
            let error = scale(&(&found - &expected)) / scale(&expected);
            if error > Tol::of(&config, kind).bound() / 6.0 {
                far.push(format!("{label} {error:.3}: {config:?}"));
            }
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}

/// Sweeps, lenses, attribution, paths, heads and generation run in half precision, and find what float64 finds.
#[test]
fn probes_find_what_float64_finds() {
    for (kind, label) in HALVES {
        let model = load("tiny-llama", kind);
        let exact = exact(&model);
        let tokens = tokens("tiny-llama");
        let metric = Metric::logit_difference(3i64, 5i64);
        let ablated = |model: &Model, strategy| {
            let sweep = Sweep::ablate(model, &tokens, Ablation::Mean).metric(metric.clone()).strategy(strategy);
            Tensor::from_slice(&sweep.run().unwrap().f64("value").unwrap())
        };
        let found = ablated(&model, Strategy::Auto);
        let bound = Tol::of(model.config(), kind);
        assert_close(&format!("{label}: ablations"), &found, &ablated(&exact, Strategy::Auto), bound);
        assert_close(&format!("{label}: strategies"), &found, &ablated(&model, Strategy::Naive), bound);
        for metric in [Metric::Loss, Metric::Kl, Metric::Accuracy, Metric::probability(3i64)] {
            let table = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(metric).interval(0).run().unwrap();
            assert!(table.f64("value").unwrap().iter().all(|value| value.is_finite()));
            assert_eq!(table.provenance().options["dtype"], format!("{kind:?}"));
        }
        let lens = |model: &Model| Lens::logit(model).top(&tokens, 3).unwrap().f64("value").unwrap();
        assert!(lens(&model).iter().all(|value| (0.0..=1.0).contains(value)));
        assert!(Lens::tuned(&model, &tokens, &TunedOptions::default()).unwrap_err().to_string().contains("float32"));
        let terms = |model: &Model| {
            let terms = direct_attribution(model, &tokens, &metric).unwrap();
            Tensor::from_slice(&terms.f64("value").unwrap())
        };
        assert_close(&format!("{label}: attribution"), &terms(&model), &terms(&exact), bound);
        let scores = |model: &Model| {
            let scores = pattern_scores(model, &tokens, &PatternOptions::default()).unwrap();
            Tensor::from_slice(&scores.f64("value").unwrap()).nan_to_num(0.0, None, None)
        };
        assert_close(&format!("{label}: scores"), &scores(&model), &scores(&exact), bound);
        let alike = |model: &Model| {
            let alike = similarity(model, &tokens, Similarity::JensenShannon).unwrap();
            Tensor::from_slice(&alike.f64("value").unwrap())
        };
        assert_close(&format!("{label}: similarity"), &alike(&model), &alike(&exact), bound);
        let written = model.generate(&tokens).max_new(5).run().unwrap();
        assert!(written.continuations.iter().all(|written| (1..=5).contains(&written.ids.len())));
        let pair = tokens_pair(&model);
        let paths = Paths::noising(&model, &pair).run();
        assert!(paths.unwrap().f64("value").unwrap().iter().all(|value| value.is_finite()));
    }
}

fn tokens_pair(model: &Model) -> Prompts {
    let pair = Pair::new(vec![5, 6, 7, 8, 9], vec![5, 6, 70, 8, 9]).answers(3i64, 5i64);
    model.prompts([pair]).unwrap()
}

/// The command's `--dtype`, up to a table and a file.
#[test]
fn the_command_computes_in_half_precision() {
    let folder = tempfile::tempdir().unwrap();
    let (table, file) = (folder.path().join("table.parquet"), folder.path().join("a.safetensors"));
    let done = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let gpt2 = fixture("tiny-gpt2").to_str().unwrap().to_owned();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (kind, label) in HALVES {
        let all = ["--dtype", label, "--tokens", "[[5,6,7,8],[9,8,7,6]]"];
        done(&[&["ablate", &gpt2, "--out", &text(&table)], all.as_slice()].concat());
        let found = Table::read(&table).unwrap();
        assert_eq!(found.provenance().options["dtype"], format!("{kind:?}"));
        done(&[&["activations", &gpt2, "--sites", "logits", "--out", &text(&file)], all.as_slice()].concat());
        assert_eq!(read_tensors(&file)["logits"].kind(), Kind::Float); // files have no half precision
        let foretold: serde_json::Value =
            serde_json::from_str(&done(&["inspect", &gpt2, "--json", "--dtype", label])).unwrap();
        assert_eq!(foretold["memory"]["load"], 2 * load("tiny-gpt2", kind).n_parameters());
        let said = done(&["verify", &gpt2, "--dtype", label]);
        assert!(!said.contains("FAIL"), "{said}");
    }
}
