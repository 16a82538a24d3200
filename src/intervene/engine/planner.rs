//! Which variants go through the layers together, from where, how many at once, and at what cost?

use std::collections::{BTreeMap, BTreeSet};

use super::explanation::{Explanation, PlannedGroup};
use super::{Engine, Setup, Strategy, Variant};
use crate::error::{Error, Result};
use crate::intervene::metric::Metric;
use crate::model::{
    Action, Axis, BlockWiring, Cut, Edit, Entry, How, Model, ModelConfig, PassSize, Site, Size, Tokens, Wire,
    last_query_pays,
};

/// What variants must share to go through the layers together. Groups are computed in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::intervene) struct Group {
    /// The pass itself computes the logits, because they are edited or the strategy is naive.
    pub whole: bool,
    /// The first position computed.
    pub first: usize,
    /// Something in the last block is edited at or after its keys, so the block cannot drop positions there.
    pub late: bool,
}

/// Where a variant joins the pass, and with which group.
#[derive(Debug, Clone)]
pub(in crate::intervene) struct Place {
    pub group: Group,
    pub entry: Entry,
    /// The heads that it changes in the block where it joins, if it joins with these heads only.
    pub heads: Option<Vec<usize>>,
    /// Nothing in the last block after its heads is edited, so only what the metric reads is computed there.
    pub ends_with_heads: bool,
}

impl Place {
    /// Whether an edit at `site` is among the heads that the variant joins with.
    pub(super) fn within(&self, site: Site) -> bool {
        site.layer() == Some(self.entry.layer()) && site.is_by_head()
    }
}

/// The most tokens worth stacking: matrix products are long enough by then, and their results still fit in the cache.
const MOST_TOKENS: usize = 2048;
/// The fewest tokens worth stacking; shorter products are much slower per token.
const ENOUGH_TOKENS: usize = 512;
/// The number of stacks per thread that lets all threads finish at about the same time.
const STACKS: usize = 4;

