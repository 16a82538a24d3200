//! How does a Helium checkpoint map to a model? Llama with rotary positions of neighbouring coordinates.

use serde_json::json;

use super::keys::Rope;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "helium", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("head_dim", json!(128)), ("rms_norm_eps", json!(1e-8))]);
    Ok(ModelConfig {
        qkv_bias: json.bool_or("attention_bias", false)?.into(),
        mlp_bias: json.bool_or("mlp_bias", false)?,
        ..keys::llama_with(json, "helium", Rope { base: 100_000.0, interleaved: true, ..Rope::default() })?
    })
}
