//! How does an Arcee checkpoint (AFM) map to a model? Llama, with an MLP that has no gate.

use serde_json::json;

use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "arcee", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("rms_norm_eps", json!(1e-5))]);
    Ok(ModelConfig {
        activation: keys::activation(json, "hidden_act", "relu2")?,
        gated_mlp: false,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        ..keys::attention_bias(json, false, keys::llama(json, "arcee")?)?
    })
}
