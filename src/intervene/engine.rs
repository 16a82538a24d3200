//! How a sweep is computed.
//!
//! Variants are grouped by where they first depart from the unchanged run. A group resumes there from that run's
//! residual stream (behind the heads, where only z changes), its variants stacked below each other in the batch.

use std::collections::BTreeMap;

use ndarray::{Array2, Axis as NdAxis};
use tch::Tensor;

use super::metric::{Metric, Output, Reader};
use super::sweep::{Strategy, Variant};
use crate::error::{Error, Result};
use crate::model::{Bank, Edit, Model, Pass, Program, Site, Start, Tokens};
use crate::progress::Progress;

/// A sweep with everything at hand.
pub(super) struct Job<'a> {
    pub model: &'a Model,
    pub tokens: &'a Tokens,
    pub variants: &'a [Variant],
    pub bank: &'a Bank,
    pub metric: &'a Metric,
    pub strategy: Strategy,
    pub memory: Option<usize>,
}

/// Where a variant first departs from the unchanged run, as (layer, step): the order is that of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(usize, Step);

/// What a group of variants resumes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The token ids.
    Ids,
    /// The residual stream entering the block.
    ResidPre,
    /// That, and the block's z.
    Z,
    /// The token ids, and the pass computes all logits itself: they are edited, or the whole loop is asked for.
    Whole,
}

/// The metric of the unchanged run, `[batch]`, and of every variant, `[variant, batch]`.
pub(super) fn run(job: &Job<'_>) -> Result<(Vec<f64>, Array2<f64>)> {
    job.tokens.check(job.model.config())?;
    let mut groups: BTreeMap<Entry, Vec<usize>> = BTreeMap::new();
    for (number, variant) in job.variants.iter().enumerate() {
        groups.entry(job.entry(variant)?).or_default().push(number);
    }
    let (base, starts) = job.base(groups.keys().copied())?;
    let reader = Reader::new(job.model, job.metric, job.tokens, &base)?;
    let baseline = to_array(&reader.read(&base)?)?.row(0).to_vec();
    let mut values = Array2::zeros((job.variants.len(), job.tokens.batch()));
    let mut progress = Progress::new("variants", job.variants.len());
    for (entry, numbers) in groups {
        for chunk in numbers.chunks(job.at_once(entry)) {
            let output = job.compute(entry, &starts, chunk)?;
            let read = to_array(&reader.read(&output)?)?;
            chunk.iter().zip(read.axis_iter(NdAxis(0))).for_each(|(&number, row)| values.row_mut(number).assign(&row));
            progress.add(chunk.len());
        }
    }
    Ok((baseline, values))
}

/// The residual stream where groups start: entering a block, and with it the block's z where that is needed.
type Starts = BTreeMap<Site, Tensor>;

