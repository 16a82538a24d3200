//! E2: do heads that start identical stay identical?

use super::grid::{
    D_MODEL, DIVERGENCE, alone, below, divided, learned, numbered, prediction, retained, sub_claim, trained,
};
use super::{Experiment, Grid};
use crate::lab::language::Regime;
use crate::lab::train::{HeadOptions, Optimiser, TrainOptions};
use crate::lab::verdict::first::{Expect, Prediction};
use crate::lab::verdict::{Contrast, Gate, Limit, Reading, SubClaim};

const REGIMES: [(&str, Regime); 2] = [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous)];
const OPTIMISERS: [(&str, Optimiser, f64); 2] =
    [("adam", Optimiser::Adam, 3e-3), ("sgd", Optimiser::Sgd { momentum: 0.9 }, 0.3)];
const WIDTHS: [(&str, usize); 2] = [("full", D_MODEL), ("narrow", 4)];
/// Standard deviation of the noise that perturbs identical heads, relative to that of their weights.
const PERTURBATIONS: [(&str, f64); 2] = [("same", 0.0), ("perturbed", 1e-4)];

/// E2: do heads that start identical diverge?
pub(super) fn symmetry(grid: Grid) -> Experiment {
    let mut cells = vec![];
    // Full width first: the sub-claim is about it.
    for (width, d_head) in WIDTHS.into_iter().take(grid.pick(1, 2)) {
        for (regime, of) in REGIMES {
            for (rule, optimiser, learning_rate) in OPTIMISERS {
                for (start, perturbation) in PERTURBATIONS {
                    let mut training = divided(of, 4, d_head);
                    let heads = HeadOptions { identical: true, perturbation, ..HeadOptions::default() };
                    training.train = TrainOptions { optimiser, learning_rate, heads, ..training.train };
                    cells.push(trained([regime, rule, width, start].join("-"), training));
                }
            }
        }
    }
    let cases = |width: &str, start: &str| {
        let each = |(regime, _): (&str, Regime)| {
            OPTIMISERS
                .map(|(rule, ..)| alone(&format!("{regime}, {rule}, {width}"), [regime, rule, width, start].join("-")))
        };
        REGIMES.into_iter().flat_map(each).collect::<Vec<_>>()
    };
    let apart = |claim, text, expect| prediction(claim, text, "pattern_divergence", expect);
    let predictions = vec![
        Prediction {
            learned: false,
            cases: [cases("narrow", "same"), cases("full", "same")].concat(),
            ..apart("C2", "Heads that start identical attend alike for ever (a theorem)", Expect::Zero)
        },
        Prediction {
            cases: cases("narrow", "perturbed"),
            ..apart("C2", "A perturbation of one in ten thousand is enough for narrow heads to part", Expect::Greater)
        },
        Prediction {
            cases: cases("full", "perturbed"),
            ..apart("C6", "Heads of full width that start alike, but for that perturbation, stay alike", Expect::Zero)
        },
    ];
    Experiment {
        sub_claims: vec![alike_for_ever()],
        first_predictions: retained(predictions, &cells),
        cells,
        ..numbered(2, "Symmetry", "Do heads that start alike come apart, and does that depend on their width?")
    }
}

/// What E2 decides.
fn alike_for_ever() -> SubClaim {
    let of = |start: &str| {
        let each = |(regime, _): (&str, Regime)| {
            OPTIMISERS
                .map(|(rule, ..)| Contrast::of(format!("{regime}, {rule}"), [regime, rule, "full", start].join("-")))
        };
        REGIMES.into_iter().flat_map(each).collect::<Vec<_>>()
    };
    let theorem = Gate {
        text: "without any perturbation heads stay alike (a theorem)".to_owned(),
        metric: "pattern_divergence".to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Below(0.01),
        cases: of("same"),
    };
    let cases = of("perturbed");
    let names: Vec<String> = cases.iter().flat_map(Contrast::cells).map(str::to_owned).collect();
    let gates = vec![theorem, learned(names.iter().map(String::as_str))];
    let text = "Heads of full width that start alike, but for one part in ten thousand, end alike";
    SubClaim { gates, ..sub_claim("C6a", text, below("pattern_divergence", DIVERGENCE), cases) }
}
