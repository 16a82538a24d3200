//! Low rank: what is cut and what it costs, and attention that needs no rank.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_near, configs, fixture, load, random, read_tensors, some_tokens, tokens_of};
use headscope::Error;
use headscope::circuits::{
    Circle, Circuit, Factored, NullOptions, Offset, TruncationError, logit_spectrum, random_frame,
};
use headscope::heads::{CircuitOptions, Cut, TruncationOptions, truncation_costs};
use headscope::intervene::{Ablation, Metric, Strategy, Sweep, Variant};
use headscope::model::{Action, Edit, Model, Plan, Position, Site};
use headscope::table::{Keys, Table};
use ndarray::{Array2, Axis, array, s};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, Tensor};

const ALGEBRA: Tol = Tol::Model(Kind::Double);
const RAW: CircuitOptions = CircuitOptions { fold_norms: false, centre_writing: false };

fn normal(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || StandardNormal.sample(&mut rng))
}

fn norm(a: &Array2<f64>) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn tensor(a: &Array2<f64>) -> Tensor {
    let values: Vec<f64> = a.iter().copied().collect();
    Tensor::from_slice(&values).view([a.nrows() as i64, a.ncols() as i64])
}

#[track_caller]
fn assert_same(what: &str, found: &Array2<f64>, expected: &Array2<f64>) {
    assert_close(what, &tensor(found), &tensor(expected), ALGEBRA);
}

