//! Measures of heads during training: each against its definition, stacked models against single ones, identities.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_near};
use headscope::circuits::{Circuit, Measure, Offset, Ranks};
use headscope::heads::{CircuitOptions, jensen_shannon, linear_cka};
use headscope::intervene::{Ablation, shapley_values};
use headscope::lab::Language;
use headscope::lab::language::{Batch, English, Regime, Repeats, Task, Tasks};
use headscope::lab::trace::{CIRCUITS, Probe, Quantity, held_out, participation, specialisation};
use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site};
use ndarray::{Array2, ArrayView1, ArrayView2};
use proptest::prelude::*;
use tch::{Kind, Tensor};

const DOUBLE: Kind = Kind::Double;

fn tasks(regime: Regime) -> Language {
    let tasks = vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate];
    Language::Tasks(Tasks { tasks, regime, ..Tasks::default() })
}

/// Between them: one position a row, some positions, all positions; own and shared logits.
fn languages() -> Vec<Language> {
    let mut all = vec![Language::Repeats(Repeats { length: 24, ..Repeats::default() })];
    all.push(Language::English(English { length: 14 }));
    all.extend([Regime::Gated, Regime::Simultaneous, Regime::Bag, Regime::Mixture(4)].map(tasks));
    all
}

fn configs(language: &Language) -> Vec<ModelConfig> {
    let one = ModelConfig {
        d_mlp: 0,
        d_model: 16,
        d_head: 4,
        vocab: language.vocab(),
        n_positions: language.positions(),
        ..ModelConfig::default()
    };
    vec![one.clone(), ModelConfig { n_layers: 2, n_heads: 3, n_kv_heads: 3, d_mlp: 8, ..one }]
}

fn models(config: &ModelConfig, n: u64) -> Vec<Model> {
    (0..n).map(|seed| common::random(config, seed)).collect()
}

/// The loss of each task, by its definition.
fn losses_of(logits: &Tensor, batch: &Batch, tasks: usize) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; tasks], vec![0.0; tasks]);
    for (row, sample) in batch.samples.iter().enumerate() {
        for target in &sample.targets {
            let among = logits.get(row as i64).get(target.position as i64);
            let among = among.narrow(0, target.choices.start, target.choices.end - target.choices.start);
            let log = among.log_softmax(-1, None::<Kind>);
            sums[target.task] -= log.double_value(&[target.token - target.choices.start]);
            counts[target.task] += 1.0;
        }
    }
    sums.iter().zip(&counts).map(|(sum, count)| if *count > 0.0 { sum / count } else { 0.0 }).collect()
}

#[test]
fn losses_are_what_they_are_defined_as() {
    for language in languages() {
        let tasks = language.tasks().len();
        for config in configs(&language) {
            let (models, batches) = (models(&config, 2), held_out(&language, 5, &[0, 1]).unwrap());
            let losses = Probe::new(&models, &language, &batches).unwrap().losses().unwrap();
            for (run, (model, batch)) in models.iter().zip(&batches).enumerate() {
                let done = model.run(&batch.tokens, &Plan::new()).unwrap();
                for (task, expected) in losses_of(done.logits().unwrap(), batch, tasks).into_iter().enumerate() {
                    assert_near("loss", losses.loss[[run, task]], expected, Tol::Model(DOUBLE));
                    let n = batch.samples.iter().flat_map(|s| &s.targets).filter(|t| t.task == task).count();
                    assert_eq!(losses.count[[run, task]], n as f64);
                    assert!((0.0..=1.0).contains(&losses.accuracy[[run, task]]));
                }
            }
        }
    }
}

