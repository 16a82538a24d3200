//! Which component of the model passes information to which? Path patching from senders to receivers.

mod endpoint;
mod estimate;
mod run;

pub use self::endpoint::{Input, Node};
use super::engine::{Estimate, Options, options, same_lengths};
use super::metric::Metric;
use super::sweep::set_name;
use crate::error::{Error, Result};
use crate::model::{Edit, Freeze, Model, Tokens};
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
    pub(super) options: Options<'a>,
}

impl<'a> Paths<'a> {
    options!();

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
            options: Options::default(),
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
        self.options.check()?;
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
                keys.from_site =
                    Some(set_name(&nodes.iter().map(|node| node.edit()).collect::<Vec<_>>(), self.model.config()))
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
                let edits: Vec<Edit> = inputs.iter().filter_map(|input| input.edit("")).collect();
                keys.site = Some(set_name(&edits, self.model.config()));
            }
        }
        keys
    }

    pub(super) fn provenance(&self) -> Result<Provenance> {
        let options = serde_json::json!({
            "change": "path patching",
            "direction": if self.denoises { "denoise" } else { "noise" },
            "senders": self.senders,
            "receivers": self.receivers,
            "mlps": if self.freeze.mlps { "frozen" } else { "recomputed" },
            "tokens": self.tokens.provenance(),
            "reference": self.other.provenance(),
        });
        let options = self.options.describe(options);
        self.model.provenance(options, None)
    }
}
