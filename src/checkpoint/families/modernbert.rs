//! How does a ModernBERT checkpoint map to a model? Pre-norm but for the first attention, rotary positions with one base for
//! global and one for local layers, fused q, k and v, a gated MLP with both inputs in one matrix.

use super::keys::{Rope, activation, attention_bias, rotary, widths, windows};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{LayerConfig, LayerRotary, LmHead, ModelConfig, Position, Rotary, Unembed};

pub(super) const FAMILY: Family = Family { name: "modernbert", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "model.",
    outside: &[("w_e", "embeddings.tok_embeddings"), ("ln_embed", "embeddings.norm"), ("ln_final", "final_norm")],
    block: "layers.{}.",
    inside: &[
        ("ln1", "attn_norm"),
        ("qkv", "attn.Wqkv"),
        ("o", "attn.Wo"),
        ("ln2", "mlp_norm"),
        ("gate_in", "mlp.Wi"),
        ("out", "mlp.Wo"),
    ],
    head: &[("u", "decoder"), ("transform", "head.dense"), ("ln_transform", "head.norm")],
    // Heads for other tasks have a transform of the same name.
    superfluous: &["head."],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_attention_heads")?;
    let n_layers = json.usize("num_hidden_layers")?;
    let norm_bias = json.bool_or("norm_bias", false)?;
    Ok(ModelConfig {
        family: "modernbert".to_owned(),
        n_layers,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.usize("intermediate_size")?,
        vocab: json.usize("vocab_size")?,
        n_positions: json.opt_usize("max_position_embeddings")?.unwrap_or(8192),
        causal: false,
        norm_bias,
        norm_eps: json.opt_f64("norm_eps")?.unwrap_or(1e-5),
        embed_norm: true,
        position: Position::Rotary(turning(json, d_head, "full_attention", "global_rope_theta", 160_000.0)?),
        layers: layers(json, n_layers, d_head)?,
        activation: activation(json, "hidden_activation", "gelu")?,
        gated_mlp: true,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        unembed: Unembed::MaskedLm,
        lm_head: LmHead {
            activation: Some(activation(json, "classifier_activation", "gelu")?),
            dense_bias: json.bool_or("classifier_bias", false)?,
            norm_bias,
            bias: json.bool_or("decoder_bias", true)?,
        },
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..attention_bias(json, false, ModelConfig::default())?
    })
}

/// The layers, of which the first has no norm before attention, and most have a window and rotary positions of their own.
fn layers(json: &ConfigJson, n_layers: usize, d_head: usize) -> Result<Vec<LayerConfig>> {
    let every = json.opt_usize("global_attn_every_n_layers")?.unwrap_or(3);
    let window = json.opt_usize("local_attention")?.unwrap_or(128);
    let local = turning(json, d_head, "sliding_attention", "local_rope_theta", 10_000.0)?;
    let windows = windows(json, n_layers, Some(window), |layer| !layer.is_multiple_of(every))?;
    let layer = |number: usize| {
        let window = windows.get(number).and_then(|layer| layer.window);
        let rotary = window.map_or(LayerRotary::Model, |_| LayerRotary::Own(local.clone()));
        LayerConfig { window, rotary, no_attn_norm: number == 0, ..LayerConfig::default() }
    };
    Ok((0..n_layers).map(layer).collect())
}

/// The rotary positions of a kind of layers, whose base has a key of its own in older files.
fn turning(json: &ConfigJson, d_head: usize, kind: &str, key: &str, base: f64) -> Result<Rotary> {
    let base = json.opt_f64(key)?.unwrap_or(base);
    rotary(json, d_head, Rope { base, layers: Some(kind), ..Rope::default() })
}
