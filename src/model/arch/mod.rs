//! What is a model made of? Its configuration, the wiring of its blocks, its weights.

mod attend;
mod bias;
mod config;
mod encoder;
mod experts;
mod init;
mod rotary;
mod sites;
mod size;
mod source;
mod validate;
mod weights;
mod wire;
mod wiring;

pub(crate) use attend::{Attend, ScoreBias};
pub use bias::QkvBias;
pub use config::{
    Activation, EmbedProjection, LayerConfig, LayerRotary, LmHead, ModelConfig, NormKind, NormPlace, Parallel,
    Position, QkNorm, Unembed,
};
pub use encoder::Encoder;
pub(crate) use encoder::sinusoids;
pub use experts::{Experts, SharedExpert};
pub(crate) use init::Spread;
pub use rotary::{Rotary, RotaryScaling};
pub(crate) use size::PassSize;
pub(crate) use weights::{Attention, Block, Linear, Make, Mlp, Norm, Shared, Unembedding, Weights};
pub(crate) use wire::{Heads, Wire, Wires};
pub(crate) use wiring::{BlockWiring, Cut, NormAt, Op, Size, Step, Wiring};
