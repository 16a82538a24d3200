//! How does a DistilBERT checkpoint map to a model? BERT without token types, under names of its own.

use super::encoder::{self, Head, Names, Stored::As};
use super::{Family, activation};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{ModelConfig, Weights};

pub(super) const FAMILY: Family = Family { name: "distilbert", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    // The config names no epsilon; it is always 1e-12. Sinusoidal positions are stored like learned ones.
    let base = encoder::base(json, source, ["dim", "n_heads", "layer_norm_eps"], "vocab_transform.weight")?;
    Ok(ModelConfig {
        n_layers: json.usize("n_layers")?,
        d_mlp: json.usize("hidden_dim")?,
        norm_eps: 1e-12,
        activation: activation(json, "activation", "gelu")?,
        ..base
    })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    encoder::weights(config, source, &NAMES)
}

const NAMES: Names = Names {
    model: "distilbert.",
    around: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
    ],
    block: |number, _| format!("transformer.layer.{number}"),
    parts: &[
        ("q", As("attention.q_lin")),
        ("k", As("attention.k_lin")),
        ("v", As("attention.v_lin")),
        ("o", As("attention.out_lin")),
        ("ln1", As("sa_layer_norm")),
        ("in", As("ffn.lin1")),
        ("out", As("ffn.lin2")),
        ("ln2", As("output_layer_norm")),
    ],
    head: Head { dense: "vocab_transform", norm: "vocab_layer_norm", decoder: "vocab_projector", bias: None },
};

fn superfluous(name: &str) -> bool {
    encoder::is_other_head(name) || name.starts_with("pre_classifier.")
}
