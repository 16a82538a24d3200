//! A batch of prompts as token ids.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;
use crate::error::{Error, Result};

/// A batch of prompts: token ids, padded on the right to one length, and how long each prompt really is.
///
/// Made by [`Model::tokens`](super::Model::tokens) from texts, or by [`Tokens::new`] from ids.
///
/// ```
/// use headscope::model::Tokens;
/// let tokens = Tokens::new(&[vec![5, 6, 7], vec![8, 9]])?;
/// assert_eq!((tokens.batch(), tokens.positions()), (2, 3));
/// assert_eq!(tokens.row(1), [8, 9]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Without padding.
    rows: Vec<Vec<i64>>,
    positions: usize,
    pad: i64,
    /// The tokens as text, where a tokenizer made them.
    pieces: Option<Vec<Vec<String>>>,
}

impl Tokens {
    /// A batch from rows of token ids, which may differ in length.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is no row, or an empty one.
    pub fn new(rows: &[Vec<i64>]) -> Result<Self> {
        let positions = rows.iter().map(Vec::len).max().unwrap_or(0);
        if let Some(row) = rows.iter().position(Vec::is_empty) {
            return Err(Error::argument("tokens", "at least one token a prompt", format!("prompt {row} is empty")));
        }
        if positions == 0 {
            return Err(Error::argument("tokens", "at least one prompt", "none"));
        }
        Ok(Self { rows: rows.to_vec(), positions, pad: 0, pieces: None })
    }

    /// The same batch with each token's text, for pictures and tables.
    pub fn with_pieces(mut self, pieces: Vec<Vec<String>>) -> Self {
        self.pieces = Some(pieces);
        self
    }

    /// The same batch with another id in the padding.
    pub fn with_pad(mut self, pad: i64) -> Self {
        self.pad = pad;
        self
    }

    /// Number of prompts.
    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    /// Length of the longest prompt.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Length of each prompt.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(Vec::len).collect()
    }

    /// Whether some prompts are shorter than others.
    pub fn is_padded(&self) -> bool {
        self.rows.iter().any(|row| row.len() < self.positions)
    }

    /// The ids of one prompt, without padding; empty where there is no such prompt.
    pub fn row(&self, prompt: usize) -> &[i64] {
        self.rows.get(prompt).map_or(&[], Vec::as_slice)
    }

    /// The tokens of one prompt as text; ids in decimal where no tokenizer made them.
    pub fn pieces(&self, prompt: usize) -> Vec<String> {
        match self.pieces.as_ref().and_then(|pieces| pieces.get(prompt)) {
            Some(pieces) => pieces.clone(),
            None => self.row(prompt).iter().map(i64::to_string).collect(),
        }
    }

    /// Some of the prompts, in the order given, padded to the same length as the whole batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a prompt that is not there.
    pub fn select(&self, prompts: &[usize]) -> Result<Self> {
        let limit = self.batch() as i64;
        if let Some(&bad) = prompts.iter().find(|&&prompt| prompt >= self.batch()) {
            return Err(Error::OutOfRange { at: "tokens".into(), axis: "batch", found: bad as i64, limit });
        }
        let pieces = self.pieces.as_ref().map(|all| prompts.iter().map(|&p| all[p].clone()).collect());
        let rows = prompts.iter().map(|&p| self.rows[p].clone()).collect();
        Ok(Self { rows, positions: self.positions, pad: self.pad, pieces })
    }

    /// The ids, `[batch, position]`, padded.
    pub(crate) fn ids(&self, device: Device) -> Tensor {
        let padded = |row: &Vec<i64>| {
            let mut row = row.clone();
            row.resize(self.positions, self.pad);
            row
        };
        let flat: Vec<i64> = self.rows.iter().flat_map(padded).collect();
        Tensor::from_slice(&flat).view([self.batch() as i64, self.positions as i64]).to_device(device)
    }

    /// True where a real token stands, `[batch, position]`.
    pub(crate) fn valid(&self, device: Device) -> Tensor {
        let lengths: Vec<i64> = self.rows.iter().map(|row| row.len() as i64).collect();
        let lengths = Tensor::from_slice(&lengths).to_device(device).unsqueeze(1);
        Tensor::arange(self.positions as i64, (Kind::Int64, device)).unsqueeze(0).lt_tensor(&lengths)
    }

    /// Fails where an id or the length does not fit the model.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        if self.positions > config.n_positions {
            return Err(Error::argument(
                "tokens",
                format!("at most {} positions, the model's context", config.n_positions),
                self.positions,
            ));
        }
        for (prompt, row) in self.rows.iter().enumerate() {
            if let Some(bad) = row.iter().find(|id| !(0..config.vocab as i64).contains(id)) {
                let at = format!("token ids of prompt {prompt}");
                return Err(Error::OutOfRange { at, axis: "vocab", found: *bad, limit: config.vocab as i64 });
            }
        }
        Ok(())
    }
}
