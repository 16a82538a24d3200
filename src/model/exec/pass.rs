//! How does the forward pass run? It evaluates the graph of each block for the rows that have joined.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};

use super::attention::{self, Past};
use super::join::{Entry, How, Joins, State, Unchanged, copies};
use super::source::Source;
use super::{last_query, mlp, norm, position, stack};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::arch::{BlockWiring, Cut, Heads, Linear, Norm, Op, Rotary, Step, Wire, Wires};
use crate::model::hooks::{Joint, Program};
use crate::site::Site;
use crate::text::Tokens;

/// What is frozen, that is, writes what it writes in the unchanged run: every head without an edit, and with `mlps` every MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freeze {
    pub mlps: bool,
}

/// One pass through the blocks, with the edits and taps of a program.
pub(crate) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) program: &'a Program,
    /// True at real tokens, `[row, position]`, if padding must be hidden from attention.
    pub(super) valid: Option<Tensor>,
    /// Token types, `[batch, position]`; all 0 if absent.
    pub(super) types: Option<Tensor>,
    /// The source that the decoder of an encoder-decoder attends to.
    pub(super) source: Option<Source>,
    /// Keys and values of the positions before those that this pass computes.
    pub(super) past: Past<'a>,
    /// How many positions those are; a cache may grow during the pass.
    pub(super) before: i64,
    /// Cosines and sines at the positions of this pass, for each kind of rotary positions.
    pub(super) rotary: Vec<(Rotary, (Tensor, Tensor))>,
    /// The one position of each prompt that is wanted after the last block, `[batch]`, counted from the first computed one.
    wanted: Option<Tensor>,
    freeze: Option<Freeze>,
    /// In the last block, the step after which only the wanted positions are computed.
    pub(super) trim: Option<usize>,
    /// The first of the rows that are being computed apart from the others; nothing is recorded of them.
    pub(super) start: Option<i64>,
    /// Values to keep for later passes, and those kept so far.
    keep: BTreeSet<(usize, Wire)>,
    kept: Unchanged,
    pub(super) taps: BTreeMap<Site, Tensor>,
    /// Where the graph is cut, so that gradients can be changed there.
    pub(crate) joints: Vec<Joint>,
}

impl<'a> Pass<'a> {
    /// A pass over `tokens`.
    pub(crate) fn new(model: &'a Model, program: &'a Program, tokens: &Tokens) -> Self {
        Self::over(model, program, tokens.positions(), model.hidden_padding(tokens), Past::None)
            .with_types(tokens.types(model.device()))
            .with_source(tokens)
    }

    /// A pass over `positions` positions after `past`, of which `valid` are real.
    pub(crate) fn over(
        model: &'a Model,
        program: &'a Program,
        positions: usize,
        valid: Option<Tensor>,
        past: Past<'a>,
    ) -> Self {
        let before = past.positions();
        let rotary = position::tables(model, before, positions as i64);
        Self {
            model,
            program,
            valid,
            types: None,
            source: None,
            past,
            before,
            rotary,
            wanted: None,
            freeze: None,
            trim: None,
            start: None,
            keep: BTreeSet::new(),
            kept: BTreeMap::new(),
            joints: vec![],
            taps: BTreeMap::new(),
        }
    }

    /// Sets the token types.
    pub(crate) fn with_types(mut self, types: Option<Tensor>) -> Self {
        self.types = types;
        self
    }

    /// Sets the source of an encoder-decoder: that of `tokens`.
    pub(crate) fn with_source(mut self, tokens: &Tokens) -> Self {
        self.source = tokens.source().map(|source| Source::new(source, self.model.device()));
        self
    }

    /// Asks for only one position of each prompt, `[batch]`; the last block then computes no others.
    pub(crate) fn only(mut self, wanted: Option<Tensor>) -> Self {
        self.wanted = wanted;
        self
    }

    /// Freezes heads, or heads and MLPs.
    pub(crate) fn frozen(mut self, freeze: Freeze) -> Self {
        self.freeze = Some(freeze);
        self
    }

    /// Keeps these values, for rows of later passes to join with.
    pub(crate) fn keeping(mut self, values: impl IntoIterator<Item = (usize, Wire)>) -> Self {
        self.keep.extend(values);
        self
    }

    /// The recorded activations and the kept values.
    pub(crate) fn into_records(self) -> (BTreeMap<Site, Tensor>, Unchanged) {
        (self.taps, self.kept)
    }

