//! What would path patching find, to first order? Edge attribution patching.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Array2;
use tch::{Kind, Tensor};

use super::run::Share;
use super::{Chain, Input, Node, Paths, Receiver, Sender};
use crate::error::{Error, Result};
use crate::intervene::engine::{At, Engine, Estimate, Gradients, REFERENCE, back, backward, to_array};
use crate::intervene::metric::Output;
use crate::model::{
    Action, Bank, Edit, Entry, Joins, Model, Pass, Past, Plan, Program, Site, Tokens, Window, Wire, each_head,
};

impl Share<'_> {
    /// Edge attribution of all pairs, `[pair, batch]`: `(sender's output' - sender's output) . dm/d(receiver's input)`.
    /// The gradient flows through the receiver alone, including its norm. [`Estimate::Attribution`] takes it at the
    /// unpatched run (EAP, Syed et al. 2023); [`Estimate::IntegratedGradients`] averages it along the straight line
    /// from this run's embeddings to the other run's (EAP-IG, Hanna et al. 2024).
    ///
    /// Only z of the heads is kept; head outputs exist for one pair of layers at a time.
    pub(super) fn edge_effects(
        &self,
        engine: &Engine<'_>,
        chains: &[Chain],
        estimate: Estimate,
        metric: usize,
    ) -> Result<Array2<f64>> {
        let paths = self.paths;
        let edges = Edges::new(self, engine, estimate, metric)?;
        let mut effects = Array2::zeros((chains.len(), self.tokens.batch()));
        let part = |receiver: &&Receiver| {
            let site = receiver.input.site();
            (site.map_or((usize::MAX, 0), |site| self.model().wiring().point(site)), site)
        };
        let senders = each_once(&paths.senders, |sender: &Sender| sender.node);
        let mut receivers = each_once(&paths.receivers, |receiver: &Receiver| receiver.input);
        receivers.sort_by_key(part);
        for together in receivers.chunk_by(|a, b| part(a) == part(b)) {
            let inputs: Vec<Input> = together.iter().map(|receiver| receiver.input).collect();
            let gradients = edges.at_inputs(&inputs)?;
            let masks = together.iter().map(|receiver| self.mask(receiver.at.as_ref(), &gradients));
            let gradients = &gradients * Tensor::stack(&masks.collect::<Result<Vec<_>>>()?, 2).unsqueeze(-1);
            for (sender, found) in edges.scores(&senders, &gradients, inputs[0])? {
                for (chain, mut effect) in chains.iter().zip(effects.outer_iter_mut()) {
                    if !paths.senders[chain.steps[0]].contains(sender) {
                        continue;
                    }
                    for (column, receiver) in together.iter().enumerate() {
                        if paths.receivers[chain.receiver].contains(receiver) {
                            effect += &found.column(column);
                        }
                    }
                }
            }
        }
        Ok(effects)
    }

    /// 1 at the positions `at` of this part's prompts and 0 elsewhere, `[batch, position]`, like `x`.
    fn mask(&self, at: Option<&At>, x: &Tensor) -> Result<Tensor> {
        let mask = match at {
            Some(at) => self.paths.pairs.mask(at)?.narrow(0, self.part.first as i64, self.part.n as i64),
            None => Tensor::ones([self.tokens.batch() as i64, self.tokens.positions() as i64], (x.kind(), x.device())),
        };
        Ok(mask.to_device(x.device()).to_kind(x.kind()))
    }
}

/// The members of all sets, each once, in the order of a key.
fn each_once<T: PartialEq, K: Ord>(sets: &[Vec<T>], key: impl Fn(&T) -> K) -> Vec<&T> {
    let mut all: Vec<&T> = vec![];
    for one in sets.iter().flatten() {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all.sort_by_key(|one| key(one));
    all
}

impl Paths<'_> {
    pub(super) fn check_edges(&self, estimate: Estimate) -> Result<()> {
        if estimate == Estimate::AtpStar {
            let expected = "attribution or integrated gradients for paths";
            return Err(Error::argument("estimate", expected, estimate.name()));
        }
        if !self.freeze.mlps {
            let expected = "frozen MLPs: gradients estimate the direct path";
            return Err(Error::argument("estimate", expected, "recomputed MLPs"));
        }
        if !self.model.wiring().adds_up() {
            let expected = "one whose residual stream is a sum";
            return Err(Error::argument("model", expected, &self.model.config().family));
        }
        Ok(())
    }
}

