//! E9: do the learning coefficients of heads rise when their roles emerge?

use super::grid::{above, learned, numbered, sub_claim, trained};
use super::work::Complexity;
use super::{Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::Declaration;
use crate::lab::language::{Language, Repeats};
use crate::lab::llc::LlcOptions;
use crate::lab::train::TrainOptions;
use crate::lab::verdict::{Contrast, Endpoint, SubClaim};

const CELL: &str = "repeats";

/// E9: how complex do heads become, and when?
pub(super) fn complexity(grid: Grid) -> Experiment {
    let repeats = Repeats { symbols: 24, length: 28, period: (4, 10), offset: (0, 5) };
    let train = TrainOptions { steps: 1000, batch: 32, ..TrainOptions::default() };
    let declaration = Declaration::attention_only(Language::Repeats(repeats), train);
    let usual = LlcOptions::default();
    let sampler = grid.pick(LlcOptions { burn_in: 20, draws: 40, ..usual }, usual);
    let training = Training {
        model: declaration.model,
        language: declaration.language,
        train: declaration.train,
        start: Start::Fresh,
        measures: vec![Measurement::Complexity(Complexity { sampler, batches: 4, rows: 16 })],
        records: grid.pick(3, 9),
        held_out: 64,
        spacing: Spacing::Even,
        layer: None,
        after: None,
    };
    let scale = "a quarter of the layer's mean coefficient";
    let endpoint = Endpoint { given_learning: false, ..above("llc_rise_over_others", (0.25, scale)) };
    let text = "The head that comes to have a role becomes more complex than the others of its layer";
    let claim = sub_claim("C5e", text, endpoint, vec![Contrast::of("induction", CELL)]);
    Experiment {
        sub_claims: vec![SubClaim { gates: vec![learned([CELL])], ..claim }],
        cells: vec![trained(CELL, training)],
        ..numbered(9, "Complexity", "Do the learning coefficients of heads rise when their roles emerge?")
    }
}
