//! The lab: small transformers trained on languages whose structure is known, with the forward pass that serves pretrained
//! models, so that every probe works on them at every step.
//!
//! | where | what |
//! |---|---|
//! | [`language`] | sequences with annotated dependencies: tasks, repeated sequences, a small English |
//! | [`train`] | a model trained on a language: options, checkpoints, the trace |
//! | [`Declaration`] | a model, a language and how to train, as data; some have names |

pub mod language;
pub mod train;

mod declaration;

pub use declaration::Declaration;
pub use language::Language;
pub use train::{TrainOptions, Trained, Trainer};
