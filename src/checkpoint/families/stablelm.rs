//! How does a StableLM checkpoint map to a model? Llama with LayerNorms and partial rotary positions; some have attention and
//! MLP side by side, or a norm for each head's queries and keys.

use super::keys::Rope;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind, Parallel, QkNorm};

pub(super) const FAMILY: Family = Family { name: "stablelm", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[("q_norm", "self_attn.q_layernorm.norms.{}"), ("k_norm", "self_attn.k_layernorm.norms.{}")],
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama_with(json, "stablelm", Rope { share: Some(0.25), ..Rope::default() })?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-5),
        parallel: if json.bool_or("use_parallel_residual", false)? { Parallel::OneNorm } else { Parallel::No },
        qk_norm: if json.bool_or("qk_layernorm", false)? { QkNorm::EachHead } else { QkNorm::None },
        qkv_bias: json.bool_or("use_qkv_bias", false)?.into(),
        ..like
    })
}
