//! What is measured on a run.

use std::fmt;
use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::{Model, Tokens};

/// A measurement: one number a prompt.
#[derive(Clone)]
pub enum Metric {
    /// Mean of -ln p(next token) over a prompt's positions but the last, in nats. A bidirectional model with logits is
    /// scored on the token at each position itself.
    Loss,
    /// Logit of the first answer minus that of the second, at the prompt's last token.
    LogitDifference(Answer, Answer),
    /// Mean over positions of KL(p without the intervention || p with it), in nats.
    Kl,
    /// Cosine distance of the mean-pooled last residual stream from that without the intervention: 0 is no change.
    EmbeddingDistance,
    /// A function of the logits `[batch, position, vocab]` to `[batch]`, under a name of your own.
    Custom(String, Reading),
}

/// A user's function of the logits.
pub type Reading = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// A token that a metric asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A text that is one token, such as `" Mary"`.
    Text(String),
    /// An id.
    Id(i64),
    /// An id for each prompt.
    PerPrompt(Vec<i64>),
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
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

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogitDifference(correct, wrong) => write!(f, "logit_difference({correct:?}, {wrong:?})"),
            _ => f.write_str(self.name()),
        }
    }
}

impl Metric {
    /// [`Metric::LogitDifference`] from texts, ids, or one id for each prompt.
    pub fn logit_difference(correct: impl Into<Answer>, wrong: impl Into<Answer>) -> Self {
        Self::LogitDifference(correct.into(), wrong.into())
    }

    /// [`Metric::Custom`].
    pub fn custom(name: &str, read: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Self::Custom(name.to_owned(), Arc::new(read))
    }

    /// The metric's name in tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Loss => "loss",
            Self::LogitDifference(..) => "logit_difference",
            Self::Kl => "kl",
            Self::EmbeddingDistance => "embedding_distance",
            Self::Custom(name, _) => name,
        }
    }

    /// The unit of its values.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Loss | Self::Kl => "nats",
            Self::LogitDifference(..) => "logits",
            Self::EmbeddingDistance => "cosine distance",
            Self::Custom(..) => "",
        }
    }

    /// The first position that need be computed where `first` is the first that changes: what it reads before is as in the
    /// unchanged run, and known.
    pub(super) fn first(&self, first: usize, model: &Model, tokens: &Tokens) -> usize {
        let most = match self {
            _ if !model.config().causal => 0,
            Self::Loss | Self::Kl => tokens.positions() - 1,
            // Every prompt's last token is read.
            Self::LogitDifference(..) => tokens.lengths().into_iter().min().unwrap_or(1) - 1,
            Self::EmbeddingDistance | Self::Custom(..) => 0,
        };
        first.min(most)
    }
}

/// The end of a pass over `n` stacked copies of the batch.
pub(super) struct Output {
    /// The residual stream behind the last block, `[n * batch, position, d_model]`.
    pub resid: Tensor,
    /// The logits `[n * batch, position, vocab]`, where an edit behind the residual stream made them differ from what
    /// follows from it.
    pub logits: Option<Tensor>,
    /// The first position that was computed.
    pub first: i64,
    /// Only the wanted position of each prompt is there.
    pub picked: bool,
}

/// Logits are computed this many values at a time.
const BLOCK: i64 = 1 << 24;

/// A metric bound to a model, a batch and its unchanged run.
pub(super) struct Reader<'a> {
    model: &'a Model,
    metric: &'a Metric,
    batch: i64,
    positions: i64,
    /// Lengths of the prompts, `[batch]`.
    lengths: Tensor,
    /// Real tokens, `[batch, position]`.
    valid: Tensor,
    /// Flat indices (prompt * positions + position) of where the metric reads logits.
    places: Tensor,
    /// The token whose logit each place is scored on; for the logit difference two a prompt.
    targets: Vec<Tensor>,
    /// What a relative metric compares with: ln p at the places, or pooled embeddings.
    base: Option<Tensor>,
    /// The metric of the unchanged run at each place, where it is a mean over places.
    unchanged: Option<Tensor>,
}