/// Factors of full rank, or with two columns of the left or two rows of the right the same.
fn product(m: usize, k: usize, n: usize, kind: usize, seed: u64) -> Factored {
    let (mut left, mut right) = (normal(m, k, seed), normal(k, n, seed + 1));
    if kind % 2 == 1 && k > 1 {
        let copy = left.column(0).to_owned();
        left.column_mut(k - 1).assign(&copy);
    }
    if kind > 1 && k > 1 {
        let copy = right.row(0).to_owned();
        right.row_mut(k - 1).assign(&copy);
    }
    Factored::new(left, right).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(26), ..ProptestConfig::default() })]

    /// What is cut between the factors is what Eckart and Young cut from the product; the error is what they say.
    #[test]
    fn a_cut_between_the_factors_is_the_nearest(m in 1usize..12, k in 1usize..8, n in 1usize..12, kind in 0usize..4, rank in 1usize..8, seed in 0u64..999) {
        let product = product(m, k, n, kind, seed);
        let (a, b) = (product.left().to_owned(), product.right().to_owned());
        let cut = a.dot(&product.inner_truncation(rank).unwrap()).dot(&b);
        let best = product.truncated(rank).unwrap();
        assert_same("A P B", &cut, &best.left().dot(&best.right()));
        let sigma = product.singular_values().unwrap().to_vec();
        let error = TruncationError::of(&sigma, rank).unwrap();
        let whole = a.dot(&b);
        assert_near("Frobenius", error.frobenius, norm(&(&whole - &cut)), ALGEBRA);
        assert_near("relative", error.relative * norm(&whole), error.frobenius, ALGEBRA);
        // Another basis between the factors cuts the same.
        let turn = normal(k, k, seed + 2) * 0.2 + Array2::<f64>::eye(k) * 2.0;
        let other = Factored::new(a.dot(&turn), ndarray_linalg::Inverse::inv(&turn).unwrap().dot(&b)).unwrap();
        let again = other.left().dot(&other.inner_truncation(rank).unwrap()).dot(&other.right());
        assert_same("gauge", &again, &cut);
    }

    /// Random directions: the rank that was asked for, kept as they are, and never nearer than the best.
    #[test]
    fn random_directions_lose_more(m in 4usize..12, k in 2usize..5, n in 1usize..12, rank in 1usize..4, seed in 0u64..999) {
        let (product, rank) = (product(m, k, n, 0, seed), rank.min(k));
        let map = product.random_inner_truncation(rank, seed).unwrap();
        assert_same("a projection", &map.dot(&map), &map);
        assert_near("its rank", map.diag().sum(), rank as f64, ALGEBRA);
        let cut = product.left().dot(&map).dot(&product.right());
        let lost = norm(&(product.left().dot(&product.right()) - cut));
        let best = TruncationError::of(&product.singular_values().unwrap().to_vec(), rank).unwrap();
        prop_assert!(lost >= best.frobenius * (1.0 - ALGEBRA.bound()));
    }

    /// Invariant 33: keys on a circle give any query any target, by logits of rank 2, with at least the weight of the bound.
    #[test]
    fn keys_on_a_circle(n in 2usize..60, weight in 0.55f64..0.999, seed in 0u64..999) {
        let targets: Vec<usize> = (0..n + 3).map(|i| (i * 7 + seed as usize * 13 + i * i) % n).collect();
        let circle = Circle::new(n, &targets, Circle::sharpness(n, weight).unwrap()).unwrap();
        assert_near("bound", circle.bound(), weight, ALGEBRA);
        let pattern = circle.pattern().unwrap();
        for (i, row) in pattern.rows().into_iter().enumerate() {
            assert_near("a row", row.sum(), 1.0, ALGEBRA);
            prop_assert!(row[targets[i]] >= weight - ALGEBRA.bound(), "{} below {weight}", row[targets[i]]);
        }
        let least = (0..targets.len()).map(|i| pattern[[i, targets[i]]]).fold(1.0, f64::min);
        assert_near("least", circle.target_weight().unwrap(), least, Tol::Exact);
        prop_assert!(circle.logits().rank().unwrap() <= 2);
    }

    /// Invariant 34: the logits behind a pattern have the rank of what made it, less what is the same for all keys.
    #[test]
    fn logits_behind_a_pattern(queries in 3usize..12, keys in 4usize..12, width in 1usize..3, seed in 0u64..999) {
        let logits = normal(queries, width, seed).dot(&normal(width, keys, seed + 1));
        let mut pattern = logits.mapv(f64::exp);
        pattern.rows_mut().into_iter().for_each(|mut row| { let sum = row.sum(); row /= sum; });
        let found = logit_spectrum(&pattern.view()).unwrap();
        let centred = &logits - &logits.mean_axis(Axis(1)).unwrap().insert_axis(Axis(1));
        let expected = Factored::new(centred, Array2::eye(keys)).unwrap().singular_values().unwrap();
        for (i, &value) in found.iter().enumerate() {
            assert_near("singular value", value, expected[i], ALGEBRA);
        }
        prop_assert!(found.iter().filter(|&&value| value > ALGEBRA.bound() * found[0]).count() <= width);
    }

    /// Keys are cut so that the scores of all query heads of their group, at all offsets, change least.
    #[test]
    fn keys_are_cut_for_all_who_read_them(config in 0usize..5, layer in 0usize..3, rank in 1usize..6, offsets in 1u32..5, seed in 0u64..99) {
        let model = random(&configs()[config], seed);
        let circuits = model.circuits(&CircuitOptions::default()).unwrap();
        let product = circuits.keys_for_queries(layer, 1, offsets).unwrap();
        let map = product.inner_truncation(rank).unwrap();
        let readers: Vec<_> = circuits.heads().iter().filter(|head| (head.layer, head.kv_head) == (layer, 1)).collect();
        let rotary = matches!(model.config().position, Position::Rotary { .. });
        // The squared change of the scores of [x, 1] and y, summed over query heads and offsets.
        let change = |map: &Array2<f64>| {
            let lost = readers[0].w_k.to_owned() - readers[0].w_k.dot(map);
            let mut sum = 0.0;
            for head in &readers {
                for offset in 0..if rotary { offsets } else { 1 } {
                    let mut head = (*head).clone();
                    head.w_k = lost.clone().into_shared();
                    let change = head.qk_with_bias(Offset::At(offset.into())).unwrap();
                    let dense = change.left().dot(&change.right());
                    sum += dense.slice(s![.., ..dense.ncols() - 1]).iter().map(|x| x * x).sum::<f64>();
                }
            }
            sum
        };
        let error = TruncationError::of(&product.singular_values().unwrap().to_vec(), rank).unwrap();
        assert_near("error", change(&map).sqrt(), error.frobenius, ALGEBRA);
        let width = map.nrows();
        let nudge = Array2::<f64>::eye(width) + normal(width, width, seed + 5) * 0.02;
        let other = map.dot(&nudge); // of the same rank
        prop_assert!(change(&other) >= change(&map) * (1.0 - ALGEBRA.bound()));
        if !rotary && model.config().n_heads == model.config().n_kv_heads && !model.config().qkv_bias.q {
            let qk = readers[0].qk(Offset::At(0)).unwrap().singular_values().unwrap();
            qk.iter().zip(&product.singular_values().unwrap()).for_each(|(a, b)| assert_near("QK", *b, *a, ALGEBRA));
        }
    }
}

