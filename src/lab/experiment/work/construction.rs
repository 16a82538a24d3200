//! Which attention patterns can a head of width d produce over n keys? By construction, by search and by training.

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Gamma, StandardNormal};
use serde::{Deserialize, Serialize};

use super::row;
use crate::circuits::{
    Circle, Factored, Search, attention, closest_logits, misplaced, pattern_logits, queries_and_keys, trained_logits,
};
use crate::error::{Error, Result};
use crate::table::Observation;

/// Can a head of this width produce every pattern of a random set?
///
/// The patterns are over `keys` positions, each of which is a query and a key, with random inputs X of twice as many
/// dimensions, `[keys, 2 keys]`, and no mask. The error of a pattern is the share of attention that goes to the wrong
/// keys, averaged over queries ([`misplaced`]); that of a set is the largest of its patterns' errors.
///
/// Rows by seed:
/// - `error`: of the closest pattern found. If the width is at least the rank that a pattern's logits need, that is the
///   exact construction, W_Q and W_K included ([`queries_and_keys`]). For single targets it is the circle, of rank 2
///   ([`Circle`]). Otherwise [`closest_logits`], from the truncated logits of the pattern;
/// - `trained_error`: of a head whose W_Q and W_K start at random ([`trained_logits`]);
/// - `best_error`: the smaller of the two for each pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Construction {
    /// Number of keys n.
    pub keys: usize,
    /// Width d of the head.
    pub width: usize,
    /// The set of patterns.
    pub set: PatternSet,
}

/// What is the largest number of keys for which a head of this width can produce every pattern of a random set?
///
/// By bisection, from as many keys as the width, below which every pattern can be produced. Rows by seed: `keys`, the
/// largest number for which the error of the set (see [`Construction`], `best_error`) is at most `tolerance`, and
/// `keys_per_width`, that divided by the width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attainable {
    /// Width d of the head.
    pub width: usize,
    /// The set of patterns.
    pub set: PatternSet,
    /// Largest error of a pattern that counts as produced.
    pub tolerance: f64,
    /// Number of keys at which the search ends.
    pub most: usize,
}

/// A set of random attention patterns, and how hard they are sought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternSet {
    /// How each pattern is drawn.
    pub kind: PatternKind,
    /// Number of patterns.
    pub size: usize,
    /// Steps of each search.
    pub steps: usize,
}

/// How a random attention pattern is drawn; all queries are independent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatternKind {
    /// Each query's weights have a Dirichlet distribution with this concentration: at 1 all weights are equally likely,
    /// far below 1 few keys have most of the weight.
    Dirichlet(f64),
    /// Each query attends to one key.
    OneTarget,
}

/// Largest number of keys: one pattern of them has a million weights.
const MOST: usize = 1024;
/// Weight that the circle gives a target.
const SHARP: f64 = 0.995;
/// Share of uniform attention that is mixed into a pattern before its logits are truncated, since weights near 0 have
/// logits of any size.
const MIXED: f64 = 1e-6;

/// How far the patterns found are from a set's: the largest error over the set.
struct Errors {
    /// Constructed, or searched for.
    found: f64,
    /// Trained from a random start.
    trained: f64,
    /// The better of the two for each pattern.
    best: f64,
}

impl Construction {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Vec<Observation>> {
        self.set.validate(self.keys, self.width)?;
        let of_seed = |&seed: &u64| {
            let errors = self.set.errors(self.keys, self.width, seed)?;
            let found = [("error", errors.found), ("trained_error", errors.trained), ("best_error", errors.best)];
            Ok(found.map(|(metric, value)| row(seed, 0, metric, value)))
        };
        Ok(seeds.iter().map(of_seed).collect::<Result<Vec<_>>>()?.concat())
    }
}

impl Attainable {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Vec<Observation>> {
        self.set.validate(self.most, self.width)?;
        if self.width + 1 >= self.most || !(self.tolerance > 0.0 && self.tolerance < 1.0) {
            let found = format!("width {}, most {}, tolerance {}", self.width, self.most, self.tolerance);
            return Err(Error::argument("attainable", "width + 1 < most, and a tolerance between 0 and 1", found));
        }
        let of_seed = |&seed: &u64| {
            let keys = self.largest(seed)?;
            let found = [("keys", keys as f64), ("keys_per_width", keys as f64 / self.width as f64)];
            Ok(found.map(|(metric, value)| row(seed, 0, metric, value)))
        };
        Ok(seeds.iter().map(of_seed).collect::<Result<Vec<_>>>()?.concat())
    }

