//! Which parameters does an encoder-decoder have for its source, outside blocks?

use tch::Tensor;

use super::config::{ModelConfig, Position};
use super::weights::{Each, Make, Norm, norm_of, positions_of};
use crate::error::Result;
use crate::workers::readable;

/// What belongs to the encoder of an encoder-decoder outside its blocks.
#[derive(Debug)]
pub(crate) struct Source {
    /// `[vocab, d_model]`, if it does not share the decoder's.
    pub w_e: Option<Tensor>,
    /// `[n_positions, d_model]`
    pub w_pos: Option<Tensor>,
    pub ln_embed: Option<Norm>,
    /// `[bucket, head]`
    pub w_rel: Option<Tensor>,
    pub ln_final: Option<Norm>,
}

readable!(Source { w_e, w_pos, ln_embed, w_rel, ln_final; });

impl Source {
    pub(super) fn made(config: &ModelConfig, make: &mut dyn Make) -> Result<Self> {
        let (at, d) = ("source.", config.d_model);
        let own = config.encoder.and_then(|encoder| encoder.vocab);
        let w_e = own.map(|vocab| make.table(at, "w_e", &[vocab, d], 1.0)).transpose()?;
        let w_pos = config.has_position_vectors().then(|| positions_of(config, make, at)).transpose()?;
        let ln_embed = config.embed_norm.then(|| norm_of(config, make, at, "ln_embed", d)).transpose()?.flatten();
        let w_rel = match config.position {
            Position::Buckets { n, .. } => Some(make.table(at, "w_rel", &[n, config.n_heads], 1.0)?),
            _ => None,
        };
        let last = config.has_final_norm();
        let ln_final = last.then(|| norm_of(config, make, at, "ln_final", d)).transpose()?.flatten();
        Ok(Self { w_e, w_pos, ln_embed, w_rel, ln_final })
    }

    pub(super) fn rebuilt<'a>(&'a self, at: &str, each: &mut Each<'_, 'a>) -> Self {
        let table = |name: &str, table: &'a Option<Tensor>, each: &mut Each<'_, 'a>| {
            table.as_ref().map(|table| each(format!("{at}{name}"), table))
        };
        let norm = |name: &str, norm: &'a Option<Norm>, each: &mut Each<'_, 'a>| {
            norm.as_ref().map(|norm| norm.rebuilt(&format!("{at}{name}"), each))
        };
        Self {
            w_e: table("w_e", &self.w_e, each),
            w_pos: table("w_pos", &self.w_pos, each),
            ln_embed: norm("ln_embed", &self.ln_embed, each),
            w_rel: table("w_rel", &self.w_rel, each),
            ln_final: norm("ln_final", &self.ln_final, each),
        }
    }
}