/// Absent heads are as in a plan with the edits, in the first layer and in the last.
#[test]
fn losses_without_heads_are_those_of_edited_runs() {
    let absent = vec![vec![], vec![1], vec![0, 2], vec![0, 1, 2]];
    for language in languages() {
        let tasks = language.tasks().len();
        for config in configs(&language) {
            let (models, batches) = (models(&config, 2), held_out(&language, 6, &[3, 4]).unwrap());
            let probe = Probe::new(&models, &language, &batches).unwrap();
            for layer in 0..config.n_layers {
                for ablation in [Ablation::Zero, Ablation::Mean] {
                    let found = probe.losses_without(layer, &absent, ablation).unwrap();
                    for (run, (model, batch)) in models.iter().zip(&batches).enumerate() {
                        let site = Site::Z(layer);
                        let own = model.run(&batch.tokens, &Plan::new().tap(site)).unwrap();
                        for (set, heads) in absent.iter().enumerate().skip(1) {
                            let action = match ablation {
                                Ablation::Zero => Action::Zero,
                                _ => Action::mean("own"),
                            };
                            let edit = Edit::new(site, action).heads(heads.clone());
                            let plan = Plan::new().with("own", &own).edit(edit);
                            let run_of = model.run(&batch.tokens, &plan).unwrap();
                            let expected = losses_of(run_of.logits().unwrap(), batch, tasks);
                            for (task, expected) in expected.into_iter().enumerate() {
                                let what = format!("{ablation:?}, layer {layer}, without {heads:?}");
                                assert_near(&what, found[[run, set, task]], expected, Tol::Model(DOUBLE));
                            }
                        }
                        let whole = probe.losses().unwrap().loss[[run, 0]];
                        assert_near("without none", found[[run, 0, 0]], whole, Tol::Model(DOUBLE));
                    }
                }
            }
        }
    }
}

/// Heads that are taken away where a role is needed have their mean over those places there, and are themselves elsewhere: as
/// in a plan that says so place by place.
#[test]
fn losses_at_places_are_those_of_edited_runs() {
    for language in languages() {
        let names: Vec<String> = language.tasks().into_iter().map(|task| task.name).collect();
        for config in configs(&language) {
            let (models, batches) = (models(&config, 2), held_out(&language, 12, &[3, 4]).unwrap());
            let probe = Probe::new(&models, &language, &batches).unwrap();
            let kind = probe.roles().unwrap().kinds[0].clone();
            let task = names.iter().position(|name| *name == kind).unwrap();
            let last = config.n_layers - 1;
            let absent = vec![vec![(0, 0), (last, 2)], vec![(last, 1)]];
            let places = probe.places(&kind).unwrap();
            let found = probe.losses_at(&places, &absent).unwrap();
            let whole = probe.losses_at(&places, &[vec![], vec![]]).unwrap();
            for (run, (model, batch)) in models.iter().zip(&batches).enumerate() {
                let own = model.run(&batch.tokens, &Plan::new().taps((0..=last).map(Site::Z))).unwrap();
                let mut at: Vec<(usize, usize)> = vec![];
                for (row, sample) in batch.samples.iter().enumerate() {
                    let all = sample.dependencies.iter().filter(|one| one.kind == kind);
                    at.extend(all.map(|one| (row, one.query)));
                }
                at.sort_unstable();
                at.dedup();
                let mut plan = Plan::new();
                for &(layer, head) in &absent[run] {
                    let z = own.get(Site::Z(layer)).unwrap();
                    let each: Vec<Tensor> = at.iter().map(|&(row, q)| z.get(row as i64).get(q as i64)).collect();
                    let mean = Tensor::stack(&each, 0).mean_dim([0i64].as_slice(), false, None::<Kind>);
                    let key = format!("mean {layer}.{head}");
                    plan = plan.with_tensor(&key, Site::Z(layer), &mean.expand_as(z));
                    for &(row, q) in &at {
                        let action = Action::Replace { key: key.clone() };
                        plan = plan.edit(Edit::new(Site::Z(layer), action).head(head).position(q).prompts([row]));
                    }
                }
                let logits = model.run(&batch.tokens, &plan).unwrap();
                let expected = losses_of(logits.logits().unwrap(), batch, names.len())[task];
                assert_near("without heads", found[run], expected, Tol::Model(DOUBLE));
                assert_near("without none", whole[run], probe.losses().unwrap().loss[[run, task]], Tol::Model(DOUBLE));
            }
            assert!(probe.losses_at(&places, &[vec![]]).is_err() && probe.places("nothing").is_err());
            assert!(probe.losses_at(&places, &[vec![(0, 9)], vec![]]).is_err());
        }
    }
}

