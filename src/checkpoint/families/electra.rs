//! How does an ELECTRA checkpoint map to a model? BERT, with embeddings that may be narrower. A generator has a
//! masked-language-model head; a discriminator loads as an encoder.

use super::names::Names;
use super::{Family, Tensors, bert};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, EmbedProjection, LmHead, ModelConfig};

pub(super) const FAMILY: Family = Family { name: "electra", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "electra.",
    outside: &[
        ("w_e", "embeddings.word_embeddings"),
        ("w_pos", "embeddings.position_embeddings"),
        ("w_type", "embeddings.token_type_embeddings"),
        ("ln_embed", "embeddings.LayerNorm"),
        ("embed", "embeddings_project"),
    ],
    head: &[
        ("u", "generator_lm_head"),
        ("transform", "generator_predictions.dense"),
        ("ln_transform", "generator_predictions.LayerNorm"),
    ],
    superfluous: &["discriminator_predictions.", "sequence_summary.", "embeddings.position_ids"],
    ..bert::NAMES
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = bert::encoder(json, "electra")?;
    let width = json.opt_usize("embedding_size")?.unwrap_or(128);
    Ok(ModelConfig {
        embed_projection: if width == like.d_model { EmbedProjection::None } else { EmbedProjection::Sum(width) },
        lm_head: LmHead { activation: Some(Activation::Gelu), ..LmHead::default() },
        ..like
    })
}