impl Job<'_> {
    fn entry(&self, variant: &Variant) -> Result<Entry> {
        if variant.edits.is_empty() {
            return Err(Error::argument("variant", "at least one edit", "none"));
        }
        let of = |edit: &Edit| match (edit.site, edit.site.layer()) {
            (Site::Logits | Site::LnFinalScale, _) => Entry(self.model.config().n_layers, Step::Whole),
            (_, None) => Entry(0, Step::Ids),
            (site, Some(layer)) if behind_heads(site, self.model) => Entry(layer, Step::Z),
            (_, Some(layer)) => Entry(layer, Step::ResidPre),
        };
        let whole = Entry(self.model.config().n_layers, Step::Whole);
        let last = variant.edits.iter().map(of).max();
        match self.strategy {
            Strategy::Auto if last != Some(whole) => Ok(variant.edits.iter().map(of).min().unwrap_or(whole)),
            _ => Ok(whole),
        }
    }

    /// The unchanged run: its end, and what groups start from.
    fn base(&self, entries: impl Iterator<Item = Entry>) -> Result<(Output, Starts)> {
        let sites = entries.flat_map(|entry| match entry {
            Entry(layer, Step::ResidPre) => vec![Site::ResidPre(layer)],
            Entry(layer, Step::Z) => vec![Site::ResidPre(layer), Site::Z(layer)],
            Entry(_, Step::Ids | Step::Whole) => vec![],
        });
        let last = Site::ResidPost(self.model.config().n_layers - 1);
        let program = Program::taps(sites.chain([last]));
        let mut starts = Pass::new(self.model, &program, self.tokens).taps(self.ids(1))?;
        let not_tapped = Error::NotTapped { site: last, tapped: vec![] };
        let resid = starts.remove(&last).ok_or(not_tapped)?;
        Ok((Output { resid, logits: None }, starts))
    }

    /// How many variants are computed together.
    fn at_once(&self, entry: Entry) -> usize {
        if self.strategy == Strategy::Naive {
            return 1;
        }
        let config = self.model.config();
        let tokens = self.tokens.batch() * self.tokens.positions();
        let width = 8 * config.d_model + 3 * config.d_mlp + 4 * config.n_heads * config.d_head;
        let pattern = self.tokens.batch() * config.n_heads * self.tokens.positions().pow(2);
        let logits = if entry.1 == Step::Whole { tokens * config.vocab } else { 0 };
        let bytes = (tokens * width + 3 * pattern + logits) * self.model.kind().elt_size_in_bytes();
        let budget = self.memory.unwrap_or_else(|| free_memory() / 4);
        (budget / bytes.max(1)).clamp(1, MOST_TOKENS.div_ceil(tokens))
    }

    /// The end of the runs of some variants that share an entry.
    fn compute(&self, entry: Entry, starts: &Starts, numbers: &[usize]) -> Result<Output> {
        let (model, n) = (self.model, numbers.len());
        let program = self.program(numbers)?;
        let hide = self.tokens.is_padded() && !model.config().causal;
        let valid = hide.then(|| self.tokens.valid(model.device()).repeat([n as i64, 1]));
        let stack = |site: Site| {
            let missing = || Error::NotTapped { site, tapped: starts.keys().map(Site::to_string).collect() };
            let one = starts.get(&site).ok_or_else(missing)?;
            let mut times = vec![1i64; one.dim()];
            times[0] = n as i64;
            Ok::<Tensor, Error>(one.repeat(times.as_slice()))
        };
        let start = match entry {
            Entry(_, Step::Ids | Step::Whole) => Start::Ids(self.ids(n as i64)),
            Entry(layer, Step::ResidPre) => Start::ResidPre(layer, stack(Site::ResidPre(layer))?),
            Entry(layer, Step::Z) => Start::Z(layer, stack(Site::ResidPre(layer))?, stack(Site::Z(layer))?),
        };
        let mut pass = Pass::over(model, &program, self.tokens.positions(), valid);
        let resid = pass.residual(start, model.config().n_layers)?;
        let whole = entry.1 == Step::Whole && model.config().has_logits();
        let logits = whole.then(|| pass.logits(&resid)).transpose()?;
        Ok(Output { resid, logits })
    }

    /// The edits of the variants, each for its own rows of the stack.
    fn program(&self, numbers: &[usize]) -> Result<Program> {
        let mut program = Program::taps([]);
        let (batch, positions) = (self.tokens.batch(), self.tokens.positions());
        for (place, &number) in numbers.iter().enumerate() {
            for edit in &self.variants[number].edits {
                let entry = edit.action.key().map(|key| self.bank.get(key, edit.site)).transpose()?;
                let rows = Some((place * batch, batch));
                program.push(edit.clone(), entry, rows, self.model.config(), (batch, positions))?;
            }
        }
        Ok(program)
    }

    /// The token ids of `n` stacked copies of the batch.
    fn ids(&self, n: i64) -> Tensor {
        self.tokens.ids(self.model.device()).repeat([n, 1])
    }
}

/// More tokens at once gain nothing: the matrix products are long enough.
const MOST_TOKENS: usize = 8192;

/// Whether `site` stands at or behind its block's z in the forward pass.
fn behind_heads(site: Site, model: &Model) -> bool {
    let post = model.config().norm_place == crate::model::NormPlace::Post;
    match site {
        Site::Ln1Scale(_) => post,
        Site::ResidPre(_) | Site::Q(_) | Site::K(_) | Site::V(_) | Site::Scores(_) | Site::Pattern(_) => false,
        _ => true,
    }
}

/// Bytes of memory that are free, by the system's own estimate; 1 GiB where it gives none.
fn free_memory() -> usize {
    let from = |text: String| {
        let line =
            text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().strip_suffix(" kB")?.parse().ok();
        line.map(|kib: usize| kib * 1024)
    };
    std::fs::read_to_string("/proc/meminfo").ok().and_then(from).unwrap_or(1 << 30)
}

/// `[n, batch]` to ndarray.
fn to_array(values: &Tensor) -> Result<Array2<f64>> {
    let (n, batch) = values.size2().map_err(Error::torch("reading a metric"))?;
    let flat = Vec::<f64>::try_from(values.flatten(0, -1)).map_err(Error::torch("reading a metric"))?;
    Array2::from_shape_vec((n as usize, batch as usize), flat).map_err(|_| Error::Shape {
        at: "metric".into(),
        expected: "[variant, batch]".into(),
        found: values.size(),
    })
}
