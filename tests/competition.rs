//! Competition as a dose: at 1 it is ordinary training, at 0 every head learns as if it were alone. Heads of limited rank.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use common::architectures::any_config;
use common::{Tol, assert_close, assert_close_at, scale};
use headscope::Error;
use headscope::lab::language::{Regime, Task, Tasks};
use headscope::lab::trace::held_out;
use headscope::lab::train::{Decay, HeadOptions, Optimiser};
use headscope::lab::{Language, TrainOptions, Trainer};
use headscope::model::{LayerConfig, Model, ModelConfig, NormKind, NormPlace, Parallel, Position, QkNorm};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// Any language of tasks: one prediction in each row, or several.
fn any_language(rng: &mut ChaCha8Rng) -> Language {
    let regimes = [Regime::Gated, Regime::Simultaneous, Regime::Bag, Regime::Mixture(1), Regime::Mixture(3)];
    let tasks = vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate];
    Language::Tasks(Tasks { tasks, regime: *regimes.choose(rng).unwrap(), symbols: 3, length: (3, 5) })
}

/// Any architecture with one attention-only layer, whose head outputs are added to the last residual stream, and whose
/// heads depend on each other in nothing else.
fn any_layer(rng: &mut ChaCha8Rng, language: &Language) -> ModelConfig {
    let drawn = any_config(rng);
    ModelConfig {
        qk_norm: if drawn.qk_norm == QkNorm::All { QkNorm::Head } else { drawn.qk_norm },
        n_layers: 1,
        n_blocks: 0,
        block_cycle: 1,
        d_mlp: 0,
        mlp_norm: false,
        uncounted: None,
        // What is cut off has no gradient.
        clip_qkv: None,
        // A query that sees itself alone has no use for what it asks.
        layers: drawn
            .layers
            .iter()
            .map(|layer| LayerConfig {
                d_mlp: None,
                window: layer.window.filter(|&window| window > 1),
                ..layer.clone()
            })
            .collect(),
        experts: None,
        parallel: Parallel::No,
        norm_place: NormPlace::Pre,
        causal: true,
        n_token_types: 0,
        vocab: language.vocab(),
        n_positions: language.positions(),
        ..drawn
    }
}

/// Seeds of as many models as can train at once.
fn any_seeds(rng: &mut ChaCha8Rng, config: &ModelConfig) -> Vec<u64> {
    let single = config.sinks || matches!(config.position, Position::Buckets { .. } | Position::Shortformer);
    (0..if single { 1 } else { rng.random_range(1..4) }).map(|_| rng.random()).collect()
}

/// A model whose biases are not 0.
fn model(config: &ModelConfig, seed: u64) -> Model {
    Model::random_as(config, seed, Kind::Double, Device::Cpu).unwrap()
}

/// Gradient descent without clipping: in one step, the parameters lose their gradient.
fn descent(heads: HeadOptions) -> TrainOptions {
    tch::set_num_threads(1);
    TrainOptions {
        steps: 1,
        batch: 5,
        warmup: 0,
        optimiser: Optimiser::Sgd { momentum: 0.0 },
        learning_rate: 1.0,
        decay: Decay::None,
        clip: None,
        heads,
        ..TrainOptions::default()
    }
}

type Named = BTreeMap<String, Tensor>;

fn named(model: &Model) -> Named {
    model.parameters().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
}

/// The parameters of each run after training.
fn trained(config: &ModelConfig, language: &Language, options: &TrainOptions, seeds: &[u64]) -> Vec<Named> {
    let start = seeds.iter().map(|seed| model(config, *seed)).collect();
    let runs = Trainer::from_models(start, language, options, seeds).unwrap().run().unwrap();
    runs.iter().map(|run| named(&run.model)).collect()
}

/// The gradients of each run.
fn gradients(config: &ModelConfig, language: &Language, heads: HeadOptions, seeds: &[u64]) -> Vec<Named> {
    let after = trained(config, language, &descent(heads), seeds);
    let of = |(seed, mut after): (&u64, Named)| {
        let start = named(&model(config, *seed));
        after.iter_mut().for_each(|(name, new)| *new = &start[name] - &*new);
        after
    };
    seeds.iter().zip(after).map(of).collect()
}

