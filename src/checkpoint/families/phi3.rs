//! How does a Phi-3 or Phi-4 checkpoint map to a model? Llama with q, k and v in one matrix, both projections of the MLP in
//! another, and frequencies stretched one by one for long texts.

use serde_json::json;

use super::keys::Rope;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "phi3", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names =
    Names { inside: &[("qkv", "self_attn.qkv_proj"), ("gate_in", "mlp.gate_up_proj")], ..llama::NAMES };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("rms_norm_eps", json!(1e-5))]);
    let like = keys::llama_with(json, "phi3", Rope { share: Some(1.0), ..Rope::default() })?;
    Ok(ModelConfig { layers: keys::same_windows(json, like.n_layers)?, ..like })
}
