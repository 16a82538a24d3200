//! What must hold of pattern scores, induction and similarity, and what others compute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_near, configs, fixture, load, random, read_tensors, some_tokens, tokens_of};
use headscope::heads::{
    Measured, PatternOptions, PatternScore, Prompt, Repeats, Similarity, Targets, canonical_correlations, head_scores,
    induction_scores, jensen_shannon, linear_cka, pattern_scores, similarity, similarity_matrix,
};
use headscope::model::{Model, ModelConfig, Plan, QkvBias, Site, Tokens};
use headscope::prelude::Table;
use headscope::stats::{BootstrapMethod, BootstrapOptions, bootstrap_mean};
use ndarray::{Array1, Array2, Axis, s};
use ndarray_linalg::QR;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

const LAYER: Tol = Tol::Layer(Kind::Double);
const MODEL: Tol = Tol::Model(Kind::Double);

/// A pattern `[1, 1, n, n]` of one head from the weight of each edge.
fn pattern(n: usize, weight: impl Fn(usize, usize) -> f64) -> Tensor {
    let flat: Vec<f64> = (0..n * n).map(|i| weight(i / n, i % n)).collect();
    Tensor::from_slice(&flat).view([1, 1, n as i64, n as i64])
}

fn measure(scores: &[PatternScore], prompt: Prompt, pattern: &Tensor) -> Measured {
    Targets::new(scores, &[prompt], Kind::Double, Device::Cpu).unwrap().measure(pattern).unwrap()
}

fn distinct(n: usize) -> Vec<i64> {
    (0..n as i64).collect()
}

/// A random matrix.
fn matrix(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || rng.random_range(-1.0..1.0))
}

/// A random distribution, some of its weights 0.
fn distribution(n: usize, seed: u64) -> Array1<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights =
        Array1::from_shape_simple_fn(n, || if rng.random_bool(0.3) { 0.0 } else { rng.random_range(0.0..1.0) });
    weights[(seed as usize) % n] += 0.5;
    &weights / weights.sum()
}

