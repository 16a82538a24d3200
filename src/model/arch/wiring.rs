//! What does a block compute, in which order, and which value depends on which?
//!
//! A block is a small graph of named values ([`Wire`]), each computed by one [`Step`] from the values that the step reads. All
//! knowledge of blocks is derived from the graph: how to evaluate it, what a change can reach, where a changed run departs from
//! the unchanged one and with which values, what stays fixed when heads are frozen, which terms the residual stream is a sum
//! of, and what a step costs. Architectures differ in their graphs, never in code.

use super::attend::Attend;
use super::config::{ModelConfig, NormKind, NormPlace, Parallel};
use super::experts::Experts;
use super::wire::{Heads, Wire, Wires};
use crate::site::Site;

pub(crate) use order::Wiring;

/// Which norm of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormAt {
    /// `ln1`: on the residual stream that attention reads, or on the sum after it.
    Attn,
    /// `ln1_post`: on the attention output.
    AttnOut,
    /// `ln_cross`: on the residual stream that cross-attention reads, or on the sum after it.
    Cross,
    /// `ln2`: on the residual stream that the MLP reads, or on the sum after it.
    Mlp,
    /// `ln2_post`: on the MLP output.
    MlpOut,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// The residual stream that enters the block.
    Stream,
    /// What an encoder has made of the source.
    Memory,
    /// The divisor of a norm.
    Scale,
    /// A norm on the first value that the step reads.
    Norm(NormAt),
    /// Queries, keys or values.
    Project,
    /// The products of queries and keys, scaled, biased, capped and masked.
    Score,
    /// The softmax of the scores.
    Softmax,
    /// Each head's sum of values, weighted by the pattern.
    Attend,
    /// The head outputs: what each head writes by itself.
    Write,
    /// The sum of the head outputs and the bias.
    Output,
    /// The residual stream plus the outputs of sub-layers.
    Add,
    /// The weights of the experts.
    Route,
    /// The argument of the MLP's activation.
    Expand,
    /// The activation, multiplied by the second projection in a gated MLP.
    Activate,
    /// The MLP's output projection.
    Contract,
    /// The weighted sum of the experts' outputs.
    Mix,
}

impl Op {
    /// Whether the value is computed inside the step that reads it, and kept only on demand: that step may have a fast path
    /// that never computes it.
    fn is_inner(self) -> bool {
        matches!(self, Self::Scale | Self::Score | Self::Softmax | Self::Write)
    }
}

/// How one value of a block is computed.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub wire: Wire,
    pub op: Op,
    /// The values that it reads.
    pub reads: Vec<Wire>,
    /// The same, with each inner value replaced by those that it is computed from.
    pub needs: Wires,
    /// The inner values that are computed in it.
    inner: Wires,
}

impl Step {
    /// Whether one of these values is computed inside the step.
    pub(crate) fn makes_any(&self, wires: Wires) -> bool {
        self.inner.meets(wires)
    }
}

/// A place between two steps of the forward pass, where rows that depart from the unchanged run there join the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cut {
    /// Before the embeddings; rows join with their token ids.
    Start,
    /// In a layer, after the step with this number.
    After { layer: usize, step: usize },
}

/// The graph of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockWiring {
    /// Every step in order, including inner ones.
    all: Vec<Step>,
    /// The steps that the pass takes, in order.
    steps: Vec<Step>,
    /// For each of `steps`, the values that later ones read.
    live: Vec<Wires>,
    pub attend: Attend,
    /// In a block with cross-attention, what that does.
    across: Option<Attend>,
}

/// The values of the residual stream after each sub-layer.
const STREAM: [Wire; 3] = [Wire::ResidMid, Wire::ResidCross, Wire::ResidPost];

/// Collects the steps of a block.
struct Draft(Vec<(Wire, Op, Vec<Wire>)>);

impl Draft {
    fn step(&mut self, wire: Wire, op: Op, reads: &[Wire]) -> Wire {
        self.0.push((wire, op, reads.to_vec()));
        wire
    }

    /// A norm on `x`, with the divisor as a value of its own.
    fn norm(&mut self, wire: Wire, at: NormAt, scale: Wire, x: Wire) -> Wire {
        self.step(scale, Op::Scale, &[x]);
        self.step(wire, Op::Norm(at), &[x, scale])
    }

