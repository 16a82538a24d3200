//! What is measured on a run? One number per prompt, or per token.

mod attribution;
mod evaluate;
mod gradient;
mod several;

use std::fmt;
use std::sync::Arc;

use tch::Tensor;

pub use self::attribution::{direct_attribution, logit_lens};
pub(super) use self::evaluate::{Output, Readout};
pub(super) use self::several::{Cell, Readouts};
use crate::error::{Error, Result};
use crate::model::{Model, Prompts, Run, Tokens, in_turn};

/// What to measure on a run: one number per prompt, or per token ([`Metric::by_token`]).
#[derive(Clone)]
pub enum Metric {
    /// Mean of -ln p(next token) over all positions of a prompt except the last, in nats. A bidirectional model with
    /// logits is scored on the token at each position itself.
    Loss,
    /// Share of those tokens that are the model's first choice, that is, no other token has a larger logit.
    Accuracy,
    /// Mean over positions of KL(p without the intervention || p with it), in nats.
    Kl,
    /// Logit of the answer at the prompt's last token.
    Logit(Answer),
    /// Logit of the first answer minus that of the second, at the prompt's last token.
    LogitDifference(Answer, Answer),
    /// Probability of the answer at the prompt's last token.
    Probability(Answer),
    /// How many tokens have a larger logit than the answer at the prompt's last token; 0 is the model's first choice.
    Rank(Answer),
    /// Cosine distance between the mean-pooled final residual streams with and without the intervention; 0 is no
    /// change.
    EmbeddingDistance,
    /// A function of your own from logits `[batch, position, vocab]` to `[batch]`. Functions cannot be compared, so a
    /// journal recognises this metric by its name and version: change the version whenever you change the function.
    Custom {
        /// Name in tables.
        name: String,
        /// Version in provenance.
        version: Option<String>,
        /// The function.
        read: Reading,
    },
}

/// A user-defined function of the logits: `[batch, position, vocab]` to `[batch]`.
pub type Reading = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// A token that a metric asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A text that is a single token, such as `" Mary"`.
    Text(String),
    /// A token id.
    Id(i64),
    /// A token id for each prompt.
    PerPrompt(Vec<i64>),
    /// A text for each prompt, each a single token.
    Texts(Vec<String>),
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<&str>> for Answer {
    fn from(texts: Vec<&str>) -> Self {
        Self::Texts(texts.into_iter().map(str::to_owned).collect())
    }
}

impl From<i64> for Answer {
    fn from(id: i64) -> Self {
        Self::Id(id)
    }
}

impl From<Vec<i64>> for Answer {
    fn from(ids: Vec<i64>) -> Self {
        Self::PerPrompt(ids)
    }
}

impl Answer {
    /// The token id for each prompt of a batch.
    pub(in crate::intervene) fn ids(&self, model: &Model, batch: usize) -> Result<Vec<i64>> {
        let vocab = model.config().vocab as i64;
        let ids = match self {
            Self::Text(text) => vec![model.token(text)?; batch],
            Self::Id(id) => vec![*id; batch],
            Self::PerPrompt(ids) => ids.clone(),
            Self::Texts(texts) => texts.iter().map(|text| model.token(text)).collect::<Result<_>>()?,
        };
        if ids.len() != batch {
            return Err(Error::argument("answers", format!("one for each of {batch} prompts"), ids.len()));
        }
        match ids.iter().find(|id| !(0..vocab).contains(id)) {
            Some(&found) => Err(Error::OutOfRange { at: "answers".into(), axis: "vocab", found, limit: vocab }),
            None => Ok(ids),
        }
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers: Vec<String> = self.answers().into_iter().map(|answer| format!("{answer:?}")).collect();
        match answers.as_slice() {
            [] if matches!(self, Self::Custom { .. }) => {
                f.write_str(self.name())?;
                let Self::Custom { version: Some(version), .. } = self else {
                    return f.write_str(", without a version");
                };
                write!(f, ", version {version}")
            }
            [] => f.write_str(self.name()),
            answers => write!(f, "{}({})", self.name(), answers.join(", ")),
        }
    }
}

