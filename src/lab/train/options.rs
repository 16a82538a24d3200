//! How to train.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lab::trace::Quantity;

/// Most steps of a training.
const MOST_STEPS: usize = 1_000_000_000;

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Steps in all.
    pub steps: usize,
    /// Sequences a step.
    pub batch: usize,
    /// Seed of the parameters and of the stream of sequences.
    pub seed: u64,
    /// The rule by which parameters change.
    pub optimiser: Optimiser,
    /// Its largest step size.
    pub learning_rate: f64,
    /// Steps over which the step size rises from 0.
    pub warmup: usize,
    /// How it falls afterwards.
    pub decay: Decay,
    /// Pull of the matrices towards 0; biases and norms feel none.
    pub weight_decay: f64,
    /// Largest norm of a gradient; longer ones are shortened.
    pub clip: Option<f64>,
    /// Standard deviation of the token embeddings at the start; positions have half of it. Matrices start with variance
    /// 1 / inputs, so that attention logits have the same variance whatever the width of a head.
    pub embedding_std: f64,
    /// Weight of each task in the loss that training follows; none for all alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub task_weights: Vec<f64>,
    /// Steps between two records of the loss.
    pub record_every: usize,
    /// What is measured of heads on the way; nothing, unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceOptions>,
    /// What is different about some heads.
    pub heads: HeadOptions,
}

/// What is measured of heads during training: rows of the trace, on sequences that are not trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceOptions {
    /// Steps between two measurements. The first is before any training, the last behind all of it.
    pub every: usize,
    /// Held-out sequences of each run.
    pub rows: usize,
    /// What is measured; losses and accuracies are called `held_out_loss` and `held_out_accuracy`.
    pub quantities: Vec<Quantity>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { every: 200, rows: 32, quantities: Quantity::ALL.to_vec() }
    }
}

/// What is different about some heads: they share the forward pass with all others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadOptions {
    /// All heads of a layer start as copies of its first.
    pub identical: bool,
    /// Where they do, each is then moved by Gaussian noise of this standard deviation, relative to that of the tensor.
    pub perturbation: f64,
    /// Heads (layer, head) whose parameters stay as they are.
    pub frozen: Vec<(usize, usize)>,
    /// Heads (layer, head) whose z is multiplied by a factor.
    pub scaled: Vec<(usize, usize, f64)>,
    /// Where given, every head's z is brought to a root mean square of 1 and Gaussian noise of this standard deviation is
    /// added in training: at most `d_head / 2 ln(1 + 1 / sigma^2)` nats pass. What is asked of a model is asked without
    /// the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
}

/// The rule by which parameters change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimiser {
    /// Adam (Kingma & Ba 2015); weight decay is added to the gradient.
    Adam,
    /// AdamW (Loshchilov & Hutter 2019); weight decay is apart from the gradient.
    AdamW,
    /// Stochastic gradient descent; weight decay is added to the gradient.
    Sgd {
        /// Share of the last step that is taken again.
        momentum: f64,
    },
}

/// How the step size falls from the end of the warm-up to the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Not at all.
    None,
    /// In a straight line to 0.
    Linear,
    /// Along half a cosine to 0.
    Cosine,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 2000,
            batch: 64,
            seed: 0,
            optimiser: Optimiser::AdamW,
            learning_rate: 3e-3,
            warmup: 50,
            decay: Decay::Cosine,
            weight_decay: 0.0,
            clip: Some(1.0),
            embedding_std: 0.3,
            task_weights: vec![],
            record_every: 50,
            trace: None,
            heads: HeadOptions::default(),
        }
    }
}

impl TrainOptions {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first that does not.
    pub fn validate(&self) -> Result<()> {
        let (every, rows, asked) =
            self.trace.as_ref().map_or((1, 1, 1), |trace| (trace.every, trace.rows, trace.quantities.len()));
        let least_one = [
            ("batch", self.batch),
            ("record_every", self.record_every),
            ("trace.every", every),
            ("trace.rows", rows),
            ("trace.quantities", asked),
        ];
        for (name, value) in least_one {
            if value == 0 {
                return Err(Error::argument(name, "at least 1", value));
            }
        }
        crate::take::at_most("steps", self.steps, MOST_STEPS, "a step of training")?;
        let momentum = if let Optimiser::Sgd { momentum } = self.optimiser { momentum } else { 0.0 };
        let positive = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("clip", self.clip.unwrap_or(1.0)),
            ("embedding_std", self.embedding_std),
            ("momentum", momentum),
            ("perturbation", self.heads.perturbation),
            ("noise", self.heads.noise.unwrap_or(0.0)),
        ];
        let weights = self.task_weights.iter().map(|weight| ("task_weights", *weight));
        let positive: Vec<(&str, f64)> = positive.into_iter().chain(weights).collect();
        match positive.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            Some((name, value)) => Err(Error::argument(name, "a finite number, at least 0", value)),
            None => Ok(()),
        }
    }

    /// The step size at `step`, counted from 0.
    pub(super) fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / self.steps.saturating_sub(self.warmup).max(1) as f64;
        self.learning_rate
            * match self.decay {
                Decay::None => 1.0,
                Decay::Linear => 1.0 - done,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}
