//! What heads say: planted structure is found, limits hold, what cannot be answered says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::Command;

use common::{Tol, assert_near, fixture};
use headscope::heads::{
    HeadEstimator, InformationOptions, PatternOptions, PatternScore, Source, Target, head_information,
    layer_information, pair_information, pattern_scores, rank_survival, read_conllu, token_roles,
};
use headscope::information::Certainty;
use headscope::model::{Model, Tokens};
use headscope::table::{Observation, Table};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random words, for the bundled model of induction.
fn random_tokens(model: &Model, prompts: usize, length: usize) -> Tokens {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let most = model.config().vocab.min(12) as i64;
    Tokens::new(&(0..prompts).map(|_| (0..length).map(|_| rng.random_range(1..most)).collect()).collect::<Vec<_>>())
        .unwrap()
}

fn quick(targets: Vec<Target>) -> InformationOptions {
    let certainty = Certainty { halves: 8, ..Certainty::default() };
    InformationOptions { targets, samples: 600, layers: false, certainty, ..InformationOptions::default() }
}

fn by(name: &str) -> HeadEstimator {
    name.parse().unwrap()
}

fn rows(table: &Table, metric: &str) -> Vec<Observation> {
    table.rows().unwrap().into_iter().filter(|row| row.metric == metric).collect()
}

fn of(table: &Table, layer: u32, head: u32, task: &str) -> Observation {
    let found = rows(table, "information")
        .into_iter()
        .find(|row| (row.keys.layer, row.keys.head, row.keys.task.as_deref()) == (Some(layer), Some(head), Some(task)));
    found.unwrap()
}

#[test]
fn heads_say_what_they_look_at() {
    let model = Model::load("induction").unwrap();
    let tokens = random_tokens(&model, 60, 20);
    let table = head_information(&model, &tokens, &quick(vec![Target::PreviousToken, Target::CurrentToken])).unwrap();
    let scores = PatternOptions { scores: vec![PatternScore::PreviousToken], ..PatternOptions::default() };
    let looks = pattern_scores(&model, &tokens, &scores).unwrap();
    let looks = looks.f64("value").unwrap(); // layer 0's heads first
    let best = (0..4).max_by(|&a, &b| looks[a].total_cmp(&looks[b])).unwrap() as u32;
    let worst = (0..4).min_by(|&a, &b| looks[a].total_cmp(&looks[b])).unwrap() as u32;
    let told = |head| of(&table, 0, head, "previous-token");
    assert!(told(best).value > told(worst).value + 0.1, "{looks:?} {:?} {:?}", told(best), told(worst));
    assert!(told(best).low.unwrap() > 0.5 && told(best).samples.unwrap() > 500);
    for row in rows(&table, "information") {
        let most =
            rows(&table, "entropy").into_iter().find(|entropy| entropy.keys.task == row.keys.task).unwrap().value;
        assert!(row.value < most + 0.05 && row.value > -0.2, "{row:?}");
        assert!(row.low.unwrap() <= row.value && row.value <= row.high.unwrap());
        assert!(row.keys.dimension.is_some_and(|k| (8..=16).contains(&k)), "{row:?}");
    }
    // The same labels, but of other places: nothing to say. (A random model says something: tokens are there to be seen.)
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let labels = tokens.rows().iter().map(|row| row.iter().map(|_| Some(rng.random_range(0..5).to_string())).collect());
    let options = InformationOptions { labels: Some(labels.collect()), ..quick(vec![Target::Role]) };
    for row in rows(&head_information(&model, &tokens, &options).unwrap(), "information") {
        assert!(row.value < 0.03, "{row:?}");
    }
}

