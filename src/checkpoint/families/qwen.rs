//! How does a Qwen 2 or Qwen 3 checkpoint map to a model? Llama with biases of q, k and v (2) or with norms of the heads'
//! queries and keys (3), and with windows in late layers.

use serde_json::json;

use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, QkNorm, QkvBias};

pub(super) const QWEN2: Family = Family { name: "qwen2", config: qwen2, tensors: Tensors::Named(llama::NAMES) };
pub(super) const QWEN3: Family = Family { name: "qwen3", config: qwen3, tensors: Tensors::Named(llama::NAMES) };

fn qwen2(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("sliding_window", json!(4096))]);
    let like = keys::llama(json, "qwen2")?;
    Ok(ModelConfig { qkv_bias: QkvBias::ALL, layers: keys::late_windows(json, like.n_layers)?, ..like })
}

fn qwen3(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("head_dim", json!(128)), ("sliding_window", json!(4096))]);
    let like = keys::attention_bias(json, false, keys::llama(json, "qwen3")?)?;
    Ok(ModelConfig { qk_norm: QkNorm::Head, layers: keys::late_windows(json, like.n_layers)?, ..like })
}
