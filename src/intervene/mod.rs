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

mod ablation;
mod change;
mod computed;
mod direct;
mod edges;
mod engine;
mod every;
mod gradient;
mod metric;
mod node;
mod outcome;
mod parts;
mod paths;
mod paths_computed;
mod reader;
mod sets;
mod shapley;
mod sweep;

pub use ablation::Ablation;
pub use direct::{direct_attribution, logit_lens};
pub use engine::{Explanation, PlannedGroup};
pub use every::Every;
pub use gradient::Estimate;
pub use metric::{Answer, Metric, Reading};
pub use node::{Input, Node};
pub use paths::Paths;
pub use sets::{Subsets, subsets};
pub(crate) use shapley::MOST;
pub use shapley::{Sampling, ShapleyOptions, shapley, shapley_values};
pub use sweep::{Strategy, Sweep, Variant};
