//! How does the decoder of an encoder-decoder come by its source? The encoder's blocks run first; what they end in is remembered
//! for every block of the decoder.

use tch::{Device, Tensor};

use super::join::{Joins, copies};
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::model::arch::Wire;
use crate::site::Site;
use crate::text::Tokens;

/// The source of a pass, and what the encoder makes of it.
pub(super) struct Source {
    /// `[batch, source]`
    ids: Tensor,
    /// True at real tokens, `[batch, source]`, if some are padding.
    pub(super) valid: Option<Tensor>,
    /// Of the rows that have joined, `[row, source, d_model]`.
    memory: Option<Tensor>,
}

impl Source {
    pub(super) fn new(tokens: &Tokens, device: Device) -> Self {
        let valid = tokens.is_padded().then(|| tokens.valid(device));
        Self { ids: tokens.ids(device), valid, memory: None }
    }
}

impl Pass<'_> {
    /// The residual stream that enters a block, where `x` leaves the one before it: the embeddings in the first block, those of
    /// the source if there is one. In front of a decoder, what leaves the encoder becomes the memory.
    pub(super) fn entering(&mut self, layer: usize, x: Option<Tensor>, joins: &Joins<'_>) -> Result<Option<Tensor>> {
        let encoder = self.model.wiring().encoder();
        match layer {
            0 if encoder > 0 => {
                let ids =
                    joins.copies_at_start().map(|n| Ok::<_, Error>(copies(&self.source()?.ids, n))).transpose()?;
                ids.map(|ids| self.embed_source(&ids)).transpose()
            }
            0 => joins.start().map(|ids| self.embed(&ids)).transpose(),
            _ if layer == encoder => {
                let Some(x) = x else { return Ok(None) };
                let memory = self.memory_of(&x)?;
                let ids = joins.ids_of(memory.size()[0] / joins.batch());
                self.source()?.memory = Some(memory);
                self.embed(&ids).map(Some)
            }
            _ => Ok(x),
        }
    }

    fn source(&mut self) -> Result<&mut Source> {
        self.source.as_mut().ok_or_else(|| Error::argument("tokens", "tokens with a source", "none"))
    }

    /// What the encoder ends in, normalised in some models.
    fn memory_of(&mut self, x: &Tensor) -> Result<Tensor> {
        let norm = self.model.weights().source.as_ref().and_then(|source| source.ln_final.as_ref());
        let memory = match norm {
            Some(norm) => self.norm(norm, Site::LnMemoryScale, x)?,
            None => x.shallow_clone(),
        };
        self.at(Site::Memory, memory)
    }

    /// The memory of all rows that have joined; those that joined after the encoder have the unchanged run's.
    pub(super) fn remembered(&mut self, rows: i64, joins: &Joins<'_>) -> Result<Tensor> {
        let known = self.source()?.memory.take();
        let new = rows - known.as_ref().map_or(0, |memory| memory.size()[0]);
        let new = (new > 0).then(|| Ok::<_, Error>(copies(&joins.unchanged(0, Wire::Memory)?, new / joins.batch())));
        let all = match (known, new.transpose()?) {
            (Some(known), Some(new)) => Tensor::cat(&[known, new], 0),
            (known, new) => known.or(new).ok_or_else(|| Error::argument("pass", "rows that join", "none"))?,
        };
        self.source()?.memory = Some(all.shallow_clone());
        Ok(all)
    }
}
