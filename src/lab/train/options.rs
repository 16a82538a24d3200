//! How is a model trained? Optimiser, schedule, trace and head options, as data.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lab::trace::Quantity;

/// Maximum number of training steps.
const MOST_STEPS: usize = 1_000_000_000;

/// Options for training a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Total number of steps.
    pub steps: usize,
    /// Sequences per step.
    pub batch: usize,
    /// Seed of the parameters and of the training sequences.
    pub seed: u64,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Number of steps over which the learning rate rises from 0.
    pub warmup: usize,
    /// How the learning rate decays after the warm-up.
    pub decay: Decay,
    /// Weight decay of the matrices; biases and norms have none.
    pub weight_decay: f64,
    /// Maximum gradient norm; larger gradients are scaled down.
    pub clip: Option<f64>,
    /// Standard deviation of the initial token embeddings; positional embeddings have half of it. Matrices are
    /// initialised with variance 1 / inputs, so that attention logits have the same variance for every d_head.
    pub embedding_std: f64,
    /// Weight of each task in the training loss; if empty, all tasks have the same weight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub task_weights: Vec<f64>,
    /// Steps between two records of the loss.
    pub record_every: usize,
    /// What to measure of the heads during training; `None` (the default) measures nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceOptions>,
    /// Head options: copies, freezing, scaling and noise.
    pub heads: HeadOptions,
}

/// What to measure of the heads during training; adds rows to the trace, measured on held-out sequences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceOptions {
    /// Steps between two measurements. The first is before training, the last after the final step.
    pub every: usize,
    /// Held-out sequences per run.
    pub rows: usize,
    /// The quantities to measure; losses and accuracies are recorded as `held_out_loss` and `held_out_accuracy`.
    pub quantities: Vec<Quantity>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { every: 200, rows: 32, quantities: Quantity::ALL.to_vec() }
    }
}

/// Special treatment of some or all heads; it is applied within the normal forward pass.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadOptions {
    /// Whether all heads of a layer start as copies of its first.
    pub identical: bool,
    /// If `identical`, the standard deviation of Gaussian noise added to each head, relative to that of the tensor.
    pub perturbation: f64,
    /// Heads (layer, head) whose parameters are frozen.
    pub frozen: Vec<(usize, usize)>,
    /// Heads (layer, head) whose z is multiplied by a factor.
    pub scaled: Vec<(usize, usize, f64)>,
    /// If given, every head's z is normalised to a root mean square of 1, and Gaussian noise with this standard
    /// deviation is added during training. This limits a head to at most `d_head / 2 ln(1 + 1 / sigma^2)` nats.
    /// Measurements are taken without the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// If given, competition between heads as a dose from 0 to 1: each head is trained on the loss of its own output
    /// plus this share of the sum of the others', without a gradient to them. At 1, all gradients are those of ordinary
    /// training; at 0, each head learns as if it were alone. Only for one attention-only layer.
    ///
    /// Measurements are taken with every head's output scaled by `(1 + dose (H - 1)) / H`: the mean over heads of the
    /// share of all outputs' sum that a head is trained with. It is 1 at a dose of 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub competition: Option<f64>,
    /// If given, the largest rank of every head's `W_Q W_K^T`: dimensions of its queries and keys from this one on are
    /// 0, and stay so. The others start larger by `(d_head / rank)^(1/4)`, so that attention logits have the same
    /// variance for every rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_rank: Option<usize>,
    /// If given, the largest rank of every head's `W_V W_O`, in the same way: what heads write starts with the same
    /// variance for every rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ov_rank: Option<usize>,
}

impl HeadOptions {
    /// The number of dimensions that a head uses of a part (`w_q`, `b_v`, ...), if that is limited.
    pub(super) fn rank_of(&self, part: &str) -> Option<usize> {
        if ["w_q", "w_k", "b_q", "b_k"].contains(&part) { self.qk_rank } else { self.ov_rank }
    }
}

/// The rule that updates the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimiser {
    /// Adam (Kingma & Ba 2015); weight decay is added to the gradient.
    Adam,
    /// AdamW (Loshchilov & Hutter 2019); weight decay is decoupled from the gradient.
    AdamW,
    /// Stochastic gradient descent; weight decay is added to the gradient.
    Sgd {
        /// Fraction of the previous update that is added to the current one.
        momentum: f64,
    },
}

/// How the learning rate decays from the end of the warm-up to the last step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Constant.
    None,
    /// Linearly to 0.
    Linear,
    /// Along half a cosine to 0.
    Cosine,
    /// Constant, then along half a cosine to 0 over this last fraction of all steps. Longer training then only prolongs
    /// the constant part, so that a run can be long enough to converge without learning more slowly.
    Late(f64),
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
    /// Checks that the options are valid.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first invalid one.
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
        if let Decay::Late(fraction) = self.decay
            && !(fraction > 0.0 && fraction <= 1.0)
        {
            return Err(Error::argument("decay", "a fraction of the steps above 0 and at most 1", fraction));
        }
        if let Some(dose) = self.heads.competition.filter(|dose| !(0.0..=1.0).contains(dose)) {
            return Err(Error::argument("competition", "a dose from 0 to 1", dose));
        }
        let weights = self.task_weights.iter().map(|weight| ("task_weights", *weight));
        let positive: Vec<(&str, f64)> = positive.into_iter().chain(weights).collect();
        match positive.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            Some((name, value)) => Err(Error::argument(name, "a finite number, at least 0", value)),
            None => Ok(()),
        }
    }

    /// The learning rate at `step`, counted from 0.
    pub(super) fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let left = self.steps.saturating_sub(step) as f64;
        let done = (step - self.warmup) as f64 / self.steps.saturating_sub(self.warmup).max(1) as f64;
        self.learning_rate
            * match self.decay {
                Decay::Late(fraction) => {
                    let left = (left / (fraction * self.steps as f64)).min(1.0);
                    0.5 * (1.0 - (std::f64::consts::PI * left).cos())
                }
                Decay::None => 1.0,
                Decay::Linear => 1.0 - done,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}
