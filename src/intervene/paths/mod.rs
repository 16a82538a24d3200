//! Which part of the model tells which: path patching.

mod endpoint;
mod estimate;
mod run;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub use self::endpoint::{Input, Node};
use super::metric::Metric;
use super::sweep::{Estimate, name_of, same_lengths};
use crate::error::{Error, Result};
use crate::model::{Freeze, Model, Tokens};
use crate::table::{Keys, Provenance};

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
    pub(super) denoises: bool,
    pub(super) senders: Vec<Vec<Node>>,
    pub(super) receivers: Vec<Vec<Input>>,
    pub(super) freeze: Freeze,
    pub(super) metric: Metric,
    pub(super) memory: Option<usize>,
    pub(super) per_prompt: bool,
    pub(super) per_token: bool,
    pub(super) normalised: bool,
    pub(super) interval: Option<u64>,
    pub(super) journal: Option<PathBuf>,
    pub(super) stop: Option<&'a AtomicBool>,
    pub(super) estimate: Option<Estimate>,
    pub(super) exact: usize,
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
            freeze: Freeze { mlps: false },
            metric: Metric::Loss,
            memory: None,
            per_prompt: false,
            per_token: false,
            normalised: false,
            interval: None,
            journal: None,
            stop: None,
            estimate: None,
            exact: 0,
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
        self.freeze.mlps = true;
        self
    }

    /// What is measured; the loss, unless said otherwise.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// At most this many bytes beside the model, as [`Sweep::memory`](crate::intervene::Sweep::memory) has it.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// One row a pair and prompt, in place of the mean over prompts.
    pub fn per_prompt(mut self) -> Self {
        self.per_prompt = true;
        self
    }

    /// One row a pair, prompt and token that is predicted, as [`Sweep::per_token`](crate::intervene::Sweep::per_token) has it.
    pub fn per_token(mut self) -> Self {
        self.per_token = true;
        self
    }

    /// Puts the metric on the scale from the corrupted run (0) to the clean one (1).
    pub fn normalised(mut self) -> Self {
        self.normalised = true;
        self
    }

    /// Adds an interval of the mean over prompts, as [`Sweep::interval`](crate::intervene::Sweep::interval) does.
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

    /// Beside estimates, the exact rows (`method` is `exact`) of the `n` pairs of largest estimated effect, and in the
    /// table's provenance (`agreement`) how well the two agree there.
    pub fn exact(mut self, n: usize) -> Self {
        self.exact = n;
        self
    }

    /// Writes finished pairs to this file as they come, and goes on from those that an interrupted run of the same left
    /// there, as [`Sweep::journal`](crate::intervene::Sweep::journal) does.
    pub fn journal(mut self, path: impl AsRef<Path>) -> Self {
        self.journal = Some(path.as_ref().to_owned());
        self
    }

    /// Ends the run with [`Error::Stopped`] soon after `stop` is set.
    pub fn stop(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Numbers of the senders and receivers between which there is a path.
    pub(super) fn pairs(&self) -> Result<Vec<(usize, usize)>> {
        self.check()?;
        let meets = |senders: &[Node], inputs: &[Input]| {
            senders.iter().any(|sender| inputs.iter().any(|input| sender.reaches(*input, self.model)))
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
        if self.interval.is_some() && (self.per_prompt || self.per_token) {
            return Err(Error::argument("interval", "the mean over prompts", "one row a prompt or token"));
        }
        match self.estimate {
            Some(_) if self.per_token => {
                return Err(Error::argument("estimate", "one value a prompt", "one row a token"));
            }
            Some(_) if self.journal.is_some() => {
                return Err(Error::argument("journal", "exact paths", "estimates, which take one pass"));
            }
            None if self.exact > 0 => {
                return Err(Error::argument("exact", "estimates beside which to put them", "exact paths"));
            }
            _ => {}
        }
        same_lengths(self.tokens, self.other)
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

    pub(super) fn provenance(&self) -> Result<Provenance> {
        let options = serde_json::json!({
            "change": "path patching",
            "estimate": self.estimate,
            "direction": if self.denoises { "denoise" } else { "noise" },
            "senders": self.senders,
            "receivers": self.receivers,
            "mlps": if self.freeze.mlps { "frozen" } else { "recomputed" },
            "metric": format!("{:?}", self.metric),
            "normalised": self.normalised,
            "per_prompt": self.per_prompt,
            "per_token": self.per_token,
            "interval": self.interval,
            "tokens": self.tokens.provenance(),
            "reference": self.other.provenance(),
        });
        self.model.provenance(options, None)
    }
}
