//! What the heads of a layer have in common: the alignment of what they read and write, and whether they stand in for each
//! other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::architectures::any_config;
use common::{Tol, assert_near, configs, fixture, random, some_tokens};
use headscope::circuits::{Circuits, HeadWeights, Offset, Side, random_frame};
use headscope::heads::{CircuitOptions, RedundancyOptions, redundancy};
use headscope::lab::experiment::{AskedOnText, Cell, OnText, Passages, WeightsOf, Work};
use headscope::lab::language::TextSource;
use headscope::lab::{Experiment, Grid};
use headscope::model::{Model, ModelConfig, NormKind, Position, QkvBias, Tokens};
use headscope::prelude::{Ablation, Metric, ShapleyOptions, Table, shapley};
use headscope::table::{Observation, Provenance};
use ndarray::{ArcArray1, Array2, s};
use ndarray_linalg::Inverse;
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

/// Heads of one layer, each with its own key/value head, from W_Q, W_K, W_V and W_O^T.
fn layer(heads: &[[Array2<f64>; 4]]) -> Circuits {
    let of = |(head, [q, k, v, o]): (usize, &[Array2<f64>; 4])| {
        let none = ArcArray1::zeros(q.ncols());
        HeadWeights {
            layer: 0,
            head,
            kv_head: head,
            w_q: q.to_shared(),
            w_k: k.to_shared(),
            w_v: v.to_shared(),
            w_o: o.t().to_owned().into_shared(),
            b_q: none.clone(),
            b_k: none.clone(),
            b_v: none,
            rotary: None,
        }
    };
    Circuits::new(heads.iter().enumerate().map(of).collect(), Provenance::default()).unwrap()
}

/// The row about a whole layer.
fn of_layer(table: &Table, metric: &str, layer: usize) -> Observation {
    let whole = |row: &Observation| row.keys.layer == Some(layer as u32) && row.keys.head.is_none();
    table.rows().unwrap().into_iter().find(|row| whole(row) && row.metric == metric).unwrap()
}

/// Value, baseline and z-score of an alignment, NaN where missing.
fn alignment(table: &Table, side: Side, layer: usize) -> [f64; 3] {
    let row = of_layer(table, side.name(), layer);
    [row.value, row.baseline.unwrap_or(f64::NAN), row.z_score.unwrap_or(f64::NAN)]
}