impl<'a> Reader<'a> {
    /// Binds `metric`; `base` is the end of the unchanged run.
    pub(super) fn new(model: &'a Model, metric: &'a Metric, tokens: &Tokens, base: &Output) -> Result<Self> {
        if !model.config().has_logits() && !matches!(metric, Metric::EmbeddingDistance) {
            let found = format!("`{}`; embedding_distance needs none", metric.name());
            return Err(Error::argument("metric", "one that a model without logits has", found));
        }
        let device = model.device();
        let lengths: Vec<i64> = tokens.lengths().iter().map(|&n| n as i64).collect();
        let mut reader = Self {
            model,
            metric,
            batch: tokens.batch() as i64,
            positions: tokens.positions() as i64,
            lengths: Tensor::from_slice(&lengths).to_device(device),
            valid: tokens.valid(device),
            places: Tensor::from_slice::<i64>(&[]),
            targets: vec![],
            base: None,
            unchanged: None,
        };
        let (places, targets) = reader.places(tokens)?;
        (reader.places, reader.targets) =
            (places.to_device(device), targets.into_iter().map(|t| t.to_device(device)).collect());
        reader.base = match metric {
            Metric::Kl => Some(log_softmax(&reader.logits_at(base, &reader.places)?)?),
            Metric::EmbeddingDistance => Some(reader.pooled(&base.resid)),
            _ => None,
        };
        if matches!(metric, Metric::Loss | Metric::Kl) {
            reader.unchanged = Some(reader.values_at(base, &reader.places, &reader.all_numbers())?);
        }
        Ok(reader)
    }

    /// For a logit difference: what the unembedding of one answer has more than that of the other, `[batch, d_model]`, and
    /// the same of its bias, `[batch]`.
    pub(super) fn direction(&self) -> (Tensor, Tensor) {
        let of = |ids: &Tensor| self.model.unembedding(ids);
        match self.targets.as_slice() {
            [correct, wrong] => {
                let ((w, b), (w_wrong, b_wrong)) = (of(correct), of(wrong));
                (w - w_wrong, b - b_wrong)
            }
            _ => of(&self.lengths.zeros_like()),
        }
    }

    /// The last real position of each prompt, `[batch, position, ..]` to `[batch, ..]`.
    pub(super) fn last(&self, x: &Tensor) -> Tensor {
        x.flatten(0, 1).index_select(0, &self.places)
    }

    /// The one position of each prompt that the metric reads, `[batch]`, counted from `first`; nothing where it reads more.
    pub(super) fn wanted(&self, first: i64) -> Option<Tensor> {
        matches!(self.metric, Metric::LogitDifference(..)).then(|| &self.lengths - (1 + first))
    }

    /// Where the metric reads logits, and of which tokens.
    fn places(&self, tokens: &Tokens) -> Result<(Tensor, Vec<Tensor>)> {
        let (mut places, mut targets) = (vec![], vec![]);
        let causal = self.model.config().causal;
        match self.metric {
            Metric::Loss | Metric::Kl => {
                for prompt in 0..tokens.batch() {
                    let row = tokens.row(prompt);
                    let shift = usize::from(causal && matches!(self.metric, Metric::Loss));
                    if row.len() <= shift {
                        let found = format!("{} in prompt {prompt}", row.len());
                        return Err(Error::argument(
                            "tokens",
                            "at least 2 tokens a prompt, for a next-token loss",
                            found,
                        ));
                    }
                    places.extend((0..row.len() - shift).map(|p| prompt as i64 * self.positions + p as i64));
                    targets.extend_from_slice(&row[shift..]);
                }
                Ok((Tensor::from_slice(&places), vec![Tensor::from_slice(&targets)]))
            }
            Metric::LogitDifference(correct, wrong) => {
                let last = |(prompt, length): (usize, usize)| prompt as i64 * self.positions + length as i64 - 1;
                places.extend(tokens.lengths().into_iter().enumerate().map(last));
                let ids = [self.ids(correct)?, self.ids(wrong)?];
                Ok((Tensor::from_slice(&places), ids.iter().map(|ids| Tensor::from_slice(ids)).collect()))
            }
            Metric::EmbeddingDistance | Metric::Custom(..) => Ok((Tensor::from_slice::<i64>(&[]), vec![])),
        }
    }

