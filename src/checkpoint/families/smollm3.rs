//! How does a SmolLM3 checkpoint map to a model? Llama, without positions in every fourth layer.

use super::keys::Rope;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{LayerConfig, LayerRotary, ModelConfig};

pub(super) const FAMILY: Family = Family { name: "smollm3", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama_with(json, "smollm3", Rope { base: 2_000_000.0, ..Rope::default() })?;
    let like = keys::attention_bias(json, false, like)?;
    let every = json.opt_usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
    let rotates: Vec<usize> = match json.opt_parsed("no_rope_layers", "a list of 0 and 1")? {
        Some(rotates) => rotates,
        None => (1..=like.n_layers).map(|number| usize::from(!number.is_multiple_of(every))).collect(),
    };
    if rotates.len() != like.n_layers {
        let expected = format!("one number for each of {} layers", like.n_layers);
        return Err(json.wrong("no_rope_layers", &expected, rotates.len().to_string()));
    }
    let window = keys::used_window(json)?;
    let still = |layer: usize| rotates.get(layer) == Some(&0);
    let windows = keys::windows(json, like.n_layers, window, |layer| window.is_some() && still(layer))?;
    let layer = |layer: usize| LayerConfig {
        rotary: if still(layer) { LayerRotary::None } else { LayerRotary::Model },
        ..windows.get(layer).cloned().unwrap_or_default()
    };
    Ok(ModelConfig {
        layers: (0..like.n_layers).map(layer).collect(),
        mlp_bias: json.bool_or("mlp_bias", false)?,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..like
    })
}