fn value(table: &Table, metric: &str, layer: usize, head: usize, column: &str) -> f64 {
    let names = table.frame().column("metric").unwrap().str().unwrap().clone();
    let (layers, heads) = (table.f64("layer").unwrap(), table.f64("head").unwrap());
    let found = |&i: &usize| names.get(i) == Some(metric) && layers[i] == layer as f64 && heads[i] == head as f64;
    table.f64(column).unwrap()[(0..table.len()).find(found).unwrap()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(17), ..ProptestConfig::default() })]

    /// Invariant 36: a head that looks `k` tokens back scores 1 there and what its construction says elsewhere; under uniform
    /// causal attention the token before gets the mean of 1 / (t + 1).
    #[test]
    fn shifts(n in 3usize..30, k in 1usize..4) {
        prop_assume!(k < n);
        let back = pattern(n, |q, key| f64::from(key == q.saturating_sub(k)));
        let scores = [PatternScore::Back(k), PatternScore::PreviousToken, PatternScore::CurrentToken, PatternScore::Distance, PatternScore::Entropy];
        let measured = measure(&scores, Prompt::new(&distinct(n), true), &back);
        let value = |s: usize| measured.value[[0, 0, s]];
        assert_near("its own offset", value(0), 1.0, LAYER);
        // The first k queries look at the first token: the one at distance 1 counts as the token before.
        assert_near("token before", value(1), if k == 1 { 1.0 } else { 1.0 / (n - 1) as f64 }, LAYER);
        assert_near("itself", value(2), 0.0, LAYER);
        let mean = (1..n).map(|q| q.min(k) as f64).sum::<f64>() / (n - 1) as f64;
        assert_near("distance", value(3), mean, LAYER);
        assert_near("entropy", value(4), 0.0, LAYER);
        let uniform = (1..n).map(|t| 1.0 / (t + 1) as f64).sum::<f64>() / (n - 1) as f64;
        assert_near("uniform", measured.uniform[[0, 1]], uniform, LAYER);
        let spread = pattern(n, |q, key| if key <= q { 1.0 / (q + 1) as f64 } else { 0.0 });
        let flat = measure(&scores, Prompt::new(&distinct(n), true), &spread);
        for s in 0..scores.len() {
            assert_near("uniform attention", flat.value[[0, 0, s]], flat.uniform[[0, s]], LAYER);
            assert_near("shuffled uniform attention", flat.shuffled[[0, 0, s]], 0.0, LAYER);
        }
    }

    /// Invariant 37: a block of distinct tokens that comes twice, and a head that looks behind the first copy, give 1 over the
    /// second copy; the head that looks at the first copy itself scores 1 as a duplicate-token head.
    #[test]
    fn exact_induction(length in 2usize..15, start in 0usize..3) {
        let block: Vec<i64> = (0..length as i64).map(|id| 100 + id).collect();
        let ids = [distinct(start), block.clone(), block].concat();
        let n = ids.len();
        let to = |back: usize| pattern(n, move |q, key| f64::from(key == if q >= start + length { q - back } else { 0 }));
        let scores = [PatternScore::Induction, PatternScore::DuplicateToken];
        let induction = measure(&scores, Prompt::new(&ids, true), &to(length - 1));
        let duplicate = measure(&scores, Prompt::new(&ids, true), &to(length));
        for s in 0..2 {
            assert_near("induction", induction.value[[0, 0, s]], [1.0, 0.0][s], LAYER);
            assert_near("duplicate", duplicate.value[[0, 0, s]], [0.0, 1.0][s], LAYER);
        }
    }

    /// The shuffled attention's mean and variance are those of attention that is shuffled.
    #[test]
    fn shuffles_are_what_they_say(n in 4usize..9, seed in 0u64..100) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows: Vec<Vec<f64>> = (0..n).map(|q| distribution(q + 1, seed + q as u64).to_vec()).collect();
        let scores = [PatternScore::PreviousToken, PatternScore::Distance];
        let prompt = || Prompt::new(&distinct(n), true);
        let measured = measure(&scores, prompt(), &pattern(n, |q, k| rows[q].get(k).copied().unwrap_or(0.0)));
        let draws = 2000;
        let targets = Targets::new(&scores, &vec![prompt(); draws], Kind::Double, Device::Cpu).unwrap();
        let mut flat = vec![];
        for _ in 0..draws {
            for row in &rows {
                let mut row = row.clone();
                use rand::seq::SliceRandom;
                row.shuffle(&mut rng);
                row.resize(n, 0.0);
                flat.extend(row);
            }
        }
        let shuffled = targets.measure(&Tensor::from_slice(&flat).view([draws as i64, 1, n as i64, n as i64])).unwrap();
        for s in 0..2 {
            let values = shuffled.value.slice(s![.., 0, s]);
            let (mean, variance) = (values.mean().unwrap(), values.var(1.0));
            let exact = measured.shuffled[[0, 0, s]];
            // Five standard errors of a mean, and a tenth of a variance's spread for 2000 draws.
            prop_assert!((mean - measured.uniform[[0, s]]).abs() < 5.0 * (exact / draws as f64).sqrt());
            prop_assert!((variance / exact - 1.0).abs() < 0.25, "{variance} where {exact} was expected");
        }
    }

    /// Padding changes nothing, nor does the order or the company of prompts.
    #[test]
    fn prompts_do_not_mix(config in 0usize..3, seed in 0u64..50) {
        let config = &configs()[config];
        let model = random(config, seed);
        let rows: Vec<Vec<i64>> = [7usize, 4, 9].iter().enumerate().map(|(i, &n)| some_tokens(1, n, 6, seed as usize + i).row(0).to_vec()).collect();
        let options = PatternOptions { resamples: 0, ..PatternOptions::default() };
        let all = pattern_scores(&model, &Tokens::new(&rows).unwrap(), &options).unwrap();
        let each: Vec<Vec<f64>> = rows.iter().map(|row| pattern_scores(&model, &Tokens::new(std::slice::from_ref(row)).unwrap(), &options).unwrap().f64("value").unwrap()).collect();
        let names = all.frame().column("metric").unwrap().str().unwrap().clone();
        for (i, found) in all.f64("value").unwrap().into_iter().enumerate().filter(|(i, _)| names.get(*i) != Some("positional")) {
            let there: Vec<f64> = each.iter().map(|values| values[i]).filter(|value| !value.is_nan()).collect();
            if there.is_empty() { prop_assert!(found.is_nan()); } else {
                assert_near("mean over prompts", found, there.iter().sum::<f64>() / there.len() as f64, MODEL);
            }
        }
    }

    /// Each row has the bootstrap interval of its own score over the prompts that have it.
    #[test]
    fn intervals_are_those_of_the_bootstrap(config in 0usize..3, prompts in 5usize..9, seed in 0u64..50) {
        let config = &configs()[config];
        let model = random(config, seed);
        let rows: Vec<Vec<i64>> = (0..prompts).map(|i| some_tokens(1, 4 + i % 4, 6, seed as usize + i).row(0).to_vec()).collect();
        let options = PatternOptions { resamples: 200, confidence: 0.9, seed, ..PatternOptions::default() };
        let all = pattern_scores(&model, &Tokens::new(&rows).unwrap(), &options).unwrap().rows().unwrap();
        let alone = PatternOptions { resamples: 0, ..options.clone() };
        let each: Vec<Vec<f64>> = rows.iter().map(|row| pattern_scores(&model, &Tokens::new(std::slice::from_ref(row)).unwrap(), &alone).unwrap().f64("value").unwrap()).collect();
        let percentile = BootstrapOptions { resamples: 200, level: 0.9, method: BootstrapMethod::Percentile };
        for (i, row) in all.iter().enumerate().filter(|(_, row)| row.metric != "positional") {
            let values: Vec<f64> = each.iter().map(|values| values[i]).collect();
            match values.iter().all(|value| value.is_finite()) {
                true => {
                    let expected = bootstrap_mean(&values, &percentile, seed).unwrap();
                    assert_near("low", row.low.unwrap(), expected.low, MODEL);
                    assert_near("high", row.high.unwrap(), expected.high, MODEL);
                }
                false if values.iter().filter(|value| value.is_finite()).count() < 2 => prop_assert!(row.low.is_none() && row.high.is_none()),
                false => prop_assert!(row.low.unwrap() <= row.high.unwrap()),
            }
        }
        let few = PatternOptions { resamples: 50, ..options };
        prop_assert!(pattern_scores(&model, &Tokens::new(&rows).unwrap(), &few).is_err());
    }

    /// Invariant 31: CKA of a thing with itself is 1; rotation, scale and shift leave it, other linear maps do not; canonical
    /// correlations stay under any invertible map.
    #[test]
    fn alignment(d in 2usize..6, e in 2usize..6, seed in 0u64..500) {
        let (x, y) = (matrix(40, d, seed), matrix(40, e, seed + 1000));
        let cka = |x: &Array2<f64>, y: &Array2<f64>| linear_cka(x.view(), y.view()).unwrap().unwrap();
        let cca = |x: &Array2<f64>, y: &Array2<f64>| canonical_correlations(x.view(), y.view()).unwrap().unwrap();
        assert_near("itself", cka(&x, &x), 1.0, LAYER);
        let (rotation, _) = matrix(d, d, seed + 2000).qr().unwrap();
        let moved = x.dot(&rotation) * 3.0 + &matrix(1, d, seed + 3000);
        assert_near("rotated", cka(&moved, &y), cka(&x, &y), LAYER);
        let scales = Array2::from_diag(&Array1::from_iter((0..d).map(|i| 10f64.powi(i as i32))));
        let stretched = x.dot(&scales.dot(&rotation));
        prop_assert!((cka(&stretched, &x) - 1.0).abs() > 1e-3);
        let (one, other) = (cca(&x, &y), cca(&stretched, &y));
        prop_assert_eq!(one.len(), d.min(e));
        for (a, b) in one.iter().zip(&other) {
            // The columns' condition number: 10^(d - 1), times that of x.
            assert_near("canonical correlation", *b, *a, Tol::Conditioned(10f64.powi(d as i32)));
        }
        for rho in cca(&x, &stretched) {
            assert_near("the same span", rho, 1.0, MODEL);
        }
        let constant = Array2::from_elem((40, 3), 7.0);
        prop_assert_eq!(linear_cka(constant.view(), y.view()).unwrap(), None);
        prop_assert_eq!(canonical_correlations(constant.view(), y.view()).unwrap(), None);
    }

    /// Invariant 32: between 0 and ln 2, 0 only where equal, ln 2 where nothing is shared; symmetric.
    #[test]
    fn divergence(n in 2usize..20, a in 0u64..200, b in 200u64..400) {
        let (p, q) = (distribution(n, a), distribution(n, b));
        let js = |p: &Array1<f64>, q: &Array1<f64>| jensen_shannon(p.view(), q.view()).unwrap();
        let found = js(&p, &q);
        prop_assert!((0.0..=2f64.ln()).contains(&found));
        prop_assert!(found > 0.0 || p == q);
        assert_near("symmetric", found, js(&q, &p), LAYER);
        prop_assert_eq!(js(&p, &p), 0.0);
        let apart = |first: bool| ndarray::concatenate![Axis(0), if first { p.clone() } else { &q * 0.0 }, if first { &p * 0.0 } else { q.clone() }];
        assert_near("apart", js(&apart(true), &apart(false)), 2f64.ln(), LAYER);
    }

    /// Invariants 18 and 19: the gauge of z does not show in similarity, and matrices are symmetric with 1 on the diagonal.
    #[test]
    fn similarity_of_a_model(config in 0usize..5, seed in 0u64..50) {
        let model = random(&configs()[config], seed);
        let tokens = some_tokens(4, 12, model.config().vocab, seed as usize);
        let n = model.config().n_layers * model.config().n_heads;
        for (measure, same) in [(Similarity::JensenShannon, 0.0), (Similarity::Cka, 1.0), (Similarity::Cca, 1.0)] {
            let matrix = similarity_matrix(&model, &tokens, measure).unwrap();
            for a in 0..n {
                assert_near("itself", matrix[[a, a]], same, MODEL);
                for b in 0..n {
                    prop_assert!((0.0..=1.0 + Tol::Number.bound()).contains(&matrix[[a, b]]));
                    prop_assert_eq!(matrix[[a, b]], matrix[[b, a]]);
                }
            }
        }
        // What is written, computed the long way.
        let (layer, sites) = (model.config().n_layers - 1, [Site::Result(0), Site::Result(model.config().n_layers - 1)]);
        let run = model.run(&tokens, &Plan::new().taps(sites)).unwrap();
        let written = |site: Site, head: i64| {
            let x = run.get(site).unwrap().select(2, head).flatten(0, 1);
            Array2::from_shape_vec((48, model.config().d_model), Vec::try_from(x.contiguous().flatten(0, -1)).unwrap()).unwrap()
        };
        let expected = linear_cka(written(sites[0], 1).view(), written(sites[1], 2).view()).unwrap().unwrap();
        let matrix = similarity_matrix(&model, &tokens, Similarity::Cka).unwrap();
        assert_near("cka", matrix[[1, layer * model.config().n_heads + 2]], expected, MODEL);
    }
}