    /// Attention from `x` to positions of `to`.
    fn attention(&mut self, of: &Heads, x: Wire, to: Wire) {
        // Keys and values first: if only one position of each row is wanted, they are needed at all positions, but queries
        // only at that one.
        for (wire, read) in [(of.k, to), (of.v, to), (of.q, x)] {
            self.step(wire, Op::Project, &[read]);
        }
        self.step(of.scores, Op::Score, &[of.q, of.k]);
        self.step(of.pattern, Op::Softmax, &[of.scores]);
        self.step(of.z, Op::Attend, &[of.pattern, of.v]);
        self.step(of.result, Op::Write, &[of.z]);
    }

    /// Cross-attention, and the residual stream after it: with norms `before` it or `after` the sum.
    fn across(&mut self, stream: Wire, before: bool, after: bool) -> Wire {
        use Wire::{CrossIn, CrossOut, CrossResult, CrossSum, CrossZ, LnCrossScale, Memory, ResidCross};
        let read = if before { self.norm(CrossIn, NormAt::Cross, LnCrossScale, stream) } else { stream };
        let memory = self.step(Memory, Op::Memory, &[]);
        self.attention(&Heads::CROSS, read, memory);
        let out = self.step(CrossOut, Op::Output, &[CrossZ, CrossResult]);
        if !after {
            return self.step(ResidCross, Op::Add, &[stream, out]);
        }
        let sum = self.step(CrossSum, Op::Add, &[stream, out]);
        self.norm(ResidCross, NormAt::Cross, LnCrossScale, sum)
    }

    fn mlp(&mut self, config: &ModelConfig, layer: usize, x: Wire, out: Wire) -> Wire {
        if config.experts_of(layer).is_some() {
            self.step(Wire::Router, Op::Route, &[x]);
            return self.step(out, Op::Mix, &[x, Wire::Router]);
        }
        let pre = self.step(Wire::MlpPre, Op::Expand, &[x]);
        let post = match config.gated_mlp {
            true => self.step(Wire::MlpPost, Op::Activate, &[pre, x]),
            false => self.step(Wire::MlpPost, Op::Activate, &[pre]),
        };
        self.step(out, Op::Contract, &[post])
    }
}

impl BlockWiring {
    /// The graph of a layer's block.
    pub(crate) fn new(config: &ModelConfig, layer: usize) -> Self {
        use NormPlace::{Output, Post, Pre, Sandwich};
        use Wire::*;
        let place = if config.norm == NormKind::None { None } else { Some(config.norm_place) };
        let (before, on_output, after) =
            (matches!(place, Some(Pre | Sandwich)), matches!(place, Some(Sandwich | Output)), place == Some(Post));
        let mut draft = Draft(vec![]);
        let stream = draft.step(ResidPre, Op::Stream, &[]);
        let through_norm = before && !config.layer(layer).no_attn_norm;
        let read = if through_norm { draft.norm(AttnIn, NormAt::Attn, Ln1Scale, stream) } else { stream };
        draft.attention(&Heads::OWN, read, read);
        // One product reads z; the output of each head by itself is computed only on demand.
        let written = draft.step(if on_output { AttnSum } else { AttnOut }, Op::Output, &[Z, Result]);
        let attn = if on_output { draft.norm(AttnOut, NormAt::AttnOut, Ln1PostScale, written) } else { written };
        let serial = config.parallel == Parallel::No;
        let mid = match (serial, after) {
            (false, _) => stream,
            (true, false) => draft.step(ResidMid, Op::Add, &[stream, attn]),
            (true, true) => {
                let sum = draft.step(MidSum, Op::Add, &[stream, attn]);
                draft.norm(ResidMid, NormAt::Attn, Ln1Scale, sum)
            }
        };
        let across = config.attends_across(layer);
        let mid = if across { draft.across(mid, before, after) } else { mid };
        let across = across.then(|| Attend::across(config, layer));
        if !config.has_mlp() {
            draft.step(ResidPost, Op::Add, &[mid]);
            return Self { across, ..Self::finish(draft, Attend::new(config, layer)) };
        }
        let read = match config.parallel {
            Parallel::OneNorm => read,
            _ if before => draft.norm(MlpIn, NormAt::Mlp, Ln2Scale, mid),
            _ => mid,
        };
        let written = draft.mlp(config, layer, read, if on_output { MlpSum } else { MlpOut });
        let mlp = if on_output { draft.norm(MlpOut, NormAt::MlpOut, Ln2PostScale, written) } else { written };
        let terms: &[Wire] = if serial { &[mid, mlp] } else { &[stream, attn, mlp] };
        if after {
            let sum = draft.step(PostSum, Op::Add, terms);
            draft.norm(ResidPost, NormAt::Mlp, Ln2Scale, sum);
        } else {
            draft.step(ResidPost, Op::Add, terms);
        }
        Self { across, ..Self::finish(draft, Attend::new(config, layer)) }
    }