/// The changes and gradients that edge attribution multiplies.
struct Edges<'a> {
    share: &'a Share<'a>,
    engine: &'a Engine<'a>,
    /// The change at each sender's site, other run minus this run.
    changes: BTreeMap<Site, Tensor>,
    /// The activations that receivers read and those that they compute, at each step, `[step * batch, ..]`.
    values: BTreeMap<Site, Tensor>,
    /// Gradients of the metric there.
    gradients: Gradients,
    steps: i64,
    /// The number of the metric.
    metric: usize,
}

impl<'a> Edges<'a> {
    fn new(share: &'a Share<'a>, engine: &'a Engine<'a>, estimate: Estimate, metric: usize) -> Result<Self> {
        let (paths, model) = (share.paths, share.model());
        let bank = share.bank()?;
        let run = model.run(&share.tokens, &Plan::new().taps(bank.sites(REFERENCE)))?;
        let mut changes = BTreeMap::new();
        for site in bank.sites(REFERENCE) {
            changes.insert(site, &bank.get(REFERENCE, site)?.tensor - run.get(site)?);
        }
        let steps = if let Estimate::IntegratedGradients { steps } = estimate { steps } else { 1 };
        share.setup().check_steps(steps)?;
        let mut edges = Self {
            share,
            engine,
            changes,
            values: BTreeMap::new(),
            gradients: Gradients::new(),
            steps: steps as i64,
            metric,
        };
        let program = edges.program(estimate)?;
        let ids = share.tokens.ids(model.device());
        let joins = Joins::at(Entry::START, edges.steps, ids, None);
        let reads = |receiver: &Receiver| [receiver.input.site(), Some(read_by(receiver.input, model))];
        let sites: BTreeSet<Site> = paths.receivers.iter().flatten().flat_map(reads).flatten().collect();
        let program = program.recording(sites.iter().copied());
        (edges.values, edges.gradients) = back(&share.setup(), engine, &program, &joins, metric)?;
        Ok(edges)
    }

    /// The program of all steps: the unpatched run, or with embeddings interpolated towards the other run's.
    fn program(&self, estimate: Estimate) -> Result<Program> {
        let mut program = Program::taps([]);
        program.differentiable = true;
        let Estimate::IntegratedGradients { steps } = estimate else { return Ok(program) };
        let (model, tokens) = (self.share.model(), &self.share.tokens);
        let embed = |tokens: &Tokens| {
            Ok::<_, Error>(model.run(tokens, &Plan::new().tap(Site::Embed))?.get(Site::Embed)?.shallow_clone())
        };
        let (ours, other): (Tensor, Tensor) = (embed(tokens)?, embed(&self.share.other)?);
        let mut bank = Bank::default();
        for step in 0..steps {
            let (key, share) = (step.to_string(), (step as f64 + 0.5) / steps as f64);
            bank.insert(&key, Site::Embed, &ours + (&other - &ours) * share);
            let window = Window { rows: Some((step * tokens.batch(), tokens.batch())), ..Window::default() };
            let edit = Edit::new(Site::Embed, Action::replace(&key));
            program.push(edit, Some(bank.get(&key, Site::Embed)?), &window, model.config(), tokens)?;
        }
        Ok(program)
    }

