//! How does a Mixtral checkpoint map to a model? Mistral, with experts instead of MLPs.

use super::keys::{Rope, rotary};
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Experts, ModelConfig, Position};

pub(super) const FAMILY: Family = Family { name: "mixtral", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[
        ("ln1", "input_layernorm"),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.o_proj"),
        ("ln2", "post_attention_layernorm"),
        ("router", "block_sparse_moe.gate"),
        ("experts.gate", "block_sparse_moe.experts.{}.w1"),
        ("experts.in", "block_sparse_moe.experts.{}.w3"),
        ("experts.out", "block_sparse_moe.experts.{}.w2"),
    ],
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama(json, "mixtral")?;
    let window = json.opt_usize("sliding_window")?;
    let rope = Rope { base: 1_000_000.0, ..Rope::default() };
    let experts = Experts {
        n: json.usize(json.first(&["num_local_experts", "num_experts"]))?,
        top_k: json.usize("num_experts_per_tok")?,
        normalised: true,
        router_bias: false,
        shared: None,
    };
    Ok(ModelConfig {
        position: Position::Rotary(rotary(json, like.d_head, rope)?),
        layers: keys::windows(json, like.n_layers, window, |_| window.is_some())?,
        experts: Some(experts),
        ..like
    })
}
