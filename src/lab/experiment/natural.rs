//! E11: do heads divide the work of natural text as they do that of made-up tasks?
//!
//! The models are small and trained for half a million tokens, which takes them a little beyond pairs of tokens: all that
//! two cores can do for 16 models of each size. At the second layer such heads matter too little for an index of division
//! (a total effect of .05 to .12 nat), so that division is measured at the first (.11 to .22).

use super::grid::{DIVERGENCE, above, below, cells_of, learned, numbered, sub_claim, trained};
use super::{Cell, Experiment, Grid, Measurement, Spacing, Start, Training};
use crate::lab::language::{Language, Text, TextSource, TextTokens};
use crate::lab::train::{Decay, TrainOptions};
use crate::lab::verdict::{Contrast, EXCESS_LOSS, Endpoint, Gate, Limit, Reading, Rule, Setting, SubClaim};
use crate::model::{ModelConfig, NormKind, QkvBias};

/// Width of the residual stream, and d_head of a full-width head.
const D_MODEL: usize = 64;
/// Heads per layer, but for the model with a single one.
const HEADS: usize = 8;
/// Values of d_head in the models with eight heads.
const WIDTHS: [usize; 5] = [2, 4, 8, 16, D_MODEL];
/// The smallest effect of interest on the division of work among eight heads and five classes of tokens.
const DIVISION: (f64, &str) = (0.05, "a quarter of what eight heads reach if each class has one of its own");
/// The smallest effect of interest on the excess loss.
const LOSS: (f64, &str) = (0.05, "a twentieth of the loss of a model that knows only how often tokens occur");
/// Losses that differ by less than this share of that loss count as equal.
const EQUAL: f64 = 0.1;
/// A run has learned if its excess loss ends here or below. No model reaches 0, which is certainty of every token.
const LEARNED: f64 = 0.8;

fn texts() -> [(&'static str, TextSource, TextTokens); 2] {
    [
        ("shakespeare", TextSource::Shakespeare, TextTokens::Characters),
        ("austen", TextSource::PrideAndPrejudice, TextTokens::Bpe { vocab: 512 }),
    ]
}

fn name(text: &str, heads: usize, width: usize) -> String {
    format!("{text}-heads{heads}-width{width}")
}

/// E11: narrow and wide heads on natural text, by character and by byte pair encoding.
pub(super) fn natural(grid: Grid) -> Experiment {
    let mut shapes: Vec<(usize, usize)> = WIDTHS.map(|width| (HEADS, width)).to_vec();
    shapes.push((1, D_MODEL));
    if grid == Grid::Small {
        shapes.retain(|&(heads, width)| heads == HEADS && [2, 4, D_MODEL].contains(&width));
    }
    let cell = |text: &str, source: &TextSource, tokens, (heads, width)| {
        let language = Language::Text(Text { text: source.clone(), tokens, length: 64 });
        trained(name(text, heads, width), training(grid, language, heads, width))
    };
    let cells: Vec<Cell> = texts()
        .iter()
        .flat_map(|(text, source, tokens)| shapes.iter().map(|&shape| cell(text, source, *tokens, shape)))
        .collect();
    Experiment {
        sub_claims: sub_claims(grid),
        rule: Rule { learned: LEARNED, ..Rule::default() },
        cells,
        ..numbered(
            11,
            "Natural text",
            "Do narrow heads divide the work of natural text more than wide ones, and do wide ones end alike?",
        )
    }
}

/// Two layers with an MLP, trained on windows of a text.
fn training(grid: Grid, language: Language, heads: usize, width: usize) -> Training {
    let model = ModelConfig {
        family: "natural-text".to_owned(),
        n_layers: 2,
        d_model: D_MODEL,
        n_heads: heads,
        n_kv_heads: heads,
        d_head: width,
        d_mlp: 2 * D_MODEL,
        vocab: language.vocab(),
        n_positions: language.positions(),
        norm: NormKind::Rms,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        ..ModelConfig::default()
    };
    let train =
        TrainOptions { steps: grid.pick(200, 1000), batch: 8, decay: Decay::Late(0.5), ..TrainOptions::default() };
    let measures = vec![Measurement::Division, Measurement::Patterns, Measurement::Written];
    // The 256 subsets of heads on 16 windows take as long as 35 to 65 training steps, so that they are measured rarely.
    let (start, records, spacing) = (Start::Fresh, grid.pick(3, 5), Spacing::Even);
    Training { model, language, train, start, measures, records, spacing, held_out: 16, layer: Some(0), after: None }
}

/// What E11 decides.
fn sub_claims(grid: Grid) -> Vec<SubClaim> {
    let cases = |case: &dyn Fn(&str) -> Contrast| texts().map(|(text, ..)| case(text)).to_vec();
    let between = |text: &str, a: (usize, usize), b: (usize, usize)| {
        Contrast::between(text, name(text, a.0, a.1), name(text, b.0, b.1))
    };
    let at_the_end = || Endpoint { given_learning: false, ..above("excess_loss", LOSS) };
    let narrow = sub_claim(
        "C1a",
        "Eight heads of width 2 predict text less well than eight of full width, after as much training",
        at_the_end(),
        cases(&|text| between(text, (HEADS, 2), (HEADS, D_MODEL))),
    );
    let divides = sub_claim(
        "C1b",
        "Narrowness makes heads divide the work: eight of width 4 divide the classes of tokens more than eight of full width",
        above("division", DIVISION),
        cases(&|text| between(text, (HEADS, 4), (HEADS, D_MODEL))),
    );
    let equal = Gate {
        text: "the two end at equal loss, within a tenth".to_owned(),
        metric: EXCESS_LOSS.to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Within(EQUAL),
        cases: divides.cases.clone(),
    };
    let many = sub_claim(
        "C1d",
        "Eight heads of width 8 predict text better than one of width 64",
        at_the_end(),
        cases(&|text| between(text, (1, D_MODEL), (HEADS, 8))),
    );
    let in_each_layer = |(text, ..): (&'static str, TextSource, TextTokens)| {
        ["layer 0", "layer 1"]
            .map(|layer| Contrast::of(format!("{text}, {layer}"), name(text, HEADS, D_MODEL)).task(layer))
    };
    let alike = sub_claim(
        "C6b",
        "Heads of full width that start at random end alike: they attend alike",
        below("pattern_divergence_by_layer", DIVERGENCE),
        texts().into_iter().flat_map(in_each_layer).collect(),
    );
    let divides = gated(divides, vec![equal]);
    let mut all = vec![gated(narrow, vec![]), divides, gated(alike, vec![])];
    if grid == Grid::Full {
        all.push(gated(many, vec![]));
    }
    all
}

/// The sub-claim with its gates: the models learned, and `more`.
fn gated(claim: SubClaim, more: Vec<Gate>) -> SubClaim {
    let cells = cells_of(&claim.cases);
    let gates = [vec![learned(cells.iter().map(String::as_str))], more].concat();
    SubClaim { setting: Setting::NaturalText, gates, ..claim }
}