impl Setup<'_> {
    /// Where a variant joins.
    pub(in crate::intervene) fn place(&self, variant: &Variant) -> Result<Place> {
        let (config, wiring, edits) = (self.model.config(), self.model.wiring(), &variant.edits);
        if edits.is_empty() {
            return Err(Error::argument("variant", "at least one edit", "none"));
        }
        edits.iter().try_for_each(|edit| edit.site.check(config))?;
        let unseen = edits.iter().find(|edit| wiring.is_after_blocks(edit.site));
        let of_stream = self.metrics.iter().find(|metric| matches!(metric, Metric::EmbeddingDistance));
        if let (Some(edit), Some(metric)) = (unseen, of_stream) {
            let (expected, found) = ("a metric that reads the logits".to_owned(), metric.name().to_owned());
            return Err(Error::Edit { site: edit.site, expected, found });
        }
        if unseen.is_some() || self.strategy == Strategy::Naive {
            let group = Group { whole: true, first: 0, late: true };
            return Ok(Place { group, entry: Entry::START, heads: None, ends_with_heads: false });
        }
        if self.model.attends_across() {
            // Two sequences of positions: nothing is left out but the steps before the first that changes.
            let group = Group { whole: false, first: 0, late: true };
            return Ok(Place { group, entry: departs(edits, self.model), heads: None, ends_with_heads: false });
        }
        let last = wiring.n_layers() - 1;
        let block = wiring.block(last);
        // The steps in which the edits of the last block fire.
        let steps: Vec<usize> = edits
            .iter()
            .filter(|edit| edit.site.layer() == Some(last))
            .filter_map(|edit| block.fires_in(edit.site))
            .collect();
        // A function of a whole site needs all of its positions and heads.
        let sees_all = edits.iter().any(|edit| edit.action.sees_all());
        let late = sees_all || steps.iter().any(|&step| Some(step) >= block.made_in(Wire::K));
        let first = edits.iter().filter_map(|edit| self.first_position(edit)).min().unwrap_or(0);
        let first = if sees_all { 0 } else { self.first_read(first) };
        let group = Group { whole: false, first, late };
        let ends_with_heads = !sees_all && steps.iter().all(|&step| step <= block.attend_step());
        let (entry, heads) = joins(edits, self.model, group.first);
        Ok(Place { group, entry, heads, ends_with_heads })
    }

    /// The first position that must be computed if `first` is the first that changes.
    pub(super) fn first_read(&self, first: usize) -> usize {
        self.metrics.iter().map(|metric| metric.first(first, self.model, self.tokens)).min().unwrap_or(0)
    }

    /// Whether none of a variant's edits can change anything.
    pub(in crate::intervene) fn changes_nothing(&self, variant: &Variant) -> bool {
        let sited = |edit: &Edit| edit.site.check(self.model.config()).is_ok();
        variant.edits.iter().all(|edit| sited(edit) && self.first_position(edit).is_none())
    }

    /// The first position at which an edit can change anything; `None` if it cannot.
    ///
    /// In a causal model the first query cannot unless there are attention sinks: it sees a single key, which gets all
    /// of its attention. And where the prompts of both runs start with the same tokens, a patch replaces activations by
    /// the same ones.
    fn first_position(&self, edit: &Edit) -> Option<usize> {
        let config = self.model.config();
        if self.strategy == Strategy::Naive || !config.causal || config.encoder.is_some() {
            return Some(edit.at.positions.iter().flatten().min().copied().unwrap_or(0));
        }
        let query = usize::from(!config.sinks && matches!(edit.site, Site::Q(_)));
        let first = query.max(self.same_until(edit));
        match &edit.at.positions {
            Some(positions) => positions.iter().copied().filter(|&position| position >= first).min(),
            None => (first < self.tokens.positions()).then_some(first),
        }
    }

    /// The first position at which what an edit writes can differ from the unchanged run.
    fn same_until(&self, edit: &Edit) -> usize {
        let replaces = match self.same.action {
            Some(action) => edit.action == *action,
            None => matches!(edit.action, Action::Replace { .. }),
        };
        let by_position = edit.site.axes().iter().any(|axis| matches!(axis, Axis::Position | Axis::Query));
        let all = self.same.before.iter().enumerate();
        let asked = all.filter(|(prompt, _)| edit.at.prompts.as_ref().is_none_or(|prompts| prompts.contains(prompt)));
        if replaces && by_position { asked.map(|(_, &first)| first).min().unwrap_or(0) } else { 0 }
    }

    /// How many stacks of a group are computed at once: what memory holds, at most one per thread.
    pub(super) fn workers(&self, group: Group) -> usize {
        (self.budget() / self.bytes(group).max(1)).clamp(1, self.machine.threads)
    }

    /// The most variants of a group in a stack.
    pub(super) fn most_at_once(&self, group: Group) -> usize {
        if self.strategy == Strategy::Naive {
            return 1;
        }
        let own = self.budget() / self.workers(group);
        (own / self.bytes(group).max(1)).clamp(1, MOST_TOKENS.div_ceil(self.computed(group)))
    }

    /// How many of a group's `n` variants go in a stack, so that every thread gets several stacks.
    pub(super) fn at_once(&self, group: Group, n: usize) -> usize {
        let shared = n.div_ceil(STACKS * self.workers(group)).max(ENOUGH_TOKENS.div_ceil(self.computed(group)));
        let most = self.most_at_once(group);
        if self.workers(group) > 1 { most.min(shared) } else { most }
    }

    /// The number of tokens computed per variant.
    fn computed(&self, group: Group) -> usize {
        self.tokens.batch() * (self.longest() - group.first)
    }

    /// The most positions of a block: those of the source, where there is one that is longer.
    fn longest(&self) -> usize {
        self.tokens.source().map_or(0, Tokens::positions).max(self.tokens.positions())
    }

    /// Bytes available to stacked activations.
    pub(super) fn budget(&self) -> usize {
        self.machine.memory.saturating_sub(self.kept)
    }

    /// Bytes of the batch's values at some sites.
    pub(in crate::intervene) fn bytes_at(&self, sites: &[Site]) -> usize {
        let size = |site: &Site| site.shape_for(self.model.config(), self.tokens).iter().product::<i64>() as usize;
        sites.iter().map(size).sum::<usize>() * self.model.kind().elt_size_in_bytes()
    }

    /// Bytes of `width` numbers at each position of the batch.
    pub(in crate::intervene) fn bytes_of(&self, width: usize) -> usize {
        self.tokens.batch() * self.longest() * width * self.model.kind().elt_size_in_bytes()
    }

    /// Bytes kept of the unchanged run for variants that join at `places`, and for `more`.
    pub(in crate::intervene) fn base_bytes(&self, places: &[Place], more: &[(usize, Wire)]) -> usize {
        let (config, wiring) = (self.model.config(), self.model.wiring());
        let entries: BTreeSet<Entry> = places.iter().map(|place| place.entry).collect();
        let mut values: BTreeSet<(usize, Wire)> = entries.into_iter().flat_map(|entry| entry.needs(wiring)).collect();
        values.extend(more);
        let mut width = config.d_model; // the last residual stream
        if places.iter().any(|place| place.group.first > 0) {
            width += wiring.n_layers() * (Wire::K.width(config) + Wire::V.width(config));
        }
        let compared = self.metrics.iter().filter(|metric| matches!(metric, Metric::Kl)).count();
        width += compared * config.vocab;
        self.bytes_of(width + values.into_iter().map(|(_, wire)| wire.width(config)).sum::<usize>())
    }

    /// Estimated peak bytes of one variant of a group, with patterns.
    pub(in crate::intervene) fn bytes(&self, group: Group) -> usize {
        let (tokens, keys) = (self.computed(group), self.longest());
        let size = PassSize { tokens, keys, logits: group.whole, patterns: true };
        self.model.config().pass_bytes(self.model.wiring(), self.model.kind(), size)
    }

    /// Fails if memory does not hold all `steps` of integrated gradients, which go through all layers, and back,
    /// together.
    pub(in crate::intervene) fn check_steps(&self, steps: usize) -> Result<()> {
        let pass = self.bytes(Group { whole: false, first: 0, late: false });
        let limit = crate::memory::usable(crate::device::free_memory(self.model.device()));
        crate::take::within("steps", steps, pass * self.model.config().n_layers, limit)
    }
}

