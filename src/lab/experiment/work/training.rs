//! Models trained on a language and asked questions on the way.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::lab::language::Language;
use crate::lab::train::TrainOptions;
use crate::model::ModelConfig;
use crate::table::Observation;

/// Models trained on a language, one for each seed, stacked, and asked questions on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The architecture.
    pub model: ModelConfig,
    /// The language.
    pub language: Language,
    /// How to train; the seed is the run's.
    pub train: TrainOptions,
    /// What training starts from.
    pub start: Start,
    /// What is asked.
    pub measures: Vec<Measure>,
    /// Steps at which it is asked, evenly spread, the first and the last among them.
    pub records: usize,
    /// Held-out sequences of each run.
    pub held_out: usize,
}

/// What training starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Parameters drawn at random.
    Fresh,
}

/// A question to the models of a cell, at every recorded step. `loss` and `accuracy` of each task and `excess_loss` are
/// always measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Who does what, from Shapley values under mean ablation. Of each layer's heads: `shapley` in nats by head and task.
    /// Of the whole: `total_effect` (nats that all heads of the layer together take off the mean task's loss), and, where
    /// that is at least 0.1, `specialisation` (0 to 1) and `participation` (heads a task). In models of several layers of
    /// the last one.
    Division,
    /// Whether heads look alike: `pattern_divergence`, the mean over pairs of a layer's heads of the Jensen-Shannon
    /// divergence of their patterns over ln 2, where predictions are made; of the last layer.
    Patterns,
    /// Whether heads write alike: `cka`, the mean over pairs of the last layer's heads that are not dead, and `cka_gain`:
    /// (cka - cka at step 0) / (1 - cka at step 0), since wide heads are alike before any training.
    Written,
    /// Who gets which gradient in the last layer: `gradient_share`, by head and task.
    Gradients,
    /// How much of what heads other than 0 do is this task's, `others_share`: their positive Shapley values of it over those
    /// of all tasks; missing where they do less than 0.1 nat. And `others_gradient_share`, the same of squared gradients.
    Others(
        /// The task, as its place in the language's list.
        usize,
    ),
    /// Roles: for each kind of dependency, the head that looks most at its source in one half of the held-out sequences,
    /// judged on the other half: `role_attention`; `role_score`, the same less that of the best fixed offset; `role_cost`,
    /// what the task's loss rises by without the head, less what it rises by without another head of its layer, in nats.
    Roles,
    /// How much a linear reader gets of each task's answer from each head's z, and how heads divide it: `information` in nats
    /// by head and task; of the whole, where all heads together have 0.1 nat, `information_specialisation`.
    Information,
    /// The loss with every head's QK product cut to a rank: `excess_loss_at_rank`, by `component` (the rank).
    Truncated,
}

impl Training {
    pub(super) fn compute(&self, _seeds: &[u64]) -> Result<Vec<Observation>> {
        Ok(vec![])
    }
}