fn dose(dose: f64) -> HeadOptions {
    HeadOptions { competition: Some(dose), ..HeadOptions::default() }
}

/// Gradients are differences of parameters of order one.
#[track_caller]
fn assert_alike(what: &str, found: &Tensor, expected: &Tensor) {
    assert_close_at(what, found, expected, scale(expected).max(1.0), Tol::Model(Kind::Double));
}

/// A full dose is ordinary training: the gradient of every parameter, and several steps with the optimiser that is used.
#[test]
fn a_full_dose_is_joint_training() {
    for case in 0..common::cases(40) {
        let rng = &mut ChaCha8Rng::seed_from_u64(u64::from(case));
        let language = any_language(rng);
        let config = any_layer(rng, &language);
        let seeds = any_seeds(rng, &config);
        let joint = gradients(&config, &language, HeadOptions::default(), &seeds);
        let full = gradients(&config, &language, dose(1.0), &seeds);
        for (name, (full, joint)) in full
            .iter()
            .zip(&joint)
            .flat_map(|(full, joint)| full.iter().map(|(name, gradient)| (name, (gradient, &joint[name]))))
        {
            assert_alike(&format!("case {case}, {name}"), full, joint);
        }
        let after = |heads| {
            let options = TrainOptions { steps: 3, ..TrainOptions { heads, ..descent(HeadOptions::default()) } };
            let options = TrainOptions { optimiser: Optimiser::AdamW, learning_rate: 1e-2, clip: Some(1.0), ..options };
            trained(&config, &language, &options, &seeds)
        };
        for (full, joint) in after(dose(1.0)).iter().zip(after(HeadOptions::default())) {
            for (name, full) in full.iter().filter(|(name, _)| !name.ends_with("b_k")) {
                // Where the gradient is rounding alone, Adam's step is of any sign: a key's bias is none.
                assert_close_at(&format!("case {case}, {name}"), full, &joint[name], 1.0, Tol::Conditioned(1e4));
            }
        }
    }
}

/// Whatever the dose, a head's own parameters get the gradient that they have in a model whose other heads write that
/// share of what they write, and what follows the heads gets the mean of those gradients. Another dose gives others.
#[test]
fn a_head_learns_as_beside_that_share_of_the_others() {
    for case in 0..common::cases(30) {
        let rng = &mut ChaCha8Rng::seed_from_u64(1000 + u64::from(case));
        let language = any_language(rng);
        let one_kv_each =
            |config: ModelConfig| ModelConfig { n_kv_heads: config.n_heads, tied_unembed: false, ..config };
        let config = one_kv_each(any_layer(rng, &language));
        let (heads, seeds) = (config.n_heads, any_seeds(rng, &config));
        let share = *[0.0, 0.25, 0.6].choose(rng).unwrap();
        let found = gradients(&config, &language, dose(share), &seeds);
        let beside = |head: usize| {
            let scaled = (0..heads).filter(|other| *other != head).map(|other| (0, other, share)).collect();
            gradients(&config, &language, HeadOptions { scaled, ..HeadOptions::default() }, &seeds)
        };
        let beside: Vec<Vec<Named>> = (0..heads).map(beside).collect();
        for (run, found) in found.iter().enumerate() {
            for (name, axis) in [("w_q", 1), ("w_k", 1), ("w_v", 1), ("w_o", 0), ("b_q", 0), ("b_v", 0)] {
                let Some(found) = found.get(&format!("blocks.0.{name}")) else { continue };
                for (head, beside) in beside.iter().enumerate() {
                    let part = |x: &Tensor| x.unflatten(axis, [heads as i64, -1]).select(axis, head as i64);
                    let expected = part(&beside[run][&format!("blocks.0.{name}")]);
                    assert_alike(&format!("case {case}, dose {share}, {name} of head {head}"), &part(found), &expected);
                }
            }
            for name in ["w_u", "b_u", "ln_final.w", "ln_final.b", "blocks.0.b_o"] {
                let Some(found) = found.get(name) else { continue };
                let all: Vec<&Tensor> = beside.iter().map(|runs| &runs[run][name]).collect();
                let mean = Tensor::stack(&all, 0).mean_dim([0i64].as_slice(), false, None::<Kind>);
                assert_alike(&format!("case {case}, dose {share}, {name}"), found, &mean);
            }
            if heads > 1 {
                let w_u = |gradients: &Named| gradients["w_u"].copy();
                let joint = gradients(&config, &language, HeadOptions::default(), &seeds);
                assert!((w_u(found) - w_u(&joint[run])).abs().max().double_value(&[]) > 1e-6, "case {case}");
            }
        }
    }
}

