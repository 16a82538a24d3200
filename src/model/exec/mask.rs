//! Which keys does a query see?

use tch::{Device, Kind, Tensor};

use super::pass::Pass;
use crate::model::Model;
use crate::model::arch::Attend;
use crate::text::Tokens;

impl Model {
    /// True at real tokens, `[batch, position]`; `None` if no padding has to be hidden from attention. In a causal model none has:
    /// real tokens never see the padding on their right.
    pub(crate) fn hidden_padding(&self, tokens: &Tokens) -> Option<Tensor> {
        (tokens.is_padded() && !self.config().causal).then(|| tokens.valid(self.device()))
    }
}

/// Which queries are computed, and how many keys there are.
pub(super) struct Asked {
    /// The position of the query of each row, counted from the first computed one, if there is one query per row.
    pub wanted: Option<Tensor>,
    pub queries: i64,
    pub keys: i64,
    pub rows: i64,
}

impl Asked {
    /// The positions of the queries, `[query]`, or `[row, 1]` if each row has its own.
    pub(super) fn places(&self, pass: &Pass<'_>) -> Tensor {
        match &self.wanted {
            Some(wanted) => (wanted + pass.before).unsqueeze(1),
            None => Tensor::arange_start(self.keys - self.queries, self.keys, (Kind::Int64, pass.model.device())),
        }
    }

    /// True where a query sees a key, broadcast against `[row, head, query, key]`; `None` if every query sees all keys.
    pub(super) fn mask(&self, pass: &Pass<'_>, attend: &Attend) -> Option<Tensor> {
        let near = match (&self.wanted, attend.window) {
            (None, None) => {
                (attend.causal && self.queries > 1).then(|| causal_mask(self.queries, self.keys, pass.model.device()))
            }
            (wanted, window) if attend.causal || window.is_some() => {
                let distance =
                    self.places(pass).unsqueeze(-1) - Tensor::arange(self.keys, (Kind::Int64, pass.model.device()));
                let near = seen(&distance, attend.causal, window);
                Some(if wanted.is_some() { near.unsqueeze(1) } else { near })
            }
            _ => None,
        };
        // Rows are copies of the batch, one after another.
        let copies = |valid: &Tensor| {
            let valid = valid.repeat([self.rows / valid.size()[0], 1]).unsqueeze(1);
            // With a window, a padding query may see no real key. Nothing reads its output, but it must not be NaN.
            let padding = attend.window.filter(|_| self.wanted.is_none()).map(|_| valid.logical_not().unsqueeze(3));
            let valid = valid.unsqueeze(2);
            padding.map_or_else(|| valid.shallow_clone(), |padding| valid.logical_or(&padding))
        };
        let valid = pass.source.as_ref().filter(|_| attend.source).map_or(&pass.valid, |source| &source.valid);
        match (near, valid.as_ref().map(copies)) {
            (Some(near), Some(valid)) => Some(near.logical_and(&valid)),
            (near, valid) => near.or(valid),
        }
    }
}

/// Whether keys at these distances before their query are seen.
fn seen(distance: &Tensor, causal: bool, window: Option<usize>) -> Tensor {
    match (causal, window.map(|window| i64::try_from(window).unwrap_or(i64::MAX))) {
        (true, None) => distance.ge(0),
        (true, Some(window)) => distance.ge(0).logical_and(&distance.lt(window)),
        (false, window) => distance.abs().le(window.unwrap_or(i64::MAX) / 2),
    }
}

/// A boolean lower triangle for the last `query` of `key` positions, `[query, key]`: true where a query sees a key.
fn causal_mask(query: i64, key: i64, device: Device) -> Tensor {
    Tensor::ones([query, key], (Kind::Bool, device)).tril(key - query)
}
