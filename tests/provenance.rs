//! What a result says of where it comes from: weights, architectures and batches that differ never look alike, and finished
//! rows are taken from the same sweep only, as they were written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;

use common::{Tol, assert_close, configs, fixture, random, some_tokens};
use headscope::lab::Declaration;
use headscope::prelude::*;
use headscope::table::Provenance;
use proptest::prelude::*;

fn of(model: &Model) -> Provenance {
    model.provenance(serde_json::json!("test"), None).unwrap()
}

fn what(model: &Model) -> (String, String) {
    let found = of(model);
    assert_eq!(found.sha256.len(), 64, "{found:?}");
    (found.sha256, found.options["sha256_of"].as_str().unwrap().to_owned())
}

/// One number of a tensor, sharing its memory however it is laid out.
fn element(tensor: &Tensor, mut flat: usize) -> Tensor {
    let mut place = tensor.shallow_clone();
    for (axis, &length) in tensor.size().iter().enumerate().rev() {
        place = place.narrow(axis as i64, flat as i64 % length, 1);
        flat /= length as usize;
    }
    place
}

/// A copy of a fixture's folder.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Model {
    Model::load(folder.to_str().unwrap()).unwrap()
}

#[test]
fn loaded_weights_have_their_files_hash_until_they_or_the_files_change() {
    let folder = copied("tiny-gpt2");
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let own = {
        use sha2::{Digest, Sha256};
        format!("{:x}", Sha256::digest(&bytes))
    };
    let model = load(folder.path());
    assert_eq!(what(&model), (own.clone(), "files".to_owned()));
    assert_eq!(what(&model), (own.clone(), "files".to_owned()), "asked again");
    // One number of one parameter, in place: the cached hash is not kept either.
    let (name, parameter) = model.parameters().into_iter().last().unwrap();
    let mut number = element(parameter, 0);
    let _ = tch::no_grad(|| number.g_add_scalar_(1.0));
    let (changed, kind) = what(&model);
    assert_eq!(kind, "parameters", "{name}");
    let _ = tch::no_grad(|| number.g_add_scalar_(1.0));
    assert_ne!(what(&model).0, changed);
    // Another file under the same name, after the model was read and before its hash was asked for.
    for edit in [true, false] {
        let model = load(folder.path());
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        if edit {
            std::fs::write(&file, &other).unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        assert_eq!(what(&model).1, "parameters", "of a file that changed");
        std::fs::write(&file, &bytes).unwrap();
    }
    assert_eq!(what(&load(folder.path())), (own, "files".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(14), ..ProptestConfig::default() })]

    /// Equal parameters have equal hashes; a change of any number of any parameter, in place, is another model, and changed
    /// back it is the same again.
    #[test]
    fn any_number_of_any_parameter_counts(config in 0..configs().len(), seed in 0u64..1000, at in any::<prop::sample::Index>(), number in any::<prop::sample::Index>()) {
        let config = &configs()[config];
        let (model, same, other) = (random(config, seed), random(config, seed), random(config, seed + 1));
        prop_assert_eq!(what(&model), what(&same));
        prop_assert_ne!(what(&model).0, what(&other).0);
        let parameters = same.parameters();
        let parameter = parameters[at.index(parameters.len())].1;
        let mut place = element(parameter, number.index(parameter.numel()));
        let before = place.copy();
        let _ = tch::no_grad(|| place.g_add_scalar_(1e-9));
        prop_assert_ne!(what(&model).0, what(&same).0);
        tch::no_grad(|| place.copy_(&before));
        prop_assert_eq!(what(&model).0, what(&same).0);
    }
}

#[test]
fn architectures_with_the_same_weights_are_told_apart() {
    let config = configs().remove(0);
    let (a, b) = (random(&config, 3), random(&ModelConfig { norm_eps: 1e-3, ..config.clone() }, 3));
    assert_eq!(of(&a).sha256, of(&b).sha256);
    assert_ne!(of(&a).options, of(&b).options);
}

#[test]
fn trained_models_are_told_apart() {
    let trained = |seed: u64, steps: usize| {
        let mut declaration = Declaration::named("induction").unwrap();
        (declaration.train.seed, declaration.train.steps, declaration.train.trace) = (seed, steps, None);
        let mut all = declaration.trainer().unwrap().run().unwrap();
        what(&all.remove(0).model)
    };
    let (a, again, longer, other) = (trained(1, 2), trained(1, 2), trained(1, 3), trained(2, 2));
    assert_eq!((a.1.as_str(), &a), ("parameters", &again));
    assert!(a != longer && a != other && longer != other);
}

#[test]
fn batches_are_told_apart_whatever_their_size() {
    let model = random(&ModelConfig { n_positions: 512, ..configs().remove(2) }, 1);
    let batch = |prompts: usize, seed: usize| some_tokens(prompts, 300, model.config().vocab, seed);
    let table = |tokens: &Tokens| {
        let sweep =
            Sweep::ablate(&model, tokens, Ablation::Zero).only(|keys| (keys.layer, keys.head) == (Some(2), Some(0)));
        sweep.run().unwrap().provenance().options["what"]["tokens"].clone()
    };
    let (few, many, others) = (table(&batch(2, 1)), table(&batch(20, 1)), table(&batch(20, 2)));
    assert_eq!(
        (few["prompts"].as_u64(), few["ids"].as_u64(), few["longest"].as_u64()),
        (Some(2), Some(600), Some(300))
    );
    assert_eq!(few["rows"].as_array().unwrap().len(), 2);
    assert!(many["rows"].is_null(), "the rows of a large batch are written out");
    assert!(many.to_string().len() < 200);
    assert_ne!(many["sha256"], others["sha256"]);
    let types = batch(20, 1).with_types(vec![vec![1; 300]; 20]).unwrap();
    assert_ne!(table(&types)["sha256"], many["sha256"], "types count");
}