fn gated() -> Language {
    let tasks = vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate];
    Language::Tasks(Tasks { tasks, regime: Regime::Gated, symbols: 4, length: (4, 6) })
}

fn one_layer(language: &Language) -> ModelConfig {
    ModelConfig {
        d_mlp: 0,
        vocab: language.vocab(),
        n_positions: language.positions(),
        norm: NormKind::Rms,
        ..ModelConfig::default()
    }
}

/// The trainer of fresh models in float64.
fn fresh(language: &Language, heads: HeadOptions, seeds: &[u64]) -> Trainer {
    let options = TrainOptions { steps: 5, optimiser: Optimiser::AdamW, learning_rate: 1e-2, ..descent(heads) };
    Trainer::start(&one_layer(language), language, &options, seeds, Kind::Double, Device::Cpu).unwrap()
}

/// Stacked runs that start from perturbed copies of a head train as each does alone, at any dose.
#[test]
fn stacked_runs_with_a_dose_are_as_single_ones() {
    let language = gated();
    for share in [0.0, 0.5, 1.0] {
        let heads = HeadOptions { identical: true, perturbation: 1e-2, ..dose(share) };
        let stacked = fresh(&language, heads.clone(), &[4, 5, 6]).run().unwrap();
        for (seed, stacked) in [4, 5, 6].into_iter().zip(stacked) {
            let single = fresh(&language, heads.clone(), &[seed]).run().unwrap().remove(0);
            assert_eq!(stacked.trace.len(), single.trace.len());
            let single = named(&single.model);
            for (name, stacked) in named(&stacked.model).iter().filter(|(name, _)| !name.ends_with("b_k")) {
                assert_close_at(name, stacked, &single[name], 1.0, Tol::Conditioned(1e4));
            }
        }
    }
}

/// Heads that start identical stay so at any dose. Without competition, each of them is measured as it would be alone,
/// since together they write the mean of what each writes.
#[test]
fn identical_heads_stay_what_each_would_be_alone() {
    let language = gated();
    for share in [0.0, 0.5, 1.0] {
        let heads = HeadOptions { identical: true, ..dose(share) };
        let mut trainer = fresh(&language, heads, &[1, 2]);
        trainer.train_to(5).unwrap();
        let batches = held_out(&language, 20, &[1, 2]).unwrap();
        let found = trainer.probe(&batches).unwrap().losses().unwrap().loss;
        for (run, model) in trainer.snapshots().into_iter().enumerate() {
            let w_v = model.w_v(0).unwrap();
            for head in 1..w_v.size()[0] {
                assert_close("a copy of a head", &w_v.get(head), &w_v.get(0), Tol::Layer(Kind::Double));
            }
            // The first head, and of the others the share that the dose lets it see.
            let silent =
                HeadOptions { scaled: vec![(0, 1, share), (0, 2, share), (0, 3, share)], ..HeadOptions::default() };
            let options = TrainOptions { steps: 0, ..descent(silent) };
            let alone = Trainer::from_models(vec![model], &language, &options, &[1]).unwrap();
            let alone = alone.probe(&batches[run..=run]).unwrap().losses().unwrap().loss;
            for (found, alone) in found.row(run).iter().zip(alone.row(0)) {
                common::assert_near("the loss of a task", *found, *alone, Tol::Model(Kind::Double));
            }
        }
    }
}