    /// Runs as far as needed for the program's taps, and returns the recorded activations and the kept values.
    pub(crate) fn records(mut self, ids: Tensor) -> Result<(BTreeMap<Site, Tensor>, Unchanged)> {
        self.reach_taps(ids)?;
        Ok(self.into_records())
    }

    /// Runs as far as needed for the program's taps.
    pub(crate) fn reach_taps(&mut self, ids: Tensor) -> Result<()> {
        let layers = self.model.wiring().n_layers();
        let last_kept = self.keep.last().map_or(0, |(layer, _)| layer + 1);
        let needed = (0..layers).find(|&layer| layer + 1 >= last_kept && !self.program.goes_past(layer, self.model));
        let x = self.residual(&Joins::whole(ids), needed.map_or(layers, |layer| layer + 1))?;
        if needed.is_none() {
            let _ = self.logits(&x)?;
        }
        Ok(())
    }

    /// Runs block by block; `read` receives the recorded activations of each, which are dropped before the next block runs.
    pub(crate) fn each_block(
        mut self,
        ids: Tensor,
        mut read: impl FnMut(usize, BTreeMap<Site, Tensor>) -> Result<()>,
    ) -> Result<()> {
        let joins = Joins::whole(ids);
        let mut x = None;
        for layer in 0..self.model.wiring().n_layers() {
            x = self.entering(layer, x, &joins)?;
            x = self.block(layer, x, &joins)?;
            read(layer, std::mem::take(&mut self.taps))?;
        }
        Ok(())
    }

    /// The residual stream that enters block `end` (for `end = n_layers`, the one that leaves the last block), of all rows in the
    /// order in which they join.
    pub(crate) fn residual(&mut self, joins: &Joins<'_>, end: usize) -> Result<Tensor> {
        let mut x = self.entering(0, None, joins)?;
        for layer in 0..end {
            x = if layer == 0 { x } else { self.entering(layer, x, joins)? };
            x = self.block(layer, x, joins)?;
        }
        x.ok_or_else(|| Error::argument("pass", "rows that join before its end", "none"))
    }

    /// One block: each step in order for the rows that have joined; after each step, more rows may join.
    fn block(&mut self, layer: usize, x: Option<Tensor>, joins: &Joins<'_>) -> Result<Option<Tensor>> {
        let model = self.model;
        let wiring = model.wiring().block(layer);
        let mut rows = x.as_ref().map_or(0, |x| x.size()[0]);
        let todo = self.todo(layer, wiring, rows, joins);
        self.trim = self.trims(layer, wiring);
        let (mut state, mut x, mut number) = (State::default(), x, 0);
        while let Some(mut step) = wiring.steps().get(number) {
            let value = if rows == 0 {
                None
            } else if number == 0 {
                x.take().map(|x| self.edited(layer, Wire::ResidPre, x)).transpose()?
            } else if step.op == Op::Memory {
                todo.computed.has(step.wire).then(|| self.remembered(rows, joins)).transpose()?
            } else if number == 1 && last_query::serves(self, layer, state.get(Wire::ResidPre)?, joins) {
                number = wiring.attend_step();
                step = &wiring.steps()[number];
                let wanted = self.pick(state.get(Wire::ResidPre)?);
                let z = last_query::heads(self, layer, state.get(Wire::ResidPre)?, &wanted)?;
                state.set(Wire::ResidPre, wanted);
                Some(self.edited(layer, Wire::Z, z)?)
            } else {
                self.value(layer, step, &state, rows, joins, &todo)?
            };
            if let Some(value) = value {
                state.set(step.wire, value);
            }
            let before = rows;
            for (entry, n) in joins.after(layer, number) {
                self.join(layer, wiring, entry, n, rows, &mut state, joins)?;
                rows += n * joins.batch();
            }
            // The first rows to join also bring values of earlier steps.
            let new = if before == 0 { state.wires() } else { vec![step.wire] };
            for wire in new {
                if let Some(value) = state.take(wire) {
                    state.set(wire, self.record(layer, wire, value, todo.held));
                }
            }
            state.keep_live(wiring, number);
            if self.trim == Some(number) {
                for wire in state.wires().into_iter().filter(|wire| !wire.is_read_everywhere()) {
                    state.set(wire, self.pick(state.get(wire)?));
                }
            }
            number += 1;
        }
        self.trim = None;
        Ok(state.take(Wire::ResidPost))
    }

