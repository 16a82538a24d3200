//! What do the lab's experiments have in common? Sizes, tasks and shorthands.

use super::{Cell, Experiment, Grid, Measurement, Spacing, Start, Training, Work};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::train::{Decay, TrainOptions};
use crate::lab::verdict::first::{self, Case, Expect, Prediction};
use crate::lab::verdict::{Contrast, Endpoint, Form, Gate, LEARNED, Limit, Reading, Rule, Setting, Side, SubClaim};
use crate::model::{ModelConfig, NormKind, QkvBias};

/// Width of the residual stream, and d_head of a full-width head.
pub(super) const D_MODEL: usize = 44;
/// The smallest effect of interest on an index between 0 and 1, in the first round.
pub(super) const SMALLEST: f64 = 0.1;
/// The smallest effect of interest on the division of work: a tenth of the most that four heads and four tasks allow.
pub(super) const DIVISION: (f64, &str) = (0.05, "a tenth of what four heads of one task each reach");
/// The smallest effect of interest on the excess loss.
pub(super) const LOSS: (f64, &str) = (0.1, "a tenth of the learnable loss");
/// The smallest effect of interest on the divergence of patterns.
pub(super) const DIVERGENCE: (f64, &str) = (0.1, "a tenth of the largest Jensen-Shannon divergence");
/// Where cells are compared at matched loss: once half of the excess loss is gone.
pub(super) const HALF: Reading = Reading::AtExcessLoss(0.5);

/// The regimes; the claims do not distinguish between them.
pub(super) const REGIMES: [(&str, Regime); 3] =
    [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous), ("bag", Regime::Bag)];

impl Grid {
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

/// Training steps of one layer, the second half with a decaying rate: enough to converge in every regime and at every
/// width (pilots on seeds from 900000).
pub(super) const STEPS: usize = 3000;

/// Trains one layer on four tasks to convergence and measures how its heads divide them.
pub(super) fn divided(regime: Regime, heads: usize, width: usize) -> Training {
    let language = four_tasks(regime);
    Training {
        model: one_layer(heads, width, &language),
        language,
        train: TrainOptions { steps: STEPS, decay: Decay::Late(0.5), ..TrainOptions::default() },
        start: Start::Fresh,
        measures: vec![Measurement::Division, Measurement::Patterns],
        records: 12,
        spacing: Spacing::Geometric,
        layer: None,
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

/// A sub-claim in the lab's own languages; one case makes it directional.
pub(super) fn sub_claim(id: &str, text: &str, endpoint: Endpoint, cases: Vec<Contrast>) -> SubClaim {
    let form = if cases.len() == 1 { Form::Directional } else { Form::Universal };
    let (id, text) = (id.to_owned(), text.to_owned());
    SubClaim { id, text, setting: Setting::MadeUp, form, endpoint, cases, gates: vec![] }
}

/// An endpoint that the claim places above a threshold, read at the end of training.
pub(super) fn above(metric: &str, (delta, scale): (f64, &str)) -> Endpoint {
    Endpoint {
        metric: metric.to_owned(),
        task: None,
        reading: Reading::End,
        expect: Side::Above,
        delta,
        scale: scale.to_owned(),
        least: None,
        most: None,
        given_learning: true,
    }
}

/// An endpoint that the claim places below a threshold.
pub(super) fn below(metric: &str, threshold: (f64, &str)) -> Endpoint {
    Endpoint { expect: Side::Below, ..above(metric, threshold) }
}

/// A case for each regime.
pub(super) fn in_regimes(case: impl Fn(&str) -> Contrast) -> Vec<Contrast> {
    REGIMES.iter().map(|(regime, _)| case(regime)).collect()
}

/// A gate: training was over, so that "cannot" is not "has not yet".
pub(super) fn converged<'a>(cells: impl IntoIterator<Item = &'a str>) -> Gate {
    Gate {
        text: "training was over: the last tenth of the steps moves the excess loss by less than .01".to_owned(),
        metric: "late_change".to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Below(0.01),
        cases: cells.into_iter().map(|cell| Contrast::of(cell, cell)).collect(),
    }
}

/// A gate: most runs learned the tasks.
pub(super) fn learned<'a>(cells: impl IntoIterator<Item = &'a str>) -> Gate {
    Gate {
        text: "more than half of the runs learned".to_owned(),
        metric: LEARNED.to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Above(0.5),
        cases: cells.into_iter().map(|cell| Contrast::of(cell, cell)).collect(),
    }
}

/// The cells that cases read, each once.
pub(super) fn cells_of(cases: &[Contrast]) -> Vec<String> {
    let mut all: Vec<String> = cases.iter().flat_map(Contrast::cells).map(str::to_owned).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Drops predictions of the first round about cells that the grid does not have.
pub(super) fn retained(predictions: Vec<Prediction>, cells: &[Cell]) -> Vec<Prediction> {
    let there = |name: &String| cells.iter().any(|cell| cell.name == *name);
    let kept = |mut prediction: Prediction| {
        prediction.cases.retain(|case| there(&case.cell) && case.against.iter().all(there));
        prediction.cases.iter_mut().for_each(|case| {
            case.trend.retain(there);
            if case.trend.len() < 2 {
                case.trend.clear();
            }
        });
        (!prediction.cases.is_empty()).then_some(prediction)
    };
    predictions.into_iter().filter_map(kept).collect()
}
