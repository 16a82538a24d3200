//! How much attention can logits of rank 2 express? A construction with keys on a circle.

use ndarray::Array2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::row;
use crate::circuits::{self, Factored};
use crate::error::{Error, Result};
use crate::table::Observation;

/// Can logits of rank 2 give every query its own target?
///
/// Yes, with keys on a circle: see [`Circle`](circuits::Circle). Targets are a permutation drawn from the seed.
///
/// Rows: `target_weight`, the smallest attention weight on a target; `bound`, the lower bound on it; `rank`, the rank
/// of the logits; `pattern_rank`, the rank of the attention pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circle {
    /// Number of keys and of queries.
    pub n: usize,
    /// Inverse temperature of the softmax.
    pub beta: f64,
}

impl Circle {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Vec<Observation>> {
        if !((3..=1000).contains(&self.n) && self.beta.is_finite() && self.beta > 0.0) {
            let found = format!("n = {}, beta = {}", self.n, self.beta);
            return Err(Error::argument("circle", "n from 3 to 1000 and a finite beta above 0", found));
        }
        let of_seed = |&seed: &u64| {
            let mut targets: Vec<usize> = (0..self.n).collect();
            targets.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            self.rows(seed, &targets)
        };
        Ok(seeds.iter().map(of_seed).collect::<Result<Vec<_>>>()?.concat())
    }

    fn rows(&self, seed: u64, targets: &[usize]) -> Result<Vec<Observation>> {
        let circle = circuits::Circle::new(self.n, targets, self.beta)?;
        let pattern = Factored::new(circle.pattern()?, Array2::eye(self.n))?;
        let found = [
            ("target_weight", circle.target_weight()?),
            ("bound", circle.bound()),
            ("rank", circle.logits().rank()? as f64),
            ("pattern_rank", pattern.rank()? as f64),
        ];
        Ok(found.into_iter().map(|(metric, value)| row(seed, 0, metric, value)).collect())
    }
}
