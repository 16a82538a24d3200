//! E3: does a head that has already solved a task keep others from learning it, and what happens when it is unfrozen or
//! deleted?

use super::grid::{D_MODEL, above, against, divided, numbered, prediction, retained, sub_claim, trained};
use super::{Experiment, Grid, Measurement, Start, Work};
use crate::lab::language::Regime;
use crate::lab::train::HeadOptions;
use crate::lab::verdict::first::{Case, Expect, Prediction};
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, SubClaim};

use super::work::{After, Occupant};

const REGIMES: [(&str, Regime); 2] = [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous)];
const WIDTHS: [(&str, usize); 2] = [("narrow", 4), ("full", D_MODEL)];
/// Factors by which the output of head 0 is scaled.
const DOSES: [(&str, f64); 5] = [("0", 0.0), ("0.1", 0.1), ("0.25", 0.25), ("0.5", 0.5), ("1", 1.0)];
/// The task that head 0 has solved: the token of the query's class.
const TASK: usize = 2;
/// How head 0 is treated in the second half of training, after the others have learned alongside it: name, whether it
/// stays frozen, and the factor on its output.
const LATER: [(&str, bool, f64); 3] = [("kept", true, 1.0), ("deleted", true, 0.0), ("unfrozen", false, 1.0)];

fn name(regime: &str, width: &str, what: &str) -> String {
    format!("{regime}-{width}-{what}")
}

/// Options that freeze or scale head 0.
fn head(frozen: bool, dose: f64) -> HeadOptions {
    let frozen = if frozen { vec![(0, 0)] } else { vec![] };
    HeadOptions { frozen, scaled: vec![(0, 0, dose)], ..HeadOptions::default() }
}

/// E3: does a head that has solved a task keep the others from learning it?
pub(super) fn taken(grid: Grid) -> Experiment {
    let mut cells = vec![];
    for (regime, of) in REGIMES {
        for (width, d_head) in WIDTHS {
            let cell = |what: &str, occupant: Occupant, dose: f64| {
                let mut training = divided(of, 4, d_head);
                training.start = Start::Taken { task: TASK, steps: 600, occupant };
                training.train.heads = head(true, dose);
                training.measures = vec![Measurement::Others(TASK)];
                trained(name(regime, width, what), training)
            };
            let doses = DOSES.iter().filter(|(what, _)| grid == Grid::Full || ["0", "1"].contains(what));
            cells.extend(doses.map(|(what, dose)| cell(&format!("dose{what}"), Occupant::Solved, *dose)));
            if grid == Grid::Full {
                cells.push(cell("random", Occupant::Random, 1.0));
            }
            cells.push(cell("shuffled", Occupant::Shuffled, 1.0));
            let later = LATER.iter().filter(|_| grid == Grid::Full);
            cells.extend(later.map(|&(what, frozen, dose)| {
                let mut later = cell(what, Occupant::Solved, 1.0);
                if let Work::Training(training) = &mut later.work {
                    training.after = Some(After { steps: training.train.steps, heads: head(frozen, dose) });
                }
                later
            }));
        }
    }
    let cases = |cell: &str, other: &str| {
        let each = |(regime, _): (&str, Regime)| {
            WIDTHS.map(|(width, _)| {
                against(&format!("{regime}, {width}"), name(regime, width, cell), name(regime, width, other))
            })
        };
        REGIMES.into_iter().flat_map(each).collect::<Vec<_>>()
    };
    let with_doses = |case: Case| {
        let stem = case.cell.trim_end_matches("dose1").to_owned();
        Case { trend: DOSES.iter().rev().map(|(what, _)| format!("{stem}dose{what}")).collect(), ..case }
    };
    let task = || Some("class".to_owned());
    let predictions = vec![
        Prediction {
            task: task(),
            cases: cases("dose1", "dose0").into_iter().map(with_doses).collect(),
            ..prediction(
                "C2",
                "Where a frozen head has solved a task, the others do less of it than where that head is silent",
                "others_share",
                Expect::Less,
            )
        },
        Prediction {
            task: task(),
            cases: cases("shuffled", "dose0"),
            ..prediction(
                "C2",
                "A frozen head with shuffled weights takes nothing from the others (a control)",
                "others_share",
                Expect::Zero,
            )
        },
        Prediction {
            task: task(),
            cases: cases("deleted", "kept"),
            ..prediction(
                "C2",
                "Where the head that had solved the task is deleted, the others take it up",
                "others_share",
                Expect::Greater,
            )
        },
        Prediction {
            task: task(),
            cases: cases("unfrozen", "kept"),
            ..prediction(
                "C2",
                "Where that head is let go, it keeps the task: the others do no more of it",
                "others_share",
                Expect::Zero,
            )
        },
    ];
    Experiment {
        sub_claims: vec![left_to_it()],
        first_predictions: retained(predictions, &cells),
        cells,
        ..numbered(3, "Task taken", "Does a head that has solved a task keep the others from learning it?")
    }
}

/// Where the others' gradient is compared: over the steps until half of the excess loss is gone, the task that is taken
/// among it.
const EARLY: Reading = Reading::MeanUntilExcessLoss(0.5);

/// What E3 decides.
fn left_to_it() -> SubClaim {
    let falls = |to: &str| {
        let each = |(regime, _): (&str, Regime)| {
            WIDTHS.map(|(width, _)| {
                Contrast::fall(format!("{regime}, {width}"), name(regime, width, "dose0"), name(regime, width, to))
            })
        };
        REGIMES.into_iter().flat_map(each).collect::<Vec<_>>()
    };
    let task = Some("class".to_owned());
    let control = |occupant: &str, text: &str| Gate {
        text: text.to_owned(),
        metric: "others_gradient_share".to_owned(),
        task: task.clone(),
        reading: EARLY,
        limit: Limit::Within(0.25),
        cases: falls(occupant),
    };
    let endpoint = Endpoint {
        task: task.clone(),
        reading: EARLY,
        given_learning: false,
        ..above("others_gradient_share", (0.5, "half of the others' share where the head is silent"))
    };
    let text =
        "What one head has learned the others leave: their gradient on a task that a frozen head has solved falls";
    let gates = vec![control("shuffled", "the solved head with shuffled weights takes nothing")];
    SubClaim { gates, ..sub_claim("C2a", text, endpoint, falls("dose1")) }
}
