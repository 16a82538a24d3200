//! What does one look at first? A model on a few prompts, in one go.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use super::engine::Variant;
use super::lens::Lens;
use super::metric::{Answer, Metric, direct_attribution};
use super::residual;
use super::sweep::{Ablation, Every, Sweep};
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Run, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// How [`Scan::of`] looks.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat"])?;
/// let metric = Some(Metric::logit_difference(" he", " to"));
/// let scan = Scan::of(&model, &tokens, &ScanOptions { metric, parts: 3, ..ScanOptions::default() })?;
/// assert_eq!(scan.ablation.len(), 3);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// What is attributed and what an ablation changes. By default the logit of the model's own first choice after each
    /// prompt; for a model that predicts no next token, the loss or, without logits, the embedding distance.
    pub metric: Option<Metric>,
    /// The number of likeliest tokens at each depth.
    pub tokens: usize,
    /// The number of heads and MLPs that are ablated.
    pub parts: usize,
    /// The number of heads whose patterns are shown.
    pub heads: usize,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { metric: None, tokens: 5, parts: 10, heads: 5 }
    }
}

/// What one looks at first: predictions, the logit lens, direct attribution, attention patterns, ablations.
///
/// A model that predicts no next token (BERT), or whose streams are not sums, has no part of some of these;
/// [`left_out`](Self::left_out) says what is missing and why. In a notebook, or by [`page`](Self::page), a scan is one page
/// of pictures.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat"])?;
/// let scan = Scan::of(&model, &tokens, &ScanOptions::default())?;
/// assert_eq!(scan.predictions()?.map(|table| table.len()), Some(5));
/// assert_eq!((scan.heads.len(), scan.ablation.len()), (5, 10));
/// assert!(scan.page()?.as_str().contains("<svg"));
/// # Ok::<(), headscope::Error>(())
/// ```
pub struct Scan {
    /// The model in one line.
    pub model: String,
    /// The prompts.
    pub tokens: Tokens,
    /// The id and the text of every token.
    pub input: Table,
    /// The likeliest next tokens at every depth ([`Lens::top`]): at all positions where these are few, else at the last.
    pub lens: Option<Table>,
    /// The metric at every depth ([`Lens::metric`]).
    pub curve: Option<Table>,
    /// What each component writes towards the metric ([`direct_attribution`]).
    pub attribution: Option<Table>,
    /// The metric with one head (`z`) or one MLP (`mlp_out`) set to 0, largest change first: of those of the largest direct
    /// attribution or, without one, of all.
    pub ablation: Table,
    /// The heads of the largest direct attribution or, without one, of the largest change, as (layer, head).
    pub heads: Vec<(usize, usize)>,
    /// The patterns of their layers.
    pub patterns: Run,
    /// What these heads attend to: the weight of each key, seen from the last token or, in a model that predicts no next
    /// token, the mean over queries.
    pub attention: Table,
    /// What is missing, and why.
    pub left_out: Vec<String>,
}

/// The most positions at which the lens reads all.
const FEW: usize = 256;

impl Scan {
    /// Looks at a model on some prompts. It takes a few passes over them and one for each ablated part.
    ///
    /// # Errors
    /// If the tokens do not fit the model, an option is 0 or too large, or the metric is none of this model.
    pub fn of(model: &Model, tokens: &Tokens, options: &ScanOptions) -> Result<Self> {
        for (name, asked) in [("tokens", options.tokens), ("parts", options.parts), ("heads", options.heads)] {
            if asked == 0 {
                return Err(Error::argument(name, "at least 1", asked));
            }
        }
        model.one_sequence("a scan")?;
        let mut left_out = vec![];
        let predicts = model.config().causal && model.config().has_logits();
        let metric = metric(model, tokens, options, predicts)?;
        let (mut lens, mut curve) = (None, None);
        if predicts {
            let read = Lens::logit(model);
            curve = Some(read.metric(tokens, &metric)?);
            let read = if tokens.batch() * tokens.positions() <= FEW { read } else { read.last() };
            lens = Some(read.top(tokens, options.tokens.min(model.config().vocab))?);
        } else {
            left_out.push(format!("next tokens and the lens: {} predicts no next token", model.config().family));
        }
        let attribution = attribution(model, tokens, &metric, predicts, &mut left_out)?;
        let (ablation, heads) = strongest(model, tokens, &metric, attribution.as_ref(), options)?;
        let layers: BTreeSet<usize> = heads.iter().map(|(layer, _)| *layer).collect();
        let patterns = model.run(tokens, &Plan::new().taps(layers.into_iter().map(Site::Pattern)))?;
        Ok(Self {
            model: model.summary(),
            input: input(model, tokens)?,
            attention: attention(model, &patterns, &heads, predicts)?,
            tokens: tokens.clone(),
            lens,
            curve,
            attribution,
            ablation,
            heads,
            patterns,
            left_out,
        })
    }

