//! Which heads do induction? Prefix matching and copying on repeated random tokens.

use rand::SeedableRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::batches::{batches, select};
use super::pattern::to_array;
use super::profile::{PatternOptions, Profile};
use super::score::PatternScore;
use crate::error::{Error, Result};
use crate::model::{Model, NormKind, Run, Site, Tokens, Unembed};
use crate::stats::Interval;
use crate::table::{Keys, Observation, Table};
use crate::text::prompts::Pair;

/// Prompts of random tokens, each a block that occurs twice: only the first copy predicts the second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repeats {
    /// The number of prompts.
    pub prompts: usize,
    /// The number of tokens in a block, all different.
    pub length: usize,
    /// Tokens before the first block; by default those that the tokenizer adds before a text.
    pub start: Option<Vec<i64>>,
    /// Seed of the random tokens.
    pub seed: u64,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { prompts: 20, length: 25, start: None, seed: 0 }
    }
}

impl Repeats {
    /// Checks the options.
    ///
    /// # Errors
    /// If there are no prompts, or a block has fewer than two tokens.
    pub fn validate(&self) -> Result<()> {
        if self.prompts == 0 {
            return Err(Error::argument("prompts", "at least 1", 0));
        }
        if self.length < 2 {
            return Err(Error::argument("length", "at least 2 tokens a block", self.length));
        }
        Ok(())
    }

    /// The prompts for a model: `[start, block, block]`, with blocks drawn from the ordinary (not special) tokens.
    ///
    /// # Errors
    /// If the options are invalid, the vocabulary is too small, or the prompts are longer than the model's context.
    pub fn tokens(&self, model: &Model) -> Result<Tokens> {
        let start = self.frame(model)?;
        self.check_fits(model, 0)?;
        let words = self.words(model)?;
        if words.len() < self.length {
            let expected = format!("at most {} tokens, the vocabulary", words.len());
            return Err(Error::argument("length", expected, self.length));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut row = || {
            let mut words = words.clone();
            let (block, _) = words.partial_shuffle(&mut rng, self.length);
            [start.as_slice(), block, block].concat()
        };
        let tokens = Tokens::new(&(0..self.prompts).map(|_| row()).collect::<Vec<_>>())?;
        model.check_tokens(&tokens)?;
        Ok(tokens)
    }

    /// Pairs of prompts that ask for the last token of the second block. The clean prompt is `[start, block, block]` without
    /// that token; in the corrupt one, the token `back` places before it is another in the first block. With `back` 1 this is
    /// the token by which the answer is found; a larger `back` leaves the match as it is, for a control. The wrong answer is
    /// the first token of the block. Positions: `changed`, and `answer` (where the answer stands in the first block).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("induction")?;
    /// let repeats = Repeats { prompts: 4, length: 8, ..Repeats::default() };
    /// let prompts = model.prompts(repeats.pairs(&model, 1)?)?;
    /// let (clean, corrupt, at) = (prompts.clean(), prompts.corrupt(), prompts.position("changed")?[0]);
    /// assert_ne!(clean.row(0)[at], corrupt.row(0)[at]);
    /// assert_eq!(clean.row(0)[at + 1], prompts.answers()[0].0); // what followed the last token before
    /// assert_eq!(clean.row(0)[at], clean.row(0)[clean.positions() - 1]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Repeats::tokens`]; if `back` is not from 1 to `length - 2`, or the vocabulary has no token beside the block's.
    pub fn pairs(&self, model: &Model, back: usize) -> Result<Vec<Pair>> {
        if back == 0 || back + 2 > self.length {
            let expected = format!("1 to length - 2 = {}", self.length.saturating_sub(2));
            return Err(Error::argument("back", expected, back));
        }
        let (start, words) = (self.frame(model)?.len(), self.words(model)?);
        let answer = start + self.length - 1;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(1)); // not the numbers that the blocks came from
        let mut pair = |row: &[i64]| {
            let others: Vec<i64> = words.iter().copied().filter(|id| !row.contains(id)).collect();
            let none = || Error::argument("length", "fewer tokens than the vocabulary has", self.length);
            let (clean, mut corrupt) = (row[..row.len() - 1].to_vec(), row[..row.len() - 1].to_vec());
            corrupt[answer - back] = others.choose(&mut rng).copied().ok_or_else(none)?;
            let pair = Pair::new(clean, corrupt).answers(row[answer], row[start]);
            Ok(pair.at("changed", (answer - back) as i64).at("answer", answer as i64))
        };
        self.tokens(model)?.rows().iter().map(|row| pair(row)).collect()
    }

