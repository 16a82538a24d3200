//! How does an OPT checkpoint map to a model? LayerNorms before or (in the 350m model) after each sub-layer, learned
//! positions that begin in the third row of their table, and embeddings that may be narrower than the residual stream.

use serde_json::json;

use super::keys::{activation, widths};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{EmbedProjection, ModelConfig, NormPlace};

pub(super) const FAMILY: Family = Family { name: "opt", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "model.",
    outside: &[
        ("w_e", "decoder.embed_tokens"),
        ("w_pos", "decoder.embed_positions"),
        ("embed", "decoder.project_in"),
        ("transform", "decoder.project_out"),
        ("ln_final", "decoder.final_layer_norm"),
    ],
    block: "decoder.layers.{}.",
    inside: &[
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.out_proj"),
        ("ln1", "self_attn_layer_norm"),
        ("in", "fc1"),
        ("out", "fc2"),
        ("ln2", "final_layer_norm"),
    ],
    head: &[("u", "lm_head")],
    position_offset: 2,
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("_remove_final_layer_norm", &json!(false))?;
    json.only("layer_norm_elementwise_affine", &json!(true))?;
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_attention_heads")?;
    let width = json.opt_usize("word_embed_proj_dim")?.unwrap_or(d_model);
    let bias = json.bool_or("enable_bias", true)?;
    Ok(ModelConfig {
        family: "opt".to_owned(),
        n_layers: json.usize("num_hidden_layers")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.usize("ffn_dim")?,
        vocab: json.usize("vocab_size")?,
        n_positions: json.usize("max_position_embeddings")?,
        norm_place: if json.bool_or("do_layer_norm_before", true)? { NormPlace::Pre } else { NormPlace::Post },
        embed_projection: if width == d_model { EmbedProjection::None } else { EmbedProjection::Tokens(width) },
        activation: activation(json, "activation_function", "relu")?,
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: bias,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}
