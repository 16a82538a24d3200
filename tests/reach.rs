//! Which attention patterns a head of a given width can produce: the theorem, planted patterns, and those out of reach.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::circuits::{
    Factored, Search, attention, closest_logits, logit_spectrum, misplaced, pattern_logits, queries_and_keys,
    trained_logits,
};
use ndarray::Array2;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

fn normal(shape: (usize, usize), seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn(shape, || rng.sample(StandardNormal))
}

/// A pattern whose logits have full rank.
fn dense(n: usize, seed: u64) -> Array2<f64> {
    attention(&Factored::new(normal((n, n), seed), Array2::eye(n)).unwrap()).unwrap()
}

/// A pattern whose logits have this rank, and the logits.
fn planted(n: usize, rank: usize, seed: u64) -> (Array2<f64>, Factored) {
    let logits = Factored::new(normal((n, rank), seed), normal((rank, n), seed + 1)).unwrap();
    (attention(&logits).unwrap(), logits)
}

/// The mean over queries of the attention at wrong keys.
fn error(pattern: &Array2<f64>, logits: &Factored) -> f64 {
    misplaced(&pattern.view(), &attention(logits).unwrap().view()).unwrap().mean().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Bhojanapalli et al. 2020: as many dimensions as keys, and inputs with independent rows, are enough for any pattern
    /// (one dimension less is, too, since the softmax ignores a constant).
    #[test]
    fn a_head_as_wide_as_there_are_keys_produces_every_pattern(n in 2usize..14, more in 0usize..5, seed in 0u64..999) {
        let pattern = dense(n, seed);
        let inputs = normal((n, n + 3 + more), seed + 7);
        for width in [n - 1, n, n + more] {
            let logits = pattern_logits(&pattern.view(), width.max(1)).unwrap();
            let [w_q, w_k] = queries_and_keys(&inputs.view(), &logits).unwrap();
            prop_assert!(w_q.ncols() <= width.max(1) && w_q.nrows() == inputs.ncols());
            let of_head = Factored::new(inputs.dot(&w_q), w_k.t().dot(&inputs.t())).unwrap();
            // Inputs of condition number below 100, logits below 10.
            prop_assert!(error(&pattern, &of_head) < 1e-10, "{}", error(&pattern, &of_head));
        }
    }

    /// Invariant 34: rank(log softmax(L) C) = rank(L C) <= d_head.
    #[test]
    fn the_logits_of_a_pattern_have_the_rank_of_the_head(n in 4usize..14, rank in 1usize..6, seed in 0u64..999) {
        let rank = rank.min(n - 1);
        let sigma = logit_spectrum(&planted(n, rank, seed).0.view()).unwrap();
        prop_assert!(sigma[rank - 1] > 1e-6 * sigma[0] && sigma.iter().skip(rank).all(|value| *value < 1e-10 * sigma[0]));
    }

    /// What a head of this width produced, a head of this width is found for; one of half the width is not.
    #[test]
    fn a_planted_pattern_is_found(n in 6usize..12, rank in 2usize..4, seed in 0u64..999) {
        let (pattern, _) = planted(n, rank, seed);
        let exact = pattern_logits(&pattern.view(), rank).unwrap();
        prop_assert!(error(&pattern, &exact) < 1e-10);
        let narrow = pattern_logits(&pattern.view(), rank - 1).unwrap();
        let closest = closest_logits(&pattern.view(), &narrow, &Search::default()).unwrap();
        prop_assert!(closest.width() == rank - 1 && error(&pattern, &closest) > 1e-4);
    }
}

/// Training finds what exists, and does not find what does not.
#[test]
fn a_trained_head_finds_planted_patterns_and_no_dense_ones() {
    for seed in 0..5 {
        let (pattern, _) = planted(12, 3, seed);
        let inputs = normal((12, 24), seed + 50);
        let train = |pattern: &Array2<f64>, width| {
            let trained =
                trained_logits(&pattern.view(), &inputs.view(), width, &Search { steps: 2000 }, seed).unwrap();
            assert_eq!((trained.nrows(), trained.ncols(), trained.width()), (12, 12, width));
            error(pattern, &trained)
        };
        assert!(train(&pattern, 3) < 1e-3, "{}", train(&pattern, 3));
        assert!(train(&dense(12, seed), 6) > 0.01, "{}", train(&dense(12, seed), 6));
        assert!(train(&dense(12, seed), 12) < 1e-3, "{}", train(&dense(12, seed), 12));
    }
}

/// The search lowers what is reported, not only the error of the logits.
#[test]
fn the_closest_pattern_is_closer_than_the_truncated_one() {
    for seed in 0..10 {
        let pattern = dense(16, seed);
        let truncated = pattern_logits(&pattern.view(), 8).unwrap();
        let closest = closest_logits(&pattern.view(), &truncated, &Search::default()).unwrap();
        assert!(error(&pattern, &closest) < error(&pattern, &truncated), "{seed}");
        assert!(error(&pattern, &closest) > 0.01, "half the width is not enough: {seed}");
    }
}

#[test]
fn what_is_no_pattern_is_refused() {
    let pattern = dense(4, 0);
    let start = pattern_logits(&pattern.view(), 2).unwrap();
    let search = Search::default();
    assert!(pattern_logits(&pattern.view(), 0).is_err());
    assert!(pattern_logits(&Array2::eye(4).view(), 2).is_err(), "a key without weight has no logit");
    assert!(closest_logits(&(2.0 * &pattern).view(), &start, &search).is_err());
    assert!(closest_logits(&dense(5, 0).view(), &start, &search).is_err());
    assert!(closest_logits(&Array2::eye(4).view(), &start, &search).is_ok(), "a single target is a pattern");
    assert!(trained_logits(&pattern.view(), &normal((5, 8), 0).view(), 2, &search, 0).is_err());
    assert!(trained_logits(&pattern.view(), &normal((4, 8), 0).view(), 0, &search, 0).is_err());
    assert!(queries_and_keys(&normal((5, 8), 0).view(), &start).is_err());
    assert!(misplaced(&pattern.view(), &dense(5, 0).view()).is_err());
}