/// M of a head on a side, dense.
fn used(head: &HeadWeights, side: Side, offset: Offset) -> Array2<f64> {
    let circuit = if matches!(side, Side::Queries | Side::Keys) { head.qk(offset) } else { head.ov() }.unwrap();
    let x = circuit.left().dot(&circuit.right());
    if matches!(side, Side::Queries | Side::Values) { x.dot(&x.t()) } else { x.t().dot(&x) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(12), ..ProptestConfig::default() })]

    /// Whatever the architecture, the rows are the mean cosines of the dense matrices, and their means over rotations.
    #[test]
    fn alignments_are_those_of_dense_matrices(seed in 0u64..1000, folded in any::<bool>(), offset in 0i64..4) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let model = random(&any_config(rng), seed);
        let options = CircuitOptions { fold_norms: folded, centre_writing: folded };
        let (circuits, offset) = (model.circuits(&options).unwrap(), Offset::At(offset));
        let table = circuits.alignments(offset).unwrap();
        let d = circuits.d_model() as f64;
        for (number, heads) in circuits.heads().chunk_by(|a, b| a.layer == b.layer).enumerate() {
            for side in Side::ALL {
                let of = |own: &dyn Fn(&&HeadWeights) -> bool| {
                    heads.iter().filter(own).fold(Array2::zeros((d as usize, d as usize)), |sum, head| sum + used(head, side, offset))
                };
                let by_kv = matches!(side, Side::Keys | Side::Values);
                let n = heads.iter().map(|head| if by_kv { head.kv_head } else { head.head }).max().unwrap() + 1;
                let all: Vec<Array2<f64>> =
                    (0..n).map(|i| of(&|head| if by_kv { head.kv_head == i } else { head.head == i })).collect();
                let norm = |m: &Array2<f64>| (m * m).sum().sqrt();
                let pairs: Vec<(f64, f64)> = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| {
                    let (a, b) = (&all[i], &all[j]);
                    ((a * b).sum() / (norm(a) * norm(b)), a.diag().sum() * b.diag().sum() / (d * norm(a) * norm(b)))
                }).collect();
                let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / pairs.len() as f64;
                let [value, baseline, _] = alignment(&table, side, number);
                if pairs.is_empty() {
                    prop_assert!(value.is_nan() && baseline.is_nan());
                } else {
                    assert_near(side.name(), value, mean(&|pair| pair.0), ALGEBRA);
                    assert_near(side.name(), baseline, mean(&|pair| pair.1), ALGEBRA);
                }
            }
        }
    }

    /// Invariants 17, 18 and 30: neither the basis of queries, keys and z nor that of the stream matters.
    #[test]
    fn alignments_do_not_depend_on_a_basis(seed in 0u64..1000) {
        let (d, k) = (14, 3);
        let heads: Vec<[Array2<f64>; 4]> = (0..4).map(|h| [0, 1, 2, 3].map(|i| normal(d, k, 100 * seed + 10 * h + i))).collect();
        let turn = random_frame(d, d, seed).unwrap();
        let changed: Vec<[Array2<f64>; 4]> = heads.iter().enumerate().map(|(h, [q, k_, v, o])| {
            let square = |part: u64| normal(k, k, 7 * seed + 2 * h as u64 + part) * 0.3 + Array2::<f64>::eye(k) * 2.0;
            let (m, n) = (square(0), square(1));
            let dual = |m: &Array2<f64>| m.inv().unwrap().t().to_owned();
            [q.dot(&m), k_.dot(&dual(&m)), v.dot(&n), o.dot(&dual(&n))].map(|w| turn.dot(&w))
        }).collect();
        let (before, after) = (layer(&heads).alignments(Offset::At(0)).unwrap(), layer(&changed).alignments(Offset::At(0)).unwrap());
        for side in Side::ALL {
            for (a, b) in alignment(&before, side, 0).into_iter().zip(alignment(&after, side, 0)) {
                assert_near(side.name(), b, a, Tol::Conditioned(1e3));
            }
        }
    }

    /// The index is what its definition says, with Shapley values for the joint effect, and between 0 and 1.
    #[test]
    fn redundancy_is_what_single_ablations_miss_of_the_shapley_values(seed in 0u64..1000, which in 0usize..5) {
        let config = ModelConfig { n_layers: 2, ..configs()[which].clone() };
        let model = random(&config, seed);
        let tokens = some_tokens(3, 6, config.vocab, seed as usize);
        let options = RedundancyOptions { least: 1e-9, ..RedundancyOptions::default() };
        let table = redundancy(&model, &tokens, &options).unwrap();
        let rows = table.rows().unwrap();
        for layer in 0..2u32 {
            let own = rows.iter().filter(|row| row.keys.layer == Some(layer));
            let effect = |row: &Observation| row.value - row.baseline.unwrap();
            let alone: f64 = own.clone().filter(|row| row.keys.head.is_some()).map(effect).sum();
            let heads: Vec<(usize, usize)> = (0..config.n_heads).map(|head| (layer as usize, head)).collect();
            let phi = shapley(&model, &tokens, &heads, &Metric::Loss, &ShapleyOptions::default()).unwrap();
            let expected = (1.0 - alone / phi.f64("value").unwrap().iter().sum::<f64>()).clamp(0.0, 1.0);
            let found = own.clone().find(|row| row.metric == "redundancy").unwrap().value;
            // The effects are differences of losses of order one, and their ratio may divide by small ones.
            let joint = own.clone().find(|row| row.metric == "loss" && row.keys.head.is_none()).map(effect).unwrap();
            assert_near("redundancy", found, expected, Tol::Conditioned(1e2 / joint.abs().min(1.0)));
        }
    }
}