impl Metric {
    /// [`Metric::Logit`] of a text, a token id, or one id per prompt.
    pub fn logit(answer: impl Into<Answer>) -> Self {
        Self::Logit(answer.into())
    }

    /// [`Metric::LogitDifference`] of texts, token ids, or one id per prompt each.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let texts = Metric::logit_difference(vec![" Mary", " John"], vec![" John", " Mary"]); // of two prompts
    /// let metric = Metric::logit_difference(vec![3, 5], vec![4, 6]); // the same by token ids
    /// assert_eq!((metric.name(), metric.unit()), (texts.name(), "logits"));
    /// ```
    pub fn logit_difference(correct: impl Into<Answer>, wrong: impl Into<Answer>) -> Self {
        Self::LogitDifference(correct.into(), wrong.into())
    }

    /// The logit difference between the right and the wrong answers of pairs of prompts. `None` if they have none.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let pair = Pair::new("the cat and the head", "the dog and the head").answers(3, 4);
    /// assert!(Metric::of_answers(&model.prompts([pair])?).is_some());
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn of_answers(prompts: &Prompts) -> Option<Self> {
        let (right, wrong): (Vec<i64>, Vec<i64>) = prompts.answers().iter().copied().unzip();
        (!right.is_empty()).then(|| Self::logit_difference(right, wrong))
    }

    /// [`Metric::Probability`] of a text, a token id, or one id per prompt.
    pub fn probability(answer: impl Into<Answer>) -> Self {
        Self::Probability(answer.into())
    }

    /// [`Metric::Rank`] of a text, a token id, or one id per prompt.
    pub fn rank(answer: impl Into<Answer>) -> Self {
        Self::Rank(answer.into())
    }

