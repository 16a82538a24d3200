//! How does a GPT-J checkpoint map to a model? One LayerNorm for attention and MLP side by side, and rotary positions of
//! neighbouring coordinates.

use serde_json::json;

use super::keys::activation;
use super::names::Names;
use super::{Family, Tensors, gpt2};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, Parallel, Position, QkvBias, Rotary, Unembed};

pub(super) const FAMILY: Family = Family { name: "gptj", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "transformer.",
    outside: &[("w_e", "wte"), ("ln_final", "ln_f")],
    block: "h.{}.",
    inside: &[
        ("ln1", "ln_1"),
        ("q", "attn.q_proj"),
        ("k", "attn.k_proj"),
        ("v", "attn.v_proj"),
        ("o", "attn.out_proj"),
        ("in", "mlp.fc_in"),
        ("out", "mlp.fc_out"),
    ],
    head: &[("u", "lm_head")],
    superfluous: &[".attn.bias", ".attn.masked_bias", ".attn.embed_positions"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = gpt2::config(json, "gptj")?;
    let width = json.assuming([("rotary_dim", json!(64))]).usize("rotary_dim")?;
    Ok(ModelConfig {
        parallel: Parallel::OneNorm,
        position: Position::Rotary(Rotary { width: Some(width), interleaved: true, ..Rotary::default() }),
        activation: activation(json, "activation_function", "gelu_new")?,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        unembed: Unembed::Linear { bias: true },
        tied_unembed: json.bool_or("tie_word_embeddings", false)?,
        ..like
    })
}
