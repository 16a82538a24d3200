//! Causal questions: change an activation, measure what becomes of the output.
//!
//! | where | what |
//! |---|---|
//! | [`Sweep`] | many variants of one run, computed together, as one table |
//! | [`Every`], [`subsets`] | along which axes it has variants, or of which sets of parts |
//! | [`Ablation`] | what a head is replaced with |
//! | [`direct_attribution`], [`logit_lens`] | what each part writes towards an answer, and what is known at each depth |
//! | [`Paths`] | which part tells which: path patching from senders to receivers |
//! | [`Estimate`] | the same from gradients |
//! | [`shapley`], [`shapley_values`] | what heads do together, shared out among them |
//! | [`Metric`], [`Answer`] | what is measured |

mod engine;
mod metric;
mod paths;
mod sweep;

pub use engine::{Explanation, PlannedGroup, Strategy, Variant};
pub use metric::{Answer, Metric, Reading, direct_attribution, logit_lens};
pub use paths::{Input, Node, Paths};
pub(crate) use sweep::MOST;
pub use sweep::{
    Ablation, Estimate, Every, Sampling, ShapleyOptions, Subsets, Sweep, shapley, shapley_values, subsets,
};
