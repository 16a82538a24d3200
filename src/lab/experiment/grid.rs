//! What do the lab's experiments have in common? Sizes, tasks and shorthands.

use super::{Cell, Experiment, Grid, Measurement, Start, Training, Work};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::train::TrainOptions;
use crate::lab::verdict::first::{self, Case, Expect, Prediction};
use crate::lab::verdict::{Reading, Rule};
use crate::model::{ModelConfig, NormKind, QkvBias};

/// Width of the residual stream, and d_head of a full-width head.
pub(super) const D_MODEL: usize = 44;
/// The smallest effect of interest on an index between 0 and 1.
pub(super) const SMALLEST: f64 = 0.1;
/// Where cells are compared at matched loss: once half of the excess loss is gone.
pub(super) const HALF: Reading = Reading::AtExcessLoss(0.5);

/// The regimes; the claims do not distinguish between them.
pub(super) const REGIMES: [(&str, Regime); 3] =
    [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous), ("bag", Regime::Bag)];

impl Grid {
    /// Training steps.
    pub(super) fn steps(self) -> usize {
        self.pick(600, 4000)
    }

    /// Chooses a value by the size of the grid.
    pub(super) fn pick<T>(self, small: T, full: T) -> T {
        match self {
            Self::Small => small,
            Self::Full => full,
        }
    }
}

/// An experiment by its number, still without cells and claims. Its seeds start at 17000 + 100 * number: those of the
/// first round, and of pilots (900000 and up), are never used again.
pub(super) fn numbered(number: u64, title: &str, question: &str) -> Experiment {
    let rule = Rule::default();
    Experiment {
        id: format!("E{number}"),
        title: title.to_owned(),
        question: question.to_owned(),
        grid: None,
        seed: 17_000 + 100 * number,
        runs: rule.looks.first().map_or(0, |look| look.seeds),
        sub_claims: vec![],
        rule,
        first_predictions: vec![],
        first_rule: first::Rule::default(),
        cells: vec![],
    }
}

/// Four tasks, each answered from one source token: the previous one, the first, the one of a class, and the one with
/// the query's symbol.
pub(super) fn four_tasks(regime: Regime) -> Language {
    Language::Tasks(Tasks {
        tasks: vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate],
        regime,
        symbols: 8,
        length: (6, 10),
    })
}

/// One attention-only layer.
pub(super) fn one_layer(heads: usize, width: usize, language: &Language) -> ModelConfig {
    ModelConfig {
        family: "attention-only".to_owned(),
        d_model: D_MODEL,
        n_heads: heads,
        n_kv_heads: heads,
        d_head: width,
        d_mlp: 0,
        vocab: language.vocab(),
        n_positions: language.positions(),
        norm: NormKind::Rms,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        ..ModelConfig::default()
    }
}

/// Trains one layer on four tasks and measures how its heads divide them.
pub(super) fn divided(grid: Grid, regime: Regime, heads: usize, width: usize) -> Training {
    let language = four_tasks(regime);
    Training {
        model: one_layer(heads, width, &language),
        language,
        train: TrainOptions { steps: grid.steps(), ..TrainOptions::default() },
        start: Start::Fresh,
        measures: vec![Measurement::Division, Measurement::Patterns],
        records: 8,
        held_out: 128,
        after: None,
    }
}

/// A cell that trains models.
pub(super) fn trained(name: impl Into<String>, training: Training) -> Cell {
    Cell { name: name.into(), work: Work::Training(Box::new(training)) }
}

/// A prediction about an index between 0 and 1, read at the end of runs that learned.
pub(super) fn prediction(claim: &str, text: &str, metric: &str, expect: Expect) -> Prediction {
    Prediction {
        claim: claim.to_owned(),
        text: text.to_owned(),
        metric: metric.to_owned(),
        task: None,
        reading: Reading::End,
        expect,
        smallest: SMALLEST,
        level: 0.0,
        learned: true,
        cases: vec![],
    }
}

/// A case that compares one cell with another.
pub(super) fn against(name: &str, cell: impl Into<String>, other: impl Into<String>) -> Case {
    Case { name: name.to_owned(), cell: cell.into(), against: Some(other.into()), trend: vec![] }
}

/// A case about a single cell.
pub(super) fn alone(name: &str, cell: impl Into<String>) -> Case {
    Case { name: name.to_owned(), cell: cell.into(), against: None, trend: vec![] }
}