/// Invariant 29: rotating every head at random gives alignments with the mean and the deviation that are claimed.
#[test]
fn rotations_give_the_claimed_alignments() {
    let (d, draws) = (9, 4000);
    // Unequal spectra, so that the weighting matters.
    let heads: Vec<[Array2<f64>; 4]> =
        (0..3).map(|h| [0, 1, 2, 3].map(|i| normal(d, 2, 10 * h + i) * ndarray::array![[3.0, 1.0]])).collect();
    let (mut scores, mut values, mut baseline) = (vec![vec![]; 4], vec![vec![]; 4], [f64::NAN; 4]);
    for draw in 0..draws {
        let turned = heads.iter().enumerate().map(|(h, head)| {
            let turn = random_frame(d, d, 10 * draw + h as u64).unwrap();
            head.clone().map(|w| turn.dot(&w))
        });
        let table = layer(&turned.collect::<Vec<_>>()).alignments(Offset::At(0)).unwrap();
        for (number, side) in Side::ALL.into_iter().enumerate() {
            let [value, mean, z] = alignment(&table, side, 0);
            scores[number].push(z);
            values[number].push(value);
            baseline[number] = mean;
        }
    }
    let n = draws as f64;
    for side in 0..4 {
        let mean = scores[side].iter().sum::<f64>() / n;
        let deviation = (scores[side].iter().map(|z| (z - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 4.0 / n.sqrt(), "mean z {mean}");
        assert!((deviation - 1.0).abs() < 0.1, "deviation of z {deviation}");
        let value = values[side].iter().sum::<f64>() / n;
        assert!((value / baseline[side] - 1.0).abs() < 0.03, "{value} for {}", baseline[side]);
    }
}

/// Controls: heads on the same directions, heads on orthogonal ones, heads with unrelated weights.
#[test]
fn alignment_tells_shared_from_separate_directions() {
    let (d, k) = (12, 3);
    let frame = random_frame(d, d, 1).unwrap();
    let part = |h: usize| frame.slice(s![.., k * h..k * (h + 1)]).to_owned();
    let of = |heads: Vec<Array2<f64>>| {
        let heads: Vec<[Array2<f64>; 4]> = heads.into_iter().map(|w| [0; 4].map(|_| w.clone())).collect();
        layer(&heads).alignments(Offset::At(0)).unwrap()
    };
    let same = of((0..4).map(|_| part(0)).collect());
    let apart = of((0..4).map(part).collect());
    for side in Side::ALL {
        let ([one, chance, high], [none, _, low]) = (alignment(&same, side, 0), alignment(&apart, side, 0));
        assert_near("the same", one, 1.0, ALGEBRA);
        assert_near("chance", chance, k as f64 / d as f64, ALGEBRA);
        assert_near("apart", none, 0.0, ALGEBRA);
        assert!(high > 10.0 && low < -2.0, "{high} and {low}");
    }
    let wide =
        ModelConfig { d_model: 96, n_heads: 8, n_kv_heads: 8, d_head: 12, n_layers: 3, ..ModelConfig::default() };
    let unrelated = random(&wide, 5).circuits(&RAW).unwrap().alignments(Offset::At(0)).unwrap();
    for (layer, side) in (0..3).flat_map(|layer| Side::ALL.map(|side| (layer, side))) {
        let [value, baseline, z] = alignment(&unrelated, side, layer);
        assert!(z.abs() < 5.0, "{value} where {baseline} is chance");
    }
}

#[test]
fn heads_without_weights_have_no_alignment() {
    let model = random(&configs()[0], 3);
    let _ = model.w_o(0).unwrap().narrow(0, 1, 2).zero_();
    let circuits = model.circuits(&RAW).unwrap();
    let table = circuits.alignments(Offset::At(0)).unwrap();
    assert!(Side::ALL.iter().all(|side| alignment(&table, *side, 0)[0].is_finite()), "two heads of four are left");
    let _ = model.w_o(0).unwrap().narrow(0, 0, 2).zero_();
    let table = model.circuits(&RAW).unwrap().alignments(Offset::At(0)).unwrap();
    let missing = |layer: usize| Side::ALL.map(|side| alignment(&table, side, layer)[0].is_nan());
    assert_eq!(missing(0), [false, false, true, true]);
    assert_eq!(missing(1), [false; 4]);
    assert!(circuits.alignments(Offset::Mean(0)).is_err());
}

/// A layer of four heads in a model without norms and positions. Head h writes the one-hot vectors of the answers that it is
/// given, `gain` times, where the token is the question: (head, question, answer).
fn answering(gain: f64, known: &[(usize, usize, usize)]) -> Model {
    let (heads, width) = (4, 12);
    let config = ModelConfig {
        d_model: width,
        n_heads: heads,
        n_kv_heads: heads,
        d_head: width,
        d_mlp: 0,
        vocab: width,
        n_positions: 2,
        norm: NormKind::None,
        position: Position::None,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        ..ModelConfig::default()
    };
    let model = random(&config, 0);
    for (name, tensor) in model.parameters() {
        let mut tensor = tensor.shallow_clone();
        let eye = Tensor::eye(width as i64, (Kind::Double, tensor.device()));
        tch::no_grad(|| match name.as_str() {
            "w_e" | "w_u" => tensor.copy_(&eye),
            "blocks.0.w_o" => tensor.copy_(&eye.repeat([heads as i64, 1])),
            _ => {
                let _ = tensor.zero_();
            }
        });
        if name == "blocks.0.w_v" {
            for &(head, question, answer) in known {
                let mut place = tensor.get(question as i64).narrow(0, (head * width + answer) as i64, 1);
                tch::no_grad(|| {
                    let _ = place.fill_(gain);
                });
            }
        }
    }
    model
}

/// Questions 0 to 3, whose answers are 4 to 7.
fn questions() -> Tokens {
    Tokens::new(&(0..4).map(|question| vec![question, question + 4]).collect::<Vec<_>>()).unwrap()
}

fn index(model: &Model, metric: Metric) -> f64 {
    let (ablation, least) = (Ablation::Zero, 1e-6);
    let options = RedundancyOptions { ablation, metrics: vec![metric], least, ..RedundancyOptions::default() };
    of_layer(&redundancy(model, &questions(), &options).unwrap(), "redundancy", 0).value
}

/// Controls: heads with a question each are independent, heads that all know all answers stand in for each other, and two of
/// them where the others know nothing.
#[test]
fn redundancy_tells_copies_from_specialists() {
    let specialists: Vec<_> = (0..4).map(|h| (h, h, h + 4)).collect();
    let copies = |heads: usize| (0..heads).flat_map(|h| (0..4).map(move |q| (h, q, q + 4))).collect::<Vec<_>>();
    for gain in [0.5, 3.0, 20.0] {
        for metric in [Metric::Loss, Metric::Kl] {
            assert_near("specialists", index(&answering(gain, &specialists), metric), 0.0, ALGEBRA);
        }
    }
    for heads in [2, 3, 4] {
        let found = index(&answering(20.0, &copies(heads)), Metric::Loss);
        assert!(found > 0.99, "{heads} copies: {found}");
        assert_near("a single one", index(&answering(20.0, &copies(1)), Metric::Loss), 0.0, ALGEBRA);
    }
    // Where each does its part of the work, the divergence of small changes is quadratic.
    for heads in [2, 3, 4] {
        let found = index(&answering(0.01, &copies(heads)), Metric::Kl);
        assert!((found - (1.0 - 1.0 / heads as f64)).abs() < 0.01, "{heads} copies: {found}");
    }
    // Two of four questions known to all heads, and two to one head each: half of the joint effect is redundant.
    let half: Vec<_> = copies(4).into_iter().filter(|&(h, q, _)| q < 2 || h == q).collect();
    let found = index(&answering(20.0, &half), Metric::Loss);
    assert!((found - 0.5).abs() < 0.01, "{found}");
}

/// Where a metric is linear in what heads write, effects add up, even those of copies; where heads need each other, the index
/// stays at 0.
#[test]
fn redundancy_is_zero_where_effects_add_up_or_exceed_the_whole() {
    let copies: Vec<_> = (0..4).flat_map(|h| (0..4).map(move |q| (h, q, q + 4))).collect();
    let linear = Metric::custom("logits of the answers", |logits| {
        Ok(logits.select(1, 0).narrow(-1, 4, 4).sum_dim_intlist([-1i64].as_slice(), false, None))
    });
    assert_near("linear", index(&answering(2.0, &copies), linear), 0.0, ALGEBRA);
    // Only all four heads together reach the threshold.
    let threshold = Metric::custom("all or nothing", |logits| {
        Ok(logits.select(1, 0).narrow(-1, 4, 4).amax([-1i64].as_slice(), false).ge(7.5).to_kind(Kind::Double))
    });
    assert_eq!(index(&answering(2.0, &copies), threshold), 0.0);
}

#[test]
fn redundancy_refuses_what_makes_no_sense() {
    let model = random(&configs()[0], 1);
    let tokens = some_tokens(2, 5, 50, 1);
    let of = |options: RedundancyOptions<'_>| redundancy(&model, &tokens, &options);
    assert!(of(RedundancyOptions { layers: vec![3], ..Default::default() }).is_err());
    assert!(of(RedundancyOptions { layers: vec![1, 1], ..Default::default() }).is_err());
    for least in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(of(RedundancyOptions { least, ..Default::default() }).is_err());
    }
    assert!(of(RedundancyOptions { metrics: vec![], ..Default::default() }).is_err());
    let quiet = of(RedundancyOptions { least: 1e6, ..Default::default() }).unwrap();
    assert!((0..3).all(|layer| of_layer(&quiet, "redundancy", layer).value.is_nan()));
}

fn cell(work: Work) -> Cell {
    Cell { name: "a".to_owned(), work }
}

fn on_text(model: &str, random: bool, asked: AskedOnText) -> Cell {
    let passages = Passages { texts: vec![TextSource::PrideAndPrejudice], count: 2, length: 12 };
    cell(Work::OnText(OnText { model: fixture(model).display().to_string(), random, passages, asked }))
}

/// The values of a metric by seed, of rows that name neither layer nor head.
fn of_runs(table: &Table, metric: &str, task: Option<&str>) -> Vec<(u64, f64)> {
    let whole = |row: &Observation| row.keys.layer.is_none() && row.keys.head.is_none();
    let own = |row: &Observation| whole(row) && row.metric == metric && row.keys.task.as_deref() == task;
    table.rows().unwrap().into_iter().filter(own).map(|row| (row.keys.seed.unwrap(), row.value)).collect()
}

/// Every layer of every model is one run, the first few from all of them; a run is the same alone; what lies beyond is missing.
#[test]
fn a_run_of_weights_is_a_layer() {
    let models = ["tiny-gpt2", "tiny-llama"].map(|name| fixture(name).display().to_string());
    let work = |random| cell(Work::Weights(WeightsOf { models: models.to_vec(), random, first: 900_000 }));
    let table = work(false).compute(900_000, 8).unwrap();
    let mut expected = vec![];
    let mut seen = vec![];
    for name in &models {
        let model = Model::load(name).unwrap();
        let alignments = model.circuits(&CircuitOptions::default()).unwrap().alignments(Offset::At(0)).unwrap();
        expected.extend((0..model.config().n_layers).map(|layer| {
            let [value, baseline, _] = alignment(&alignments, Side::Writes, layer);
            1.0 - value / baseline
        }));
        seen.extend((0..model.config().n_layers as u32).map(|layer| (name.clone(), layer)));
    }
    let writes = of_runs(&table, "separation", Some("writes"));
    assert_eq!(writes.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), (900_000..900_008).collect::<Vec<_>>());
    assert_eq!(writes.iter().filter(|(_, value)| value.is_nan()).count(), 8 - expected.len());
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let found = writes.iter().map(|(_, value)| *value).filter(|value| value.is_finite()).collect();
    assert_eq!(sorted(found), sorted(expected));
    let rows = table.rows().unwrap();
    let named = |row: &Observation| Some((row.keys.model.clone()?, row.keys.layer?));
    let mut named: Vec<(String, u32)> = rows.iter().filter_map(named).collect();
    named.sort();
    named.dedup();
    assert_eq!(named, seen);
    let alone = work(false).compute(900_003, 1).unwrap();
    assert_eq!(of_runs(&alone, "separation", Some("reads"))[0], of_runs(&table, "separation", Some("reads"))[3]);
    let before = work(false).compute(899_999, 1).unwrap();
    assert!(of_runs(&before, "separation", Some("reads"))[0].1.is_nan());
    let random = work(true).compute(900_000, 3).unwrap();
    for task in ["reads", "writes"] {
        let (folded, bare) =
            (of_runs(&random, "separation", Some(task)), of_runs(&random, "separation_unfolded", Some(task)));
        assert!(folded.iter().all(|(_, value)| value.abs() < 0.5), "{folded:?}: chance, of a few small heads");
        // Norms have weights of one, and a LayerNorm takes away one direction of many.
        folded.iter().zip(&bare).for_each(|((_, a), (_, b))| assert!((a - b).abs() < 0.05, "{a} and {b}"));
    }
}

