//! How do trained models change during training? Models trained on a language and measured along the way.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::complexity::{self, Complexity};
use super::course::{Spacing, late_change, loss_steps, rounded};
use super::measure::{self, Asked, excess};
use super::{Computed, Input, order, row};
use crate::error::{Error, Result};
use crate::file;
use crate::lab::language::Language;
use crate::lab::streams::Purpose;
use crate::lab::train::{HeadOptions, TrainOptions, Trainer, shuffled_head, transplanted};
use crate::lab::verdict::EXCESS_LOSS;
use crate::model::{Model, ModelConfig};
use crate::stats::shuffled;
use crate::table::Observation;
use tch::Tensor;

/// Models trained on a language, one per seed, stacked, and measured during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The architecture.
    pub model: ModelConfig,
    /// The language.
    pub language: Language,
    /// Training options; the seed is replaced by the run's.
    pub train: TrainOptions,
    /// The initial parameters.
    pub start: Start,
    /// What to measure.
    pub measures: Vec<Measurement>,
    /// Number of steps at which to measure, including the first and the last. Between them, only the excess loss is
    /// recorded, every 20 steps.
    pub records: usize,
    /// How those steps are spaced.
    #[serde(default, skip_serializing_if = "Spacing::is_even")]
    pub spacing: Spacing,
    /// Held-out sequences per run.
    pub held_out: usize,
    /// The layer whose heads are measured; the last by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// An optional second phase of training, measured in the same way and equally often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
}

/// A second phase of training, with other heads frozen or scaled than in the first; a scale of 0 deletes a head. Only
/// the parameters carry over: the optimiser's moments, the schedule and the stream of sequences restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// Number of additional steps.
    pub steps: usize,
    /// Head options from here on.
    pub heads: HeadOptions,
}

/// Initial parameters of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Random parameters.
    Fresh,
    /// Head 0 of layer 0 is prescribed, as are the embeddings, norms and unembedding: they come from models in which
    /// head 0 alone has learned one task. The other heads are random.
    Taken {
        /// The task that head 0 has learned, as an index into the language's tasks.
        task: usize,
        /// Number of steps for which head 0 is trained.
        steps: usize,
        /// What is then put in place as head 0.
        occupant: Occupant,
    },
}

/// The head that takes position 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occupant {
    /// The head that has solved the task.
    Solved,
    /// A randomly initialised head.
    Random,
    /// The head that has solved the task, with the dimensions of the residual stream that it reads and writes shuffled.
    Shuffled,
}

/// A measurement of a cell's models, taken at every recorded step. `loss` and `accuracy` of each task and `excess_loss`
/// are always measured, and at the end `late_change`: by how much the excess loss changes over the last tenth of the
/// steps, near 0 once training has converged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measurement {
    /// How the measured layer's heads divide the tasks, by Shapley values under mean ablation. Per head and task:
    /// `shapley`, in nats. Per run: `total_effect`, the nats by which all heads of the layer together reduce the mean
    /// task's loss, and, if that is at least 0.1, `specialisation` (0 to 1) and `participation` (heads per task).
    Division,
    /// How differently the measured layer's heads attend: `pattern_divergence`, the mean over pairs of heads of the
    /// Jensen-Shannon divergence of their patterns divided by ln 2, at the positions where predictions are made. With
    /// several layers also `pattern_divergence_by_layer`, whose task names the layer.
    Patterns,
    /// How similar the measured layer's head outputs are: `cka`, the mean over pairs of heads that are not dead, and
    /// `cka_gain`, (cka - cka at step 0) / (1 - cka at step 0), since wide heads are similar before any training.
    Written,
    /// How similar the subspaces are that the measured layer's heads read and write: `query_overlap`, `key_overlap`,
    /// `value_overlap` and `write_overlap`. Each is the mean over pairs of heads of the mean squared cosine of the
    /// principal angles between their subspaces; its expectation for random subspaces is d_head / d_model.
    Overlaps,
    /// How each task's gradient is distributed over the measured layer's heads: `gradient_share`, by head and task.
    Gradients,
    /// How much of the work of heads other than 0 goes to one task: `others_share`, their positive Shapley values for
    /// the task over those for all tasks, missing if the total is below 0.1 nat; `others_gradient_share`, the same ratio
    /// of squared gradients; and `others_added_share`, the same ratio of what they add together where head 0 is present.
    Others(
        /// The task, as an index into the language's tasks.
        usize,
    ),
    /// Roles of heads, chosen on one half of the held-out sequences and judged on the other. A head has a role if its
    /// attention to the sources of a kind of dependency exceeds both what the best fixed offset and what uniform attention
    /// gives by .1. For each kind (as `task`):
    ///
    /// - `role_attention`, the best head's attention to the sources, and `role_beyond`, by how much it exceeds both;
    /// - `role_heads`, the number of heads with the role;
    /// - `role_group_cost`, the increase of the task's loss without all of them where it is predicted, as a share of the
    ///   learnable loss (chance minus floor), 0 if there is none; `role_control_cost`, the same for random groups of as many
    ///   other heads; and `role_needed`, the difference;
    /// - `role_exclusive`, the best head's share of what all heads do there: its Shapley value beside the others as one
    ///   player; missing if all together are worth less than a tenth of the learnable loss.
    ///
    /// And per run `position_share`, the largest share of attention that a head has at a fixed distance.
    Roles,
    /// How much a linear probe can read of each task's answer from each head's z, and how the heads divide it:
    /// `information` in nats by head and task; per run and task, `information_share`, what the best head carries over
    /// chance; per run, `information_specialisation` and `information_division` if all heads together carry at least 0.1
    /// nat.
    Information,
    /// Increase of the excess loss when every head's QK product is truncated to rank 1, 2, 4, ...: `truncation_cost_1`,
    /// ...
    Truncated,
    /// How large the measured layer's weights are: `weight_norm`, the Frobenius norm of W_Q, W_K, W_V and W_O together.
    Norms,
    /// Whether what lowers the loss most is learned first: before training, `initial_rate` of each task, the rate at
    /// which its loss falls if all parameters follow the gradient of the training loss; after the last step,
    /// `learned_at` by task, the step at which half of its learnable loss is gone, and `order_correlation`, the rank
    /// correlation of the two over tasks, 1 if the order is the same.
    Order,
    /// How many directions of each head's parameters matter: `llc`, its refined local learning coefficient, beside
    /// `attention_to_source`, its attention to the sources of the first task. Per run: `llc_role` of the head that ends
    /// with the most attention to them, `llc_others`, the mean of the other heads of its layer, and after the last step
    /// `llc_rise_over_others`, how much more the first rose than the second, over the layer's mean.
    Complexity(Complexity),
}

