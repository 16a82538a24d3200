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
            Self::Q | Self::Z => config.n_heads * config.d_head,
            Self::K | Self::V => config.n_kv_heads * config.d_head,
            Self::Scores | Self::Pattern => config.n_heads * config.n_positions,
            Self::Result => config.n_heads * config.d_model,
            Self::Ln1Scale | Self::Ln1PostScale | Self::Ln2Scale | Self::Ln2PostScale => 1,
            Self::MlpPre | Self::MlpPost => config.d_mlp,
            Self::Router => config.experts.map_or(0, |experts| experts.n),
            _ => config.d_model,
        }
    }

    /// Whether every query of a row reads the value at all positions.
    pub(crate) fn is_read_everywhere(self) -> bool {
        matches!(self, Self::K | Self::V)
    }
}

/// A set of a block's values.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wires(u32);

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