    /// [`Metric::Custom`] without a version. A sweep with it cannot keep a journal.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let margin = Metric::custom("margin", |logits| {
    ///     let (top, _) = logits.select(1, -1).topk(2, -1, true, true); // [batch, 2], at the last position
    ///     Ok(top.select(1, 0) - top.select(1, 1)) // [batch]
    /// });
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(margin).run()?;
    /// assert!(table.f64("value")?.iter().all(|&margin| margin >= 0.0));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn custom(name: &str, read: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Self {
        Self::Custom { name: name.to_owned(), version: None, read: Arc::new(in_turn(read)) }
    }

    /// [`Metric::Custom`] with a version, to be changed whenever the function changes.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let largest = Metric::versioned("largest", "1", |logits| Ok(logits.select(1, -1).amax(-1, false)));
    /// assert_eq!(format!("{largest:?}"), "largest, version 1"); // as in provenance
    /// assert_eq!(Sweep::ablate(&model, &tokens, Ablation::Zero).metric(largest).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn versioned(name: &str, version: &str, read: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Self {
        Self::Custom { name: name.to_owned(), version: Some(version.to_owned()), read: Arc::new(in_turn(read)) }
    }

    /// Fails if a journal could not tell this metric from another.
    pub(super) fn check_told_apart(&self) -> Result<()> {
        let Self::Custom { name, version: None, .. } = self else { return Ok(()) };
        let expected = "a metric that is told from others: Metric::versioned(name, version, function) instead of \
                        Metric::custom, with another version whenever the function changes";
        Err(Error::argument("journal", expected, format!("`{name}` without a version")))
    }

    /// The metric of a run that has tapped the logits, one value for each prompt. A model without logits must have tapped
    /// its last `resid_post`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
    /// let run = model.run(&tokens, &Plan::new().edit(Edit::new(Site::Z(1), Action::Zero).head(2)).tap(Site::Logits))?;
    /// let difference = Metric::logit_difference(3, 4).of(&model, &run)?;
    /// assert_eq!(difference.len(), 2);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the run did not tap its end, or the metric does not fit the model or the prompts. Metrics that compare with the
    /// unchanged run (`kl`, `embedding_distance`) run the prompts once more.
    pub fn of(&self, model: &Model, run: &Run) -> Result<Vec<f64>> {
        gradient::values(self, model, run)
    }

    /// The name in tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::Kl => "kl",
            Self::Logit(_) => "logit",
            Self::LogitDifference(..) => "logit_difference",
            Self::Probability(_) => "probability",
            Self::Rank(_) => "rank",
            Self::EmbeddingDistance => "embedding_distance",
            Self::Custom { name, .. } => name,
        }
    }

    /// The unit of the values; empty if they have none.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Loss | Self::Kl => "nats",
            Self::Logit(_) | Self::LogitDifference(..) => "logits",
            Self::Rank(_) => "tokens",
            Self::EmbeddingDistance => "cosine distance",
            Self::Accuracy | Self::Probability(_) | Self::Custom { .. } => "",
        }
    }

    /// The unit, if there is one, as it stands in a table.
    pub(in crate::intervene) fn unit_of_rows(&self) -> Option<String> {
        Some(self.unit().to_owned()).filter(|unit| !unit.is_empty())
    }

    /// Whether the metric is a mean over a prompt's tokens, with a value for each token.
    pub fn by_token(&self) -> bool {
        matches!(self, Self::Loss | Self::Accuracy | Self::Kl)
    }

    /// Whether the metric compares with the unchanged run, where its value and its gradient are therefore zero.
    pub(in crate::intervene) fn is_relative(&self) -> bool {
        matches!(self, Self::Kl | Self::EmbeddingDistance)
    }

    /// The metric for prompts `first..first + n` of a batch of `of`.
    pub(in crate::intervene) fn of_prompts(&self, first: usize, n: usize, of: usize) -> Result<Self> {
        let some = |answer: &Answer| match answer {
            Answer::PerPrompt(ids) if ids.len() != of => {
                Err(Error::argument("answers", format!("one for each of {of} prompts"), ids.len()))
            }
            Answer::PerPrompt(ids) => Ok(Answer::PerPrompt(ids[first..first + n].to_vec())),
            Answer::Texts(texts) if texts.len() != of => {
                Err(Error::argument("answers", format!("one for each of {of} prompts"), texts.len()))
            }
            Answer::Texts(texts) => Ok(Answer::Texts(texts[first..first + n].to_vec())),
            other => Ok(other.clone()),
        };
        Ok(match self {
            Self::Logit(answer) => Self::Logit(some(answer)?),
            Self::LogitDifference(correct, wrong) => Self::LogitDifference(some(correct)?, some(wrong)?),
            Self::Probability(answer) => Self::Probability(some(answer)?),
            Self::Rank(answer) => Self::Rank(some(answer)?),
            other => other.clone(),
        })
    }

    /// The answers that it scores at each prompt's last token.
    pub(in crate::intervene) fn answers(&self) -> Vec<&Answer> {
        match self {
            Self::Logit(answer) | Self::Probability(answer) | Self::Rank(answer) => vec![answer],
            Self::LogitDifference(correct, wrong) => vec![correct, wrong],
            _ => vec![],
        }
    }

    /// The first position that must be computed if `first` is the first that changes. What the metric reads before it
    /// is known from the unchanged run.
    pub(in crate::intervene) fn first(&self, first: usize, model: &Model, tokens: &Tokens) -> usize {
        let most = match self {
            _ if !model.config().causal => 0,
            Self::Loss | Self::Accuracy | Self::Kl => tokens.positions() - 1,
            // Every prompt's last token is read.
            Self::Logit(_) | Self::LogitDifference(..) | Self::Probability(_) | Self::Rank(_) => {
                tokens.lengths().into_iter().min().unwrap_or(1) - 1
            }
            Self::EmbeddingDistance | Self::Custom { .. } => 0,
        };
        first.min(most)
    }
}