/// Consecutive seeds go through the layers, with passages of their own; the rows are those of the probe.
#[test]
fn a_run_of_redundancy_is_a_layer_on_passages_of_its_own() {
    let table = on_text("tiny-gpt2", false, AskedOnText::Redundancy).compute(900_000, 6).unwrap();
    let rows = table.rows().unwrap();
    let layer_of =
        |seed: u64| rows.iter().find_map(|row| row.keys.layer.filter(|_| row.keys.seed == Some(seed))).unwrap();
    let mut layers: Vec<u32> = (900_000..900_003).map(layer_of).collect();
    assert_eq!(layer_of(900_000), layer_of(900_003));
    layers.sort_unstable();
    assert_eq!(layers, [0, 1, 2]);
    let effects = of_runs(&table, "joint_effect", None);
    assert_ne!(effects[0].1, effects[3].1, "the same layer on other passages");
    for (seed, index) in of_runs(&table, "redundancy", None) {
        let own = rows.iter().filter(|row| row.keys.seed == Some(seed) && row.metric == "kl");
        let effect = |row: &Observation| row.value - row.baseline.unwrap();
        let alone: f64 = own.clone().filter(|row| row.keys.head.is_some()).map(effect).sum();
        let all: f64 = own.filter(|row| row.keys.head.is_none() && row.keys.layer.is_some()).map(effect).sum();
        assert_eq!(all, effects.iter().find(|(other, _)| *other == seed).unwrap().1);
        let expected = if all.abs() < 0.01 { f64::NAN } else { (1.0 - alone / all).clamp(0.0, 1.0) };
        assert!(index == expected || (index.is_nan() && expected.is_nan()), "{index} and {expected}");
        let redundant = of_runs(&table, "redundant", None).into_iter().find(|(other, _)| *other == seed).unwrap().1;
        assert!(redundant == f64::from(u8::from(index > 0.5)) || (redundant.is_nan() && index.is_nan()));
    }
    let again = on_text("tiny-gpt2", false, AskedOnText::Redundancy).compute(900_000, 6).unwrap();
    assert_eq!(format!("{rows:?}"), format!("{:?}", again.rows().unwrap()), "also where values are missing");
}

