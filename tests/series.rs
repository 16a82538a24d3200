//! Checkpoints of training: by name and revision, and as a series in one table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use headscope::prelude::*;

/// A folder with checkpoints of these steps, and things that are none.
fn trained(folder: &Path) -> String {
    for step in [1000, 0, 512] {
        Model::random(&ModelConfig::default(), step).unwrap().save(folder.join(format!("step{step}"))).unwrap();
    }
    Model::random(&ModelConfig::default(), 9).unwrap().save(folder.join("best")).unwrap();
    std::fs::create_dir(folder.join("step7")).unwrap();
    std::fs::write(folder.join("step8"), "no folder").unwrap();
    folder.to_str().unwrap().to_owned()
}

/// `@step512` is the sub-folder, and so is a revision of the options; what is not there is an error that says what is.
#[test]
fn revisions_are_sub_folders() {
    let folder = tempfile::tempdir().unwrap();
    let name = trained(folder.path());
    let at = |name: &str, revision: Option<&str>| {
        let revision = revision.map(str::to_owned);
        Model::load_with(name, &LoadOptions { revision, ..LoadOptions::default() })
    };
    let numbers = |model: &Model| {
        let same = Model::random(&ModelConfig::default(), 512).unwrap();
        model.parameters().iter().zip(same.parameters()).all(|((_, a), (_, b))| a.equal(b))
    };
    for found in [at(&format!("{name}@step512"), None), at(&name, Some("step512")), at(&format!("{name}@best"), None)] {
        let found = found.unwrap();
        assert_eq!(numbers(&found), !found.origin().name.ends_with("best"), "{:?}", found.origin());
    }
    let says = |found: headscope::Result<Model>, words: &[&str]| {
        let error = found.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    says(at(&format!("{name}@step7"), None), &["step7", "best, step0, step1000, step512"]);
    says(at(&format!("{name}@step512"), Some("step0")), &["revision", "step512", "step0"]);
    says(at("induction", Some("step0")), &["induction", "single one"]);
    says(at("fixtures/gguf/tiny-llama.gguf@step0", None), &["revision", "single one"]);
    says(at("fixtures/checkpoints/tiny-gpt2@step0", None), &["no folder with a config.json"]);
    // A folder whose own name has the sign.
    let odd = folder.path().join("a@b");
    Model::random(&ModelConfig::default(), 1).unwrap().save(&odd).unwrap();
    assert!(Model::load(odd.to_str().unwrap()).is_ok());
}

/// One call gives one table, in the order of training, with each checkpoint's hash.
#[test]
fn a_series_is_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let name = trained(folder.path());
    let series = Series::of_folder(&name).unwrap();
    assert_eq!(series.steps(), [0, 512, 1000]);
    let tokens = Tokens::new(&[vec![5, 6, 7, 5, 6, 7]]).unwrap();
    let ablate = |model: &Model| Sweep::ablate(model, &tokens, Ablation::Zero).run();
    let table = series.table(ablate).unwrap();
    assert_eq!(table.len(), 3 * 4);
    let rows = table.rows().unwrap();
    for (step, seed) in [(0, 0), (512, 512), (1000, 1000)] {
        let own = ablate(&Model::random(&ModelConfig::default(), seed).unwrap()).unwrap();
        let found: Vec<f64> = rows.iter().filter(|row| row.keys.step == Some(step)).map(|row| row.value).collect();
        assert_eq!(found, own.f64("value").unwrap());
    }
    let of = table.provenance().options["of"].as_array().unwrap().clone();
    assert_eq!(
        of.iter().map(|one| one["revision"].as_str().unwrap()).collect::<Vec<_>>(),
        ["step0", "step512", "step1000"]
    );
    assert!(of.iter().all(|one| one["sha256"].as_str().unwrap().len() == 64));
    let some = Series::new(&name, ["step1000", "step0"]).unwrap();
    assert_eq!(some.steps(), [0, 1000]);
    for bad in [vec!["main"], vec![], vec!["step1", "b1"]] {
        assert!(Series::new(&name, bad).unwrap_err().is_misuse());
    }
    let double = some.options(LoadOptions { kind: Kind::Double, ..LoadOptions::default() });
    assert_eq!(double.table(ablate).unwrap().provenance().options["of"][0]["options"]["dtype"], "Double");
    assert!(Series::of_folder("fixtures/gguf").is_err());
}
