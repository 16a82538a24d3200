//! Sweeps along any axes of any site, over sets and subsets of parts: the engine beside the naive loop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_close_at, configs, load, random, some_tokens};
use headscope::model::{Model, Plan, Site, Tokens};
use headscope::prelude::{Ablation, Every, Metric, Strategy as How, Subsets, Sweep, Table, subsets};
use proptest::prelude::*;
use proptest::sample::subsequence;
use tch::{Kind, Tensor};

const MODEL: Tol = Tol::Model(Kind::Double);

const AXES: [Every; 7] =
    [Every::Layer, Every::Head, Every::KvHead, Every::Position, Every::Query, Every::Key, Every::Neuron];

/// Whether a site has what an axis counts.
fn has(site: Site, every: Every) -> bool {
    let names: Vec<&str> = site.axes().iter().map(|axis| axis.name()).collect();
    match every {
        Every::Layer | Every::Position | Every::Query => true,
        Every::Head | Every::KvHead => names.contains(&"head") || names.contains(&"kv_head"),
        Every::Key => names.contains(&"key"),
        Every::Neuron => !names.contains(&"key"),
    }
}

/// A metric for a model: one that reads everything, or one that reads the last position.
fn metric(model: &Model, which: usize) -> Metric {
    match which % 3 {
        _ if !model.config().has_logits() => Metric::EmbeddingDistance,
        0 => Metric::Loss,
        1 => Metric::logit_difference(3, 5),
        _ => Metric::Kl,
    }
}

fn values(table: &Table) -> Tensor {
    Tensor::from_slice(&table.f64("value").unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(29), ..ProptestConfig::default() })]

    /// Along whatever axes, what the engine finds is what whole passes find; an axis that a site does not have is an error.
    #[test]
    fn any_axes_are_the_naive_loop(
        config in 0..configs().len(), seed in 0u64..500, batch in 1usize..4, positions in 2usize..7,
        axes in subsequence(AXES.to_vec(), 1..4), site in any::<prop::sample::Index>(), kind in 0usize..4, which in 0usize..3,
        memory in 1usize..200_000,
    ) {
        let model = random(&configs()[config], seed);
        let config = model.config();
        let tokens = some_tokens(batch, positions, config.vocab, seed as usize);
        let other = some_tokens(batch, positions, config.vocab, 900 + seed as usize);
        let sites: Vec<Site> = Site::all(config).into_iter().filter(|site| site.layer().is_some() && !site.kind().ends_with("scale")).collect();
        let site = if kind == 3 { Site::Scores(0) } else { sites[site.index(sites.len())] };
        let sweep = || match kind {
            0 => Sweep::ablate(&model, &tokens, Ablation::Zero),
            1 => Sweep::ablate(&model, &tokens, Ablation::Mean),
            2 => Sweep::patch(&model, &other, &tokens),
            _ => Sweep::knock_out(&model, &tokens),
        };
        let each = || sweep().each(|layer| site.at_layer(layer), &axes).metric(metric(&model, which)).per_prompt().memory(memory);
        if axes.iter().any(|axis| !has(site, *axis)) {
            prop_assert!(each().run().is_err(), "{site} along {axes:?}");
            return Ok(());
        }
        // The naive loop is slow: some of the variants stand for all.
        let step = each().planned().len().div_ceil(60);
        let mut number = 0..;
        let keep: Vec<_> = each().planned().iter().filter(|_| number.next().unwrap() % step == 0).map(|variant| variant.keys.clone()).collect();
        let table = |how| each().only(|keys| keep.contains(keys)).strategy(how).run().unwrap();
        let (auto, naive) = (table(How::Auto), table(How::Naive));
        prop_assert_eq!(auto.len(), keep.len() * batch);
        // Logits and nats are of order one; the effect of a variant that changes nothing is not.
        assert_close_at(&format!("{site} along {axes:?}, {kind}"), &values(&auto), &values(&naive), 1.0, MODEL);
    }
}

