//! How does an ERNIE 4.5 checkpoint map to a model? Llama with rotary positions of neighbouring coordinates.

use serde_json::json;

use super::keys::Rope;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "ernie4_5", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(true)),
    ]);
    let bias = json.bool_or("use_bias", false)?;
    Ok(ModelConfig {
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: bias,
        ..keys::llama_with(json, "ernie4_5", Rope { base: 500_000.0, interleaved: true, ..Rope::default() })?
    })
}
