//! Random plans, and sweeps larger than memory: the engine beside whole passes, parts of a batch beside the whole, the
//! command's memory beside its budget, and what is left when it is killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::architectures::any_config;
use common::{Tol, assert_close, assert_close_at, configs, peak_memory, random, scale, some_tokens};
use headscope::prelude::{Strategy as How, *};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);

type Make = fn(usize) -> Site;

fn values(table: &Table) -> Tensor {
    Tensor::from_slice(&table.f64("value").unwrap())
}

/// Some of `0..n`, at least one, or all by saying nothing.
fn some(rng: &mut ChaCha8Rng, n: usize) -> Option<Vec<usize>> {
    let chosen: Vec<usize> = (0..n).filter(|_| rng.random_bool(0.4)).collect();
    Some(chosen).filter(|chosen| !chosen.is_empty())
}

/// A change of any part of any site, by any action that leaves numbers finite.
fn any_edit(rng: &mut ChaCha8Rng, model: &Model, tokens: &Tokens) -> Edit {
    let site = *Site::all(model.config()).choose(rng).unwrap();
    let shape = site.shape(model.config(), tokens.batch(), tokens.positions());
    let mut edit = Edit::new(site, Action::Scale { factor: 1.0 });
    for (axis, &n) in site.axes().iter().zip(&shape) {
        let chosen = some(rng, n as usize);
        match axis.name() {
            "batch" if rng.random_bool(0.3) => edit.at.prompts = chosen,
            "position" | "query" => edit.at.positions = chosen,
            "head" | "kv_head" => edit.at.heads = chosen,
            "key" => edit.at.keys = chosen,
            "d_model" | "d_head" | "d_mlp" if rng.random_bool(0.2) => edit.at.features = chosen,
            _ => {}
        }
    }
    let key = || "own".to_owned();
    edit.action = match site.kind() {
        kind if kind.ends_with("scale") => Action::Scale { factor: rng.random_range(0.5..2.0) },
        "scores" => [Action::KnockOut, Action::Scale { factor: 0.7 }][rng.random_range(0..2)].clone(),
        _ => [
            Action::Zero,
            Action::Scale { factor: -0.8 },
            Action::replace("own"),
            Action::mean("own"),
            Action::replace("reference"),
            Action::mean("reference"),
            Action::Add { key: key(), alpha: 0.4 },
            Action::Normalise,
        ][rng.random_range(0..8)]
        .clone(),
    };
    if matches!(site, Site::ResidPre(_) | Site::ResidMid(_) | Site::AttnOut(_)) && rng.random_bool(0.3) {
        edit.action = Action::Project { key: "basis".into(), keep: rng.random() };
    }
    if edit.action == Action::Normalise && matches!(site, Site::Pattern(_)) {
        edit.action = Action::Zero; // a query without keys has no norm
    }
    edit
}

/// A batch whose prompts differ in length.
fn ragged(rng: &mut ChaCha8Rng, vocab: usize) -> Tokens {
    let (batch, positions) = (rng.random_range(1..5), rng.random_range(2..8));
    let mut row = |n: usize| -> Vec<i64> { (0..n).map(|_| rng.random_range(0..vocab as i64)).collect() };
    let mut rows: Vec<Vec<i64>> =
        (0..batch).map(|prompt| row(if prompt % 2 == 0 { positions } else { positions - positions / 3 })).collect();
    rows.rotate_left(batch / 2);
    Tokens::new(&rows).unwrap()
}

