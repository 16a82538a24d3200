//! What does a run read, and what does it change? Plans: data, not closures.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::bank::Bank;
use super::function::Function;
use super::run::Run;
use crate::error::{Error, Result};
use crate::model::arch::ModelConfig;
use crate::site::{Axis, Site};

/// A run's taps and edits, with the activations that the edits refer to.
///
/// Taps record what a site holds after all edits there. A plan is checked against the model before anything is
/// computed: a tap or an edit that could not fire is an error.
///
/// ```
/// use headscope::model::{Action, Edit, Plan, Site};
/// let plan = Plan::new()
///     .tap(Site::Logits)
///     .edit(Edit::new(Site::Z(0), Action::Zero).head(3));
/// assert_eq!(plan.edits().len(), 1);
/// ```
#[derive(Debug, Default)]
pub struct Plan {
    taps: BTreeSet<Site>,
    /// Names and patterns of sites to record, read when the model is known.
    named: Vec<String>,
    edits: Vec<Edit>,
    bank: Bank,
    differentiable: bool,
    explicit: bool,
    plain: bool,
    /// What becomes of gradients.
    gradients: Vec<(Site, Function)>,
}

impl Plan {
    /// A plan that records and changes nothing. A run with it records the logits, or the last `resid_post` of a model without
    /// logits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a site, or all sites whose names match a pattern, in which `*` stands for any characters: `"z.*"` for z of
    /// every layer, `"resid_*.5"` for the residual streams of layer 5, `"*"` for all that the model has. A pattern that
    /// matches no site of the model is an error of the run.
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// let run = model.run(&tokens, &Plan::new().tap(Site::Z(0)))?;
    /// assert_eq!(run.get(Site::Z(0))?.size(), [1, 4, 4, 8]); // [batch, position, head, d_head]
    /// let run = model.run(&tokens, &Plan::new().tap("resid_*.0"))?; // resid_pre.0, resid_mid.0 and resid_post.0
    /// assert_eq!(run.taps().count(), 3);
    /// assert!(model.run(&tokens, &Plan::new().tap("patern.*")).unwrap_err().to_string().contains("pattern.*"));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn tap(mut self, tap: impl Into<Tap>) -> Self {
        match tap.into() {
            Tap::Site(site) => drop(self.taps.insert(site)),
            Tap::Named(name) => self.named.push(name),
        }
        self
    }

    /// Records all of `taps`: sites, or names and patterns as in [`Plan::tap`].
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// let run = model.run(&tokens, &Plan::new().taps(Site::all(model.config())))?;
    /// assert!(run.taps().count() > 10);
    /// let run = model.run(&tokens, &Plan::new().taps(["z.*", "logits"]))?;
    /// assert_eq!(run.taps().count(), 2); // of 1 layer
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn taps<T: Into<Tap>>(self, taps: impl IntoIterator<Item = T>) -> Self {
        taps.into_iter().fold(self, Self::tap)
    }

    /// Applies `edit`. Several edits at one site apply in the order given.
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// let plan = Plan::new().edit(Edit::new(Site::Z(0), Action::Zero).head(3)).tap(Site::Z(0));
    /// let z = model.run(&tokens, &plan)?.get(Site::Z(0))?.select(2, 3);
    /// assert_eq!(z.abs().max().double_value(&[]), 0.0);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// Makes the activations of `run` available to edits under the name `key`.
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// // Activation patching by hand: what does head 3 do with the other prompt's output?
    /// let other = model.run(&Tokens::new(&[vec![1, 9, 3, 4]])?, &Plan::new().tap(Site::Z(0)))?;
    /// let edit = Edit::new(Site::Z(0), Action::replace("other")).head(3);
    /// let patched = model.run(&tokens, &Plan::new().with("other", &other).edit(edit))?;
    /// assert_eq!(patched.logits()?.size(), [1, 4, 50]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn with(mut self, key: &str, run: &Run) -> Self {
        self.bank.insert_run(key, run);
        self
    }

    /// Makes `tensor` available to edits at `site` under the name `key`.
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// // Steering: twice a direction is added to the residual stream at every position.
    /// let direction = model.parameters()[0].1.get(7); // the embedding of token 7, [d_model]
    /// let edit = Edit::new(Site::ResidPre(0), Action::Add { key: "direction".into(), alpha: 2.0 });
    /// let steered = model.run(&tokens, &Plan::new().with_tensor("direction", Site::ResidPre(0), &direction).edit(edit))?;
    /// assert_eq!(steered.logits()?.size(), [1, 4, 50]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn with_tensor(mut self, key: &str, site: Site, tensor: &Tensor) -> Self {
        self.bank.insert(key, site, tensor.shallow_clone());
        self
    }

    /// Keeps the graph: taps stay attached to it, so that gradients of one with respect to another can be taken.
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// use tch::{Kind, Tensor};
    /// let run = model.run(&tokens, &Plan::new().taps([Site::Z(0), Site::Logits]).differentiable())?;
    /// let logit = run.logits()?.select(1, 3).select(1, 7).sum(Kind::Float);
    /// let gradient = Tensor::run_backward(&[logit], &[run.get(Site::Z(0))?], false, false);
    /// assert_eq!(gradient[0].size(), [1, 4, 4, 8]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn differentiable(mut self) -> Self {
        self.differentiable = true;
        self
    }

    /// Changes the gradient that flows back through `site`, as a backward hook does: what flows on is what `function` makes
    /// of the gradient with respect to the activations there. Activations stay as they are. Implies
    /// [`Plan::differentiable`] and a tap of the site; [`Run::gradient`] and [`Model::gradient`](crate::model::Model::gradient)
    /// take gradients.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// // What is the gradient of the logit if none flows through the heads of layer 1?
    /// let stop = Function::new("stop", |gradient| Ok(gradient.zeros_like()));
    /// let plan = Plan::new().on_gradient(Site::Z(1), stop);
    /// let gradients = model.gradient(&tokens, plan, &Metric::logit(3), [Site::ResidPre(0), Site::Z(1)])?;
    /// assert_eq!(gradients.get(Site::Z(1))?.abs().max().double_value(&[]), 0.0);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn on_gradient(mut self, site: Site, function: Function) -> Self {
        self.gradients.push((site, function));
        self.tap(site).differentiable()
    }

    /// What becomes of the gradient at a site.
    pub(crate) fn of_gradient(&self, site: Site) -> Vec<Function> {
        self.gradients.iter().filter(|(at, _)| *at == site).map(|(_, function)| function.clone()).collect()
    }

    /// The sites at which gradients are changed.
    pub(crate) fn gradient_sites(&self) -> BTreeSet<Site> {
        self.gradients.iter().map(|(site, _)| *site).collect()
    }

    /// Computes attention step by step in every layer and products with libtorch's default library. The last bits then do not
    /// depend on what is tapped, and agree with transformers' `eager` attention.
    ///
    /// ```
    /// # use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// # let model = Model::random(&ModelConfig::default(), 0)?;
    /// # let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// let run = model.run(&tokens, &Plan::new().explicit())?;
    /// assert_eq!(run.logits()?.size(), [1, 4, 50]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn explicit(mut self) -> Self {
        self.explicit = true;
        self
    }

    /// The sites recorded in a run of a model of this config: those given, and those that match a pattern.
    ///
    /// # Errors
    /// [`Error::UnknownSite`] where a name is no site's, or a pattern matches none of the model's.
    pub fn tapped(&self, config: &ModelConfig) -> Result<BTreeSet<Site>> {
        let mut all = self.taps.clone();
        for name in &self.named {
            match name.contains('*') {
                true => all.extend(Site::matching(name, &Site::all(config))?),
                false => drop(all.insert(name.parse()?)),
            }
        }
        Ok(all)
    }

    /// The edits, in order.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    pub(crate) fn bank(&self) -> &Bank {
        &self.bank
    }

    /// Computes wide products without a copy of the matrix, which may be slower.
    pub(crate) fn plain(mut self, plain: bool) -> Self {
        self.plain = plain;
        self
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    pub(crate) fn is_explicit(&self) -> bool {
        self.explicit
    }

    pub(crate) fn is_differentiable(&self) -> bool {
        self.differentiable
    }
}

