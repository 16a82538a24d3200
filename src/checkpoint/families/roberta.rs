//! How does a RoBERTa checkpoint map to a model? BERT, with positions that count tokens other than padding and begin behind
//! the padding's id. XLM-RoBERTa and CamemBERT are laid out in the same way.

use serde_json::json;

use super::encoder::{self, Head, Names, Stored::As};
use super::{Family, activation};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{Activation, LmHead, ModelConfig, Weights};

pub(super) const FAMILY: Family = Family { name: "roberta", config, weights, superfluous: encoder::is_other_head };
pub(super) const XLM: Family = Family { name: "xlm-roberta", ..FAMILY };
pub(super) const CAMEMBERT: Family = Family { name: "camembert", ..FAMILY };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    for (key, only) in [
        ("position_embedding_type", json!("absolute")),
        ("is_decoder", json!(false)),
        ("add_cross_attention", json!(false)),
    ] {
        json.only(key, &only)?;
    }
    let keys = ["hidden_size", "num_attention_heads", "layer_norm_eps"];
    let base = encoder::base(json, source, keys, "lm_head.dense.weight")?;
    let padding = json.opt_usize("pad_token_id")?.unwrap_or(1);
    let rows = base.n_positions;
    let n_positions = rows.checked_sub(padding + 1).filter(|n| *n > 0).ok_or_else(|| {
        let expected = format!("more than pad_token_id + 1 = {}", padding + 1);
        json.wrong("max_position_embeddings", &expected, rows.to_string())
    })?;
    Ok(ModelConfig {
        n_layers: json.usize("num_hidden_layers")?,
        d_mlp: json.usize("intermediate_size")?,
        n_positions,
        n_token_types: json.opt_usize("type_vocab_size")?.unwrap_or(2),
        uncounted: Some(padding as i64),
        activation: activation(json, "hidden_act", "gelu")?,
        lm_head: LmHead { activation: Some(Activation::Gelu), ..LmHead::default() },
        ..base
    })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    encoder::weights(config, source, &NAMES)
}

const NAMES: Names = Names {
    model: "roberta.",
    around: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("w_type", "embeddings.token_type_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
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
        dense: "lm_head.dense",
        norm: "lm_head.layer_norm",
        decoder: "lm_head.decoder",
        bias: Some("lm_head.bias"),
    },
};
