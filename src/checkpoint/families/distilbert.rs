//! How does a DistilBERT checkpoint map to a model? BERT without token types, under names of its own.

use super::keys::{activation, widths};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormPlace, Position, Unembed};

pub(super) const FAMILY: Family = Family { name: "distilbert", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "distilbert.",
    outside: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
    ],
    block: "transformer.layer.{}.",
    inside: &[
        ("q", "attention.q_lin"),
        ("k", "attention.k_lin"),
        ("v", "attention.v_lin"),
        ("o", "attention.out_lin"),
        ("ln1", "sa_layer_norm"),
        ("in", "ffn.lin1"),
        ("out", "ffn.lin2"),
        ("ln2", "output_layer_norm"),
    ],
    head: &[("u", "vocab_projector"), ("transform", "vocab_transform"), ("ln_transform", "vocab_layer_norm")],
    superfluous: &["embeddings.position_ids"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let (d_model, n_heads, d_head) = widths(json, "dim", "n_heads")?;
    Ok(ModelConfig {
        family: "distilbert".to_owned(),
        n_layers: json.usize("n_layers")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.usize("hidden_dim")?,
        vocab: json.usize("vocab_size")?,
        n_positions: json.opt_usize("max_position_embeddings")?.unwrap_or(512),
        causal: false,
        // The config does not name it.
        norm_eps: 1e-12,
        norm_place: NormPlace::Post,
        embed_norm: true,
        // Sinusoidal positions are stored as learned ones are.
        position: Position::Learned,
        activation: activation(json, "activation", "gelu")?,
        unembed: Unembed::MaskedLm,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}
