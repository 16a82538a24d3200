//! Where can a path start and end? Senders write to the residual stream, receivers read from it.

use serde::{Deserialize, Serialize};

use crate::intervene::engine::At;
use crate::model::{Action, Edit, Model, Site};

/// A sender: a component that writes to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// The token embeddings.
    Embed,
    /// A head output, z W_O.
    Head {
        /// Layer.
        layer: usize,
        /// Head.
        head: usize,
    },
    /// An MLP output.
    Mlp {
        /// Layer.
        layer: usize,
    },
}

/// A receiver: an input at which a component reads from the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A head's queries.
    Query {
        /// Layer.
        layer: usize,
        /// Head.
        head: usize,
    },
    /// A key/value head's keys.
    Key {
        /// Layer.
        layer: usize,
        /// Key/value head.
        kv_head: usize,
    },
    /// A key/value head's values.
    Value {
        /// Layer.
        layer: usize,
        /// Key/value head.
        kv_head: usize,
    },
    /// The input of an MLP.
    Mlp {
        /// Layer.
        layer: usize,
    },
    /// The final norm and the unembedding.
    Logits,
}

/// A sender, perhaps at one position of each prompt only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sender {
    /// The component.
    pub node: Node,
    /// Its position; all if absent.
    pub at: Option<At>,
}

/// A receiver, perhaps at one position of each prompt only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receiver {
    /// The input.
    pub input: Input,
    /// Its position; all if absent.
    pub at: Option<At>,
}

impl From<Node> for Sender {
    fn from(node: Node) -> Self {
        Self { node, at: None }
    }
}

impl From<Input> for Receiver {
    fn from(input: Input) -> Self {
        Self { input, at: None }
    }
}

/// A head that a path leads through: it receives at some of its inputs and sends its output on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Via {
    /// Layer.
    pub layer: usize,
    /// Head.
    pub head: usize,
    /// Whether the path leads through its queries.
    pub queries: bool,
    /// Whether the path leads through the keys of its key/value head.
    pub keys: bool,
    /// Whether the path leads through the values of its key/value head.
    pub values: bool,
}

impl Via {
    /// Through the queries, keys and values of a head.
    pub fn head(layer: usize, head: usize) -> Self {
        Self { layer, head, queries: true, keys: true, values: true }
    }

    /// Through the queries of a head.
    pub fn query(layer: usize, head: usize) -> Self {
        Self { keys: false, values: false, ..Self::head(layer, head) }
    }

    /// Through the keys that a head reads.
    pub fn key(layer: usize, head: usize) -> Self {
        Self { queries: false, values: false, ..Self::head(layer, head) }
    }

    /// Through the values that a head reads.
    pub fn value(layer: usize, head: usize) -> Self {
        Self { queries: false, keys: false, ..Self::head(layer, head) }
    }

    /// As a sender.
    pub(super) fn node(self) -> Node {
        Node::Head { layer: self.layer, head: self.head }
    }

    /// As receivers.
    pub(super) fn inputs(self, model: &Model) -> Vec<Input> {
        let config = model.config();
        let (layer, kv_head) = (self.layer, self.head * config.n_kv_heads / config.n_heads);
        let all = [
            (self.queries, Input::Query { layer, head: self.head }),
            (self.keys, Input::Key { layer, kv_head }),
            (self.values, Input::Value { layer, kv_head }),
        ];
        all.into_iter().filter(|(through, _)| *through).map(|(_, input)| input).collect()
    }

    /// The sites of its inputs.
    pub(super) fn sites(self) -> Vec<Site> {
        let all =
            [(self.queries, Site::Q(self.layer)), (self.keys, Site::K(self.layer)), (self.values, Site::V(self.layer))];
        all.into_iter().filter(|(through, _)| *through).map(|(_, site)| site).collect()
    }

    /// Its name in tables: `23.3.q`.
    pub(super) fn label(self) -> String {
        let inputs = [(self.queries, "q"), (self.keys, "k"), (self.values, "v")];
        let inputs: String = inputs.into_iter().filter(|(through, _)| *through).map(|(_, name)| name).collect();
        format!("{}.{}.{inputs}", self.layer, self.head)
    }
}

impl Node {
    /// This sender at one position of each prompt only: a number, one number for each prompt, or a position's name.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let sender = Node::Head { layer: 0, head: 1 }.at("S1+1");
    /// assert_eq!(sender.at, Some(At::Name("S1+1".into())));
    /// ```
    pub fn at(self, position: impl Into<At>) -> Sender {
        Sender { node: self, at: Some(position.into()) }
    }

    /// Every head of a model.
    pub fn heads(model: &Model) -> Vec<Self> {
        let config = model.config();
        let heads = |layer| (0..config.n_heads).map(move |head| Self::Head { layer, head });
        (0..config.n_layers).flat_map(heads).collect()
    }