/// numpy's values from transformers' patterns.
#[test]
fn golden_scores_and_similarities() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-bert"] {
        let model = load(name, Kind::Double);
        let tensors = read_tensors(&fixture(name).join("golden-float64.safetensors"));
        let tokens = tokens_of(&tensors["tokens"]);
        let text = std::fs::read_to_string(fixture(name).join("golden-heads.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let table = pattern_scores(&model, &tokens, &PatternOptions::default()).unwrap();
        let rows = golden["scores"].as_array().unwrap();
        assert!(rows.len() >= 12 * 11, "{name}");
        for row in rows {
            let (layer, head) = (row["layer"].as_u64().unwrap() as usize, row["head"].as_u64().unwrap() as usize);
            let metric = row["metric"].as_str().unwrap();
            for column in ["value", "baseline", "z_score"] {
                let Some(expected) = row.get(column) else { continue };
                let found = value(&table, metric, layer, head, column);
                let what = format!("{name} {layer}.{head} {metric} {column}");
                match expected.as_f64() {
                    Some(expected) => assert_near(&what, found, expected, MODEL),
                    None => assert!(found.is_nan(), "{what}"),
                }
            }
        }
        for measure in [Similarity::JensenShannon, Similarity::Cka, Similarity::Cca] {
            let found = similarity(&model, &tokens, measure).unwrap();
            let expected = golden[measure.name()].as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            assert_eq!(found.columns()[..4], ["from_layer", "from_head", "layer", "head"]);
            // numpy's pairs come by the earlier head, the table's by from_layer, from_head, layer, head: the same order.
            let values = found.f64("value").unwrap();
            for (i, (found, expected)) in values.iter().zip(expected).enumerate() {
                let what = format!("{name} {} pair {i}", measure.name());
                assert_near(&what, *found, expected.as_f64().unwrap(), MODEL);
            }
        }
    }
}

