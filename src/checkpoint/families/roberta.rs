//! How does a RoBERTa checkpoint map to a model? BERT, with positions that count tokens other than padding and begin behind
//! the padding's id. XLM-RoBERTa and CamemBERT are laid out in the same way.

use serde_json::json;

use super::names::Names;
use super::{Family, Tensors, bert};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, LmHead, ModelConfig};

pub(super) const FAMILY: Family = Family { name: "roberta", config, tensors: Tensors::Named(NAMES) };
pub(super) const XLM: Family = Family { name: "xlm-roberta", ..FAMILY };
pub(super) const CAMEMBERT: Family = Family { name: "camembert", ..FAMILY };

const NAMES: Names = Names {
    prefix: "roberta.",
    head: &[
        ("u", "lm_head.decoder"),
        ("b_u", "lm_head.bias"),
        ("transform", "lm_head.dense"),
        ("ln_transform", "lm_head.layer_norm"),
    ],
    ..bert::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.only("is_decoder", &json!(false))?;
    let like = bert::encoder(json, json.opt_str("model_type")?.unwrap_or("roberta"))?;
    let padding = json.opt_usize("pad_token_id")?.unwrap_or(1);
    // The rows up to that of the padding are not those of positions.
    let Some(n_positions) = like.n_positions.checked_sub(padding.saturating_add(1)) else {
        let expected = format!("more than pad_token_id = {padding}");
        return Err(json.wrong("max_position_embeddings", &expected, like.n_positions.to_string()));
    };
    Ok(ModelConfig {
        n_positions,
        uncounted: Some(padding as i64),
        lm_head: LmHead { activation: Some(Activation::Gelu), ..LmHead::default() },
        ..like
    })
}
