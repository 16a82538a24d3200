//! What is a model made of? Its configuration, the wiring of its blocks, its weights.

mod config;
mod init;
mod sites;
mod validate;
mod weights;
mod wiring;

pub use config::{
    Activation, EmbedProjection, Experts, LayerConfig, LayerRotary, ModelConfig, NormKind, NormPlace, Parallel,
    Position, QkNorm, QkvBias, Rotary, RotaryScaling, Unembed,
};
pub(crate) use init::Spread;
pub(crate) use weights::{Attention, Block, Linear, Make, Mlp, Norm, Transform, Unembedding, Weights};
pub(crate) use wiring::{Attend, BlockWiring, Cut, NormAt, Op, ScoreBias, Size, Step, Wire, Wires, Wiring};
