//! How does a Mixtral checkpoint map to a model? Mistral, with experts instead of MLPs.

use serde_json::json;

use super::keys::Rope;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Experts, ModelConfig};

pub(super) const FAMILY: Family = Family { name: "mixtral", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[
        ("router", "block_sparse_moe.gate"),
        ("experts.gate", "block_sparse_moe.experts.{}.w1"),
        ("experts.in", "block_sparse_moe.experts.{}.w3"),
        ("experts.out", "block_sparse_moe.experts.{}.w2"),
    ],
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("rms_norm_eps", json!(1e-5))]);
    let like = keys::llama_with(json, "mixtral", Rope { base: 1_000_000.0, ..Rope::default() })?;
    let experts = Experts {
        n: json.usize(json.first(&["num_local_experts", "num_experts"]))?,
        top_k: json.usize("num_experts_per_tok")?,
        normalised: true,
        router_bias: false,
        shared: None,
    };
    Ok(ModelConfig { layers: keys::same_windows(json, like.n_layers)?, experts: Some(experts), ..like })
}
