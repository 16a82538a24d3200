//! Cells about constructions, demand and the order of learning, each against its definition.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use headscope::lab::experiment::{Attainable, Cell, Construction, Measurement, PatternKind, PatternSet, Work};
use headscope::lab::language::{Language, Regime, Task, Tasks};
use headscope::lab::trace::Probe;
use headscope::lab::train::{Decay, Optimiser, TrainOptions};
use headscope::lab::verdict::Evidence;
use headscope::lab::{Experiment, Grid, Trainer};
use headscope::model::ModelConfig;
use headscope::table::{Observation, Table};
use tch::{Device, Kind};

fn cell(work: Work) -> Cell {
    Cell { name: "cell".into(), work }
}

fn values(table: &Table, metric: &str) -> Vec<f64> {
    table.rows().unwrap().into_iter().filter(|row| row.metric == metric).map(|row| row.value).collect()
}

/// After one small step of gradient descent each task's loss has fallen by its rate times the step size.
#[test]
fn rates_of_descent_are_those_of_a_step() {
    let weights = vec![1.0, 0.2, 0.0];
    for regime in [Regime::Gated, Regime::Simultaneous, Regime::Bag] {
        let tasks = vec![Task::Back(1), Task::First, Task::Class];
        let language = Language::Tasks(Tasks { tasks, regime, symbols: 4, length: (3, 5) });
        let config = ModelConfig {
            d_model: 12,
            n_heads: 2,
            n_kv_heads: 2,
            d_head: 3,
            d_mlp: 0,
            vocab: language.vocab(),
            n_positions: language.positions(),
            ..ModelConfig::default()
        };
        let learning_rate = 1e-6;
        let options = TrainOptions {
            steps: 1,
            batch: 16,
            optimiser: Optimiser::Sgd { momentum: 0.0 },
            learning_rate,
            warmup: 0,
            decay: Decay::None,
            clip: None,
            task_weights: weights.clone(),
            ..TrainOptions::default()
        };
        let seeds = [3, 4];
        let mut trainer = Trainer::start(&config, &language, &options, &seeds, Kind::Double, Device::Cpu).unwrap();
        let batches = |number| seeds.map(|seed| language.batch(16, seed, number).unwrap());
        let probe = |trainer: &Trainer, number| -> Probe { trainer.probe(&batches(number)).unwrap() };
        // The first step trains on batch 0 of each seed.
        let rates = probe(&trainer, 9).descent(&probe(&trainer, 0), &weights).unwrap();
        let before = probe(&trainer, 9).losses().unwrap().loss;
        trainer.train_to(1).unwrap();
        let after = probe(&trainer, 9).losses().unwrap().loss;
        for ((place, rate), fall) in rates.indexed_iter().zip((before - after) / learning_rate) {
            // Second order: the step size times a curvature of order 100.
            assert!((rate - fall).abs() < 1e-3 * (1.0 + rate.abs()), "{regime:?} {place:?}: {rate} {fall}");
        }
        assert!(probe(&trainer, 9).descent(&probe(&trainer, 0), &[1.0]).is_err());
    }
}

/// A task that is not in the loss is never learned, and the others are.
#[test]
fn a_task_that_is_not_in_the_loss_is_not_learned() {
    let mut cell = Experiment::named("E15", Grid::Small).unwrap().cell("simultaneous-absent").unwrap().clone();
    let Work::Training(training) = &mut cell.work else { panic!() };
    training.train.steps = 300;
    (training.records, training.held_out) = (16, 64);
    assert!(training.measures.contains(&Measurement::Order));
    let absent = training.train.task_weights.iter().position(|weight| *weight == 0.0).unwrap();
    let names: Vec<String> = training.language.tasks().into_iter().map(|task| task.name).collect();
    let table = cell.compute(900_500, 2).unwrap();
    let mut learned: BTreeMap<(u64, String), f64> = BTreeMap::new();
    for row in table.rows().unwrap().into_iter().filter(|row| row.metric == "learned_at") {
        learned.insert((row.keys.seed.unwrap(), row.keys.task.unwrap()), row.value);
    }
    for seed in [900_500, 900_501] {
        assert!(learned[&(seed, names[absent].clone())].is_nan());
        assert!(names.iter().any(|name| learned[&(seed, name.clone())].is_finite()));
    }
    assert_eq!(values(&table, "order_correlation").len(), 2);
    assert_eq!(values(&table, "initial_rate").len(), 2 * names.len());
}