/// A parameter of a model, to be changed in place.
fn parameter(model: &Model, name: &str) -> Tensor {
    model.parameters().into_iter().find(|(found, _)| found == name).unwrap().1.detach()
}

/// The value of a metric for a head and a rank.
fn value(table: &Table, metric: &str, layer: u32, head: u32, rank: u32) -> f64 {
    let rows = table.rows().unwrap();
    let is =
        |keys: &Keys| (keys.layer, keys.head.or(keys.kv_head), keys.component) == (Some(layer), Some(head), Some(rank));
    rows.iter().find(|row| row.metric == metric && is(&row.keys)).unwrap().value
}

/// The loss with a head cut in the sweep is that of a model whose weights have been replaced by the cut ones.
#[test]
fn a_cut_head_is_a_head_with_cut_weights() {
    for (number, config) in configs().iter().enumerate().filter(|(_, config)| config.causal) {
        let model = random(config, 7);
        let tokens = some_tokens(3, 9, config.vocab, 1);
        let circuits = model.circuits(&CircuitOptions::default()).unwrap();
        let (layer, rank, width) = (1u32, 3usize, config.d_head as i64);
        for (cut, head) in [(Cut::Qk, 1u32), (Cut::Ov, 2)] {
            let options = TruncationOptions { cut, ranks: vec![rank], ..TruncationOptions::default() };
            let table = truncation_costs(&model, &tokens, &options).unwrap();
            let found = value(&table, "loss", layer, head, rank as u32);
            let changed = random(config, 7);
            match cut {
                Cut::Qk => {
                    let product = circuits.keys_for_queries(1, 1, 9).unwrap();
                    let map = tensor(&product.inner_truncation(rank).unwrap());
                    let mut w_k = parameter(&changed, "blocks.1.w_k").narrow(1, i64::from(head) * width, width);
                    let new = w_k.matmul(&map);
                    tch::no_grad(|| w_k.copy_(&new));
                }
                Cut::Ov => {
                    let map = circuits.head(1, 2).unwrap().ov().unwrap().inner_truncation(rank).unwrap();
                    let mut w_o = parameter(&changed, "blocks.1.w_o").narrow(0, i64::from(head) * width, width);
                    let new = tensor(&map).matmul(&w_o);
                    if config.qkv_bias.q {
                        let raw = model.circuits(&RAW).unwrap();
                        let b_v = Tensor::from_slice(&raw.head(1, 2).unwrap().b_v.to_vec()).unsqueeze(0);
                        let mut b_o = parameter(&changed, "blocks.1.b_o");
                        let more = b_v.matmul(&(&w_o - &new)).squeeze_dim(0);
                        tch::no_grad(|| b_o += more);
                    }
                    tch::no_grad(|| w_o.copy_(&new));
                }
            }
            let nothing = Edit::new(Site::Z(0), Action::Scale { factor: 1.0 });
            let nothing = vec![Variant { keys: Keys::default(), edits: vec![nothing] }];
            let expected = Sweep::ablate(&changed, &tokens, Ablation::Zero).variants(nothing).run().unwrap();
            let tol = Tol::Tables { layers: config.n_layers, positions: tokens.positions() };
            assert_near(&format!("{number} {cut:?}"), found, expected.f64("value").unwrap()[0], tol);
            assert!((found - table.f64("baseline").unwrap()[0]).abs() > 1e-6, "the cut changes something");
        }
    }
}

