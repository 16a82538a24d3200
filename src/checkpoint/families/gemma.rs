//! How does a Gemma checkpoint map to a model? Llama with scaled embeddings and norm weights stored as their difference from
//! 1; from Gemma 2 on with norms on the outputs of sub-layers and windows in most layers, in Gemma 2 with caps, and in
//! Gemma 3 with norms of queries and keys and with rotary positions of their own in layers with a window.

use serde_json::{Value, json};

use super::keys::{Rope, activation, rotary};
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, LayerRotary, ModelConfig, NormPlace, Position, QkNorm};

pub(super) const GEMMA: Family = Family { name: "gemma", config: gemma, tensors: Tensors::Named(NAMES) };
pub(super) const GEMMA2: Family = Family { name: "gemma2", config: gemma2, tensors: Tensors::Named(SANDWICH) };
pub(super) const GEMMA3: Family = Family { name: "gemma3_text", config: gemma3, tensors: Tensors::Named(SANDWICH) };

const NAMES: Names = Names { norm_offset: 1.0, ..llama::NAMES };

const SANDWICH: Names = Names {
    inside: &[
        ("ln1_post", "post_attention_layernorm"),
        ("ln2", "pre_feedforward_layernorm"),
        ("ln2_post", "post_feedforward_layernorm"),
    ],
    ..NAMES
};

/// What all three have in common.
fn common(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    json.only("use_bidirectional_attention", &json!(false))?;
    let json = &json.assuming([("head_dim", json!(256))]);
    let like = keys::attention_bias(json, false, keys::llama(json, family)?)?;
    Ok(ModelConfig {
        // The factor is rounded to float32 in every implementation.
        embed_scale: f64::from((like.d_model as f64).sqrt() as f32),
        activation: activation(json, "hidden_activation", "gelu_pytorch_tanh")?,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..like
    })
}

fn gemma(json: &ConfigJson) -> Result<ModelConfig> {
    let like = common(json, "gemma")?;
    // The first checkpoints say `gelu` and mean its tanh approximation.
    let activation = match json.opt_str("hidden_act")? {
        Some("gelu") | None => Activation::GeluTanh,
        _ => activation(json, "hidden_act", "gelu_pytorch_tanh")?,
    };
    if json.has("hidden_activation") && like.activation != activation {
        let found = format!("{:?}", like.activation);
        return Err(json.wrong("hidden_activation", &format!("{activation:?}, which is hidden_act"), found));
    }
    Ok(ModelConfig { activation, ..like })
}

/// What Gemma 2 and 3 have in common; every layer but each `full`th has a window.
fn sandwich(json: &ConfigJson, family: &str, full: usize) -> Result<ModelConfig> {
    let json = &json.assuming([("sliding_window", json!(4096))]);
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
    let caps = [("final_logit_softcapping", json!(30.0)), ("attn_logit_softcapping", json!(50.0))];
    sandwich(&json.assuming(caps), "gemma2", 2)
}

fn gemma3(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("attn_logit_softcapping", &Value::Null)?;
    let pattern = json.opt_usize(json.first(&["sliding_window_pattern", "_sliding_window_pattern"]))?.unwrap_or(6);
    let like = sandwich(json, "gemma3_text", pattern)?;
    let global = Rope { base: 1_000_000.0, layers: Some("full_attention"), ..Rope::default() };
    let position = Position::Rotary(rotary(json, like.d_head, global)?);
    let local = LayerRotary::Own(keys::local(json, like.d_head, "rope_local_base_freq", 10_000.0)?);
    let layers = keys::turning(&like.layers, like.n_layers, true, &local);
    Ok(ModelConfig { qk_norm: QkNorm::Head, position, layers, ..like })
}