    fn finish(draft: Draft, attend: Attend) -> Self {
        let mut all: Vec<Step> = vec![];
        for (wire, op, reads) in draft.0 {
            let (mut needs, mut inner) = (Wires::NONE, Wires::NONE);
            for &read in &reads {
                match all.iter().find(|step| step.wire == read && step.op.is_inner()) {
                    Some(made) => (needs, inner) = (needs.and(made.needs), inner.and(made.inner).with(read)),
                    None => needs = needs.with(read),
                }
            }
            all.push(Step { wire, op, reads, needs, inner });
        }
        let steps: Vec<Step> = all.iter().filter(|step| !step.op.is_inner()).cloned().collect();
        let mut live = vec![Wires::NONE.with(Wire::ResidPost)];
        for step in steps.iter().rev() {
            let after = live[live.len() - 1];
            live.push(after.without(step.wire).and(step.needs));
        }
        live.pop(); // nothing is live before the first step
        live.reverse();
        Self { all, steps, live, attend, across: None }
    }

    /// What one attention of the block does.
    pub(crate) fn attends(&self, heads: &Heads) -> &Attend {
        self.across.as_ref().filter(|_| heads.are_across()).unwrap_or(&self.attend)
    }

    /// The steps that the pass takes, in order.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The values that steps after `step` read.
    pub(crate) fn live(&self, step: usize) -> Wires {
        self.live[step]
    }

    /// All values of the block, in order.
    pub(crate) fn wires(&self) -> impl Iterator<Item = Wire> {
        self.all.iter().map(|step| step.wire)
    }

    /// How a value is computed; `None` if the block does not have it.
    pub(crate) fn step(&self, wire: Wire) -> Option<&Step> {
        self.all.iter().find(|step| step.wire == wire)
    }

    /// The number of the step in which a value is computed: its own, or the one that contains an inner value.
    pub(crate) fn made_in(&self, wire: Wire) -> Option<usize> {
        self.steps.iter().position(|step| step.wire == wire || step.inner.has(wire))
    }

    /// The number of the step in which an edit at a site of the block fires.
    pub(crate) fn fires_in(&self, site: Site) -> Option<usize> {
        self.made_in(Wire::of(site)?)
    }

    /// The number of the first step with this operation.
    fn first(&self, op: Op) -> Option<usize> {
        self.steps.iter().position(|step| step.op == op)
    }

    /// The number of the step that sums over heads.
    pub(crate) fn output(&self) -> usize {
        self.first(Op::Output).unwrap_or(0)
    }

    /// The number of the step in which positions attend to each other.
    pub(crate) fn attend_step(&self) -> usize {
        self.first(Op::Attend).unwrap_or(0)
    }

    /// The number of the step after which keys and values are computed.
    pub(crate) fn keys_done(&self) -> usize {
        self.made_in(Wire::V).unwrap_or(0)
    }

    /// Whether the block has this norm.
    pub(crate) fn has_norm(&self, at: NormAt) -> bool {
        self.first(Op::Norm(at)).is_some()
    }

    /// The values that a change of `wire` can change, including itself.
    pub(crate) fn reached(&self, wire: Wire) -> Wires {
        self.all.iter().fold(Wires::NONE.with(wire), |reached, step| {
            let reads: Wires = step.reads.iter().copied().collect();
            if reads.meets(reached) { reached.with(step.wire) } else { reached }
        })
    }

    /// The steps that lead from one value to another, in order.
    pub(crate) fn between(&self, from: Wire, to: Wire) -> Vec<&Step> {
        let (after, mut before) = (self.reached(from), Wires::NONE.with(to));
        let mut steps = vec![];
        for step in self.steps.iter().rev().filter(|step| after.has(step.wire) && step.wire != from) {
            if before.has(step.wire) {
                before = before.and(step.needs);
                steps.push(step);
            }
        }
        steps.reverse();
        steps
    }