/// A dead head, which writes the same everywhere, has no CKA and no CCA, and the others keep theirs.
#[test]
fn dead_heads_are_missing() {
    let config = ModelConfig { n_layers: 2, ..ModelConfig::default() };
    let model = random(&config, 3);
    let tokens = Tokens::new(&vec![vec![7; 12]; 3]).unwrap(); // without positions every head would be dead
    let dead = ModelConfig { position: headscope::model::Position::None, ..config };
    let blind = random(&dead, 3);
    for measure in [Similarity::Cka, Similarity::Cca] {
        let matrix = similarity_matrix(&blind, &tokens, measure).unwrap();
        assert!(matrix.iter().all(|value| value.is_nan()), "{matrix}");
        let table = similarity(&blind, &tokens, measure).unwrap();
        assert!(table.f64("value").unwrap().iter().all(|value| value.is_nan()));
        assert!(similarity_matrix(&model, &tokens, measure).unwrap().iter().all(|value| value.is_finite()));
    }
}

/// An attention-only model whose weights are set by hand: layer 0 looks at the token before, layer 1 behind the same token and
/// writes what it finds there.
fn made_by_hand() -> Model {
    // 20 tokens one-hot, then the token before, then 60 positions one-hot.
    let (vocab, positions) = (20, 60);
    let width = 2 * vocab + positions;
    let config = ModelConfig {
        n_layers: 2,
        d_model: width,
        n_heads: 1,
        n_kv_heads: 1,
        d_head: positions,
        d_mlp: 0,
        vocab,
        n_positions: positions,
        norm: headscope::model::NormKind::None,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        ..ModelConfig::default()
    };
    let model = random(&config, 0);
    let set = |name: &str, places: &[(usize, usize, f64)]| {
        let (_, tensor) = model.parameters().into_iter().find(|(found, _)| found == name).unwrap();
        let mut flat = vec![0.0; tensor.numel()];
        let columns = *tensor.size().last().unwrap() as usize;
        places.iter().for_each(|&(row, column, value)| flat[row * columns + column] = value);
        let mut target = tensor.shallow_clone();
        tch::no_grad(|| target.copy_(&Tensor::from_slice(&flat).view(tensor.size().as_slice())));
    };
    let diagonal = |n: usize, row: usize, column: usize, value: f64| -> Vec<(usize, usize, f64)> {
        (0..n).map(|i| (row + i, column + i, value)).collect()
    };
    set("w_e", &diagonal(vocab, 0, 0, 1.0));
    set("w_pos", &diagonal(positions, 0, 2 * vocab, 1.0));
    set("blocks.0.w_q", &diagonal(positions - 1, 2 * vocab + 1, 0, 500.0)); // position p asks for p - 1
    set("blocks.0.w_k", &diagonal(positions, 2 * vocab, 0, 1.0));
    set("blocks.0.w_v", &diagonal(vocab, 0, 0, 1.0));
    set("blocks.0.w_o", &diagonal(vocab, 0, vocab, 1.0));
    set("blocks.1.w_q", &diagonal(vocab, 0, 0, 500.0));
    set("blocks.1.w_k", &diagonal(vocab, vocab, 0, 1.0));
    set("blocks.1.w_v", &diagonal(vocab, 0, 0, 1.0));
    set("blocks.1.w_o", &diagonal(vocab, 0, 0, 1.0));
    set("w_u", &diagonal(vocab, 0, 0, 1.0));
    model
}