    /// The value of a step for the rows that have joined, after edits; `None` if no other step reads it.
    fn value(
        &mut self,
        layer: usize,
        step: &Step,
        state: &State,
        rows: i64,
        joins: &Joins<'_>,
        todo: &Todo,
    ) -> Result<Option<Tensor>> {
        let wire = step.wire;
        if !todo.held.has(wire) {
            let value = todo.computed.has(wire).then(|| self.compute(layer, step, state)).transpose()?;
            return value.map(|value| self.edited(layer, wire, value)).transpose();
        }
        if self.records_wire(layer, wire) {
            // Receivers of paths read the value as it would be; the pass continues with the unchanged one.
            let own = self.compute(layer, step, state)?;
            let own = self.edited(layer, wire, own)?;
            let _ = self.record(layer, wire, own, Wires::NONE);
        }
        if !todo.taken.has(wire) {
            return Ok(None);
        }
        let unchanged = copies(&joins.unchanged(layer, wire)?, rows / joins.batch());
        self.edited(layer, wire, unchanged).map(Some)
    }

    /// Which values of a block are computed, and which are those of the unchanged run.
    fn todo(&self, layer: usize, wiring: &BlockWiring, rows: i64, joins: &Joins<'_>) -> Todo {
        let tapped = wiring.wires().filter(|&wire| self.records_wire(layer, wire));
        let tapped: Wires =
            tapped.chain(self.keep.iter().filter(|(at, _)| *at == layer).map(|(_, wire)| *wire)).collect();
        let (held, taken) = match self.freeze {
            Some(freeze) => {
                let rows = rows + joins.before(layer, wiring.output()) * joins.batch();
                let edited = [Wire::Z, Wire::MlpOut]
                    .into_iter()
                    .filter(|wire| wire.site(layer).is_some_and(|site| self.program.edits_rows(site, rows)));
                // Rows that differ in some heads also change what follows from the values they join with.
                let brought = joins.landings(layer).map(|step| wiring.steps()[step].wire);
                let frozen = wiring.frozen(freeze.mlps, edited.chain(brought).collect());
                (frozen.held, frozen.taken)
            }
            None => (Wires::NONE, Wires::NONE),
        };
        let mut computed = Wires::NONE.with(Wire::ResidPost).and(tapped);
        for step in wiring.steps().iter().rev() {
            let made = computed.has(step.wire) && (!held.has(step.wire) || tapped.has(step.wire));
            if made || step.makes_any(tapped) {
                computed = computed.with(step.wire).and(step.needs);
            }
        }
        Todo { computed, held, taken }
    }

    /// The step of the last block after which the wanted positions suffice: no later step reads other positions, and no later
    /// edit distinguishes positions.
    fn trims(&self, layer: usize, wiring: &BlockWiring) -> Option<usize> {
        let last = layer + 1 == self.model.wiring().n_layers() && self.wanted.is_some();
        let edited = self.program.last_edited_by_position(layer, wiring);
        [wiring.keys_done(), wiring.attend_step()]
            .into_iter()
            .find(|&step| last && edited.is_none_or(|edit| edit <= step))
    }

    /// Whether queries are computed at the wanted positions only.
    pub(super) fn asks_where_wanted(&self, layer: usize) -> bool {
        self.trim.is_some_and(|trim| trim < self.model.wiring().block(layer).attend_step())
    }

    /// The wanted position of each row, `[row, position, ..]` to `[row, 1, ..]`; all positions if none is wanted.
    pub(super) fn pick(&self, x: &Tensor) -> Tensor {
        let Some(wanted) = self.wanted_of(x.size()[0]) else { return x.shallow_clone() };
        let rows = Tensor::arange(x.size()[0], (Kind::Int64, x.device()));
        let flat = x.flatten(0, 1).index_select(0, &(rows * x.size()[1] + wanted));
        flat.unsqueeze(1)
    }

    /// The wanted position of each of `rows` rows, which are copies of the batch.
    pub(super) fn wanted_of(&self, rows: i64) -> Option<Tensor> {
        self.wanted.as_ref().map(|wanted| copies(wanted, rows / wanted.size()[0]))
    }