/// Where a run with these edits departs from the unchanged one.
fn departs(edits: &[Edit], model: &Model) -> Entry {
    let layers: Option<Vec<usize>> = edits.iter().map(|edit| edit.site.layer()).collect();
    let Some(layer) = layers.and_then(|layers| layers.into_iter().min()) else { return Entry::START };
    let here = edits.iter().filter(|edit| edit.site.layer() == Some(layer));
    Entry::of_edited(&here.map(|edit| edit.site).collect::<Vec<_>>(), model.wiring())
}

/// Where a run with these edits departs from the unchanged one, and the heads in which it does, if nothing else changes
/// there.
fn joins(edits: &[Edit], model: &Model, first: usize) -> (Entry, Option<Vec<usize>>) {
    let whole = departs(edits, model);
    let Cut::After { layer, step } = whole.cut else { return (whole, None) };
    let here: Vec<&Edit> = edits.iter().filter(|edit| edit.site.layer() == Some(layer)).collect();
    if edits.iter().any(|edit| edit.action.sees_all()) {
        return (whole, None);
    }
    let wiring = model.wiring().block(layer);
    if let Some((how, heads)) = some_heads(&here, wiring, model.config()) {
        return (Entry { cut: Cut::After { layer, step: wiring.lands() }, how }, Some(heads));
    }
    let to = wiring.attend_step() - 1;
    // In the last block, queries may be dropped instead.
    if step < to && layer + 1 < model.wiring().n_layers() && one_position(&here, wiring, step, first) {
        return (Entry { cut: Cut::After { layer, step: to }, how: How::FirstPosition { from: step } }, None);
    }
    (whole, None)
}

