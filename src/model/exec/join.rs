//! Where do rows of the batch join a pass, and with which values? At its start, or where they first depart from an unchanged
//! run.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::model::arch::{BlockWiring, Cut, Wire, Wiring};
use crate::site::Site;

/// Values of the unchanged run, by layer.
pub(crate) type Unchanged = BTreeMap<(usize, Wire), Tensor>;

/// Where rows join, and how they differ from the unchanged run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub cut: Cut,
    pub how: How,
}

/// What rows join with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// The unchanged run's values, some of them edited.
    Whole,
    /// Only the first computed position is edited, after the step `from`; positions do not attend to each other before the
    /// cut, so no other position is computed up to there.
    FirstPosition {
        /// The number of the step.
        from: usize,
    },
    /// The unchanged residual stream plus the change in the outputs of some heads.
    Heads {
        /// Whether queries, keys, values, scores or patterns change, so that attention of these heads is recomputed; otherwise
        /// only z changes.
        attend: bool,
        /// How many heads.
        n: usize,
    },
}

impl Entry {
    /// At the start, with token ids.
    pub(crate) const START: Self = Self { cut: Cut::Start, how: How::Whole };

    /// After a step of a layer, with all values that later steps read.
    pub(crate) fn after(layer: usize, step: usize) -> Self {
        Self { cut: Cut::After { layer, step }, how: How::Whole }
    }

    /// Where rows join that differ from the unchanged run at `sites`, all of one layer, with all values that later steps
    /// read.
    pub(crate) fn of_edited(sites: &[Site], wiring: &Wiring) -> Self {
        let Some(layer) = sites.iter().find_map(|site| site.layer()) else { return Self::START };
        let wires = sites.iter().filter_map(|site| Wire::of(*site)).collect();
        Self::after(layer, wiring.block(layer).departs(wires))
    }

    /// The layer in which rows join.
    pub(crate) fn layer(self) -> usize {
        if let Cut::After { layer, .. } = self.cut { layer } else { 0 }
    }

    /// The unchanged values that rows join with.
    pub(crate) fn needs(self, wiring: &Wiring) -> Vec<(usize, Wire)> {
        let Cut::After { layer, step } = self.cut else { return vec![] };
        let mut wires = wiring.block(layer).live(step).without(Wire::Memory);
        if let How::Heads { attend, .. } = self.how {
            let heads: &[Wire] = if attend { &[Wire::Q, Wire::K, Wire::V, Wire::Z] } else { &[Wire::Z] };
            wires = heads.iter().fold(wires, |wires, &wire| wires.with(wire));
        }
        // Every block of a decoder reads the same memory, which is kept where the first does.
        let memory = wiring.block(layer).step(Wire::Memory).map(|_| (wiring.encoder(), Wire::Memory));
        wires.iter().map(|wire| (layer, wire)).chain(memory).collect()
    }
}

/// Which rows join where, and with what.
pub(crate) struct Joins<'a> {
    /// Token ids, `[batch, position]`.
    pub ids: Tensor,
    /// How many copies of the batch join at each entry.
    pub copies: BTreeMap<Entry, i64>,
    /// For entries by [`How::Heads`], the heads that change in each copy.
    pub heads: BTreeMap<Entry, Vec<Vec<usize>>>,
    /// The values of the unchanged run that the entries need, at all positions.
    pub base: Option<&'a Unchanged>,
    /// The first position that the pass computes; earlier ones are as in the unchanged run.
    pub first: i64,
}

impl<'a> Joins<'a> {
    /// The batch itself, from its token ids.
    pub(crate) fn whole(ids: Tensor) -> Self {
        Self::at(Entry::START, 1, ids, None)
    }

    /// `n` copies of the batch that join at one entry.
    pub(crate) fn at(entry: Entry, n: i64, ids: Tensor, base: Option<&'a Unchanged>) -> Self {
        Self { ids, copies: BTreeMap::from([(entry, n)]), heads: BTreeMap::new(), base, first: 0 }
    }

    /// The number of rows of the batch.
    pub(super) fn batch(&self) -> i64 {
        self.ids.size()[0]
    }

    /// How many copies of the batch join at the start, if any do.
    pub(super) fn copies_at_start(&self) -> Option<i64> {
        self.copies.get(&Entry::START).copied()
    }

