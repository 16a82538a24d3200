//! What does a claim say exactly? Sub-claims, each with a logical form, one primary endpoint, and gates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gate::Gate;
use super::reading::Reading;
use crate::error::{Error, Result};

/// A part of a claim that one experiment decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubClaim {
    /// The claim and the part, such as C1b.
    pub id: String,
    /// What it says, in words.
    pub text: String,
    /// Where it is tested.
    #[serde(default)]
    pub setting: Setting,
    /// How the verdicts on the cases combine.
    pub form: Form,
    /// The primary endpoint.
    pub endpoint: Endpoint,
    /// The cases, such as regimes.
    pub cases: Vec<Contrast>,
    /// What must hold for the sub-claim to be tested at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Gate>,
}

/// Where a sub-claim is tested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Languages of the lab, whose every dependency is known.
    #[default]
    MadeUp,
    /// Models trained on natural text.
    NaturalText,
    /// Pretrained models.
    RealModels,
}

/// The logical form of a sub-claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// It is so in every case.
    Universal,
    /// It is so in at least one case.
    Existential,
    /// It is so in the one case that there is.
    Directional,
    /// An effect differs between conditions, in every case: each contrast is a difference of differences.
    Interaction,
}

/// What is read of each run, and the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The metric, from rows that name no head or layer.
    pub metric: String,
    /// The task, if the metric has one row per task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When in training it is read.
    #[serde(default)]
    pub reading: Reading,
    /// The side of the threshold on which the claim places the effect.
    pub expect: Side,
    /// The threshold: the smallest effect of interest, on the endpoint's own scale.
    pub delta: f64,
    /// What delta is on that scale, such as "half of a share".
    pub scale: String,
    /// The smallest value that the metric can have; by default that of a [known metric](Endpoint::range).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    /// The largest value that the metric can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
    /// Whether the verdict over the runs that learned comes first. If not, as where learning itself is the endpoint, all
    /// runs count and there is one verdict.
    #[serde(default = "yes")]
    pub given_learning: bool,
}

/// The side of the threshold on which a claim places the effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Above delta.
    Above,
    /// Below delta: the effect is too small to matter, or reversed.
    Below,
}

/// One case: the effect of a seed is the weighted sum of the metric over cells (relative to one of them, if it says so),
/// minus `level`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// Its name, such as the regime.
    pub name: String,
    /// Cells and their weights.
    pub terms: Vec<Term>,
    /// A cell whose value the sum is divided by: with the terms `a - b` relative to `a`, the effect is the share by which
    /// the metric falls from a to b. The metric must not be negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_to: Option<String>,
    /// Subtracted from the sum.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub level: f64,
    /// The task, if it differs between cases; otherwise the endpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

/// A cell in a contrast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// The cell.
    pub cell: String,
    /// Its weight.
    pub weight: f64,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Metrics of the lab with a bounded scale: name, smallest and largest value.
const RANGES: [(&str, f64, f64); 28] = [
    ("accuracy", 0.0, 1.0),
    ("cka", 0.0, 1.0),
    ("division", -1.0, 1.0),
    ("excess_loss", 0.0, 2.0),
    ("gain_over_offset", -1.0, 1.0),
    ("information_division", -1.0, 1.0),
    ("information_specialisation", 0.0, 1.0),
    ("information_share", 0.0, 1.0),
    ("key_overlap", 0.0, 1.0),
    ("learned", 0.0, 1.0),
    ("order_correlation", -1.0, 1.0),
    ("others_added_share", 0.0, 1.0),
    ("others_gradient_share", 0.0, 1.0),
    ("others_share", 0.0, 1.0),
    ("pattern_divergence", 0.0, 1.0),
    ("pattern_divergence_by_layer", 0.0, 1.0),
    ("position_share", 0.0, 1.0),
    ("query_overlap", 0.0, 1.0),
    ("redundancy", 0.0, 1.0),
    ("role_attention", 0.0, 1.0),
    ("role_beyond", -1.0, 1.0),
    ("role_exclusive", 0.0, 1.0),
    ("specialisation", 0.0, 1.0),
    ("specialisation_null", 0.0, 1.0),
    ("taken", -1.0, 1.0),
    ("target_weight", 0.0, 1.0),
    ("value_overlap", 0.0, 1.0),
    ("write_overlap", 0.0, 1.0),
];

impl Endpoint {
    /// The smallest and largest value that the metric can have, as far as is known: those given here, within those of
    /// the lab's own metrics.
    pub fn range(&self) -> (f64, f64) {
        let known = RANGES.iter().find(|(name, ..)| *name == self.metric);
        let (least, most) = known.map_or((f64::NEG_INFINITY, f64::INFINITY), |&(_, least, most)| (least, most));
        (self.least.unwrap_or(least).max(least), self.most.unwrap_or(most).min(most))
    }

    fn validate(&self) -> Result<()> {
        if !(self.delta.is_finite() && self.delta > 0.0) {
            return Err(Error::argument("delta", "a number above 0", self.delta));
        }
        if self.scale.trim().is_empty() {
            return Err(Error::argument("scale", "what delta is on the endpoint's scale, in words", "nothing"));
        }
        let (least, most) = self.range();
        match least < most {
            true => Ok(()),
            false => Err(Error::argument("least, most", "the smaller value first", format!("{least} and {most}"))),
        }
    }
}

