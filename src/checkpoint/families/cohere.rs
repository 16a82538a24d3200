//! How does a Cohere checkpoint (Command R, Command R7B) map to a model? One LayerNorm without bias for attention and MLP side by side,
//! rotary positions of neighbouring coordinates, scaled logits; in the later one windows in most layers, and positions only there.

use serde_json::json;

use super::keys::Rope;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{LayerRotary, ModelConfig, NormKind, Parallel, QkNorm};

pub(super) const COHERE: Family = Family { name: "cohere", config: cohere, tensors: Tensors::Named(llama::NAMES) };
pub(super) const COHERE2: Family = Family { name: "cohere2", config: cohere2, tensors: Tensors::Named(llama::NAMES) };

fn cohere(json: &ConfigJson) -> Result<ModelConfig> {
    let qk_norm = if json.bool_or("use_qk_norm", false)? { QkNorm::EachHead } else { QkNorm::None };
    Ok(ModelConfig { qk_norm, ..common(json, "cohere", 500_000.0)? })
}

fn cohere2(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("use_qk_norm", &json!(false))?;
    let json = &json.assuming([("sliding_window", json!(4096))]);
    let like = common(json, "cohere2", 10_000.0)?;
    let window = json.opt_usize("sliding_window")?;
    let full = json.opt_usize("sliding_window_pattern")?.unwrap_or(4);
    let slides = |layer: usize| window.is_some() && !(layer + 1).is_multiple_of(full);
    let windows = keys::windows(json, like.n_layers, window, slides)?;
    Ok(ModelConfig { layers: keys::turning(&windows, like.n_layers, false, &LayerRotary::None), ..like })
}

/// What both have in common.
fn common(json: &ConfigJson, family: &str, base: f64) -> Result<ModelConfig> {
    let rope = Rope { base, interleaved: true, ..Rope::default() };
    let like = keys::attention_bias(json, false, keys::llama_with(json, family, rope)?)?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_bias: false,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-5),
        parallel: Parallel::OneNorm,
        logit_scale: json.opt_f64("logit_scale")?.unwrap_or(0.0625),
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..like
    })
}