    /// The last step after which a run that is edited at these values can join with the values of the unchanged run: no step up
    /// to there reads an edited one.
    pub(crate) fn departs(&self, edited: Wires) -> usize {
        let reads = |step: &Step| step.needs.meets(edited) || step.inner.meets(edited);
        self.steps.iter().position(reads).unwrap_or(self.steps.len()).saturating_sub(1)
    }

    /// The number of the last step to which a change of the head outputs is carried by sums alone; without such sums, that of the
    /// output projection.
    pub(crate) fn lands(&self) -> usize {
        let output = self.output();
        let mut carried = Wires::NONE.with(self.steps[output].wire);
        let mut last = output;
        for (number, step) in self.steps.iter().enumerate().skip(output + 1) {
            if step.needs.meets(carried) {
                if step.op != Op::Add {
                    break;
                }
                (carried, last) = (carried.with(step.wire), number);
            }
        }
        // No other step may read a value that was carried on the way.
        let passed = carried.without(self.steps[last].wire);
        let others = self.steps.iter().filter(|step| step.op != Op::Add && step.needs.meets(passed)).count();
        if others == 0 { last } else { output }
    }

    /// Which values are those of the unchanged run when the outputs of heads (and with `mlps` those of MLPs) are frozen, except
    /// for what follows from the `edited` values.
    pub(crate) fn frozen(&self, mlps: bool, edited: Wires) -> Frozen {
        let sources: Wires = [Wire::Z].into_iter().chain(mlps.then_some(Wire::MlpOut)).collect();
        let held = self.steps.iter().fold(sources, |held, step| {
            let follows = !step.needs.is_empty() && held.covers(step.needs) && !edited.meets(step.needs);
            if follows { held.with(step.wire) } else { held }
        });
        let read = |wire: &Wire| self.steps.iter().any(|step| step.needs.has(*wire) && !held.has(step.wire));
        Frozen { held, taken: held.iter().filter(read).collect() }
    }

    /// The value of the residual stream that `wire` is computed from: the one before the sub-layer's norm.
    pub(crate) fn stream_read_by(&self, wire: Wire) -> Option<Wire> {
        let mut wire = wire;
        loop {
            let step = self.step(wire)?;
            match step.op {
                Op::Stream | Op::Add => return Some(wire),
                Op::Norm(NormAt::Attn | NormAt::Cross | NormAt::Mlp) if STREAM.contains(&step.wire) => {
                    return Some(wire);
                }
                _ => wire = *step.reads.first()?,
            }
        }
    }

    /// Whether each value of the residual stream is the previous one plus the outputs of sub-layers.
    fn adds_up(&self) -> bool {
        self.steps.iter().filter(|step| STREAM.contains(&step.wire)).all(|step| step.op == Op::Add)
    }

    /// The number of multiplications in a step's matrix products.
    pub(crate) fn products(&self, step: &Step, config: &ModelConfig, size: &Size) -> f64 {
        let ModelConfig { d_model, d_head, n_heads, d_mlp, .. } = *config;
        let heads = size.heads.unwrap_or(n_heads);
        let n = match step.op {
            Op::Project => size.rows * d_model * step.wire.width(config),
            Op::Attend => 2 * size.rows * size.keys * heads * d_head,
            Op::Output => size.rows * heads * d_head * d_model,
            Op::Expand | Op::Contract => size.rows * d_model * d_mlp,
            Op::Activate if step.reads.len() > 1 => size.rows * d_model * d_mlp,
            Op::Route => size.rows * d_model * step.wire.width(config),
            Op::Mix => {
                let matrices = if config.gated_mlp { 3 } else { 2 };
                let width = |experts: Experts| experts.top_k * d_mlp + experts.shared.map_or(0, |shared| shared.d_mlp);
                size.rows * config.experts.map_or(0, width) * matrices * d_model
            }
            _ => 0,
        };
        n as f64
    }
}

/// How much a step works on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// The number of positions, over all prompts, for which it is computed.
    pub rows: usize,
    /// The number of positions that each of them attends to.
    pub keys: usize,
    /// The number of heads that take part; all by default.
    pub heads: Option<usize>,
}

/// The values that stay as in the unchanged run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frozen {
    /// The values that are not computed.
    pub held: Wires,
    /// Those of them that other steps read.
    pub taken: Wires,
}

mod order;
#[cfg(test)]
mod tests;
