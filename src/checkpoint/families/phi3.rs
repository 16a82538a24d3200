//! How does a Phi-3 or Phi-4 checkpoint map to a model? Llama with q, k and v in one matrix, both projections of the MLP in
//! another, and frequencies stretched one by one for long texts.

use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "phi3", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[
        ("ln1", "input_layernorm"),
        ("qkv", "self_attn.qkv_proj"),
        ("o", "self_attn.o_proj"),
        ("ln2", "post_attention_layernorm"),
        ("gate_in", "mlp.gate_up_proj"),
        ("out", "mlp.down_proj"),
    ],
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama(json, "phi3")?;
    let window = json.opt_usize("sliding_window")?;
    Ok(ModelConfig { layers: keys::windows(json, like.n_layers, window, |_| window.is_some())?, ..like })
}