    /// Every sender of a model: the token embeddings, heads and MLPs, in the order in which they write.
    pub fn all(model: &Model) -> Vec<Self> {
        let config = model.config();
        let mlps = (0..config.n_layers).filter(|_| config.has_mlp()).map(|layer| Self::Mlp { layer });
        let mut all: Vec<Self> = [Self::Embed].into_iter().chain(Self::heads(model)).chain(mlps).collect();
        all.sort_by_key(|node| (model.wiring().point(node.site()), *node));
        all
    }

    /// The edit by which its output becomes what the bank has under `key`.
    pub(super) fn edit(self, key: &str) -> Edit {
        let site = self.site();
        let edit = Edit::new(site, Action::replace(key));
        if let Self::Head { head, .. } = self { edit.head(head) } else { edit }
    }

    pub(super) fn site(self) -> Site {
        match self {
            Self::Embed => Site::Embed,
            Self::Head { layer, .. } => Site::Z(layer),
            Self::Mlp { layer } => Site::MlpOut(layer),
        }
    }

    pub(super) fn head(self) -> Option<usize> {
        if let Self::Head { head, .. } = self { Some(head) } else { None }
    }

    /// Whether a path leads from this sender to a receiver.
    pub(super) fn reaches(self, input: Input, model: &Model) -> bool {
        input.site().is_none_or(|site| model.wiring().reaches_input(self.site(), site))
    }
}

impl Input {
    /// This receiver at one position of each prompt only: a number, one number for each prompt, or a position's name.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let queries = (0..4).map(|head| Input::Query { layer: 2, head }.at(3));
    /// let paths = Paths::noise(&model, &clean, &corrupt).receivers(queries);
    /// assert_eq!(paths.run()?.len(), 8 * 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn at(self, position: impl Into<At>) -> Receiver {
        Receiver { input: self, at: Some(position.into()) }
    }

    /// The queries of every head of a model.
    pub fn queries(model: &Model) -> Vec<Self> {
        let config = model.config();
        let heads = |layer| (0..config.n_heads).map(move |head| Self::Query { layer, head });
        (0..config.n_layers).flat_map(heads).collect()
    }

    /// The keys of every key/value head of a model.
    pub fn keys(model: &Model) -> Vec<Self> {
        let config = model.config();
        let heads = |layer| (0..config.n_kv_heads).map(move |kv_head| Self::Key { layer, kv_head });
        (0..config.n_layers).flat_map(heads).collect()
    }

    /// The values of every key/value head of a model.
    pub fn values(model: &Model) -> Vec<Self> {
        let config = model.config();
        let heads = |layer| (0..config.n_kv_heads).map(move |kv_head| Self::Value { layer, kv_head });
        (0..config.n_layers).flat_map(heads).collect()
    }

    /// Every receiver of a model: queries, keys and values of each layer, its MLP, and finally the logits.
    pub fn all(model: &Model) -> Vec<Self> {
        let config = model.config();
        let mlps = (0..config.n_layers).filter(|_| config.has_mlp()).map(|layer| Self::Mlp { layer });
        let mut all = [Self::queries(model), Self::keys(model), Self::values(model)].concat();
        all.extend(mlps.chain([Self::Logits]));
        all.sort_by_key(|input| (input.order(), *input));
        all
    }

    /// The site of what the receiver computes from its input. `None` for the logits, which are read directly.
    pub(super) fn site(self) -> Option<Site> {
        match self {
            Self::Query { layer, .. } => Some(Site::Q(layer)),
            Self::Key { layer, .. } => Some(Site::K(layer)),
            Self::Value { layer, .. } => Some(Site::V(layer)),
            Self::Mlp { layer } => Some(Site::MlpOut(layer)),
            Self::Logits => None,
        }
    }

    /// Its head; the key/value head of keys and values.
    pub(super) fn head(self) -> Option<usize> {
        match self {
            Self::Query { head, .. } => Some(head),
            Self::Key { kv_head, .. } | Self::Value { kv_head, .. } => Some(kv_head),
            Self::Mlp { .. } | Self::Logits => None,
        }
    }

    /// Sorts receivers by layer, heads before the MLP.
    fn order(self) -> (usize, bool) {
        (self.site().and_then(Site::layer).unwrap_or(usize::MAX), matches!(self, Self::Mlp { .. }))
    }

    pub(super) fn edit(self, key: &str) -> Option<Edit> {
        let edit = Edit::new(self.site()?, Action::replace(key));
        Some(match self {
            Self::Query { head, .. } => edit.head(head),
            Self::Key { kv_head, .. } | Self::Value { kv_head, .. } => edit.head(kv_head),
            Self::Mlp { .. } | Self::Logits => edit,
        })
    }
}
