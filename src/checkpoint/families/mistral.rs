//! How does a Mistral or Ministral checkpoint map to a model? Llama, with a window in every layer of Mistral's first models, and
//! in the layers that Ministral's config names.

use serde_json::json;

use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "mistral", config, tensors: Tensors::Named(llama::NAMES) };
pub(super) const MINISTRAL: Family = Family { name: "ministral", ..FAMILY };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("sliding_window", json!(4096))]);
    let like = keys::llama(json, json.opt_str("model_type")?.unwrap_or("mistral"))?;
    Ok(ModelConfig { layers: keys::same_windows(json, like.n_layers)?, ..like })
}
