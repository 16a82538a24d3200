//! Verdicts: what the evidence says of a claim, by a rule that was fixed before the run.
//!
//! | where | what |
//! |---|---|
//! | [`Prediction`], [`Rule`] | what a claim predicts, and how evidence becomes a verdict, as data |
//! | [`Evidence`] | an experiment's table as effects of seeds |
//! | [`judge`] | the verdict, with intervals, corrected p-values and runs that did not learn |
//!
//! No verdict is written by hand anywhere.

mod evidence;
mod judge;
mod rule;
mod words;

pub use evidence::{EXCESS_LOSS, Evidence, Runs};
pub use judge::{Finding, Judged, Judgement, Verdict, claims, judge};
pub use rule::{Case, Expect, Prediction, Reading, Rule};
