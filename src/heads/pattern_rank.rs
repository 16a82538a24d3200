//! How many dimensions do the logits behind a head's attention have on a text? At most its width, and often far fewer.

use tch::Kind;

use super::pattern::to_array;
use crate::circuits::{Ranks, logit_spectrum};
use crate::error::Result;
use crate::model::{Model, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// Weights below this are raised to it: in float32 the softmax may round them to 0, which has no logarithm.
const LEAST: f64 = 1e-12;

/// The effective rank of the logits behind each head's attention on each prompt: of `log P`, less the mean of each row, where P
/// is the pattern `[query, key]` ([`logit_spectrum`], [`Ranks::of`]). It is at most `d_head`. One row for each prompt and head.
/// A text of fewer tokens than a head has dimensions says little.
///
/// ```
/// use headscope::heads::pattern_ranks;
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-bert")?;
/// let tokens = model.tokens(&["the cat sat on the mat."])?;
/// let ranks = pattern_ranks(&model, &tokens)?.f64("value")?;
/// let config = model.config();
/// assert_eq!(ranks.len(), config.n_layers * config.n_heads);
/// assert!(ranks.iter().all(|rank| *rank <= config.d_head as f64));
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If the model masks keys, as a causal one does (a masked key has no logit), or a token does not fit it.
pub fn pattern_ranks(model: &Model, tokens: &Tokens) -> Result<Table> {
    let heads = model.config().n_heads;
    let number = |n: usize| u32::try_from(n).ok();
    let mut rows = vec![];
    model.each_layer(tokens, &[Site::Pattern], |layer, run| {
        for prompt in 0..tokens.batch() {
            let length = tokens.row(prompt).len(); // padding is not part of the prompt
            let shown = run.get(Site::Pattern(layer))?.get(prompt as i64);
            let shown = shown.narrow(1, 0, length as i64).narrow(2, 0, length as i64).to_kind(Kind::Double);
            let least = if model.config().causal { 0.0 } else { LEAST };
            let patterns = to_array(&shown.clamp_min(least), (heads, length, length))?;
            for (head, pattern) in patterns.outer_iter().enumerate() {
                let keys = Keys { prompt: number(prompt), layer: number(layer), head: number(head), ..Keys::default() };
                let value = Ranks::of(&logit_spectrum(&pattern)?.to_vec())?.effective;
                rows.push(Observation { keys, metric: "effective_rank".to_owned(), value, ..Observation::default() });
            }
        }
        Ok(())
    })?;
    let what = serde_json::json!({"what": "ranks of the logits behind patterns", "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, None)?)
}
