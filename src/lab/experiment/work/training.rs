//! Models trained on a language and asked questions on the way.

use serde::{Deserialize, Serialize};

use super::Computed;
use super::measure::{self, Asked};
use crate::error::{Error, Result};
use crate::lab::language::Language;
use crate::lab::streams::Purpose;
use crate::lab::train::{HeadOptions, TrainOptions, Trainer, shuffled_head, transplanted};
use crate::model::{Model, ModelConfig};
use crate::stats::shuffled;
use crate::table::Observation;
use tch::Tensor;

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
    /// How training goes on behind its last step, where it does: what is asked is asked again, as often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
}

/// More training with other heads frozen or scaled than before, as where one is deleted. It starts anew in all but the
/// parameters: the optimiser's moments, the schedule, the stream of sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// For how many more steps.
    pub steps: usize,
    /// What is different about some heads from here on.
    pub heads: HeadOptions,
}

/// What training starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Parameters drawn at random.
    Fresh,
    /// Head 0 of layer 0 has a content of its own, and embeddings, norms and unembedding go with it: they come from models
    /// in which head 0 alone has learned one task. The other heads are drawn at random.
    Taken {
        /// The task that head 0 has learned, as its place in the language's list.
        task: usize,
        /// For how many steps.
        steps: usize,
        /// What head 0 then is.
        occupant: Occupant,
    },
}

/// What stands in the place of head 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occupant {
    /// The head that has solved the task.
    Solved,
    /// A head drawn at random.
    Random,
    /// The head that has solved the task, with the dimensions of the stream that it reads and writes shuffled.
    Shuffled,
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
    /// Whether heads read and write alike by their weights: `query_overlap`, `key_overlap`, `value_overlap` and
    /// `write_overlap`, means over pairs of the last layer's heads of the mean squared cosine of the principal angles between
    /// their subspaces; of random ones d_head / d_model.
    Overlaps,
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
    /// What cutting every head's QK product to rank 1, 2, 4, ... adds to the excess loss: `truncation_cost_1`, ...
    Truncated,
}

impl Training {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        if self.records < 2 || self.held_out < 2 {
            let found = format!("{} and {}", self.records, self.held_out);
            return Err(Error::argument("records, held_out", "2 or more of each", found));
        }
        let mut trainer = self.begin(seeds)?;
        let mut rows = self.asked(&mut trainer, &self.train, seeds)?;
        if let Some(After { steps, heads }) = &self.after {
            let train = TrainOptions { steps: *steps, heads: heads.clone(), ..self.train.clone() };
            trainer = Trainer::from_models(trainer.snapshots(), &self.language, &train, seeds)?;
            let mut more = self.asked(&mut trainer, &train, seeds)?;
            let before = self.train.steps as u32;
            more.iter_mut().for_each(|row| row.keys.step = row.keys.step.map(|step| step + before));
            rows.retain(|row| row.keys.step != Some(before)); // asked again of the heads as they are from here on
            rows.append(&mut more);
        }
        let hash = |(&seed, model): (&u64, Model)| Ok((seed, model.sha256()?));
        let parameters = seeds.iter().zip(trainer.snapshots()).map(hash).collect::<Result<_>>()?;
        Ok(Computed { rows, parameters, read: vec![] })
    }

    /// Trains to the last step, and asks on the way.
    fn asked(&self, trainer: &mut Trainer, train: &TrainOptions, seeds: &[u64]) -> Result<Vec<Observation>> {
        let batch = |number: u64| {
            let of = |seed: &u64| self.language.batch(self.held_out, *seed, number);
            seeds.iter().map(of).collect::<Result<Vec<_>>>()
        };
        let (batches, others) = (batch(u64::MAX)?, batch(u64::MAX - 1)?);
        let tasks = self.language.tasks();
        let (mut rows, mut start) = (vec![], measure::Start::default());
        for record in 0..self.records {
            let step = train.steps * record / (self.records - 1);
            trainer.train_to(step)?;
            let asked = Asked {
                probe: &trainer.probe(&batches)?,
                other: &trainer.probe(&others)?,
                model: &trainer.models()?,
                language: &self.language,
                batches: &batches,
                tasks: &tasks,
                seeds,
                step,
                layers: self.model.n_layers,
                heads: self.model.n_heads,
                width: self.model.d_head,
            };
            rows.extend(asked.losses()?);
            for &measure in &self.measures {
                rows.extend(asked.measure(measure, &mut start)?);
            }
        }
        Ok(rows)
    }

    fn begin(&self, seeds: &[u64]) -> Result<Trainer> {
        let Start::Taken { task, steps, occupant } = self.start else {
            return Trainer::with_seeds(&self.model, &self.language, &self.train, seeds);
        };
        let tasks = self.language.tasks().len();
        if task >= tasks || self.model.n_heads < 2 {
            let expected = format!("a task below {tasks}, and two heads or more");
            return Err(Error::argument("taken", expected, format!("task {task}, {} heads", self.model.n_heads)));
        }
        let silent = (1..self.model.n_heads).map(|head| (0, head, 0.0)).collect();
        let heads = HeadOptions { scaled: silent, ..HeadOptions::default() };
        let task_weights = (0..tasks).map(|other| f64::from(u8::from(other == task))).collect();
        let first = TrainOptions { steps, heads, task_weights, ..self.train.clone() };
        let solved = Trainer::with_seeds(&self.model, &self.language, &first, seeds)?.run()?;
        let fresh =
            Trainer::with_seeds(&self.model, &self.language, &TrainOptions { steps: 0, ..first }, seeds)?.run()?;
        let filled = solved.iter().zip(fresh).zip(seeds).map(|((solved, fresh), &seed)| {
            let others = 1..self.model.n_heads;
            let model = others.fold(solved.model.with_parameters(Tensor::shallow_clone), |model, head| {
                transplanted(&model, &fresh.model, 0, head)
            });
            match occupant {
                Occupant::Solved => model,
                Occupant::Random => transplanted(&model, &fresh.model, 0, 0),
                Occupant::Shuffled => {
                    let order: Vec<i64> = (0..self.model.d_model as i64).collect();
                    shuffled_head(&model, 0, 0, &shuffled(&order, Purpose::Order.seed(seed)))
                }
            }
        });
        Trainer::from_models(filled.collect(), &self.language, &self.train, seeds)
    }
}
