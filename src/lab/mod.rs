//! The lab: small transformers trained on languages whose structure is known, with the forward pass that serves pretrained
//! models, so that every probe works on them at every step.
//!
//! | where | what |
//! |---|---|
//! | [`language`] | sequences with annotated dependencies: tasks, repeated sequences, a small English |

pub mod language;

pub use language::Language;
