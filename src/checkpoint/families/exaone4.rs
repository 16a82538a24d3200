//! How does an EXAONE 4 checkpoint map to a model? Llama with norms on the outputs of sub-layers and of the heads' queries and
//! keys; the larger one has windows in most layers, and positions only there.

use serde_json::json;

use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{LayerRotary, ModelConfig, NormPlace, QkNorm};

pub(super) const FAMILY: Family = Family { name: "exaone4", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[("ln1_post", "post_attention_layernorm"), ("ln2_post", "post_feedforward_layernorm")],
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("rms_norm_eps", json!(1e-5)), ("sliding_window", json!(4096))]);
    let like = keys::llama(json, "exaone4")?;
    let window = json.opt_usize("sliding_window")?;
    // A pattern in letters stands beside a list of the layers.
    let listed = json.has("layer_types");
    let full = if listed { 4 } else { json.opt_usize("sliding_window_pattern")?.unwrap_or(4) };
    let slides = |layer: usize| window.is_some() && full > 0 && !(layer + 1).is_multiple_of(full);
    let layers = keys::windows(json, like.n_layers, window, slides)?;
    Ok(ModelConfig {
        norm_place: NormPlace::Output,
        qk_norm: QkNorm::Head,
        layers: match window {
            Some(_) => keys::turning(&layers, like.n_layers, false, &LayerRotary::None),
            None => layers,
        },
        ..like
    })
}
