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

use crate::error::Result;
use crate::table::{Keys, Observation};

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
    /// The rows of all seeds, without the cell's name.
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Vec<Observation>> {
        match self {
            Self::Training(training) => training.compute(seeds),
            Self::Circle(circle) => circle.compute(seeds),
            Self::Regression(regression) => regression.compute(seeds),
            Self::Pretrained(pretrained) => pretrained.compute(seeds),
        }
    }
}

/// A row about a whole run.
fn row(seed: u64, step: usize, metric: &str, value: f64) -> Observation {
    let keys = Keys { seed: Some(seed), step: u32::try_from(step).ok(), ..Keys::default() };
    Observation { keys, metric: metric.to_owned(), value, ..Observation::default() }
}
