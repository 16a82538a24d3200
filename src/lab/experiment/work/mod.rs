//! What a cell computes.

mod circle;
mod information;
mod measure;
mod pretrained;
mod regression;
mod training;
mod truncate;

use serde::{Deserialize, Serialize};

pub use circle::Circle;
pub use pretrained::{Pretrained, Texts};
pub use regression::Regression;
pub use training::{After, Measure, Occupant, Start, Training};

use std::collections::BTreeMap;

use crate::error::Result;
use crate::table::{Keys, Observation};

/// What a cell's work gave.
#[derive(Default)]
pub(super) struct Computed {
    /// The rows of all seeds.
    pub rows: Vec<Observation>,
    /// What was read from files.
    pub read: Vec<Input>,
    /// SHA-256 of the parameters that each seed's model had at the end, where one was trained or drawn.
    pub parameters: BTreeMap<u64, String>,
}

/// Something that was read from files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// A model's name or a file's path, as the cell has it.
    pub name: String,
    /// SHA-256 of its files.
    pub sha256: String,
}

/// What a cell computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Trained models, asked questions on the way.
    Training(Box<Training>),
    /// Attention that rank 2 is enough for, without training.
    Circle(Circle),
    /// What a linear head of a given width keeps.
    Regression(Regression),
    /// A model that is there already, asked which heads play which roles.
    Pretrained(Pretrained),
}

impl Work {
    /// The rows of all seeds, without the cell's name, and where they come from.
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        match self {
            Self::Training(training) => training.compute(seeds),
            Self::Circle(circle) => Ok(Computed { rows: circle.compute(seeds)?, ..Computed::default() }),
            Self::Regression(regression) => Ok(Computed { rows: regression.compute(seeds)?, ..Computed::default() }),
            Self::Pretrained(pretrained) => pretrained.compute(seeds),
        }
    }

    /// What would be read from files, as it is now.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        match self {
            Self::Pretrained(pretrained) => pretrained.inputs(),
            _ => Ok(vec![]),
        }
    }

    /// The model's name, for provenance; none where there is no model.
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
