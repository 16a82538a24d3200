//! Which activations cause the output? Change them and measure the effect.
//!
//! | item | what it answers |
//! |---|---|
//! | [`Sweep`] | what changes when activations are ablated, patched or edited: many variants of a run, one table |
//! | [`Every`], [`subsets`] | which variants to compute: one per index of an axis, or one per set of components |
//! | [`Ablation`] | what replaces an ablated activation |
//! | [`Paths`] | which component passes information to which: path patching from senders to receivers |
//! | [`Estimate`] | the effects of a sweep or of paths, estimated from gradients |
//! | [`shapley`], [`shapley_values`] | how to divide a joint effect among heads |
//! | [`Residual`], [`accumulated_residual`], [`head_results`] | what the residual stream is a sum of, and how it grows |
//! | [`direct_attribution`] | what each component writes towards an answer |
//! | [`Lens`], [`logit_lens`] | what the model would answer at each depth, and what each head writes |
//! | [`Scan`] | what one looks at first, in one go |
//! | [`Metric`], [`Answer`] | what is measured |

mod engine;
mod lens;
mod metric;
mod paths;
mod residual;
mod scan;
mod sweep;

pub use engine::{At, Estimate, Explanation, PlannedGroup, Strategy, Variant};
pub use lens::{Lens, TunedOptions};
pub use metric::{Answer, Metric, Reading, direct_attribution, logit_lens};
pub use paths::{Input, Node, Paths, Receiver, Sender, Via};
pub use residual::{Residual, Term, accumulated_residual, head_results};
pub use scan::{Scan, ScanOptions};
pub(crate) use sweep::MOST;
pub use sweep::{Ablation, Every, Sampling, ShapleyOptions, Subsets, Sweep, shapley, shapley_values, subsets};
