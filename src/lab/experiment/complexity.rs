//! E9: do the learning coefficients of heads rise when their roles emerge?

use super::grid::{numbered, trained};
use super::work::Complexity;
use super::{Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::Declaration;
use crate::lab::language::{Language, Repeats};
use crate::lab::llc::LlcOptions;
use crate::lab::train::TrainOptions;

/// E9: how complex do heads become, and when?
pub(super) fn complexity(grid: Grid) -> Experiment {
    let repeats = Repeats { symbols: 24, length: 28, period: (4, 10), offset: (0, 5) };
    let train = TrainOptions { steps: grid.pick(1000, 1000), batch: 32, ..TrainOptions::default() };
    let declaration = Declaration::attention_only(Language::Repeats(repeats), train);
    let sampler = LlcOptions::default();
    let training = Training {
        model: declaration.model,
        language: declaration.language,
        train: declaration.train,
        start: Start::Fresh,
        measures: vec![Measurement::Complexity(Complexity { sampler, batches: 4, rows: 16 })],
        records: 9,
        held_out: 64,
        spacing: Spacing::Even,
        after: None,
    };
    Experiment {
        cells: vec![trained("repeats", training)],
        ..numbered(9, "Complexity", "Do the learning coefficients of heads rise when their roles emerge?")
    }
}
