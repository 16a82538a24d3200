//! How does a Mistral checkpoint map to a model? Llama, with a window in every layer of the first models.

use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "mistral", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama(json, "mistral")?;
    let window = json.opt_usize("sliding_window")?;
    Ok(ModelConfig { layers: keys::windows(json, like.n_layers, window, |_| window.is_some())?, ..like })
}
