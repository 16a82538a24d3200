//! What is a model made of? Its configuration, the wiring of its blocks, its weights.

mod attend;
mod config;
mod init;
mod sites;
mod size;
mod validate;
mod weights;
mod wire;
mod wiring;

pub(crate) use attend::{Attend, ScoreBias};
pub use config::{
    Activation, EmbedProjection, Experts, LayerConfig, LayerRotary, LmHead, ModelConfig, NormKind, NormPlace, Parallel,
    Position, QkNorm, QkvBias, Rotary, RotaryScaling, SharedExpert, Unembed,
};
pub(crate) use init::Spread;
pub(crate) use size::PassSize;
pub(crate) use weights::{Block, Linear, Make, Mlp, Norm, Shared, Unembedding, Weights};
pub(crate) use wire::{Wire, Wires};
pub(crate) use wiring::{BlockWiring, Cut, NormAt, Op, Size, Step, Wiring};
