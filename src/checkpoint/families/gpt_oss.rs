//! How does a gpt-oss checkpoint map to a model? Llama with attention sinks, windows in every second layer, and experts whose
//! matrices are stacked, with a gate that is cut off. Only weights that are not quantised are read.

use serde_json::json;

use super::keys::{Rope, rotary};
use super::names::{GateIn, Names};
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, Experts, ModelConfig, Position};

pub(super) const FAMILY: Family = Family { name: "gpt_oss", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[
        ("ln1", "input_layernorm"),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.o_proj"),
        ("sinks", "self_attn.sinks"),
        ("ln2", "post_attention_layernorm"),
        ("router", "mlp.router"),
        ("experts.gate_in", "mlp.experts.gate_up_proj"),
        ("experts.out", "mlp.experts.down_proj"),
    ],
    gate_in: GateIn::Alternating,
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("swiglu_alpha", &json!(1.702))?;
    let like = keys::llama(json, "gpt_oss")?;
    let (bias, window) = (json.bool_or("attention_bias", true)?, json.opt_usize("sliding_window")?);
    let rope = Rope { base: 150_000.0, ..Rope::default() };
    let experts = Experts {
        n: json.usize(json.first(&["num_local_experts", "num_experts"]))?,
        top_k: json.usize(json.first(&["num_experts_per_tok", "experts_per_token"]))?,
        normalised: true,
        router_bias: true,
        shared: None,
    };
    Ok(ModelConfig {
        position: Position::Rotary(rotary(json, like.d_head, rope)?),
        sinks: true,
        layers: keys::windows(json, like.n_layers, window, |layer| window.is_some() && layer.is_multiple_of(2))?,
        // Whatever `hidden_act` says.
        activation: Activation::GeluQuick,
        gate_limit: Some(json.opt_f64("swiglu_limit")?.unwrap_or(7.0)),
        experts: Some(experts),
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: true,
        ..like
    })
}
