//! How does an ELECTRA checkpoint map to a model? BERT, with embeddings that may be narrower. A generator has a
//! masked-language-model head; a discriminator loads as an encoder.

use serde_json::json;

use super::encoder::{self, Head, Names, Stored::As};
use super::{Family, activation};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{Activation, EmbedProjection, LmHead, ModelConfig, Weights};

pub(super) const FAMILY: Family = Family { name: "electra", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    for (key, only) in [("position_embedding_type", json!("absolute")), ("add_cross_attention", json!(false))] {
        json.only(key, &only)?;
    }
    let keys = ["hidden_size", "num_attention_heads", "layer_norm_eps"];
    let base = encoder::base(json, source, keys, "generator_predictions.dense.weight")?;
    let width = json.opt_usize("embedding_size")?.unwrap_or(128);
    Ok(ModelConfig {
        n_layers: json.usize("num_hidden_layers")?,
        d_mlp: json.usize("intermediate_size")?,
        n_token_types: json.opt_usize("type_vocab_size")?.unwrap_or(2),
        causal: json.bool_or("is_decoder", false)?,
        embed_projection: if width == base.d_model { EmbedProjection::None } else { EmbedProjection::Sum(width) },
        activation: activation(json, "hidden_act", "gelu")?,
        lm_head: LmHead { activation: Some(Activation::Gelu), ..LmHead::default() },
        ..base
    })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    encoder::weights(config, source, &NAMES)
}

const NAMES: Names = Names {
    model: "electra.",
    around: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("w_type", "embeddings.token_type_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
        ("embed", "embeddings_project"),
    ],
    block: |number, _| format!("encoder.layer.{number}"),
    parts: &[
        ("q", As("attention.self.query")),
        ("k", As("attention.self.key")),
        ("v", As("attention.self.value")),
        ("o", As("attention.output.dense")),
        ("ln1", As("attention.output.LayerNorm")),
        ("in", As("intermediate.dense")),
        ("out", As("output.dense")),
        ("ln2", As("output.LayerNorm")),
    ],
    head: Head {
        dense: "generator_predictions.dense",
        norm: "generator_predictions.LayerNorm",
        decoder: "generator_lm_head",
        bias: None,
    },
};

fn superfluous(name: &str) -> bool {
    let others = ["discriminator_predictions.", "sequence_summary."];
    encoder::is_other_head(name) || others.iter().any(|part| name.starts_with(part))
}