#[test]
fn a_dose_that_is_not_defined_is_refused() {
    let language = gated();
    let config = one_layer(&language);
    let refused = |config: &ModelConfig, heads: HeadOptions| match Trainer::new(config, &language, &descent(heads))
        .err()
        .expect("a refusal")
    {
        Error::Argument { name, .. } => name,
        other => panic!("{other}"),
    };
    for bad in [-0.1, 1.5, f64::NAN] {
        assert_eq!(refused(&config, dose(bad)), "competition");
    }
    for bad in [
        ModelConfig { n_layers: 2, ..config.clone() },
        ModelConfig { d_mlp: 8, ..config.clone() },
        ModelConfig { norm_place: NormPlace::Post, ..config.clone() },
        ModelConfig { norm_place: NormPlace::Output, ..config.clone() },
        ModelConfig { qk_norm: QkNorm::All, ..config.clone() },
    ] {
        assert_eq!(refused(&bad, dose(0.5)), "competition");
    }
    for rank in [0, config.d_head + 1] {
        assert_eq!(refused(&config, HeadOptions { qk_rank: Some(rank), ..HeadOptions::default() }), "qk_rank");
        assert_eq!(refused(&config, HeadOptions { ov_rank: Some(rank), ..HeadOptions::default() }), "ov_rank");
    }
}

/// The tensors of a circuit with the axis of a head's dimensions, and whether they are split by key/value head.
const QK: [(&str, i64, bool); 4] = [("w_q", 1, false), ("w_k", 1, true), ("b_q", 0, false), ("b_k", 0, true)];
const OV: [(&str, i64, bool); 3] = [("w_v", 1, true), ("w_o", 0, false), ("b_v", 0, true)];

/// The dimensions of every head's part of a tensor, `[dimension, number]`.
fn dimensions(model: &Model, layer: usize, (name, axis, of_kv): (&str, i64, bool)) -> Option<Tensor> {
    let config = model.config();
    let heads = if of_kv { config.n_kv_heads } else { config.n_heads } as i64;
    let name = format!("blocks.{layer}.{name}");
    let found = model.parameters().into_iter().find(|(own, _)| *own == name)?.1.unflatten(axis, [heads, -1]);
    Some(found.movedim_int(axis + 1, 0).flatten(1, -1))
}

/// Invariants 24 and 25: dimensions beyond the rank are 0 to the last bit after training with weight decay, momentum and
/// noise, and the circuits have no higher rank; the others are trained, and use the whole rank.
#[test]
fn heads_of_limited_rank_keep_it() {
    for case in 0..common::cases(20) {
        let rng = &mut ChaCha8Rng::seed_from_u64(2000 + u64::from(case));
        let language = any_language(rng);
        let config = ModelConfig { n_layers: rng.random_range(1..3), ..any_layer(rng, &language) };
        let rank = |rng: &mut ChaCha8Rng| rng.random_bool(0.7).then(|| rng.random_range(1..=config.d_head));
        let noise = rng.random_bool(0.5).then_some(0.3);
        let heads = HeadOptions { qk_rank: rank(rng), ov_rank: rank(rng), noise, ..HeadOptions::default() };
        let optimiser = *[Optimiser::Adam, Optimiser::AdamW, Optimiser::Sgd { momentum: 0.9 }].choose(rng).unwrap();
        let options =
            TrainOptions { steps: 4, optimiser, weight_decay: 0.1, learning_rate: 1e-2, ..descent(heads.clone()) };
        let seeds = any_seeds(rng, &config);
        let start = |steps| {
            let options = TrainOptions { steps, ..options.clone() };
            let trainer = Trainer::start(&config, &language, &options, &seeds, Kind::Double, Device::Cpu).unwrap();
            trainer.run().unwrap()
        };
        for (before, after) in start(0).iter().zip(start(4)) {
            for layer in 0..config.n_layers {
                let of_rank = QK.map(|it| (it, heads.qk_rank)).into_iter().chain(OV.map(|it| (it, heads.ov_rank)));
                for (tensor, rank) in of_rank {
                    let Some(after) = dimensions(&after.model, layer, tensor) else { continue };
                    let before = dimensions(&before.model, layer, tensor).unwrap();
                    let rank = rank.unwrap_or(config.d_head) as i64;
                    for dimension in 0..config.d_head as i64 {
                        let (old, new) = (before.get(dimension), after.get(dimension));
                        let zero = new.count_nonzero(None::<i64>).int64_value(&[]) == 0;
                        let name = format!("case {case}, layer {layer}, {tensor:?}, dimension {dimension} of {rank}");
                        assert_eq!(zero, dimension >= rank, "{name}");
                        assert!(dimension >= rank || !new.equal(&old), "{name}");
                    }
                }
                let model = &after.model;
                let [q, o] = [model.w_q(layer).unwrap(), model.w_o(layer).unwrap()];
                let group = (config.n_heads / config.n_kv_heads) as i64;
                let [k, v] = [model.w_k(layer).unwrap(), model.w_v(layer).unwrap()]
                    .map(|kv| kv.repeat_interleave_self_int(group, 0, None));
                for (product, rank) in [(q.matmul(&k.transpose(1, 2)), heads.qk_rank), (v.matmul(&o), heads.ov_rank)] {
                    let Some(rank) = rank.filter(|rank| *rank < config.d_model) else { continue };
                    let (_, values, _) = product.svd(true, false);
                    let beyond = values.narrow(1, rank as i64, (config.d_model - rank) as i64);
                    common::assert_zero("beyond the rank", &beyond, scale(&values), Tol::Layer(Kind::Double));
                    let within = values.narrow(1, 0, rank as i64).min().double_value(&[]);
                    assert!(within > Tol::Layer(Kind::Double).bound() * scale(&values), "case {case}: {within}");
                }
            }
        }
    }
}

