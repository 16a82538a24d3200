//! E15: is what lowers the loss most learned first?

use super::grid::{numbered, one_layer, trained};
use super::{Cell, Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::train::{Decay, TrainOptions};

const REGIMES: [(&str, Regime); 2] = [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous)];
/// Six tasks of different difficulty.
const TASKS: [Task; 6] = [Task::Back(1), Task::First, Task::Class, Task::Duplicate, Task::Back(2), Task::Back(4)];
/// Weights in the loss, far enough apart to matter.
const WEIGHTS: [f64; 6] = [2.0, 1.4, 1.0, 0.7, 0.5, 0.35];

/// The task that is not in the loss of the control.
const ABSENT: Task = Task::Class;

/// E15: does the loss's first descent tell the order of learning?
pub(super) fn order(grid: Grid) -> Experiment {
    let reversed: Vec<f64> = WEIGHTS.iter().rev().copied().collect();
    let absent = TASKS.map(|task| f64::from(u8::from(task != ABSENT))).to_vec();
    let settings = [("forward", WEIGHTS.to_vec()), ("reversed", reversed), ("equal", vec![]), ("absent", absent)];
    let mut cells: Vec<Cell> = vec![];
    for (regime, of) in REGIMES {
        for (name, weights) in &settings {
            cells.push(cell(grid, &format!("{regime}-{name}"), of, weights.clone()));
        }
    }
    Experiment {
        cells,
        ..numbered(
            15,
            "The first thing learned",
            "Is the task whose loss falls fastest at first the one that is learned first?",
        )
    }
}

fn cell(grid: Grid, name: &str, regime: Regime, task_weights: Vec<f64>) -> Cell {
    let language = Language::Tasks(Tasks { tasks: TASKS.to_vec(), regime, symbols: 8, length: (6, 10) });
    let train =
        TrainOptions { steps: grid.pick(1000, 3000), task_weights, decay: Decay::None, ..TrainOptions::default() };
    let training = Training {
        model: one_layer(4, 11, &language),
        language,
        train,
        start: Start::Fresh,
        measures: vec![Measurement::Order],
        records: 51,
        held_out: 512,
        spacing: Spacing::Even,
        after: None,
    };
    trained(name, training)
}