/// The circuit that induction is made of, built by hand, is found; random weights score as chance would.
#[test]
fn a_circuit_built_by_hand() {
    let model = made_by_hand();
    // The first token finds itself where the token before should be, so that it may be none of the block's.
    let repeats = Repeats { prompts: 8, length: 12, start: Some(vec![19]), ..Repeats::default() };
    let tokens = repeats.tokens(&model).unwrap();
    let table = head_scores(&model, &tokens, &repeats, &PatternOptions::default()).unwrap();
    let near_one = |metric: &str, layer: usize| {
        let found = value(&table, metric, layer, 0, "value");
        assert!(found > 0.99, "{metric} of layer {layer}: {found}");
    };
    near_one("previous_token", 0);
    near_one("positional", 0);
    near_one("prefix_matching", 1);
    near_one("copying", 1);
    assert!(value(&table, "prefix_matching", 0, 0, "value") < 0.01);
    assert!(value(&table, "prefix_matching", 1, 0, "z_score") > 20.0);
    let chance = random(&configs()[0], 5);
    let table = induction_scores(&chance, &repeats, &PatternOptions::default()).unwrap();
    for (found, base) in table.f64("value").unwrap().into_iter().zip(table.f64("baseline").unwrap()) {
        assert!((found - base).abs() < 0.25, "{found} where chance is {base}");
    }
    assert_eq!(repeats.tokens(&model).unwrap(), tokens, "the same seed");
    assert_ne!(Repeats { seed: 1, ..repeats }.tokens(&model).unwrap(), tokens);
}

