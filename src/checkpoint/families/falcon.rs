//! How does a Falcon checkpoint map to a model? Attention and MLP side by side with one LayerNorm or two, one key/value head
//! or a few; in the oldest models one after the other, with ALiBi.

use super::keys::{Rope, activation, rotary, widths};
use super::names::{Names, Qkv};
use super::{Family, Tensors, keys};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, Parallel, Position};

pub(super) const FAMILY: Family = Family { name: "falcon", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "transformer.",
    outside: &[("w_e", "word_embeddings"), ("ln_final", "ln_f")],
    block: "h.{}.",
    inside: &[
        ("ln1", "input_layernorm"),
        ("ln1", "ln_attn"),
        ("qkv", "self_attention.query_key_value"),
        ("o", "self_attention.dense"),
        ("ln2", "post_attention_layernorm"),
        ("ln2", "ln_mlp"),
        ("in", "mlp.dense_h_to_4h"),
        ("out", "mlp.dense_4h_to_h"),
    ],
    head: &[("u", "lm_head")],
    qkv: Qkv::Groups,
    superfluous: &[".rotary_emb.inv_freq"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_attention_heads")?;
    let (new, bias) = (json.bool_or("new_decoder_architecture", false)?, json.bool_or("bias", false)?);
    let n_kv_heads = match (new, json.bool_or("multi_query", true)?) {
        (true, _) => json.opt_usize("num_kv_heads")?.unwrap_or(n_heads),
        (false, true) => 1,
        (false, false) => n_heads,
    };
    let parallel = match (new, json.opt_usize("num_ln_in_parallel_attn")?, json.bool_or("parallel_attn", true)?) {
        (true, None | Some(2), _) => Parallel::TwoNorms,
        (true, ..) | (false, _, true) => Parallel::OneNorm,
        (false, _, false) => Parallel::No,
    };
    let rotary = rotary(json, d_head, Rope::default())?;
    Ok(ModelConfig {
        family: "falcon".to_owned(),
        n_layers: json.usize("num_hidden_layers")?,
        d_model,
        n_heads,
        n_kv_heads,
        d_head,
        d_mlp: json.opt_usize("ffn_hidden_size")?.unwrap_or(d_model.saturating_mul(4)),
        vocab: json.usize("vocab_size")?,
        n_positions: keys::positions(json, &rotary)?,
        norm_eps: json.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
        parallel,
        position: match json.bool_or("alibi", false)? {
            true => Position::RoundedAlibi,
            false => Position::Rotary(rotary),
        },
        activation: activation(json, "activation", "gelu")?,
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: bias,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}
