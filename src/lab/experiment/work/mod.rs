//! What does a cell compute?

mod circle;
mod complexity;
mod construction;
mod course;
mod demand;
mod information;
mod measure;
mod on_text;
mod order;
mod passages;
mod pretrained;
mod regression;
mod roles;
mod training;
mod truncate;
mod weights;

use serde::{Deserialize, Serialize};

pub use circle::Circle;
pub use complexity::Complexity;
pub use construction::{Attainable, Construction, PatternKind, PatternSet};
pub use course::Spacing;
pub use demand::Demand;
pub use on_text::{AskedOnText, OnText};
pub use passages::Passages;
pub use pretrained::{Pretrained, Texts};
pub use regression::Regression;
pub(super) use roles::ROLE;
pub use training::{After, Measurement, Occupant, Start, Training};
pub use weights::WeightsOf;

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::file;
use crate::lab::streams::Purpose;
use crate::model::Model;
use crate::table::{Keys, Observation};
use crate::text::HasTokenizer;

/// The result of a cell's work.
#[derive(Default)]
pub(super) struct Computed {
    /// The rows of all seeds.
    pub rows: Vec<Observation>,
    /// The inputs that were read from files.
    pub read: Vec<Input>,
    /// SHA-256 of the final parameters of each seed's model, if one was trained or initialised.
    pub parameters: BTreeMap<u64, String>,
}

impl Computed {
    /// Rows of a construction, which reads no file and trains no model.
    fn of(rows: Vec<Observation>) -> Self {
        Self { rows, ..Self::default() }
    }
}

/// An input that was read from files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// A model's name or a file's path, as written in the cell.
    pub name: String,
    /// SHA-256 of its files.
    pub sha256: String,
}

/// The work of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Trains models and measures them during training.
    Training(Box<Training>),
    /// Trains a grid of models that differ in tasks, heads and width, and asks what explains how they divide the work.
    Demand(Box<Demand>),
    /// Constructs attention from logits of rank 2, without training.
    Circle(Circle),
    /// Produces random attention patterns with a head of a given width.
    Construction(Construction),
    /// Finds the largest number of keys for which a head of a given width produces random patterns.
    Attainable(Attainable),
    /// Trains a linear head of a given width and compares it with the optimum.
    Regression(Regression),
    /// Tests which heads of an existing model play which roles.
    Pretrained(Pretrained),
    /// Compares the directions that heads of existing models use.
    Weights(WeightsOf),
    /// Compares heads of an existing model on natural text.
    OnText(OnText),
}

impl Work {
    /// Computes the rows of all seeds, without the cell's name, and their provenance.
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        match self {
            Self::Training(training) => training.compute(seeds),
            Self::Demand(demand) => demand.compute(seeds),
            Self::Circle(circle) => circle.compute(seeds).map(Computed::of),
            Self::Construction(construction) => construction.compute(seeds).map(Computed::of),
            Self::Attainable(attainable) => attainable.compute(seeds).map(Computed::of),
            Self::Regression(regression) => regression.compute(seeds).map(Computed::of),
            Self::Pretrained(pretrained) => pretrained.compute(seeds),
            Self::Weights(weights) => weights.compute(seeds),
            Self::OnText(on_text) => on_text.compute(seeds),
        }
    }

    /// The files that would be read, hashed as they are now.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        match self {
            Self::Pretrained(pretrained) => pretrained.inputs(),
            Self::Weights(weights) => weights.inputs(),
            Self::OnText(on_text) => on_text.inputs(),
            Self::Training(training) => training.inputs(),
            _ => Ok(vec![]),
        }
    }

    /// The model's name, for provenance; empty if there is no model.
    pub(super) fn model(&self) -> &str {
        match self {
            Self::Training(_) | Self::Demand(_) => "trained",
            Self::Pretrained(pretrained) if pretrained.random => "random",
            Self::Pretrained(pretrained) => &pretrained.model,
            Self::Weights(WeightsOf { random: true, .. }) | Self::OnText(OnText { random: true, .. }) => "random",
            Self::Weights(weights) => match weights.models.as_slice() {
                [model] => model,
                _ => "several",
            },
            Self::OnText(on_text) => &on_text.model,
            Self::Circle(_) | Self::Construction(_) | Self::Attainable(_) | Self::Regression(_) => "",
        }
    }
}

/// A row about a whole run.
fn row(seed: u64, step: usize, metric: &str, value: f64) -> Observation {
    let keys = Keys { seed: Some(seed), step: u32::try_from(step).ok(), ..Keys::default() };
    Observation { keys, metric: metric.to_owned(), value, ..Observation::default() }
}

/// A model by its bundled name, hub id or folder, which is also looked up in the folder named by `HEADSCOPE_DATA`.
fn load(name: &str) -> Result<Model> {
    Model::load(&file::found(Path::new(name)).to_string_lossy())
}

/// The same architecture and tokenizer with random weights. They come from a random stream of their own, since the seed's
/// first stream draws the texts.
fn drawn(model: &Model, seed: u64) -> Result<Model> {
    let tokenizer = model.need_tokenizer()?.clone();
    let seed = Purpose::Weights.seed(seed);
    Ok(Model::random_as(model.config(), seed, model.kind(), model.device())?.with_tokenizer(tokenizer))
}

/// Place `number` of an order of `0..n` in which any few in a row are spread over the whole: steps of about .618 n.
fn spread(number: usize, n: usize) -> usize {
    let coprime = |step: &usize| (2..=*step).all(|factor| !step.is_multiple_of(factor) || !n.is_multiple_of(factor));
    let step = (n as f64 * 0.618).round() as usize;
    number % n * (step.max(1)..).find(coprime).unwrap_or(1) % n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_of_all_places_and_spreads_the_first_ones() {
        for n in 1..100 {
            let mut order: Vec<usize> = (n..2 * n).map(|number| spread(number, n)).collect();
            assert_eq!(order[0], 0, "the order begins again");
            let half = order[..n.div_ceil(2)].iter().filter(|place| **place < n / 2).count();
            assert!(
                half.abs_diff(n.div_ceil(4)) <= n / 8 + 1,
                "{half} of the first {} in the lower half",
                n.div_ceil(2)
            );
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }
}
