//! The lab: small transformers trained on languages whose structure is known, with the forward pass that serves pretrained
//! models, so that every probe works on them at every step; and experiments that judge claims about heads on them.
//!
//! | where | what |
//! |---|---|
//! | [`language`] | sequences with annotated dependencies: tasks, repeated sequences, a small English |
//! | [`train`] | a model trained on a language: options, checkpoints, the trace |
//! | [`trace`] | what heads are worth, where they look, what pulls at them, for many models at once |
//! | [`Declaration`] | a model, a language and how to train, as data; some have names |
//! | [`experiment`] | a claim tested by a grid of cells: E1 to E8 |
//! | [`verdict`] | what the evidence says of a claim, by a rule fixed before the run |
//! | [`report()`] | what experiments found, as one page |

pub mod experiment;
pub mod language;
pub mod trace;
pub mod train;
pub mod verdict;

mod declaration;
mod differences;
mod prepared;
mod report;
mod streams;

pub use declaration::Declaration;
pub use experiment::{Experiment, Grid, Results, RunOptions};
pub use language::Language;
pub use report::{effects, overview, report};
pub use train::{TrainOptions, Trained, Trainer};
pub use verdict::{Judged, Verdict};
