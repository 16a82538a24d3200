//! E1 and E8: how does the division of work among heads depend on their width, and on weight decay?

use super::grid::{
    D_MODEL, DIVERGENCE, DIVISION, HALF, LOSS, REGIMES, above, against, alone, below, cells_of, converged, divided,
    in_regimes, learned, numbered, prediction, retained, sub_claim, trained,
};
use super::{Cell, Experiment, Grid, Measurement};
use crate::lab::train::{Optimiser, TrainOptions};
use crate::lab::verdict::first::{Case, Expect, Prediction};
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, SubClaim};

/// Values of d_head in the models with four heads.
const WIDTHS: [usize; 4] = [2, 4, 11, D_MODEL];

fn wide(regime: &str, heads: usize, width: usize) -> String {
    format!("{regime}-heads{heads}-width{width}")
}

/// E1: limited head capacity, and the counterfactual of full-width heads.
pub(super) fn widths(grid: Grid) -> Experiment {
    let mut cells: Vec<Cell> = vec![];
    for (name, regime) in REGIMES {
        // What the sub-claims need; then all widths, constant total width, and more heads of a fixed width.
        let mut shapes: Vec<(usize, usize)> = vec![(4, 4), (4, D_MODEL), (1, 4), (1, D_MODEL), (11, 4)];
        if grid == Grid::Full {
            shapes.extend([(4, 2), (4, 11), (2, 22), (2, 4), (8, 4)]);
        }
        let cell = |&(heads, width): &(usize, usize)| {
            let mut training = divided(regime, heads, width);
            training.measures.extend([Measurement::Written, Measurement::Overlaps]);
            trained(wide(name, heads, width), training)
        };
        cells.extend(shapes.iter().map(cell));
    }
    let cases = |of: &dyn Fn(&str) -> Case| REGIMES.iter().map(|(name, _)| of(name)).collect::<Vec<_>>();
    let falling = |name: &str| {
        let trend = WIDTHS.iter().rev().map(|&width| wide(name, 4, width)).collect();
        Case { trend, ..against(name, wide(name, 4, 4), wide(name, 4, D_MODEL)) }
    };
    let predictions = vec![
        Prediction {
            reading: HALF,
            cases: cases(&falling),
            ..prediction(
                "C1",
                "Four heads of width 4 divide the tasks more than four of full width, at matched loss",
                "specialisation",
                Expect::Greater,
            )
        },
        Prediction {
            learned: false,
            cases: cases(&|name| {
                let trend = [D_MODEL, 4].map(|width| wide(name, 1, width)).to_vec();
                Case { trend, ..against(name, wide(name, 1, 4), wide(name, 1, D_MODEL)) }
            }),
            ..prediction(
                "C1",
                "A single head of width 4 leaves more unlearned than a single one of full width",
                "excess_loss",
                Expect::Greater,
            )
        },
        Prediction {
            cases: cases(&|name| alone(name, wide(name, 4, D_MODEL))),
            ..prediction("C6", "Heads of full width do not divide the tasks", "specialisation", Expect::Zero)
        },
        Prediction {
            cases: cases(&|name| alone(name, wide(name, 4, D_MODEL))),
            ..prediction("C6", "Heads of full width attend alike where it counts", "pattern_divergence", Expect::Zero)
        },
        Prediction {
            cases: cases(&|name| alone(name, wide(name, 4, D_MODEL))),
            ..prediction(
                "C6",
                "Heads of full width come to write alike, more than before any training",
                "cka_gain",
                Expect::Greater,
            )
        },
    ];
    Experiment {
        sub_claims: about_widths(),
        first_predictions: retained(predictions, &cells),
        cells,
        ..numbered(
            1,
            "Capacity",
            "Do narrow heads divide the work because each is too small to learn everything, and would heads of full width all learn the same?",
        )
    }
}

