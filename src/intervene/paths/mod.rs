//! Which component of the model passes information to which? Path patching from senders to receivers.

mod endpoint;
mod estimate;
mod run;

pub use self::endpoint::{Input, Node, Receiver, Sender, Via};
use super::engine::{At, Estimate, Options, Pairs, REFERENCE, options};
use super::metric::Metric;
use super::sweep::set_name;
use crate::error::{Error, Result};
use crate::model::{Edit, Freeze, Model, Prompts, Tokens};
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
/// patched together, and are named in `from_site` or `site`. Columns `from_at` and `at` are their positions, if they send
/// or receive at one only, and `via` the heads that the path leads through ([`Paths::through`]).
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
    pub(super) pairs: Pairs<'a>,
    pub(super) other: &'a Tokens,
    pub(super) senders: Vec<Vec<Sender>>,
    /// The heads that paths lead through, stage by stage: each path through one of each stage.
    pub(super) through: Vec<Vec<Via>>,
    pub(super) receivers: Vec<Vec<Receiver>>,
    pub(super) freeze: Freeze,
    pub(super) options: Options<'a>,
}

/// A path from a sender through heads to a receiver.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    /// The number of the sender, then that of a head in each stage.
    pub steps: Vec<usize>,
    /// The number of the receiver.
    pub receiver: usize,
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
        Self::new(model, Pairs { tokens: clean, other: Some(corrupt), prompts: None, denoises: false }, corrupt)
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
        Self::new(model, Pairs { tokens: corrupt, other: Some(clean), prompts: None, denoises: true }, clean)
    }

    /// [`Paths::noise`] of pairs of prompts. The metric is the logit difference of their answers, if they have some, and
    /// senders and receivers may be at their named positions. Prompts may differ in length from their partners, as for
    /// [`Sweep::denoising`](crate::intervene::Sweep::denoising).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let pair = Pair::new("the cat and the head", "the dog and the head").answers(3, 4).at("animal", 1);
    /// let prompts = model.prompts([pair])?;
    /// // What do heads write at the animal that the last layer's queries read at the end?
    /// let senders = Node::heads(&model).into_iter().map(|node| node.at("animal"));
    /// let receivers = (0..4).map(|head| Input::Value { layer: 2, kv_head: head }.at("animal"));
    /// let table = Paths::noising(&model, &prompts).senders(senders).receivers(receivers).run()?;
    /// assert_eq!(table.len(), 8 * 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn noising(model: &'a Model, prompts: &'a Prompts) -> Self {
        Self::new(model, Pairs::of(prompts, false), prompts.corrupt()).of(prompts)
    }

    /// [`Paths::patch`] of pairs of prompts; see [`Paths::noising`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let prompts = model.prompts([("the cat and the head", "the dog and the head")])?;
    /// assert_eq!(Paths::denoising(&model, &prompts).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn denoising(model: &'a Model, prompts: &'a Prompts) -> Self {
        Self::new(model, Pairs::of(prompts, true), prompts.clean()).of(prompts)
    }

    fn of(self, prompts: &'a Prompts) -> Self {
        match Metric::of_answers(prompts) {
            Some(metric) => self.metric(metric),
            None => self,
        }
    }

    fn new(model: &'a Model, pairs: Pairs<'a>, other: &'a Tokens) -> Self {
        Self {
            model,
            tokens: pairs.tokens,
            other,
            pairs,
            senders: Node::heads(model).into_iter().map(|node| vec![node.into()]).collect(),
            through: vec![],
            receivers: vec![vec![Input::Logits.into()]],
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
    pub fn senders(self, senders: impl IntoIterator<Item = impl Into<Sender>>) -> Self {
        self.sender_sets(senders.into_iter().map(|sender| vec![sender]))
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
    pub fn sender_sets(mut self, sets: impl IntoIterator<Item = Vec<impl Into<Sender>>>) -> Self {
        self.senders = sets.into_iter().map(|set| set.into_iter().map(Into::into).collect()).collect();
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
    pub fn receivers(self, receivers: impl IntoIterator<Item = impl Into<Receiver>>) -> Self {
        self.receiver_sets(receivers.into_iter().map(|receiver| vec![receiver]))
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
    pub fn receiver_sets(mut self, sets: impl IntoIterator<Item = Vec<impl Into<Receiver>>>) -> Self {
        self.receivers = sets.into_iter().map(|set| set.into_iter().map(Into::into).collect()).collect();
        self
    }

    /// Makes paths lead through one of these heads: from a sender to it, and from it to the receiver. Each call adds a
    /// stage, so that two calls ask for paths from a sender through a head of the first call and one of the second to the
    /// receiver. Between two stages everything is frozen as between sender and receiver.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// // From heads of layer 0 to the queries of head 1.2, and from there directly to the logits.
    /// let table = Paths::noise(&model, &clean, &corrupt).through([Via::query(1, 2)]).run()?;
    /// assert_eq!(table.len(), 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn through(mut self, heads: impl IntoIterator<Item = Via>) -> Self {
        self.through.push(heads.into_iter().collect());
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

    /// The paths that lead from a sender through a head of each stage to a receiver.
    pub(super) fn chains(&self) -> Result<Vec<Chain>> {
        self.check()?;
        let reaches = |node: Node, inputs: &[Input]| inputs.iter().any(|input| node.reaches(*input, self.model));
        let mut begun: Vec<Vec<usize>> = (0..self.senders.len()).map(|sender| vec![sender]).collect();
        for stage in 0..self.through.len() {
            let goes_on = |chain: &Vec<usize>| -> Vec<Vec<usize>> {
                let ends = self.ends(chain);
                let vias = self.through[stage].iter().enumerate();
                let vias = vias.filter(|(_, via)| ends.iter().any(|node| reaches(*node, &via.inputs(self.model))));
                vias.map(|(via, _)| [chain.as_slice(), &[via]].concat()).collect()
            };
            begun = begun.iter().flat_map(goes_on).collect();
        }
        let mut chains = vec![];
        for steps in begun {
            let ends = self.ends(&steps);
            for (receiver, inputs) in self.receivers.iter().enumerate() {
                let inputs: Vec<Input> = inputs.iter().map(|receiver| receiver.input).collect();
                if ends.iter().any(|node| reaches(*node, &inputs)) {
                    chains.push(Chain { steps: steps.clone(), receiver });
                }
            }
        }
        if chains.is_empty() {
            return Err(Error::argument("senders, receivers", "a receiver that comes after a sender", "none"));
        }
        Ok(chains)
    }

    /// The components whose outputs leave the last of some steps.
    pub(super) fn ends(&self, steps: &[usize]) -> Vec<Node> {
        match steps {
            [sender] => self.senders[*sender].iter().map(|sender| sender.node).collect(),
            [.., last] => vec![self.through[steps.len() - 2][*last].node()],
            [] => vec![],
        }
    }

    /// The edits by which a set of senders writes what the bank has under the reference's key.
    pub(super) fn sending(&self, senders: &[Sender]) -> Result<Vec<Edit>> {
        let edits = senders.iter().map(|sender| self.pairs.narrowed(sender.node.edit(REFERENCE), sender.at.as_ref()));
        Ok(edits.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The edits by which receivers take their activations from the bank's `key`; `None` for the logits.
    pub(super) fn receiving<'r>(
        &self,
        receivers: impl IntoIterator<Item = &'r Receiver>,
        key: &str,
    ) -> Result<Option<Vec<Edit>>> {
        let mut edits = vec![];
        for receiver in receivers {
            match receiver.input.edit(key) {
                Some(edit) => edits.extend(self.pairs.narrowed(edit, receiver.at.as_ref())?),
                None => return Ok(None),
            }
        }
        Ok(Some(edits))
    }

    fn check(&self) -> Result<()> {
        self.model.one_sequence("paths")?;
        let config = self.model.config();
        let limits = |at: &str, axis, found: usize, limit: usize| match found < limit {
            true => Ok(()),
            false => Err(Error::OutOfRange { at: at.into(), axis, found: found as i64, limit: limit as i64 }),
        };
        let vias = || self.through.iter().flatten();
        let senders = self.senders.iter().flatten().map(|sender| sender.node);
        for node in senders.chain(vias().map(|via| via.node())) {
            node.site().check(config)?;
            if let Some(head) = node.head() {
                limits("sender", "head", head, config.n_heads)?;
            }
        }
        for Receiver { input, at } in self.receivers.iter().flatten() {
            input.site().map_or(Ok(()), |site| site.check(config))?;
            match input {
                Input::Query { head, .. } => limits("receiver", "head", *head, config.n_heads)?,
                Input::Key { kv_head, .. } | Input::Value { kv_head, .. } => {
                    limits("receiver", "kv_head", *kv_head, config.n_kv_heads)?;
                }
                Input::Logits if at.is_some() => {
                    return Err(Error::argument("receivers", "the logits at all positions", "at one of them"));
                }
                Input::Mlp { .. } | Input::Logits => {}
            }
        }
        if let Some(via) = vias().find(|via| via.inputs(self.model).is_empty()) {
            let found = format!("head {}.{} with none", via.layer, via.head);
            return Err(Error::argument("through", "queries, keys or values that the path leads through", found));
        }
        if self.through.iter().any(Vec::is_empty) {
            return Err(Error::argument("through", "at least one head in each stage", "an empty stage"));
        }
        if !self.through.is_empty() && self.options.estimate.is_some() {
            return Err(Error::argument("through", "exact paths", "estimates, which are of direct paths"));
        }
        if self.senders.iter().any(Vec::is_empty) || self.receivers.iter().any(Vec::is_empty) {
            return Err(Error::argument("senders, receivers", "at least one in each set", "an empty set"));
        }
        if self.receivers.iter().any(|inputs| inputs.len() > 1 && inputs.iter().any(|one| one.input == Input::Logits)) {
            return Err(Error::argument("receivers", "the logits by themselves", "a set with others"));
        }
        self.options.check()?;
        self.pairs.alignment().map(drop)
    }

    pub(super) fn keys(&self, chain: &Chain) -> Result<Keys> {
        let number = |n: usize| u32::try_from(n).ok();
        let mut keys = Keys::default();
        match self.senders[chain.steps[0]].as_slice() {
            [Sender { node, at }] => {
                keys.from_site = Some(node.site().kind().to_owned());
                keys.from_layer = node.site().layer().and_then(number);
                keys.from_head = node.head().and_then(number);
                keys.from_at = at.as_ref().map(At::label);
            }
            senders => {
                let bare: Vec<Sender> = senders.iter().map(|sender| sender.node.into()).collect();
                keys.from_at = shared(senders.iter().map(|sender| sender.at.as_ref()));
                let named = if keys.from_at.is_some() { &bare } else { senders };
                keys.from_site = Some(set_name(&self.sending(named)?, self.model.config()));
            }
        }
        let vias = chain.steps[1..].iter().zip(&self.through).map(|(&via, stage)| stage[via].label());
        keys.via = Some(vias.collect::<Vec<_>>().join(" ")).filter(|via| !via.is_empty());
        match self.receivers[chain.receiver].as_slice() {
            [Receiver { input, at }] => {
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
                keys.at = at.as_ref().map(At::label);
            }
            receivers => {
                let bare: Vec<Receiver> = receivers.iter().map(|receiver| receiver.input.into()).collect();
                keys.at = shared(receivers.iter().map(|receiver| receiver.at.as_ref()));
                let named = if keys.at.is_some() { &bare } else { receivers };
                let edits = self.receiving(named, "")?.unwrap_or_default();
                keys.site = Some(set_name(&edits, self.model.config()));
            }
        }
        Ok(keys)
    }

    pub(super) fn provenance(&self) -> Result<Provenance> {
        let options = serde_json::json!({
            "change": "path patching",
            "direction": if self.pairs.denoises { "denoise" } else { "noise" },
            "senders": self.senders,
            "through": self.through,
            "receivers": self.receivers,
            "mlps": if self.freeze.mlps { "frozen" } else { "recomputed" },
            "tokens": self.tokens.provenance(),
            "reference": self.other.provenance(),
            "prompts": self.pairs.prompts.map(Prompts::provenance),
        });
        let options = self.options.describe(options);
        self.model.provenance(options, None)
    }
}

/// The position at which all members of a set are, if it is one.
fn shared<'a>(mut all: impl Iterator<Item = Option<&'a At>>) -> Option<String> {
    let first = all.next().flatten()?;
    all.all(|at| at == Some(first)).then(|| first.label())
}