fn any_metric(rng: &mut ChaCha8Rng, model: &Model, tokens: &Tokens) -> Metric {
    let mut ids =
        || -> Vec<i64> { (0..tokens.batch()).map(|_| rng.random_range(0..model.config().vocab as i64)).collect() };
    let a = ids();
    // The two answers of a prompt differ.
    let vocab = model.config().vocab as i64;
    let b: Vec<i64> = a.iter().zip(ids()).map(|(a, b)| if *a == b { (b + 1) % vocab } else { b }).collect();
    match rng.random_range(0..8) {
        0 => Metric::Loss,
        1 => Metric::Accuracy,
        2 => Metric::Kl,
        3 => Metric::logit(a),
        4 => Metric::logit_difference(a, b),
        5 => Metric::probability(a),
        6 => Metric::rank(a),
        _ => Metric::custom("largest of the first token", |logits| Ok(logits.select(1, 0).amax(-1, false))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(41), ..ProptestConfig::default() })]

    /// Several random edits in a variant, several variants, prompts of several lengths, any metric, memory for less than one
    /// prompt up to all, several threads: what the engine finds is what whole passes find.
    #[test]
    fn random_plans_are_whole_passes(
        seed in any::<u64>(), memory in 0usize..3_000_000, threads in 1..5,
    ) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let model = random(&any_config(rng), seed % 1000);
        let tokens = ragged(rng, model.config().vocab);
        let other = some_tokens(tokens.batch(), tokens.positions(), model.config().vocab, 77);
        let sites = Site::all(model.config()).into_iter();
        let own = model.run(&other, &Plan::new().taps(sites)).unwrap();
        let width = model.config().d_model as i64;
        let basis: Vec<f64> = (0..2 * width).map(|_| rng.random_range(-1.0..1.0)).collect();
        let basis = Tensor::from_slice(&basis).view([2, width]);
        let variant = |rng: &mut ChaCha8Rng, number: u32| {
            let edits = (0..rng.random_range(1..4)).map(|_| any_edit(rng, &model, &tokens)).collect();
            Variant { keys: Keys { step: Some(number), ..Keys::default() }, edits }
        };
        let variants: Vec<Variant> = (0..12).map(|number| variant(rng, number)).collect();
        let reads = variants.iter().flat_map(|v| &v.edits).any(|edit| edit.action.key() == Some("reference"));
        let metric = any_metric(rng, &model, &tokens);
        let table = |how| {
            tch::set_num_threads(threads);
            let mut sweep = Sweep::ablate(&model, &tokens, Ablation::Mean).variants(variants.clone()).metric(metric.clone());
            sweep = if reads { sweep.reference(&other) } else { sweep };
            sweep = sweep.with("own", &own);
            for layer in 0..model.config().n_layers {
                for site in [Site::ResidPre(layer), Site::ResidMid(layer), Site::AttnOut(layer)] {
                    sweep = sweep.with_tensor("basis", site, &basis);
                }
            }
            sweep.strategy(how).memory(memory).per_prompt().run()
        };
        let (auto, naive) = (table(How::Auto).unwrap(), table(How::Naive).unwrap());
        prop_assert_eq!(auto.len(), 12 * tokens.batch());
        assert_close(&format!("{metric:?} of {:?}", model.config()), &values(&auto), &values(&naive), MODEL);
    }
}

