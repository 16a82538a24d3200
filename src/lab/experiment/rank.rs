//! E5: how much rank does attention need?

use super::grid::{
    D_MODEL, LOSS, REGIMES, STEPS, above, against, alone, below, converged, divided, in_regimes, learned, numbered,
    one_layer, prediction, retained, sub_claim, trained,
};
use super::work::Circle;
use super::{Cell, Experiment, Grid, Measurement, Work};
use crate::lab::language::{Language, Regime, Task, Tasks};
use crate::lab::train::HeadOptions;
use crate::lab::verdict::first::{Expect, Prediction};
use crate::lab::verdict::{Contrast, Endpoint, SubClaim};

const KEYS: [usize; 3] = [8, 32, 128];
/// (heads, d_head) with equal parameter counts, from one full-rank head to many low-rank heads.
/// The two that the sub-claim contrasts come first.
const SHAPES: [(usize, usize); 4] = [(1, D_MODEL), (11, 4), (2, 22), (4, 11)];
/// Number of symbols that have to be told apart.
const SYMBOLS: [usize; 2] = [16, 32];
/// The rank of a narrow head's circuits.
const NARROW: usize = 4;
/// Ranks at which QK is trained in heads of full width, and those at which OV is; that of a narrow head comes first.
const QK_RANKS: [usize; 5] = [NARROW, 1, 2, 8, 16];
const OV_RANKS: [usize; 2] = [NARROW, 2];

fn full(regime: &str) -> String {
    format!("{regime}-full")
}

fn limited(regime: &str, circuit: &str, rank: usize) -> String {
    format!("{regime}-{circuit}{rank}")
}

fn matching(symbols: usize, heads: usize, width: usize) -> String {
    format!("matching{symbols}-heads{heads}-width{width}")
}

/// E5: do dependencies need more rank than one head has, and can many low-rank heads compensate?
pub(super) fn rank(grid: Grid) -> Experiment {
    let circle = |n: usize| {
        // Chosen so that the lower bound on a target's attention weight is 0.9.
        let step = 1.0 - (2.0 * std::f64::consts::PI / n as f64).cos();
        let beta = (9.0 * (n as f64 - 1.0)).ln() / step;
        Cell { name: format!("circle{n}"), work: Work::Circle(Circle { n, beta }) }
    };
    let mut cells: Vec<Cell> = KEYS.map(circle).to_vec();
    for (regime, of) in REGIMES {
        let cell = |name: String, measures: Vec<Measurement>, heads: HeadOptions| {
            let mut training = divided(of, 4, D_MODEL);
            (training.measures, training.records, training.train.heads) = (measures, 2, heads);
            trained(name, training)
        };
        cells.push(cell(full(regime), vec![Measurement::Truncated], HeadOptions::default()));
        let qk = QK_RANKS.into_iter().take(grid.pick(1, QK_RANKS.len())).map(|rank| {
            let heads = HeadOptions { qk_rank: Some(rank), ..HeadOptions::default() };
            cell(limited(regime, "qk", rank), vec![], heads)
        });
        cells.extend(qk);
        let ov = OV_RANKS.into_iter().take(grid.pick(0, OV_RANKS.len())).map(|rank| {
            let heads = HeadOptions { ov_rank: Some(rank), ..HeadOptions::default() };
            cell(limited(regime, "ov", rank), vec![], heads)
        });
        cells.extend(ov);
    }
    for symbols in SYMBOLS {
        for (heads, width) in SHAPES.into_iter().take(grid.pick(2, SHAPES.len())) {
            let language = telling_apart(symbols);
            let mut training = divided(Regime::Gated, heads, width);
            (training.model, training.language) = (one_layer(heads, width, &language), language);
            (training.measures, training.records, training.train.steps) = (vec![], 2, 2 * STEPS);
            cells.push(trained(matching(symbols, heads, width), training));
        }
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
            cases: REGIMES.map(|(name, _)| alone(name, full(name))).to_vec(),
            ..prediction(
                "C4",
                "Dependencies need a higher rank than a narrow head has: cutting QK of full-width heads to rank 4 costs",
                "truncation_cost_4",
                Expect::Greater,
            )
        },
        Prediction {
            learned: false,
            cases: vec![against("matching", matching(16, 11, 4), matching(16, 1, D_MODEL))],
            ..prediction(
                "C4",
                "Many heads of low rank together do what one of full rank does, with as many parameters",
                "excess_loss",
                Expect::Zero,
            )
        },
    ];
    Experiment {
        sub_claims: vec![needs_rank(), add_up()],
        first_predictions: retained(predictions, &cells),
        cells,
        ..numbered(
            5,
            "Rank",
            "Do dependencies need more rank than a head has, and do many heads of low rank make up for it?",
        )
    }
}

/// What is left unlearned. All runs count, since learning is the question.
fn at_the_end(endpoint: Endpoint) -> Endpoint {
    Endpoint { given_learning: false, ..endpoint }
}

fn needs_rank() -> SubClaim {
    let of = |regime: &str| [limited(regime, "qk", NARROW), full(regime)];
    let names: Vec<String> = REGIMES.iter().flat_map(|(regime, _)| of(regime)).collect();
    let whole = names.iter().filter(|name| name.ends_with("full"));
    let text = "Trained dependencies need more rank than a narrow head has: heads of full width whose QK is trained at rank 4 learn less";
    let cases = in_regimes(|regime| {
        let [narrow, whole] = of(regime);
        Contrast::between(regime, narrow, whole)
    });
    let gates = vec![converged(names.iter().map(String::as_str)), learned(whole.map(String::as_str))];
    SubClaim { gates, ..sub_claim("C4b", text, at_the_end(above("excess_loss", LOSS)), cases) }
}

fn add_up() -> SubClaim {
    let of = |symbols| [(11, NARROW), (1, D_MODEL)].map(|(heads, width)| matching(symbols, heads, width));
    let names = SYMBOLS.map(of);
    let text = "Many heads of low rank replace one of full rank with as many parameters: they leave no more unlearned";
    let case = |symbols: usize| {
        let [many, one] = of(symbols);
        Contrast::between(format!("{symbols} symbols"), many, one)
    };
    let cases = SYMBOLS.map(case).to_vec();
    let gates =
        vec![converged(names.iter().flatten().map(String::as_str)), learned(names.iter().map(|[_, one]| one.as_str()))];
    SubClaim { gates, ..sub_claim("C4c", text, at_the_end(below("excess_loss", LOSS)), cases) }
}

/// One task, which requires telling so many symbols apart.
fn telling_apart(symbols: usize) -> Language {
    Language::Tasks(Tasks { tasks: vec![Task::Duplicate], regime: Regime::Gated, symbols, length: (6, 10) })
}