/// Invariant 16: values sum to what all heads together change; heads that are the same have the same; one that writes nothing
/// has none.
#[test]
fn shapley_values_share_out_what_heads_do() {
    let language = tasks(Regime::Gated);
    let config = configs(&language).remove(0);
    let models = models(&config, 2);
    for (name, w) in models[0].parameters() {
        let (axis, width) = if name == "blocks.0.w_o" { (0, 4) } else { (w.dim() as i64 - 1, 4) };
        let of_heads = ["w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v"].iter().any(|own| name.ends_with(own));
        if of_heads {
            let first = w.narrow(axis, 0, width).copy();
            w.narrow(axis, width, width).copy_(&first); // head 1 is head 0
        }
        if name == "blocks.0.w_o" {
            let _ = w.narrow(0, 12, 4).zero_(); // head 3 writes nothing
        }
    }
    let probe = Probe::new(&models, &language, &held_out(&language, 40, &[0, 1]).unwrap()).unwrap();
    for ablation in [Ablation::Zero, Ablation::Mean] {
        let phi = probe.shapley(0, ablation).unwrap();
        let ends = probe.losses_without(0, &[vec![], vec![0, 1, 2, 3]], ablation).unwrap();
        for run in 0..2 {
            for task in 0..4 {
                let sum = (0..4).map(|head| phi[[run, head, task]]).sum::<f64>();
                assert_near("sum", sum, ends[[run, 1, task]] - ends[[run, 0, task]], Tol::Layer(DOUBLE));
            }
        }
        for task in 0..4 {
            assert_near("the same", phi[[0, 0, task]], phi[[0, 1, task]], Tol::Layer(DOUBLE));
            assert_near("nothing", phi[[0, 3, task]], 0.0, Tol::Layer(DOUBLE));
        }
        assert!(phi.iter().any(|value| value.abs() > 1e-3));
    }
}

#[test]
fn roles_and_patterns_are_what_they_are_defined_as() {
    for language in languages() {
        let config = configs(&language).remove(1);
        let (models, batches) = (models(&config, 2), held_out(&language, 4, &[5, 6]).unwrap());
        let probe = Probe::new(&models, &language, &batches).unwrap();
        let (roles, shares) = (probe.roles().unwrap(), probe.position_shares().unwrap());
        for (run, (model, batch)) in models.iter().zip(&batches).enumerate() {
            let done = model.run(&batch.tokens, &Plan::new().taps((0..2).map(Site::Pattern))).unwrap();
            for layer in 0..2 {
                let pattern = done.get(Site::Pattern(layer)).unwrap();
                for (k, kind) in roles.kinds.iter().enumerate() {
                    let (found, uniform) = role(pattern, batch, kind);
                    for (head, &expected) in found.iter().enumerate() {
                        let value = roles.attention[[run, layer, head, k]];
                        if expected.is_nan() {
                            assert!(value.is_nan());
                        } else {
                            assert_near(kind, value, expected, Tol::Layer(DOUBLE));
                            assert_near(kind, roles.uniform[[run, k]], uniform, Tol::Layer(DOUBLE));
                            let best = batch.best_offset(kind).unwrap().share;
                            assert_eq!(roles.offset[[run, k]], best);
                            let beyond = roles.beyond(run, (layer, head), k);
                            assert_near(kind, beyond, value - best.max(uniform), Tol::Layer(DOUBLE));
                        }
                    }
                }
                for (head, offset) in [(0, 0), (1, 1), (2, 3)] {
                    let (mut sum, mut n) = (0.0, 0.0);
                    for (row, sample) in batch.samples.iter().enumerate() {
                        for query in offset..sample.tokens.len() {
                            let place = [row, head, query, query - offset].map(|i| i as i64);
                            sum += pattern.double_value(&place);
                            n += 1.0;
                        }
                    }
                    assert_near("distance", shares.attention[[run, layer, head, offset]], sum / n, Tol::Layer(DOUBLE));
                }
                let apart = probe.pattern_distance(layer).unwrap();
                for (a, b) in [(0usize, 1usize), (1, 2), (2, 2)] {
                    let expected = distance(pattern, batch, a as i64, b as i64);
                    assert_near("distance", apart[[run, a, b]], expected, Tol::Layer(DOUBLE));
                    assert_near("distance", apart[[run, b, a]], expected, Tol::Layer(DOUBLE));
                }
            }
        }
    }
}

/// Mean attention of each head to the sources of a kind of dependency, summed over a query's sources, and that of uniform
/// attention.
fn role(pattern: &Tensor, batch: &Batch, kind: &str) -> (Vec<f64>, f64) {
    let (mut sums, mut uniform) = (vec![0.0; 3], 0.0);
    let mut queries = std::collections::BTreeSet::new();
    for (row, sample) in batch.samples.iter().enumerate() {
        for one in sample.dependencies.iter().filter(|one| one.kind == kind) {
            for (head, sum) in sums.iter_mut().enumerate() {
                *sum += pattern.double_value(&[row as i64, head as i64, one.query as i64, one.source as i64]);
            }
            uniform += 1.0 / (one.query + 1) as f64;
            queries.insert((row, one.query));
        }
    }
    let n = queries.len() as f64;
    (sums.into_iter().map(|sum| sum / n).collect(), uniform / n)
}