    /// The ordinary tokens, of which blocks are drawn.
    fn words(&self, model: &Model) -> Result<Vec<i64>> {
        let start = self.frame(model)?;
        let special = |id: i64| model.tokenizer().is_some_and(|tokenizer| tokenizer.is_special(id));
        Ok((0..model.config().vocab as i64).filter(|&id| !start.contains(&id) && !special(id)).collect())
    }

    /// Returns an error if the prompts and the scores of every head on them, with an interval from this many resamples,
    /// do not fit in memory.
    fn check_fits(&self, model: &Model, resamples: usize) -> Result<()> {
        let ids = self.frame(model)?.len() + 2 * self.length.min(model.config().n_positions);
        let scores = 4 * model.config().n_layers * model.config().n_heads + resamples;
        crate::take::fits("prompts of repeated tokens", self.prompts, 8 * (4 * ids + scores))
    }

    /// The tokens before the first block.
    fn frame(&self, model: &Model) -> Result<Vec<i64>> {
        self.validate()?;
        match (&self.start, model.tokenizer()) {
            (Some(start), _) => Ok(start.clone()),
            (None, Some(tokenizer)) => Ok(tokenizer.frame()?.0),
            (None, None) => Ok(vec![]),
        }
    }
}

/// Which heads continue a pattern seen before? Two rows per head, on blocks of random tokens that occur twice.
///
/// - `prefix_matching`: attention from the second copy to the token after the same token in the first copy, which is
///   [`PatternScore::Induction`] when all tokens of a block differ (Olsson et al. 2022). `baseline`, `z_score` and
///   interval as in [`pattern_scores`](super::pattern_scores).
/// - `copying`: does the head write the tokens that it attends to? The probability that the head output raises the
///   logit of an attended token above that of another token of the block, averaged over the second copy with attention
///   as weights. 1 is always, 0 is never, and the baseline is 1/2. Only the order of the block's tokens matters, so the
///   scale of the final norm has no influence. Missing for a model without logits, or without a plain unembedding of a
///   pre-norm residual stream.
///
/// An induction head scores high on both.
///
/// # Errors
/// If the options are invalid, or the prompts do not fit the model.
pub fn induction_scores(model: &Model, repeats: &Repeats, options: &PatternOptions) -> Result<Table> {
    let rows = induction_rows(model, repeats, options)?;
    let what = serde_json::json!({"what": "induction scores", "repeats": repeats, "options": options});
    Table::new(rows, model.provenance(what, Some(repeats.seed))?)
}

