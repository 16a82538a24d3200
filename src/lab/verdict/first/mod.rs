//! How did the first round judge its claims? By a rule that is kept for comparison: its verdicts are printed once beside
//! those of the [rule in force](super::Rule), on the same tables.
//!
//! What was wrong with it: *refuted* demanded an effect equivalent to zero, one undecided part outvoted any number of
//! refuted ones, and Holm's correction was applied on top of "all parts must hold", so that adding a question could undo
//! the verdict on another.

mod judge;
mod rule;
mod words;

pub use judge::{Finding, Judged, Verdict, claims, judge};
pub use rule::{Case, Expect, Prediction, Rule};
