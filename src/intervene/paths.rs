//! Which part of the model tells which: path patching.

use std::collections::{BTreeMap, BTreeSet};

use tch::Tensor;

use super::ablation::REFERENCE;
use super::engine::{Engine, Setup, to_array};
use super::gradient::Estimate;
use super::metric::Metric;
use super::node::{Input, Node};
use super::outcome::Outcome;
use super::sets::name_of;
use super::sweep::{Strategy, Variant, same_lengths};
use crate::error::{Error, Result};
use crate::model::{Bank, Edit, Frozen, Model, Plan, Site, Tokens};
use crate::progress::Progress;
use crate::table::{Keys, Observation, Table};

/// Which part of the model tells which? Path patching (Wang et al. 2022; Goldowsky-Dill et al. 2023), exact.
///
/// For each sender and receiver: the senders write what they write in the other run, all other heads what they write in
/// this one, MLPs between them compute anew (or are frozen: [`Paths::frozen_mlps`]). What the receivers read then is
/// stored, and this run is repeated with the receivers reading that and everything behind them computed: the effect on
/// the metric is that of the paths from sender to receiver through the residual stream (and the MLPs between). Norms are
/// computed, never linearised.
///
/// One row a sender and receiver, for all pairs where the receiver comes after the sender: columns `from_layer`,
/// `from_site`, `from_head` and `layer`, `site`, `head` (`kv_head` for keys and values). A set of several senders or
/// receivers is patched together, and is named in `from_site` or `site`.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let clean = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
/// let corrupt = Tokens::new(&[vec![5, 6, 70, 8, 9]])?;
/// let paths = Paths::noise(&model, &clean, &corrupt)
///     .receivers(Input::queries(&model))
///     .metric(Metric::logit_difference(3, 4))
///     .run()?;
/// assert_eq!(paths.len(), 4 * 4 * 3); // heads of layers (0, 1), (0, 2) and (1, 2)
/// # Ok::<(), headscope::Error>(())
/// ```
pub struct Paths<'a> {
    pub(super) model: &'a Model,
    pub(super) tokens: &'a Tokens,
    pub(super) other: &'a Tokens,
    denoises: bool,
    pub(super) senders: Vec<Vec<Node>>,
    pub(super) receivers: Vec<Vec<Input>>,
    pub(super) frozen: Frozen,
    pub(super) metric: Metric,
    memory: Option<usize>,
    per_prompt: bool,
    normalised: bool,
    interval: Option<u64>,
    estimate: Option<Estimate>,
}

impl<'a> Paths<'a> {
    /// The clean run, in which senders write what they write in the corrupted one: which paths does the behaviour need?
    /// At first from every head to the logits.
    pub fn noise(model: &'a Model, clean: &'a Tokens, corrupt: &'a Tokens) -> Self {
        Self::new(model, clean, corrupt, false)
    }

    /// The corrupted run, in which senders write what they write in the clean one: which paths restore the behaviour?
    pub fn patch(model: &'a Model, clean: &'a Tokens, corrupt: &'a Tokens) -> Self {
        Self::new(model, corrupt, clean, true)
    }

    fn new(model: &'a Model, tokens: &'a Tokens, other: &'a Tokens, denoises: bool) -> Self {
        Self {
            model,
            tokens,
            other,
            denoises,
            senders: Node::heads(model).into_iter().map(|node| vec![node]).collect(),
            receivers: vec![vec![Input::Logits]],
            frozen: Frozen { mlps: false },
            metric: Metric::Loss,
            memory: None,
            per_prompt: false,
            normalised: false,
            interval: None,
            estimate: None,
        }
    }

    /// These senders, each by itself.
    pub fn senders(self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.sender_sets(nodes.into_iter().map(|node| vec![node]))
    }

    /// These sets of senders, each changed together.
    pub fn sender_sets(mut self, sets: impl IntoIterator<Item = Vec<Node>>) -> Self {
        self.senders = sets.into_iter().collect();
        self
    }

    /// These receivers, each by itself.
    pub fn receivers(self, inputs: impl IntoIterator<Item = Input>) -> Self {
        self.receiver_sets(inputs.into_iter().map(|input| vec![input]))
    }

