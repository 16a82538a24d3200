//! Causal questions: change an activation, measure what becomes of the output.
//!
//! | where | what |
//! |---|---|
//! | [`Sweep`] | many variants of one run, computed together, as one table |
//! | [`Ablation`] | what a head is replaced with |
//! | [`Metric`], [`Answer`] | what is measured |

mod ablation;
mod engine;
mod metric;
mod sweep;

pub use ablation::Ablation;
pub use metric::{Answer, Metric};
pub use sweep::{Every, Strategy, Sweep, Variant};