/// A batch like `tokens` from some position of each prompt on: what comes before is the same.
fn with_shared_beginning(rng: &mut ChaCha8Rng, tokens: &Tokens, vocab: usize) -> (Tokens, Vec<usize>) {
    let (mut rows, mut firsts) = (tokens.rows().to_vec(), vec![]);
    for row in &mut rows {
        let first = rng.random_range(0..row.len());
        // The first token after the shared beginning differs; later ones may be the same by chance.
        row[first] = (row[first] + rng.random_range(1..vocab as i64)) % vocab as i64;
        row[first + 1..].iter_mut().for_each(|id| *id = rng.random_range(0..vocab as i64));
        firsts.push(first);
    }
    (Tokens::new(&rows).unwrap(), firsts)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(43), ..ProptestConfig::default() })]

    /// Prompts that start alike: what is not computed because it is the same in both runs is what whole passes find, for
    /// one metric and for several.
    #[test]
    fn shared_beginnings_are_whole_passes(seed in any::<u64>(), memory in 0usize..3_000_000) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let model = random(&any_config(rng), seed % 1000);
        let vocab = model.config().vocab;
        let tokens = ragged(rng, vocab);
        let (other, firsts) = with_shared_beginning(rng, &tokens, vocab);
        prop_assert_eq!(&tokens.first_differences(&other).unwrap(), &firsts);
        let mut metrics: Vec<Metric> = (0..rng.random_range(1..4)).map(|_| any_metric(rng, &model, &tokens)).collect();
        metrics.sort_by_key(|metric| format!("{metric:?}"));
        metrics.dedup_by_key(|metric| metric.name().to_owned());
        let sites: [(Make, &[Every]); 7] = [
            (Site::Z, &[Every::Head]),
            (Site::Z, &[Every::Head, Every::Position]),
            (Site::ResidPre, &[Every::Position]),
            (Site::K, &[Every::Position]),
            (Site::Q, &[Every::Position]),
            (Site::Pattern, &[Every::Head, Every::Query]),
            (|_| Site::Embed, &[Every::Position]),
        ];
        let (site, every) = *sites.choose(rng).unwrap();
        let kind = rng.random_range(0..4);
        let sweep = |how| {
            let sweep = match kind {
                0 => Sweep::patch(&model, &tokens, &other),
                1 => Sweep::noise(&model, &tokens, &other),
                2 => Sweep::ablate(&model, &tokens, Ablation::Mean).reference(&other),
                _ => Sweep::ablate(&model, &tokens, Ablation::Resample { seed }).reference(&other),
            };
            let sweep = sweep.each(site, every).metrics(metrics.clone());
            sweep.strategy(how).memory(memory).per_prompt()
        };
        let (auto, naive) = (sweep(How::Auto).run().unwrap(), sweep(How::Naive).run().unwrap());
        prop_assert_eq!(auto.len(), naive.len());
        // Divergences from an unchanged run are zero: they are compared on the scale of a nat.
        let size = scale(&values(&naive)).max(1.0);
        let what = format!("{metrics:?} of {:?}", model.config());
        assert_close_at(&what, &values(&auto), &values(&naive), size, MODEL);
        // Each metric by itself has the rows that it has among others.
        for metric in &metrics {
            let alone = sweep(How::Auto).metric(metric.clone()).run().unwrap();
            let among = auto.filtered(|row| row.metric == metric.name()).unwrap();
            assert_close_at(&format!("{metric:?}"), &values(&among), &values(&alone), size, MODEL);
        }
        let first = firsts.iter().min().copied().unwrap();
        if kind < 2 && every == [Every::Position] && model.config().causal && memory > 2_000_000 {
            let no_ops = sweep(How::Auto).explain().unwrap().no_ops;
            prop_assert!(no_ops >= first, "{} of {}", no_ops, first);
        }
    }
}

/// A sweep at one position of each prompt is the sweep whose variants say so.
#[test]
fn sweeps_at_a_position_change_only_that() {
    let config = configs().remove(0);
    let model = random(&config, 11);
    let (clean, corrupt) = (some_tokens(3, 5, config.vocab, 1), some_tokens(3, 5, config.vocab, 2));
    let sweep = || Sweep::noise(&model, &clean, &corrupt).metric(Metric::Kl).per_prompt();
    let table = sweep().at(vec![4, 2, 4]).run().unwrap();
    let edits = |edit: Edit| vec![edit.clone().position(4).prompts([0, 2]), edit.position(2).prompts([1])];
    let by_hand: Vec<Variant> = sweep()
        .planned()
        .iter()
        .cloned()
        .map(|variant| Variant { edits: edits(variant.edits[0].clone()), ..variant })
        .collect();
    assert_close("at", &values(&table), &values(&sweep().variants(by_hand).run().unwrap()), MODEL);
    let one = sweep().at(3).run().unwrap();
    let every = sweep().each(Site::Z, [Every::Head, Every::Position]).only(|keys| keys.position == Some(3));
    assert_close("one", &values(&one), &values(&every.run().unwrap()), MODEL);
    assert_eq!(one.rows().unwrap()[0].keys.at.as_deref(), Some("3"));
    let error = sweep().each(Site::Z, Every::Position).at(3).run().unwrap_err().to_string();
    assert!(error.contains("all positions"), "{error}");
}

