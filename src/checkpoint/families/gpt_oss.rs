//! How does a gpt-oss checkpoint map to a model? Llama with attention sinks, windows in every second layer, and experts whose
//! matrices are stacked, with a gate that is cut off. Only weights that are not quantised are read.

use serde_json::json;

use super::keys::Rope;
use super::names::{GateIn, Names};
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, Experts, ModelConfig};

pub(super) const FAMILY: Family = Family { name: "gpt_oss", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    inside: &[
        ("sinks", "self_attn.sinks"),
        ("router", "mlp.router"),
        ("experts.gate_in", "mlp.experts.gate_up_proj"),
        ("experts.out", "mlp.experts.down_proj"),
    ],
    gate_in: GateIn::Alternating,
    ..llama::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("swiglu_alpha", &json!(1.702))?;
    let json = &json.assuming([("head_dim", json!(64)), ("rms_norm_eps", json!(1e-5)), ("sliding_window", json!(128))]);
    let yarn = json!({"rope_type": "yarn", "factor": 32, "truncate": false, "original_max_position_embeddings": 4096});
    let said = json.has("rope_parameters") || json.has("rope_scaling");
    let json = if said { json } else { &json.assuming([("rope_parameters", yarn)]) };
    let like = keys::llama_with(json, "gpt_oss", Rope { base: 150_000.0, ..Rope::default() })?;
    let like = keys::attention_bias(json, true, like)?;
    let window = json.opt_usize("sliding_window")?;
    let experts = Experts {
        n: json.usize(json.first(&["num_local_experts", "num_experts"]))?,
        top_k: json.usize(json.first(&["num_experts_per_tok", "experts_per_token"]))?,
        normalised: true,
        router_bias: true,
        shared: None,
    };
    Ok(ModelConfig {
        sinks: true,
        layers: keys::windows(json, like.n_layers, window, |layer| window.is_some() && layer.is_multiple_of(2))?,
        // Whatever `hidden_act` says.
        activation: Activation::GeluQuick,
        gate_limit: Some(json.opt_f64("swiglu_limit")?.unwrap_or(7.0)),
        experts: Some(experts),
        mlp_bias: true,
        ..like
    })
}
