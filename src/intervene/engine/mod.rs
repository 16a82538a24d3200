//! How is a sweep computed without a whole pass per variant?
//!
//! A variant joins the pass where it departs from the unchanged run: at a step of a block, with the unchanged
//! activations up to there, and at the first position that it changes, with the unchanged keys and values before it. If
//! it changes only some heads of a block, only those are recomputed, and the change of their output is added to the
//! unchanged residual stream. Variants that start at the same position go through the layers together, stacked on the
//! batch axis. If the metric reads one position per prompt, the last block computes only that position, and only the
//! logits that are read.

mod batch_split;
mod explanation;
mod gradient;
mod journal;
mod machine;
mod options;
mod outcome;
mod places;
mod planner;
mod variant;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, ArrayView1, Axis as NdAxis};
use tch::Tensor;

pub(super) use batch_split::{Part, check_prompts, side_by_side};
pub use explanation::{Explanation, PlannedGroup};
pub use gradient::Estimate;
pub(super) use gradient::{Gradients, back, backward};
pub(super) use journal::Journal;
pub(super) use machine::Machine;
pub(super) use options::{Options, REFERENCE, options};
pub(super) use outcome::Outcome;
pub use places::At;
pub(super) use places::{Alignment, Pairs, aligned};
use planner::Group;
pub(super) use planner::Place;
pub use variant::{Strategy, Variant};

use super::metric::{Metric, Output, Readouts};
use crate::error::{Error, Result};
use crate::model::{
    Action, Bank, Entry, Freeze, Joins, KvCache, Model, Pass, Past, Program, Site, Tokens, Unchanged, Window, Wire,
};
use crate::progress::Progress;
use crate::workers::{Shared, readable, spread};

/// How many times the logits are held while a metric is read from them: the logits, their logarithms, what they are
/// compared with, and the overhead of products and heap fragmentation, as measured (`cargo bench --bench sweep`).
const READ: usize = 10;

/// The inputs of a sweep, and the resources that it may use.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    pub model: &'a Model,
    pub tokens: &'a Tokens,
    pub metrics: &'a [Metric],
    pub per_token: bool,
    pub strategy: Strategy,
    pub machine: Machine,
    /// Bytes of the memory that are held throughout.
    pub kept: usize,
    pub same: Same<'a>,
    /// Set from outside to stop between two stacks of variants.
    pub stop: Option<&'a AtomicBool>,
}

/// What is known of activations that edits replace by those of other runs.
#[derive(Clone, Copy, Default)]
pub(super) struct Same<'a> {
    /// For each prompt the first position at which its activations can differ from the unchanged run's. Empty if nothing
    /// is known: they can differ everywhere.
    pub before: &'a [usize],
    /// The action of these edits; any replacement if absent.
    pub action: Option<&'a Action>,
}

/// What a pass records, and how far it goes.
#[derive(Clone, Copy)]
pub(super) struct Recording<'a> {
    pub taps: &'a [Site],
    /// The number of blocks.
    pub layers: usize,
    /// The first position computed.
    pub first: usize,
    /// What keeps its unchanged output, besides what is edited.
    pub freeze: Option<Freeze>,
}

/// A sweep with its unchanged run.
pub(super) struct Engine<'a> {
    setup: Setup<'a>,
    base: Base,
    pub reader: Readouts<'a>,
    /// The metrics of the unchanged run, one value per cell.
    pub baseline: Vec<f64>,
}

/// Where finished values are kept: a journal, and the variants' numbers in it.
pub(super) struct Kept<'j> {
    pub journal: &'j mut Journal,
    pub numbers: &'j [usize],
}

/// Variants of a group that go through the layers together, sorted by where they join, each with its number.
struct Stack {
    group: Group,
    members: Vec<(Place, usize)>,
}

/// The unchanged run.
struct Base {
    /// The values that variants join with.
    values: Unchanged,
    /// The keys and values of positions that variants do not recompute.
    past: KvCache,
}

