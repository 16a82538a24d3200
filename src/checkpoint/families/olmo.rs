//! How does an OLMo or OLMo 2 checkpoint map to a model? Llama, in OLMo with LayerNorms without weights, in OLMo 2 with
//! RMSNorms on the outputs of sub-layers and on all queries and keys.

use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind, NormPlace, QkNorm};

pub(super) const OLMO: Family = Family { name: "olmo", config: olmo, tensors: Tensors::Named(PLAIN) };
pub(super) const OLMO2: Family = Family { name: "olmo2", config: olmo2, tensors: Tensors::Named(OUTPUT) };

const PLAIN: Names = Names {
    outside: &[("w_e", "embed_tokens"), ("ln_final", "")],
    inside: &[
        ("ln1", ""),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.o_proj"),
        ("ln2", ""),
        ("gate", "mlp.gate_proj"),
        ("in", "mlp.up_proj"),
        ("out", "mlp.down_proj"),
    ],
    ..llama::NAMES
};

const OUTPUT: Names = Names {
    inside: &[
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.o_proj"),
        ("q_norm", "self_attn.q_norm"),
        ("k_norm", "self_attn.k_norm"),
        ("ln1_post", "post_attention_layernorm"),
        ("gate", "mlp.gate_proj"),
        ("in", "mlp.up_proj"),
        ("out", "mlp.down_proj"),
        ("ln2_post", "post_feedforward_layernorm"),
    ],
    ..llama::NAMES
};

/// What both have in common.
fn common(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    let bias = json.bool_or("attention_bias", false)?;
    Ok(ModelConfig { qkv_bias: bias.into(), attn_out_bias: bias, ..keys::llama(json, family)? })
}

fn olmo(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_bias: false,
        norm_eps: 1e-5,
        clip_qkv: json.opt_f64("clip_qkv")?,
        ..common(json, "olmo")?
    })
}

fn olmo2(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig { norm_place: NormPlace::Output, qk_norm: QkNorm::All, ..common(json, "olmo2")? })
}
