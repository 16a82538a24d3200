//! How does one seed give several independent streams of random numbers?

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What random numbers are drawn for.
///
/// A run has one seed. Its sequences come from that seed directly: batch i from stream i of ChaCha8, see
/// [`Language::batch`](super::Language::batch). Everything else uses a seed derived by [`Purpose::seed`], so that no
/// other draw reuses the numbers of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The initial parameters.
    Weights,
    /// Noise in the forward pass.
    Noise,
    /// The noise that perturbs heads initialised as copies.
    Perturbation,
    /// The permutation that shuffles a head's dimensions.
    Order,
    /// The noise of Langevin sampling.
    Langevin,
    /// The heads that are taken away as a control.
    Controls,
}

impl Purpose {
    /// The stream from which the derived seed is read; no batch uses it.
    fn stream(self) -> u64 {
        let name = match self {
            Self::Weights => *b"weights\xff",
            Self::Noise => *b"noise\0\0\xff",
            Self::Perturbation => *b"perturb\xff",
            Self::Order => *b"order\0\0\xff",
            Self::Langevin => *b"langevi\xff",
            Self::Controls => *b"control\xff",
        };
        u64::from_le_bytes(name)
    }

    /// Derives the seed for this purpose from a run's seed.
    pub(super) fn seed(self, seed: u64) -> u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.stream());
        rng.next_u64()
    }
}

/// Whether batch `number` of a stream is held out. Training counts its batches from 0 and never comes this far; held-out
/// batches are numbered from the end, [`u64::MAX`]. Languages that sample from a finite text take them from another part
/// of it.
pub(super) fn is_held_out(number: u64) -> bool {
    number >= 1 << 63
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Seeds of different purposes differ from each other and from the run's own seed. No purpose reads the stream of a
    /// batch: training has fewer than 2^56 batches, and held-out batches are numbered from the end.
    #[test]
    fn purposes_have_streams_of_their_own() {
        use Purpose::{Controls, Langevin, Noise, Order, Perturbation, Weights};
        let all = [Weights, Noise, Perturbation, Order, Langevin, Controls];
        let seeds: BTreeSet<u64> =
            (0..1000).flat_map(|seed| all.map(|purpose| purpose.seed(seed)).into_iter().chain([seed])).collect();
        assert_eq!(seeds.len(), 7000);
        assert!(all.iter().all(|purpose| (1 << 56..u64::MAX - 1000).contains(&purpose.stream())));
    }
}
