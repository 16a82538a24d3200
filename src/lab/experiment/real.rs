//! E12: do the heads of a layer of real models use different directions, and do they stand in for each other?

use super::grid::{DIVERGENCE, above, below, numbered, sub_claim};
use super::work::{AskedOnText, OnText, Passages, WeightsOf};
use super::{Cell, Experiment, Grid, Work};
use crate::lab::language::TextSource;
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, Setting, SubClaim};

/// The experiment's number, which decides its seeds.
const NUMBER: u64 = 12;
/// Models that come with headscope.
const SMOLLM2: &str = "smollm2";
const MINILM: &str = "minilm";
/// Models looked up in the folder named by `HEADSCOPE_DATA`. Of GPT-2 there are the weights of attention only.
const BABYLLAMA: &str = "checkpoints/babyllama-105";
const GPT2: &str = "checkpoints/gpt2-small-attention-only";

/// Models whose weights are compared together, since one model has few layers: by architecture.
struct Family {
    cell: &'static str,
    /// The case's name.
    names: &'static str,
    models: Vec<&'static str>,
}

/// The small grid has the models that come with headscope; MiniLM's six layers are too few for their weights to be judged.
fn families(grid: Grid) -> Vec<Family> {
    let llama = |names, models| Family { cell: "llama", names, models };
    let layer_norm = || Family { cell: "layer-norm", names: "GPT-2 and MiniLM", models: vec![GPT2, MINILM] };
    match grid {
        Grid::Small => vec![llama("SmolLM2", vec![SMOLLM2])],
        Grid::Full => vec![llama("SmolLM2 and BabyLlama", vec![SMOLLM2, BABYLLAMA]), layer_norm()],
    }
}

/// E12: do the heads of a layer of trained models read and write different directions, do they stand in for each other, and
/// do they attend apart?
pub(super) fn real(grid: Grid) -> Experiment {
    let families = families(grid);
    let predicting = grid.pick(vec![("SmolLM2", SMOLLM2)], vec![("SmolLM2", SMOLLM2), ("BabyLlama", BABYLLAMA)]);
    let mut attending = vec![("SmolLM2", SMOLLM2), ("MiniLM", MINILM)];
    if grid == Grid::Full {
        attending.push(("BabyLlama", BABYLLAMA));
    }
    let mut cells: Vec<Cell> = families.iter().flat_map(|family| [false, true].map(|r| weights(family, r))).collect();
    cells.extend(predicting.iter().map(|(name, model)| on_text(name, model, false, AskedOnText::Redundancy)));
    let patterns =
        |&(name, model): &(&str, &str)| [false, true].map(|random| on_text(name, model, random, AskedOnText::Patterns));
    cells.extend(attending.iter().flat_map(patterns));
    let names = |models: &[(&'static str, &str)]| models.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    Experiment {
        sub_claims: vec![
            different_directions(&families),
            left_to_others(&names(&predicting)),
            attend_apart(&names(&attending)),
        ],
        cells,
        ..numbered(
            NUMBER,
            "Real models",
            "Do the heads of a layer of real models use different directions, and does the work of one leave nothing to the \
             others?",
        )
    }
}

fn cell_name(model: &str, what: &str, random: bool) -> String {
    let random = if random { "-random" } else { "" };
    format!("{}-{what}{random}", model.to_lowercase())
}

fn weights(family: &Family, random: bool) -> Cell {
    let models = family.models.iter().map(|name| (*name).to_owned()).collect();
    let work = Work::Weights(WeightsOf { models, random, first: numbered(NUMBER, "", "").seed });
    Cell { name: cell_name(family.cell, "weights", random), work }
}

fn on_text(name: &str, model: &str, random: bool, asked: AskedOnText) -> Cell {
    let (what, count) = match asked {
        AskedOnText::Redundancy => ("redundancy", 8),
        AskedOnText::Patterns => ("patterns", 4),
    };
    // Characters say less than words.
    let length = if model == BABYLLAMA { 128 } else { 64 };
    let texts = vec![TextSource::Shakespeare, TextSource::PrideAndPrejudice];
    let passages = Passages { texts, count, length };
    let work = Work::OnText(OnText { model: model.to_owned(), random, passages, asked });
    Cell { name: cell_name(name, what, random), work }
}

/// A gate that some cells pass.
fn gate(text: &str, metric: &str, limit: Limit, cases: Vec<Contrast>) -> Gate {
    let (text, metric) = (text.to_owned(), metric.to_owned());
    Gate { text, metric, task: None, reading: Reading::End, limit, cases }
}

/// C3b: the directions that heads of a layer use, by their weights.
fn different_directions(families: &[Family]) -> SubClaim {
    let each = |random: bool| {
        let of = |family: &Family| {
            let cell = cell_name(family.cell, "weights", random);
            ["reads", "writes"].map(|task| Contrast::of(format!("{}, {task}", family.names), &cell).task(task))
        };
        families.iter().flat_map(of).collect::<Vec<_>>()
    };
    let endpoint = Endpoint {
        most: Some(1.0),
        given_learning: false,
        ..above("separation", (0.1, "a tenth less alignment than heads rotated at random have"))
    };
    let control = gate("random weights separate as chance does", "separation", Limit::Within(0.05), each(true));
    let text =
        "Different heads of a layer read and write different directions of the stream, more than chance would have it";
    SubClaim { setting: Setting::RealModels, gates: vec![control], ..sub_claim("C3b", text, endpoint, each(false)) }
}

/// C2a: whether heads of a layer stand in for each other.
fn left_to_others(models: &[&str]) -> SubClaim {
    let each =
        || models.iter().map(|name| Contrast::of(*name, cell_name(name, "redundancy", false))).collect::<Vec<_>>();
    let endpoint = Endpoint {
        least: Some(0.0),
        most: Some(1.0),
        given_learning: false,
        ..below("redundant", (0.5, "half of the layers"))
    };
    let knows =
        gate("the model knows the text: its loss is below .6 of chance", "loss_share", Limit::Below(0.6), each());
    let text = "What one head does the others leave: in less than half of the layers do heads stand in for each other";
    SubClaim { setting: Setting::RealModels, gates: vec![knows], ..sub_claim("C2a", text, endpoint, each()) }
}

/// C2b: whether heads that compete attend apart more than heads that do not.
fn attend_apart(models: &[&str]) -> SubClaim {
    let each = |random: bool| {
        models.iter().map(move |name| Contrast::of(*name, cell_name(name, "patterns", random))).collect::<Vec<_>>()
    };
    let trained = models
        .iter()
        .map(|name| Contrast::between(*name, cell_name(name, "patterns", false), cell_name(name, "patterns", true)));
    let endpoint =
        Endpoint { least: Some(-1.0), most: Some(1.0), given_learning: false, ..above("pattern_gap", DIVERGENCE) };
    let gates = vec![
        gate(
            "heads of a layer attend apart, more than with random weights",
            "pattern_divergence",
            Limit::Above(0.05),
            trained.collect(),
        ),
        gate("random weights have no gap", "pattern_gap", Limit::Within(0.05), each(true)),
    ];
    let text = "Competition tells heads apart: those of one layer attend apart more than those of neighbouring layers";
    SubClaim { setting: Setting::RealModels, gates, ..sub_claim("C2b", text, endpoint, each(false)) }
}