#[test]
fn noise_dimensions_and_capacity() {
    let model = Model::load("induction").unwrap();
    let tokens = random_tokens(&model, 60, 20);
    let ask = |estimator: &str, noise: f64, dimensions: Vec<usize>| {
        let options = InformationOptions {
            estimator: by(estimator),
            noise: Some(noise),
            dimensions,
            ..quick(vec![Target::PreviousToken])
        };
        head_information(&model, &tokens, &options).unwrap()
    };
    for estimator in ["vinfo", "ksg", "gaussian"] {
        let (little, much) = (ask(estimator, 0.1, vec![1, 4]), ask(estimator, 3.0, vec![1, 4]));
        for table in [&little, &much] {
            let sigma: f64 = table.provenance().options["what"]["options"]["noise"].as_f64().unwrap();
            for row in rows(table, "capacity") {
                let k = f64::from(row.keys.dimension.unwrap());
                assert_near("capacity", row.value, k / 2.0 * (1.0 + 1.0 / (sigma * sigma)).ln(), Tol::Number);
            }
            // Nothing says more than its channel carries.
            for (told, most) in rows(table, "information").iter().zip(rows(table, "capacity")) {
                assert_eq!(told.keys, most.keys);
                let chance = told.high.unwrap_or(told.value) - told.value;
                assert!(told.value <= most.value + chance + 0.05, "{estimator}: {told:?} over {most:?}");
            }
        }
        let sum = |table: &Table| rows(table, "information").iter().map(|row| row.value).sum::<f64>();
        assert!(sum(&much) < sum(&little), "{estimator}: noise destroys");
        let at = |k: u32| {
            rows(&little, "information")
                .iter()
                .filter(|row| row.keys.dimension == Some(k))
                .map(|row| row.value)
                .sum::<f64>()
        };
        assert!(at(4) > at(1), "{estimator}: more dimensions say more");
    }
    for estimator in ["ksg", "gaussian"] {
        let table = ask(estimator, 0.0, vec![2]);
        assert!(rows(&table, "capacity").is_empty());
        for row in rows(&table, "information") {
            assert!(row.warnings.as_ref().is_some_and(|text| text.contains("no noise")), "{estimator}: {row:?}");
        }
    }
}

