//! How does a GPT-NeoX checkpoint (Pythia) map to a model? LayerNorms, partial rotary positions, attention and MLP side by
//! side, and q, k and v of each head side by side.

use super::keys::{Rope, activation, rotary, widths};
use super::names::{Names, Qkv};
use super::{Family, Tensors, keys};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, Parallel, Position};

pub(super) const FAMILY: Family = Family { name: "gpt_neox", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    outside: &[("w_e", "embed_in"), ("ln_final", "final_layer_norm")],
    block: "layers.{}.",
    inside: &[
        ("ln1", "input_layernorm"),
        ("qkv", "attention.query_key_value"),
        ("o", "attention.dense"),
        ("ln2", "post_attention_layernorm"),
        ("in", "mlp.dense_h_to_4h"),
        ("out", "mlp.dense_4h_to_h"),
    ],
    head: &[("u", "embed_out")],
    qkv: Qkv::Groups,
    superfluous: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_attention_heads")?;
    let rotary = rotary(json, d_head, Rope { share: Some(0.25), ..Rope::default() })?;
    let like = keys::attention_bias(json, true, ModelConfig::default())?;
    Ok(ModelConfig {
        family: "gpt_neox".to_owned(),
        n_layers: json.usize("num_hidden_layers")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.usize("intermediate_size")?,
        vocab: json.usize("vocab_size")?,
        n_positions: keys::positions(json, &rotary)?,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-5),
        parallel: if json.bool_or("use_parallel_residual", true)? { Parallel::TwoNorms } else { Parallel::No },
        position: Position::Rotary(rotary),
        activation: activation(json, "hidden_act", "gelu")?,
        tied_unembed: json.bool_or("tie_word_embeddings", false)?,
        ..like
    })
}