/// Pairs within a layer have keys of their own, and those of neighbouring layers are all; random weights are drawn from the seed.
#[test]
fn patterns_are_compared_within_layers_and_with_the_next() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-bert"] {
        let table = on_text(name, false, AskedOnText::Patterns).compute(900_000, 2).unwrap();
        let value = |metric: &str| of_runs(&table, metric, None)[1].1;
        assert!(
            (value("pattern_gap") - (value("pattern_divergence") - value("pattern_divergence_next"))).abs() < 1e-12
        );
        assert!((0.0..1.0).contains(&value("pattern_divergence")));
    }
    let random = |seed| on_text("tiny-llama", true, AskedOnText::Patterns).compute(seed, 1).unwrap();
    assert_ne!(
        of_runs(&random(900_000), "pattern_gap", None)[0].1,
        of_runs(&random(900_001), "pattern_gap", None)[0].1
    );
}

#[test]
fn cells_of_real_models_say_what_they_read() {
    let of = |table: &Table| table.provenance().options["origin"]["read"].clone();
    let weights = WeightsOf { models: vec!["english".to_owned(), "induction".to_owned()], random: false, first: 0 };
    let read = of(&cell(Work::Weights(weights)).compute(0, 1).unwrap());
    for (place, name) in ["english", "induction"].into_iter().enumerate() {
        assert_eq!(read[place]["name"], name);
        assert_eq!(read[place]["sha256"], Model::load(name).unwrap().sha256().unwrap());
    }
    let text = std::path::PathBuf::from("fixtures/text/pride-and-prejudice.txt.gz");
    let passages = Passages { texts: vec![TextSource::Path(text.clone())], count: 2, length: 8 };
    let model = fixture("tiny-llama").display().to_string();
    let asked = OnText { model: model.clone(), random: false, passages, asked: AskedOnText::Patterns };
    let read = of(&cell(Work::OnText(asked)).compute(0, 1).unwrap());
    assert_eq!((&read[0]["name"], &read[1]["name"]), (&model.into(), &text.display().to_string().into()));
    let none = WeightsOf { models: vec![], random: false, first: 0 };
    assert!(cell(Work::Weights(none)).compute(0, 1).is_err());
}

#[test]
fn e12_holds_together() {
    for grid in [Grid::Small, Grid::Full] {
        let experiment = Experiment::named("E12", grid).unwrap();
        experiment.validate().unwrap();
        let read: Vec<&str> = experiment.sub_claims.iter().flat_map(|claim| claim.cells()).collect();
        assert!(experiment.cells.iter().all(|cell| read.contains(&cell.name.as_str())), "every cell decides something");
        for cell in &experiment.cells {
            if let Work::Weights(weights) = &cell.work {
                assert_eq!(weights.first, experiment.seed);
            }
        }
    }
}
