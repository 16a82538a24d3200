//! What do attention heads learn, and why do they specialise? The lab trains small transformers on languages with known
//! structure and runs experiments that judge claims about their heads. Models use the same forward pass as pretrained
//! ones, so every probe works on them at every step of training.
//!
//! | where | what |
//! |---|---|
//! | [`language`] | sequences with annotated dependencies: tasks, repeated sequences, a small English |
//! | [`train`] | training a model on a language: options, checkpoints, the trace |
//! | [`trace`] | importance, attention, outputs and gradients of heads, for many models at once |
//! | [`llc`] | local learning coefficients, of all parameters or refined to a head |
//! | [`Declaration`] | a model, a language and training options, as data; some are named |
//! | [`experiment`] | claims tested by grids of cells: E1 to E15 |
//! | [`verdict`] | judging a claim from the evidence, by a rule fixed before the run |
//! | [`Answer`] | what all experiments say: a table and a few paragraphs, computed |
//! | [`report()`] | the findings of experiments as one page |

pub mod experiment;
pub mod language;
pub mod llc;
pub mod trace;
pub mod train;
pub mod verdict;

mod answer;
mod declaration;
mod differences;
mod prepared;
mod report;
mod streams;

pub use answer::{Answer, Tongue};
pub use declaration::Declaration;
pub use experiment::{Experiment, Grid, Results, RunOptions};
pub use language::Language;
pub use report::{effects, report};
pub use train::{TrainOptions, Trained, Trainer};
pub use verdict::{Judged, Judgement, Reading, Verdict};
