//! What does a claim predict, and by which rule is it judged? Data written before the run.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lab::verdict::Reading;

/// A prediction that a claim makes about a metric in some cells.
///
/// Its effect is computed for each seed: the metric in a case's `cell` minus the metric in the cell `against` which it
/// is compared, or minus `level` if there is no such cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// The claim: C1 to C6, or a custom name.
    pub claim: String,
    /// The prediction in words.
    pub text: String,
    /// The metric to read, from rows that name no head or layer.
    pub metric: String,
    /// The task, if the metric has one row per task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The training step at which the metric is read.
    #[serde(default)]
    pub reading: Reading,
    /// The predicted sign of the effect.
    pub expect: Expect,
    /// The smallest effect of interest, in units of the metric.
    pub smallest: f64,
    /// The value with which the metric is compared in cases that name no other cell.
    #[serde(default)]
    pub level: f64,
    /// Whether only runs that learned the tasks count: see [`Rule::learned`].
    #[serde(default = "yes")]
    pub learned: bool,
    /// The cases in which the prediction is tested; a claim that holds in some and fails in others is mixed.
    pub cases: Vec<Case>,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name, such as the regime.
    pub name: String,
    /// The cell whose metric is read.
    pub cell: String,
    /// The cell with which it is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Cells in the order in which the metric should rise; a trend test over them is reported, but does not affect the
    /// verdict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trend: Vec<String>,
}

/// What a claim predicts about an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// Above 0, by more than the smallest effect of interest.
    Greater,
    /// Below 0, by more than the smallest effect of interest.
    Less,
    /// No effect: within the smallest effect of interest on either side of 0.
    Zero,
}

/// How evidence becomes a verdict: the same rule for every prediction, fixed before the run.
///
/// Let d be the effects of the seeds and delta the smallest effect of interest. In one case, a prediction that the
/// effects are above 0 is
///
/// - *supported* if the BCa interval of the mean of d lies above delta and an exact sign-flip test of d - delta
///   rejects;
/// - *refuted* if the interval lies below 0 and the sign-flip test of d rejects on that side, or if two one-sided tests
///   find the mean within delta of 0;
/// - *inconclusive* otherwise, or if fewer than `least_seeds` pairs of runs learned.
///
/// A prediction of no effect is supported if the effect is found within delta of 0, and refuted if the interval lies
/// beyond delta on either side and the sign-flip test of d beyond delta rejects. Each of the three kinds of p-value is
/// corrected (Holm) over all cases of the same claim in the experiment.
///
/// A prediction, or a claim with several predictions, is supported or refuted if all its parts are, mixed if some are
/// supported and some refuted, and inconclusive otherwise.
///
/// If a case orders cells, the p-value of a trend is reported but does not affect the verdict. Runs with the same seed
/// in several cells are not independent samples: if cells share seeds, the seeds present in all cells are the blocks of
/// Page's test (for two cells: of a sign-flip test); if they share none, the test is Jonckheere's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Significance level of the tests.
    pub alpha: f64,
    /// Confidence level of the intervals.
    pub interval: f64,
    /// Minimum number of pairs of runs needed to decide a case.
    pub least_seeds: usize,
    /// A run has learned if its final `excess_loss` is at most this. The excess loss is the mean over tasks of
    /// `(loss - floor) / (chance - floor)`. Runs without that metric count as learned.
    pub learned: f64,
}

impl Default for Rule {
    fn default() -> Self {
        Self { alpha: 0.05, interval: 0.95, least_seeds: 8, learned: 0.5 }
    }
}

fn yes() -> bool {
    true
}

impl Rule {
    /// Checks that the numbers are valid.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first invalid one.
    pub fn validate(&self) -> Result<()> {
        crate::stats::check_probability("alpha", self.alpha)?;
        crate::stats::check_probability("interval", self.interval)?;
        if self.least_seeds < 2 {
            return Err(Error::argument("least_seeds", "at least 2", self.least_seeds));
        }
        match self.learned.is_finite() {
            true => Ok(()),
            false => Err(Error::argument("learned", "a finite number", self.learned)),
        }
    }
}

impl Prediction {
    /// Checks that the prediction refers only to cells in `cells`, and that its numbers are valid.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first problem.
    pub fn validate(&self, cells: &[&str]) -> Result<()> {
        if !(self.smallest.is_finite() && self.smallest > 0.0 && self.level.is_finite()) {
            let found = format!("{} and {}", self.smallest, self.level);
            return Err(Error::argument("smallest, level", "a number above 0 and a finite one", found));
        }
        if self.cases.is_empty() {
            return Err(Error::argument("cases", "at least one", "none"));
        }
        for case in &self.cases {
            for name in [&case.cell].into_iter().chain(&case.against).chain(&case.trend) {
                if !cells.contains(&name.as_str()) {
                    return Err(Error::argument("a prediction's cell", format!("one of {}", cells.join(", ")), name));
                }
            }
            if case.trend.len() == 1 {
                return Err(Error::argument("trend", "at least two cells", 1));
            }
        }
        Ok(())
    }
}
