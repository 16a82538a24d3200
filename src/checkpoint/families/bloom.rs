//! How does a BLOOM checkpoint map to a model? LayerNorms, also on the embeddings, ALiBi, and q, k and v of each head side by
//! side.

use serde_json::json;

use super::keys::widths;
use super::names::{Names, Qkv};
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, ModelConfig, Position};

pub(super) const FAMILY: Family = Family { name: "bloom", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "transformer.",
    outside: &[("w_e", "word_embeddings"), ("ln_embed", "word_embeddings_layernorm"), ("ln_final", "ln_f")],
    block: "h.{}.",
    inside: &[
        ("ln1", "input_layernorm"),
        ("qkv", "self_attention.query_key_value"),
        ("o", "self_attention.dense"),
        ("ln2", "post_attention_layernorm"),
        ("in", "mlp.dense_h_to_4h"),
        ("out", "mlp.dense_4h_to_h"),
    ],
    head: &[("u", "lm_head")],
    qkv: Qkv::Groups,
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("apply_residual_connection_post_layernorm", &json!(false))?;
    // It would leave out the bias of what attention writes.
    json.only("slow_but_exact", &json!(false))?;
    let [width, heads] = [json.first(&["hidden_size", "n_embed"]), json.first(&["n_head", "num_attention_heads"])];
    let (d_model, n_heads, d_head) = widths(json, width, heads)?;
    Ok(ModelConfig {
        family: "bloom".to_owned(),
        n_layers: json.usize(json.first(&["n_layer", "num_hidden_layers"]))?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: d_model.saturating_mul(4),
        vocab: json.usize("vocab_size")?,
        // Positions are distances, so that no length is too long for the weights; this is what the model was trained on.
        n_positions: json.opt_usize("seq_length")?.unwrap_or(2048),
        norm_eps: json.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
        embed_norm: true,
        position: Position::Alibi,
        activation: Activation::GeluBloom,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}