    /// These sets of receivers, each changed together.
    pub fn receiver_sets(mut self, sets: impl IntoIterator<Item = Vec<Input>>) -> Self {
        self.receivers = sets.into_iter().collect();
        self
    }

    /// MLPs between sender and receiver write what they write in the unpatched run, so that only the direct path counts.
    pub fn frozen_mlps(mut self) -> Self {
        self.frozen.mlps = true;
        self
    }

    /// What is measured; the loss, unless said otherwise.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// At most about this many bytes for stacked activations; a quarter of what is free, unless said otherwise.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// One row a pair and prompt, in place of the mean over prompts.
    pub fn per_prompt(mut self) -> Self {
        self.per_prompt = true;
        self
    }

    /// Puts the metric on the scale from the corrupted run (0) to the clean one (1).
    pub fn normalised(mut self) -> Self {
        self.normalised = true;
        self
    }

    /// Adds an interval of the mean over prompts, as [`Sweep::interval`](super::Sweep::interval) does.
    pub fn interval(mut self, seed: u64) -> Self {
        self.interval = Some(seed);
        self
    }

    /// Estimates the effects of the direct paths (with [`Paths::frozen_mlps`]) from gradients, all pairs from one pass
    /// forward and back: edge attribution (EAP, Syed et al. 2023), with integrated gradients EAP-IG (Hanna et al. 2024).
    pub fn estimate(mut self, estimate: Estimate) -> Self {
        self.estimate = Some(estimate);
        self
    }

    /// Computes the table.
    ///
    /// # Errors
    /// Where a sender or receiver does not exist, no receiver comes after a sender, or the two batches do not fit.
    pub fn run(&self) -> Result<Table> {
        let pairs = self.pairs()?;
        let rows = tch::no_grad(|| match self.estimate {
            Some(estimate) => self.edge_rows(&pairs, estimate),
            None => self.rows(&pairs),
        })?;
        Table::new(rows, self.provenance()?)
    }

    pub(super) fn setup<'b>(&'b self, tokens: &'b Tokens) -> Setup<'b> {
        let (model, metric, strategy, memory) = (self.model, &self.metric, Strategy::Auto, self.memory);
        Setup { model, tokens, metric, per_token: false, strategy, memory, stop: None }
    }

    /// Numbers of the senders and receivers between which there is a path.
    pub(super) fn pairs(&self) -> Result<Vec<(usize, usize)>> {
        self.check()?;
        let meets = |senders: &[Node], inputs: &[Input]| {
            senders.iter().any(|sender| inputs.iter().any(|input| sender.time() < input.time()))
        };
        let mut pairs = vec![];
        for (s, senders) in self.senders.iter().enumerate() {
            let receivers = self.receivers.iter().enumerate().filter(|(_, inputs)| meets(senders, inputs));
            pairs.extend(receivers.map(|(r, _)| (s, r)));
        }
        if pairs.is_empty() {
            return Err(Error::argument("senders, receivers", "a receiver that comes after a sender", "none"));
        }
        Ok(pairs)
    }

    fn check(&self) -> Result<()> {
        let config = self.model.config();
        let limits = |at: &str, axis, found: usize, limit: usize| match found < limit {
            true => Ok(()),
            false => Err(Error::OutOfRange { at: at.into(), axis, found: found as i64, limit: limit as i64 }),
        };
        for node in self.senders.iter().flatten() {
            node.site().check(config)?;
            if let Node::Head { head, .. } = node {
                limits("sender", "head", *head, config.n_heads)?;
            }
        }
        for input in self.receivers.iter().flatten() {
            input.site().map_or(Ok(()), |site| site.check(config))?;
            match input {
                Input::Query { head, .. } => limits("receiver", "head", *head, config.n_heads)?,
                Input::Key { kv_head, .. } | Input::Value { kv_head, .. } => {
                    limits("receiver", "kv_head", *kv_head, config.n_kv_heads)?;
                }
                Input::Mlp { .. } | Input::Logits => {}
            }
        }
        if self.senders.iter().any(Vec::is_empty) || self.receivers.iter().any(Vec::is_empty) {
            return Err(Error::argument("senders, receivers", "at least one in each set", "an empty set"));
        }
        if self.receivers.iter().any(|inputs| inputs.len() > 1 && inputs.contains(&Input::Logits)) {
            return Err(Error::argument("receivers", "the logits by themselves", "a set with others"));
        }
        if self.normalised && self.metric.is_relative() {
            return Err(Error::argument("normalised", "a metric of one run", self.metric.name()));
        }
        same_lengths(self.tokens, self.other)
    }

