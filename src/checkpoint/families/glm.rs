//! How does a GLM 4 checkpoint map to a model? Llama with rotary positions of neighbouring coordinates in half of each head,
//! biases of queries, keys and values, and both projections of the MLP in one matrix; in the later one with norms on the
//! outputs of sub-layers.

use serde_json::json;

use super::keys::Rope;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormPlace};

pub(super) const GLM: Family = Family { name: "glm", config: glm, tensors: Tensors::Named(NAMES) };
pub(super) const GLM4: Family = Family { name: "glm4", config: glm4, tensors: Tensors::Named(SANDWICH) };

const NAMES: Names = Names { inside: &[("gate_in", "mlp.gate_up_proj")], ..llama::NAMES };

const SANDWICH: Names = Names {
    inside: &[
        ("gate_in", "mlp.gate_up_proj"),
        ("ln1_post", "post_self_attn_layernorm"),
        ("ln2_post", "post_mlp_layernorm"),
    ],
    ..llama::NAMES
};

/// What both have in common.
fn common(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    let json = &json.assuming([
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1.5625e-7)),
    ]);
    let rope = Rope { share: Some(0.5), interleaved: true, ..Rope::default() };
    Ok(ModelConfig { qkv_bias: json.bool_or("attention_bias", true)?.into(), ..keys::llama_with(json, family, rope)? })
}

fn glm(json: &ConfigJson) -> Result<ModelConfig> {
    common(json, "glm")
}

fn glm4(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig { norm_place: NormPlace::Sandwich, ..common(json, "glm4")? })
}
