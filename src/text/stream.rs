//! How do ids become text one by one, where a character may need several of them?

use super::Tokenizer;
use crate::error::Result;

/// How many tokens before the first new one are decoded with it.
const CONTEXT: usize = 16;

/// Decodes ids as they come. The pieces add up to what all ids decode to together.
///
/// Some tokenizers drop the space before a text's first word, and byte-level ones split characters. So ids are decoded
/// together with those of the piece before, and text that ends inside a character waits for the next id.
pub(crate) struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the last piece, and those after it.
    ids: Vec<i64>,
    /// How many belong to the last piece, and their text.
    read: usize,
    before: String,
}

impl<'a> Decoder<'a> {
    /// For ids that follow `prompt`.
    pub(crate) fn after(tokenizer: &'a Tokenizer, prompt: &[i64]) -> Result<Self> {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let before = tokenizer.decode(&ids)?;
        Ok(Self { tokenizer, read: ids.len(), ids, before })
    }

    /// The text that one more id completes; empty while it ends inside a character.
    pub(crate) fn push(&mut self, id: i64) -> Result<String> {
        self.ids.push(id);
        let all = self.tokenizer.decode(&self.ids)?;
        if all.ends_with('\u{fffd}') || all == self.before {
            return Ok(String::new());
        }
        let new = after(&self.before, &all);
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        self.before = self.tokenizer.decode(&self.ids)?;
        Ok(new)
    }

    /// What remains when no id follows: U+FFFD for an incomplete character.
    pub(crate) fn finish(&self) -> Result<String> {
        Ok(after(&self.before, &self.tokenizer.decode(&self.ids)?))
    }
}

/// What `all` has after the characters that it begins with as `before` does: a decoder may change the end of a text as it
/// grows.
fn after(before: &str, all: &str) -> String {
    let common = before.chars().zip(all.chars()).take_while(|(a, b)| a == b);
    all[common.map(|(a, _)| a.len_utf8()).sum()..].to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The prompt and the pieces after it are what all ids decode to, in bytes and in words, wherever the prompt ends.
        #[test]
        fn pieces_add_up(
            name in prop::sample::select(vec!["tiny-gpt2", "tiny-llama"]),
            text in "(\\PC|[ a-zé€😀]){1,12}",
            cut in 1usize..6,
            noise in prop::collection::vec(0i64..90, 0..8),
        ) {
            let path = format!("{}/fixtures/checkpoints/{name}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
            let tokenizer = Tokenizer::read(std::path::Path::new(&path)).unwrap();
            let Ok(tokens) = tokenizer.encode(&[text]) else { return Ok(()) };
            let ids = [tokens.row(0), &noise].concat();
            let cut = cut.min(ids.len());
            let (prompt, whole) = (tokenizer.decode(&ids[..cut]).unwrap(), tokenizer.decode(&ids).unwrap());
            let mut decoder = Decoder::after(&tokenizer, &ids[..cut]).unwrap();
            let mut pieces = String::new();
            for &id in &ids[cut..] {
                pieces += &decoder.push(id).unwrap();
            }
            pieces += &decoder.finish().unwrap();
            prop_assert_eq!(pieces, after(&prompt, &whole));
        }
    }
}