/// Matrices that are wide enough for another library's products, in float32.
#[test]
fn wide_models_are_whole_passes() {
    let config = ModelConfig {
        d_model: 256,
        n_heads: 4,
        n_kv_heads: 4,
        d_head: 64,
        d_mlp: 512,
        vocab: 300,
        ..ModelConfig::default()
    };
    let model = Model::random(&config, 3).unwrap();
    let (clean, corrupt) = (some_tokens(6, 16, 300, 1), some_tokens(6, 16, 300, 2));
    let logits = scale(model.run(&corrupt, &Plan::new()).unwrap().logits().unwrap());
    for (site, each, metric) in [
        (Site::Z as fn(usize) -> Site, Every::Head, Metric::Loss),
        (Site::ResidPre, Every::Position, Metric::logit_difference(3, 5)),
        (Site::Q, Every::Head, Metric::Kl),
    ] {
        let table = |how, threads| {
            tch::set_num_threads(threads);
            let sweep = Sweep::patch(&model, &clean, &corrupt).metric(metric.clone()).strategy(how);
            values(&sweep.each(site, each).run().unwrap())
        };
        let (naive, tol) = (table(How::Naive, 1), Tol::of(&config, Kind::Float));
        for threads in [1, 3] {
            assert_close_at(&format!("{metric:?}"), &table(How::Auto, threads), &naive, logits, tol);
        }
    }
}

/// A batch in parts is the batch: per prompt, per token, as a mean with an interval, drawn, normalised, estimated.
#[test]
fn parts_are_the_whole() {
    let config = configs().remove(1);
    let model = random(&config, 5);
    let (clean, corrupt) = (some_tokens(5, 6, config.vocab, 1), some_tokens(5, 6, config.vocab, 2));
    let answers = || Metric::logit_difference(vec![1, 2, 3, 4, 5], vec![6, 7, 8, 9, 10]);
    let patch = || Sweep::patch(&model, &clean, &corrupt).metric(answers());
    let resample = || Sweep::ablate(&model, &clean, Ablation::Resample { seed: 3 });
    let check = |what: &str, whole: Table, parts: Table| {
        assert_eq!(whole.columns(), parts.columns(), "{what}");
        for column in ["value", "baseline"] {
            let of = |table: &Table| Tensor::from_slice(&table.f64(column).unwrap());
            assert_close(&format!("{what}: {column}"), &of(&parts), &of(&whole), MODEL);
        }
    };
    check("mean", patch().run().unwrap(), patch().memory(0).run().unwrap());
    check("scale", patch().normalised().run().unwrap(), patch().normalised().memory(0).run().unwrap());
    check("interval", patch().interval(1).run().unwrap(), patch().interval(1).memory(0).run().unwrap());
    check("prompts", resample().per_prompt().run().unwrap(), resample().per_prompt().memory(0).run().unwrap());
    check("tokens", resample().per_token().run().unwrap(), resample().per_token().memory(0).run().unwrap());
    for estimate in [Estimate::Attribution, Estimate::IntegratedGradients { steps: 3 }, Estimate::AtpStar] {
        let estimated = || patch().estimate(estimate).exact(4).per_prompt();
        check(estimate.name(), estimated().run().unwrap(), estimated().memory(0).run().unwrap());
    }
    let paths = || {
        let paths = Paths::noise(&model, &clean, &corrupt).metric(answers()).senders(Node::all(&model));
        paths.receivers(Input::all(&model)).per_prompt()
    };
    check("paths", paths().run().unwrap(), paths().memory(0).run().unwrap());
    let edges = || paths().frozen_mlps().estimate(Estimate::IntegratedGradients { steps: 2 });
    check("edges", edges().run().unwrap(), edges().memory(0).run().unwrap());
    assert_eq!((patch().explain().unwrap().parts, patch().memory(0).explain().unwrap().parts), (1, 5));
    assert_eq!((paths().explain().unwrap().parts, paths().memory(0).explain().unwrap().parts), (1, 5));
}

