//! What does a sweep do to the activations that it changes?

use serde::Serialize;

use super::ablation::Ablation;
use crate::intervene::engine::REFERENCE;
use crate::model::Action;

/// A sweep's own action on the sites that [`Sweep::each`](super::Sweep::each) selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    Ablation(Ablation),
    KnockOut,
    Patch(Direction),
}

/// The direction of a patch: denoising (clean into corrupted) or noising (corrupted into clean).
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

    /// The seed, if the change is random.
    pub(super) fn seed(self) -> Option<u64> {
        match self {
            Self::Ablation(ablation) => ablation.seed(),
            Self::KnockOut | Self::Patch(_) => None,
        }
    }
}
