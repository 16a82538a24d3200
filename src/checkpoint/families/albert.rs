//! How does an ALBERT checkpoint map to a model? BERT, with narrow embeddings that are projected, and with few blocks whose
//! weights the layers share.

use serde_json::json;

use super::encoder::{self, Head, Names, Stored::As};
use super::{Family, activation};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{EmbedProjection, ModelConfig, Weights};

pub(super) const FAMILY: Family = Family { name: "albert", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    json.only("position_embedding_type", &json!("absolute"))?;
    let keys = ["hidden_size", "num_attention_heads", "layer_norm_eps"];
    let base = encoder::base(json, source, keys, "predictions.dense.weight")?;
    // Each layer of the config is a group of blocks, one after another.
    let groups = json.opt_usize("num_hidden_groups")?.unwrap_or(1);
    let cycle = json.opt_usize("inner_group_num")?.unwrap_or(1);
    let turns = json.usize("num_hidden_layers")?;
    // transformers divides in floating point, which in rare cases gives another group than exact division.
    let group = |turn: usize| (turn as f64 / (turns as f64 / groups as f64)) as usize;
    if turns <= 10_000 && !(0..turns).all(|turn| group(turn) == turn.saturating_mul(groups) / turns) {
        let expected = format!("a divisor of num_hidden_layers = {turns}");
        return Err(json.wrong("num_hidden_groups", &expected, groups.to_string()));
    }
    Ok(ModelConfig {
        n_layers: turns.saturating_mul(cycle),
        n_blocks: groups.saturating_mul(cycle),
        block_cycle: cycle,
        d_mlp: json.usize("intermediate_size")?,
        n_token_types: json.opt_usize("type_vocab_size")?.unwrap_or(2),
        embed_projection: EmbedProjection::Sum(json.opt_usize("embedding_size")?.unwrap_or(128)),
        activation: activation(json, "hidden_act", "gelu_new")?,
        ..base
    })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    encoder::weights(config, source, &NAMES)
}

const NAMES: Names = Names {
    model: "albert.",
    around: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("w_type", "embeddings.token_type_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
        ("embed", "encoder.embedding_hidden_mapping_in"),
    ],
    block: |number, config| {
        let (group, inner) = (number / config.block_cycle, number % config.block_cycle);
        format!("encoder.albert_layer_groups.{group}.albert_layers.{inner}")
    },
    parts: &[
        ("q", As("attention.query")),
        ("k", As("attention.key")),
        ("v", As("attention.value")),
        ("o", As("attention.dense")),
        ("ln1", As("attention.LayerNorm")),
        ("in", As("ffn")),
        ("out", As("ffn_output")),
        ("ln2", As("full_layer_layer_norm")),
    ],
    head: Head {
        dense: "predictions.dense",
        norm: "predictions.LayerNorm",
        decoder: "predictions.decoder",
        bias: Some("predictions.bias"),
    },
};

fn superfluous(name: &str) -> bool {
    encoder::is_other_head(name) || name.starts_with("sop_classifier.")
}
