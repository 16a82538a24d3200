//! What replaces an activation that is ablated?

use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::intervene::engine::REFERENCE;
use crate::model::{Action, Tokens};

/// What replaces an ablated activation.
///
/// The kinds answer different questions. Zero ablation removes the whole head output, its average included. Mean
/// ablation keeps the average and removes what depends on the prompt. Resampling keeps the output realistic, but takes
/// it from another prompt (Chan et al. 2022; see Miller et al. 2024 on how much the choice matters).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ablation {
    /// Zero.
    Zero,
    /// Its mean over the reference prompts, per position.
    Mean,
    /// Its value at the same positions of another reference prompt, drawn at random.
    Resample {
        /// Seed of the draw.
        seed: u64,
    },
}

impl Ablation {
    /// The action of its edits. All but zero ablation read [`REFERENCE`].
    pub(super) fn action(self) -> Action {
        match self {
            Self::Zero => Action::Zero,
            Self::Mean => Action::mean(REFERENCE),
            Self::Resample { .. } => Action::replace(REFERENCE),
        }
    }

    /// The seed, if the ablation is random.
    pub(super) fn seed(self) -> Option<u64> {
        match self {
            Self::Resample { seed } => Some(seed),
            _ => None,
        }
    }
}

/// Draws for each prompt a prompt of `reference` that is at least as long, as its source is if it has one, and never the prompt
/// itself if the two batches are the same.
pub(super) fn draw(tokens: &Tokens, reference: &Tokens, seed: u64) -> Result<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (lengths, others) = (tokens.lengths(), reference.lengths());
    let same = tokens == reference;
    let sources = tokens.source().zip(reference.source()).map(|(own, other)| (own.lengths(), other.lengths()));
    let covers = |prompt: usize, other: usize| {
        sources.as_ref().is_none_or(|(own, others)| others[other] >= own[prompt]) && others[other] >= lengths[prompt]
    };
    let pick = |(prompt, &length): (usize, &usize)| {
        let fits: Vec<usize> =
            (0..others.len()).filter(|&other| covers(prompt, other) && !(same && other == prompt)).collect();
        fits.choose(&mut rng).copied().ok_or_else(|| {
            let expected = format!("another reference prompt of at least {length} tokens for prompt {prompt}");
            Error::argument("reference", expected, format!("{} tokens at most", others.iter().max().unwrap_or(&0)))
        })
    };
    lengths.iter().enumerate().map(pick).collect()
}