/// The columns say what a row is about, and there is a row for each index: of a causal model no edge into the future.
#[test]
fn rows_are_indices() {
    let model = load("tiny-llama", Kind::Double); // 3 layers, 4 heads on 2 key/value heads
    let tokens = some_tokens(2, 5, model.config().vocab, 2);
    let table = |site: fn(usize) -> Site, axes: &[Every]| {
        Sweep::ablate(&model, &tokens, Ablation::Zero).each(site, axes).run().unwrap()
    };
    let check = |table: Table, columns: &[&str], rows: usize| {
        assert_eq!(table.columns(), [columns, &["metric", "value", "unit", "baseline"]].concat());
        assert_eq!(table.len(), rows);
    };
    check(table(Site::Pattern, &[Every::Head, Every::Query, Every::Key]), &["layer", "head", "query", "key"], 12 * 15);
    check(table(Site::Scores, &[Every::Key, Every::Query]), &["layer", "query", "key"], 3 * 15);
    check(table(Site::Pattern, &[Every::Key]), &["layer", "key"], 3 * 5);
    check(table(Site::Z, &[Every::KvHead, Every::Position]), &["layer", "kv_head", "position"], 3 * 2 * 5);
    check(table(Site::K, &[Every::Head]), &["layer", "kv_head"], 3 * 2);
    check(table(Site::MlpPost, &[Every::Neuron]), &["layer", "neuron"], 3 * model.config().d_mlp);
    check(Sweep::knock_out(&model, &tokens).run().unwrap(), &["layer", "head", "query", "key"], 12 * 15);
    let bert = load("tiny-bert", Kind::Double);
    let edges = Sweep::knock_out(&bert, &tokens).run().unwrap();
    assert_eq!(edges.len(), 12 * 25, "both ways");
}

/// Heads that share keys and values change together along key/value heads: as a set of them does.
#[test]
fn key_value_heads_are_sets_of_heads() {
    let model = load("tiny-llama", Kind::Double);
    let tokens = some_tokens(2, 5, model.config().vocab, 3);
    let sweep = || Sweep::ablate(&model, &tokens, Ablation::Zero);
    let shared = sweep().each(Site::Z, Every::KvHead).only(|keys| keys.layer == Some(1)).run().unwrap();
    let sets = [[0, 1], [2, 3]].map(|heads| vec![sweep().edit(Site::Z(1)).heads(heads)]);
    assert_close("sets", &values(&sweep().sets(sets).run().unwrap()), &values(&shared), Tol::Exact);
}

/// All subsets, each what its plan gives; drawn ones are different, and the same for the same seed.
#[test]
fn subsets_are_plans() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7]]).unwrap();
    let sweep = || Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::logit(7));
    let parts = [
        sweep().edit(Site::Z(0)).head(3),
        sweep().edit(Site::ResidPre(1)).position(2),
        sweep().edit(Site::MlpPost(2)).features([1, 4]),
    ];
    let all = subsets(&parts, Subsets::All).unwrap();
    assert_eq!(all.len(), 7);
    let table = sweep().sets(all.clone()).run().unwrap();
    let names: Vec<String> =
        table.frame().column("set").unwrap().str().unwrap().iter().map(|name| name.unwrap().to_owned()).collect();
    for (name, value) in names.iter().zip(table.f64("value").unwrap()) {
        let set = all.iter().find(|set| {
            let written = |at: usize| ["z.0.3", "resid_pre.1@2", "mlp_post.2:1.4"][at];
            let numbers: Vec<&str> =
                set.iter().map(|part| written(parts.iter().position(|other| other == part).unwrap())).collect();
            numbers.join("+") == *name
        });
        let plan = set.unwrap().iter().fold(Plan::new(), |plan, part| plan.edit(part.clone()));
        let logits = model.run(&tokens, &plan).unwrap();
        let logits = logits.logits().unwrap();
        let mean = (logits.double_value(&[0, 4, 7]) + logits.double_value(&[1, 2, 7])) / 2.0;
        assert_close(name, &Tensor::from(value), &Tensor::from(mean), MODEL);
    }
    let draw = |seed| subsets(&parts, Subsets::Drawn { n: 3, seed }).unwrap();
    assert_eq!(draw(1), draw(1));
    let drawn = draw(2);
    assert!((0..3).all(|i| !drawn[i].is_empty() && (0..i).all(|j| drawn[i] != drawn[j])));
    let many: Vec<_> = (0..17).map(|_| parts[0].clone()).collect();
    assert!(subsets(&many, Subsets::All).unwrap_err().to_string().contains("at most 16"));
    assert!(subsets(&parts, Subsets::Drawn { n: 7, seed: 0 }).is_err());
    assert!(subsets(&[], Subsets::All).is_err());
}

/// Cut edges by one call are knock-outs by hand.
#[test]
fn knock_outs_by_one_call() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = some_tokens(2, 6, model.config().vocab, 4);
    let by_call =
        Sweep::knock_out(&model, &tokens).only(|keys| keys.layer == Some(1) && keys.query == Some(5)).run().unwrap();
    assert_eq!(by_call.len(), 4 * 6);
    let sweep = Sweep::knock_out(&model, &tokens);
    let edges = (0..4).flat_map(|head| (0..6).map(move |key| (head, key)));
    let variants = edges.map(|(head, key)| vec![sweep.edit(Site::Scores(1)).head(head).position(5).keys([key])]);
    let sets: Vec<_> = variants.collect();
    let by_hand = Sweep::knock_out(&model, &tokens).sets(sets).strategy(How::Naive).run().unwrap();
    assert_close("edges", &values(&by_call), &values(&by_hand), MODEL);
}
