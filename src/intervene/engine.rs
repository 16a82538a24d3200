//! How a sweep is computed.
//!
//! A variant joins the pass where it first departs from the unchanged run: at a step of a block, with that run's
//! activations, and from the first position that it changes, with that run's keys and values before it. Variants that
//! start at the same position go through the layers together, stacked on the batch axis. Where the metric reads one
//! position of each prompt, the last block computes no other, and only the logits that it reads are computed.

use std::collections::BTreeMap;

use ndarray::{Array2, Axis as NdAxis};
use tch::Tensor;

use super::metric::{Metric, Output, Reader};
use super::sweep::{Strategy, Variant};
use crate::error::{Error, Result};
use crate::model::{Bank, Edit, Entry, Joins, KvCache, Model, Pass, Past, Program, Site, Step, Tokens};
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

/// What variants must have in common to go through the layers together; the order is that of computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    /// The pass computes the logits itself: they are edited, or the whole loop is asked for.
    whole: bool,
    /// The first position that is computed.
    first: usize,
    /// Something is edited behind the last block's input, so that its positions can't all be left out.
    late: bool,
}

/// The unchanged run.
struct Base {
    /// Its values where variants join.
    taps: BTreeMap<Site, Tensor>,
    /// Its keys and values, where variants leave out positions.
    past: KvCache,
}

/// The metric of the unchanged run, `[batch]`, and of every variant, `[variant, batch]`.
pub(super) fn run(job: &Job<'_>) -> Result<(Vec<f64>, Array2<f64>)> {
    job.tokens.check(job.model.config())?;
    let mut groups: BTreeMap<Group, Vec<(Entry, usize)>> = BTreeMap::new();
    for (number, variant) in job.variants.iter().enumerate() {
        let (group, entry) = job.place(variant)?;
        groups.entry(group).or_default().push((entry, number));
    }
    let (base, end) = job.base(&groups)?;
    let reader = Reader::new(job.model, job.metric, job.tokens, &end)?;
    let baseline = to_array(&reader.read(&end)?)?.row(0).to_vec();
    let mut values = Array2::zeros((job.variants.len(), job.tokens.batch()));
    let mut progress = Progress::new("variants", job.variants.len());
    for (group, mut members) in groups {
        members.sort_unstable();
        for chunk in members.chunks(job.at_once(group)) {
            let output = job.compute(group, chunk, &base, &reader)?;
            let read = to_array(&reader.read(&output)?)?;
            chunk.iter().zip(read.axis_iter(NdAxis(0))).for_each(|((_, n), row)| values.row_mut(*n).assign(&row));
            progress.add(chunk.len());
        }
    }
    Ok((baseline, values))
}

/// The metric of the unchanged run, `[batch]`.
pub(super) fn unchanged(job: &Job<'_>) -> Result<Vec<f64>> {
    job.tokens.check(job.model.config())?;
    let (_, end) = job.base(&BTreeMap::new())?;
    Ok(to_array(&Reader::new(job.model, job.metric, job.tokens, &end)?.read(&end)?)?.row(0).to_vec())
}

