//! What does every head of a model attend to? Pattern scores on prompts, with baselines, null distributions and
//! intervals.

use ndarray::{Array1, Array2, Array3, ArrayView1, Axis, s};
use serde::{Deserialize, Serialize};

use super::batches::{batches, prompts, select};
use super::interval::Intervals;
use super::pattern::{Measured, REACH, Targets};
use super::score::PatternScore;
use crate::error::{Error, Result};
use crate::model::{Model, Site, Tokens};
use crate::progress::Progress;
use crate::stats::Interval;
use crate::table::{Keys, Observation, Table};
use crate::tensors::wide;

/// Which scores to compute, and with which intervals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatternOptions {
    /// The scores.
    pub scores: Vec<PatternScore>,
    /// Bootstrap resamples of the prompts for the intervals: at least 100, or 0 for no intervals.
    pub resamples: usize,
    /// Confidence level of the intervals.
    pub confidence: f64,
    /// Seed of the resampling.
    pub seed: u64,
}

impl Default for PatternOptions {
    fn default() -> Self {
        Self { scores: PatternScore::usual(), resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl PatternOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If there are no scores, one has an offset of 0, the confidence is not between 0 and 1, or there are 1 to 99
    /// resamples, too few for an interval.
    pub fn validate(&self) -> Result<()> {
        if self.scores.is_empty() {
            return Err(Error::argument("scores", "at least one", "none"));
        }
        self.scores.iter().try_for_each(|score| score.validate())?;
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::argument("confidence", "a number between 0 and 1", self.confidence));
        }
        self.intervals().validate()
    }

    pub(super) fn intervals(&self) -> Intervals {
        Intervals { resamples: self.resamples, level: self.confidence, seed: self.seed }
    }
}