/// What a plan records: a site, or the sites of a name or pattern ([`Plan::tap`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tap {
    /// A site.
    Site(Site),
    /// A site's name, or a pattern with `*`.
    Named(String),
}

impl From<Site> for Tap {
    fn from(site: Site) -> Self {
        Self::Site(site)
    }
}

impl From<&Site> for Tap {
    fn from(site: &Site) -> Self {
        Self::Site(*site)
    }
}

impl From<&str> for Tap {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

impl From<String> for Tap {
    fn from(name: String) -> Self {
        Self::Named(name)
    }
}

/// One change at one site: which part of the tensor changes, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Edit {
    /// The site that changes.
    pub site: Site,
    /// The part of it that changes; all of it where a file does not say.
    #[serde(default)]
    pub at: Selector,
    /// What becomes of that part.
    pub action: Action,
}

/// The part of a site's tensor that an edit addresses: on each axis everything, or the listed indices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// Prompts of the batch.
    pub prompts: Option<Vec<usize>>,
    /// Positions; at `scores` and `pattern`, query positions. In the encoder of an encoder-decoder, and at `cross_k` and
    /// `cross_v`, positions of the source.
    pub positions: Option<Vec<usize>>,
    /// Heads; at `k` and `v`, key/value heads.
    pub heads: Option<Vec<usize>>,
    /// Key positions, at `scores` and `pattern`; at `cross_scores` and `cross_pattern`, positions of the source.
    pub keys: Option<Vec<usize>>,
    /// Coordinates of the last axis: neurons, residual dimensions, vocabulary entries.
    pub features: Option<Vec<usize>>,
}