#[test]
fn sources_layers_and_other_heads() {
    let model = Model::load("induction").unwrap();
    let tokens = random_tokens(&model, 60, 20);
    let options = InformationOptions {
        sources: vec![Source::Z, Source::O, Source::Pattern],
        layers: true,
        ..quick(vec![Target::Position, Target::CurrentToken])
    };
    let table = head_information(&model, &tokens, &options).unwrap();
    let all = rows(&table, "information");
    assert_eq!(all.len(), 2 * 3 * (4 + 1) * 2);
    let mean = |site: &str, layer: bool, task: &str| {
        let some = all.iter().filter(|row| {
            row.keys.site.as_deref() == Some(site)
                && row.keys.head.is_none() == layer
                && row.keys.task.as_deref() == Some(task)
        });
        let values: Vec<f64> = some.map(|row| row.value).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    // z and what is written from it are one invertible map apart: only the ridge sees a difference.
    assert!((mean("z", false, "current-token") - mean("o", false, "current-token")).abs() < 0.15);
    // All heads of a layer say more than one of them.
    assert!(mean("z", true, "current-token") > mean("z", false, "current-token"));
    // A pattern's row, key by key, tells where it stands.
    assert!(mean("pattern", false, "position") > 1.0);
    let options = InformationOptions { estimator: by("gaussian"), dimensions: vec![3], ..quick(vec![Target::Head]) };
    let pairs = rows(&head_information(&model, &tokens, &options).unwrap(), "information");
    assert_eq!(pairs.len(), 2 * 6);
    let options = InformationOptions { other: Some((0, 1)), ..options };
    assert_eq!(rows(&head_information(&model, &tokens, &options).unwrap(), "information").len(), 7);
    let options = InformationOptions { other: Some((0, 9)), ..options };
    assert!(head_information(&model, &tokens, &options).unwrap_err().to_string().contains("head 9"));
    let options = InformationOptions {
        estimator: HeadEstimator::Neural(headscope::neural::NeuralOptions {
            steps: 60,
            convergence: false,
            ..Default::default()
        }),
        ..quick(vec![Target::PreviousToken])
    };
    let trained = rows(&head_information(&model, &tokens, &options).unwrap(), "information");
    assert_eq!(trained.len(), 8);
    assert!(trained.iter().all(|row| row.value < 3.0) && trained.iter().any(|row| row.value > 0.1), "{trained:?}");
}

#[test]
fn what_survives_a_projection() {
    let model = Model::load("induction").unwrap();
    let tokens = random_tokens(&model, 60, 20);
    let options = InformationOptions { samples: 1000, ..quick(vec![Target::CurrentToken, Target::Position]) };
    let table = rank_survival(&model, &tokens, &options).unwrap();
    let best = rows(&table, "survival_best");
    assert_eq!(best.len(), 2 * 5 * 2); // layers, k of 1, 2, 4, 8, 16, features
    assert_eq!(rows(&table, "survival_own").len(), 2 * 4 * 2);
    for row in table.rows().unwrap() {
        let full = row.baseline.unwrap();
        assert!(row.value <= full.max(0.0) + 0.05 && row.value > -0.2, "no projection keeps more than all: {row:?}");
        assert!(row.low.unwrap() <= row.value && row.value <= row.high.unwrap());
    }
    let sum = |k: u32| {
        let at = best.iter().filter(|row| row.keys.layer == Some(0) && row.keys.dimension == Some(k));
        at.map(|row| row.value).sum::<f64>()
    };
    assert!(sum(2) > sum(1) && sum(4) > sum(2) && sum(16) > sum(4), "{} {} {} {}", sum(1), sum(2), sum(4), sum(16));
    // Together over the features, the best 16 dimensions beat any head's own 16.
    for head in 0..4 {
        let own = rows(&table, "survival_own")
            .into_iter()
            .filter(|row| (row.keys.layer, row.keys.head) == (Some(0), Some(head)));
        assert!(own.map(|row| row.value).sum::<f64>() <= sum(16) + 0.05);
    }
    // With as many dimensions as there are, the best projection keeps what all of the input tells.
    let all = InformationOptions { dimensions: vec![64], ..options };
    for row in rows(&rank_survival(&model, &tokens, &all).unwrap(), "survival_best") {
        assert_near("all dimensions", row.value, row.baseline.unwrap(), Tol::Samples);
    }
}

#[test]
fn heads_together() {
    let model = Model::load("induction").unwrap();
    let tokens = random_tokens(&model, 60, 20);
    let options = quick(vec![Target::PreviousToken]);
    let table = layer_information(&model, &tokens, &options).unwrap();
    assert_eq!(table.len(), 4);
    for row in rows(&table, "total_correlation") {
        assert!(row.value > -0.05 && row.samples == Some(600), "{row:?}");
    }
    let pairs = pair_information(&model, &tokens, &options).unwrap();
    assert_eq!(pairs.len(), 2 * 6 * 4);
    for row in rows(&pairs, "redundant") {
        let part = |metric: &str| rows(&pairs, metric).into_iter().find(|other| other.keys == row.keys).unwrap().value;
        assert!(
            part("unique_1").min(part("unique_2")).abs() < Tol::Samples.bound(),
            "the weaker head tells nothing alone"
        );
        assert!(row.value > -0.1 && part("synergistic") > -0.1);
    }
    let refused = pair_information(&model, &tokens, &quick(vec![Target::Head])).unwrap_err().to_string();
    assert!(refused.contains("targets with labels"), "{refused}");
}

#[test]
fn roles_come_from_annotation() {
    let model = Model::load(fixture("tiny-gpt2").to_str().unwrap()).unwrap();
    let texts = read_conllu(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/made-up.conllu")).unwrap();
    let (tokens, labels) = token_roles(&model, &texts).unwrap();
    assert_eq!(tokens.lengths(), labels.iter().map(Vec::len).collect::<Vec<_>>());
    let named: usize = labels.iter().flatten().flatten().count();
    let links: usize = texts.iter().flat_map(|text| &text.links).filter(|link| link.role.ends_with("_to_head")).count();
    assert!(named > 0 && named <= links, "{named} of {links}");
    assert!(labels.iter().flatten().flatten().any(|role| role == "nsubj"));
}

#[test]
fn nonsense_is_refused() {
    let model = Model::load("induction").unwrap();
    let tokens = random_tokens(&model, 40, 16);
    let fails = |options: &InformationOptions| head_information(&model, &tokens, options).unwrap_err().to_string();
    assert!(fails(&quick(vec![])).contains("at least one of each"));
    assert!(fails(&quick(vec![Target::Role])).contains("a label for each token"));
    let labels = Some(vec![vec![None; 16]; 39]);
    assert!(fails(&InformationOptions { labels, ..quick(vec![Target::Role]) }).contains("16 in prompt 39"));
    let labels = Some(vec![vec![Some("one".to_owned()); 16]; 40]);
    assert!(fails(&InformationOptions { labels, ..quick(vec![Target::Role]) }).contains("two labels or more of role"));
    let usual = quick(vec![Target::Position]);
    assert!(fails(&InformationOptions { noise: Some(-1.0), ..usual.clone() }).contains("noise"));
    assert!(fails(&InformationOptions { dimensions: vec![0], ..usual.clone() }).contains("dimensions"));
    assert!(fails(&InformationOptions { classes: 1, ..usual }).contains("classes"));
    assert!(
        "kgs".parse::<HeadEstimator>().is_err() && "w".parse::<Source>().is_err() && "x".parse::<Target>().is_err()
    );
}

fn headscope(arguments: &[&str], code: i32) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(if code == 0 { &output.stdout } else { &output.stderr }).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    text
}

#[test]
fn the_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("table.parquet").to_str().unwrap().to_owned();
    let model = Model::load("induction").unwrap();
    let tokens = serde_json::to_string(random_tokens(&model, 60, 16).rows()).unwrap();
    let base = ["information", "induction", "--tokens", &tokens, "--samples", "400", "--out", &out];
    let ask = |more: &[&str], code: i32| headscope(&[&base[..], more].concat(), code);
    let told = ask(&["--target", "previous-token,position", "--dimensions", "2,8"], 0);
    assert!(told.contains("information previous-token") && told.contains("entropy position"), "{told}");
    let table = Table::read(&out).unwrap();
    assert_eq!(rows(&table, "information").len(), 2 * 5 * 2 * 2);
    assert!(table.columns().contains(&"dimension".to_owned()));
    ask(&["--target", "position", "--estimator", "ksg", "--only-heads", "--noise", "1", "--permutations", "5"], 0);
    let table = Table::read(&out).unwrap();
    assert_eq!((rows(&table, "capacity").len(), rows(&table, "p_value").len()), (8, 8));
    assert!(ask(&["--ask", "layers"], 0).contains("o_information"));
    assert!(ask(&["--ask", "pairs", "--target", "previous-token"], 0).contains("synergistic previous-token"));
    assert!(ask(&["--ask", "ranks", "--target", "current-token"], 0).contains("survival_own current-token"));
    assert!(ask(&["--target", "role"], 2).contains("--conllu FILE"));
    assert!(ask(&["--target", "head", "--other", "3"], 2).contains("LAYER.HEAD"));
    ask(&["--target", "previous-tokens"], 2);
    assert!(headscope(&["information", "induction"], 2).contains("prompts: expected one of --text"));
    headscope(&["information", "induction", "--text", "a b", "--conllu", "x"], 2);
}