/// What E1 decides.
fn about_widths() -> Vec<SubClaim> {
    let cell = |regime: &str, heads, width| wide(regime, heads, width);
    let gated = |claim: SubClaim, more: bool| {
        let cells = cells_of(&claim.cases);
        let names = || cells.iter().map(String::as_str);
        let gates = if more { vec![converged(names()), learned(names())] } else { vec![converged(names())] };
        SubClaim { gates, ..claim }
    };
    let at_the_end = |threshold| Endpoint { given_learning: false, ..above("excess_loss", threshold) };
    let single = in_regimes(|name| Contrast::between(name, cell(name, 1, 4), cell(name, 1, D_MODEL)));
    let narrow = in_regimes(|name| Contrast::between(name, cell(name, 4, 4), cell(name, 4, D_MODEL)));
    let many = in_regimes(|name| Contrast::between(name, cell(name, 1, D_MODEL), cell(name, 11, 4)));
    let full = || in_regimes(|name| Contrast::of(name, cell(name, 4, D_MODEL)));
    vec![
        gated(
            sub_claim("C1a", "A narrow head cannot do, at convergence, what a wide one can", at_the_end(LOSS), single),
            false,
        ),
        gated(
            sub_claim(
                "C1b",
                "Narrowness makes heads divide the work: four of width 4 do, more than four of full width at equal loss",
                Endpoint { reading: HALF, ..above("division", DIVISION) },
                narrow,
            ),
            true,
        ),
        gated(
            sub_claim(
                "C1d",
                "Many narrow heads do what one of full width, as wide as all of them together, does not",
                at_the_end(LOSS),
                many,
            ),
            false,
        ),
        gated(
            sub_claim(
                "C6b",
                "Heads of full width that start at random end alike: they attend alike where it counts",
                below("pattern_divergence", DIVERGENCE),
                full(),
            ),
            true,
        ),
    ]
}

/// Values of weight decay, which is added to the gradient.
const DECAYS: [(&str, f64); 3] = [("0", 0.0), ("1e-4", 1e-4), ("1e-5", 1e-5)];

/// E8: does weight decay explain the effect attributed to width?
pub(super) fn decay(grid: Grid) -> Experiment {
    let name = |regime: &str, width: usize, decay: &str| format!("{regime}-width{width}-decay{decay}");
    let mut cells: Vec<Cell> = vec![];
    // The two that the sub-claim contrasts, then the one between.
    let decays = &DECAYS[..grid.pick(2, 3)];
    for (regime, of) in REGIMES {
        for (width, (decay, weight_decay)) in
            [4, D_MODEL].into_iter().flat_map(|width| decays.iter().map(move |decay| (width, *decay)))
        {
            let mut training = divided(of, 4, width);
            training.measures.push(Measurement::Norms);
            training.train = TrainOptions { optimiser: Optimiser::Adam, weight_decay, ..training.train };
            cells.push(trained(name(regime, width, decay), training));
        }
    }
    let case = |(regime, decay): (&str, &str)| {
        against(&format!("{regime}, decay {decay}"), name(regime, 4, decay), name(regime, D_MODEL, decay))
    };
    let pairs = REGIMES.into_iter().flat_map(|(regime, _)| DECAYS.map(|(decay, _)| (regime, decay)));
    let moved = |width: usize| {
        let text = format!("width {width}");
        REGIMES.map(|(regime, _)| {
            against(&format!("{regime}, {text}"), name(regime, width, "1e-4"), name(regime, width, "0"))
        })
    };
    let predictions = vec![
        Prediction {
            reading: HALF,
            cases: pairs.map(case).collect(),
            ..prediction(
                "C1",
                "Narrow heads divide the tasks more than heads of full width, at matched loss, whatever the weight decay",
                "specialisation",
                Expect::Greater,
            )
        },
        Prediction {
            reading: HALF,
            cases: [moved(4), moved(D_MODEL)].concat(),
            ..prediction("decay", "Weight decay leaves the division as it is", "specialisation", Expect::Zero)
        },
    ];
    Experiment {
        sub_claims: about_decay(&name),
        first_predictions: retained(predictions, &cells),
        cells,
        ..numbered(8, "Weight decay", "Does weight decay, rather than width, decide how heads divide the work?")
    }
}

/// What E8 decides. Decay is a slow force, so that the end of training is read, not a matched loss.
fn about_decay(name: &dyn Fn(&str, usize, &str) -> String) -> Vec<SubClaim> {
    let cases = |of: &dyn Fn(&str, usize) -> Contrast| {
        let each = |(regime, _)| [4, D_MODEL].map(|width| of(regime, width));
        REGIMES.into_iter().flat_map(each).collect::<Vec<_>>()
    };
    let case = |regime: &str, width| format!("{regime}, width {width}");
    let moved = |regime: &str, width: usize| {
        Contrast::between(case(regime, width), name(regime, width, "1e-4"), name(regime, width, "0"))
    };
    let smaller = |regime: &str, width: usize| {
        Contrast::fall(case(regime, width), name(regime, width, "0"), name(regime, width, "1e-4"))
    };
    let divides = sub_claim(
        "C1f",
        "Weight decay makes heads divide the work, whatever their width",
        above("division", DIVISION),
        cases(&moved),
    );
    let manipulated = Gate {
        text: "decay made the weights smaller by a tenth or more".to_owned(),
        metric: "weight_norm".to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Above(0.1),
        cases: cases(&smaller),
    };
    let gates = vec![manipulated, learned(cells_of(&divides.cases).iter().map(String::as_str))];
    vec![SubClaim { gates, ..divides }]
}