fn predictions(batch: &Batch) -> std::collections::BTreeSet<(usize, usize)> {
    let all = batch.samples.iter().enumerate();
    all.flat_map(|(row, sample)| sample.targets.iter().map(move |target| (row, target.position))).collect()
}

fn distance(pattern: &Tensor, batch: &Batch, a: i64, b: i64) -> f64 {
    let mut all = vec![];
    for (row, query) in predictions(batch).into_iter().filter(|(_, query)| *query > 0) {
        let of = |head: i64| Vec::<f64>::try_from(pattern.get(row as i64).get(head).get(query as i64)).unwrap();
        let (p, q) = (of(a), of(b));
        all.push(jensen_shannon(ArrayView1::from(&p), ArrayView1::from(&q)).unwrap() / 2f64.ln());
    }
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn what_heads_write_is_compared_by_cka() {
    for language in languages() {
        let config = configs(&language).remove(1);
        let (models, batches) = (models(&config, 2), held_out(&language, 12, &[5, 6]).unwrap());
        let w_o = models[1].parameters().into_iter().find(|(name, _)| name == "blocks.1.w_o").unwrap().1;
        let _ = w_o.narrow(0, 0, 4).zero_(); // head 0 of layer 1 of the second model is dead
        let probe = Probe::new(&models, &language, &batches).unwrap();
        let found = probe.cka(1).unwrap();
        assert!(found[[1, 0, 1]].is_nan() && found[[1, 2, 0]].is_nan());
        let run = models[0].run(&batches[0].tokens, &Plan::new().tap(Site::Result(1))).unwrap();
        let written = run.get(Site::Result(1)).unwrap();
        let of = |head: i64| {
            let places = predictions(&batches[0]).into_iter();
            let rows: Vec<f64> = places
                .flat_map(|(row, at)| Vec::<f64>::try_from(written.get(row as i64).get(at as i64).get(head)).unwrap())
                .collect();
            Array2::from_shape_vec((rows.len() / 16, 16), rows).unwrap()
        };
        for (a, b) in [(0, 1), (1, 2), (0, 0)] {
            let expected = linear_cka(of(a).view(), of(b).view()).unwrap().unwrap();
            assert_near("cka", found[[0, a as usize, b as usize]], expected, Tol::Model(DOUBLE));
        }
    }
}

/// Columns (rows of w_o) that are a head's own.
fn of_head(name: &str, gradient: &Tensor, head: i64, width: i64) -> Tensor {
    let axis = if name.ends_with("w_o") { 0 } else { gradient.dim() as i64 - 1 };
    gradient.narrow(axis, head * width, width).flatten(0, -1)
}

fn heads_parameters(model: &Model, layer: usize) -> Vec<(String, Tensor)> {
    let names = ["w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v"].map(|part| format!("blocks.{layer}.{part}"));
    let all = model.parameters().into_iter().filter(|(name, _)| names.contains(name));
    all.map(|(name, tensor)| (name, tensor.shallow_clone())).collect()
}

/// The gradient of a loss in each head of a layer, by one pass through a plan and libtorch's own differentiation.
fn gradients(model: &Model, batch: &Batch, layer: usize, task: Option<usize>) -> Vec<Tensor> {
    let leaves = heads_parameters(model, layer);
    let leaves: Vec<(String, Tensor)> =
        leaves.into_iter().map(|(name, leaf)| (name, leaf.set_requires_grad(true))).collect();
    let run = model.run(&batch.tokens, &Plan::new().tap(Site::Logits).differentiable()).unwrap();
    let mut terms = vec![];
    for (row, sample) in batch.samples.iter().enumerate() {
        for target in sample.targets.iter().filter(|target| task.is_none_or(|task| task == target.task)) {
            let among = run.logits().unwrap().get(row as i64).get(target.position as i64);
            let among = among.narrow(0, target.choices.start, target.choices.end - target.choices.start);
            terms.push(-among.log_softmax(-1, None::<Kind>).get(target.token - target.choices.start));
        }
    }
    let loss = Tensor::stack(&terms, 0).mean(None::<Kind>);
    let inputs: Vec<&Tensor> = leaves.iter().map(|(_, leaf)| leaf).collect();
    let all = Tensor::run_backward(&[&loss], &inputs, false, false);
    for (_, leaf) in &leaves {
        let _ = leaf.set_requires_grad(false);
    }
    let (heads, width) = (model.config().n_heads as i64, model.config().d_head as i64);
    let of = |head| {
        let parts = leaves.iter().zip(&all).map(|((name, _), g)| of_head(name, g, head, width));
        Tensor::cat(&parts.collect::<Vec<_>>(), 0)
    };
    (0..heads).map(of).collect()
}

fn norm(x: &Tensor) -> f64 {
    x.square().sum(None::<Kind>).sqrt().double_value(&[])
}

fn dot(x: &Tensor, y: &Tensor) -> f64 {
    (x * y).sum(None::<Kind>).double_value(&[])
}

#[test]
fn gradients_are_those_of_each_heads_own_parameters() {
    for language in [tasks(Regime::Gated), tasks(Regime::Simultaneous)] {
        let config = configs(&language).remove(1);
        let (models, batches) = (models(&config, 2), held_out(&language, 12, &[5, 6]).unwrap());
        let found = Probe::new(&models, &language, &batches).unwrap().gradients().unwrap();
        for (run, (model, batch)) in models.iter().zip(&batches).enumerate() {
            for layer in 0..2 {
                let by_task: Vec<Vec<Tensor>> = (0..4).map(|task| gradients(model, batch, layer, Some(task))).collect();
                let all = gradients(model, batch, layer, None);
                for head in 0..3 {
                    for (task, by_head) in by_task.iter().enumerate() {
                        let own = norm(&by_head[head]);
                        assert_near("norm", found.norm[[run, layer, head, task]], own, Tol::Model(DOUBLE));
                        let sum: f64 = by_head.iter().map(|g| norm(g).powi(2)).sum();
                        let share = found.share[[run, layer, head, task]];
                        assert_near("share", share, own.powi(2) / sum, Tol::Model(DOUBLE));
                    }
                    let (a, b) = (&by_task[0][head], &by_task[3][head]);
                    let expected = dot(a, b) / norm(a) / norm(b);
                    let cosine = found.task_cosine[[run, layer, head, 0, 3]];
                    assert_near("cosine of tasks", cosine, expected, Tol::Model(DOUBLE));
                }
                let expected = dot(&all[0], &all[2]) / norm(&all[0]) / norm(&all[2]);
                let cosine = found.head_cosine[[run, layer, 0, 2]];
                assert_near("cosine of heads", cosine, expected, Tol::Model(DOUBLE));
            }
        }
    }
}

/// Interference beside the change of `1/2 |g_j|^2` where head i takes a small step down its gradient, and one back.
#[test]
fn interference_is_the_change_of_the_others_gradient() {
    let language = tasks(Regime::Gated);
    let config = configs(&language).remove(1);
    let (models, batches) = (models(&config, 2), held_out(&language, 12, &[5, 6]).unwrap());
    let probe = Probe::new(&models, &language, &batches).unwrap();
    for layer in 0..2 {
        let found = probe.interference(layer).unwrap();
        let of_task = probe.task_interference(layer, 2).unwrap();
        for (task, found) in [(None, found), (Some(2), of_task)] {
            let (model, batch) = (&models[1], &batches[1]);
            let own = gradients(model, batch, layer, task);
            for from in [0, 2] {
                let energy = |times: f64| {
                    step(model, layer, from, &own[from], times);
                    let energies = gradients(model, batch, layer, task).iter().map(|g| 0.5 * norm(g).powi(2)).collect();
                    step(model, layer, from, &own[from], -times);
                    energies
                };
                let h = 1e-3;
                let [back, ahead, far_back, far]: [Vec<f64>; 4] = [h, -h, 2.0 * h, -2.0 * h].map(energy);
                for head in 0..3 {
                    let slope = (8.0 * (ahead[head] - back[head]) - (far[head] - far_back[head])) / (12.0 * h);
                    assert_near("interference", found[[1, from, head]], slope, Tol::Difference);
                }
            }
        }
    }
}

/// Adds `times` a head's gradient to its parameters.
fn step(model: &Model, layer: usize, head: usize, gradient: &Tensor, times: f64) {
    let width = model.config().d_head as i64;
    let mut first = 0;
    for (name, tensor) in heads_parameters(model, layer) {
        let axis = if name.ends_with("w_o") { 0 } else { tensor.dim() as i64 - 1 };
        let own = tensor.narrow(axis, head as i64 * width, width);
        let change = gradient.narrow(0, first, own.numel() as i64).view_as(&own.contiguous());
        first += own.numel() as i64;
        own.shallow_clone().copy_(&(&own + change * times));
    }
}

#[test]
fn weights_are_those_of_each_models_circuits() {
    let language = tasks(Regime::Gated);
    let config = configs(&language).remove(1);
    let models = models(&config, 2);
    let probe = Probe::new(&models, &language, &held_out(&language, 2, &[0, 1]).unwrap()).unwrap();
    let (ranks, overlaps) = (probe.ranks().unwrap(), probe.weight_similarity(Measure::WriteOverlap).unwrap());
    assert_eq!(CIRCUITS, ["qk", "ov"]);
    for (run, model) in models.iter().enumerate() {
        let circuits = model.circuits(&CircuitOptions::default()).unwrap();
        let expected = circuits.similarity(Measure::WriteOverlap, Offset::At(0)).unwrap().value;
        assert_eq!(overlaps.index_axis(ndarray::Axis(0), run), expected);
        for (c, circuit) in [Circuit::Qk(Offset::At(0)), Circuit::Ov].into_iter().enumerate() {
            for (number, product) in circuits.all(circuit).unwrap().into_iter().enumerate() {
                let expected = Ranks::of(&product.singular_values().unwrap().to_vec()).unwrap().effective;
                assert_eq!(ranks[[run, number / 3, number % 3, c]], expected);
            }
        }
    }
}

#[test]
fn several_models_are_as_single_ones() {
    for language in languages() {
        for config in configs(&language) {
            let (models, seeds) = (models(&config, 3), [7, 8, 9]);
            let batches = held_out(&language, 8, &seeds).unwrap();
            let rows = |models: &[Model], batches: &[Batch], seeds: &[u64]| {
                let probe = Probe::new(models, &language, batches).unwrap().seeds(seeds).step(3);
                probe.observations(&Quantity::ALL).unwrap()
            };
            let stacked = rows(&models, &batches, &seeds);
            for run in 0..3 {
                let single = rows(&models[run..=run], &batches[run..=run], &seeds[run..=run]);
                let of_run: Vec<_> = stacked.iter().filter(|row| row.keys.seed == Some(seeds[run])).collect();
                for row in &single {
                    let same =
                        |other: &&&headscope::table::Observation| other.keys == row.keys && other.metric == row.metric;
                    let other = of_run.iter().find(same).unwrap_or_else(|| panic!("no {row:?}"));
                    if row.value.is_nan() {
                        assert!(other.value.is_nan(), "{row:?} {other:?}");
                    } else {
                        assert_near(&format!("{:?}", row.keys), other.value, row.value, Tol::Model(DOUBLE));
                    }
                }
            }
        }
    }
}

#[test]
fn tables_hold_what_was_asked_for() {
    let language = tasks(Regime::Gated);
    let config = configs(&language).remove(0);
    let probe = Probe::new(&models(&config, 1), &language, &held_out(&language, 8, &[0]).unwrap()).unwrap();
    let table = probe.seeds(&[4]).step(20).table(&[Quantity::Shapley, Quantity::Losses]).unwrap();
    assert_eq!(table.columns(), ["layer", "head", "task", "step", "seed", "metric", "value"]);
    // 16 Shapley values, an index, participation in each task and in all; loss and accuracy of each task.
    assert_eq!(table.len(), 16 + 1 + 5 + 8);
    assert!(table.f64("step").unwrap().iter().all(|step| *step == 20.0));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let language = tasks(Regime::Gated);
    let config = configs(&language).remove(0);
    let (one, two) = (models(&config, 1), models(&config, 2));
    let batches = held_out(&language, 4, &[0, 1]).unwrap();
    assert!(Probe::new(&[], &language, &[]).is_err());
    assert!(Probe::new(&one, &language, &batches).is_err());
    let other = common::random(&ModelConfig { d_head: 8, ..config.clone() }, 0);
    assert!(Probe::new(&[models(&config, 1).remove(0), other], &language, &batches).is_err());
    let uneven = [held_out(&language, 4, &[0]).unwrap().remove(0), held_out(&language, 5, &[1]).unwrap().remove(0)];
    assert!(Probe::new(&two, &language, &uneven).is_err());
    let probe = Probe::new(&two, &language, &batches).unwrap();
    assert!(probe.losses_without(1, &[vec![0]], Ablation::Zero).is_err());
    assert!(probe.losses_without(0, &[vec![4]], Ablation::Zero).is_err());
    assert!(probe.losses_without(0, &[], Ablation::Zero).is_err());
    assert!(probe.losses_without(0, &[vec![0]], Ablation::Resample { seed: 0 }).is_err());
    assert!(probe.cka(1).is_err() && probe.pattern_distance(1).is_err() && probe.interference(1).is_err());
    assert!(probe.task_interference(0, 4).is_err());
    assert!(shapley_values(&[1.0]).is_err() && shapley_values(&[1.0, 2.0, 3.0]).is_err());
    assert!(specialisation(ndarray::array![[f64::NAN, 1.0]].view()).is_err());
    assert!(participation(&[f64::INFINITY]).is_err());
    assert_eq!(specialisation(ndarray::array![[-1.0, 0.0], [0.0, 0.0]].view()).unwrap(), None);
    assert_eq!(specialisation(ndarray::array![[1.0, 2.0]].view()).unwrap(), None);
}

fn index(phi: ArrayView2<f64>) -> f64 {
    specialisation(phi).unwrap().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Invariant 45.
    #[test]
    fn division_has_its_bounds(
        heads in 2usize..6,
        tasks in 2usize..6,
        values in proptest::collection::vec(0.01f64..3.0, 36),
        shift in 0usize..6,
    ) {
        let phi = Array2::from_shape_fn((heads, tasks), |(h, t)| values[h * 6 + t]);
        let found = index(phi.view());
        prop_assert!((0.0..=1.0).contains(&found));
        // Neither order nor scale of heads' values matter; what is negative does not count.
        let turned = Array2::from_shape_fn((heads, tasks), |(h, t)| 7.0 * phi[[(h + shift) % heads, t]]);
        prop_assert!((index(turned.view()) - found).abs() < Tol::Number.bound());
        let product = Array2::from_shape_fn((heads, tasks), |(h, t)| values[h] * values[6 + t]);
        prop_assert!(index(product.view()) < Tol::Number.bound());
        let own = Array2::from_shape_fn((heads, heads), |(h, t)| if (h + shift) % heads == t { 2.0 } else { -values[h] });
        prop_assert!((index(own.view()) - 1.0).abs() < Tol::Number.bound());
        let row: Vec<f64> = phi.column(0).to_vec();
        let shares = participation(&row).unwrap().unwrap();
        prop_assert!(shares >= 1.0 - Tol::Number.bound() && shares <= heads as f64 + Tol::Number.bound());
        assert_near("equal shares", participation(&vec![values[0]; heads]).unwrap().unwrap(), heads as f64, Tol::Number);
    }

    /// The sum, by its definition over orders in which heads leave.
    #[test]
    fn shapley_values_are_means_over_orders(values in proptest::collection::vec(-2.0f64..2.0, 8)) {
        let found = shapley_values(&values).unwrap();
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let mut expected = [0.0; 3];
        for order in orders {
            let mut mask = 0;
            for head in order {
                expected[head] += (values[mask | 1 << head] - values[mask]) / 6.0;
                mask |= 1 << head;
            }
        }
        for (found, expected) in found.iter().zip(expected) {
            prop_assert!((found - expected).abs() < Tol::Number.bound());
        }
    }
}

/// Tensors of a stack are compared whole somewhere, too.
#[test]
fn one_model_is_its_own_stack() {
    let language = tasks(Regime::Mixture(4));
    let config = configs(&language).remove(1);
    let model = common::random(&config, 1);
    let batch = held_out(&language, 3, &[2]).unwrap();
    let run = |model: &Model| model.run(&batch[0].tokens, &Plan::new()).unwrap().logits().unwrap().copy();
    let before = run(&model);
    let probe = Probe::new(std::slice::from_ref(&model), &language, &batch).unwrap();
    probe.observations(&Quantity::ALL).unwrap();
    assert_close("untouched by measuring", &run(&model), &before, Tol::Exact);
}