impl Job<'_> {
    /// With which others a variant is computed, and where it joins them.
    fn place(&self, variant: &Variant) -> Result<(Group, Entry)> {
        let config = self.model.config();
        if variant.edits.is_empty() {
            return Err(Error::argument("variant", "at least one edit", "none"));
        }
        variant.edits.iter().try_for_each(|edit| edit.site.check(config))?;
        let unseen = variant.edits.iter().find(|edit| Entry::of(edit.site, config).is_none());
        if let (Some(edit), Metric::EmbeddingDistance) = (unseen, self.metric) {
            let (expected, found) = ("a metric that reads the logits".to_owned(), self.metric.name().to_owned());
            return Err(Error::Edit { site: edit.site, expected, found });
        }
        let entries: Option<Vec<Entry>> = variant.edits.iter().map(|edit| Entry::of(edit.site, config)).collect();
        let entries = entries.filter(|_| self.strategy == Strategy::Auto).unwrap_or_default();
        let (Some(&entry), Some(&last)) = (entries.iter().min(), entries.iter().max()) else {
            return Ok((Group { whole: true, first: 0, late: true }, Entry(0, Step::Ids)));
        };
        let first = variant.edits.iter().map(first_position).min().unwrap_or(0);
        let late = last > Entry(config.n_layers - 1, Step::ResidPre);
        Ok((Group { whole: false, first: self.metric.first(first, self.model, self.tokens), late }, entry))
    }

    /// The unchanged run, and its end.
    fn base(&self, groups: &BTreeMap<Group, Vec<(Entry, usize)>>) -> Result<(Base, Output)> {
        let sites = groups.values().flatten().flat_map(|(entry, _)| entry.needs());
        let last = Site::ResidPost(self.model.config().n_layers - 1);
        let program = Program::taps(sites.chain([last]));
        let mut past = KvCache::default();
        let leaves_out = groups.keys().any(|group| group.first > 0);
        let before = if leaves_out { Past::Growing(&mut past) } else { Past::None };
        let hidden = self.model.hidden_padding(self.tokens);
        let pass = Pass::over(self.model, &program, self.tokens.positions(), hidden, before).with_types(self.types());
        let taps = pass.taps(self.tokens.ids(self.model.device()))?;
        let missing = || Error::NotTapped { site: last, tapped: vec![] };
        let resid = taps.get(&last).ok_or_else(missing)?.shallow_clone();
        Ok((Base { taps, past }, Output { resid, logits: None, first: 0, picked: false }))
    }

    fn types(&self) -> Option<Tensor> {
        self.tokens.types(self.model.device())
    }

    /// How many variants are computed together.
    fn at_once(&self, group: Group) -> usize {
        if self.strategy == Strategy::Naive {
            return 1;
        }
        let config = self.model.config();
        let positions = self.tokens.positions();
        let tokens = self.tokens.batch() * (positions - group.first);
        let width = 8 * config.d_model + 3 * config.d_mlp + 4 * config.n_heads * config.d_head;
        let pattern = 3 * tokens * positions * config.n_heads;
        let before = 2 * self.tokens.batch() * group.first * config.n_heads * config.d_head;
        let logits = if group.whole { tokens * config.vocab } else { 0 };
        let bytes = (tokens * width + pattern + before + logits) * self.model.kind().elt_size_in_bytes();
        let budget = self.memory.unwrap_or_else(|| free_memory() / 4);
        (budget / bytes.max(1)).clamp(1, MOST_TOKENS.div_ceil(tokens))
    }

    /// The end of the runs of some variants of a group, sorted by where they join.
    fn compute(&self, group: Group, chunk: &[(Entry, usize)], base: &Base, reader: &Reader<'_>) -> Result<Output> {
        let (model, first) = (self.model, group.first as i64);
        let program = self.program(group, chunk)?;
        let mut copies: BTreeMap<Entry, i64> = BTreeMap::new();
        chunk.iter().for_each(|(entry, _)| *copies.entry(*entry).or_default() += 1);
        let joins = Joins { ids: self.tokens.ids(model.device()), copies, base: Some(&base.taps), first };
        let past = if first > 0 { Past::Fixed(&base.past, first) } else { Past::None };
        let positions = self.tokens.positions() - group.first;
        let wanted = if group.whole { None } else { reader.wanted(first) };
        let hidden = model.hidden_padding(self.tokens);
        let mut pass = Pass::over(model, &program, positions, hidden, past).with_types(self.types()).only(wanted);
        let resid = pass.residual(&joins, model.config().n_layers)?;
        let picked = resid.size()[1] != positions as i64;
        let whole = group.whole && model.config().has_logits();
        let logits = whole.then(|| pass.logits(&resid)).transpose()?;
        Ok(Output { resid, logits, first, picked })
    }

    /// The edits of the variants, each for its own rows of the stack.
    fn program(&self, group: Group, chunk: &[(Entry, usize)]) -> Result<Program> {
        let mut program = Program::taps([]);
        let batch = self.tokens.batch();
        for (place, &(_, number)) in chunk.iter().enumerate() {
            for edit in &self.variants[number].edits {
                let entry = edit.action.key().map(|key| self.bank.get(key, edit.site)).transpose()?;
                let rows = Some((place * batch, batch));
                program.push(edit.clone(), entry, rows, self.model.config(), self.tokens, group.first)?;
            }
        }
        Ok(program)
    }
}

/// More tokens at once gain nothing: the matrix products are long enough.
const MOST_TOKENS: usize = 8192;

/// The first position that an edit changes.
fn first_position(edit: &Edit) -> usize {
    edit.at.positions.as_ref().and_then(|positions| positions.iter().min().copied()).unwrap_or(0)
}

/// Bytes of memory that are free, by the system's own estimate; 1 GiB where it gives none.
fn free_memory() -> usize {
    let from = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok().map(|kib: usize| kib * 1024)
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
