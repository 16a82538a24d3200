//! How does a BERT checkpoint map to a model? Post-norm, bidirectional, learned positions and token types, optionally
//! with the masked-language-model head.

use serde_json::json;

use super::keys::{activation, widths};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormPlace, Position, Unembed};

pub(super) const FAMILY: Family = Family { name: "bert", config, tensors: Tensors::Named(NAMES) };

pub(super) const NAMES: Names = Names {
    prefix: "bert.",
    outside: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("w_type", "embeddings.token_type_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
    ],
    block: "encoder.layer.{}.",
    inside: &[
        ("q", "attention.self.query"),
        ("k", "attention.self.key"),
        ("v", "attention.self.value"),
        ("o", "attention.output.dense"),
        ("ln1", "attention.output.LayerNorm"),
        ("in", "intermediate.dense"),
        ("out", "output.dense"),
        ("ln2", "output.LayerNorm"),
    ],
    head: &[
        ("u", "cls.predictions.decoder"),
        ("b_u", "cls.predictions.bias"),
        ("transform", "cls.predictions.transform.dense"),
        ("ln_transform", "cls.predictions.transform.LayerNorm"),
    ],
    // The pooler and heads for other tasks read the residual stream but do not contribute to it.
    superfluous: &["pooler.", "cls.seq_relationship.", "embeddings.position_ids"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    encoder(json, "bert")
}

/// What a config in the words of BERT says.
pub(super) fn encoder(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    for (key, only) in [("position_embedding_type", json!("absolute")), ("add_cross_attention", json!(false))] {
        json.only(key, &only)?;
    }
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_attention_heads")?;
    Ok(ModelConfig {
        family: family.to_owned(),
        n_layers: json.usize("num_hidden_layers")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.usize("intermediate_size")?,
        vocab: json.usize("vocab_size")?,
        n_positions: json.opt_usize("max_position_embeddings")?.unwrap_or(512),
        n_token_types: json.opt_usize("type_vocab_size")?.unwrap_or(2),
        causal: json.bool_or("is_decoder", false)?,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-12),
        norm_place: NormPlace::Post,
        embed_norm: true,
        position: Position::Learned,
        activation: activation(json, "hidden_act", "gelu")?,
        unembed: Unembed::MaskedLm,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}
