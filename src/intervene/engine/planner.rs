//! Which variants go through the layers together, from where, how many at once, and what that costs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::{Engine, Setup};
use crate::error::{Error, Result};
use crate::intervene::metric::Metric;
use crate::intervene::sweep::{Strategy, Variant};
use crate::model::{Axis, Edit, Entry, ModelConfig, Site, Step, absorption_pays};

/// What variants must have in common to go through the layers together; the order is that of computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::intervene) struct Group {
    /// The pass computes the logits itself: they are edited, or the whole loop is asked for.
    pub whole: bool,
    /// The first position that is computed.
    pub first: usize,
    /// Something is edited behind the last block's input, so that its positions can't all be left out.
    pub late: bool,
}

/// With which others a variant is computed, and where it joins them.
#[derive(Debug, Clone)]
pub(in crate::intervene) struct Place {
    pub group: Group,
    pub entry: Entry,
    /// The heads that it changes in the block where it joins, where it joins with them only.
    pub heads: Option<Vec<usize>>,
    /// Nothing of the last block behind its heads is changed: only what is read need be computed there.
    pub ends_with_heads: bool,
}

impl Place {
    /// Whether an edit at `site` is of the heads with which the variant joins.
    pub(super) fn within(&self, site: Site) -> bool {
        site.layer() == Some(self.entry.0) && of_heads(site)
    }
}

/// More tokens at once gain nothing: the matrix products are long enough, and what they give is still in the cache.
const MOST_TOKENS: usize = 2048;
/// Fewer lose much.
const ENOUGH_TOKENS: usize = 512;
/// Stacks that a thread should have to do, so that all are done at about the same time.
const STACKS: usize = 4;

impl Setup<'_> {
    /// Where a variant joins.
    pub(in crate::intervene) fn place(&self, variant: &Variant) -> Result<Place> {
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
            let group = Group { whole: true, first: 0, late: true };
            return Ok(Place { group, entry: Entry(0, Step::Ids), heads: None, ends_with_heads: false });
        };
        let first = variant.edits.iter().map(|edit| first_position(edit, config)).min().unwrap_or(0);
        let late = last > Entry(config.n_layers - 1, Step::ResidPre);
        let group = Group { whole: false, first: self.metric.first(first, self.model, self.tokens), late };
        let behind = |edit: &Edit| edit.site.layer() == Some(config.n_layers - 1) && !before_heads_write(edit.site);
        let ends_with_heads = !variant.edits.iter().any(behind);
        let (entry, heads) = match some_heads(&variant.edits, entry, config) {
            Some((entry, heads)) => (entry, Some(heads)),
            None if one_position(&variant.edits, entry, group, config) => (Entry(entry.0, Step::FirstPosition), None),
            None => (entry, None),
        };
        Ok(Place { group, entry, heads, ends_with_heads })
    }

    /// How many stacks of a group memory holds at once.
    pub(super) fn workers(&self, group: Group) -> usize {
        (self.budget() / self.bytes(group).max(1)).clamp(1, self.machine.threads)
    }

    /// The most variants of a group that are computed in a stack.
    pub(super) fn most_at_once(&self, group: Group) -> usize {
        if self.strategy == Strategy::Naive {
            return 1;
        }
        let own = self.budget() / self.workers(group);
        (own / self.bytes(group).max(1)).clamp(1, MOST_TOKENS.div_ceil(self.computed(group)))
    }

    /// How many of `n` variants of a group are computed in a stack, so that every thread has several to do.
    pub(super) fn at_once(&self, group: Group, n: usize) -> usize {
        let shared = n.div_ceil(STACKS * self.workers(group)).max(ENOUGH_TOKENS.div_ceil(self.computed(group)));
        let most = self.most_at_once(group);
        if self.workers(group) > 1 { most.min(shared) } else { most }
    }

    /// Tokens of a variant that are computed.
    fn computed(&self, group: Group) -> usize {
        self.tokens.batch() * (self.tokens.positions() - group.first)
    }

    /// Bytes that stacked activations may take.
    pub(super) fn budget(&self) -> usize {
        self.machine.memory.saturating_sub(self.kept)
    }

    /// Bytes that the batch's values at some sites take.
    pub(in crate::intervene) fn bytes_at(&self, sites: &[Site]) -> usize {
        let (batch, positions) = (self.tokens.batch(), self.tokens.positions());
        let size = |site: &Site| site.shape(self.model.config(), batch, positions).iter().product::<i64>() as usize;
        sites.iter().map(size).sum::<usize>() * self.model.kind().elt_size_in_bytes()
    }

    /// Bytes that are kept of the unchanged run for variants that join at `places`, and `more`.
    pub(in crate::intervene) fn base_bytes(&self, places: &[Place], more: &[Site]) -> usize {
        let config = self.model.config();
        let entries: BTreeSet<Entry> = places.iter().map(|place| place.entry).collect();
        let mut sites: BTreeSet<Site> = entries.into_iter().flat_map(|entry| entry.needs(config)).collect();
        sites.extend(more);
        sites.insert(Site::ResidPost(config.n_layers - 1));
        if places.iter().any(|place| place.group.first > 0) {
            sites.extend((0..config.n_layers).flat_map(|layer| [Site::K(layer), Site::V(layer)]));
        }
        if matches!(self.metric, Metric::Kl) {
            sites.insert(Site::Logits);
        }
        self.bytes_at(&sites.into_iter().collect::<Vec<_>>())
    }

    /// About how many bytes one variant of a group takes at the fullest moment of its pass.
    pub(in crate::intervene) fn bytes(&self, group: Group) -> usize {
        let config = self.model.config();
        let positions = self.tokens.positions();
        let tokens = self.computed(group);
        let width = 8 * config.d_model + 3 * config.d_mlp + 4 * config.n_heads * config.d_head;
        let pattern = 3 * tokens * positions * config.n_heads;
        let logits = if group.whole { tokens * config.vocab } else { 0 };
        (tokens * width + pattern + logits) * self.model.kind().elt_size_in_bytes()
    }

    /// Fails where so many steps of integrated gradients, which go through all layers together and back, do not fit in memory.
    pub(in crate::intervene) fn check_steps(&self, steps: usize) -> Result<()> {
        let pass = self.bytes(Group { whole: false, first: 0, late: false });
        let limit = crate::memory::usable(crate::device::free_memory(self.model.device()));
        crate::take::within("steps", steps, pass * self.model.config().n_layers, limit)
    }
}