/// What becomes of the addressed part of a site. `key` names an entry of the plan's bank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It becomes zero.
    Zero,
    /// It becomes its mean over the prompts of a reference run, position by position, leaving out padding.
    Mean {
        /// The reference run.
        key: String,
    },
    /// It becomes the activation of another run, prompt by prompt, or that of one prompt for all.
    Replace {
        /// The other run or tensor.
        key: String,
    },
    /// `alpha` times a tensor is added, with broadcasting.
    Add {
        /// The tensor.
        key: String,
        /// Its factor.
        alpha: f64,
    },
    /// It is multiplied.
    Scale {
        /// The factor.
        factor: f64,
    },
    /// It is divided by its root mean square along the last axis.
    Normalise,
    /// It is projected onto (`keep`) or out of a subspace of the last axis.
    Project {
        /// The subspace: rows that span it, `[k, d]`, which need not be orthonormal.
        key: String,
        /// Whether the part inside remains, or the part outside.
        keep: bool,
    },
    /// It is multiplied by a matrix along the last axis: `x <- x M`.
    Map {
        /// The matrix, `[d, d]`.
        key: String,
    },
    /// It becomes what a function of your own makes of it: [`Action::custom`], [`Function`].
    Custom(Function),
    /// The attention edge is cut: its score becomes minus infinity, and the softmax renormalises the other weights. A query
    /// without any key left has a pattern of zeros. Only at `scores` and `cross_scores`.
    KnockOut,
}

impl Edit {
    /// An edit of the whole site. The methods below restrict it to a part.
    ///
    /// ```
    /// use headscope::model::{Action, Edit, Site};
    /// let head = Edit::new(Site::Z(2), Action::Zero).head(5); // one head
    /// let heads = Edit::new(Site::Z(2), Action::Zero).heads([1, 5]).positions([3, 4]); // two heads at two positions
    /// let edge = Edit::new(Site::Scores(2), Action::KnockOut).head(5).position(7).keys([0]); // from query 7 to key 0
    /// let neuron = Edit::new(Site::MlpPost(2), Action::Scale { factor: 2.0 }).features([17]).prompts([0]);
    /// assert_eq!(heads.at.heads, Some(vec![1, 5]));
    /// # let _ = (head, edge, neuron);
    /// ```
    pub fn new(site: Site, action: Action) -> Self {
        Self { site, at: Selector::default(), action }
    }

    /// Only this head; at `k` and `v`, this key/value head.
    pub fn head(self, head: usize) -> Self {
        self.heads([head])
    }

    /// Only these heads.
    pub fn heads(mut self, heads: impl IntoIterator<Item = usize>) -> Self {
        self.at.heads = Some(heads.into_iter().collect());
        self
    }

    /// Only this position; at `scores` and `pattern`, this query position.
    pub fn position(self, position: usize) -> Self {
        self.positions([position])
    }

    /// Only these positions.
    pub fn positions(mut self, positions: impl IntoIterator<Item = usize>) -> Self {
        self.at.positions = Some(positions.into_iter().collect());
        self
    }

    /// Only these key positions, at `scores` and `pattern`.
    pub fn keys(mut self, keys: impl IntoIterator<Item = usize>) -> Self {
        self.at.keys = Some(keys.into_iter().collect());
        self
    }

    /// Only these prompts of the batch.
    pub fn prompts(mut self, prompts: impl IntoIterator<Item = usize>) -> Self {
        self.at.prompts = Some(prompts.into_iter().collect());
        self
    }

