//! E6: do heads with recognisable roles emerge in training?

use super::grid::{alone, numbered, prediction, trained};
use super::{Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::Declaration;
use crate::lab::language::{English, Language, Repeats};
use crate::lab::train::TrainOptions;
use crate::lab::verdict::first::{Expect, Prediction};

/// The roles named by the claim, as dependency kinds of the small English.
const ROLES: [&str; 5] = ["agreement", "entity", "position", "coreference", "verb_object"];

/// E6: do heads with these roles emerge, and does performance depend on them?
pub(super) fn emergence(grid: Grid) -> Experiment {
    let repeats = Repeats { symbols: 24, length: 28, period: (4, 10), offset: (0, 5) };
    let fixed = Repeats { period: (7, 7), offset: (3, 3), ..repeats.clone() };
    let english = English { length: 32 };
    let cells = vec![
        trained("repeats", training(grid, Language::Repeats(repeats))),
        trained("repeats-fixed", training(grid, Language::Repeats(fixed))),
        trained("english", training(grid, Language::English(english))),
    ];
    let of = |text: String, metric: &str, task: &str, cell: &str| Prediction {
        task: Some(task.to_owned()),
        cases: vec![alone(&task.replace('_', " "), cell)],
        learned: false,
        ..prediction("C5", &text, metric, Expect::Greater)
    };
    let mut predictions = vec![];
    for (task, cell) in [("induction", "repeats")].into_iter().chain(ROLES.map(|role| (role, "english"))) {
        let role = task.replace('_', " ");
        predictions.push(of(
            format!("A head emerges that attends to what {role} depends on, more than any fixed offset would"),
            "role_score",
            task,
            cell,
        ));
        predictions.push(of(
            format!("Without that head {role} suffers more than without another head of its layer (nats)"),
            "role_cost",
            task,
            cell,
        ));
    }
    Experiment {
        first_predictions: predictions,
        cells,
        ..numbered(
            6,
            "Emergence",
            "Do heads with the roles of the claim emerge in training, and does the work depend on them?",
        )
    }
}

/// Trains two attention-only layers and measures roles.
fn training(grid: Grid, language: Language) -> Training {
    let train = TrainOptions { steps: grid.pick(1000, 6000), batch: 32, ..TrainOptions::default() };
    let declaration = Declaration::attention_only(language, train);
    Training {
        model: declaration.model,
        language: declaration.language,
        train: declaration.train,
        start: Start::Fresh,
        measures: vec![Measurement::Roles],
        records: 11,
        spacing: Spacing::Even,
        layer: None,
        held_out: 96,
        after: None,
    }
}