    /// The value of a step, from those that it reads.
    pub(super) fn compute(&mut self, layer: usize, step: &Step, state: &State) -> Result<Tensor> {
        let block = self.model.block(layer)?;
        let read = |n: usize| step.reads.get(n).map_or_else(|| state.get(step.wire), |&wire| state.get(wire));
        match step.op {
            Op::Norm(at) => {
                let scale = step.reads.get(1).and_then(|scale| scale.site(layer));
                match (block.norm(at), scale) {
                    (Some(norm), Some(scale)) => self.norm(norm, scale, read(0)?),
                    _ => Ok(read(0)?.shallow_clone()),
                }
            }
            Op::Project => self.project(layer, step.wire, read(0)?),
            Op::Attend => {
                let heads = Heads::of(step.wire);
                let [q, k, v] = [heads.q, heads.k, heads.v].map(|wire| state.get(wire).map(Tensor::shallow_clone));
                attention::heads(self, layer, heads, [q?, k?, v?], None)
            }
            Op::Output => self.write(layer, Heads::of(step.wire), read(0)?),
            Op::Add => {
                let scale = self.model.config().residual_scale;
                let mut sum = read(0)?.shallow_clone();
                for &term in &step.reads[1..] {
                    let term = state.get(term)?;
                    sum = if scale == 1.0 { sum + term } else { sum + term * scale };
                }
                Ok(sum)
            }
            Op::Route => mlp::route(self, block, read(0)?),
            Op::Mix => mlp::mix(self, block, read(0)?, state.get(Wire::Router)?),
            Op::Expand | Op::Activate | Op::Contract => mlp::compute(self, block, step, state),
            Op::Stream | Op::Memory | Op::Scale | Op::Score | Op::Softmax | Op::Write => Ok(read(0)?.shallow_clone()),
        }
    }

    /// Queries, keys or values: `[row, position, d_model]` to `[row, position, head, d_head]`.
    pub(super) fn project(&self, layer: usize, wire: Wire, x: &Tensor) -> Result<Tensor> {
        let (config, block) = (self.model.config(), self.model.block(layer)?);
        let heads = Heads::of(wire);
        let attn = block.attention(heads)?;
        let (linear, heads) = match wire {
            wire if wire == heads.q => (&attn.q, config.n_heads),
            wire if wire == heads.k => (&attn.k, config.n_kv_heads),
            _ => (&attn.v, config.n_kv_heads),
        };
        let with_positions = self.model.wiring().block(layer).attend.positions && wire != Wire::V;
        let x = if with_positions { self.with_positions(layer, wire, x) } else { x.shallow_clone() };
        let projected = self.through(linear, &x)?.unflatten(-1, [heads as i64, -1]);
        Ok(match config.clip_qkv {
            Some(most) => projected.clamp(-most, most),
            None => projected,
        })
    }

    /// `x` through one of the model's matrices.
    pub(super) fn through(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        if self.program.explicit || self.program.plain { linear.forward(x) } else { linear.fast(x) }
    }

    /// The sum of the head outputs.
    fn write(&mut self, layer: usize, heads: &Heads, z: &Tensor) -> Result<Tensor> {
        let o = &self.model.block(layer)?.attention(heads)?.o;
        let (mut sum, config) = (None, self.model.config());
        if let Some(site) = heads.result.site(layer).filter(|site| self.program.touches(*site)) {
            let w_o = o.w.unflatten(-2, [config.n_heads as i64, config.d_head as i64]);
            let result = stack::each_head(z, &w_o);
            let result = self.at(site, result)?;
            // Only an edit may change what follows; a tap leaves the dense product as it is, unless gradients are to flow
            // back to it.
            let follows = self.program.edits(site) || self.program.differentiable;
            sum = follows.then(|| result.sum_dim_intlist([2i64].as_slice(), false, None));
        }
        match (sum, &o.b) {
            (Some(sum), Some(b)) => Ok(sum + b),
            (Some(sum), None) => Ok(sum),
            (None, _) => self.through(o, &z.flatten(2, 3)),
        }
    }

    /// `x` through a norm with its divisor at `site`.
    pub(super) fn norm(&mut self, weights: &Norm, site: Site, x: &Tensor) -> Result<Tensor> {
        let config = self.model.config();
        if !self.program.touches(site) {
            return Ok(norm::fused(config.norm, weights, x, config.norm_eps));
        }
        let (centred, scale) = norm::parts(config.norm, x, config.norm_eps);
        let scale = self.at(site, scale.to_kind(x.kind()))?;
        Ok(norm::joined(weights, &centred, &scale))
    }

    /// A value after the edits at its site.
    pub(super) fn edited(&self, layer: usize, wire: Wire, x: Tensor) -> Result<Tensor> {
        self.edited_from(layer, wire, x, self.start.unwrap_or(0))
    }

