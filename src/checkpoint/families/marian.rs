//! How does a Marian checkpoint map to a model? BART with sinusoidal positions, which the file may leave out, without a norm on
//! the embeddings, and with a vocabulary for each side in some models; Pegasus has norms before each sub-layer.

use super::bart::{self, NAMES};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Encoder, ModelConfig, NormPlace, Position};

pub(super) const MARIAN: Family = Family { name: "marian", config: marian, tensors: Tensors::Named(FIXED) };
pub(super) const PEGASUS: Family = Family { name: "pegasus", config: pegasus, tensors: Tensors::Named(FIXED) };

const FIXED: Names = Names { position_offset: 0, ..NAMES };

fn marian(json: &ConfigJson) -> Result<ModelConfig> {
    let config = ModelConfig { position: Position::Sinusoidal, ..bart::config(json, "marian", "gelu")? };
    if json.bool_or("share_encoder_decoder_embeddings", true)? {
        return Ok(config);
    }
    let encoder = config.encoder.map(|encoder| Encoder { vocab: Some(config.vocab), ..encoder });
    let vocab = json.opt_usize("decoder_vocab_size")?.unwrap_or(config.vocab);
    Ok(ModelConfig { encoder, vocab, ..config })
}

fn pegasus(json: &ConfigJson) -> Result<ModelConfig> {
    let config = bart::config(json, "pegasus", "gelu")?;
    Ok(ModelConfig { position: Position::Sinusoidal, norm_place: NormPlace::Pre, ..config })
}