const MODEL: Tol = Tol::Model(Kind::Double);

/// The variants of a journal's rows, sorted.
fn variants(journal: &str) -> Vec<u64> {
    let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["row"]["variant"].as_u64();
    let mut all: Vec<u64> = journal.lines().skip(1).map(|line| row(line).unwrap()).collect();
    all.sort_unstable();
    all
}

/// A sweep whose journal is in `path`.
fn kept<'a>(model: &'a Model, tokens: &'a Tokens, path: &Path) -> Sweep<'a> {
    Sweep::ablate(model, tokens, Ablation::Zero).memory(1 << 20).journal(path)
}

#[test]
fn finished_rows_are_taken_only_as_they_were_written() {
    let (config, folder) = (configs().remove(0), tempfile::tempdir().unwrap());
    let (model, path) = (random(&config, 1), folder.path().join("journal"));
    let tokens = some_tokens(3, 6, config.vocab, 1);
    let run = || Tensor::from_slice(&kept(&model, &tokens, &path).run().unwrap().f64("value").unwrap());
    // A row that is computed by itself has other last bits than in a stack with others.
    let same = |what: &str, found: Tensor, expected: &Tensor| assert_close(what, &found, expected, MODEL);
    let values = run();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 12);
    // A row that was cut off, and one that is missing, are computed again; the others are not.
    std::fs::write(&path, &text[..text.len() - 5]).unwrap();
    same("cut off", run(), &values);
    assert_eq!(variants(&std::fs::read_to_string(&path).unwrap()), (0..12).collect::<Vec<u64>>());
    // Any single changed byte of any row: the row is computed again, and the file is whole afterwards.
    for (number, line) in lines.iter().enumerate() {
        for at in [3, line.len() / 2, line.len() - 4] {
            let mut changed: Vec<String> = lines.iter().map(ToString::to_string).collect();
            let byte = line.as_bytes()[at] ^ 1;
            changed[number].replace_range(at..=at, std::str::from_utf8(&[byte]).unwrap());
            std::fs::write(&path, changed.join("\n") + "\n").unwrap();
            same(&format!("line {} changed at {at}", number + 1), run(), &values);
            let found = std::fs::read_to_string(&path).unwrap();
            assert_eq!(variants(&found), (0..12).collect::<Vec<u64>>());
            let kept = lines.iter().filter(|line| found.contains(*line)).count();
            assert!(kept >= lines.len() - 1, "rows that were whole were computed again");
        }
    }
    // Rows of another sweep are not taken, though they are whole.
    let other = folder.path().join("other");
    kept(&random(&config, 2), &tokens, &other).run().unwrap();
    let others = std::fs::read_to_string(&other).unwrap();
    let mixed = [lines[0]].into_iter().chain(others.lines().skip(1)).collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(&path, mixed).unwrap();
    same("another sweep's rows", run(), &values);
}

#[test]
fn journals_of_other_models_batches_and_files_are_refused() {
    let (config, folder) = (configs().remove(0), tempfile::tempdir().unwrap());
    let (model, path) = (random(&config, 1), folder.path().join("journal"));
    let tokens = some_tokens(3, 6, config.vocab, 1);
    kept(&model, &tokens, &path).run().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let refused = |sweep: Sweep<'_>| {
        let error = sweep.run().unwrap_err().to_string();
        assert!(error.contains("another one") && error.contains("journal: line 1"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), whole, "a refused journal was changed");
    };
    let (other, batch) = (random(&config, 2), some_tokens(3, 6, config.vocab, 2));
    refused(kept(&other, &tokens, &path));
    refused(kept(&model, &batch, &path));
    refused(kept(&model, &tokens, &path).metric(Metric::Accuracy));
    for text in ["notes of mine", "notes of mine\n"] {
        std::fs::write(&path, text).unwrap();
        assert!(kept(&model, &tokens, &path).run().is_err(), "a file that is no journal");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn a_function_needs_a_version_for_a_journal() {
    let (config, folder) = (configs().remove(0), tempfile::tempdir().unwrap());
    let (model, path) = (random(&config, 1), folder.path().join("journal"));
    let tokens = some_tokens(2, 6, config.vocab, 1);
    let read = |logits: &Tensor| Ok(logits.select(1, 0).amax(-1, false));
    let metric = |version: Option<&str>| match version {
        Some(version) => Metric::versioned("largest", version, read),
        None => Metric::custom("largest", read),
    };
    let run = |version| kept(&model, &tokens, &path).metric(metric(version)).run();
    let error = run(None).unwrap_err();
    assert!(error.is_misuse() && error.to_string().contains("Metric::versioned"), "{error}");
    assert!(!path.exists());
    let first = run(Some("1")).unwrap();
    assert_eq!(first.provenance().options["what"]["metric"], "largest, version 1");
    assert_eq!(run(Some("1")).unwrap().f64("value").unwrap(), first.f64("value").unwrap());
    assert!(run(Some("2")).unwrap_err().to_string().contains("another one"));
    let without = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(metric(None)).run().unwrap();
    assert_eq!(without.f64("value").unwrap(), first.f64("value").unwrap());
    let paths = Paths::noise(&model, &tokens, &tokens).metric(metric(None)).journal(&path).run();
    assert!(paths.unwrap_err().to_string().contains("Metric::versioned"));
}
