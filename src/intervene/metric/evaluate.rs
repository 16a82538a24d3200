//! What does a metric read from the end of a pass? Only the positions and logits that it needs.

use tch::{Kind, Tensor};

use super::Metric;
use crate::error::{Error, Result};
use crate::model::{Model, Tokens};
use crate::tensors::wide;
use crate::workers::readable;

/// The end of a pass over `n` stacked copies of the batch.
pub(in crate::intervene) struct Output {
    /// The residual stream after the last block, `[n * batch, position, d_model]`.
    pub resid: Tensor,
    /// The logits `[n * batch, position, vocab]`, if an edit after the last block makes them differ from the unembedded
    /// `resid`.
    pub logits: Option<Tensor>,
    /// The first position computed.
    pub first: i64,
    /// Whether `resid` holds only the one position of each prompt that the metric reads.
    pub picked: bool,
}

impl Output {
    /// The end of a whole pass.
    pub(in crate::intervene) fn whole(resid: &Tensor) -> Self {
        Self { resid: resid.shallow_clone(), logits: None, first: 0, picked: false }
    }
}

/// The most logits computed at a time.
const BLOCK: usize = 1 << 24;

/// A metric bound to a model, a batch and its unchanged run.
pub(in crate::intervene) struct Readout<'a> {
    model: &'a Model,
    metric: &'a Metric,
    batch: i64,
    positions: i64,
    /// One value per token, instead of the mean over a prompt.
    per_token: bool,
    /// Lengths of the prompts, `[batch]`.
    lengths: Tensor,
    /// Which tokens are not padding, `[batch, position]`.
    valid: Tensor,
    /// Where the metric reads logits: flat indices (prompt * positions + position), called places below.
    places: Tensor,
    /// The token scored at each place; two tensors for the logit difference.
    targets: Vec<Tensor>,
    /// What a relative metric compares with: ln p at each place, or the pooled embeddings.
    base: Option<Tensor>,
    /// The metric of the unchanged run at each place, if the metric is a mean over places.
    unchanged: Option<Tensor>,
    /// The number of places read at a time.
    at_once: i64,
}

readable!(Readout<'a> {
    model, lengths, valid, places, targets, base, unchanged;
    metric, batch, positions, per_token, at_once
});