/// The first position behind which something can be other than in the unchanged run. The query at a causal model's first
/// position is no such thing: it sees one key, whatever it asks for.
fn first_position(edit: &Edit, config: &ModelConfig) -> usize {
    let least = usize::from(config.causal && matches!(edit.site, Site::Q(_)));
    edit.at.positions.as_ref().and_then(|positions| positions.iter().min().copied()).unwrap_or(0).max(least)
}

/// Whether a site of a block comes before what its heads write.
fn before_heads_write(site: Site) -> bool {
    of_heads(site) || matches!(site, Site::ResidPre(_) | Site::Ln1Scale(_))
}

/// Whether a site has the heads apart, before they are summed.
fn of_heads(site: Site) -> bool {
    matches!(site, Site::Q(_) | Site::K(_) | Site::V(_) | Site::Scores(_) | Site::Pattern(_) | Site::Z(_))
}

/// The heads that `edits` change in the block where they first do, if that is all that they change before the residual
/// stream behind its heads.
fn some_heads(edits: &[Edit], Entry(layer, step): Entry, config: &ModelConfig) -> Option<(Entry, Vec<usize>)> {
    if !matches!(step, Step::Qkv | Step::Z) {
        return None;
    }
    let here = |edit: &&Edit| Entry::of(edit.site, config).is_some_and(|entry| entry <= Entry(layer, Step::Z));
    let group = config.n_heads / config.n_kv_heads;
    let mut heads = BTreeSet::new();
    for edit in edits.iter().filter(here) {
        let asked = edit.at.heads.as_ref().filter(|_| of_heads(edit.site))?;
        let shared = if edit.site.axes().contains(&Axis::KvHead) { group } else { 1 };
        heads.extend(asked.iter().flat_map(|head| head * shared..(head + 1) * shared));
    }
    if heads.len() >= config.n_heads {
        return None;
    }
    let step = if step == Step::Z { Step::HeadsOut(heads.len()) } else { Step::Heads(heads.len()) };
    Some((Entry(layer, step), heads.into_iter().collect()))
}

/// Whether `edits` first change the residual stream that enters a block, and of it the first computed position alone. (The
/// last block may leave out queries, and knows best which.)
fn one_position(edits: &[Edit], entry: Entry, group: Group, config: &ModelConfig) -> bool {
    let here = |edit: &&Edit| Entry::of(edit.site, config) == Some(entry);
    entry.1 == Step::ResidPre
        && entry.0 + 1 < config.n_layers
        && edits.iter().filter(here).all(|edit| {
            let one = |positions: &Vec<usize>| positions.iter().all(|&position| position == group.first);
            matches!(edit.site, Site::ResidPre(_)) && edit.at.positions.as_ref().is_some_and(one)
        })
}