    /// The token ids of the rows that join at the start, if any do.
    pub(super) fn start(&self) -> Option<Tensor> {
        self.copies_at_start().map(|n| self.ids_of(n))
    }

    /// The token ids of `n` copies of the batch, at the positions that the pass computes.
    pub(super) fn ids_of(&self, n: i64) -> Tensor {
        copies(&self.ids.narrow(1, self.first, self.ids.size()[1] - self.first), n)
    }

    /// The rows that join after a step of a layer, and how many copies of the batch they are.
    pub(super) fn after(&self, layer: usize, step: usize) -> impl Iterator<Item = (Entry, i64)> {
        let here = Cut::After { layer, step };
        let from = Entry { cut: here, how: How::Whole };
        self.copies.range(from..).map(|(&entry, &n)| (entry, n)).take_while(move |(entry, _)| entry.cut == here)
    }

    /// The number of copies of the batch that join in a layer before `step` other than by [`How::Heads`].
    pub(super) fn before(&self, layer: usize, step: usize) -> i64 {
        let here = |entry: &Entry| {
            matches!(entry.cut, Cut::After { layer: at, step: after } if at == layer && after < step)
                && !matches!(entry.how, How::Heads { .. })
        };
        self.copies.iter().filter(|(entry, _)| here(entry)).map(|(_, n)| n).sum()
    }

    /// The steps of a layer after which rows join by [`How::Heads`].
    pub(super) fn landings(&self, layer: usize) -> impl Iterator<Item = usize> {
        self.heads.keys().filter_map(move |entry| match entry.cut {
            Cut::After { layer: at, step } if at == layer => Some(step),
            _ => None,
        })
    }

    /// Whether rows join in a layer after its first step.
    pub(super) fn within(&self, layer: usize) -> bool {
        let here = |entry: &Entry| matches!(entry.cut, Cut::After { layer: at, step } if at == layer && step > 0);
        self.copies.keys().any(here)
    }

    /// The value of the unchanged run, at the positions that the pass computes.
    pub(super) fn unchanged(&self, layer: usize, wire: Wire) -> Result<Tensor> {
        let base = self.base.and_then(|base| match wire {
            // Kept once, for all layers.
            Wire::Memory => base.iter().find(|((_, own), _)| *own == wire).map(|(_, x)| x),
            _ => base.get(&(layer, wire)),
        });
        let site = wire.site(layer).unwrap_or(Site::ResidPre(layer));
        let base = base.ok_or_else(|| Error::NotTapped { site, tapped: vec![] })?;
        Ok(base.narrow(1, self.first, base.size()[1] - self.first))
    }
}

/// The values of a block that later steps read, for the rows that have joined.
#[derive(Default)]
pub(super) struct State(BTreeMap<Wire, Tensor>);

impl State {
    pub(super) fn get(&self, wire: Wire) -> Result<&Tensor> {
        self.0.get(&wire).ok_or_else(|| Error::argument("block", format!("a value of {wire:?}"), "none"))
    }

    pub(super) fn take(&mut self, wire: Wire) -> Option<Tensor> {
        self.0.remove(&wire)
    }

    pub(super) fn set(&mut self, wire: Wire, x: Tensor) {
        self.0.insert(wire, x);
    }

    /// Appends rows.
    pub(super) fn append(&mut self, wire: Wire, new: Tensor) {
        let all = match self.0.remove(&wire) {
            Some(x) => Tensor::cat(&[x, new], 0),
            None => new,
        };
        self.0.insert(wire, all);
    }

    /// Drops the values that no later step reads.
    pub(super) fn keep_live(&mut self, wiring: &BlockWiring, step: usize) {
        let live = wiring.live(step);
        self.0.retain(|wire, _| live.has(*wire));
    }

    pub(super) fn wires(&self) -> Vec<Wire> {
        self.0.keys().copied().collect()
    }
}

/// `n` copies of `[batch, ..]` along the first axis, `[n * batch, ..]`.
pub(super) fn copies(x: &Tensor, n: i64) -> Tensor {
    if n == 1 {
        return x.shallow_clone();
    }
    let mut times = vec![1i64; x.dim()];
    times[0] = n;
    x.repeat(times.as_slice())
}