/// Any action along any axes, with a user's own tensors and runs; what does not fit is an error.
#[test]
fn an_edit_may_read_what_the_user_gives() {
    let config = configs().remove(0);
    let model = random(&config, 11);
    let tokens = some_tokens(3, 5, config.vocab, 1);
    let sweep = || Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::logit_difference(3, 5));
    let zero = sweep().run().unwrap();
    let scaled = sweep().each_with(Site::Z, Every::Head, Action::Scale { factor: 0.0 }).run().unwrap();
    assert_close("a scale of 0", &values(&scaled), &values(&zero), MODEL);
    // Out of a subspace and onto it: the changes are the two halves of taking all away, where what follows is linear; here
    // they are beside plans.
    let basis = model.parameters()[0].1.narrow(0, 7, 2);
    for action in [Action::project_out("basis"), Action::project_onto("basis")] {
        let last = Site::ResidPost(config.n_layers - 1);
        let table = sweep()
            .with_tensor("basis", last, &basis)
            .each_with(|_| last, Every::Position, action.clone())
            .only(|keys| keys.position == Some(4))
            .run()
            .unwrap();
        let plan = Plan::new().with_tensor("basis", last, &basis).edit(Edit::new(last, action).position(4));
        let logits = model.run(&tokens, &plan).unwrap().logits().unwrap().select(1, 4);
        let difference = (logits.select(1, 3) - logits.select(1, 5)).mean(Kind::Double).double_value(&[]);
        assert_close("projected", &values(&table), &Tensor::from_slice(&[difference]), MODEL);
    }
    let digest = |scale: f64| {
        let direction = &basis.get(0) * scale;
        let action = Action::Add { key: "d".into(), alpha: 1.0 };
        let sweep = sweep().with_tensor("d", Site::ResidPre(1), &direction).each_with(
            |_| Site::ResidPre(1),
            Every::Layer,
            action,
        );
        sweep.run().unwrap().provenance().options["what"]["activations"].to_string()
    };
    assert_eq!(digest(1.0), digest(1.0));
    assert_ne!(digest(1.0), digest(2.0), "provenance tells tensors apart");
    let says = |sweep: Sweep<'_>, words: &str| {
        let error = sweep.run().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(sweep().with_tensor("reference", Site::Z(0), &basis), "another key");
    says(sweep().each_with(Site::Z, Every::Head, Action::replace("nowhere")), "`nowhere` in the plan's bank");
    let two = model.run(&some_tokens(2, 5, config.vocab, 4), &Plan::new().tap(Site::Z(0))).unwrap();
    says(
        sweep().with("two", &two).each_with(|_| Site::Z(0), Every::Head, Action::replace("two")),
        "a run of 1 or 3 prompts",
    );
    let prompt = |n: usize| vec![vec![sweep().edit(Site::Z(0)).prompts([n])]];
    says(sweep().sets(prompt(3)).memory(0), "batch 3 is out of range");
    let one = sweep().sets(prompt(1)).memory(0).per_prompt().run().unwrap().effect().unwrap();
    assert!(one[0] == 0.0 && one[1] != 0.0 && one[2] == 0.0, "{one:?}");
}

/// Beside estimated edges, exact paths.
#[test]
fn exact_paths_stand_beside_estimates() {
    let config = configs().remove(0);
    let model = random(&config, 7);
    let (clean, corrupt) = (some_tokens(3, 5, config.vocab, 1), some_tokens(3, 5, config.vocab, 2));
    let paths = || {
        let paths = Paths::noise(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5)).frozen_mlps();
        paths.receivers([Input::queries(&model), vec![Input::Logits]].concat())
    };
    let all = paths().run().unwrap();
    let table = paths().estimate(Estimate::Attribution).exact(all.len()).run().unwrap();
    assert_eq!(table.len(), 2 * all.len());
    let methods = table.frame().column("method").unwrap().str().unwrap().clone();
    let exact: Vec<f64> =
        methods.iter().zip(table.f64("value").unwrap()).filter(|(m, _)| *m == Some("exact")).map(|(_, v)| v).collect();
    assert_close("exact rows", &Tensor::from_slice(&exact), &values(&all), MODEL);
    let agreement = table.agreement().unwrap();
    assert!(agreement.pearson.unwrap() > 0.5, "{agreement:?}");
    assert!(paths().exact(2).run().is_err(), "exact rows beside nothing");
}