/// How a sweep would be computed, and what it costs beside the loop over whole passes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Variants that go through the layers together.
    pub groups: Vec<PlannedGroup>,
    /// Multiplications that the sweep needs, the unchanged run among them.
    pub needed: f64,
    /// Multiplications of one whole pass a variant and for the unchanged run.
    pub naive: f64,
    /// How many stacks may be computed at once, each on threads of its own.
    pub stacks: usize,
    /// Bytes that stacked activations may take.
    pub budget: usize,
    /// Bytes that the unchanged run and the activations that edits read take.
    pub kept: usize,
    /// In how many parts the batch is computed, one after another, because memory does not hold all prompts at once.
    pub parts: usize,
}

impl Explanation {
    /// The same of more parts of the batch.
    pub(in crate::intervene) fn and(mut self, part: &Self) -> Self {
        for group in &part.groups {
            let alike =
                |known: &&mut PlannedGroup| known.first_position == group.first_position && known.joins == group.joins;
            match self.groups.iter_mut().find(alike) {
                Some(known) => known.needed += group.needed,
                None => self.groups.push(group.clone()),
            }
        }
        self.needed += part.needed;
        self.naive += part.naive;
        self.parts += part.parts;
        self
    }
}

/// Variants that go through the layers together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedGroup {
    /// How many there are.
    pub variants: usize,
    /// The first position that is computed.
    pub first_position: usize,
    /// The layers at which they join, and how many at each.
    pub joins: BTreeMap<usize, usize>,
    /// How many are stacked at once.
    pub at_once: usize,
    /// About how many bytes they then take.
    pub bytes: usize,
    /// Multiplications that they need.
    pub needed: f64,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in &self.groups {
            let (from, to) = (group.joins.keys().next(), group.joins.keys().next_back());
            writeln!(
                f,
                "{} variants join at layers {} to {}, positions from {} on: {} at once, {}, {} multiplications",
                group.variants,
                from.copied().unwrap_or(0),
                to.copied().unwrap_or(0),
                group.first_position,
                group.at_once,
                mebibytes(group.bytes),
                large(group.needed),
            )?;
        }
        writeln!(
            f,
            "in all {} multiplications; one whole pass a variant takes {}, {:.1} times as many",
            large(self.needed),
            large(self.naive),
            self.naive / self.needed.max(1.0)
        )?;
        if self.parts > 1 {
            writeln!(f, "the prompts are computed in {} parts, one after another; each as above", self.parts)?;
        }
        if self.stacks > 1 {
            writeln!(f, "up to {} stacks are computed side by side", self.stacks)?;
        }
        let (kept, budget) = (mebibytes(self.kept), mebibytes(self.budget));
        write!(f, "unchanged activations take {kept}, stacked ones at most {budget} more")
    }
}

