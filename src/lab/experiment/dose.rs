//! E10: is it competition that makes heads divide the work, and does it need narrow heads?

use super::grid::{
    D_MODEL, DIVERGENCE, DIVISION, REGIMES, above, below, cells_of, converged, divided, learned, numbered, sub_claim,
    trained,
};
use super::{Cell, Experiment, Grid, Measurement};
use crate::lab::language::Regime;
use crate::lab::train::HeadOptions;
use crate::lab::verdict::{Contrast, Endpoint, Form, SubClaim};

/// Doses of competition: each head is trained on the loss of its own output plus this share of the others'. The two that
/// the sub-claims contrast come first.
const DOSES: [(&str, f64); 5] = [("0", 0.0), ("1", 1.0), ("0.25", 0.25), ("0.5", 0.5), ("0.75", 0.75)];
const WIDTHS: [usize; 2] = [4, D_MODEL];
/// The regimes in which heads that start as copies are tried, too.
const COPIED: [(&str, Regime); 2] = [("gated", Regime::Gated), ("simultaneous", Regime::Simultaneous)];
/// Standard deviation of the noise that perturbs copies, relative to that of their weights.
const PERTURBATION: f64 = 1e-4;

fn free(regime: &str, width: usize, dose: &str) -> String {
    format!("{regime}-width{width}-dose{dose}")
}

fn copied(regime: &str, width: usize, dose: &str) -> String {
    format!("{regime}-width{width}-copies-dose{dose}")
}

/// E10: competition as a dose, from heads that are each trained alone to ordinary training.
pub(super) fn dose(grid: Grid) -> Experiment {
    let mut cells: Vec<Cell> = vec![];
    let cell = |name: String, regime, width, heads: HeadOptions| {
        let mut training = divided(regime, 4, width);
        training.train.heads = heads;
        training.measures.push(Measurement::Gradients);
        trained(name, training)
    };
    for (regime, of) in REGIMES {
        for width in WIDTHS {
            for (name, dose) in DOSES.into_iter().take(grid.pick(2, DOSES.len())) {
                let heads = HeadOptions { competition: Some(dose), ..HeadOptions::default() };
                cells.push(cell(free(regime, width, name), of, width, heads));
            }
        }
    }
    let widths_of_copies = grid.pick(&WIDTHS[..1], &WIDTHS[..]);
    for (regime, of) in COPIED {
        for &width in widths_of_copies {
            for (name, dose) in [("0", 0.0), ("1", 1.0)] {
                let heads = HeadOptions {
                    competition: Some(dose),
                    identical: true,
                    perturbation: PERTURBATION,
                    ..HeadOptions::default()
                };
                cells.push(cell(copied(regime, width, name), of, width, heads));
            }
        }
    }
    Experiment {
        sub_claims: vec![interaction(), needed(), keeps_apart(), alike_alone(), breaks_symmetry(widths_of_copies)],
        cells,
        ..numbered(
            10,
            "Competition as a dose",
            "Is it competition for the gradient that makes heads divide the work, and does it need narrow heads?",
        )
    }
}

/// All runs count: heads that are each trained alone cannot learn what it takes several heads to do, at any length.
fn of_all_runs(metric: &str, threshold: (f64, &str)) -> Endpoint {
    Endpoint { given_learning: false, ..above(metric, threshold) }
}

/// Gates on the cells of ordinary training.
fn gated(claim: SubClaim) -> SubClaim {
    let cells = cells_of(&claim.cases);
    let names = || cells.iter().map(String::as_str).filter(|cell| cell.ends_with("dose1"));
    SubClaim { gates: vec![learned(names()), converged(names())], ..claim }
}

fn interaction() -> SubClaim {
    let case = |(regime, _)| {
        Contrast::between(regime, free(regime, 4, "1"), free(regime, 4, "0"))
            .plus(-1.0, free(regime, D_MODEL, "1"))
            .plus(1.0, free(regime, D_MODEL, "0"))
    };
    let cases = REGIMES.into_iter().map(case).collect();
    let text = "Competition divides narrow heads more than heads of full width";
    gated(SubClaim { form: Form::Interaction, ..sub_claim("C2c", text, of_all_runs("division", DIVISION), cases) })
}

fn needed() -> SubClaim {
    let case = |(regime, _)| {
        WIDTHS.map(|width| {
            Contrast::between(format!("{regime}, width {width}"), free(regime, width, "1"), free(regime, width, "0"))
        })
    };
    let text = "Division needs competition: heads that are each trained alone divide the work less";
    let cases = REGIMES.into_iter().flat_map(case).collect();
    gated(sub_claim("C2e", text, of_all_runs("division", DIVISION), cases))
}

fn keeps_apart() -> SubClaim {
    let case = |(regime, _)| {
        WIDTHS.map(|width| {
            Contrast::between(format!("{regime}, width {width}"), free(regime, width, "1"), free(regime, width, "0"))
        })
    };
    let text = "Competition keeps heads apart: trained together they attend less alike than each trained alone";
    let cases = REGIMES.into_iter().flat_map(case).collect();
    gated(sub_claim("C2f", text, of_all_runs("pattern_divergence", DIVERGENCE), cases))
}

fn alike_alone() -> SubClaim {
    let case = |(regime, _)| Contrast::of(regime, free(regime, D_MODEL, "0"));
    let text = "Heads of full width that start at random end alike if each is trained alone";
    let endpoint = Endpoint { given_learning: false, ..below("pattern_divergence", DIVERGENCE) };
    sub_claim("C6c", text, endpoint, REGIMES.into_iter().map(case).collect())
}

fn breaks_symmetry(widths: &[usize]) -> SubClaim {
    let case = |(regime, _)| {
        let each = |&width: &usize| {
            Contrast::between(
                format!("{regime}, width {width}"),
                copied(regime, width, "1"),
                copied(regime, width, "0"),
            )
        };
        widths.iter().map(each).collect::<Vec<_>>()
    };
    let text = "Competition breaks the symmetry of heads that start as copies, but for one part in ten thousand";
    let cases = COPIED.into_iter().flat_map(case).collect();
    gated(sub_claim("C2b", text, of_all_runs("pattern_divergence", DIVERGENCE), cases))
}
