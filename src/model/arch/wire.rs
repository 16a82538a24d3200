//! Which values does a block have? Their names, and sets of them.

use std::fmt;

use super::config::ModelConfig;
use crate::site::Site;

/// A value inside a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wire {
    ResidPre,
    Ln1Scale,
    /// What the projections read: the stream, normalised.
    AttnIn,
    K,
    V,
    Q,
    Scores,
    Pattern,
    Z,
    Result,
    /// What the heads write together, before a norm on it.
    AttnSum,
    Ln1PostScale,
    AttnOut,
    /// The stream with what attention adds, before a norm on it.
    MidSum,
    ResidMid,
    Ln2Scale,
    /// What the MLP reads: the stream, normalised.
    MlpIn,
    Router,
    MlpPre,
    MlpPost,
    /// What the MLP writes, before a norm on it.
    MlpSum,
    Ln2PostScale,
    MlpOut,
    /// The stream with what the MLP adds, before a norm on it.
    PostSum,
    ResidPost,
}

/// How many there are.
pub(super) const WIRES: usize = Wire::ResidPost as usize + 1;

impl Wire {
    const ALL: [Self; WIRES] = {
        use Wire::*;
        [
            ResidPre,
            Ln1Scale,
            AttnIn,
            K,
            V,
            Q,
            Scores,
            Pattern,
            Z,
            Result,
            AttnSum,
            Ln1PostScale,
            AttnOut,
            MidSum,
            ResidMid,
            Ln2Scale,
            MlpIn,
            Router,
            MlpPre,
            MlpPost,
            MlpSum,
            Ln2PostScale,
            MlpOut,
            PostSum,
            ResidPost,
        ]
    };

    /// The site at which a layer's value can be read and changed; none for values between two sites.
    pub(crate) fn site(self, layer: usize) -> Option<Site> {
        Some(match self {
            Self::ResidPre => Site::ResidPre(layer),
            Self::Ln1Scale => Site::Ln1Scale(layer),
            Self::K => Site::K(layer),
            Self::V => Site::V(layer),
            Self::Q => Site::Q(layer),
            Self::Scores => Site::Scores(layer),
            Self::Pattern => Site::Pattern(layer),
            Self::Z => Site::Z(layer),
            Self::Result => Site::Result(layer),
            Self::Ln1PostScale => Site::Ln1PostScale(layer),
            Self::AttnOut => Site::AttnOut(layer),
            Self::ResidMid => Site::ResidMid(layer),
            Self::Ln2Scale => Site::Ln2Scale(layer),
            Self::Router => Site::Router(layer),
            Self::MlpPre => Site::MlpPre(layer),
            Self::MlpPost => Site::MlpPost(layer),
            Self::Ln2PostScale => Site::Ln2PostScale(layer),
            Self::MlpOut => Site::MlpOut(layer),
            Self::ResidPost => Site::ResidPost(layer),
            Self::AttnIn | Self::AttnSum | Self::MidSum | Self::MlpIn | Self::MlpSum | Self::PostSum => return None,
        })
    }

    /// The value that stands at a site of a block.
    pub(crate) fn of(site: Site) -> Option<Self> {
        let layer = site.layer()?;
        Self::ALL.into_iter().find(|wire| wire.site(layer) == Some(site))
    }

    /// Numbers at each position: the length of all axes after the position.
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
        Wire::ALL.into_iter().filter(move |wire| self.has(*wire))
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