/// The heads that the edits of a block change, if they change nothing else up to the step at which head outputs are
/// added to the residual stream.
fn some_heads(here: &[&Edit], wiring: &BlockWiring, config: &ModelConfig) -> Option<(How, Vec<usize>)> {
    let lands = wiring.lands();
    let landed = wiring.steps()[lands].wire;
    let before = |edit: &&&Edit| {
        Wire::of(edit.site) != Some(landed) && wiring.fires_in(edit.site).is_some_and(|step| step <= lands)
    };
    let (mut heads, mut attend) = (BTreeSet::new(), false);
    for edit in here.iter().filter(before) {
        let asked = edit.at.heads.as_ref().filter(|_| edit.site.is_by_head())?;
        let shared = if edit.site.axes().contains(&Axis::KvHead) { config.n_heads / config.n_kv_heads } else { 1 };
        heads.extend(asked.iter().flat_map(|head| head * shared..(head + 1) * shared));
        attend |= !matches!(edit.site, Site::Z(_));
    }
    let apart = !attend || wiring.attend.has_heads_apart();
    let some = !heads.is_empty() && heads.len() < config.n_heads && apart;
    some.then(|| (How::Heads { attend, n: heads.len() }, heads.into_iter().collect()))
}

/// Whether the edits of a block, up to attention, change only the first computed position.
fn one_position(here: &[&Edit], wiring: &BlockWiring, from: usize, first: usize) -> bool {
    here.iter().all(|edit| match wiring.fires_in(edit.site) {
        Some(step) if step <= from => {
            edit.at.positions.as_ref().is_some_and(|positions| positions.iter().all(|&position| position == first))
        }
        // A value between two steps is complete when it is edited; a value inside a step is not.
        Some(step) if step < wiring.attend_step() => {
            wiring.steps()[step].wire.site(0).is_some_and(|site| site.at_layer(0) == edit.site.at_layer(0))
        }
        _ => true,
    })
}

impl Engine<'_> {
    /// Explains how the sweep would be computed.
    pub(in crate::intervene) fn explain(&self, variants: &[Variant]) -> Result<Explanation> {
        let whole = self.arithmetic(None);
        // The unchanged run computes only the logits that the metric reads, as a variant does.
        let vocab = self.setup.model.config().d_model * self.setup.model.config().vocab;
        let (tokens, read) = (self.setup.tokens.batch() * self.setup.tokens.positions(), self.reader.unembedded(0));
        let unchanged = whole - (tokens.saturating_sub(read) * vocab) as f64;
        let mut groups: BTreeMap<Group, Vec<Place>> = BTreeMap::new();
        let sees_all = |variant: &&Variant| variant.edits.iter().any(|edit| edit.action.sees_all());
        let computed_whole = variants.iter().filter(sees_all).count();
        let no_ops = variants.iter().filter(|variant| self.setup.changes_nothing(variant)).count();
        for variant in variants.iter().filter(|variant| !self.setup.changes_nothing(variant)) {
            let place = self.setup.place(variant)?;
            groups.entry(place.group).or_default().push(place);
        }
        let stacks = groups.keys().map(|&group| self.setup.workers(group)).min().unwrap_or(1);
        let groups: Vec<PlannedGroup> =
            groups.into_iter().map(|(group, places)| self.planned(group, &places)).collect();
        Ok(Explanation {
            needed: unchanged + groups.iter().map(|group| group.needed).sum::<f64>(),
            naive: whole * (variants.len() + 1) as f64,
            no_ops,
            computed_whole,
            stacks,
            budget: self.setup.budget(),
            kept: self.setup.kept,
            parts: 1,
            groups,
        })
    }

    fn planned(&self, group: Group, places: &[Place]) -> PlannedGroup {
        let mut joins = BTreeMap::new();
        places.iter().for_each(|place| *joins.entry(place.entry.layer()).or_default() += 1);
        let at_once = self.setup.at_once(group, places.len()).min(places.len());
        PlannedGroup {
            variants: places.len(),
            first_position: group.first,
            joins,
            at_once,
            bytes: at_once * self.setup.bytes(group),
            needed: places.iter().map(|place| self.arithmetic(Some(place))).sum(),
        }
    }

    /// Multiplications in the matrix products of a variant's pass, or of a whole pass.
    fn arithmetic(&self, place: Option<&Place>) -> f64 {
        let Setup { model, tokens, .. } = self.setup;
        let (config, wiring) = (model.config(), model.wiring());
        let (batch, keys) = (tokens.batch(), tokens.positions());
        let source = tokens.source().map_or(0, Tokens::positions);
        let Some(place) = place.filter(|place| !place.group.whole) else {
            let work = Work { model, batch, positions: keys, keys, source, trim: None, last_query: false };
            let blocks: f64 = (0..wiring.n_layers()).map(|layer| work.after(layer, None)).sum();
            return blocks + (batch * keys * config.d_model * config.vocab) as f64;
        };
        let first = place.group.first;
        let last = wiring.n_layers() - 1;
        let wanted = self.reader.wanted(first as i64).is_some() && !model.attends_across();
        let trim = match (wanted, place.group.late) {
            (true, false) => Some(wiring.block(last).keys_done()),
            (true, true) if place.ends_with_heads => Some(wiring.block(last).attend_step()),
            _ => None,
        };
        let last_query = trim.is_some() && !place.group.late && last_query_pays(model, keys - first);
        let work = |layer: usize| {
            let trim = trim.filter(|_| layer == last);
            let last_query = last_query && layer == last;
            Work { model, batch, positions: keys - first, keys, source, trim, last_query }
        };
        let layer = place.entry.layer();
        let later: f64 = (layer + 1..wiring.n_layers()).map(|at| work(at).after(at, None)).sum();
        let unembed = self.reader.unembedded(first as i64) * config.d_model * config.vocab;
        work(layer).of(place.entry) + later + unembed as f64
    }
}