/// Paths that were stopped go on from their journal, and end with the same bytes.
#[test]
fn stopped_paths_go_on() {
    use std::sync::atomic::AtomicBool;
    let config = configs().remove(2);
    let model = random(&config, 3);
    let (clean, corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("paths.partial");
    let paths = || {
        let paths = Paths::noise(&model, &clean, &corrupt).metric(Metric::logit(3)).memory(0);
        paths.receivers([Input::values(&model), vec![Input::Logits]].concat())
    };
    let whole = paths().run().unwrap();
    let stop = AtomicBool::new(true);
    let stopped = paths().journal(&journal).stop(&stop).run().unwrap_err();
    assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
    // What an earlier run had finished.
    paths().journal(&journal).run().unwrap();
    let text = std::fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * whole.len(), "a line a pair and prompt");
    std::fs::write(&journal, lines[..lines.len() / 2].join("\n") + "\n").unwrap();
    assert_eq!(values(&paths().journal(&journal).run().unwrap()), values(&whole));
    let resumed = std::fs::read_to_string(&journal).unwrap();
    assert!(resumed.starts_with(&lines[..lines.len() / 2].join("\n")), "finished rows were moved");
    assert_eq!(resumed.lines().count(), lines.len(), "finished rows were computed again");
    let read = paths().per_prompt().journal(folder.path().join("other.partial")).run().unwrap();
    assert_eq!(read.len(), 2 * whole.len());
    let another = Paths::noise(&model, &corrupt, &clean).journal(&journal).run().unwrap_err();
    assert!(another.to_string().contains("another one"), "{another}");
}

/// What the command may take beside the model is what it takes at most, and a batch of which memory holds a few prompts
/// gives the same table.
#[test]
#[cfg(target_os = "linux")]
fn memory_stays_within_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        n_layers: 6,
        d_model: 256,
        n_heads: 8,
        n_kv_heads: 8,
        d_head: 32,
        d_mlp: 1024,
        vocab: 4000,
        n_positions: 128,
        ..ModelConfig::default()
    };
    let model = folder.path().join("model");
    Model::random(&config, 0).unwrap().save(&model).unwrap();
    let file = |name: &str, batch: usize, positions: usize, seed: usize| {
        let path = folder.path().join(name);
        std::fs::write(&path, serde_json::to_string(some_tokens(batch, positions, 4000, seed).rows()).unwrap())
            .unwrap();
        format!("@{}", path.display())
    };
    let (clean, corrupt) = (file("clean.json", 48, 96, 1), file("corrupt.json", 48, 96, 2));
    let (little, other) = (file("little.json", 1, 4, 1), file("other.json", 1, 4, 2));
    // The most memory, in MiB, that the command held at a time.
    let most = |metric: &str, clean: &str, corrupt: &str, memory: &str, threads: &str| {
        let out = folder.path().join("table.parquet");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_headscope"));
        command.args(["patch", model.to_str().unwrap(), "--clean", clean, "--corrupt", corrupt]);
        command.args(["--layers", "0,3,5", "--heads", "0,3", "--metric", metric, "--memory", memory]);
        command.arg("--out").arg(&out).env("OMP_NUM_THREADS", threads);
        (peak_memory(&mut command), Table::read(out).unwrap())
    };
    for metric in ["loss", "kl"] {
        let (without, _) = most(metric, &little, &other, "1", "1");
        let mut tables = vec![];
        for (memory, threads) in [("64", "1"), ("512", "1"), ("64", "3"), ("512", "3")] {
            let (peak, table) = most(metric, &clean, &corrupt, memory, threads);
            let budget: f64 = memory.parse().unwrap();
            let taken = format!("{peak} MiB, of which {without} MiB without activations");
            assert!(peak - without <= budget, "{metric}, {memory} MiB, {threads} threads: {taken}");
            tables.push(values(&table));
        }
        tables.iter().for_each(|table| assert_close("tables", table, &tables[0], Tol::of(&config, Kind::Float)));
    }
}