readable!(Setup<'a> { model; tokens, metrics, per_token, strategy, machine, kept, same, stop });
readable!(Engine<'a> { setup, base, reader; baseline });
readable!(Base { values, past; });

impl<'a> Engine<'a> {
    /// Computes the unchanged run, and keeps the values that `variants` need and those of `more`.
    pub(super) fn new(setup: Setup<'a>, variants: &[Variant], more: &[(usize, Wire)]) -> Result<Self> {
        setup.model.check_tokens(setup.tokens)?;
        let shape = |site: Site| site.shape_for(setup.model.config(), setup.tokens);
        for edit in variants.iter().flat_map(|variant| &variant.edits) {
            edit.site.check(setup.model.config())?;
            edit.at.check(edit.site, &shape(edit.site))?;
        }
        let changed = variants.iter().filter(|variant| !setup.changes_nothing(variant));
        let places = changed.map(|variant| setup.place(variant)).collect::<Result<Vec<Place>>>()?;
        let mut needs: Vec<_> = places.iter().flat_map(|place| place.entry.needs(setup.model.wiring())).collect();
        needs.extend(more);
        let (base, end) = setup.base(needs, places.iter().any(|place| place.group.first > 0))?;
        let values = setup.budget() / setup.machine.threads / (READ * setup.model.kind().elt_size_in_bytes());
        let reader = Readouts::new(setup.model, setup.metrics, setup.tokens, &end, values, setup.per_token)?;
        let baseline = to_array(&reader.read(&end)?)?.row(0).to_vec();
        Ok(Self { setup, base, reader, baseline })
    }

    /// The values kept of the unchanged run.
    pub(super) fn unchanged(&self) -> &Unchanged {
        &self.base.values
    }

    /// The metric of each variant, `[variant, cell]`. Values in the journal are not recomputed, and new values are
    /// written to it at once. A variant without edits is the unchanged run.
    pub(super) fn values(
        &self,
        variants: &[Variant],
        bank: &Bank,
        mut kept: Option<Kept<'_>>,
        progress: &mut Progress,
    ) -> Result<Array2<f64>> {
        let cells = self.baseline.len();
        let mut values = Array2::zeros((variants.len(), cells));
        let mut groups: BTreeMap<Group, Vec<(Place, usize)>> = BTreeMap::new();
        for (number, (variant, mut row)) in variants.iter().zip(values.outer_iter_mut()).enumerate() {
            let known = kept.as_ref().and_then(|kept| kept.journal.get(kept.numbers[number], cells));
            let known = known.or(self.setup.changes_nothing(variant).then_some(self.baseline.as_slice()));
            match known {
                Some(known) => row.assign(&ArrayView1::from(known)),
                None => {
                    let place = self.setup.place(variant)?;
                    groups.entry(place.group).or_default().push((place, number));
                }
            }
        }
        progress.add(variants.len() - groups.values().map(Vec::len).sum::<usize>());
        let (stacks, threads) = self.stacks(groups);
        self.prepare(variants, bank)?;
        // SAFETY: a pass writes only to tensors that it has allocated itself, and records no graph.
        let shared = unsafe { Shared::new((self, bank)) };
        let each = |number: usize| {
            let (&(engine, bank), stack) = (shared.get(), &stacks[number]);
            tch::no_grad(|| to_array(&engine.reader.read(&engine.compute(stack, variants, bank)?)?))
        };
        let done = spread(stacks.len(), threads, self.setup.stop, each, |number, read: Array2<f64>| {
            let stack = &stacks[number];
            for ((_, number), row) in stack.members.iter().zip(read.axis_iter(NdAxis(0))) {
                values.row_mut(*number).assign(&row);
                if let Some(kept) = &mut kept {
                    kept.journal.push(kept.numbers[*number], row.iter().copied())?;
                }
            }
            if let Some(kept) = &mut kept {
                kept.journal.flush()?;
            }
            progress.add(stack.members.len());
            Ok(())
        })?;
        if done < stacks.len() { Err(progress.stopped()) } else { Ok(values) }
    }

    /// Computes once what edits derive from the bank (means, bases), before threads share it.
    fn prepare(&self, variants: &[Variant], bank: &Bank) -> Result<()> {
        let Setup { model, tokens, .. } = self.setup;
        for edit in variants.iter().flat_map(|variant| &variant.edits) {
            if let Some(key) = edit.action.key() {
                Program::prepare(edit, bank.get(key, edit.site)?, model.config(), tokens)?;
            }
        }
        Ok(())
    }

    /// Splits each group into stacks, the most work first, and says how many stacks to compute at once.
    fn stacks(&self, groups: BTreeMap<Group, Vec<(Place, usize)>>) -> (Vec<Stack>, usize) {
        let mut threads = self.setup.machine.threads;
        let mut stacks = vec![];
        for (group, mut members) in groups {
            threads = threads.min(self.setup.workers(group));
            members.sort_by_key(|(place, number)| (place.entry, *number));
            let at_once = self.setup.at_once(group, members.len());
            stacks.extend(members.chunks(at_once).map(|members| Stack { group, members: members.to_vec() }));
        }
        (stacks, threads)
    }

    /// Fails if the work has been stopped from outside.
    pub(super) fn check_stop(&self, progress: &Progress) -> Result<()> {
        let stopped = self.setup.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
        if stopped { Err(progress.stopped()) } else { Ok(()) }
    }

    /// The end of the pass of a stack of variants.
    fn compute(&self, stack: &Stack, variants: &[Variant], bank: &Bank) -> Result<Output> {
        let Setup { model, tokens, .. } = self.setup;
        let Stack { group, members: chunk } = stack;
        let first = group.first as i64;
        let mut program = Program::taps([]).plain(self.setup.machine.plain);
        self.push(&mut program, chunk, variants, bank, group.first)?;
        let joins = self.joins(chunk, first);
        let past = if first > 0 { Past::Fixed(&self.base.past, first) } else { Past::None };
        let wanted = if group.whole { None } else { self.reader.wanted(first) };
        let wanted = wanted.filter(|_| !model.attends_across());
        let positions = tokens.positions() - group.first;
        let hidden = model.hidden_padding(tokens);
        let types = tokens.types(model.device());
        let pass = Pass::over(model, &program, positions, hidden, past).with_types(types).with_source(tokens);
        let mut pass = pass.only(wanted);
        let resid = pass.residual(&joins, model.config().n_layers)?;
        let picked = resid.size()[1] != positions as i64;
        let whole = group.whole && model.config().has_logits();
        let logits = whole.then(|| pass.logits(&resid)).transpose()?;
        Ok(Output { resid, logits, first, picked })
    }

    /// Runs `variants` as far as `recording` says. Returns the end of the pass, the values at the taps, and which variant
    /// each copy of the batch is.
    pub(super) fn recorded(
        &self,
        variants: &[Variant],
        bank: &Bank,
        recording: &Recording<'_>,
    ) -> Result<(Output, BTreeMap<Site, Tensor>, Vec<usize>)> {
        let Setup { model, tokens, .. } = self.setup;
        let Recording { taps, layers, first, freeze } = *recording;
        let place = |variant: &Variant| -> Result<Place> {
            let place = self.setup.place(variant)?;
            Ok(match freeze {
                Some(_) => place,
                // The heads' outputs are recorded, so all steps up to them are computed.
                None => Place { entry: Entry::of_edited(&sites(variant), model.wiring()), heads: None, ..place },
            })
        };
        let places = variants.iter().map(place);
        let mut chunk: Vec<(Place, usize)> =
            places.enumerate().map(|(number, place)| Ok((place?, number))).collect::<Result<_>>()?;
        chunk.sort_by_key(|(place, number)| (place.entry, *number));
        let mut program = Program::taps(taps.iter().copied()).plain(self.setup.machine.plain);
        self.push(&mut program, &chunk, variants, bank, first)?;
        let joins = self.joins(&chunk, first as i64);
        let past = if first > 0 { Past::Fixed(&self.base.past, first as i64) } else { Past::None };
        let hidden = if freeze.is_none() { model.hidden_padding(tokens) } else { None };
        let pass = Pass::over(model, &program, tokens.positions() - first, hidden, past);
        let mut pass = pass.with_types(tokens.types(model.device()));
        if let Some(freeze) = freeze {
            pass = pass.frozen(freeze);
        }
        let resid = pass.residual(&joins, layers)?;
        let order = chunk.into_iter().map(|(_, number)| number).collect();
        Ok((Output { resid, logits: None, first: first as i64, picked: false }, pass.into_records().0, order))
    }

    /// How many senders go through the layers together if their values at `taps` are kept.
    pub(super) fn senders_at_once(&self, taps: &[Site]) -> usize {
        let Setup { model, tokens, .. } = self.setup;
        let kept: i64 = taps.iter().map(|s| s.shape_for(model.config(), tokens).iter().product::<i64>()).sum();
        let group = Group { whole: false, first: 0, late: false };
        let bytes = self.setup.bytes(group) + kept as usize * model.kind().elt_size_in_bytes();
        (self.setup.budget() / 2 / bytes.max(1)).clamp(1, self.setup.most_at_once(group))
    }

    /// The first position at which a pass with frozen attention can differ from the unchanged run in what the metrics
    /// read and, with `taps`, in what it records.
    pub(super) fn first_of_frozen(&self, taps: bool) -> usize {
        let shortest = self.setup.tokens.lengths().into_iter().min().unwrap_or(1);
        let last = if self.reader.wanted(0).is_some() && !taps { shortest - 1 } else { 0 };
        let same = self.setup.same.before.iter().min().copied().unwrap_or(0);
        last.max(self.setup.first_read(same))
    }

    fn joins(&self, chunk: &[(Place, usize)], first: i64) -> Joins<'_> {
        let mut copies: BTreeMap<Entry, i64> = BTreeMap::new();
        let mut heads: BTreeMap<Entry, Vec<Vec<usize>>> = BTreeMap::new();
        for (place, _) in chunk {
            *copies.entry(place.entry).or_default() += 1;
            if let Some(some) = &place.heads {
                heads.entry(place.entry).or_default().push(some.clone());
            }
        }
        let ids = self.setup.tokens.ids(self.setup.model.device());
        Joins { ids, copies, heads, base: Some(&self.base.values), first }
    }

    /// Adds the edits of each variant for its rows of the stack.
    fn push(
        &self,
        program: &mut Program,
        chunk: &[(Place, usize)],
        variants: &[Variant],
        bank: &Bank,
        first: usize,
    ) -> Result<()> {
        let Setup { model, tokens, .. } = self.setup;
        let batch = tokens.batch();
        for (row, (place, number)) in chunk.iter().enumerate() {
            for edit in &variants[*number].edits {
                let entry = edit.action.key().map(|key| bank.get(key, edit.site)).transpose()?;
                let heads = place.heads.as_deref().filter(|_| place.within(edit.site));
                let window = Window { rows: Some((row * batch, batch)), first, heads };
                program.push(edit.clone(), entry, &window, model.config(), tokens)?;
            }
        }
        Ok(())
    }
}

impl Setup<'_> {
    /// Computes the unchanged run, keeping `values` of it, and returns it with its end.
    fn base(&self, values: Vec<(usize, Wire)>, keeps_past: bool) -> Result<(Base, Output)> {
        let last = Site::ResidPost(self.model.config().n_layers - 1);
        let program = Program::taps([last]).plain(self.machine.plain);
        let mut past = KvCache::default();
        let before = if keeps_past { Past::Growing(&mut past) } else { Past::None };
        let hidden = self.model.hidden_padding(self.tokens);
        let types = self.tokens.types(self.model.device());
        let pass = Pass::over(self.model, &program, self.tokens.positions(), hidden, before).with_types(types);
        let pass = pass.with_source(self.tokens);
        let (taps, values) = pass.keeping(values).records(self.tokens.ids(self.model.device()))?;
        let end = Output::whole(taps.get(&last).ok_or_else(|| Error::NotTapped { site: last, tapped: vec![] })?);
        Ok((Base { values, past }, end))
    }
}

/// The sites that a variant edits.
fn sites(variant: &Variant) -> Vec<Site> {
    variant.edits.iter().map(|edit| edit.site).collect()
}

/// Copies `[n, cell]` to an ndarray.
pub(super) fn to_array(values: &Tensor) -> Result<Array2<f64>> {
    let (n, cells) = values.size2().map_err(Error::torch("reading a metric"))?;
    let flat = Vec::<f64>::try_from(values.flatten(0, -1)).map_err(Error::torch("reading a metric"))?;
    Array2::from_shape_vec((n as usize, cells as usize), flat).map_err(|_| Error::Shape {
        at: "metric".into(),
        expected: "[variant, cell]".into(),
        found: values.size(),
    })
}
