//! What is a batch of prompts? Token ids, padded to one length.

use tch::{Device, Kind, Tensor};

use super::HasTokenizer;
use crate::error::{Error, Result};

/// A batch of prompts: token ids, padded on the right to a common length, and the actual length of each prompt.
///
/// Created from texts by [`Model::tokens`](crate::model::Model::tokens), or from ids by [`Tokens::from_ids`], which knows
/// the text of each token, and [`Tokens::new`], which does not.
///
/// ```
/// use headscope::model::Tokens;
/// let tokens = Tokens::new(&[vec![5, 6, 7], vec![8, 9]])?;
/// assert_eq!((tokens.batch(), tokens.positions()), (2, 3));
/// assert_eq!(tokens.row(1), [8, 9]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The ids, without padding.
    rows: Vec<Vec<i64>>,
    positions: usize,
    pad: i64,
    /// The text of each token, if a tokenizer produced them.
    pieces: Option<Vec<Vec<String>>>,
    /// The type of each token; 0 if absent.
    types: Option<Vec<Vec<i64>>>,
    /// What an encoder-decoder reads before these tokens, prompt by prompt.
    source: Option<Box<Self>>,
}

impl Tokens {
    /// Creates a batch from rows of token ids, which may differ in length.
    ///
    /// # Errors
    /// If there are no rows, or one is empty ([`Error::Argument`]).
    pub fn new(rows: &[Vec<i64>]) -> Result<Self> {
        Self::owning(rows.to_vec())
    }

    /// [`Tokens::new`] without a copy of the rows.
    pub(crate) fn owning(rows: Vec<Vec<i64>>) -> Result<Self> {
        let positions = rows.iter().map(Vec::len).max().unwrap_or(0);
        if let Some(row) = rows.iter().position(Vec::is_empty) {
            return Err(Error::argument("tokens", "at least one token a prompt", format!("prompt {row} is empty")));
        }
        if positions == 0 {
            return Err(Error::argument("tokens", "at least one prompt", "none"));
        }
        Ok(Self { rows, positions, pad: 0, pieces: None, types: None, source: None })
    }

    /// [`Tokens::new`] with the text of each token, by the tokenizer of a model (or a [`Tokenizer`](super::Tokenizer)).
    /// Without a tokenizer, the texts are the ids in decimal.
    ///
    /// ```
    /// use headscope::model::{Model, Tokens};
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let ids = model.tokens(&["the head"])?.row(0).to_vec();
    /// let tokens = Tokens::from_ids(&model, &[ids.repeat(2)])?;
    /// assert_eq!(tokens.pieces(0).concat(), "the headthe head");
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Tokens::new`]; also if an id or the length does not fit the model.
    pub fn from_ids(of: &impl HasTokenizer, rows: &[Vec<i64>]) -> Result<Self> {
        let tokens = match of.tokenizer() {
            Some(tokenizer) => tokenizer.batch(rows.to_vec()),
            None => Self::new(rows),
        };
        of.fitted(tokens?)
    }

    /// [`Tokens::from_ids`] of rows that are padded already, on either side or on both, as other libraries' tokenizers return
    /// them: `mask` is 1 at tokens and 0 at padding (transformers' `attention_mask`).
    ///
    /// Padding has no effect: no token attends to it, and position 0 is the first token of each prompt, on whichever side the
    /// padding was. In what a run returns, prompts begin at position 0 and padding follows them; [`Run::last`] finds their ends.
    ///
    /// ```
    /// use headscope::model::{ModelConfig, Model, Tokens};
    /// let model = Model::random(&ModelConfig::default(), 0)?;
    /// let left = Tokens::from_padded(&model, &[vec![5, 6, 7], vec![0, 8, 9]], &[vec![1, 1, 1], vec![0, 1, 1]])?;
    /// assert_eq!(left, Tokens::from_ids(&model, &[vec![5, 6, 7], vec![8, 9]])?);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// [`Run::last`]: crate::model::Run::last
    ///
    /// # Errors
    /// As [`Tokens::from_ids`]; also if mask and rows differ in shape, or a prompt's tokens do not stand together.
    pub fn from_padded(of: &impl HasTokenizer, rows: &[Vec<i64>], mask: &[Vec<i64>]) -> Result<Self> {
        let lengths = |rows: &[Vec<i64>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
        if lengths(rows) != lengths(mask) {
            let (expected, found) = (format!("rows of lengths {:?}", lengths(rows)), format!("{:?}", lengths(mask)));
            return Err(Error::argument("mask", expected, found));
        }
        let inside = |(prompt, (row, mask)): (usize, (&Vec<i64>, &Vec<i64>))| {
            let first = mask.iter().position(|&real| real != 0).unwrap_or(0);
            let end = mask.iter().rposition(|&real| real != 0).map_or(0, |last| last + 1);
            match mask[first.min(end)..end].iter().all(|&real| real == 1) {
                true => Ok(row[first.min(end)..end].to_vec()),
                false => {
                    let found = format!("{mask:?} for prompt {prompt}");
                    Err(Error::argument("mask", "ones at tokens that stand together, zeros around them", found))
                }
            }
        };
        let rows = rows.iter().zip(mask).enumerate().map(inside).collect::<Result<Vec<_>>>()?;
        Self::from_ids(of, &rows)
    }

    /// Sets the text of each token, for figures and tables.
    ///
    /// # Errors
    /// If the texts do not match the tokens in number ([`Error::Argument`]).
    pub fn with_pieces(mut self, pieces: Vec<Vec<String>>) -> Result<Self> {
        self.same_lengths("pieces", &pieces)?;
        self.pieces = Some(pieces);
        Ok(self)
    }

    /// Sets the type of each token (BERT's segments: 0 for the first text, 1 for the second).
    ///
    /// # Errors
    /// If the types do not match the tokens in number ([`Error::Argument`]).
    pub fn with_types(mut self, types: Vec<Vec<i64>>) -> Result<Self> {
        self.same_lengths("types", &types)?;
        self.types = Some(types);
        Ok(self)
    }

    /// Sets what the encoder of an encoder-decoder reads for each prompt; these tokens are then the decoder's. Sources may differ
    /// in length from each other and from the decoder's tokens.
    ///
    /// ```
    /// use headscope::model::Tokens;
    /// let sources = Tokens::new(&[vec![5, 6, 7], vec![8, 9]])?;
    /// let tokens = Tokens::new(&[vec![0], vec![0]])?.with_source(sources)?;
    /// assert_eq!(tokens.source().map(Tokens::lengths), Some(vec![3, 2]));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the sources are not as many as the prompts, or have sources themselves ([`Error::Argument`]).
    pub fn with_source(mut self, source: Self) -> Result<Self> {
        if source.batch() != self.batch() {
            return Err(Error::argument("source", format!("{} of them, as of prompts", self.batch()), source.batch()));
        }
        if source.source.is_some() {
            return Err(Error::argument("source", "tokens without a source", "some with one"));
        }
        self.source = Some(Box::new(source));
        Ok(self)
    }

    /// What an encoder-decoder reads before these tokens.
    pub fn source(&self) -> Option<&Self> {
        self.source.as_deref()
    }

    /// Sets the id used for padding.
    pub fn with_pad(mut self, pad: i64) -> Self {
        self.pad = pad;
        self
    }

    /// The id used for padding.
    pub(crate) fn pad(&self) -> i64 {
        self.pad
    }

    fn same_lengths<T>(&self, name: &'static str, rows: &[Vec<T>]) -> Result<()> {
        let found: Vec<usize> = rows.iter().map(Vec::len).collect();
        if found == self.lengths() {
            Ok(())
        } else {
            Err(Error::argument(name, format!("rows of lengths {:?}", self.lengths()), format!("{found:?}")))
        }
    }

    /// The number of prompts.
    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    /// The length of the longest prompt.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The length of each prompt.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(Vec::len).collect()
    }