impl Training {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        if self.records < 2 || self.held_out < 2 {
            let found = format!("{} and {}", self.records, self.held_out);
            return Err(Error::argument("records, held_out", "at least 2 of each", found));
        }
        if let Some(layer) = self.layer.filter(|layer| *layer >= self.model.n_layers) {
            return Err(Error::argument("layer", format!("below {}", self.model.n_layers), layer));
        }
        let mut trainer = self.begin(seeds)?;
        let mut rows = self.asked(&mut trainer, &self.train, seeds)?;
        if let Some(After { steps, heads }) = &self.after {
            let train = TrainOptions { steps: *steps, heads: heads.clone(), ..self.train.clone() };
            trainer = Trainer::from_models(trainer.snapshots(), &self.language, &train, seeds)?;
            let mut more = self.asked(&mut trainer, &train, seeds)?;
            let before = self.train.steps as u32;
            more.iter_mut().for_each(|row| row.keys.step = row.keys.step.map(|step| step + before));
            rows.retain(|row| row.keys.step != Some(before)); // measured again below, with the new head options
            rows.append(&mut more);
        }
        if self.measures.contains(&Measurement::Order) {
            rows.extend(order::order(&rows, &self.language.tasks(), &self.train.task_weights));
        }
        if self.measures.iter().any(|measure| matches!(measure, Measurement::Complexity(_))) {
            rows.extend(complexity::rises(&rows));
        }
        let hash = |(&seed, model): (&u64, Model)| Ok((seed, model.sha256()?));
        let parameters = seeds.iter().zip(trainer.snapshots()).map(hash).collect::<Result<_>>()?;
        Ok(Computed { rows, parameters, read: self.inputs()? })
    }

    /// The file with the text that models are trained on, if there is one, with its hash.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        let path = if let Language::Text(text) = &self.language { text.file() } else { None };
        let input = |path: &PathBuf| {
            Ok(Input { name: path.display().to_string(), sha256: file::sha256_of(&[file::found(path)])? })
        };
        path.map(input).into_iter().collect()
    }

    /// Trains to the last step and measures along the way.
    fn asked(&self, trainer: &mut Trainer, train: &TrainOptions, seeds: &[u64]) -> Result<Vec<Observation>> {
        let batch = |number: u64| {
            let of = |seed: &u64| self.language.batch(self.held_out, *seed, number);
            seeds.iter().map(of).collect::<Result<Vec<_>>>()
        };
        let (batches, others) = (batch(u64::MAX)?, batch(u64::MAX - 1)?);
        let tasks = self.language.tasks();
        let (mut rows, mut start) = (vec![], measure::Start::default());
        let records = self.spacing.steps(self.records, train.steps);
        let mut courses = vec![vec![]; seeds.len()];
        for step in records.iter().copied().chain(loss_steps(train.steps)).collect::<BTreeSet<_>>() {
            trainer.train_to(step)?;
            let probe = &trainer.probe(&batches)?;
            let losses = probe.losses()?;
            for (run, course) in courses.iter_mut().enumerate() {
                course.push((step, excess(&losses, &tasks, run)));
            }
            if !records.contains(&step) {
                let last = seeds.iter().zip(&courses).filter_map(|(seed, course)| Some((*seed, course.last()?.1)));
                rows.extend(last.map(|(seed, loss)| row(seed, step, EXCESS_LOSS, rounded(loss))));
                continue;
            }
            let asked = Asked {
                probe,
                other: &trainer.probe(&others)?,
                model: &trainer.models()?,
                language: &self.language,
                batches: &batches,
                tasks: &tasks,
                weights: &train.task_weights,
                seeds,
                step,
                layers: self.model.n_layers,
                layer: self.layer.unwrap_or(self.model.n_layers - 1),
                heads: self.model.n_heads,
                width: self.model.d_head,
            };
            rows.extend(asked.losses(&losses));
            for &measure in &self.measures {
                rows.extend(asked.measure(measure, &mut start)?);
            }
        }
        let late = seeds.iter().zip(&courses);
        rows.extend(
            late.map(|(seed, course)| row(*seed, train.steps, "late_change", late_change(course, train.steps))),
        );
        Ok(rows)
    }

    fn begin(&self, seeds: &[u64]) -> Result<Trainer> {
        let Start::Taken { task, steps, occupant } = self.start else {
            return Trainer::with_seeds(&self.model, &self.language, &self.train, seeds);
        };
        let tasks = self.language.tasks().len();
        if task >= tasks || self.model.n_heads < 2 {
            let expected = format!("a task below {tasks}, and at least two heads");
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
