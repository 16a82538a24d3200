//! What do the weights of heads say, without a forward pass? Linear algebra on their circuits.
//!
//! Row vectors are on the left: a head attends by `x_q W_Q W_K^T x_k^T` and moves `x W_V W_O`. Everything is float64.
//!
//! | question | where |
//! |---|---|
//! | what does a head attend to, what does it move? | [`HeadWeights::qk`], [`HeadWeights::ov`], as [`Factored`] products |
//! | in how many dimensions? | [`Factored::svd`], [`Ranks`], [`null_spectra`], [`Circuits::svd`] |
//! | what does a lower rank cost? | [`TruncationError`], [`Circuits::truncation`], [`Factored::inner_truncation`]; in loss: [`truncation_costs`](crate::heads::truncation_costs) |
//! | how much rank does attention need? | [`Circle`], [`logit_spectrum`] |
//! | which patterns can a head of this width produce? | [`pattern_logits`], [`queries_and_keys`], [`closest_logits`], [`trained_logits`] |
//! | which heads read which? | [`composition`], [`Circuits::composition`] |
//! | do heads of a layer use the same directions? | [`Circuits::alignments`], [`Circuits::redundancy`] |
//! | which heads are alike? | [`Subspace`], [`Circuits::similarities`], [`Dendrogram`] |
//! | does a head copy tokens? | [`copying_score`], [`diagonal_ranks`], [`top_k_accuracy`] |
//!
//! [`Model::circuits`](crate::model::Model::circuits) gets the weights from a model.

mod alignment;
mod blas;
mod circle;
mod composition;
mod dendrogram;
mod factored;
mod heads;
mod inner;
mod lapack;
mod reach;
mod similarity;
mod spectrum;
mod subspace;
mod svd;
mod tables;
mod truncation;
mod vocabulary;

pub use alignment::Side;
pub use circle::{Circle, attention, logit_spectrum};
pub use composition::{Composition, CompositionScores, composition};
pub use dendrogram::{Dendrogram, Linkage, Merge};
pub use factored::Factored;
pub use heads::{Circuit, Circuits, HeadWeights, Offset};
pub use ndarray_linalg::c64;
pub use reach::{Search, closest_logits, misplaced, pattern_logits, queries_and_keys, trained_logits};
pub use similarity::{Measure, Similarity};
pub use spectrum::{Null, NullOptions, Ranks, null_spectra, random_frame};
pub use subspace::{Subspace, random_overlap, rotated};
pub use svd::{BlockOverlap, Svd};
pub use truncation::TruncationError;
pub use vocabulary::{copying_score, diagonal_ranks, top_k, top_k_accuracy};
