//! One seed, several independent streams of random numbers.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What random numbers are drawn for.
///
/// A run has one seed. Its sequences come from that seed itself: batch i from stream i of ChaCha8, see
/// [`Language::batch`](super::Language::batch). Everything else has a seed of its own, derived by [`Purpose::seed`], so that
/// no other draw repeats the numbers that made a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The parameters at the start.
    Weights,
    /// Noise in the forward pass.
    Noise,
    /// What moves heads apart that start as copies.
    Perturbation,
    /// The order into which a head's dimensions are shuffled.
    Order,
}

impl Purpose {
    /// The stream from which the derived seed is read: numbers that no batch has.
    fn stream(self) -> u64 {
        let name = match self {
            Self::Weights => *b"weights\xff",
            Self::Noise => *b"noise\0\0\xff",
            Self::Perturbation => *b"perturb\xff",
            Self::Order => *b"order\0\0\xff",
        };
        u64::from_le_bytes(name)
    }

    /// The seed for this purpose of a run of a given seed.
    pub(super) fn seed(self, seed: u64) -> u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.stream());
        rng.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Seeds of purposes differ from each other and from the run's own, and no purpose reads the stream of a batch: training
    /// has fewer than 2^56 of them, and held-out ones are numbered from the end.
    #[test]
    fn purposes_have_streams_of_their_own() {
        let all = [Purpose::Weights, Purpose::Noise, Purpose::Perturbation, Purpose::Order];
        let seeds: BTreeSet<u64> =
            (0..1000).flat_map(|seed| all.map(|purpose| purpose.seed(seed)).into_iter().chain([seed])).collect();
        assert_eq!(seeds.len(), 5000);
        assert!(all.iter().all(|purpose| (1 << 56..u64::MAX - 1000).contains(&purpose.stream())));
    }
}