/// The size of a block's work.
struct Work<'a> {
    model: &'a Model,
    batch: usize,
    /// The number of positions computed, and the number attended to.
    positions: usize,
    keys: usize,
    /// The number of positions of an encoder-decoder's source.
    source: usize,
    /// The step after which only one position of each prompt is computed.
    trim: Option<usize>,
    /// Whether that position attends directly to the residual stream (the `last_query` fast path).
    last_query: bool,
}

impl Work<'_> {
    fn step(&self, layer: usize, number: usize, positions: usize, heads: Option<usize>) -> f64 {
        let wiring = self.model.wiring().block(layer);
        let step = &wiring.steps()[number];
        let of_source = layer < self.model.config().encoder_layers();
        let positions = match self.trim {
            _ if of_source || step.wire.is_of_source() => self.source,
            Some(trim) if number > trim => 1,
            _ => positions,
        };
        let keys = if of_source || step.wire == Wire::CrossZ { self.source } else { self.keys };
        wiring.products(step, self.model.config(), &Size { rows: self.batch * positions, keys, heads })
    }

    /// The work of the steps after `step`, or of all steps.
    fn after(&self, layer: usize, step: Option<usize>) -> f64 {
        let wiring = self.model.wiring().block(layer);
        let first = step.map_or(0, |step| step + 1);
        if self.last_query && first <= wiring.keys_done() {
            let ModelConfig { d_model, d_head, n_heads, .. } = *self.model.config();
            // The query and both projections between d_head and d_model; attention over recomputed positions in
            // d_model, and over the others in d_head.
            let looked_at = self.positions * d_model + (self.keys - self.positions) * d_head;
            let shortcut = self.batch * n_heads * (3 * d_model * d_head + 2 * looked_at);
            return shortcut as f64 + self.after(layer, Some(wiring.attend_step()));
        }
        (first..wiring.steps().len()).map(|number| self.step(layer, number, self.positions, None)).sum()
    }

    /// The work of a variant in the layer where it joins.
    fn of(&self, entry: Entry) -> f64 {
        let Cut::After { layer, step } = entry.cut else { return self.after(0, None) };
        let wiring = self.model.wiring().block(layer);
        let own = match entry.how {
            How::Whole => 0.0,
            How::FirstPosition { from } => (from + 1..=step).map(|number| self.step(layer, number, 1, None)).sum(),
            How::Heads { attend, n } => {
                let attends =
                    if attend { self.step(layer, wiring.attend_step(), self.positions, Some(n)) } else { 0.0 };
                attends + self.step(layer, wiring.output(), self.positions, Some(n))
            }
        };
        own + self.after(layer, Some(step))
    }
}
