//! E13: is it the demand per head, not the width of heads, that divides the work?

use super::grid::{above, numbered, one_layer, sub_claim};
use super::work::Demand;
use super::{Cell, Experiment, Grid, Measurement, Spacing, Start, Training, Work};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::train::{Decay, TrainOptions};
use crate::lab::verdict::{Contrast, Endpoint, SubClaim};

const REGIMES: [(&str, Regime); 2] = [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous)];
/// The tasks in the order in which they are added; all are answered from one source token.
const TASKS: [Task; 16] = [
    Task::Back(1),
    Task::First,
    Task::Class,
    Task::Duplicate,
    Task::Back(2),
    Task::Back(3),
    Task::Back(4),
    Task::Back(5),
    Task::Back(6),
    Task::Back(7),
    Task::Back(8),
    Task::Back(9),
    Task::Back(10),
    Task::Back(11),
    Task::Back(12),
    Task::Back(13),
];

/// E13: what explains how heads divide the work?
pub(super) fn demand(grid: Grid) -> Experiment {
    let cell = |(name, regime): (&str, Regime)| {
        let language = Language::Tasks(Tasks { tasks: TASKS.to_vec(), regime, symbols: 8, length: (13, 15) });
        let base = Training {
            model: one_layer(1, 4, &language),
            language,
            train: TrainOptions {
                steps: grid.pick(600, 1000),
                batch: 32,
                decay: Decay::Late(0.5),
                ..TrainOptions::default()
            },
            start: Start::Fresh,
            measures: vec![Measurement::Division],
            records: 2,
            held_out: 256,
            spacing: Spacing::Even,
            layer: None,
            after: None,
        };
        let demand = Demand {
            base,
            tasks: grid.pick(vec![2, 8], vec![2, 4, 8, 16]),
            heads: grid.pick(vec![1, 2, 4], vec![1, 2, 4, 8]),
            widths: grid.pick(vec![4, 44], vec![2, 4, 16, 44]),
            explained: vec!["excess_loss".to_owned(), "division".to_owned()],
        };
        Cell { name: name.to_owned(), work: Work::Demand(Box::new(demand)) }
    };
    Experiment {
        sub_claims: vec![
            predicted(
                "C1c",
                "The number of tasks per head predicts how much heads divide the work, better than their width does",
                "division_demand_over_width",
                "a tenth of the variance of division between models of different sizes",
            ),
            predicted(
                "C1e",
                "The number of tasks per head predicts how much is left unlearned, better than the heads' width does",
                "excess_loss_demand_over_width",
                "a tenth of the variance of the excess loss between models of different sizes",
            ),
        ],
        cells: REGIMES.map(cell).to_vec(),
        ..numbered(13, "Demand per head", "Is it the demand per head, not the width of heads, that divides the work?")
    }
}

/// A claim about the difference of two shares of variance that are predicted for models left out.
fn predicted(id: &str, text: &str, metric: &str, scale: &str) -> SubClaim {
    let endpoint = Endpoint { given_learning: false, ..above(metric, (0.1, scale)) };
    sub_claim(id, text, endpoint, REGIMES.map(|(name, _)| Contrast::of(name, name)).to_vec())
}
