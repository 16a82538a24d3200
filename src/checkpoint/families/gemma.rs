//! How does a Gemma checkpoint map to a model? Llama with scaled embeddings and norm weights stored as their difference from
//! 1; from Gemma 2 on with norms on the outputs of sub-layers and windows in most layers, in Gemma 2 with caps, and in
//! Gemma 3 with norms of queries and keys and with rotary positions of their own in layers with a window.

use serde_json::json;

use super::keys::{Rope, activation, rotary};
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, LayerConfig, LayerRotary, ModelConfig, NormPlace, Position, QkNorm, Rotary};

pub(super) const GEMMA: Family = Family { name: "gemma", config: gemma, tensors: Tensors::Named(NAMES) };
pub(super) const GEMMA2: Family = Family { name: "gemma2", config: gemma2, tensors: Tensors::Named(SANDWICH) };
pub(super) const GEMMA3: Family = Family { name: "gemma3_text", config: gemma3, tensors: Tensors::Named(SANDWICH) };

const NAMES: Names = Names { norm_offset: 1.0, ..llama::NAMES };

const SANDWICH: Names = Names {
    inside: &[
        ("ln1", "input_layernorm"),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.o_proj"),
        ("q_norm", "self_attn.q_norm"),
        ("k_norm", "self_attn.k_norm"),
        ("ln1_post", "post_attention_layernorm"),
        ("ln2", "pre_feedforward_layernorm"),
        ("gate", "mlp.gate_proj"),
        ("in", "mlp.up_proj"),
        ("out", "mlp.down_proj"),
        ("ln2_post", "post_feedforward_layernorm"),
    ],
    ..NAMES
};

/// What all three have in common.
fn common(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    json.only("use_bidirectional_attention", &json!(false))?;
    let like = keys::llama(json, family)?;
    let bias = json.bool_or("attention_bias", false)?;
    let key = json.first(&["hidden_activation", "hidden_act"]);
    Ok(ModelConfig {
        // The factor is rounded to float32 in every implementation.
        embed_scale: f64::from((like.d_model as f64).sqrt() as f32),
        // The first checkpoints say `gelu` and mean its tanh approximation.
        activation: match (json.has("hidden_activation"), json.opt_str(key)?) {
            (false, Some("gelu") | None) => Activation::GeluTanh,
            _ => activation(json, key, "gelu_pytorch_tanh")?,
        },
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..like
    })
}

fn gemma(json: &ConfigJson) -> Result<ModelConfig> {
    common(json, "gemma")
}

/// What Gemma 2 and 3 have in common; every layer but each `full`th has a window.
fn sandwich(json: &ConfigJson, family: &str, full: usize) -> Result<ModelConfig> {
    let like = common(json, family)?;
    let window = json.opt_usize("sliding_window")?;
    let slides = |layer: usize| window.is_some() && !(layer + 1).is_multiple_of(full);
    Ok(ModelConfig {
        norm_place: NormPlace::Sandwich,
        attention_scale: Some(json.opt_f64("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5)),
        logit_cap: json.opt_f64("final_logit_softcapping")?,
        score_cap: json.opt_f64("attn_logit_softcapping")?,
        layers: keys::windows(json, like.n_layers, window, slides)?,
        ..like
    })
}

fn gemma2(json: &ConfigJson) -> Result<ModelConfig> {
    sandwich(json, "gemma2", 2)
}

fn gemma3(json: &ConfigJson) -> Result<ModelConfig> {
    let pattern = json.opt_usize(json.first(&["_sliding_window_pattern", "sliding_window_pattern"]))?.unwrap_or(6);
    let like = sandwich(json, "gemma3_text", pattern)?;
    let global = Rope { base: 1_000_000.0, layers: Some("full_attention"), ..Rope::default() };
    let position = Position::Rotary(rotary(json, like.d_head, global)?);
    let local = LayerRotary::Own(local(json, like.d_head)?);
    let own = |layer: LayerConfig| match layer.window {
        Some(_) => LayerConfig { rotary: local.clone(), ..layer },
        None => layer,
    };
    let layers = like.layers.iter().cloned().map(own).collect();
    Ok(ModelConfig { qk_norm: QkNorm::Head, position, layers, ..like })
}

/// The rotary positions of layers with a window: without scaling, and in older files with a base under a key of its own.
fn local(json: &ConfigJson, d_head: usize) -> Result<Rotary> {
    let nested = json.opt_object("rope_parameters")?.is_some_and(|all| all.has("sliding_attention"));
    if nested {
        return rotary(json, d_head, Rope { layers: Some("sliding_attention"), ..Rope::default() });
    }
    let base = json.opt_f64("rope_local_base_freq")?.unwrap_or(10_000.0);
    Ok(Rotary { base, ..Rotary::default() })
}