impl Contrast {
    /// A case about one cell.
    pub fn of(name: impl Into<String>, cell: impl Into<String>) -> Self {
        let blank = Self { name: name.into(), terms: vec![], relative_to: None, level: 0.0, task: None };
        blank.plus(1.0, cell)
    }

    /// A case that compares one cell with another.
    pub fn between(name: impl Into<String>, cell: impl Into<String>, other: impl Into<String>) -> Self {
        Self::of(name, cell).plus(-1.0, other)
    }

    /// The share by which the metric falls from one cell to another.
    pub fn fall(name: impl Into<String>, from: impl Into<String>, to: impl Into<String>) -> Self {
        let from = from.into();
        Self { relative_to: Some(from.clone()), ..Self::between(name, from, to) }
    }

    /// Adds a cell with its weight.
    pub fn plus(mut self, weight: f64, cell: impl Into<String>) -> Self {
        self.terms.push(Term { cell: cell.into(), weight });
        self
    }

    /// Subtracts a level.
    pub fn minus(mut self, level: f64) -> Self {
        self.level += level;
        self
    }

    /// Sets the task.
    pub fn task(mut self, task: impl Into<String>) -> Self {
        self.task = Some(task.into());
        self
    }

    /// The cells that it reads.
    pub fn cells(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|term| &term.cell).chain(&self.relative_to).map(String::as_str)
    }

    /// The smallest and largest effect, if the metric lies in `range`. Terms of one cell add up first.
    pub(super) fn attainable(&self, (least, most): (f64, f64)) -> (f64, f64) {
        let mut weights: BTreeMap<&str, f64> = BTreeMap::new();
        self.terms.iter().for_each(|term| *weights.entry(&term.cell).or_default() += term.weight);
        // Relative to a cell, that cell's own value is 1, and any other between 0 and infinity.
        let own = self.relative_to.as_ref().and_then(|cell| weights.remove(cell.as_str())).unwrap_or(0.0);
        let (least, most) = if self.relative_to.is_some() { (0.0, f64::INFINITY) } else { (least, most) };
        let each = |sign: f64| {
            let bound = |weight: &f64| if weight * sign > 0.0 { weight * most } else { weight * least };
            own + weights.values().filter(|weight| **weight != 0.0).map(bound).sum::<f64>() - self.level
        };
        (each(-1.0), each(1.0))
    }

    pub(super) fn validate(&self, cells: &[&str]) -> Result<()> {
        if self.terms.is_empty() {
            return Err(Error::argument("a case's terms", "at least one cell", "none"));
        }
        if let Some(strange) = self.cells().find(|cell| !cells.contains(cell)) {
            return Err(Error::argument("a case's cell", format!("one of {}", cells.join(", ")), strange));
        }
        for term in &self.terms {
            if !(term.weight.is_finite() && self.level.is_finite()) {
                let found = format!("{} and {}", term.weight, self.level);
                return Err(Error::argument("a case's weight and level", "finite numbers", found));
            }
        }
        Ok(())
    }
}

impl SubClaim {
    /// Checks that the sub-claim refers to cells in `cells` only, that its form fits its cases, and that it can succeed
    /// as well as fail: a threshold beyond the largest attainable effect is an error here rather than a verdict later.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first problem.
    pub fn validate(&self, cells: &[&str]) -> Result<()> {
        self.endpoint.validate()?;
        let n = self.cases.len();
        if n == 0 || (self.form == Form::Directional && n != 1) {
            let expected = if n == 0 { "at least one" } else { "one, since the form is directional" };
            return Err(Error::argument("cases", expected, n));
        }
        let mut names: Vec<&str> = self.cases.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument("cases", "unique names", format!("`{}` twice", twice[0])));
        }
        for case in &self.cases {
            case.validate(cells)?;
            self.check_form(case)?;
            self.check_attainable(case)?;
        }
        self.gates.iter().try_for_each(|gate| gate.validate(cells))
    }

    /// An interaction is a difference of differences: at least four cells whose weights cancel.
    fn check_form(&self, case: &Contrast) -> Result<()> {
        let sum: f64 = case.terms.iter().map(|term| term.weight).sum();
        if self.form == Form::Interaction && (case.terms.len() < 4 || sum.abs() > 1e-9) {
            let found = format!("{} cells with weights that sum to {sum} in case {}", case.terms.len(), case.name);
            return Err(Error::argument("an interaction", "a difference of differences over four cells", found));
        }
        Ok(())
    }

    fn check_attainable(&self, case: &Contrast) -> Result<()> {
        let (delta, (least, most)) = (self.endpoint.delta, case.attainable(self.endpoint.range()));
        if least < delta && delta < most {
            return Ok(());
        }
        let cannot = match (self.endpoint.expect, most <= delta) {
            (Side::Above, true) | (Side::Below, false) => "succeed",
            _ => "fail",
        };
        let Endpoint { metric, .. } = &self.endpoint;
        let expected = format!("below the largest effect on {metric} and above the smallest, {least} to {most}");
        Err(Error::argument("delta", expected, format!("{delta}, so that case {} cannot {cannot}", case.name)))
    }

    /// The cells that decide the sub-claim, those of its gates included.
    pub fn cells(&self) -> impl Iterator<Item = &str> {
        let cases = self.cases.iter().chain(self.gates.iter().flat_map(|gate| &gate.cases));
        cases.flat_map(Contrast::cells)
    }
}
