//! Which component of the model passes information to which? Path patching from senders to receivers.

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

/// Which component passes information to which? Exact path patching (Wang et al. 2022; Goldowsky-Dill et al. 2023).
///
/// Each pair of sender and receiver takes two passes. In the first, the sender's output comes from the other run, all
/// other head outputs are frozen to this run, and MLPs are recomputed (or frozen too: [`Paths::frozen_mlps`]); what the
/// receiver then reads is stored. In the second, the receiver reads the stored input, and everything after it is
/// recomputed. The change of the metric is the effect of the paths that lead from sender to receiver through the
/// residual stream, and through the MLPs in between. Norms are recomputed, never linearised.
///
/// One row per pair in which the receiver comes after the sender. Columns `from_layer`, `from_site` and `from_head` are
/// the sender; `layer`, `site` and `head` (`kv_head` for keys and values) the receiver. The members of a set are
/// patched together, and are named in `from_site` or `site`.
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
    /// Noising: which paths are necessary for the behaviour? In the clean run, senders write their corrupted outputs.
    /// By default from every head to the logits. The prompts of the two batches must have the same lengths.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn noise(model: &'a Model, clean: &'a Tokens, corrupt: &'a Tokens) -> Self {
        Self::new(model, clean, corrupt, false)
    }

    /// Denoising: which paths suffice to restore the behaviour? In the corrupted run, senders write their clean
    /// outputs. By default from every head to the logits. The prompts of the two batches must have the same lengths.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Paths::patch(&model, &clean, &corrupt).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
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

    /// Sets the senders, each patched by itself. Default: every head.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let senders = [Node::Embed, Node::Mlp { layer: 0 }];
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).senders(senders).run()?.len(), 2);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn senders(self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.sender_sets(nodes.into_iter().map(|node| vec![node]))
    }

    /// Sets the sets of senders; the members of a set are patched together.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let set = vec![Node::Head { layer: 0, head: 1 }, Node::Head { layer: 1, head: 2 }];
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).sender_sets([set]).run()?.len(), 1);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn sender_sets(mut self, sets: impl IntoIterator<Item = Vec<Node>>) -> Self {
        self.senders = sets.into_iter().collect();
        self
    }

    /// Sets the receivers, each patched by itself. Default: the logits.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).receivers([Input::Mlp { layer: 2 }]).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn receivers(self, inputs: impl IntoIterator<Item = Input>) -> Self {
        self.receiver_sets(inputs.into_iter().map(|input| vec![input]))
    }

    /// Sets the sets of receivers; the members of a set are patched together.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let set = vec![Input::Query { layer: 2, head: 0 }, Input::Query { layer: 2, head: 1 }];
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).receiver_sets([set]).run()?.len(), 4 + 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn receiver_sets(mut self, sets: impl IntoIterator<Item = Vec<Input>>) -> Self {
        self.receivers = sets.into_iter().collect();
        self
    }

    /// Freezes the MLPs between sender and receiver to the unpatched run, so that only the direct path counts.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).frozen_mlps().run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn frozen_mlps(mut self) -> Self {
        self.freeze.mlps = true;
        self
    }

    /// Sets the metric. Default: [`Metric::Loss`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).metric(Metric::logit(3)).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Limits the memory used besides the model, in bytes; see [`Sweep::memory`](crate::intervene::Sweep::memory).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert!(Paths::noise(&model, &clean, &corrupt).memory(1 << 20).explain()?.budget <= 1 << 20);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// One row per pair and prompt, instead of the mean over prompts.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let clean = Tokens::new(&[vec![5, 6, 7, 8], vec![8, 7, 6, 5]])?;
    /// let corrupt = Tokens::new(&[vec![5, 60, 7, 8], vec![8, 70, 6, 5]])?;
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).per_prompt().run()?.len(), 12 * 2);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn per_prompt(mut self) -> Self {
        self.per_prompt = true;
        self
    }

    /// One row per pair, prompt and predicted token; see [`Sweep::per_token`](crate::intervene::Sweep::per_token).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).per_token().run()?.len(), 12 * 3); // all but the first token
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn per_token(mut self) -> Self {
        self.per_token = true;
        self
    }

    /// Rescales the metric so that the corrupted run scores 0 and the clean run 1.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let table = Paths::noise(&model, &clean, &corrupt).metric(Metric::logit(3)).normalised().run()?;
    /// assert_eq!(table.f64("baseline")?[0], 1.0); // the clean run
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn normalised(mut self) -> Self {
        self.normalised = true;
        self
    }

    /// Adds a 95 % interval of the mean over prompts; see [`Sweep::interval`](crate::intervene::Sweep::interval).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let clean = Tokens::new(&[vec![5, 6, 7, 8], vec![8, 7, 6, 5]])?;
    /// let corrupt = Tokens::new(&[vec![5, 60, 7, 8], vec![8, 70, 6, 5]])?;
    /// let table = Paths::noise(&model, &clean, &corrupt).interval(0).run()?;
    /// assert!(table.f64("low")?[0] <= table.f64("high")?[0]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn interval(mut self, seed: u64) -> Self {
        self.interval = Some(seed);
        self
    }

    /// Estimates the effects of direct paths from gradients, all pairs from one forward and backward pass: edge
    /// attribution patching (EAP, Syed et al. 2023), or EAP-IG with integrated gradients (Hanna et al. 2024). Needs
    /// [`Paths::frozen_mlps`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let paths = Paths::noise(&model, &clean, &corrupt).frozen_mlps();
    /// assert_eq!(paths.estimate(Estimate::Attribution).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn estimate(mut self, estimate: Estimate) -> Self {
        self.estimate = Some(estimate);
        self
    }

    /// Adds exact rows (`method` is `exact`) for the `n` pairs with the largest estimated effects. The table's
    /// provenance says how well the two agree there (`agreement`: Pearson and Spearman correlation).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let paths = Paths::noise(&model, &clean, &corrupt).frozen_mlps().estimate(Estimate::Attribution);
    /// assert_eq!(paths.exact(3).run()?.len(), 12 + 3);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn exact(mut self, n: usize) -> Self {
        self.exact = n;
        self
    }

    /// Writes finished pairs to this file, and skips those that an interrupted run of the same paths has already
    /// written there; see [`Sweep::journal`](crate::intervene::Sweep::journal).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let path = std::env::temp_dir().join(format!("headscope-paths-{}.partial", std::process::id()));
    /// assert_eq!(Paths::noise(&model, &clean, &corrupt).journal(&path).run()?.len(), 12);
    /// assert!(path.exists() && std::fs::remove_file(path).is_ok());
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn journal(mut self, path: impl AsRef<Path>) -> Self {
        self.journal = Some(path.as_ref().to_owned());
        self
    }

    /// Ends the run with [`Error::Stopped`] soon after `stop` is set, for example by a signal handler.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let stop = std::sync::atomic::AtomicBool::new(true);
    /// let stopped = Paths::noise(&model, &clean, &corrupt).stop(&stop).run();
    /// assert!(matches!(stopped, Err(Error::Stopped { .. })));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn stop(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// The pairs of sender and receiver between which a path leads.
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
