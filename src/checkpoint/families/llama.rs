//! How does a Llama checkpoint map to a model? RMSNorm before each sub-layer, rotary positions, grouped key/value heads, a
//! gated MLP.

use serde_json::json;

use super::names::Names;
use super::{Family, Tensors, keys};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "llama", config, tensors: Tensors::Named(NAMES) };

/// The names of Llama, which many families share.
pub(super) const NAMES: Names = Names {
    prefix: "model.",
    outside: &[("w_e", "embed_tokens"), ("ln_final", "norm")],
    block: "layers.{}.",
    otherwise: &[
        ("ln1", "input_layernorm"),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.o_proj"),
        ("q_norm", "self_attn.q_norm"),
        ("k_norm", "self_attn.k_norm"),
        ("ln2", "post_attention_layernorm"),
        ("gate", "mlp.gate_proj"),
        ("in", "mlp.up_proj"),
        ("out", "mlp.down_proj"),
    ],
    head: &[("u", "lm_head")],
    // Old checkpoints store the rotary frequencies as a buffer.
    superfluous: &[".rotary_emb.inv_freq"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("pretraining_tp", &json!(1))?;
    Ok(ModelConfig {
        mlp_bias: json.bool_or("mlp_bias", false)?,
        ..keys::attention_bias(json, false, keys::llama(json, "llama")?)?
    })
}