    /// [`Pass::edited`] of the rows from `start` on.
    pub(super) fn edited_from(&self, layer: usize, wire: Wire, x: Tensor, start: i64) -> Result<Tensor> {
        wire.site(layer).map_or(Ok(x.shallow_clone()), |site| self.program.apply(site, x, start))
    }

    /// The value at `site` after its edits; recorded if the program asks for it.
    pub(super) fn at(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let x = self.program.apply(site, x, self.start.unwrap_or(0))?;
        Ok(self.tap(site, x))
    }

    fn records_wire(&self, layer: usize, wire: Wire) -> bool {
        wire.site(layer).is_some_and(|site| self.program.records(site))
    }

    /// Records or keeps a value on demand, and detaches it from the autograd graph if no gradient may flow back through the
    /// layer's output. Values held from the unchanged run are not recorded.
    fn record(&mut self, layer: usize, wire: Wire, x: Tensor, held: Wires) -> Tensor {
        let x = match wire.site(layer) {
            Some(site) if !held.has(wire) => self.tap(site, x),
            _ => x,
        };
        if self.keep.contains(&(layer, wire)) {
            self.kept.insert((layer, wire), x.detach());
        }
        let written = matches!(wire, Wire::AttnOut | Wire::CrossOut | Wire::MlpOut);
        if written && self.program.blocked == Some(layer) { x.detach() } else { x }
    }

    /// Records the value at `site` if the program asks for it.
    pub(super) fn tap(&mut self, site: Site, mut x: Tensor) -> Tensor {
        if self.start.is_none() && self.program.records(site) {
            // A value that depends on nothing differentiable becomes a leaf for gradients.
            if self.program.differentiable && !x.requires_grad() {
                x = x.set_requires_grad(true);
            }
            if self.program.changes_gradient(site) {
                let sent = x.detach().set_requires_grad(true);
                self.joints.push(Joint { site, before: x, after: sent.shallow_clone() });
                x = sent;
            }
            let kept = if self.program.differentiable { x.shallow_clone() } else { x.detach() };
            self.taps.insert(site, kept);
        }
        x
    }

    /// The value `to` of a block in which `from` is `x`. If no step between them distinguishes positions, `x` may have any
    /// number of axes before the last.
    pub(crate) fn between(&mut self, layer: usize, from: Wire, x: &Tensor, to: Wire) -> Result<Tensor> {
        let mut state = State::default();
        state.set(from, x.shallow_clone());
        for step in self.model.wiring().block(layer).between(from, to) {
            let value = self.compute(layer, step, &state)?;
            state.set(step.wire, value);
        }
        Ok(state.get(to)?.shallow_clone())
    }

    /// Adds the rows that join after a step.
    #[allow(clippy::too_many_arguments)]
    fn join(
        &mut self,
        layer: usize,
        wiring: &BlockWiring,
        entry: Entry,
        n: i64,
        rows: i64,
        state: &mut State,
        joins: &Joins<'_>,
    ) -> Result<()> {
        let Cut::After { step, .. } = entry.cut else { return Ok(()) };
        match entry.how {
            How::Whole => {
                for wire in wiring.live(step).iter() {
                    let new = self.unchanged_rows(layer, wire, step, n, joins)?;
                    state.append(wire, self.edited_from(layer, wire, new, rows)?);
                }
                Ok(())
            }
            How::FirstPosition { from } => self.first_position(layer, [from, step], n, rows, state, joins),
            How::Heads { attend, .. } => self.some_heads(layer, entry, attend, rows, state, joins),
        }
    }

    /// `n` copies of an unchanged value, at the positions that are still computed after a step.
    pub(super) fn unchanged_rows(
        &self,
        layer: usize,
        wire: Wire,
        step: usize,
        n: i64,
        joins: &Joins<'_>,
    ) -> Result<Tensor> {
        let all = copies(&joins.unchanged(layer, wire)?, n);
        Ok(if wire.is_read_everywhere() { all } else { self.trimmed(step, all) })
    }

    /// A value at the positions that are still computed after a step.
    pub(super) fn trimmed(&self, step: usize, x: Tensor) -> Tensor {
        if self.trim.is_some_and(|trim| trim < step) && x.size()[1] > 1 { self.pick(&x) } else { x }
    }
}

/// What a pass does in one block.
struct Todo {
    computed: Wires,
    /// Values of the unchanged run, or that follow from those alone.
    held: Wires,
    /// Those of them that other steps read.
    taken: Wires,
}