    /// An answer's id for each prompt.
    fn ids(&self, answer: &Answer) -> Result<Vec<i64>> {
        let (batch, vocab) = (self.batch as usize, self.model.config().vocab as i64);
        let ids = match answer {
            Answer::Text(text) => vec![self.model.token(text)?; batch],
            Answer::Id(id) => vec![*id; batch],
            Answer::PerPrompt(ids) => ids.clone(),
        };
        if ids.len() != batch {
            return Err(Error::argument("answers", format!("one for each of {batch} prompts"), ids.len()));
        }
        match ids.iter().find(|id| !(0..vocab).contains(id)) {
            Some(&found) => Err(Error::OutOfRange { at: "answers".into(), axis: "vocab", found, limit: vocab }),
            None => Ok(ids),
        }
    }

    /// The metric of each of the stacked copies on each prompt, `[n, batch]`, float64 on the CPU.
    pub(super) fn read(&self, output: &Output) -> Result<Tensor> {
        let n = output.resid.size()[0] / self.batch;
        let per_prompt = match self.metric {
            Metric::Loss | Metric::Kl => self.mean_by_prompt(output, n)?,
            Metric::LogitDifference(..) => self.logit_difference(output, n)?,
            Metric::EmbeddingDistance => {
                let pooled = self.pooled(&output.resid).view([n, self.batch, -1]);
                let base = self.base.as_ref().map_or_else(|| pooled.shallow_clone(), |base| base.unsqueeze(0));
                1.0 - Tensor::cosine_similarity(&pooled, &base.expand_as(&pooled), -1, 1e-12)
            }
            Metric::Custom(name, read) => {
                let logits = self.all_logits(output)?;
                let copies = logits.chunk(n, 0).into_iter().map(|logits| {
                    let value = read(&logits)?;
                    let expected = format!("[batch = {}] from metric `{name}`", self.batch);
                    if value.size() == [self.batch] {
                        Ok(value)
                    } else {
                        Err(Error::Shape { at: "metric".into(), expected, found: value.size() })
                    }
                });
                Tensor::stack(&copies.collect::<Result<Vec<_>>>()?, 0)
            }
        };
        Ok(per_prompt.to_kind(Kind::Double).to_device(tch::Device::Cpu))
    }

    fn logit_difference(&self, output: &Output, n: i64) -> Result<Tensor> {
        let places = match output.picked {
            true => Tensor::arange(n * self.batch, (Kind::Int64, self.model.device())),
            false => self.stacked(&self.places, output, n),
        };
        let of = |ids: &Tensor| self.logit_of(output, &places, &ids.repeat([n]));
        Ok((of(&self.targets[0])? - of(&self.targets[1])?).view([n, self.batch]))
    }

    /// The mean over each prompt's places, `[n, batch]`: computed from the first position on, known before it.
    fn mean_by_prompt(&self, output: &Output, n: i64) -> Result<Tensor> {
        let device = self.model.device();
        let zeros = |n: i64| Tensor::zeros([n], (Kind::Double, device));
        let prompt = self.places.divide_scalar_mode(self.positions, "floor");
        let counts = zeros(self.batch).index_add(0, &prompt, &self.places.ones_like().to_kind(Kind::Double));
        let known = self.places.remainder(self.positions).lt(output.first);
        let unchanged =
            self.unchanged.as_ref().map_or_else(|| zeros(self.places.size()[0]), |u| u.to_kind(Kind::Double));
        let before = zeros(self.batch).index_add(0, &prompt, &(unchanged * known.to_kind(Kind::Double)));
        let numbers = self.all_numbers().masked_select(&known.logical_not());
        let mut sums = before.repeat([n]);
        if numbers.numel() > 0 {
            let places = self.places.index_select(0, &numbers);
            let values = self.values_at(output, &self.stacked(&places, output, n), &numbers.repeat([n]))?;
            let copy = Tensor::arange(n, (Kind::Int64, device)).unsqueeze(1) * self.batch;
            let row = (copy + prompt.index_select(0, &numbers).unsqueeze(0)).flatten(0, 1);
            sums = sums.index_add(0, &row, &values.to_kind(Kind::Double));
        }
        Ok(sums.view([n, self.batch]) / counts)
    }

