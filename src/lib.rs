//! Why do attention heads specialise? headscope takes trained transformers apart, head by head, to find out.
//!
//! ```
//! use headscope::prelude::*;
//!
//! let model = Model::load("fixtures/checkpoints/tiny-gpt2")?; // a folder, a bundled name such as "smollm2", or a hub id
//! let tokens = model.tokens(&["the cat sat on the mat", "a dog ran in the park"])?;
//!
//! let run = model.run(&tokens, &Plan::new().tap(Site::Pattern(1)))?; // [batch, head, query, key]
//! let picture = view::attention(&run, 1)?; // interactive, offline
//!
//! let effects = Sweep::ablate(&model, &tokens, Ablation::Mean).metric(Metric::Loss).run()?; // one tidy table
//! let map = effects.heatmap("layer", "head")?;
//! # assert!(picture.as_str().len() > 1000 && map.as_str().starts_with("<svg"));
//! # Ok::<(), headscope::Error>(())
//! ```
//!
//! # What is where
//!
//! Imports only point down, from a higher floor to a lower one; a test enforces it.
//!
//! | floor | module | what |
//! |---|---|---|
//! | 9 | [`lab`] | small transformers trained on languages of known structure; experiments and verdicts |
//! | 8 | [`view`] | heat maps, line plots and the attention view, from tables and activations |
//! | 7 | [`verify`] | is a checkpoint computed as its authors meant it? Invariants, and another implementation site by site |
//! | 7 | [`heads`] | what a head does: its weights, pattern scores, similarity, roles, information |
//! | 6 | [`intervene`] | causal questions: ablation, patching, paths, attribution, metrics |
//! | 6 | [`checkpoint`] | a [`Model`](model::Model) and its tokenizer from a folder, a GGUF file, a bundled name or a hub id |
//! | 6 | [`neural`] | lower bounds on mutual information from trained critics |
//! | 5 | [`model`] | configuration, plans, the forward pass, generation |
//! | 5 | [`information`] | mutual information, its decompositions, what a probe can use |
//! | 4 | [`circuits`] | what the weights say: QK and OV circuits, their spectra, composition, similarity, copying |
//! | 4 | [`stats`] | ranks, bootstrap intervals, permutation tests |
//! | 3 | [`table`] | tidy tables with provenance |
//! | 3 | [`text`] | prompts as token ids, pairs of them with answers and named positions, the tokenizer |
//! | 3 | [`device`] | CPU and GPU from one build |
//! | 3 | `tensors` | named tensors on disk, their hash, and fast products |
//! | 2 | `file`, `lbfgs`, `progress`, `take`, `workers` | files written whole, the minimum of a smooth function, progress bars, limits, threads |
//! | 1 | [`Error`] | the one error type |
//! | 0 | [`site`], `memory` | the names of the places in a model; how much memory is free |
//!
//! [`rust_in_a_notebook`] is a page for people who know Python.
//!
//! Axes are always called `batch position query key head kv_head d_model d_head d_mlp vocab`; information is in nats.

//!
//! Whoever knows TransformerLens finds each of its common calls beside ours in [`from_transformer_lens`].

#[cfg(test)]
extern crate self as headscope; // unit tests share tests/common with the integration tests

pub mod checkpoint;
pub mod circuits;
pub mod device;
mod error;
mod file;
pub mod heads;
pub mod information;
pub mod intervene;
pub mod lab;
mod lbfgs;
mod memory;
pub mod model;
pub mod neural;
pub mod prelude;
mod progress;
pub mod site;
pub mod stats;
pub mod table;
mod take;
mod tensors;
pub mod text;
pub mod verify;
pub mod view;
mod workers;

#[doc = include_str!("../docs/rust-in-a-notebook.md")]
pub mod rust_in_a_notebook {}
#[doc = include_str!(concat!(env!("OUT_DIR"), "/from-transformer-lens.md"))]
pub mod from_transformer_lens {}

pub use error::{Error, Result};