/// Sentences in the words of the bundled model of English, as Universal Dependencies.
fn annotated_english(sentences: usize) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let nouns = ["dog", "cat", "bird", "horse", "child", "farmer", "teacher", "sailor"];
    let verbs = ["meets", "helps", "calls", "thanks"];
    let mut text = String::new();
    for _ in 0..sentences {
        let mut noun = || nouns[rng.random_range(0..nouns.len())];
        let (subject, object) = (noun(), noun());
        let words = ["the", subject, verbs[rng.random_range(0..verbs.len())], "the", object, "."];
        let relations = [(2, "det"), (3, "nsubj"), (0, "root"), (5, "det"), (3, "obj"), (3, "punct")];
        text += &format!("# text = {}\n", words.join(" "));
        for (i, (word, (head, relation))) in words.iter().zip(relations).enumerate() {
            text += &format!("{}\t{word}\t{word}\t_\t_\t_\t{head}\t{relation}\t_\t_\n", i + 1);
        }
        text += "\n";
    }
    text
}

#[test]
fn roles_through_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, out) = (path("some.conllu"), path("table.parquet"));
    let ask = |model: &str, file: &str, code: i32| {
        headscope(&["information", model, "--target", "role", "--conllu", file, "--out", &out], code)
    };
    // A trained model: its heads tell determiners from nouns, and the first noun from the second.
    std::fs::write(&file, annotated_english(60)).unwrap();
    let told = ask("english", &file, 0);
    assert!(told.contains("entropy role") && told.contains("information role"), "{told}");
    let table = Table::read(&out).unwrap();
    let (found, there) = (rows(&table, "information"), rows(&table, "entropy")[0].value);
    // 120 determiners, 60 nouns each and 60 full stops; a root has no head.
    let shares = [0.4_f64, 0.2, 0.2, 0.2];
    assert_near("entropy", there, shares.iter().map(|p| -p * p.ln()).sum(), Tol::Samples);
    assert_eq!(found.len(), 2 * (4 + 1));
    for row in &found {
        assert!(row.value <= there + 0.05 && row.samples == Some(300), "{row:?}");
        assert!(row.low.unwrap() <= row.value && row.value <= row.high.unwrap(), "{row:?}");
    }
    assert!(found.iter().any(|row| row.keys.head.is_some() && row.low.unwrap() > 1.2), "{found:?}");
    // The made-up file, twenty times over: enough of each role, though nothing to learn from. Once is too little, and said to be.
    let made_up = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/made-up.conllu");
    let gpt2 = fixture("tiny-gpt2");
    let gpt2 = gpt2.to_str().unwrap();
    let text = std::fs::read_to_string(made_up).unwrap();
    std::fs::write(&file, format!("{}\n\n", text.trim_end()).repeat(20)).unwrap();
    assert!(ask(gpt2, &file, 0).contains("entropy role"));
    assert!(ask(gpt2, made_up, 2).contains("two labels or more of role"));
    // Words that the model does not know.
    assert!(ask("english", made_up, 1).contains("The cat sees John Smith."));
}