    /// Whether some prompts are shorter than others.
    pub fn is_padded(&self) -> bool {
        self.rows.iter().any(|row| row.len() < self.positions)
    }

    /// The flat places of each prompt's last token, prompt * positions + position, `[batch]`.
    pub(crate) fn last_places(&self) -> Tensor {
        let last = self.rows.iter().enumerate().map(|(prompt, row)| (prompt * self.positions + row.len() - 1) as i64);
        Tensor::from_slice(&last.collect::<Vec<_>>())
    }

    /// The ids of one prompt, without padding; empty if there is no such prompt.
    pub fn row(&self, prompt: usize) -> &[i64] {
        self.rows.get(prompt).map_or(&[], Vec::as_slice)
    }

    /// The ids of all prompts, without padding.
    pub fn rows(&self) -> &[Vec<i64>] {
        &self.rows
    }

    /// The text of each token of one prompt; the ids in decimal if no tokenizer produced them.
    pub fn pieces(&self, prompt: usize) -> Vec<String> {
        match self.pieces.as_ref().and_then(|pieces| pieces.get(prompt)) {
            Some(pieces) => pieces.clone(),
            None => self.row(prompt).iter().map(i64::to_string).collect(),
        }
    }

    /// For each prompt the first position at which it differs from the corresponding prompt of `other`; the length of
    /// the batch if it does not. In a causal model, everything before it is the same in both runs; where sources differ, nothing
    /// is, and the position is 0.
    ///
    /// ```
    /// use headscope::model::Tokens;
    /// let clean = Tokens::new(&[vec![5, 6, 7], vec![8, 9, 1]])?;
    /// let corrupt = Tokens::new(&[vec![5, 60, 7], vec![8, 9, 1]])?;
    /// assert_eq!(clean.first_differences(&corrupt)?, [1, 3]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the batches do not have equally many prompts.
    pub fn first_differences(&self, other: &Self) -> Result<Vec<usize>> {
        if self.batch() != other.batch() {
            return Err(Error::argument("tokens", format!("{} prompts", self.batch()), other.batch()));
        }
        let kind = |tokens: &Self, prompt: usize, position: usize| {
            tokens.types.as_ref().map_or(0, |types| types[prompt].get(position).copied().unwrap_or(0))
        };
        let first = |prompt: usize| {
            let (ours, others) = (self.row(prompt), other.row(prompt));
            let same = |position: &usize| {
                ours.get(*position) == others.get(*position)
                    && kind(self, prompt, *position) == kind(other, prompt, *position)
            };
            let row = |tokens: &Self| tokens.source().map(|source| source.row(prompt).to_vec());
            let one_source = row(self) == row(other);
            (0..self.positions).find(|position| !one_source || !same(position)).unwrap_or(self.positions)
        };
        Ok((0..self.batch()).map(first).collect())
    }

