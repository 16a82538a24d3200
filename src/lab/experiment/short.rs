//! What do small grids leave out? Regimes: whoever tries an experiment for the first time should wait minutes.

use super::grid::retained;
use super::{Cell, Experiment};

/// What the names of cases and cells begin with that a small grid keeps, for the experiments that would otherwise take more
/// than about five minutes on two cores.
const KEPT: [(&str, &[&str]); 7] = [
    ("E1", &["gated"]),
    ("E2", &["gated"]),
    ("E3", &["gated"]),
    ("E4", &["gated", "linear"]),
    ("E5", &["gated", "circle", "16 symbols", "matching16"]),
    ("E8", &["gated"]),
    ("E10", &["gated"]),
];

/// A small grid without the cases and cells that it leaves out.
pub(super) fn shortened(mut experiment: Experiment) -> Experiment {
    let Some((_, kept)) = KEPT.iter().find(|(id, _)| *id == experiment.id) else { return experiment };
    let stays = |name: &str| kept.iter().any(|start| name.starts_with(start));
    for claim in &mut experiment.sub_claims {
        claim.cases.retain(|case| stays(&case.name));
        claim.gates.iter_mut().for_each(|gate| gate.cases.retain(|case| stays(&case.name)));
    }
    let cells: Vec<Cell> = experiment.cells.into_iter().filter(|cell| stays(&cell.name)).collect();
    let first_predictions = retained(experiment.first_predictions, &cells);
    Experiment { cells, first_predictions, ..experiment }
}
