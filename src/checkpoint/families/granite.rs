//! How does a Granite checkpoint map to a model? Llama with factors of embeddings, scores, sub-layers and logits.

use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "granite", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let factor = |key: &str| -> Result<f64> { Ok(json.opt_f64(key)?.unwrap_or(1.0)) };
    Ok(ModelConfig {
        embed_scale: factor("embedding_multiplier")?,
        attention_scale: Some(factor("attention_multiplier")?),
        residual_scale: factor("residual_multiplier")?,
        logit_scale: 1.0 / factor("logits_scaling")?,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        ..keys::attention_bias(json, false, keys::llama(json, "granite")?)?
    })
}