    /// The given prompts, in the given order, padded to the length of the whole batch.
    ///
    /// # Errors
    /// If a prompt does not exist ([`Error::OutOfRange`]).
    pub fn select(&self, prompts: &[usize]) -> Result<Self> {
        let limit = self.batch() as i64;
        if let Some(&bad) = prompts.iter().find(|&&prompt| prompt >= self.batch()) {
            return Err(Error::OutOfRange { at: "tokens".into(), axis: "batch", found: bad as i64, limit });
        }
        let pieces = self.pieces.as_ref().map(|all| prompts.iter().map(|&p| all[p].clone()).collect());
        let types = self.types.as_ref().map(|all| prompts.iter().map(|&p| all[p].clone()).collect());
        let rows = prompts.iter().map(|&p| self.rows[p].clone()).collect();
        let source = self.source().map(|source| source.select(prompts).map(Box::new)).transpose()?;
        Ok(Self { rows, positions: self.positions, pad: self.pad, pieces, types, source })
    }

    /// Whether the text of each token is known.
    pub(crate) fn has_pieces(&self) -> bool {
        self.pieces.is_some()
    }

    /// The same prompts, padded only to the longest of them.
    pub(crate) fn trimmed(mut self) -> Self {
        self.positions = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        self
    }

    /// The ids, `[batch, position]`, padded.
    pub(crate) fn ids(&self, device: Device) -> Tensor {
        self.padded(&self.rows, self.pad, device)
    }

    /// The types, `[batch, position]`, if there are any.
    pub(crate) fn types(&self, device: Device) -> Option<Tensor> {
        self.types.as_ref().map(|types| self.padded(types, 0, device))
    }

    fn padded(&self, rows: &[Vec<i64>], pad: i64, device: Device) -> Tensor {
        let mut flat = Vec::with_capacity(rows.len() * self.positions);
        for row in rows {
            flat.extend_from_slice(row);
            flat.resize(flat.len() + self.positions - row.len(), pad);
        }
        Tensor::from_slice(&flat).view([self.batch() as i64, self.positions as i64]).to_device(device)
    }

    /// True at real tokens and false at padding, `[batch, position]`: the mask of what a run returns.
    pub fn valid(&self, device: Device) -> Tensor {
        let lengths: Vec<i64> = self.rows.iter().map(|row| row.len() as i64).collect();
        let lengths = Tensor::from_slice(&lengths).to_device(device).unsqueeze(1);
        Tensor::arange(self.positions as i64, (Kind::Int64, device)).unsqueeze(0).lt_tensor(&lengths)
    }

    /// Identifies the batch: a hash of all ids and types, the number of prompts and ids, and the ids themselves if
    /// there are few, with their texts where these are known.
    pub(crate) fn provenance(&self) -> serde_json::Value {
        /// The most ids that are written out.
        const FEW: usize = 4096;
        let ids = self.rows.iter().map(Vec::len).sum::<usize>();
        let mut all = serde_json::json!({
            "sha256": crate::file::sha256(serde_json::json!([self.rows, self.types]).to_string().as_bytes()),
            "prompts": self.batch(),
            "ids": ids,
            "longest": self.positions,
        });
        if let Some(source) = &self.source {
            all["source"] = source.provenance();
        }
        if ids <= FEW {
            all["rows"] = serde_json::json!(self.rows);
            if let Some(pieces) = &self.pieces {
                all["pieces"] = serde_json::json!(pieces);
            }
        }
        all
    }

    /// Returns an error if an id, a type or the length does not fit a model of these sizes.
    pub(crate) fn check(&self, vocab: usize, types: usize, positions: usize) -> Result<()> {
        if self.positions > positions {
            let expected = format!("at most {positions} positions, the model's context");
            return Err(Error::argument("tokens", expected, self.positions));
        }
        let (vocab, limit) = (vocab as i64, types as i64);
        if self.is_padded() && !(0..vocab).contains(&self.pad) {
            let at = "padding of the prompts".to_owned();
            return Err(Error::OutOfRange { at, axis: "vocab", found: self.pad, limit: vocab });
        }
        if let Some(&found) = self.types.iter().flatten().flatten().find(|kind| !(0..limit).contains(*kind)) {
            return Err(Error::OutOfRange { at: "token types".into(), axis: "type", found, limit });
        }
        for (prompt, row) in self.rows.iter().enumerate() {
            if let Some(&found) = row.iter().find(|id| !(0..vocab).contains(*id)) {
                let at = format!("token ids of prompt {prompt}");
                return Err(Error::OutOfRange { at, axis: "vocab", found, limit: vocab });
            }
        }
        Ok(())
    }
}
