//! headscope takes trained transformers apart, head by head, to find out why attention heads specialise.
//!
//! ```
//! use headscope::prelude::*;
//!
//! let model = Model::load("fixtures/checkpoints/tiny-gpt2")?; // a folder, a bundled name such as "minilm", or a hub id
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
//! Imports point down only; a test holds them to it.
//!
//! | floor | module | what |
//! |---|---|---|
//! | 4 | [`lab`] | small transformers trained on languages whose structure is known; experiments and verdicts |
//! | 4 | [`view`] | tables and activations to heat maps, line plots, the attention view; what a notebook shows |
//! | 3 | [`heads`] | what a head does: pattern scores, similarity, roles against annotation |
//! | 3 | [`intervene`] | causal questions: sweeps of ablations, metrics |
//! | 2 | [`model`] | configuration, sites, plans, the one forward pass, generation |
//! | 2 | [`checkpoint`] | a folder, a bundled name or a hub id to a [`Model`](model::Model) and its tokenizer |
//! | 2 | [`neural`] | lower bounds on mutual information from trained critics |
//! | 1 | [`circuits`] | what the weights say: QK and OV circuits, their spectra, composition, similarity, copying |
//! | 1 | [`information`] | mutual information and its kin, decompositions, what a probe can use |
//! | 1 | [`stats`] | ranks, random orders |
//! | 1 | [`device`] | CPU and GPU from one build |
//! | 0 | [`table`], [`Error`] | one tidy table, one error |
//!
//! Axes are always called `batch position query key head kv_head d_model d_head d_mlp vocab`; information is in nats.

pub mod checkpoint;
pub mod circuits;
pub mod device;
mod error;
mod file;
pub mod heads;
pub mod information;
pub mod intervene;
pub mod lab;
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
pub mod view;
mod workers;

pub use error::{Error, Result};
