//! What a claim predicts and by which rule it is judged, as data that is written before the run.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One prediction of a claim about a metric of some cells.
///
/// Its effect is, seed by seed, the metric in a case's `cell` minus that in the cell it is held `against` (or minus
/// `level`, where there is none).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// The claim: C1 to C6, or a name of your own.
    pub claim: String,
    /// The prediction in words.
    pub text: String,
    /// The metric whose rows are read: those that name no head.
    pub metric: String,
    /// The task, where the metric has one row for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// At which step of training.
    #[serde(default)]
    pub reading: Reading,
    /// What the claim says of the effect.
    pub expect: Expect,
    /// The smallest effect that is of interest, in the metric's unit.
    pub smallest: f64,
    /// What the metric is held against where a case names no other cell.
    #[serde(default)]
    pub level: f64,
    /// Whether runs count only where the tasks were learned: see [`Rule::learned`].
    #[serde(default = "yes")]
    pub learned: bool,
    /// Where the prediction is tested; a claim that holds in some and fails in others is mixed.
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
    /// The cell that it is held against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Cells in the order in which the metric should rise: a trend test is reported beside, and does not decide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trend: Vec<String>,
}

/// At which step a metric is read.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// At the last step of each run.
    #[default]
    End,
    /// At the first recorded step of each run whose `excess_loss` is at most this: cells compared at matched loss.
    AtExcessLoss(f64),
}

/// What a claim says of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// It is above 0, by more than the smallest effect of interest.
    Greater,
    /// It is below 0, by more than the smallest effect of interest.
    Less,
    /// It is none: it lies within the smallest effect of interest on either side.
    Zero,
}

/// How evidence becomes a verdict: the same rule for every prediction, fixed before the run.
///
/// With d the effects of the seeds and delta the smallest effect of interest, a prediction that they are above 0 is, in one
/// case,
///
/// - *supported* where the BCa interval of the mean of d lies beyond delta and an exact sign-flip test of d - delta rejects;
/// - *refuted* where the interval lies below 0 and the sign-flip test of d rejects on that side, or where two one-sided
///   tests find the mean within delta of 0;
/// - *inconclusive* otherwise, and where fewer than `least_seeds` pairs of runs learned.
///
/// A prediction of no effect is supported where the effect is found within delta of 0, and refuted where the interval lies
/// beyond delta on either side and the sign-flip test of d beyond it rejects. Each of the three kinds of p-value is
/// corrected (Holm) for all cases of the same claim in the experiment.
///
/// A prediction, and a claim with several, is supported or refuted where all its parts are, mixed where some are supported
/// and some refuted, and inconclusive otherwise.
///
/// Where a case orders cells, the chance of a trend is reported, and decides nothing. Runs of one seed in several cells are no
/// independent samples: where cells share seeds, those that all of them have are the blocks of Page's test (of two cells: of a
/// sign-flip test); where they share none, the test is Jonckheere's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// The level of the tests.
    pub alpha: f64,
    /// The level of the intervals.
    pub interval: f64,
    /// The fewest pairs of runs that a case can be decided on.
    pub least_seeds: usize,
    /// A run has learned where its `excess_loss` at the end is at most this: the mean over tasks of
    /// (loss - floor) / (chance - floor). Runs without that metric count as learned.
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
    /// Fails where a number makes no sense.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        crate::stats::check_probability("alpha", self.alpha)?;
        crate::stats::check_probability("interval", self.interval)?;
        if self.least_seeds < 2 {
            return Err(Error::argument("least_seeds", "2 or more", self.least_seeds));
        }
        match self.learned.is_finite() {
            true => Ok(()),
            false => Err(Error::argument("learned", "a finite number", self.learned)),
        }
    }
}

impl Prediction {
    /// Fails where it names a cell that is not among `cells`, or a number makes no sense.
    ///
    /// # Errors
    /// [`Error::Argument`] saying which.
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
                return Err(Error::argument("trend", "two cells or more", 1));
            }
        }
        Ok(())
    }
}