    /// The likeliest next tokens after each prompt. `None` if the model predicts none.
    ///
    /// # Errors
    /// If polars rejects the table.
    pub fn predictions(&self) -> Result<Option<Table>> {
        let last = self.last_of_lens()?;
        last.map(|table| table.filtered(|row| row.keys.site.as_deref() == Some("resid_post"))).transpose()
    }

    /// The rows of the lens at each prompt's last token.
    ///
    /// # Errors
    /// If polars rejects the table.
    pub fn last_of_lens(&self) -> Result<Option<Table>> {
        let lengths = self.tokens.lengths();
        let last = |row: &Observation| {
            let length = row.keys.prompt.and_then(|prompt| lengths.get(prompt as usize));
            row.keys.position.map(|position| position as usize + 1) == length.copied()
        };
        self.lens.as_ref().map(|table| table.filtered(last)).transpose()
    }
}

/// The metric asked for, or the usual one.
fn metric(model: &Model, tokens: &Tokens, options: &ScanOptions, predicts: bool) -> Result<Metric> {
    match &options.metric {
        Some(metric) if predicts || metric.answers().is_empty() => Ok(metric.clone()),
        Some(metric) => {
            let expected = "one without answers, such as the loss, for a model that predicts no next token";
            Err(Error::argument("metric", expected, metric.name()))
        }
        None if predicts => {
            let logits = model.run(tokens, &Plan::new())?.last(Site::Logits)?;
            let ids =
                Vec::<i64>::try_from(logits.argmax(-1, false)).map_err(Error::torch("reading the first choice"))?;
            Ok(Metric::Logit(Answer::PerPrompt(ids)))
        }
        None if model.config().has_logits() => Ok(Metric::Loss),
        None => Ok(Metric::EmbeddingDistance),
    }
}

/// Direct attribution, or a line that says why there is none.
fn attribution(
    model: &Model,
    tokens: &Tokens,
    metric: &Metric,
    predicts: bool,
    left_out: &mut Vec<String>,
) -> Result<Option<Table>> {
    let family = &model.config().family;
    let any = Tensor::zeros([1], (Kind::Int64, model.device()));
    let reason = if residual::check(model).is_err() {
        format!("the last residual stream of {family} is no sum of what its components write")
    } else if !predicts {
        format!("{family} predicts no next token")
    } else if !matches!(metric, Metric::Logit(_) | Metric::LogitDifference(..)) {
        format!("{} is neither a logit nor a difference of two", metric.name())
    } else if model.logit_directions(&any).is_none() {
        format!("logits of {family} are not linear in the normalised residual stream")
    } else {
        return direct_attribution(model, tokens, metric).map(Some);
    };
    left_out.push(format!("direct attribution: {reason}"));
    Ok(None)
}

