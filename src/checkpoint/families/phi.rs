//! How does a Phi checkpoint (1, 1.5 and 2) map to a model? One LayerNorm for attention and MLP side by side, partial rotary
//! positions, biases everywhere.

use super::keys::{Rope, activation, rotary};
use super::names::Names;
use super::{Family, Tensors, keys};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind, Parallel, Position, QkNorm, QkvBias, Unembed};

pub(super) const FAMILY: Family = Family { name: "phi", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "model.",
    outside: &[("w_e", "embed_tokens"), ("ln_final", "final_layernorm")],
    block: "layers.{}.",
    inside: &[
        ("ln1", "input_layernorm"),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.dense"),
        ("q_norm", "self_attn.q_layernorm"),
        ("k_norm", "self_attn.k_layernorm"),
        ("in", "mlp.fc1"),
        ("out", "mlp.fc2"),
    ],
    head: &[("u", "lm_head")],
    superfluous: &[".rotary_emb.inv_freq"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama(json, "phi")?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-5),
        parallel: Parallel::OneNorm,
        position: Position::Rotary(rotary(json, like.d_head, Rope { share: 0.5, ..Rope::default() })?),
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