    /// Only these coordinates of the last axis.
    pub fn features(mut self, features: impl IntoIterator<Item = usize>) -> Self {
        self.at.features = Some(features.into_iter().collect());
        self
    }
}

impl Action {
    /// [`Action::Custom`] by a function of the whole site. If rows are independent of each other, or a sweep should keep a
    /// journal, see [`Function`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// // Every position gets the mean over positions of what MLP 1 writes.
    /// let average = Action::custom("average", |x| Ok(x.mean_dim([1i64].as_slice(), true, None::<Kind>).expand_as(x)));
    /// let run = model.run(&tokens, &Plan::new().edit(Edit::new(Site::MlpOut(1), average)).tap(Site::Logits))?;
    /// assert_eq!(run.logits()?.size(), [1, 5, 97]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn custom(name: &str, apply: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Self {
        Self::Custom(Function::new(name, apply))
    }

    /// Whether what becomes of a row may depend on other positions, heads or prompts.
    pub(crate) fn sees_all(&self) -> bool {
        matches!(self, Self::Custom(function) if !function.is_by_row())
    }

    /// [`Action::Mean`] over the run known as `key`.
    pub fn mean(key: &str) -> Self {
        Self::Mean { key: key.to_owned() }
    }

    /// [`Action::Replace`] by the run known as `key`.
    pub fn replace(key: &str) -> Self {
        Self::Replace { key: key.to_owned() }
    }

    /// [`Action::Project`] onto the subspace known as `key`: only what is inside remains.
    pub fn project_onto(key: &str) -> Self {
        Self::Project { key: key.to_owned(), keep: true }
    }

    /// [`Action::Project`] out of the subspace known as `key`: only what is outside remains.
    pub fn project_out(key: &str) -> Self {
        Self::Project { key: key.to_owned(), keep: false }
    }

    /// The bank entry the action reads.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Mean { key }
            | Self::Replace { key }
            | Self::Add { key, .. }
            | Self::Project { key, .. }
            | Self::Map { key } => Some(key),
            Self::Zero | Self::Scale { .. } | Self::Normalise | Self::Custom(_) | Self::KnockOut => None,
        }
    }
}

impl Selector {
    /// The indices asked for on `axis` of a site (`last` for its last axis).
    pub(crate) fn on(&self, axis: Axis, last: bool) -> Option<&[usize]> {
        let listed = match axis {
            Axis::Batch => &self.prompts,
            Axis::Position | Axis::Query | Axis::Source => &self.positions,
            Axis::Head | Axis::KvHead => &self.heads,
            Axis::Key | Axis::SourceKey => &self.keys,
            _ if last => &self.features,
            _ => &None,
        };
        listed.as_deref()
    }

    /// Fails where the selector names an axis that the site does not have, or an index outside its length.
    pub(crate) fn check(&self, site: Site, shape: &[i64]) -> Result<()> {
        let axes = site.axes();
        let has = |wanted: &[Axis]| axes.iter().any(|axis| wanted.contains(axis));
        let last_is_feature = !has(&[Axis::Key, Axis::SourceKey]);
        let named = [
            ("positions", self.positions.is_some(), has(&[Axis::Position, Axis::Query, Axis::Source])),
            ("heads", self.heads.is_some(), has(&[Axis::Head, Axis::KvHead])),
            ("keys", self.keys.is_some(), has(&[Axis::Key, Axis::SourceKey])),
            ("features", self.features.is_some(), last_is_feature),
        ];
        if let Some((name, ..)) = named.iter().find(|(_, asked, there)| *asked && !there) {
            let names: Vec<&str> = axes.iter().map(|axis| axis.name()).collect();
            let expected = format!("a selector on the site's axes [{}]", names.join(", "));
            return Err(Error::Edit { site, expected, found: format!("one on {name}") });
        }
        for (i, (axis, &limit)) in axes.iter().zip(shape).enumerate() {
            let Some(indices) = self.on(*axis, i + 1 == axes.len()) else { continue };
            if indices.is_empty() {
                let found = format!("an empty list on {}", axis.name());
                return Err(Error::Edit { site, expected: "at least one index".into(), found });
            }
            if let Some(&bad) = indices.iter().find(|&&index| index as i64 >= limit) {
                return Err(Error::OutOfRange {
                    at: format!("edit at `{site}`"),
                    axis: axis.name(),
                    found: bad as i64,
                    limit,
                });
            }
        }
        Ok(())
    }
}
