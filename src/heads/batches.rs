//! How many prompts fit through the model at once? Batches whose attention patterns fit in memory.

use crate::checkpoint::Tokenizer;
use crate::error::Result;
use crate::model::{Model, Tokens};

use super::score::Prompt;

/// The most bytes of one layer's pattern: this limits how many prompts are run together.
const MOST_BYTES: usize = 1 << 25;
/// The most tokens at once: beyond this, the matrix products are large enough.
const MOST_TOKENS: usize = 4096;

/// Indices of the prompts to run together, grouped by length. Every prompt is in exactly one batch.
pub(super) fn batches(model: &Model, tokens: &Tokens) -> Vec<Vec<usize>> {
    let lengths = tokens.lengths();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&prompt| lengths[prompt]);
    let edge = model.config().n_heads * model.kind().elt_size_in_bytes();
    let mut batches: Vec<Vec<usize>> = vec![];
    for prompt in order {
        let n = lengths[prompt]; // the longest so far
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * n * n * edge <= MOST_BYTES && (batch.len() + 1) * n <= MOST_TOKENS => {
                batch.push(prompt);
            }
            _ => batches.push(vec![prompt]),
        }
    }
    batches
}

/// The given prompts, padded to the longest of them.
pub(super) fn select(tokens: &Tokens, prompts: &[usize]) -> Result<Tokens> {
    Ok(tokens.select(prompts)?.trimmed())
}

/// What the scores need to know about each prompt: its ids and, if known, the texts of its tokens.
pub(super) fn prompts(model: &Model, tokens: &Tokens) -> Result<Vec<Prompt>> {
    let causal = model.config().causal;
    let prompt = |number: usize| {
        let ids = tokens.row(number);
        let pieces = match model.tokenizer() {
            Some(tokenizer) => ids.iter().map(|&id| tokenizer.piece(id)).collect(),
            None => tokens.pieces(number),
        };
        let special = |&id: &i64| model.tokenizer().is_some_and(|tokenizer: &Tokenizer| tokenizer.is_special(id));
        let special: Vec<bool> = ids.iter().map(special).collect();
        let known = model.tokenizer().is_some() || tokens.has_pieces();
        if known { Prompt::new(ids, causal).with_text(&pieces, &special) } else { Ok(Prompt::new(ids, causal)) }
    };
    (0..tokens.batch()).map(prompt).collect()
}
