//! How does a Nemotron checkpoint (3 and 4, Minitron) map to a model? LayerNorms whose weights are stored as their difference
//! from 1, partial rotary positions, an MLP without gate.

use super::keys::Rope;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind};

pub(super) const FAMILY: Family = Family { name: "nemotron", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names { norm_offset: 1.0, ..llama::NAMES };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama_with(json, "nemotron", Rope { share: Some(0.5), ..Rope::default() })?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("norm_eps")?.unwrap_or(1e-5),
        activation: keys::activation(json, "hidden_act", "relu2")?,
        gated_mlp: false,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        ..keys::attention_bias(json, false, like)?
    })
}