    fn rows(&self, pairs: &[(usize, usize)]) -> Result<Vec<Observation>> {
        let senders: Vec<Variant> = self.senders.iter().map(|nodes| sending(nodes)).collect();
        let receivers: Vec<Variant> = self.receivers.iter().filter_map(|inputs| receiving(inputs, "")).collect();
        let engine = Engine::new(self.setup(self.tokens), &[senders.clone(), receivers].concat(), &self.needs())?;
        let outcome = self.outcome(&engine)?;
        let bank = self.bank()?;
        let mut progress = Progress::new("paths", pairs.len());
        let (taps, layers) = self.reads();
        let mut rows = vec![];
        let numbers: Vec<usize> = (0..senders.len()).filter(|s| pairs.iter().any(|pair| pair.0 == *s)).collect();
        for block in numbers.chunks(engine.senders_at_once(&taps)) {
            let sending: Vec<Variant> = block.iter().map(|&s| senders[s].clone()).collect();
            let first = if taps.is_empty() { engine.last_positions() } else { 0 };
            let (end, taps, order) = engine.frozen(&sending, &bank, &taps, self.frozen, layers, first)?;
            let read = Read { block, order: &order, taps: &taps };
            let (variants, ours, bank) = read.variants(self, pairs);
            let values = engine.values(&variants, &bank, None, &mut progress)?;
            for (&(s, r), values) in ours.iter().zip(values.outer_iter()) {
                rows.extend(outcome.rows(&self.keys(s, r), &values.to_vec())?);
            }
            let Some(logits) = self.receivers.iter().position(|inputs| inputs.contains(&Input::Logits)) else {
                continue;
            };
            let direct = to_array(&engine.reader.read(&end)?)?;
            for (row, values) in direct.outer_iter().enumerate() {
                rows.extend(outcome.rows(&self.keys(block[order[row]], logits), &values.to_vec())?);
            }
            progress.add(block.len());
        }
        Ok(rows)
    }

