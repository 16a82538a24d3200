//! How does a GPT-BigCode checkpoint (SantaCoder, StarCoder) map to a model? GPT-2 with one key/value head, or with q, k and
//! v of each head side by side.

use super::gpt2;
use super::keys::activation;
use super::names::{Names, Qkv};
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::ModelConfig;

pub(super) const FAMILY: Family = Family { name: "gpt_bigcode", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names { qkv: Qkv::Groups, ..gpt2::LINEAR };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = gpt2::config(json, "gpt_bigcode")?;
    Ok(ModelConfig {
        n_kv_heads: if json.bool_or("multi_query", true)? { 1 } else { like.n_heads },
        activation: activation(json, "activation_function", "gelu_pytorch_tanh")?,
        ..like
    })
}
