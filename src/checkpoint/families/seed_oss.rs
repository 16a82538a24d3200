//! How does a Seed-OSS checkpoint map to a model? Llama with biases of queries, keys and values.

use serde_json::json;

use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "seed_oss", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("pretraining_tp", &json!(1))?;
    let json = &json.assuming([("head_dim", json!(128)), ("num_key_value_heads", json!(8))]);
    Ok(ModelConfig {
        qkv_bias: json.bool_or("attention_bias", true)?.into(),
        attn_out_bias: json.bool_or("attention_out_bias", false)?,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        ..keys::llama(json, "seed_oss")?
    })
}