/// The two prompts of a pair differ in one token, which is new; the answer stands where it stood.
#[test]
fn pairs_of_repeats_differ_where_they_are_asked_to() {
    let model = load("tiny-gpt2", Kind::Double);
    let repeats = Repeats { prompts: 6, length: 8, start: Some(vec![3, 4]), seed: 2 };
    let whole = repeats.tokens(&model).unwrap();
    for back in 1..=6 {
        let prompts = model.prompts(repeats.pairs(&model, back).unwrap()).unwrap();
        let (changed, answer) = (prompts.position("changed").unwrap(), prompts.position("answer").unwrap());
        for i in 0..6 {
            let (clean, corrupt, block) = (prompts.clean().row(i), prompts.corrupt().row(i), &whole.row(i)[2..10]);
            assert_eq!(clean, &whole.row(i)[..whole.row(i).len() - 1]);
            assert_eq!((answer[i], changed[i]), (9, 9 - back));
            let differ: Vec<usize> = (0..clean.len()).filter(|&at| clean[at] != corrupt[at]).collect();
            assert_eq!(differ, [9 - back]);
            assert!(!whole.row(i).contains(&corrupt[9 - back]));
            assert_eq!(prompts.answers()[i], (block[7], block[0]));
        }
    }
}

/// Special tokens, punctuation and sentences come from the tokenizer.
#[test]
fn scores_that_read_the_text() {
    let pieces: Vec<String> = ["[CLS]", "The", " cat", ".", " A", " dog", "!", "[SEP]"].map(str::to_owned).to_vec();
    let special = [true, false, false, false, false, false, false, true];
    let prompt = || Prompt::new(&distinct(8), false).with_text(&pieces, &special).unwrap();
    let scores = [PatternScore::SpecialToken, PatternScore::Delimiter, PatternScore::SentenceStart];
    let to = |keys: [usize; 8]| pattern(8, move |q, k| f64::from(keys[q] == k));
    assert_eq!(measure(&scores, prompt(), &to([0, 0, 0, 0, 7, 7, 7, 7])).value[[0, 0, 0]], 1.0);
    assert_eq!(measure(&scores, prompt(), &to([3, 3, 3, 3, 6, 6, 6, 6])).value[[0, 0, 1]], 1.0);
    // The starts themselves and the tokens outside a sentence do not count.
    assert_eq!(measure(&scores, prompt(), &to([5, 5, 1, 1, 5, 4, 4, 5])).value[[0, 0, 2]], 1.0);
    let without = measure(&scores, Prompt::new(&distinct(8), false), &to([0; 8]));
    assert!(without.value.iter().chain(&without.uniform).all(|value| value.is_nan()));
    let model = load("tiny-bert", Kind::Double);
    let tokens = model.tokens(&["the cat sat. the head", "mary sat"]).unwrap();
    let table = pattern_scores(&model, &tokens, &PatternOptions::default()).unwrap();
    for metric in ["special_token", "delimiter", "sentence_start"] {
        let found = value(&table, metric, 0, 0, "value");
        assert!((0.0..=1.0).contains(&found), "{metric}: {found}");
    }
}

