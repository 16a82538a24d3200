//! How does a GPT-2 checkpoint map to a model? Pre-norm, learned positions, matrices stored `[in, out]`, and q, k and v
//! in one matrix.

use serde_json::json;

use super::keys::{activation, widths};
use super::names::{Matrices, Names};
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "gpt2", config: gpt2, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names { matrices: Matrices::InOut, ..LINEAR };

/// The names of GPT-2 for matrices stored `[out, in]`.
pub(super) const LINEAR: Names = Names {
    prefix: "transformer.",
    outside: &[("w_e", "wte"), ("w_pos", "wpe"), ("ln_final", "ln_f")],
    block: "h.{}.",
    inside: &[
        ("ln1", "ln_1"),
        ("qkv", "attn.c_attn"),
        ("o", "attn.c_proj"),
        ("ln2", "ln_2"),
        ("in", "mlp.c_fc"),
        ("out", "mlp.c_proj"),
    ],
    head: &[("u", "lm_head")],
    // Old checkpoints store the causal mask as a buffer.
    superfluous: &[".attn.bias", ".attn.masked_bias", "multiple_choice_head."],
    ..Names::NONE
};

fn gpt2(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig {
        scale_by_layer: json.bool_or("scale_attn_by_inverse_layer_idx", false)?,
        activation: activation(json, "activation_function", "gelu_new")?,
        ..config(json, "gpt2")?
    })
}

/// What the families that speak GPT-2's words have in common.
pub(super) fn config(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    json.only("add_cross_attention", &json!(false))?;
    let (d_model, n_heads, d_head) = widths(json, "n_embd", "n_head")?;
    let scaled = json.bool_or("scale_attn_weights", true)?;
    Ok(ModelConfig {
        family: family.to_owned(),
        n_layers: json.usize("n_layer")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.opt_usize("n_inner")?.unwrap_or(d_model.saturating_mul(4)),
        vocab: json.usize("vocab_size")?,
        n_positions: json.usize("n_positions")?,
        norm_eps: json.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
        attention_scale: (!scaled).then_some(1.0),
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}
