//! E5: how much rank does attention need?

use super::grid::{D_MODEL, REGIMES, STEPS, against, alone, divided, numbered, one_layer, prediction, trained};
use super::work::Circle;
use super::{Cell, Experiment, Grid, Measurement, Work};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::verdict::first::{Expect, Prediction};

const KEYS: [usize; 3] = [8, 32, 128];
/// (heads, d_head) with equal parameter counts, from one full-rank head to many low-rank heads.
const SHAPES: [(usize, usize); 4] = [(1, D_MODEL), (2, 22), (4, 11), (11, 4)];

/// E5: do dependencies need more rank than one head has, and can many low-rank heads compensate?
pub(super) fn rank(_grid: Grid) -> Experiment {
    let mut cells: Vec<Cell> = vec![];
    for n in KEYS {
        // Chosen so that the lower bound on a target's attention weight is 0.9.
        let step = 1.0 - (2.0 * std::f64::consts::PI / n as f64).cos();
        let beta = (9.0 * (n as f64 - 1.0)).ln() / step;
        cells.push(Cell { name: format!("circle{n}"), work: Work::Circle(Circle { n, beta }) });
    }
    for (regime, of) in REGIMES {
        let mut training = divided(of, 4, D_MODEL);
        (training.measures, training.records) = (vec![Measurement::Truncated], 2);
        cells.push(trained(format!("{regime}-truncated"), training));
    }
    for (heads, width) in SHAPES {
        let language = matching();
        let mut training = divided(Regime::Gated, heads, width);
        (training.model, training.language) = (one_layer(heads, width, &language), language);
        (training.measures, training.train.steps) = (vec![], 2 * STEPS);
        cells.push(trained(format!("matching-heads{heads}-width{width}"), training));
    }
    let predictions = vec![
        Prediction {
            learned: false,
            level: 0.5,
            cases: KEYS.map(|n| alone(&format!("{n} keys"), format!("circle{n}"))).to_vec(),
            ..prediction(
                "C4",
                "Logits of rank 2 cannot give each of many queries a target of its own",
                "target_weight",
                Expect::Less,
            )
        },
        Prediction {
            cases: REGIMES.map(|(name, _)| alone(name, format!("{name}-truncated"))).to_vec(),
            ..prediction(
                "C4",
                "Dependencies need a higher rank than a narrow head has: cutting QK of full-width heads to rank 4 costs",
                "truncation_cost_4",
                Expect::Greater,
            )
        },
        Prediction {
            learned: false,
            cases: vec![against("matching", "matching-heads11-width4", format!("matching-heads1-width{D_MODEL}"))],
            ..prediction(
                "C4",
                "Many heads of low rank together do what one of full rank does, with as many parameters",
                "excess_loss",
                Expect::Zero,
            )
        },
    ];
    Experiment {
        first_predictions: predictions,
        cells,
        ..numbered(
            5,
            "Rank",
            "Do dependencies need more rank than a head has, and do many heads of low rank make up for it?",
        )
    }
}

/// One task, which requires telling 16 symbols apart.
fn matching() -> Language {
    Language::Tasks(Tasks { tasks: vec![Task::Duplicate], regime: Regime::Gated, symbols: 16, length: (6, 10) })
}
