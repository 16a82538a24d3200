//! How does a StarCoder 2 checkpoint map to a model? LayerNorms, rotary positions, grouped key/value heads, an MLP without
//! gate, and a window in every layer.

use serde_json::json;

use super::keys::activation;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind};

pub(super) const FAMILY: Family = Family { name: "starcoder2", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names { inside: &[("in", "mlp.c_fc"), ("out", "mlp.c_proj")], ..llama::NAMES };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("num_key_value_heads", json!(2))]);
    let like = keys::llama(json, "starcoder2")?;
    let bias = json.bool_or("use_bias", true)?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("norm_epsilon")?.unwrap_or(1e-5),
        layers: keys::same_windows(json, like.n_layers)?,
        activation: activation(json, "hidden_act", "gelu_pytorch_tanh")?,
        gated_mlp: false,
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: bias,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..like
    })
}
