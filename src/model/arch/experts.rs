//! Which experts share the work of an MLP?

use serde::{Deserialize, Serialize};

use super::config::is_default;

/// Experts: MLPs, a few of which a router chooses at each position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many there are.
    pub n: usize,
    /// How many are chosen.
    pub top_k: usize,
    /// Whether the weights of the chosen ones are divided by their sum.
    pub normalised: bool,
    /// Whether the router's scores have a bias (gpt-oss).
    #[serde(default, skip_serializing_if = "is_default")]
    pub router_bias: bool,
    /// An MLP beside them that serves every position (Qwen 2 MoE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedExpert>,
}

/// An MLP beside the experts that serves every position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpert {
    /// Width of its hidden layer.
    pub d_mlp: usize,
    /// Whether its output is multiplied by the sigmoid of a learned score of the position.
    pub gated: bool,
}
