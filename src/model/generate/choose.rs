//! Which token comes next, given logits?

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::Generation;
use crate::error::{Error, Result};

/// The likeliest token of each row of logits, `[row, vocab]`.
pub(super) fn likeliest(logits: &Tensor) -> Result<Vec<i64>> {
    // The largest of numbers among which one is NaN is NaN.
    let (largest, ids) = logits.max_dim(-1, false);
    let largest = Vec::<f64>::try_from(largest.to_kind(Kind::Double)).map_err(Error::torch("reading logits"))?;
    if let Some((index, &found)) = largest.iter().enumerate().find(|(_, largest)| !largest.is_finite()) {
        return Err(Error::NotFinite { at: "the largest logit of each prompt".into(), index, found });
    }
    Vec::try_from(ids).map_err(Error::torch("reading the likeliest tokens"))
}

impl Generation<'_> {
    /// A token drawn from `logits`, `[vocab]`, of which the largest is finite.
    pub(super) fn draw(&self, logits: &Tensor, rng: &mut ChaCha8Rng) -> Result<i64> {
        let k = self.top_k.unwrap_or(usize::MAX).min(logits.numel()) as i64;
        let (top, ids) = logits.to_kind(Kind::Double).topk(k, -1, true, true);
        let weights = ((&top - top.get(0)) / self.temperature).softmax(-1, None);
        let weights = Vec::<f64>::try_from(weights).map_err(Error::torch("reading probabilities"))?;
        let mut left: f64 = rng.random();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a little probability after the last weight.
        let last = weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0);
        Ok(ids.int64_value(&[chosen.unwrap_or(last) as i64]))
    }
}