impl<'a> Readout<'a> {
    /// Binds `metric` to a batch whose unchanged run ends in `base`. At most `values` logits are computed at a time,
    /// but never less than one place.
    pub(in crate::intervene) fn new(
        model: &'a Model,
        metric: &'a Metric,
        tokens: &Tokens,
        base: &Output,
        values: usize,
    ) -> Result<Self> {
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
            per_token: false,
            lengths: Tensor::from_slice(&lengths).to_device(device),
            valid: tokens.valid(device),
            places: Tensor::from_slice::<i64>(&[]),
            targets: vec![],
            base: None,
            unchanged: None,
            at_once: (values.min(BLOCK) / model.config().vocab.max(1)).max(1) as i64,
        };
        let (places, targets) = reader.places(tokens)?;
        (reader.places, reader.targets) =
            (places.to_device(device), targets.into_iter().map(|t| t.to_device(device)).collect());
        reader.base = match metric {
            Metric::Kl => Some(reader.log_p(base)?),
            Metric::EmbeddingDistance => Some(reader.pooled(&base.resid)),
            _ => None,
        };
        if metric.by_token() {
            let unchanged = Self::scores(&[&reader], base, &reader.places, &reader.all_numbers())?;
            reader.unchanged = unchanged.into_iter().next();
        }
        Ok(reader)
    }

    /// Sets whether to read one value per token, instead of the mean over a prompt.
    pub(in crate::intervene) fn per_token(mut self, per_token: bool) -> Result<Self> {
        if per_token && !self.metric.by_token() {
            return Err(Error::argument("per_token", "a metric with a value for each token", self.metric.name()));
        }
        self.per_token = per_token;
        Ok(self)
    }

    /// The cell of each value of [`Readout::read`]: its prompt and, with one value per token, the predicted token's
    /// position.
    pub(in crate::intervene) fn cells(&self) -> Result<Vec<(usize, Option<usize>)>> {
        if !self.per_token {
            return Ok((0..self.batch as usize).map(|prompt| (prompt, None)).collect());
        }
        let shift = usize::from(self.shifts());
        let places = Vec::<i64>::try_from(&self.places).map_err(Error::torch("reading a metric's places"))?;
        let cell = |place: i64| ((place / self.positions) as usize, Some((place % self.positions) as usize + shift));
        Ok(places.into_iter().map(cell).collect())
    }

    /// Whether each position is scored on the next token.
    fn shifts(&self) -> bool {
        self.model.config().causal && !matches!(self.metric, Metric::Kl)
    }

    /// The direction `[batch, d_model]` of the normalised residual stream that a logit, or a difference of two, is the
    /// component along, and the bias `[batch]`. `None` if logits are not linear in the normalised stream.
    pub(in crate::intervene) fn direction(&self) -> Option<(Tensor, Tensor)> {
        let of = |ids: &Tensor| self.model.logit_directions(ids);
        match self.targets.as_slice() {
            [correct, wrong] => {
                let ((w, b), (w_wrong, b_wrong)) = (of(correct)?, of(wrong)?);
                Some((w - w_wrong, b - b_wrong))
            }
            [one] => of(one),
            _ => None,
        }
    }

    /// Selects the last token of each prompt, `[batch, position, ..]` to `[batch, ..]`.
    pub(in crate::intervene) fn last(&self, x: &Tensor) -> Tensor {
        x.flatten(0, 1).index_select(0, &self.places)
    }

    /// The one position of each prompt that the metric reads, counted from `first`, `[batch]`. `None` if it reads more
    /// than one.
    pub(in crate::intervene) fn wanted(&self, first: i64) -> Option<Tensor> {
        (!self.metric.answers().is_empty()).then(|| &self.lengths - (1 + first))
    }

    /// The number of positions unembedded for one copy of the batch, from `first` on.
    pub(in crate::intervene) fn unembedded(&self, first: i64) -> usize {
        match self.metric {
            Metric::Logit(_) | Metric::LogitDifference(..) | Metric::EmbeddingDistance => 0,
            Metric::Custom { .. } => (self.batch * (self.positions - first)) as usize,
            _ => self.places.remainder(self.positions).ge(first).sum(Kind::Int64).int64_value(&[]) as usize,
        }
    }

    /// The places where the metric reads logits, and the tokens scored there.
    fn places(&self, tokens: &Tokens) -> Result<(Tensor, Vec<Tensor>)> {
        let (mut places, mut targets) = (vec![], vec![]);
        if self.metric.by_token() {
            let shift = usize::from(self.shifts());
            for prompt in 0..tokens.batch() {
                let row = tokens.row(prompt);
                if row.len() <= shift {
                    let found = format!("{} in prompt {prompt}", row.len());
                    let expected = "at least 2 tokens a prompt, to predict one from the other";
                    return Err(Error::argument("tokens", expected, found));
                }
                places.extend((0..row.len() - shift).map(|p| prompt as i64 * self.positions + p as i64));
                targets.extend_from_slice(&row[shift..]);
            }
            return Ok((Tensor::from_slice(&places), vec![Tensor::from_slice(&targets)]));
        }
        let answers = self.metric.answers().into_iter();
        let answers = answers.map(|answer| Ok(Tensor::from_slice(&answer.ids(self.model, tokens.batch())?)));
        let answers = answers.collect::<Result<Vec<Tensor>>>()?;
        if let [correct, wrong] = answers.as_slice() {
            let same = correct.eq_tensor(wrong).nonzero();
            if same.numel() > 0 {
                let found = format!("id {} twice", correct.int64_value(&[same.int64_value(&[0, 0])]));
                return Err(Error::argument("answers", "two different tokens for each prompt", found));
            }
        }
        let places = if answers.is_empty() { Tensor::from_slice(&places) } else { tokens.last_places() };
        Ok((places, answers))
    }

    /// The metric of each stacked copy of the batch, `[n, cell]`, as float64 on the CPU; see [`Readout::cells`].
    pub(in crate::intervene) fn read(&self, output: &Output) -> Result<Tensor> {
        Ok(self.values(output)?.to_kind(Kind::Double).to_device(tch::Device::Cpu))
    }

    /// [`Readout::read`] on the model's device, attached to the graph if there is one.
    pub(in crate::intervene) fn values(&self, output: &Output) -> Result<Tensor> {
        Ok(Self::values_of(&[self], output)?.remove(0))
    }

    /// Whether two metrics score the same rows of logits.
    pub(super) fn shares_rows(&self, other: &Self) -> bool {
        let by_rows = |readout: &Self| {
            readout.metric.by_token() || matches!(readout.metric, Metric::Probability(_) | Metric::Rank(_))
        };
        let at = |readout: &Self| (readout.metric.by_token(), readout.shifts());
        by_rows(self) && by_rows(other) && at(self) == at(other)
    }

    /// The values of metrics that share their rows of logits, or of a single one.
    pub(super) fn values_of(readouts: &[&Self], output: &Output) -> Result<Vec<Tensor>> {
        match readouts {
            [one] if !one.shares_rows(one) => Ok(vec![one.value(output)?]),
            [first, ..] => {
                let n = output.resid.size()[0] / first.batch;
                if first.metric.by_token() {
                    Self::over_tokens(readouts, output, n)
                } else {
                    Self::at_last(readouts, output, n)
                }
            }
            [] => Ok(vec![]),
        }
    }

    /// A metric that needs no whole rows of logits, or all of them.
    fn value(&self, output: &Output) -> Result<Tensor> {
        let n = output.resid.size()[0] / self.batch;
        match self.metric {
            Metric::EmbeddingDistance => {
                let pooled = self.pooled(&output.resid).view([n, self.batch, -1]);
                let base = self.base.as_ref().map_or_else(|| pooled.shallow_clone(), |base| base.unsqueeze(0));
                Ok(1.0 - Tensor::cosine_similarity(&pooled, &base.expand_as(&pooled), -1, 1e-12))
            }
            Metric::Custom { name, read, .. } => {
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
                Ok(Tensor::stack(&copies.collect::<Result<Vec<_>>>()?, 0))
            }
            _ => {
                let places = self.last_places(output, n);
                let logit = |ids: &Tensor| self.logit_of(output, &places, &ids.repeat([n]));
                let values = match self.targets.as_slice() {
                    [correct, wrong] => logit(correct)? - logit(wrong)?,
                    targets => logit(&targets[0])?,
                };
                Ok(values.view([n, self.batch]))
            }
        }
    }

    /// The flat places of each prompt's last token in the stacked copies.
    fn last_places(&self, output: &Output, n: i64) -> Tensor {
        match output.picked {
            true => Tensor::arange(n * self.batch, (Kind::Int64, self.model.device())),
            false => self.stacked(&self.places, output, n),
        }
    }

    /// Scores of rows of logits at each prompt's last token, `[n, batch]` each.
    fn at_last(readouts: &[&Self], output: &Output, n: i64) -> Result<Vec<Tensor>> {
        let first = readouts[0];
        let (places, numbers) = (first.last_places(output, n), first.all_numbers().repeat([n]));
        let values = Self::scores(readouts, output, &places, &numbers)?;
        Ok(values.into_iter().map(|values| values.view([n, first.batch])).collect())
    }

    /// The metrics at every place, or their means over the places of each prompt, `[n, cell]` each. Places before the
    /// first computed position take their values from the unchanged run.
    fn over_tokens(readouts: &[&Self], output: &Output, n: i64) -> Result<Vec<Tensor>> {
        let first = readouts[0];
        let known = first.places.remainder(first.positions).lt(output.first);
        let numbers = first.all_numbers().masked_select(&known.logical_not());
        let found = match numbers.numel() {
            0 => readouts.iter().map(|_| None).collect(),
            _ => {
                let places = first.stacked(&first.places.index_select(0, &numbers), output, n);
                let found = Self::scores(readouts, output, &places, &numbers.repeat([n]))?;
                found.into_iter().map(Some).collect::<Vec<_>>()
            }
        };
        Ok(readouts.iter().zip(found).map(|(readout, found)| readout.by_prompt(found, &numbers, n)).collect())
    }

    /// The values found at the places `numbers`, beside those known from the unchanged run, as `[n, cell]`.
    fn by_prompt(&self, found: Option<Tensor>, numbers: &Tensor, n: i64) -> Tensor {
        let unchanged = self.unchanged.as_ref().map_or_else(|| self.places.zeros_like(), Tensor::shallow_clone);
        let mut all = unchanged.to_kind(Kind::Double).unsqueeze(0).repeat([n, 1]);
        if let Some(found) = found {
            all = all.index_copy(1, numbers, &found.to_kind(Kind::Double).view([n, -1]));
        }
        if self.per_token {
            return all;
        }
        let prompt = self.places.divide_scalar_mode(self.positions, "floor");
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, self.model.device()));
        let counts = zeros(&[self.batch]).index_add(0, &prompt, &prompt.ones_like().to_kind(Kind::Double));
        zeros(&[n, self.batch]).index_add(1, &prompt, &all) / counts
    }

    /// The metrics at flat `places` of an output, `[place]` each; `numbers` are their indices among the batch's places.
    fn scores(readouts: &[&Self], output: &Output, places: &Tensor, numbers: &Tensor) -> Result<Vec<Tensor>> {
        let first = readouts[0];
        let mut scores: Vec<Vec<Tensor>> = readouts.iter().map(|_| vec![]).collect();
        for (places, numbers) in places.split(first.at_once, 0).into_iter().zip(numbers.split(first.at_once, 0)) {
            let logits = first.logits_at(output, &places)?;
            // Logarithms are shared, too.
            let mut log_p = None;
            for (readout, scores) in readouts.iter().zip(&mut scores) {
                if readout.reads_log_p() && log_p.is_none() {
                    log_p = Some(log_softmax(&logits)?);
                }
                scores.push(readout.score(log_p.as_ref().unwrap_or(&logits), &logits, &numbers));
            }
        }
        Ok(scores.into_iter().map(|blocks| Tensor::cat(&blocks, 0)).collect())
    }

    fn reads_log_p(&self) -> bool {
        matches!(self.metric, Metric::Loss | Metric::Kl | Metric::Probability(_))
    }

    /// ln p at the metric's places, `[place, vocab]`, computed block by block so that all logits and all logarithms are
    /// never held at once.
    fn log_p(&self, output: &Output) -> Result<Tensor> {
        let kind = (wide(self.model.kind()), self.model.device());
        let all = Tensor::empty([self.places.size()[0], self.model.config().vocab as i64], kind);
        let (places, parts) = (self.places.split(self.at_once, 0), all.split(self.at_once, 0));
        for (places, mut part) in places.into_iter().zip(parts) {
            part.copy_(&log_softmax(&self.logits_at(output, &places)?)?);
        }
        Ok(all)
    }

    /// The metric of rows of logits `[place, vocab]` and their logarithms of probabilities, `[place]`.
    fn score(&self, log_p: &Tensor, logits: &Tensor, numbers: &Tensor) -> Tensor {
        let sum = |x: Tensor| x.sum_dim_intlist([1i64].as_slice(), false, None);
        if let Some(base) = &self.base {
            let base = base.index_select(0, numbers);
            return sum(base.exp() * (&base - log_p));
        }
        let target = self.targets[0].index_select(0, numbers).unsqueeze(1);
        let above = || sum(logits.gt_tensor(&logits.gather(1, &target, false)).to_kind(logits.kind()));
        let log_p = || log_p.gather(1, &target, false).squeeze_dim(1);
        match self.metric {
            Metric::Accuracy => above().eq(0.0).to_kind(logits.kind()),
            Metric::Rank(_) => above(),
            Metric::Probability(_) => log_p().exp(),
            _ => log_p().neg(),
        }
    }

    fn all_numbers(&self) -> Tensor {
        Tensor::arange(self.places.size()[0], (Kind::Int64, self.model.device()))
    }

    /// `places` of the batch as flat places of `n` stacked copies that start at the first computed position.
    fn stacked(&self, places: &Tensor, output: &Output, n: i64) -> Tensor {
        let there = self.positions - output.first;
        let prompt = places.divide_scalar_mode(self.positions, "floor");
        let places = prompt * there + places.remainder(self.positions) - output.first;
        let offsets = Tensor::arange(n, (Kind::Int64, self.model.device())) * (self.batch * there);
        (offsets.unsqueeze(1) + places.unsqueeze(0)).flatten(0, 1)
    }

    /// The logits at flat places, `[place, vocab]`.
    fn logits_at(&self, output: &Output, places: &Tensor) -> Result<Tensor> {
        match &output.logits {
            Some(logits) => Ok(widened(&logits.flatten(0, 1).index_select(0, places))),
            None => self.model.unembed(&output.resid.flatten(0, 1).index_select(0, places)),
        }
    }

    /// One logit at each flat place, `[place]`: a dot product instead of a whole row of logits.
    fn logit_of(&self, output: &Output, places: &Tensor, ids: &Tensor) -> Result<Tensor> {
        match &output.logits {
            Some(logits) => {
                let rows = logits.flatten(0, 1).index_select(0, places);
                Ok(widened(&rows.gather(1, &ids.unsqueeze(1), false).squeeze_dim(1)))
            }
            None => self.model.unembed_one(&output.resid.flatten(0, 1).index_select(0, places), ids),
        }
    }

    /// The logits at all computed positions.
    fn all_logits(&self, output: &Output) -> Result<Tensor> {
        output.logits.as_ref().map_or_else(|| self.model.unembed(&output.resid), |logits| Ok(widened(logits)))
    }

    /// The mean of the residual stream over tokens, padding excluded, `[n * batch, d_model]`.
    fn pooled(&self, resid: &Tensor) -> Tensor {
        let n = resid.size()[0] / self.batch;
        let valid = self.valid.repeat([n, 1]).unsqueeze(-1);
        let real = resid.where_self(&valid, &resid.zeros_like());
        let sum = real.sum_dim_intlist([1i64].as_slice(), false, wide(resid.kind()));
        sum / self.lengths.repeat([n]).unsqueeze(1)
    }
}

/// Logits as metrics read them: float32 in half precision.
fn widened(logits: &Tensor) -> Tensor {
    logits.to_kind(wide(logits.kind()))
}

/// ln p of each row of logits.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    logits.f_log_softmax(-1, None).map_err(Error::torch("the probabilities of a metric"))
}
