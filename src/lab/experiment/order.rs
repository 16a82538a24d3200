//! E15: is what lowers the loss most learned first?

use super::grid::{above, learned, numbered, one_layer, sub_claim, trained};
use super::{Cell, Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::train::{Decay, TrainOptions};
use crate::lab::verdict::{Contrast, Endpoint, SubClaim};

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
        sub_claims: vec![first_things_first()],
        cells,
        ..numbered(
            15,
            "The first thing learned",
            "Is the task whose loss falls fastest at first the one that is learned first?",
        )
    }
}

/// C2d: with the tasks weighted in one order, and in the opposite one, so that difficulty alone cannot set the order.
fn first_things_first() -> SubClaim {
    let of = |(regime, _): (&str, Regime)| {
        ["forward", "reversed"].map(|order| Contrast::of(format!("{regime}, {order}"), format!("{regime}-{order}")))
    };
    let cases: Vec<Contrast> = REGIMES.into_iter().flat_map(of).collect();
    let names: Vec<String> = cases.iter().flat_map(Contrast::cells).map(str::to_owned).collect();
    let scale = "half of a perfect rank correlation over six tasks";
    let endpoint = Endpoint { given_learning: false, ..above("order_correlation", (0.5, scale)) };
    let text = "The task whose loss falls fastest at first is learned first, and so on";
    SubClaim { gates: vec![learned(names.iter().map(String::as_str))], ..sub_claim("C2d", text, endpoint, cases) }
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
        layer: None,
        after: None,
    };
    trained(name, training)
}