#[test]
fn what_makes_no_sense_says_so() {
    let model = random(&configs()[0], 0);
    let tokens = some_tokens(2, 5, 50, 0);
    let options = |options: PatternOptions| pattern_scores(&model, &tokens, &options).unwrap_err().to_string();
    let usual = PatternOptions::default;
    assert!(options(PatternOptions { scores: vec![], ..usual() }).contains("at least one"));
    assert!(options(PatternOptions { scores: vec![PatternScore::Back(0)], ..usual() }).contains("at least 1"));
    assert!(options(PatternOptions { confidence: 1.0, ..usual() }).contains("confidence"));
    let pairs = |back| Repeats { length: 8, ..Repeats::default() }.pairs(&model, back).unwrap_err().to_string();
    assert!(pairs(0).contains("length - 2 = 6") && pairs(7).contains("length - 2 = 6"));
    let repeats = |repeats: Repeats| repeats.tokens(&model).unwrap_err().to_string();
    assert!(repeats(Repeats { length: 51, ..Repeats::default() }).contains("vocabulary"));
    assert!(repeats(Repeats { length: 40, ..Repeats::default() }).contains("context"));
    assert!(repeats(Repeats { prompts: 0, ..Repeats::default() }).contains("prompts"));
    assert!(repeats(Repeats { length: 1, ..Repeats::default() }).contains("2 tokens"));
    let one = Prompt::new(&[1, 2], true);
    let targets = Targets::new(&[PatternScore::Entropy], &[one], Kind::Double, Device::Cpu).unwrap();
    let wrong = targets.measure(&Tensor::zeros([1, 1, 3, 3], (Kind::Double, Device::Cpu))).unwrap_err();
    assert!(wrong.to_string().contains("query = 2"), "{wrong}");
    assert!(Targets::new(&[PatternScore::Entropy], &[], Kind::Double, Device::Cpu).is_err());
    assert!(Prompt::new(&[1, 2], true).with_text(&[], &[]).is_err());
    let (x, bad) = (matrix(10, 2, 0), Array2::from_elem((10, 2), f64::NAN));
    assert!(linear_cka(x.view(), bad.view()).is_err());
    assert!(linear_cka(x.view(), matrix(9, 2, 0).view()).is_err());
    assert!(canonical_correlations(x.view(), matrix(10, 9, 0).view()).is_err());
    assert!(jensen_shannon(ndarray::array![0.5, 0.5].view(), ndarray::array![1.0].view()).is_err());
    assert!(jensen_shannon(ndarray::array![0.5, 0.6].view(), ndarray::array![1.0, 0.0].view()).is_err());
    assert!(similarity(&model, &some_tokens(1, 5, 50, 0), Similarity::Cca).is_err());
    assert!(similarity(&model, &Tokens::new(&[vec![1]]).unwrap(), Similarity::JensenShannon).is_err());
    for score in PatternScore::usual() {
        assert_eq!(score.to_string().parse::<PatternScore>().unwrap(), score);
    }
    assert!("back_x".parse::<PatternScore>().is_err());
    let single = pattern_scores(&model, &Tokens::new(&[vec![1]]).unwrap(), &usual()).unwrap();
    assert!(single.f64("value").unwrap().iter().all(|value| value.is_nan()));
}