#[test]
fn arrays_of_anyone_by_trained_estimators() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("arrays.safetensors").to_str().unwrap().to_owned();
    let (x, y) = headscope::information::Truth::Normal { rho: 0.9 }.sample(600, 0).unwrap();
    let labels: Vec<f64> = y.iter().map(|y| f64::from(u8::from(*y > 0.0))).collect();
    let bytes = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (x, y, labels) = (bytes(x.as_slice().unwrap()), bytes(y.as_slice().unwrap()), bytes(&labels));
    let view = |data| safetensors::tensor::TensorView::new(safetensors::Dtype::F64, vec![600, 1], data).unwrap();
    let tensors = [("x", view(&x)), ("y", view(&y)), ("label", view(&labels))];
    safetensors::serialize_to_file(tensors, None, std::path::Path::new(&file)).unwrap();
    for (estimator, more) in [
        ("infonce", vec![]),
        ("nwj", vec![]),
        ("mine", vec![]),
        ("vinfo", vec![]),
        ("vinfo-mlp", vec![]),
        ("vinfo", vec!["--labels"]),
    ] {
        let y = if more.is_empty() { "y" } else { "label" };
        let base = ["mi", &file, "--x", "x", "--y", y, "--estimator", estimator, "--json"];
        let found: serde_json::Value = serde_json::from_str(&headscope(&[&base[..], &more].concat(), 0)).unwrap();
        let (nats, low, high) = (&found["estimate"], &found["low"], &found["high"]);
        let truth = if more.is_empty() { 0.83 } else { 2f64.ln() };
        assert!(nats.as_f64().unwrap() > 0.3 && low.as_f64().unwrap() < truth, "{estimator}: {found}");
        assert!(low.as_f64().unwrap() <= nats.as_f64().unwrap() && nats.as_f64().unwrap() <= high.as_f64().unwrap());
        assert_eq!((&found["estimator"], &found["unit"]), (&estimator.into(), &"nats".into()));
    }
    assert!(headscope(&["mi", &file, "--x", "x", "--y", "y", "--labels"], 2).contains("--labels"));
    assert!(headscope(&["mi", &file, "--x", "x", "--y", "y", "--estimator", "mine", "--k", "3"], 2).contains("--k"));
}
