//! Where can a path start and end? Senders write to the residual stream, receivers read from it.

use serde::{Deserialize, Serialize};

use crate::intervene::engine::REFERENCE;
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

impl Node {
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

    pub(super) fn edit(self) -> Edit {
        let site = self.site();
        let edit = Edit::new(site, Action::replace(REFERENCE));
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
