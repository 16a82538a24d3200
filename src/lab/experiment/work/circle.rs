//! Attention that rank 2 is enough for: keys on a circle.

use ndarray::Array2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::row;
use crate::circuits::Factored;
use crate::error::{Error, Result};
use crate::table::Observation;

/// Can logits of rank 2 give every query a target of its own?
///
/// Key j stands at the angle 2 pi j / n on a circle, and a query at that of its target: the logit of query i and key j is
/// `beta cos(2 pi (t_i - j) / n)`, of rank 2 whatever n is. Each target has a weight of at least
/// `1 / (1 + (n - 1) exp(-beta (1 - cos(2 pi / n))))`. Targets are a permutation drawn by the seed.
///
/// Rows: `target_weight`, the least weight of a target; `bound`; `rank`, of the logits; `pattern_rank`, of the attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circle {
    /// Number of keys, and of queries.
    pub n: usize,
    /// How sharp the softmax is.
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
}

impl Circle {
    fn rows(&self, seed: u64, targets: &[usize]) -> Result<Vec<Observation>> {
        let angle = |i: usize| 2.0 * std::f64::consts::PI * i as f64 / self.n as f64;
        let on_circle = |i: usize, axis: usize| if axis == 0 { angle(i).cos() } else { angle(i).sin() };
        let queries = Array2::from_shape_fn((self.n, 2), |(i, axis)| self.beta * on_circle(targets[i], axis));
        let keys = Array2::from_shape_fn((2, self.n), |(axis, j)| on_circle(j, axis));
        let logits = Factored::new(queries, keys)?;
        let mut pattern = logits.rows(0..self.n)?;
        for mut row in pattern.rows_mut() {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.mapv_inplace(|value| (value - largest).exp());
            let sum = row.sum();
            row.mapv_inplace(|value| value / sum);
        }
        let least = targets.iter().enumerate().map(|(i, &t)| pattern[[i, t]]).fold(f64::INFINITY, f64::min);
        let step = 1.0 - angle(1).cos();
        let bound = 1.0 / (1.0 + (self.n as f64 - 1.0) * (-self.beta * step).exp());
        let pattern = Factored::new(pattern, Array2::eye(self.n))?;
        let found =
            [("target_weight", least), ("bound", bound), ("rank", rank(&logits)?), ("pattern_rank", rank(&pattern)?)];
        Ok(found.into_iter().map(|(metric, value)| row(seed, 0, metric, value)).collect())
    }
}

/// Singular values above rounding.
fn rank(matrix: &Factored) -> Result<f64> {
    let sigma = matrix.singular_values()?;
    let largest = sigma.iter().copied().fold(0.0, f64::max);
    Ok(sigma.iter().filter(|value| **value > 1e-9 * largest).count() as f64)
}