    /// Gradients of the metric with respect to the inputs of receivers of one kind and layer, each through that
    /// receiver alone, `[batch, position, receiver, d_model]`.
    fn at_inputs(&self, inputs: &[Input]) -> Result<Tensor> {
        let model = self.share.model();
        let heads: Vec<i64> = inputs.iter().map(|input| input.head().unwrap_or(0) as i64).collect();
        let heads = Tensor::from_slice(&heads).to_device(model.device());
        let value = |site: Site| self.values.get(&site).ok_or(Error::NotTapped { site, tapped: vec![] });
        let site = inputs[0].site();
        let layer = site.and_then(|site| site.layer()).unwrap_or(model.config().n_layers - 1);
        let behind = site.and_then(|site| self.gradients.get(&site));
        let program = Program::taps([]);
        let through = |layer, from, x: &Tensor, to| {
            let mut pass = Pass::over(model, &program, x.size()[1] as usize, None, Past::None);
            pass.between(layer, from, x, to)
        };
        let found = tch::with_grad(|| {
            let leaf = |x: &Tensor| x.detach().copy().set_requires_grad(true);
            let (x, total) = match inputs[0] {
                Input::Logits => {
                    let x = leaf(value(Site::ResidPost(layer))?);
                    let total = self.engine.reader.values_of(self.metric, &Output::whole(&x))?.sum(Kind::Double);
                    (x, Some(total))
                }
                Input::Mlp { .. } => {
                    let x = leaf(value(read_by(inputs[0], model))?);
                    let from = Wire::of(read_by(inputs[0], model)).unwrap_or(Wire::ResidMid);
                    let out = through(layer, from, &x, Wire::MlpOut)?;
                    let total = behind.map(|gradient| (out * gradient).sum(Kind::Double));
                    (x, total)
                }
                _ => {
                    let resid = value(Site::ResidPre(layer))?.unsqueeze(2);
                    let x = leaf(&resid.expand([-1, -1, inputs.len() as i64, -1], false));
                    let attn = &model.block(layer)?.attn;
                    let (w, b) = match inputs[0] {
                        Input::Query { .. } => (model.w_q(layer)?, &attn.q.b),
                        Input::Key { .. } => (model.w_k(layer)?, &attn.k.b),
                        _ => (model.w_v(layer)?, &attn.v.b),
                    };
                    let read = model.wiring().block(layer).step(Wire::Q).and_then(|step| step.reads.first().copied());
                    let normed = match read {
                        Some(read) if read != Wire::ResidPre => through(layer, Wire::ResidPre, &x, read)?,
                        _ => x.shallow_clone(),
                    };
                    let out = each_head(&normed, &w.index_select(0, &heads));
                    // A bias matters to the gradient only where the sum is cut off.
                    let out = match (model.config().clip_qkv, b) {
                        (Some(most), Some(b)) => {
                            (out + b.view([w.size()[0], -1]).index_select(0, &heads)).clamp(-most, most)
                        }
                        (Some(most), None) => out.clamp(-most, most),
                        (None, _) => out,
                    };
                    let total = behind.map(|gradient| (out * gradient.index_select(2, &heads)).sum(Kind::Double));
                    (x, total)
                }
            };
            match total {
                Some(total) => Ok::<_, Error>(backward(&total, &[&x])?.remove(0)),
                None => Ok(x.zeros_like()),
            }
        })?;
        let found = if found.dim() == 3 { found.unsqueeze(2) } else { found };
        Ok(found.unflatten(0, [self.steps, -1]).mean_dim([0i64].as_slice(), false, None))
    }

    /// The scores of every sender before `input` with the receivers of `gradients`, `[batch, receiver]` each.
    fn scores<'s>(
        &self,
        senders: &[&'s Sender],
        gradients: &Tensor,
        input: Input,
    ) -> Result<Vec<(&'s Sender, Array2<f64>)>> {
        let mut all = vec![];
        let model = self.share.model();
        let before: Vec<&Sender> = senders.iter().copied().filter(|sender| sender.node.reaches(input, model)).collect();
        for together in before.chunk_by(|a, b| a.node.site() == b.node.site()) {
            let change = &self.changes[&together[0].node.site()];
            let written = match together[0].node {
                Node::Head { layer, .. } => {
                    let written = each_head(change, &model.w_o(layer)?);
                    written * model.config().residual_scale
                }
                Node::Mlp { .. } => (change * model.config().residual_scale).unsqueeze(2),
                Node::Embed => change.unsqueeze(2),
            };
            // Sums over positions and d_model, with one matrix product per prompt.
            let flat = |x: &Tensor| x.transpose(1, 2).flatten(2, 3);
            let score = |written: &Tensor| flat(gradients).bmm(&flat(written).transpose(1, 2)).to_kind(Kind::Double);
            let everywhere = score(&written);
            for &sender in together {
                let head = sender.node.head().unwrap_or(0) as i64;
                let scores = match &sender.at {
                    None => everywhere.select(2, head),
                    at => {
                        let mask = self.share.mask(at.as_ref(), &written)?.unsqueeze(-1);
                        score(&(written.select(2, head) * mask).unsqueeze(2)).select(2, 0)
                    }
                };
                all.push((sender, to_array(&scores.to_device(tch::Device::Cpu))?));
            }
        }
        Ok(all)
    }
}

/// The site of the residual stream that a receiver reads.
fn read_by(input: Input, model: &Model) -> Site {
    let last = Site::ResidPost(model.config().n_layers - 1);
    let Some((layer, wire)) = input.site().and_then(|site| site.layer().zip(Wire::of(site))) else { return last };
    let read = model.wiring().block(layer).stream_read_by(wire);
    read.and_then(|wire| wire.site(layer)).unwrap_or(last)
}
