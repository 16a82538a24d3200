//! How does evidence become a verdict? The rule in force, as data.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::check_probability;

/// How evidence becomes a verdict: the same rule for every sub-claim, fixed before the run.
///
/// Let d be the effects of the seeds and delta the smallest effect of interest. At each look, the mean of d gets a
/// t-interval whose bounds both have the look's one-sided level, so that the interval and the test are one. In one case,
/// a claim that the effect is above delta
///
/// - *holds* if the lower bound lies above delta;
/// - *fails* if the upper bound lies below delta;
/// - is otherwise *open* until the next look, and *at the threshold* after the last one.
///
/// A universal sub-claim holds if it holds in every case, without correction (an intersection-union test), and fails if
/// it fails in any, with Holm's correction over its cases; where it holds in one case and fails in another, and their
/// difference is decided too, it *depends on the case*. An existential sub-claim is the mirror image. Cases that are
/// decided at one look are not tested again at the next.
///
/// Gates come first: a theorem, a check of the manipulation or a control that fails makes the sub-claim *untested*.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// The looks, in order: each has more seeds than the one before.
    pub looks: Vec<Look>,
    /// A run has learned if its final `excess_loss` is at most this. The excess loss is the mean over tasks of
    /// `(loss - floor) / (chance - floor)`. Runs without that metric count as learned.
    pub learned: f64,
}

/// A look at the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// The number of seeds.
    pub seeds: usize,
    /// The one-sided level of each decision at this look. The sum over all looks bounds the chance of a wrong one.
    pub alpha: f64,
}

impl Default for Rule {
    fn default() -> Self {
        let look = |(seeds, alpha)| Look { seeds, alpha };
        Self { looks: [(16, 0.01), (32, 0.015), (64, 0.025)].map(look).to_vec(), learned: 0.5 }
    }
}

impl Rule {
    /// Checks that looks grow and that numbers are valid.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first problem.
    pub fn validate(&self) -> Result<()> {
        let seeds: Vec<usize> = self.looks.iter().map(|look| look.seeds).collect();
        if seeds.is_empty() || seeds[0] < 4 || seeds.windows(2).any(|pair| pair[0] >= pair[1]) {
            let found = format!("{seeds:?}");
            return Err(Error::argument("looks", "at least one, each with more seeds, from 4 on", found));
        }
        self.looks.iter().try_for_each(|look| check_probability("alpha", look.alpha))?;
        let sum: f64 = self.looks.iter().map(|look| look.alpha).sum();
        if sum > 0.2 {
            return Err(Error::argument("alpha", "at most 0.2 over all looks", sum));
        }
        match self.learned.is_finite() {
            true => Ok(()),
            false => Err(Error::argument("learned", "a finite number", self.learned)),
        }
    }
}