/// The ablation of the strongest heads and MLPs, and the strongest heads.
fn strongest(
    model: &Model,
    tokens: &Tokens,
    metric: &Metric,
    attribution: Option<&Table>,
    options: &ScanOptions,
) -> Result<(Table, Vec<(usize, usize)>)> {
    let variants = parts(model, tokens);
    let sweep = Sweep::ablate(model, tokens, Ablation::Zero).metric(metric.clone());
    let Some(attribution) = attribution else {
        let all = sweep.variants(variants).run()?;
        return Ok((all.top(options.parts)?, heads(&all, options.heads)?));
    };
    let written = attribution.filtered(|row| matches!(row.keys.site.as_deref(), Some("result" | "mlp_out")))?;
    let chosen: Vec<Part> = written.top(options.parts)?.rows()?.iter().map(|row| part(&row.keys)).collect();
    let kept = variants.into_iter().filter(|variant| chosen.contains(&part(&variant.keys))).collect();
    Ok((sweep.variants(kept).run()?.top(options.parts)?, heads(&written, options.heads)?))
}

/// Layer and head of a row; an MLP has no head.
type Part = (Option<u32>, Option<u32>);

fn part(keys: &Keys) -> Part {
    (keys.layer, keys.head)
}

/// A variant for every head and every MLP.
fn parts(model: &Model, tokens: &Tokens) -> Vec<Variant> {
    let sweep = || Sweep::ablate(model, tokens, Ablation::Zero);
    let mut all = sweep().each(Site::Z, Every::Head).planned().to_vec();
    if Site::MlpOut(0).check(model.config()).is_ok() {
        all.extend(sweep().each(Site::MlpOut, Every::Layer).planned().iter().cloned());
    }
    for variant in &mut all {
        variant.keys.site = variant.edits.first().map(|edit| edit.site.kind().to_owned());
    }
    all
}

/// The heads with the largest effects, largest first.
fn heads(table: &Table, n: usize) -> Result<Vec<(usize, usize)>> {
    let largest = table.filtered(|row| row.keys.head.is_some())?.top(n)?;
    let head = |row: &Observation| Some((row.keys.layer? as usize, row.keys.head? as usize));
    Ok(largest.rows()?.iter().filter_map(head).collect())
}

fn number(n: usize) -> Option<u32> {
    u32::try_from(n).ok()
}

/// The ids and texts of the prompts.
fn input(model: &Model, tokens: &Tokens) -> Result<Table> {
    let mut rows = vec![];
    for prompt in 0..tokens.batch() {
        for (position, (id, piece)) in tokens.row(prompt).iter().zip(tokens.pieces(prompt)).enumerate() {
            let (prompt, position) = (number(prompt), number(position));
            let keys = Keys { prompt, position, token: Some(piece), ..Keys::default() };
            rows.push(Observation { keys, metric: "id".to_owned(), value: *id as f64, ..Observation::default() });
        }
    }
    let what = serde_json::json!({"what": "tokens", "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, None)?)
}

/// What heads attend to from the last token (`last`), or the mean over queries.
fn attention(model: &Model, run: &Run, heads: &[(usize, usize)], last: bool) -> Result<Table> {
    let mut rows = vec![];
    for &(layer, head) in heads {
        let pattern = run.get(Site::Pattern(layer))?.select(1, head as i64);
        for (prompt, length) in run.tokens().lengths().into_iter().enumerate() {
            let real = pattern.get(prompt as i64).narrow(0, 0, length as i64).narrow(1, 0, length as i64);
            let seen = if last { real.get(-1) } else { real.mean_dim([0i64].as_slice(), false, None::<Kind>) };
            let seen = Vec::<f64>::try_from(seen.to_kind(Kind::Double)).map_err(Error::torch("reading a pattern"))?;
            for (key, (value, piece)) in seen.into_iter().zip(run.tokens().pieces(prompt)).enumerate() {
                let (layer, head) = (number(layer), number(head));
                let (prompt, key) = (number(prompt), number(key));
                let keys = Keys { prompt, layer, head, key, token: Some(piece), ..Keys::default() };
                rows.push(Observation { keys, metric: "attention".to_owned(), value, ..Observation::default() });
            }
        }
    }
    let seen = if last { "the last token" } else { "the mean over queries" };
    let what = serde_json::json!({"what": "attention", "from": seen, "tokens": run.tokens().provenance()});
    Table::new(rows, model.provenance(what, None)?)
}