/// A large number: `12.3 G`.
fn large(n: f64) -> String {
    let scale = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")].into_iter().find(|(unit, _)| n >= *unit);
    scale.map_or_else(|| format!("{n:.0}"), |(unit, name)| format!("{:.2} {name}", n / unit))
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl Engine<'_> {
    /// How the sweep would be computed.
    pub(in crate::intervene) fn explain(&self, variants: &[Variant]) -> Result<Explanation> {
        let whole = self.arithmetic(None);
        // Of the unchanged run no more logits are computed than of a variant.
        let vocab = self.setup.model.config().d_model * self.setup.model.config().vocab;
        let (tokens, read) = (self.setup.tokens.batch() * self.setup.tokens.positions(), self.reader.unembedded(0));
        let unchanged = whole - (tokens.saturating_sub(read) * vocab) as f64;
        let mut groups: BTreeMap<Group, Vec<Place>> = BTreeMap::new();
        for variant in variants.iter().filter(|variant| !variant.edits.is_empty()) {
            let place = self.setup.place(variant)?;
            groups.entry(place.group).or_default().push(place);
        }
        let stacks = groups.keys().map(|&group| self.setup.workers(group)).min().unwrap_or(1);
        let groups: Vec<PlannedGroup> =
            groups.into_iter().map(|(group, places)| self.planned(group, &places)).collect();
        Ok(Explanation {
            needed: unchanged + groups.iter().map(|group| group.needed).sum::<f64>(),
            naive: whole * (variants.len() + 1) as f64,
            stacks,
            budget: self.setup.budget(),
            kept: self.setup.kept,
            parts: 1,
            groups,
        })
    }

    fn planned(&self, group: Group, places: &[Place]) -> PlannedGroup {
        let mut joins = BTreeMap::new();
        places.iter().for_each(|place| *joins.entry(place.entry.0).or_default() += 1);
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

    /// Multiplications in the matrix products of a variant's pass, or of a whole one.
    fn arithmetic(&self, place: Option<&Place>) -> f64 {
        let config = self.setup.model.config();
        let (batch, positions) = (self.setup.tokens.batch(), self.setup.tokens.positions());
        let Some(place) = place.filter(|place| !place.group.whole) else {
            let rows = batch * positions;
            let block = Block { config, rows, asking: rows, tail: rows, keys: positions, positions, absorbed: false };
            return (block.all() * config.n_layers + rows * config.d_model * config.vocab) as f64;
        };
        let (first, Entry(layer, step)) = (place.group.first, place.entry);
        let rows = batch * (positions - first);
        let one = self.reader.wanted(first as i64).is_some();
        let block = |at: usize| {
            let (last, new) = (one && at + 1 == config.n_layers, positions - first);
            let few = |trimmed: bool| if last && trimmed { batch } else { rows };
            let (asking, tail) = (few(!place.group.late), few(place.ends_with_heads));
            let absorbed = last && !place.group.late && absorption_pays(config, new);
            Block { config, rows, asking, tail, keys: positions, positions: new, absorbed }
        };
        let later: usize = (layer + 1..config.n_layers).map(|at| block(at).all()).sum();
        let unembed = self.reader.unembedded(first as i64) * config.d_model * config.vocab;
        (block(layer).from(step) + later + unembed) as f64
    }
}

/// The size of one block's work.
struct Block<'a> {
    config: &'a ModelConfig,
    /// Rows of the residual stream that enter it.
    rows: usize,
    /// Those that its heads look from.
    asking: usize,
    /// Those that leave it.
    tail: usize,
    /// Positions that are looked at.
    keys: usize,
    /// Positions that are computed.
    positions: usize,
    /// Heads look at the residual stream itself.
    absorbed: bool,
}

impl Block<'_> {
    fn heads(&self, n: usize) -> usize {
        2 * self.asking * self.keys * n * self.config.d_head
    }

    fn out(&self, n: usize) -> usize {
        self.tail * n * self.config.d_head * self.config.d_model
    }

    fn mlp(&self) -> usize {
        let matrices = if self.config.gated_mlp { 3 } else { 2 };
        self.tail * matrices * self.config.d_model * self.config.d_mlp
    }

    /// q, k and v of so many rows, q of those alone that the heads look from.
    fn projections(&self, rows: usize) -> usize {
        let ModelConfig { d_model, d_head, n_heads, n_kv_heads, .. } = *self.config;
        d_model * d_head * (rows.min(self.asking) * n_heads + rows * 2 * n_kv_heads)
    }

    fn all(&self) -> usize {
        match self.absorbed {
            true => self.absorbed() + self.out(self.config.n_heads) + self.mlp(),
            false => self.projections(self.rows) + self.from(Step::Qkv),
        }
    }

    /// q, and both ways between a head's dimensions and the stream's; new positions in the stream, others in the head's.
    fn absorbed(&self) -> usize {
        let ModelConfig { d_model, d_head, n_heads, .. } = *self.config;
        let looked_at = self.positions * d_model + (self.keys - self.positions) * d_head;
        self.asking * n_heads * (3 * d_model * d_head + 2 * looked_at)
    }

    /// The work of rows that join at `step`.
    fn from(&self, step: Step) -> usize {
        let n = self.config.n_heads;
        match step {
            Step::Ids | Step::ResidPre => self.all(),
            Step::FirstPosition => self.projections(self.rows / self.positions) + self.from(Step::Qkv),
            Step::Qkv => self.heads(n) + self.out(n) + self.mlp(),
            Step::Z => self.out(n) + self.mlp(),
            Step::Heads(some) => self.heads(some) + self.out(some) + self.mlp(),
            Step::HeadsOut(some) => self.out(some) + self.mlp(),
            Step::ResidMid => self.mlp(),
            Step::ResidPost => 0,
        }
    }
}
