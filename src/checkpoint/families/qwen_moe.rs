//! How does a checkpoint of Qwen's mixtures of experts map to a model? Qwen 2 or 3, with experts in some or all layers,
//! beside which Qwen 2 has an MLP that serves every position.

use serde_json::json;

use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Experts, LayerConfig, ModelConfig, QkNorm, SharedExpert};

pub(super) const QWEN2: Family = Family { name: "qwen2_moe", config: qwen2, tensors: Tensors::Named(NAMES) };
pub(super) const QWEN3: Family = Family { name: "qwen3_moe", config: qwen3, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[
        ("router", "mlp.gate"),
        ("experts.gate", "mlp.experts.{}.gate_proj"),
        ("experts.in", "mlp.experts.{}.up_proj"),
        ("experts.out", "mlp.experts.{}.down_proj"),
        ("shared.gate", "mlp.shared_expert.gate_proj"),
        ("shared.in", "mlp.shared_expert.up_proj"),
        ("shared.out", "mlp.shared_expert.down_proj"),
        ("shared_gate", "mlp.shared_expert_gate"),
    ],
    ..llama::NAMES
};

fn qwen2(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("sliding_window", json!(4096))]);
    let like = keys::llama(json, "qwen2_moe")?;
    let window = keys::used_window(json)?;
    let last = json.opt_usize("max_window_layers")?.unwrap_or(28);
    let slides = |layer: usize| window.is_some() && layer.is_multiple_of(2) && layer < last;
    let shared = SharedExpert { d_mlp: json.usize("shared_expert_intermediate_size")?, gated: true };
    let layers = keys::windows(json, like.n_layers, window, slides)?;
    Ok(ModelConfig {
        qkv_bias: json.bool_or("qkv_bias", true)?.into(),
        ..mixture(json, Some(shared), ModelConfig { layers, ..like })?
    })
}

fn qwen3(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("sliding_window", json!(4096))]);
    let like = keys::attention_bias(json, false, keys::llama(json, "qwen3_moe")?)?;
    let window = keys::used_window(json)?;
    let layers = keys::windows(json, like.n_layers, window, |_| window.is_some())?;
    mixture(json, None, ModelConfig { qk_norm: QkNorm::Head, layers, ..like })
}

/// The model with experts in every `decoder_sparse_step`th layer, except those that `mlp_only_layers` lists.
fn mixture(json: &ConfigJson, shared: Option<SharedExpert>, dense: ModelConfig) -> Result<ModelConfig> {
    let experts = Experts {
        n: json.usize(json.first(&["num_experts", "num_local_experts"]))?,
        top_k: json.usize("num_experts_per_tok")?,
        normalised: json.bool_or("norm_topk_prob", false)?,
        router_bias: false,
        shared,
    };
    let step = json.opt_usize("decoder_sparse_step")?.unwrap_or(1);
    let only: Vec<usize> = json.opt_parsed("mlp_only_layers", "a list of layers")?.unwrap_or_default();
    let is_dense = |layer: usize| only.contains(&layer) || step == 0 || !(layer + 1).is_multiple_of(step);
    let layer = |layer: usize| LayerConfig { d_mlp: is_dense(layer).then_some(dense.d_mlp), ..dense.layer(layer) };
    let layers: Vec<LayerConfig> = (0..dense.n_layers).map(layer).collect();
    let plain = layers.iter().all(|layer| *layer == LayerConfig::default());
    Ok(ModelConfig {
        d_mlp: json.usize("moe_intermediate_size")?,
        layers: if plain { vec![] } else { layers },
        experts: Some(experts),
        ..dense
    })
}