/// What does each head attend to? All scores of all heads on `tokens`, one row per head and score.
///
/// - `value`: the mean of the score over prompts ([`PatternScore`]).
/// - `baseline`: the same for attention spread uniformly over all keys that a query sees, which is also the mean over
///   all ways to shuffle each query's attention over these keys.
/// - `z_score`: value minus baseline, in standard deviations over such shuffles. These are exact, not sampled: for a
///   query with weights a, and the score's w, over its n keys, the variance is
///   `sum (a - mean)^2 sum (w - mean)^2 / (n - 1)`. The z-score says whether a head with equally sharp attention would
///   score this high by chance. Entropy is invariant under shuffling and has none.
/// - `low`, `high`: bootstrap interval over prompts.
///
/// The value is missing if the score applies to no prompt (no repeated token, no punctuation, no tokenizer). The model
/// runs once, and the patterns of only one layer are in memory at a time.
///
/// ```
/// use headscope::heads::{PatternOptions, pattern_scores};
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat.", "a dog ran in the park, and sat."])?;
/// let table = pattern_scores(&model, &tokens, &PatternOptions::default())?;
/// assert_eq!(table.len(), 3 * 4 * 15); // layers, heads, scores
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If a token does not fit the model, or an option is invalid.
pub fn pattern_scores(model: &Model, tokens: &Tokens, options: &PatternOptions) -> Result<Table> {
    let rows = Profile::measure(model, tokens, options)?.rows(options)?;
    let what = serde_json::json!({"what": "pattern scores", "options": options, "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, Some(options.seed))?)
}

/// Scores of every head on every prompt. Heads are numbered layer * heads + head.
pub(super) struct Profile {
    scores: Vec<PatternScore>,
    n_heads: usize,
    /// `[prompt, head, score]`.
    value: Array3<f64>,
    /// `[prompt, head, score]`.
    shuffled: Array3<f64>,
    /// `[prompt, score]`.
    uniform: Array2<f64>,
    /// `[prompt, head, offset]`.
    offsets: Array3<f64>,
    /// `[prompt, offset]`.
    uniform_offsets: Array2<f64>,
}

impl Profile {
    /// Runs the model once over all prompts, batch by batch and layer by layer.
    pub(super) fn measure(model: &Model, tokens: &Tokens, options: &PatternOptions) -> Result<Self> {
        options.validate()?;
        let config = model.config();
        let scores: Vec<PatternScore> =
            options.scores.iter().copied().filter(|score| !(config.causal && score.looks_ahead())).collect();
        let (batch, heads) = (tokens.batch(), config.n_layers * config.n_heads);
        let bins = if scores.contains(&PatternScore::Positional) { 2 * REACH + 1 } else { 0 };
        let mut profile = Self {
            n_heads: config.n_heads,
            value: Array3::zeros((batch, heads, scores.len())),
            shuffled: Array3::zeros((batch, heads, scores.len())),
            uniform: Array2::zeros((batch, scores.len())),
            offsets: Array3::zeros((batch, heads, bins)),
            uniform_offsets: Array2::zeros((batch, bins)),
            scores,
        };
        if profile.scores.is_empty() {
            return Ok(profile);
        }
        let all = prompts(model, tokens)?;
        let mut progress = Progress::new("prompts", batch);
        for numbers in batches(model, tokens) {
            let some: Vec<_> = numbers.iter().map(|&number| all[number].clone()).collect();
            let targets = Targets::new(&profile.scores, &some, wide(model.kind()), model.device())?;
            model.each_layer(&select(tokens, &numbers)?, &[Site::Pattern], |layer, run| {
                let measured = targets.measure(run.get(Site::Pattern(layer))?)?;
                profile.keep(layer, &numbers, &measured);
                Ok(())
            })?;
            for (row, &number) in numbers.iter().enumerate() {
                if bins > 0 {
                    profile.uniform_offsets.row_mut(number).assign(&targets.uniform_offsets().row(row));
                }
            }
            progress.add(numbers.len());
        }
        Ok(profile)
    }

    /// Stores the scores of a layer on some of the prompts.
    fn keep(&mut self, layer: usize, numbers: &[usize], measured: &Measured) {
        let heads = layer * self.n_heads..(layer + 1) * self.n_heads;
        for (row, &number) in numbers.iter().enumerate() {
            let place = s![number, heads.clone(), ..];
            self.value.slice_mut(place).assign(&measured.value.index_axis(Axis(0), row));
            self.shuffled.slice_mut(place).assign(&measured.shuffled.index_axis(Axis(0), row));
            self.offsets.slice_mut(place).assign(&measured.offsets.index_axis(Axis(0), row));
            self.uniform.row_mut(number).assign(&measured.uniform.row(row));
        }
    }

    /// One observation per head and score.
    pub(super) fn rows(&self, options: &PatternOptions) -> Result<Vec<Observation>> {
        let (prompts, heads, scores) = self.value.dim();
        let places = || (0..scores).flat_map(|score| (0..heads).map(move |head| (score, head)));
        let column = |(s, head): (usize, usize)| match self.scores[s] {
            PatternScore::Positional => self.positional(head),
            _ => Column {
                value: self.value.slice(s![.., head, s]).to_owned(),
                uniform: self.uniform.column(s).to_owned(),
                shuffled: self.shuffled.slice(s![.., head, s]).to_owned(),
            },
        };
        let columns: Vec<Column> = places().map(column).collect();
        let mut values = Array2::zeros((prompts, columns.len()));
        columns.iter().zip(values.columns_mut()).for_each(|(column, mut to)| to.assign(&column.value));
        let intervals = options.intervals().means(values.view())?;
        let number = |n: usize| u32::try_from(n).ok();
        let row = |((score, head), (column, interval)): ((usize, usize), (&Column, Option<Interval>))| {
            let (layer, head) = (head / self.n_heads, head % self.n_heads);
            let keys = Keys { layer: number(layer), head: number(head), ..Keys::default() };
            Observation { keys, metric: self.scores[score].to_string(), ..column.summary(interval) }
        };
        Ok(places().zip(columns.iter().zip(intervals)).map(row).collect())
    }

    /// How often a head attends to its favourite offset: the one that is most frequent over all prompts.
    fn positional(&self, head: usize) -> Column {
        let counts = self.offsets.slice(s![.., head, ..]);
        let sums = counts.sum_axis(Axis(0));
        let favourite = (0..sums.len()).max_by(|&a, &b| sums[a].total_cmp(&sums[b])).unwrap_or(0);
        let uniform = self.uniform_offsets.column(favourite).to_owned();
        // A prompt in which no query sees more than one key has no offset at all.
        let missing = self.uniform_offsets.sum_axis(Axis(1)).mapv(|sum| sum == 0.0);
        let hide = |column: ArrayView1<f64>| -> Array1<f64> {
            column.iter().zip(&missing).map(|(&value, &gone)| if gone { f64::NAN } else { value }).collect()
        };
        Column {
            value: hide(counts.column(favourite)),
            uniform: hide(uniform.view()),
            shuffled: Array1::zeros(missing.len()),
        }
    }
}

/// The score of one head on every prompt.
struct Column {
    value: Array1<f64>,
    uniform: Array1<f64>,
    shuffled: Array1<f64>,
}

impl Column {
    /// Mean, baseline, interval and z-score over the prompts that have the score.
    fn summary(&self, interval: Option<Interval>) -> Observation {
        let there: Vec<usize> = (0..self.value.len()).filter(|&prompt| self.value[prompt].is_finite()).collect();
        let n = there.len() as f64;
        if there.is_empty() {
            return Observation { value: f64::NAN, ..Observation::default() };
        }
        let mean = |values: &Array1<f64>| there.iter().map(|&prompt| values[prompt]).sum::<f64>() / n;
        let (value, baseline) = (mean(&self.value), mean(&self.uniform));
        let deviation = (mean(&self.shuffled) / n).sqrt();
        Observation {
            value,
            baseline: Some(baseline),
            low: interval.map(|interval| interval.low),
            high: interval.map(|interval| interval.high),
            z_score: (deviation > 0.0).then(|| (value - baseline) / deviation),
            ..Observation::default()
        }
    }
}