/// A limited head starts as the first dimensions of the whole one, larger by the fourth root of d_head / rank. The mean
/// square of `W_Q W_K^T` over many draws, and so the variance of the logits, is then that of the whole head, and so is
/// that of `W_V W_O`; to within five standard errors, of which one in a million samples is out.
#[test]
fn a_limited_rank_leaves_the_variance_of_logits_and_outputs() {
    let language = gated();
    let config = one_layer(&language);
    let seeds: Vec<u64> = (0..100).collect();
    let products = |heads: HeadOptions| {
        let options = TrainOptions { steps: 0, ..descent(heads) };
        let runs = Trainer::with_seeds(&config, &language, &options, &seeds).unwrap().run().unwrap();
        let squares = runs.iter().flat_map(|run| {
            let of = |name: fn(&Model, usize) -> Result<Tensor, Error>| name(&run.model, 0).unwrap();
            [
                of(Model::w_q).matmul(&of(Model::w_k).transpose(1, 2)).square().mean(Kind::Double).double_value(&[]),
                of(Model::w_v).matmul(&of(Model::w_o)).square().mean(Kind::Double).double_value(&[]),
            ]
        });
        (squares.collect::<Vec<f64>>(), runs.into_iter().next().unwrap().model)
    };
    let moments = |values: &mut dyn Iterator<Item = f64>| {
        let values: Vec<f64> = values.collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n)
    };
    let (whole, whole_model) = products(HeadOptions::default());
    for rank in [1, 3, config.d_head] {
        let (limited, model) =
            products(HeadOptions { qk_rank: Some(rank), ov_rank: Some(rank), ..HeadOptions::default() });
        for circuit in 0..2 {
            let of = |all: &[f64]| moments(&mut all.iter().skip(circuit).step_by(2).copied());
            let ((a, a_error), (b, b_error)) = (of(&whole), of(&limited));
            assert!((a - b).abs() < 5.0 * (a_error + b_error).sqrt(), "rank {rank}, circuit {circuit}: {a} {b}");
        }
        let factor = (config.d_head as f64 / rank as f64).powf(0.25);
        for tensor in [QK[0], QK[1], OV[0], OV[1]] {
            let first = |model: &Model| dimensions(model, 0, tensor).unwrap().narrow(0, 0, rank as i64);
            assert_close(tensor.0, &first(&model), &(first(&whole_model) * factor), Tol::Layer(Kind::Float));
        }
    }
}

/// Models whose heads have a higher rank are not cut to the one asked for.
#[test]
fn models_of_higher_rank_are_refused() {
    let language = gated();
    let config = one_layer(&language);
    let limited = HeadOptions { qk_rank: Some(2), ..HeadOptions::default() };
    let refused = Trainer::from_models(vec![model(&config, 0)], &language, &descent(limited.clone()), &[0]);
    assert!(matches!(refused.err(), Some(Error::Argument { name: "models", .. })));
    let trained = Trainer::new(&config, &language, &descent(limited.clone())).unwrap().run().unwrap().remove(0).model;
    Trainer::from_models(vec![trained], &language, &descent(limited), &[0]).unwrap();
}
