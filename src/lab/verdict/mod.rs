//! What does the evidence say about a claim? Verdicts, by a rule that was fixed before the run.
//!
//! | where | what |
//! |---|---|
//! | [`Prediction`], [`Rule`] | what a claim predicts, and how evidence becomes a verdict, as data |
//! | [`Evidence`] | an experiment's table as effects by seed |
//! | [`judge`] | the verdict, with confidence intervals, corrected p-values and the number of runs that did not learn |
//!
//! No verdict is ever written by hand.

mod evidence;
mod judge;
mod rule;
mod words;

pub use evidence::{EXCESS_LOSS, Evidence, Runs};
pub use judge::{Finding, Judged, Judgement, Verdict, claims, judge};
pub use rule::{Case, Expect, Prediction, Reading, Rule};
