//! What must hold for a sub-claim to be tested at all? Theorems, checks of the manipulation, and controls.

use serde::{Deserialize, Serialize};

use super::claim::Contrast;
use super::evidence::{Effects, Evidence, Over};
use super::reading::Reading;
use super::rule::{Look, Rule};
use crate::error::{Error, Result};
use crate::stats::{Interval, Student};

/// A condition for a sub-claim to be tested. A gate that fails makes it *untested* and says why; gates are no part of
/// the verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// What must hold, in words.
    pub text: String,
    /// The metric. `learned` is 1 for a run that learned and 0 for one that did not.
    pub metric: String,
    /// The task, if the metric has one row per task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When in training it is read.
    #[serde(default)]
    pub reading: Reading,
    /// Where the effect must lie.
    pub limit: Limit,
    /// The cases; all must hold. All runs count.
    pub cases: Vec<Contrast>,
}

/// Where the effect of a gate must lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Above this.
    Above(f64),
    /// Below this.
    Below(f64),
    /// Within this of 0.
    Within(f64),
}

/// What was found about a gate in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateFinding {
    /// The gate, in words.
    pub gate: String,
    /// The case.
    pub case: String,
    /// The mean effect with its interval; `None` with fewer than two values.
    pub interval: Option<Interval>,
    /// `Some(true)` if it holds, `Some(false)` if it fails, `None` if that is not decided.
    pub holds: Option<bool>,
}

impl Limit {
    /// Whether the mean lies where it must, at a one-sided level; `None` if neither side is sure.
    fn decide(self, mean: &Student, alpha: f64) -> Option<bool> {
        let (above, below) = (|x| mean.p_above(x) <= alpha, |x| mean.p_below(x) <= alpha);
        let side = |yes: bool, no: bool| if yes { Some(true) } else { no.then_some(false) };
        match self {
            Self::Above(x) => side(above(x), below(x)),
            Self::Below(x) => side(below(x), above(x)),
            Self::Within(x) => side(above(-x) && below(x), above(x) || below(-x)),
        }
    }

    fn number(self) -> f64 {
        match self {
            Self::Above(x) | Self::Below(x) | Self::Within(x) => x,
        }
    }
}

impl Gate {
    pub(super) fn validate(&self, cells: &[&str]) -> Result<()> {
        if self.cases.is_empty() || !self.limit.number().is_finite() {
            let found = format!("{} cases, {:?}", self.cases.len(), self.limit);
            return Err(Error::argument("a gate", "at least one case and a finite limit", found));
        }
        self.cases.iter().try_for_each(|case| case.validate(cells))
    }

    /// The cases that `before`, an earlier look, left undecided; all without one.
    pub(super) fn open<'a>(&'a self, before: &'a [GateFinding]) -> impl Iterator<Item = &'a Contrast> {
        self.cases.iter().filter(|case| self.decided(case, before).is_none())
    }

    /// What an earlier look decided about a case.
    fn decided<'a>(&self, case: &Contrast, before: &'a [GateFinding]) -> Option<&'a GateFinding> {
        before.iter().find(|found| found.gate == self.text && found.case == case.name && found.holds.is_some())
    }

    /// What the first seeds of a look say about the gate; cases that were decided `before` keep their findings.
    pub(super) fn found(
        &self,
        look: &Look,
        rule: &Rule,
        evidence: &Evidence,
        before: &[GateFinding],
    ) -> Result<Vec<GateFinding>> {
        let each = |case: &Contrast| {
            if let Some(decided) = self.decided(case, before) {
                return Ok(decided.clone());
            }
            let (task, over) = (case.task.as_ref().or(self.task.as_ref()), Over::All);
            let asked = Effects { metric: &self.metric, task, reading: self.reading, over, rule };
            let values: Vec<f64> = evidence.effects(case, &asked, look.seeds).into_values().collect();
            let mean = (values.len() >= 2).then(|| Student::of_mean(&values)).transpose()?;
            let holds = mean.as_ref().and_then(|mean| self.limit.decide(mean, look.alpha));
            let interval = mean.map(|mean| mean.interval(look.alpha)).transpose()?;
            Ok(GateFinding { gate: self.text.clone(), case: case.name.clone(), interval, holds })
        };
        self.cases.iter().map(each).collect()
    }
}
