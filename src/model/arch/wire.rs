//! Which values does a block have?

use std::fmt;

use super::config::ModelConfig;
use crate::site::Site;

/// Lists the values of a block in the order of the forward pass, each with its site, if it has one.
macro_rules! wires {
    ($($(#[$doc:meta])* $wire:ident $(at $site:ident)?,)*) => {
        /// A value inside a block.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Wire {
            $($(#[$doc])* $wire,)*
        }

        impl Wire {
            const ALL: &[Self] = &[$(Self::$wire),*];

            /// The site at which the value of a layer can be read and changed; `None` for a value between two sites.
            pub(crate) fn site(self, layer: usize) -> Option<Site> {
                match self {
                    $($(Self::$wire => Some(Site::$site(layer)),)?)*
                    _ => None,
                }
            }
        }
    };
}

wires! {
    ResidPre at ResidPre,
    Ln1Scale at Ln1Scale,
    /// The normalised residual stream that the projections to queries, keys and values read.
    AttnIn,
    K at K,
    V at V,
    Q at Q,
    Scores at Scores,
    Pattern at Pattern,
    Z at Z,
    Result at Result,
    /// The sum of the head outputs and the bias, before a norm on it.
    AttnSum,
    Ln1PostScale at Ln1PostScale,
    AttnOut at AttnOut,
    /// The residual stream plus the attention output, before a norm on the sum.
    MidSum,
    ResidMid at ResidMid,
    LnCrossScale at LnCrossScale,
    /// The normalised residual stream that the queries of cross-attention are projected from.
    CrossIn,
    /// What the encoder of an encoder-decoder has made of the source.
    Memory,
    CrossK at CrossK,
    CrossV at CrossV,
    CrossQ at CrossQ,
    CrossScores at CrossScores,
    CrossPattern at CrossPattern,
    CrossZ at CrossZ,
    CrossResult at CrossResult,
    CrossOut at CrossOut,
    /// The residual stream plus the output of cross-attention, before a norm on the sum.
    CrossSum,
    ResidCross at ResidCross,
    Ln2Scale at Ln2Scale,
    /// The normalised residual stream that the MLP reads.
    MlpIn,
    Router at Router,
    MlpPre at MlpPre,
    MlpPost at MlpPost,
    /// What the MLP computes, before a norm on it.
    MlpSum,
    Ln2PostScale at Ln2PostScale,
    MlpOut at MlpOut,
    /// The residual stream plus the MLP output, before a norm on the sum.
    PostSum,
    ResidPost at ResidPost,
}

impl Wire {
    /// The value at a site of a block; `None` for a site outside the blocks.
    pub(crate) fn of(site: Site) -> Option<Self> {
        let layer = site.layer()?;
        Self::ALL.iter().copied().find(|wire| wire.site(layer) == Some(site))
    }

    /// How many numbers the value holds for each position of a prompt.
    pub(crate) fn width(self, config: &ModelConfig) -> usize {
        match self {
            Self::Q | Self::Z | Self::CrossQ | Self::CrossZ => config.n_heads * config.d_head,
            Self::K | Self::V | Self::CrossK | Self::CrossV => config.n_kv_heads * config.d_head,
            Self::Scores | Self::Pattern | Self::CrossScores | Self::CrossPattern => {
                config.n_heads * config.n_positions
            }
            Self::Result | Self::CrossResult => config.n_heads * config.d_model,
            Self::Ln1Scale | Self::Ln1PostScale | Self::Ln2Scale | Self::Ln2PostScale | Self::LnCrossScale => 1,
            Self::MlpPre | Self::MlpPost => config.d_mlp,
            Self::Router => config.experts.map_or(0, |experts| experts.n),
            _ => config.d_model,
        }
    }

    /// Whether every query of a row reads the value at all positions.
    pub(crate) fn is_read_everywhere(self) -> bool {
        matches!(self, Self::K | Self::V | Self::Memory | Self::CrossK | Self::CrossV)
    }

    /// Whether the value has the source's positions even in a decoder's block.
    pub(crate) fn is_of_source(self) -> bool {
        matches!(self, Self::Memory | Self::CrossK | Self::CrossV)
    }
}

/// The values of one attention of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    pub k: Wire,
    pub v: Wire,
    pub q: Wire,
    pub scores: Wire,
    pub pattern: Wire,
    pub z: Wire,
    pub result: Wire,
}

impl Heads {
    /// Of the attention that reads the residual stream alone.
    pub(crate) const OWN: Self = Self {
        k: Wire::K,
        v: Wire::V,
        q: Wire::Q,
        scores: Wire::Scores,
        pattern: Wire::Pattern,
        z: Wire::Z,
        result: Wire::Result,
    };

    /// Of cross-attention.
    pub(crate) const CROSS: Self = Self {
        k: Wire::CrossK,
        v: Wire::CrossV,
        q: Wire::CrossQ,
        scores: Wire::CrossScores,
        pattern: Wire::CrossPattern,
        z: Wire::CrossZ,
        result: Wire::CrossResult,
    };

    /// The attention that a value belongs to.
    pub(crate) fn of(wire: Wire) -> &'static Self {
        let Self { k, v, q, scores, pattern, z, result } = Self::CROSS;
        let cross = [k, v, q, scores, pattern, z, result, Wire::CrossOut].contains(&wire);
        if cross { &Self::CROSS } else { &Self::OWN }
    }

    /// Whether it is cross-attention.
    pub(crate) fn are_across(&self) -> bool {
        *self == Self::CROSS
    }
}

/// A set of a block's values.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wires(u64);

impl Wires {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn has(self, wire: Wire) -> bool {
        self.0 & 1 << wire as u32 != 0
    }

    pub(crate) fn with(self, wire: Wire) -> Self {
        Self(self.0 | 1 << wire as u32)
    }

    pub(crate) fn without(self, wire: Wire) -> Self {
        Self(self.0 & !(1 << wire as u32))
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are among these.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Wire> {
        Wire::ALL.iter().copied().filter(move |wire| self.has(*wire))
    }
}

impl FromIterator<Wire> for Wires {
    fn from_iter<I: IntoIterator<Item = Wire>>(wires: I) -> Self {
        wires.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