/// All heads at once are each head's edits together; random directions are others; the engine and whole passes agree.
#[test]
fn cuts_together() {
    let model = random(&configs()[1], 3);
    let tokens = some_tokens(2, 8, model.config().vocab, 5);
    let ranks = vec![1, 4];
    let of = |cut, together, random| {
        let options = TruncationOptions { cut, ranks: ranks.clone(), together, random, metric: Some(Metric::Kl) };
        truncation_costs(&model, &tokens, &options).unwrap()
    };
    for cut in [Cut::Qk, Cut::Ov] {
        let (heads, single, all) = (if cut == Cut::Qk { 2 } else { 4 }, of(cut, false, None), of(cut, true, None));
        assert_eq!((single.len(), all.len()), (3 * heads * 2 * 2, 2 * 2), "{cut:?}");
        let kl: Vec<f64> = all.rows().unwrap().iter().filter(|row| row.metric == "kl").map(|row| row.value).collect();
        let error: Vec<f64> =
            all.rows().unwrap().iter().filter(|row| row.metric != "kl").map(|row| row.value).collect();
        assert!(kl[1] < kl[0] && error[1] < error[0] && error[0] < 1.0, "{kl:?} {error:?}");
        let drawn = of(cut, true, Some(1));
        assert!(drawn.f64("value").unwrap() != all.f64("value").unwrap());
        assert_eq!(of(cut, true, Some(1)).f64("value").unwrap(), drawn.f64("value").unwrap(), "the same seed");
        assert_eq!(drawn.provenance().seed, Some(1));
    }
}

/// A matrix multiplies the last axis, of the heads that are asked for; the engine does what whole passes do.
#[test]
fn maps_are_matrices() {
    let config = &configs()[1];
    let (model, tokens) = (random(config, 2), some_tokens(2, 7, config.vocab, 3));
    let (site, width) = (Site::Z(1), config.d_head as i64);
    let map = tensor(&normal(config.d_head, config.d_head, 4));
    let edit = Edit::new(site, Action::Map { key: "m".into() }).head(2);
    let plan = |edit: Edit| Plan::new().with_tensor("m", site, &map).edit(edit).tap(site);
    let after = model.run(&tokens, &plan(edit.clone())).unwrap();
    let before = model.run(&tokens, &Plan::new().tap(site)).unwrap();
    let (after, before) = (after.get(site).unwrap(), before.get(site).unwrap());
    assert_close("head 2", &after.select(2, 2), &before.select(2, 2).matmul(&map), ALGEBRA);
    assert_close("head 1", &after.select(2, 1), &before.select(2, 1), Tol::Exact);
    let small = map.narrow(0, 0, width - 1);
    let wrong = model.run(&tokens, &Plan::new().with_tensor("m", site, &small).edit(edit.clone()).tap(site));
    assert!(wrong.unwrap_err().to_string().contains("matrix"));
    // Late positions and single heads: what a sweep computes apart.
    let edits = vec![edit.clone().position(5), Edit::new(Site::Z(0), Action::Map { key: "n".into() }).head(0)];
    let variants: Vec<Variant> =
        edits.into_iter().map(|edit| Variant { keys: Keys::default(), edits: vec![edit] }).collect();
    let sweep = |strategy| {
        Sweep::ablate(&model, &tokens, Ablation::Zero)
            .variants(variants.clone())
            .with_tensor("m", site, &map)
            .with_tensor("n", Site::Z(0), &map)
            .strategy(strategy)
            .run()
            .unwrap()
            .f64("value")
            .unwrap()
    };
    for (a, b) in sweep(Strategy::Auto).into_iter().zip(sweep(Strategy::Naive)) {
        assert_near("strategies", a, b, ALGEBRA);
    }
}

/// Errors of every head by weights alone: the tail of its spectrum, beside random matrices of its shape.
#[test]
fn errors_by_weights() {
    let model = load("tiny-gpt2", Kind::Double);
    let circuits = model.circuits(&CircuitOptions::default()).unwrap();
    let table = circuits.truncation(Circuit::Ov, &[2, 8], &NullOptions::default()).unwrap();
    assert_eq!(table.columns(), ["layer", "head", "component", "metric", "value", "baseline", "z_score"]);
    for (i, head) in circuits.heads().iter().enumerate() {
        let sigma = head.ov().unwrap().singular_values().unwrap();
        let rest: f64 = sigma.iter().skip(2).map(|s| s * s).sum();
        let all: f64 = sigma.iter().map(|s| s * s).sum();
        assert_near("error", table.f64("value").unwrap()[2 * i], (rest / all).sqrt(), ALGEBRA);
        assert_near("full rank", table.f64("value").unwrap()[2 * i + 1], 0.0, ALGEBRA);
    }
    assert!(circuits.truncation(Circuit::Ov, &[], &NullOptions::default()).is_err());
}