    /// The metric at flat places of an output, which are the batch's places with these numbers, `[place]`.
    fn values_at(&self, output: &Output, places: &Tensor, numbers: &Tensor) -> Result<Tensor> {
        let at_once = (BLOCK / self.model.config().vocab as i64).max(1);
        let blocks = places.split(at_once, 0).into_iter().zip(numbers.split(at_once, 0));
        let values = blocks.map(|(places, numbers)| self.block(output, &places, &numbers));
        Ok(Tensor::cat(&values.collect::<Result<Vec<Tensor>>>()?, 0))
    }

    /// [`Reader::values_at`] for as many places as fit.
    fn block(&self, output: &Output, places: &Tensor, numbers: &Tensor) -> Result<Tensor> {
        let log_p = log_softmax(&self.logits_at(output, places)?)?;
        Ok(match &self.base {
            Some(base) => {
                let base = base.index_select(0, numbers);
                (base.exp() * (&base - log_p)).sum_dim_intlist([1i64].as_slice(), false, None)
            }
            None => {
                let target = self.targets[0].index_select(0, numbers).unsqueeze(1);
                log_p.gather(1, &target, false).squeeze_dim(1).neg()
            }
        })
    }

    fn all_numbers(&self) -> Tensor {
        Tensor::arange(self.places.size()[0], (Kind::Int64, self.model.device()))
    }

    /// `places` of the batch as flat places of `n` stacked copies, of which only positions from the first on are there.
    fn stacked(&self, places: &Tensor, output: &Output, n: i64) -> Tensor {
        let there = self.positions - output.first;
        let prompt = places.divide_scalar_mode(self.positions, "floor");
        let places = prompt * there + places.remainder(self.positions) - output.first;
        let offsets = Tensor::arange(n, (Kind::Int64, self.model.device())) * (self.batch * there);
        (offsets.unsqueeze(1) + places.unsqueeze(0)).flatten(0, 1)
    }

    /// All logits at flat places, `[place, vocab]`.
    fn logits_at(&self, output: &Output, places: &Tensor) -> Result<Tensor> {
        match &output.logits {
            Some(logits) => Ok(logits.flatten(0, 1).index_select(0, places)),
            None => self.model.unembed(&output.resid.flatten(0, 1).index_select(0, places)),
        }
    }

    /// One logit at each flat place, `[place]`: a dot product, where the whole row is not needed.
    fn logit_of(&self, output: &Output, places: &Tensor, ids: &Tensor) -> Result<Tensor> {
        match &output.logits {
            Some(logits) => {
                let rows = logits.flatten(0, 1).index_select(0, places);
                Ok(rows.gather(1, &ids.unsqueeze(1), false).squeeze_dim(1))
            }
            None => self.model.unembed_one(&output.resid.flatten(0, 1).index_select(0, places), ids),
        }
    }

    /// The logits everywhere.
    fn all_logits(&self, output: &Output) -> Result<Tensor> {
        output.logits.as_ref().map_or_else(|| self.model.unembed(&output.resid), |logits| Ok(logits.shallow_clone()))
    }

    /// The mean over real tokens, `[n * batch, d_model]`.
    fn pooled(&self, resid: &Tensor) -> Tensor {
        let n = resid.size()[0] / self.batch;
        let valid = self.valid.repeat([n, 1]).unsqueeze(-1);
        let sum = resid.where_self(&valid, &resid.zeros_like()).sum_dim_intlist([1i64].as_slice(), false, None);
        sum / self.lengths.repeat([n]).unsqueeze(1)
    }
}

/// ln p of each row of logits.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    logits.f_log_softmax(-1, None).map_err(Error::torch("the probabilities of a metric"))
}