    /// The largest number of keys by bisection: the one below, which can be produced, and the one above, which cannot,
    /// move together.
    fn largest(&self, seed: u64) -> Result<usize> {
        let reached = |keys| Ok::<_, Error>(self.set.errors(keys, self.width, seed)?.best <= self.tolerance);
        if reached(self.most)? {
            return Ok(self.most);
        }
        let (mut below, mut above) = (self.width + 1, self.most);
        while above - below > 1 {
            let middle = usize::midpoint(below, above);
            *(if reached(middle)? { &mut below } else { &mut above }) = middle;
        }
        Ok(below)
    }
}

impl PatternSet {
    fn validate(&self, keys: usize, width: usize) -> Result<()> {
        if !((3..=MOST).contains(&keys) && (1..=MOST).contains(&width)) {
            return Err(Error::argument(
                "keys, width",
                format!("3 to {MOST}, and 1 to {MOST}"),
                format!("{keys}, {width}"),
            ));
        }
        if self.size == 0 {
            return Err(Error::argument("size", "at least one pattern", 0));
        }
        crate::take::at_most("steps", self.steps, 1_000_000, "a step of the search")?;
        match self.kind {
            PatternKind::Dirichlet(concentration) => gamma(concentration).map(drop),
            PatternKind::OneTarget => Ok(()),
        }
    }

    /// The largest errors over the set's patterns, drawn from the seed.
    fn errors(&self, keys: usize, width: usize, seed: u64) -> Result<Errors> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut errors = Errors { found: 0.0, trained: 0.0, best: 0.0 };
        for _ in 0..self.size {
            let (found, trained) = self.one(keys, width, &mut rng)?;
            errors.found = errors.found.max(found);
            errors.trained = errors.trained.max(trained);
            errors.best = errors.best.max(found.min(trained));
        }
        Ok(errors)
    }

    /// The errors of the next pattern: found and trained.
    fn one(&self, keys: usize, width: usize, rng: &mut ChaCha8Rng) -> Result<(f64, f64)> {
        let search = Search { steps: self.steps };
        let inputs = Array2::from_shape_simple_fn((keys, 2 * keys), || rng.sample::<f64, _>(StandardNormal));
        let (pattern, found) = match self.kind {
            PatternKind::Dirichlet(concentration) => {
                let pattern = dirichlet(keys, concentration, rng)?;
                let logits = if width + 1 >= keys {
                    let exact = pattern_logits(&pattern.view(), width)?;
                    let [w_q, w_k] = queries_and_keys(&inputs.view(), &exact)?;
                    Factored::new(inputs.dot(&w_q), w_k.t().dot(&inputs.t()))?
                } else {
                    let mixed = pattern.mapv(|weight| (1.0 - MIXED) * weight + MIXED / keys as f64);
                    closest_logits(&pattern.view(), &pattern_logits(&mixed.view(), width)?, &search)?
                };
                (pattern, logits)
            }
            PatternKind::OneTarget => {
                let targets: Vec<usize> = (0..keys).map(|_| rng.random_range(0..keys)).collect();
                let circle = Circle::new(keys, &targets, Circle::sharpness(keys, SHARP)?)?;
                let one = |(query, key): (usize, usize)| f64::from(u8::from(targets[query] == key));
                (Array2::from_shape_fn((keys, keys), one), circle.logits().clone())
            }
        };
        let trained = trained_logits(&pattern.view(), &inputs.view(), width, &search, rng.random())?;
        let error = |logits: &Factored| {
            let wrong = misplaced(&pattern.view(), &attention(logits)?.view())?;
            Ok::<_, Error>(wrong.sum() / keys as f64)
        };
        Ok((error(&found)?, error(&trained)?))
    }
}

/// A pattern with a Dirichlet distribution in each row.
fn dirichlet(keys: usize, concentration: f64, rng: &mut ChaCha8Rng) -> Result<Array2<f64>> {
    let gamma = gamma(concentration)?;
    // A weight that underflows has no logit.
    let mut pattern = Array2::from_shape_simple_fn((keys, keys), || rng.sample(gamma).max(f64::MIN_POSITIVE));
    for mut row in pattern.rows_mut() {
        let sum = row.sum();
        row /= sum;
    }
    Ok(pattern)
}

fn gamma(concentration: f64) -> Result<Gamma<f64>> {
    let wrong = |_| Error::argument("dirichlet", "a concentration above 0", concentration);
    Gamma::new(concentration, 1.0).map_err(wrong)
}
