//! What a head is replaced with when it is taken away.

use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Action, Tokens};

/// What an ablated activation becomes.
///
/// The kinds answer different questions: zero removes the head and its bias towards an average output; the mean leaves
/// that average and removes what depends on the prompt; resampling leaves a realistic output that belongs to another
/// prompt (Chan et al. 2022; Miller et al. 2024 on how much the choice matters).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ablation {
    /// Zero.
    Zero,
    /// Its mean over the reference prompts, position by position.
    Mean,
    /// What it is on another reference prompt, drawn with this seed, at the same positions.
    Resample {
        /// Seed of the draw.
        seed: u64,
    },
}

/// The key under which a sweep's reference activations stand in the bank.
pub(in crate::intervene) const REFERENCE: &str = "reference";

impl Ablation {
    /// The edit's action; all but zero read [`REFERENCE`].
    pub(super) fn action(self) -> Action {
        match self {
            Self::Zero => Action::Zero,
            Self::Mean => Action::mean(REFERENCE),
            Self::Resample { .. } => Action::replace(REFERENCE),
        }
    }

    /// The seed, where chance takes part.
    pub(super) fn seed(self) -> Option<u64> {
        match self {
            Self::Resample { seed } => Some(seed),
            _ => None,
        }
    }
}

/// For each prompt another prompt of `reference`, at least as long; never itself where the two are one batch.
pub(super) fn draw(tokens: &Tokens, reference: &Tokens, seed: u64) -> Result<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (lengths, others) = (tokens.lengths(), reference.lengths());
    let same = tokens == reference;
    let pick = |(prompt, &length): (usize, &usize)| {
        let fits: Vec<usize> =
            (0..others.len()).filter(|&other| others[other] >= length && !(same && other == prompt)).collect();
        fits.choose(&mut rng).copied().ok_or_else(|| {
            let expected = format!("another reference prompt of at least {length} tokens for prompt {prompt}");
            Error::argument("reference", expected, format!("{} tokens at most", others.iter().max().unwrap_or(&0)))
        })
    };
    lengths.iter().enumerate().map(pick).collect()
}
