//! What does a cell compute?

mod circle;
mod course;
mod information;
mod measure;
mod pretrained;
mod regression;
mod training;
mod truncate;

use serde::{Deserialize, Serialize};

pub use circle::Circle;
pub use course::Spacing;
pub use pretrained::{Pretrained, Texts};
pub use regression::Regression;
pub use training::{After, Measurement, Occupant, Start, Training};

use std::collections::BTreeMap;

use crate::error::Result;
use crate::table::{Keys, Observation};

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
    /// Constructs attention from logits of rank 2, without training.
    Circle(Circle),
    /// Trains a linear head of a given width and compares it with the optimum.
    Regression(Regression),
    /// Tests which heads of an existing model play which roles.
    Pretrained(Pretrained),
}

impl Work {
    /// Computes the rows of all seeds, without the cell's name, and their provenance.
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        match self {
            Self::Training(training) => training.compute(seeds),
            Self::Circle(circle) => Ok(Computed { rows: circle.compute(seeds)?, ..Computed::default() }),
            Self::Regression(regression) => Ok(Computed { rows: regression.compute(seeds)?, ..Computed::default() }),
            Self::Pretrained(pretrained) => pretrained.compute(seeds),
        }
    }

    /// The files that would be read, hashed as they are now.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        match self {
            Self::Pretrained(pretrained) => pretrained.inputs(),
            Self::Training(training) => training.inputs(),
            _ => Ok(vec![]),
        }
    }

    /// The model's name, for provenance; empty if there is no model.
    pub(super) fn model(&self) -> &str {
        match self {
            Self::Training(_) => "trained",
            Self::Pretrained(pretrained) if pretrained.random => "random",
            Self::Pretrained(pretrained) => &pretrained.model,
            Self::Circle(_) | Self::Regression(_) => "",
        }
    }
}

/// A row about a whole run.
fn row(seed: u64, step: usize, metric: &str, value: f64) -> Observation {
    let keys = Keys { seed: Some(seed), step: u32::try_from(step).ok(), ..Keys::default() };
    Observation { keys, metric: metric.to_owned(), value, ..Observation::default() }
}