/// [`pattern_scores`](super::pattern_scores) of `tokens` and [`induction_scores`] in one table.
///
/// # Errors
/// As for these two functions.
pub fn head_scores(model: &Model, tokens: &Tokens, repeats: &Repeats, options: &PatternOptions) -> Result<Table> {
    repeats.check_fits(model, options.resamples)?; // before the work on the other prompts
    let mut rows = Profile::measure(model, tokens, options)?.rows(options)?;
    rows.extend(induction_rows(model, repeats, options)?);
    let what = serde_json::json!({"what": "head scores", "repeats": repeats, "options": options, "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, Some(options.seed))?)
}

/// The rows of [`induction_scores`].
fn induction_rows(model: &Model, repeats: &Repeats, options: &PatternOptions) -> Result<Vec<Observation>> {
    repeats.check_fits(model, options.resamples)?;
    let tokens = repeats.tokens(model)?;
    let options = PatternOptions { scores: vec![PatternScore::Induction], ..options.clone() };
    let mut rows = Profile::measure(model, &tokens, &options)?.rows(&options)?;
    rows.iter_mut().for_each(|row| "prefix_matching".clone_into(&mut row.metric));
    rows.extend(copying(model, &tokens, repeats, &options)?);
    Ok(rows)
}

/// The copying score of every head.
fn copying(model: &Model, tokens: &Tokens, repeats: &Repeats, options: &PatternOptions) -> Result<Vec<Observation>> {
    let config = model.config();
    let (layers, heads) = (config.n_layers, config.n_heads);
    let number = |n: usize| u32::try_from(n).ok();
    let keys = |layer, head| Keys { layer: number(layer), head: number(head), ..Keys::default() };
    let metric = || "copying".to_owned();
    let readable = matches!(config.unembed, Unembed::Linear { .. }) && model.writes_directly();
    if !readable {
        let missing = |(layer, head)| Observation {
            keys: keys(layer, head),
            metric: metric(),
            value: f64::NAN,
            ..Observation::default()
        };
        let all = (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head)));
        return Ok(all.map(missing).collect());
    }
    let start = repeats.frame(model)?.len();
    let mut values = ndarray::Array3::zeros((tokens.batch(), layers, heads));
    for numbers in batches(model, tokens) {
        let some = select(tokens, &numbers)?;
        let directions = directions(model, &some, start, repeats.length)?;
        model.each_layer(&some, &[Site::Pattern, Site::Z], |layer, run| {
            let scores = to_array(&copied(model, layer, run, &directions, start)?, (numbers.len(), heads, 1))?;
            for (row, &number) in numbers.iter().enumerate() {
                values.slice_mut(ndarray::s![number, layer, ..]).assign(&scores.slice(ndarray::s![row, .., 0]));
            }
            Ok(())
        })?;
    }
    let columns = values.to_shape((tokens.batch(), layers * heads)).map_err(|reason| Error::Shape {
        at: "copying".into(),
        expected: format!("[prompt {}, head {}] ({reason})", tokens.batch(), layers * heads),
        found: values.shape().iter().map(|&length| length as i64).collect(),
    })?;
    let row = |((layer, head), interval): ((usize, usize), Option<Interval>)| Observation {
        keys: keys(layer, head),
        metric: metric(),
        value: values.slice(ndarray::s![.., layer, head]).mean().unwrap_or(f64::NAN),
        baseline: Some(0.5),
        low: interval.map(|interval| interval.low),
        high: interval.map(|interval| interval.high),
        ..Observation::default()
    };
    let all = (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head)));
    Ok(all.zip(options.intervals().means(columns.view())?).map(row).collect())
}

/// The residual stream directions that raise the logits of the tokens in each prompt's block, `[batch, d_model,
/// token]`.
fn directions(model: &Model, tokens: &Tokens, start: usize, length: usize) -> Result<Tensor> {
    let ids: Vec<i64> = tokens.rows().iter().flat_map(|row| row[start..start + length].to_vec()).collect();
    let linear =
        || Error::argument("model", "one whose logits are linear in the residual stream", &model.config().family);
    let ids = Tensor::from_slice(&ids).to_device(model.device());
    let (columns, _) = model.logit_directions(&ids).ok_or_else(linear)?;
    let columns = match model.final_norm_weights() {
        Some((gamma, _)) if model.config().norm == NormKind::Layer => {
            let columns = columns * gamma;
            &columns - columns.mean_dim([-1i64].as_slice(), true, None)
        }
        Some((gamma, _)) => columns * gamma,
        None => columns,
    };
    let columns = columns.f_view([tokens.batch() as i64, length as i64, -1]).map_err(Error::torch("copying"))?;
    Ok(columns.transpose(1, 2))
}

/// The copying score of a layer's heads, `[batch, head, 1]`.
fn copied(model: &Model, layer: usize, run: &Run, directions: &Tensor, start: usize) -> Result<Tensor> {
    let torch = || Error::torch("copying");
    let (length, start) = (directions.size()[2], start as i64);
    let second = |x: &Tensor| x.narrow(2, start + length, length);
    let z = second(&run.get(Site::Z(layer))?.transpose(1, 2)); // [batch, head, query, d_head]
    let readers = model.w_o(layer)?.unsqueeze(0).f_matmul(&directions.unsqueeze(1)).map_err(torch())?;
    let logits = z.f_matmul(&readers).map_err(torch())?; // [batch, head, query, token]
    let above = logits.argsort(-1, false).argsort(-1, false).to_kind(Kind::Double) / (length - 1) as f64;
    // Attention to a token is the sum over its two occurrences.
    let pattern = second(run.get(Site::Pattern(layer))?).narrow(3, start, 2 * length).to_kind(Kind::Double);
    let attention = pattern.narrow(3, 0, length) + pattern.narrow(3, length, length);
    let sum = |x: Tensor| x.sum_dim_intlist([2i64, 3].as_slice(), false, None);
    Ok((sum(&attention * above) / sum(attention)).unsqueeze(-1).to_device(Device::Cpu))
}