/// Errors and losses of cut heads as numpy and transformers have them.
#[test]
fn golden_truncations() {
    for name in ["tiny-gpt2", "tiny-llama"] {
        let text = std::fs::read_to_string(fixture(name).join("golden-truncation.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let model = load(name, Kind::Double);
        let tokens = tokens_of(&read_tensors(&fixture(name).join("golden-float64.safetensors"))["tokens"]);
        for (cut, key) in [(Cut::Qk, "qk"), (Cut::Ov, "ov")] {
            let rows = golden[key].as_array().unwrap();
            assert!(rows.len() >= 6 * 2);
            let options = TruncationOptions { cut, ranks: vec![1, 4], ..TruncationOptions::default() };
            let table = truncation_costs(&model, &tokens, &options).unwrap();
            assert_eq!(table.len(), 2 * rows.len());
            for row in rows {
                let of = |name: &str| u32::try_from(row[name].as_u64().unwrap()).unwrap();
                let found = |metric: &str| value(&table, metric, of("layer"), of("head"), of("rank"));
                // transformers' rotary tables are float32, as the model's.
                let tables = Tol::Tables { layers: 3, positions: tokens.positions() };
                let tol = if name == "tiny-llama" { tables } else { ALGEBRA };
                assert_near(&format!("{name} {row}"), found("truncation_error"), row["error"].as_f64().unwrap(), tol);
                assert_near(&format!("{name} {row}"), found("loss"), row["loss"].as_f64().unwrap(), tol);
            }
        }
    }
}

#[test]
fn what_makes_no_sense_says_so() {
    assert!(Circle::new(1, &[0], 1.0).is_err() && Circle::new(5, &[], 1.0).is_err());
    assert!(matches!(Circle::new(5, &[5], 1.0), Err(Error::OutOfRange { axis: "key", .. })));
    assert!(
        Circle::new(5, &[0], 0.0).is_err() && Circle::sharpness(4, 0.2).is_err() && Circle::sharpness(4, 1.0).is_err()
    );
    assert!(TruncationError::of(&[], 1).is_err() && TruncationError::of(&[1.0, 2.0], 1).is_err());
    assert!(TruncationError::of(&[1.0, -1.0], 1).is_err() && TruncationError::of(&[f64::NAN], 1).is_err());
    assert!(logit_spectrum(&array![[1.0, 0.0], [0.5, 0.5]].view()).unwrap_err().to_string().contains("masked"));
    assert!(logit_spectrum(&array![[0.5, 0.6]].view()).is_err());
    let product = Factored::new(random_frame(6, 3, 0).unwrap(), normal(3, 4, 1)).unwrap();
    assert!(product.inner_truncation(0).is_err() && product.random_inner_truncation(4, 0).is_err());
    let model = load("tiny-gpt2", Kind::Double);
    let circuits = model.circuits(&RAW).unwrap();
    assert!(matches!(circuits.keys_for_queries(0, 9, 1), Err(Error::OutOfRange { axis: "kv_head", .. })));
    assert!(matches!(circuits.keys_for_queries(9, 0, 1), Err(Error::OutOfRange { axis: "layer", .. })));
    assert!(circuits.keys_for_queries(0, 0, 0).is_err());
    let tokens = some_tokens(1, 5, 90, 0);
    for ranks in [vec![0], vec![8], vec![1, 99]] {
        assert!(circuits.truncation(Circuit::Ov, &[0], &NullOptions::default()).is_err());
        assert!(circuits.truncation(Circuit::Ov, &[1, 9], &NullOptions::default()).is_err());
        let options = TruncationOptions { ranks, ..TruncationOptions::default() };
        assert!(truncation_costs(&model, &tokens, &options).unwrap_err().to_string().contains("d_head = 8"));
    }
    let usual = truncation_costs(&model, &tokens, &TruncationOptions::default()).unwrap();
    let mut ranks = usual.f64("component").unwrap();
    ranks.sort_by(f64::total_cmp);
    ranks.dedup();
    assert_eq!(ranks, [1.0, 2.0, 4.0], "powers of two below the heads' width");
}
