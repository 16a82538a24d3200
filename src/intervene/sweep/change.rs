//! What a sweep does to the activations that it changes.

use serde::Serialize;

use super::ablation::{Ablation, REFERENCE};
use crate::model::Action;

/// What happens to an activation in a sweep made by [`Sweep::each`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    Ablation(Ablation),
    KnockOut,
    Patch(Direction),
}

/// Which run is patched, and from which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    Denoise,
    Noise,
}

impl Change {
    pub(super) fn action(self) -> Action {
        match self {
            Self::Ablation(ablation) => ablation.action(),
            Self::KnockOut => Action::KnockOut,
            Self::Patch(_) => Action::replace(REFERENCE),
        }
    }

    /// The seed, where chance takes part.
    pub(super) fn seed(self) -> Option<u64> {
        match self {
            Self::Ablation(ablation) => ablation.seed(),
            Self::KnockOut | Self::Patch(_) => None,
        }
    }
}
