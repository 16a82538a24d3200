//! How does a Phi checkpoint (1, 1.5 and 2) map to a model? One LayerNorm for attention and MLP side by side, partial rotary
//! positions, biases everywhere.

use super::keys::{Rope, activation};
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind, Parallel, QkNorm, QkvBias, Unembed};

pub(super) const FAMILY: Family = Family { name: "phi", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    outside: &[("w_e", "embed_tokens"), ("ln_final", "final_layernorm")],
    inside: &[
        ("o", "self_attn.dense"),
        ("q_norm", "self_attn.q_layernorm"),
        ("k_norm", "self_attn.k_layernorm"),
        ("in", "mlp.fc1"),
        ("out", "mlp.fc2"),
    ],
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama_with(json, "phi", Rope { share: Some(0.5), ..Rope::default() })?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-5),
        parallel: Parallel::OneNorm,
        qk_norm: if json.bool_or("qk_layernorm", false)? { QkNorm::Head } else { QkNorm::None },
        activation: activation(json, "hidden_act", "gelu_new")?,
        gated_mlp: false,
        qkv_bias: QkvBias::ALL,
        attn_out_bias: true,
        mlp_bias: true,
        unembed: Unembed::Linear { bias: true },
        ..like
    })
}