/// Each model of a demand cell is what its own training cell computes; rows about models are details for the rule.
#[test]
fn models_of_a_grid_are_as_those_trained_alone() {
    let mut cell = Experiment::named("E13", Grid::Small).unwrap().cells[1].clone();
    let Work::Demand(demand) = &mut cell.work else { panic!() };
    (demand.tasks, demand.heads, demand.widths) = (vec![1, 3], vec![1, 2], vec![2, 5, 9]);
    demand.base.train.steps = 8;
    demand.base.held_out = 16;
    let mut alone = demand.base.clone();
    let Language::Tasks(tasks) = &mut alone.language else { panic!() };
    tasks.tasks.truncate(3);
    (alone.model.n_heads, alone.model.n_kv_heads, alone.model.d_head) = (2, 2, 5);
    (alone.model.vocab, alone.model.n_positions) = (alone.language.vocab(), alone.language.positions());
    let table = cell.compute(900_510, 3).unwrap();
    let rows = table.rows().unwrap();
    let own = |rows: Vec<Observation>, set: Option<&str>| -> BTreeMap<(String, u64), f64> {
        let last = rows.iter().filter_map(|row| row.keys.step).max();
        let whole = rows.into_iter().filter(|row| {
            row.keys.step == last
                && row.keys.head.is_none()
                && row.keys.task.is_none()
                && row.keys.set.as_deref() == set
        });
        whole.map(|row| ((row.metric, row.keys.seed.unwrap()), row.value)).collect()
    };
    let found = own(rows.clone(), Some("tasks3-heads2-width5"));
    let expected = own(
        Cell { name: "alone".into(), work: Work::Training(Box::new(alone)) }
            .compute(900_510, 3)
            .unwrap()
            .rows()
            .unwrap(),
        None,
    );
    let bits = |all: BTreeMap<(String, u64), f64>| {
        all.into_iter().map(|(key, value)| (key, value.to_bits())).collect::<BTreeMap<_, u64>>()
    };
    assert_eq!(bits(found), bits(expected));
    assert!(rows.iter().any(|row| row.metric == "excess_loss_r2_demand" && row.keys.set.is_none()));
    let evidence = Evidence::new(&table).unwrap();
    assert!(evidence.runs("cell", "excess_loss", None).is_err(), "a row about one model of many is a detail");
    assert_eq!(evidence.runs(&cell.name, "excess_loss_demand_over_width", None).unwrap().len(), 3);
}

#[test]
fn a_grid_without_models_is_refused() {
    let refused = |change: &dyn Fn(&mut headscope::lab::experiment::Demand)| {
        let mut cell = Experiment::named("E13", Grid::Small).unwrap().cells[0].clone();
        let Work::Demand(demand) = &mut cell.work else { panic!() };
        demand.base.train.steps = 2;
        change(demand);
        cell.compute(900_000, 1).unwrap_err().to_string()
    };
    assert!(refused(&|demand| demand.heads.clear()).contains("demand"));
    assert!(refused(&|demand| demand.tasks = vec![0]).contains("demand"));
    assert!(refused(&|demand| demand.tasks = vec![99]).contains("demand"));
    assert!(refused(&|demand| demand.base.language = Language::Repeats(Default::default())).contains("tasks"));
}

fn set(kind: PatternKind) -> PatternSet {
    PatternSet { kind, size: 2, steps: 200 }
}

/// The positive and the negative control of E14: as wide as there are keys, and half as wide; and one target for each query,
/// for which two dimensions are enough.
#[test]
fn patterns_are_reached_or_not_as_the_theorems_say() {
    let errors = |keys, width, kind| {
        let table = cell(Work::Construction(Construction { keys, width, set: set(kind) })).compute(900_520, 2).unwrap();
        for metric in ["error", "trained_error", "best_error"] {
            assert_eq!(values(&table, metric).len(), 2);
        }
        values(&table, "best_error")
    };
    let dense = PatternKind::Dirichlet(1.0);
    assert!(errors(12, 12, dense).iter().all(|error| *error < 1e-6));
    assert!(errors(12, 11, dense).iter().all(|error| *error < 1e-6), "the softmax ignores a constant");
    assert!(errors(12, 6, dense).iter().all(|error| *error > 0.02));
    assert!(errors(12, 2, PatternKind::OneTarget).iter().all(|error| *error < 0.01));
}

/// With two dimensions more than a few keys are out of reach of dense patterns, while all are in reach of single targets.
#[test]
fn the_largest_number_of_keys_is_found() {
    let largest = |kind| {
        let work = Work::Attainable(Attainable { width: 2, set: set(kind), tolerance: 0.01, most: 16 });
        values(&cell(work).compute(900_530, 2).unwrap(), "keys")
    };
    assert!(largest(PatternKind::Dirichlet(1.0)).iter().all(|keys| (3.0..6.0).contains(keys)));
    assert!(largest(PatternKind::OneTarget).iter().all(|keys| *keys == 16.0));
}

#[test]
fn what_cannot_be_constructed_is_refused() {
    let refused = |keys, width, kind, size| {
        let set = PatternSet { size, ..set(kind) };
        cell(Work::Construction(Construction { keys, width, set })).compute(1, 1).unwrap_err().to_string()
    };
    let dense = PatternKind::Dirichlet(1.0);
    assert!(refused(2, 1, dense, 1).contains("keys"));
    assert!(refused(5000, 1, dense, 1).contains("keys"));
    assert!(refused(8, 0, dense, 1).contains("width"));
    assert!(refused(8, 2, dense, 0).contains("size"));
    assert!(refused(8, 2, PatternKind::Dirichlet(0.0), 1).contains("dirichlet"));
    assert!(refused(8, 2, PatternKind::Dirichlet(f64::NAN), 1).contains("dirichlet"));
    let narrow = Attainable { width: 7, set: set(dense), tolerance: 0.01, most: 8 };
    assert!(cell(Work::Attainable(narrow)).compute(1, 1).is_err());
}
