//! E4: is the projection from d_model to d_head a bottleneck that makes heads divide the work?

use super::grid::{
    D_MODEL, DIVISION, HALF, REGIMES, above, against, alone, cells_of, divided, in_regimes, learned, numbered,
    prediction, retained, sub_claim, trained,
};
use super::work::Regression;
use super::{Cell, Experiment, Grid, Measurement, Work};
use crate::lab::train::HeadOptions;
use crate::lab::verdict::first::{Case, Expect, Prediction};
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, SubClaim};

/// Noise levels on z, whose norm is sqrt(d_head): the capacity of a head is d_head / 2 ln(1 + 1 / sigma^2).
const NOISES: [(&str, f64); 4] = [("0.1", 0.1), ("0.5", 0.5), ("1", 1.0), ("2", 2.0)];
/// Those that the sub-claim contrasts.
const CONTRASTED: [&str; 2] = ["0.1", "1"];
/// Widths of the linear head, out of 32.
const RANKS: [usize; 3] = [2, 4, 8];

/// The task that never enters the loss where one is left out.
const LEFT_OUT: (usize, &str) = (2, "class");

/// E4: what information passes through a head, and does a smaller capacity lead to more division of the work?
pub(super) fn bottleneck(grid: Grid) -> Experiment {
    let mut cells: Vec<Cell> = vec![];
    for width in RANKS {
        let regression = Regression { d_model: 32, width, decay: 0.8, steps: 20_000, learning_rate: 0.1 };
        cells.push(Cell { name: format!("linear-width{width}"), work: Work::Regression(regression) });
    }
    for (regime, of) in REGIMES {
        for (name, sigma) in NOISES.into_iter().filter(|(name, _)| grid == Grid::Full || CONTRASTED.contains(name)) {
            let mut training = divided(of, 4, 11);
            training.train.heads = HeadOptions { noise: Some(sigma), ..HeadOptions::default() };
            cells.push(trained(format!("{regime}-noise{name}"), training));
        }
        for width in [4, D_MODEL] {
            let mut training = divided(of, 4, width);
            (training.measures, training.records, training.held_out) = (vec![Measurement::Information], 2, 256);
            let mut without = training.clone();
            without.train.task_weights = (0..4).map(|task| f64::from(u8::from(task != LEFT_OUT.0))).collect();
            cells.push(trained(format!("{regime}-information{width}"), training));
            cells.push(trained(format!("{regime}-without{width}"), without));
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
        sub_claims: vec![what_matters(), a_part_each()],
        first_predictions: retained(predictions, &cells),
        cells,
        ..numbered(
            4,
            "Bottleneck",
            "Does a head keep what matters most to the loss, and each a different part, because little passes it?",
        )
    }
}

/// C3a: what the best head carries of a task that is in the loss, less what it carries of the same task where its weight
/// is 0.
fn what_matters() -> SubClaim {
    let each = |(regime, _)| {
        [4, D_MODEL].map(|width| {
            let cell = |what: &str| format!("{regime}-{what}{width}");
            Contrast::between(format!("{regime}, width {width}"), cell("information"), cell("without"))
        })
    };
    let cases: Vec<Contrast> = REGIMES.into_iter().flat_map(each).collect();
    let task = Some(LEFT_OUT.1.to_owned());
    let manipulated = Gate {
        text: "the task whose weight is 0 is not learned".to_owned(),
        metric: "accuracy".to_owned(),
        task: task.clone(),
        reading: Reading::End,
        limit: Limit::Below(0.5),
        cases: cells_of(&cases).iter().filter(|cell| cell.contains("without")).map(|c| Contrast::of(c, c)).collect(),
    };
    let scale = "a quarter of what there is to know about the answer";
    let endpoint = Endpoint { task, given_learning: false, ..above("information_share", (0.25, scale)) };
    let text = "A head keeps what matters to its loss: of a task that is not in the loss it carries less";
    SubClaim { gates: vec![manipulated], ..sub_claim("C3a", text, endpoint, cases) }
}

/// C3b: with a tenth of the noise on z, a head passes three times as many nats.
fn a_part_each() -> SubClaim {
    let cases =
        in_regimes(|regime| Contrast::between(regime, format!("{regime}-noise1"), format!("{regime}-noise0.1")));
    let gates = vec![learned(cells_of(&cases).iter().map(String::as_str))];
    let text =
        "Different heads keep different parts because little passes each: with less capacity they divide the work more";
    let endpoint = Endpoint { reading: HALF, ..above("division", DIVISION) };
    SubClaim { gates, ..sub_claim("C3b", text, endpoint, cases) }
}