    pub(super) fn outcome(&self, engine: &Engine<'_>) -> Result<Outcome<'_>> {
        let other = match self.normalised {
            true => Some(Engine::new(self.setup(self.other), &[], &[])?.baseline),
            false => None,
        };
        let outcome = Outcome {
            metric: &self.metric,
            cells: engine.reader.cells()?,
            baseline: engine.baseline.clone(),
            other,
            denoises: self.denoises,
            per_prompt: self.per_prompt,
            interval: self.interval,
        };
        outcome.check()?;
        Ok(outcome)
    }

    /// The sites of the unpatched run that frozen parts keep.
    fn needs(&self) -> Vec<Site> {
        let config = self.model.config();
        let layers = 0..config.n_layers;
        let mut needs: Vec<Site> = layers.clone().map(Site::AttnOut).collect();
        needs.extend(self.senders.iter().flatten().map(|node| node.site()).filter(|site| matches!(site, Site::Z(_))));
        if self.frozen.mlps && config.has_mlp() {
            needs.extend(layers.map(Site::MlpOut));
        }
        needs
    }

    /// The sites at which receivers read, and how many layers lead there.
    fn reads(&self) -> (Vec<Site>, usize) {
        let inputs = || self.receivers.iter().flatten();
        let sites: BTreeSet<Site> = inputs().filter_map(|input| input.site()).collect();
        let last = sites.iter().filter_map(|site| site.layer()).max().map_or(0, |layer| layer + 1);
        let logits = inputs().any(|input| *input == Input::Logits);
        (sites.into_iter().collect(), if logits { self.model.config().n_layers } else { last })
    }

    /// What the senders write in the other run.
    pub(super) fn bank(&self) -> Result<Bank> {
        let sites: BTreeSet<Site> = self.senders.iter().flatten().map(|node| node.site()).collect();
        let mut bank = Bank::default();
        bank.insert_run(REFERENCE, &self.model.run(self.other, &Plan::new().taps(sites))?);
        Ok(bank)
    }

    pub(super) fn keys(&self, sender: usize, receiver: usize) -> Keys {
        let number = |n: usize| u32::try_from(n).ok();
        let mut keys = Keys::default();
        match self.senders[sender].as_slice() {
            [node] => {
                keys.from_site = Some(node.site().kind().to_owned());
                keys.from_layer = node.site().layer().and_then(number);
                keys.from_head = if let Node::Head { head, .. } = node { number(*head) } else { None };
            }
            nodes => {
                keys.from_site = Some(nodes.iter().map(|node| name_of(&node.edit())).collect::<Vec<_>>().join("+"))
            }
        }
        match self.receivers[receiver].as_slice() {
            [input] => {
                keys.layer = input.site().and_then(|site| site.layer()).and_then(number);
                keys.site = Some(match input {
                    Input::Mlp { .. } => "mlp".to_owned(),
                    _ => input.site().map_or("logits", |site| site.kind()).to_owned(),
                });
                match input {
                    Input::Query { head, .. } => keys.head = number(*head),
                    Input::Key { kv_head, .. } | Input::Value { kv_head, .. } => keys.kv_head = number(*kv_head),
                    Input::Mlp { .. } | Input::Logits => {}
                }
            }
            inputs => {
                let names = inputs.iter().filter_map(|input| input.edit("")).map(|edit| name_of(&edit));
                keys.site = Some(names.collect::<Vec<_>>().join("+"));
            }
        }
        keys
    }

    fn provenance(&self) -> Result<crate::table::Provenance> {
        let options = serde_json::json!({
            "change": "path patching",
            "estimate": self.estimate,
            "direction": if self.denoises { "denoise" } else { "noise" },
            "senders": self.senders,
            "receivers": self.receivers,
            "mlps": if self.frozen.mlps { "frozen" } else { "recomputed" },
            "metric": format!("{:?}", self.metric),
            "normalised": self.normalised,
            "per_prompt": self.per_prompt,
            "interval": self.interval,
            "tokens": self.tokens.rows(),
            "reference": self.other.rows(),
        });
        self.model.provenance(options, None)
    }
}

fn sending(nodes: &[Node]) -> Variant {
    Variant { keys: Keys::default(), edits: nodes.iter().map(|node| node.edit()).collect() }
}

/// The receivers read what the bank has as `key`; nothing for the logits.
fn receiving(inputs: &[Input], key: &str) -> Option<Variant> {
    let edits: Option<Vec<Edit>> = inputs.iter().map(|input| input.edit(key)).collect();
    Some(Variant { keys: Keys::default(), edits: edits? })
}

/// What a block of senders made the receivers read.
struct Read<'a> {
    /// Numbers of the senders.
    block: &'a [usize],
    /// Which of them each copy of the batch in `taps` is.
    order: &'a [usize],
    taps: &'a BTreeMap<Site, Tensor>,
}

impl Read<'_> {
    /// The variants in which receivers read that, the pairs they belong to, and the activations.
    fn variants(&self, paths: &Paths<'_>, pairs: &[(usize, usize)]) -> (Vec<Variant>, Vec<(usize, usize)>, Bank) {
        let batch = paths.tokens.batch() as i64;
        let (mut variants, mut ours, mut bank) = (vec![], vec![], Bank::default());
        for (row, &place) in self.order.iter().enumerate() {
            let key = self.block[place].to_string();
            for (&site, tensor) in self.taps {
                // Rows that join behind a site are not in its record: no path leads there.
                let start = row as i64 * batch;
                if start < tensor.size()[0] {
                    bank.insert(&key, site, tensor.narrow(0, start, batch));
                }
            }
            for &(s, r) in pairs.iter().filter(|pair| pair.0 == self.block[place]) {
                let mut inputs = paths.receivers[r].clone();
                // A receiver before the sender reads what it always reads.
                inputs.retain(|input| paths.senders[s].iter().any(|node| node.time() < input.time()));
                if let Some(variant) = receiving(&inputs, &key) {
                    variants.push(variant);
                    ours.push((s, r));
                }
            }
        }
        (variants, ours, bank)
    }
}
