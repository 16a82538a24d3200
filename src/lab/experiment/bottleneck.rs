//! E4: is the projection from d_model to d_head a bottleneck that makes heads divide the work?

use super::grid::{D_MODEL, REGIMES, against, alone, divided, numbered, prediction, trained};
use super::work::Regression;
use super::{Cell, Experiment, Grid, Measurement, Work};
use crate::lab::train::HeadOptions;
use crate::lab::verdict::first::{Case, Expect, Prediction};

/// Noise levels on z, whose norm is sqrt(d_head): the capacity of a head is d_head / 2 ln(1 + 1 / sigma^2).
const NOISES: [(&str, f64); 4] = [("0.1", 0.1), ("0.5", 0.5), ("1", 1.0), ("2", 2.0)];
/// Widths of the linear head, out of 32.
const RANKS: [usize; 3] = [2, 4, 8];

/// E4: what information passes through a head, and does a smaller capacity lead to more division of the work?
pub(super) fn bottleneck(grid: Grid) -> Experiment {
    let mut cells: Vec<Cell> = vec![];
    for width in RANKS {
        let regression = Regression { d_model: 32, width, decay: 0.8, steps: 20_000, learning_rate: 0.1 };
        cells.push(Cell { name: format!("linear-width{width}"), work: Work::Regression(regression) });
    }
    for (regime, of) in REGIMES {
        for (name, sigma) in NOISES {
            let mut training = divided(grid, of, 4, 11);
            training.train.heads = HeadOptions { noise: Some(sigma), ..HeadOptions::default() };
            cells.push(trained(format!("{regime}-noise{name}"), training));
        }
        for width in [4, D_MODEL] {
            let mut training = divided(grid, of, 4, width);
            (training.measures, training.records, training.held_out) = (vec![Measurement::Information], 2, 256);
            cells.push(trained(format!("{regime}-information{width}"), training));
        }
    }
    let cases = |of: &dyn Fn(&str) -> Case| REGIMES.iter().map(|(name, _)| of(name)).collect::<Vec<_>>();
    let predictions = vec![
        Prediction {
            learned: false,
            smallest: 0.01,
            cases: RANKS.map(|width| alone(&format!("width {width}"), format!("linear-width{width}"))).to_vec(),
            ..prediction(
                "C3",
                "A linear head of width k keeps the k directions that matter most to the loss, and no others",
                "gap",
                Expect::Zero,
            )
        },
        Prediction {
            cases: cases(&|name| Case {
                trend: NOISES.map(|(noise, _)| format!("{name}-noise{noise}")).to_vec(),
                ..against(name, format!("{name}-noise1"), format!("{name}-noise0.1"))
            }),
            ..prediction(
                "C3",
                "Heads with less capacity (more noise on z) divide the tasks more",
                "specialisation",
                Expect::Greater,
            )
        },
        Prediction {
            cases: cases(&|name| against(name, format!("{name}-information4"), format!("{name}-information{D_MODEL}"))),
            ..prediction(
                "C3",
                "What narrow heads carry of the answers is a different part in each, more than in heads of full width",
                "information_specialisation",
                Expect::Greater,
            )
        },
    ];
    Experiment {
        first_predictions: predictions,
        cells,
        ..numbered(
            4,
            "Bottleneck",
            "Does a head keep what matters most to the loss, and each a different part, because little passes it?",
        )
    }
}
