//! Samples to estimate from.

use headscope::information::{Certainty, Estimate, Estimator, Warning, mutual_information};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

pub use super::tolerance::ROUNDING;

pub fn normals(n: usize, d: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n, d), || rng.sample(StandardNormal))
}

pub fn labels(n: usize, classes: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..classes)).collect()
}

pub fn by(name: &str) -> Estimator {
    name.parse().unwrap()
}

#[track_caller]
pub fn near(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{what}: {found} where {expected} was expected");
}

pub fn estimate(x: &Array2<f64>, y: &Array2<f64>, estimator: &Estimator) -> f64 {
    mutual_information(x.view(), y.view(), estimator, &Certainty::NONE, 0).unwrap().nats()
}

/// Whether something says not to take it for a fact.
pub fn flags(found: &Estimate) -> bool {
    found.warnings.iter().any(Warning::is_fatal)
}
