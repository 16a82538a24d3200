//! E6: do heads with recognisable roles emerge in training?

use super::grid::{above, converged, learned, numbered, sub_claim, trained};
use super::work::ROLE;
use super::{Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::Declaration;
use crate::lab::language::{English, Language, Repeats};
use crate::lab::train::{Decay, TrainOptions};
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, SubClaim};

/// The cell that decides, and the same models before any training.
const TRAINED: &str = "english";
const UNTRAINED: &str = "english-untrained";

/// E6: do heads with these roles emerge, does the work depend on them, and is a role the work of one head?
pub(super) fn emergence(grid: Grid) -> Experiment {
    let repeats = Repeats { symbols: 24, length: 28, period: (4, 10), offset: (0, 5) };
    let fixed = Repeats { period: (7, 7), offset: (3, 3), ..repeats.clone() };
    let english = Language::English(English { length: 40 });
    let steps = grid.pick(600, 1600);
    let mut cells = vec![trained(TRAINED, training(steps, english.clone())), trained(UNTRAINED, training(0, english))];
    if grid == Grid::Full {
        // A role known from the literature, and the same sequences where counting is enough.
        cells.push(trained("repeats", training(steps, Language::Repeats(repeats))));
        cells.push(trained("repeats-fixed", training(steps, Language::Repeats(fixed))));
    }
    Experiment {
        sub_claims: about_roles(),
        cells,
        ..numbered(
            6,
            "Emergence",
            "Do heads with the roles of the claim emerge in training, does the work depend on them, and is a role the work of one head?",
        )
    }
}

/// A case for each role.
fn each_role(cell: &str) -> Vec<Contrast> {
    English::KINDS.iter().map(|role| Contrast::of(*role, cell).task(*role)).collect()
}

/// What E6 decides.
fn about_roles() -> Vec<SubClaim> {
    let roles = || each_role(TRAINED);
    let trained = || vec![converged([TRAINED]), learned([TRAINED])];
    let gated = |claim: SubClaim, gates: Vec<Gate>| SubClaim { gates: [trained(), gates].concat(), ..claim };
    let untrained = |text: &str, metric: &str, limit: f64, cases: Vec<Contrast>| Gate {
        text: text.to_owned(),
        metric: metric.to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Below(limit),
        cases,
    };
    let exclusive = Endpoint { least: Some(0.0), ..above("role_exclusive", (0.5, "half of what all heads do there")) };
    vec![
        gated(
            sub_claim(
                "C5a",
                "Heads with roles emerge: they attend to what a word depends on, beyond position and chance",
                above("role_beyond", (ROLE, "a tenth of a head's attention")),
                roles(),
            ),
            vec![untrained("without training no head has a role", "role_beyond", ROLE, each_role(UNTRAINED))],
        ),
        gated(
            sub_claim(
                "C5b",
                "The work depends on the heads of a role as a group, more than on as many others",
                above("role_needed", (0.1, "a tenth of the task's learnable loss")),
                roles(),
            ),
            vec![],
        ),
        gated(
            sub_claim("C5c", "One role, one head: its best head does most of the work there", exclusive, roles()),
            vec![],
        ),
        gated(
            sub_claim(
                "C5d",
                "A head attends to a place at a fixed distance, whatever stands there",
                above("position_share", (0.5, "half of a head's attention")),
                vec![Contrast::of("position", TRAINED)],
            ),
            vec![untrained(
                "without training no head attends to such a place",
                "position_share",
                0.5,
                vec![Contrast::of("position", UNTRAINED)],
            )],
        ),
    ]
}

/// Trains two attention-only layers to convergence and measures roles.
fn training(steps: usize, language: Language) -> Training {
    let train = TrainOptions { steps, batch: 32, decay: Decay::Late(0.5), ..TrainOptions::default() };
    let Declaration { model, language, train } = Declaration::attention_only(language, train);
    Training {
        model,
        language,
        train,
        start: Start::Fresh,
        measures: vec![Measurement::Roles],
        records: 9,
        spacing: Spacing::Geometric,
        layer: None,
        held_out: 96,
        after: None,
    }
}
