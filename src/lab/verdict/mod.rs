//! What does the evidence say about a claim? Sub-claims with one endpoint each, judged by a rule that is fixed before the
//! run.
//!
//! | where | what |
//! |---|---|
//! | [`SubClaim`], [`Endpoint`], [`Contrast`], [`Gate`] | what a claim says exactly, as data |
//! | [`Rule`], [`Look`] | how evidence becomes a verdict: looks at more and more seeds, one-sided decisions |
//! | [`Evidence`] | an experiment's table as effects by seed |
//! | [`judge`] | the verdict, over the runs that learned and over all runs, with intervals |
//! | [`first`] | the rule of the first round, kept for comparison |
//!
//! No verdict is ever written by hand.

mod claim;
mod evidence;
pub mod first;
mod gate;
mod judge;
mod reading;
mod rule;
mod words;

pub use claim::{Contrast, Endpoint, Form, Setting, Side, SubClaim, Term};
pub use evidence::{EXCESS_LOSS, Evidence, LEARNED, Runs};
pub use gate::{Gate, GateFinding, Limit};
pub use judge::{Decided, Finding, Judged, Judgement, Magnitude, Verdict, judge};
pub use reading::Reading;
pub use rule::{Look, Rule};
