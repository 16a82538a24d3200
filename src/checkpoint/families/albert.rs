//! How does an ALBERT checkpoint map to a model? BERT, with narrow embeddings that are projected, and with few blocks whose
//! weights the layers share.

use super::names::Names;
use super::{Family, Tensors, bert};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{EmbedProjection, ModelConfig};

pub(super) const FAMILY: Family = Family { name: "albert", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "albert.",
    outside: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("w_type", "embeddings.token_type_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
        ("embed", "encoder.embedding_hidden_mapping_in"),
    ],
    block: "encoder.albert_layer_groups.{}.albert_layers.{}.",
    inside: &[
        ("q", "attention.query"),
        ("k", "attention.key"),
        ("v", "attention.value"),
        ("o", "attention.dense"),
        ("ln1", "attention.LayerNorm"),
        ("in", "ffn"),
        ("out", "ffn_output"),
        ("ln2", "full_layer_layer_norm"),
    ],
    head: &[
        ("u", "predictions.decoder"),
        ("b_u", "predictions.bias"),
        ("transform", "predictions.dense"),
        ("ln_transform", "predictions.LayerNorm"),
    ],
    superfluous: &["pooler.", "embeddings.position_ids"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = bert::encoder(json, "albert")?;
    let groups = json.opt_usize("num_hidden_groups")?.unwrap_or(1);
    // What the config calls a layer is a group of blocks, one after another.
    let (turns, cycle) = (like.n_layers, json.opt_usize("inner_group_num")?.unwrap_or(1));
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
        embed_projection: EmbedProjection::Sum(json.opt_usize("embedding_size")?.unwrap_or(128)),
        activation: super::keys::activation(json, "hidden_act", "gelu_new")?,
        ..like
    })
}
