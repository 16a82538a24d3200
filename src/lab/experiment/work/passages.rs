//! Which texts is a real model shown? Passages of equal length, drawn from natural texts.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::Input;
use crate::error::{Error, Result};
use crate::file;
use crate::lab::language::TextSource;
use crate::model::{Model, Tokens};
use crate::text::HasTokenizer;

/// Passages of natural texts, drawn at random.
///
/// Words are joined by single spaces, without the underscores that mark emphasis. A passage begins at any word; the model's
/// own tokenizer splits it, and it ends after the same number of tokens as all others. The texts take turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passages {
    /// The texts.
    pub texts: Vec<TextSource>,
    /// Number of passages per draw.
    pub count: usize,
    /// Tokens in a passage, those included that the tokenizer adds before and after every text.
    pub length: usize,
}

/// The words of the texts of [`Passages`].
pub(super) struct Words(Vec<Vec<String>>);

impl Passages {
    /// Reads the texts.
    ///
    /// # Errors
    /// If there is none, one cannot be read or is shorter than a passage, or a passage has fewer than two tokens.
    pub(super) fn read(&self) -> Result<Words> {
        if self.texts.is_empty() || self.count == 0 || self.length < 2 {
            let found = format!("{} texts, {} passages of {} tokens", self.texts.len(), self.count, self.length);
            return Err(Error::argument("passages", "at least one text, one passage and two tokens", found));
        }
        let words = |text: &TextSource| {
            let read = text.read()?.replace('_', "");
            let words: Vec<String> = read.split_whitespace().map(str::to_owned).collect();
            match words.len() > self.length {
                true => Ok(words),
                false => Err(Error::argument("text", format!("more than {} words", self.length), words.len())),
            }
        };
        Ok(Words(self.texts.iter().map(words).collect::<Result<_>>()?))
    }

    /// Draws `count` passages.
    ///
    /// # Errors
    /// If the model has no tokenizer, or its context is shorter than a passage.
    pub(super) fn draw(&self, words: &Words, model: &Model, count: usize, rng: &mut ChaCha8Rng) -> Result<Tokens> {
        let tokenizer = model.need_tokenizer()?;
        let (before, after) = tokenizer.frame()?;
        let inner = self.length.checked_sub(before.len() + after.len()).filter(|inner| *inner > 1);
        let inner = inner.ok_or_else(|| Error::argument("length", "room for two tokens of the text", self.length))?;
        let passage = |number: usize| {
            let words = &words.0[number % words.0.len()];
            // No token is longer than a word.
            let start = rng.random_range(0..words.len() - self.length);
            let ids = tokenizer.encode(&[words[start..start + self.length].join(" ")])?.row(0).to_vec();
            let own = ids.get(before.len()..before.len() + inner);
            let own = own.ok_or_else(|| Error::argument("text", "a token or more in every word", ids.len()))?;
            Ok([&before, own, &after].concat())
        };
        Tokens::from_ids(model, &(0..count).map(passage).collect::<Result<Vec<_>>>()?)
    }

    /// The files that are read, with their hashes; texts that are part of the library are none.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        let path = |text: &TextSource| if let TextSource::Path(path) = text { Some(path.clone()) } else { None };
        let input = |path: std::path::PathBuf| {
            Ok(Input { name: path.display().to_string(), sha256: file::sha256_of(&[file::found(&path)])? })
        };
        self.texts.iter().filter_map(path).map(input).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn passages() -> Passages {
        Passages { texts: vec![TextSource::Shakespeare, TextSource::PrideAndPrejudice], count: 6, length: 24 }
    }

    #[test]
    fn passages_are_of_one_length_and_follow_from_the_seed() {
        for name in ["tiny-gpt2", "tiny-llama", "tiny-bert"] {
            let model = Model::load(&format!("fixtures/checkpoints/{name}")).unwrap();
            let (passages, words) = (passages(), passages().read().unwrap());
            let draw = |seed| passages.draw(&words, &model, 6, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let tokens = draw(1);
            assert_eq!(tokens.lengths(), [24; 6], "{name}");
            assert!(tokens == draw(1) && tokens != draw(2), "{name}");
            let (before, after) = model.tokenizer().unwrap().frame().unwrap();
            assert!(tokens.rows().iter().all(|row| row.starts_with(&before) && row.ends_with(&after)), "{name}");
        }
    }

    #[test]
    fn passages_that_make_no_sense_are_refused() {
        let model = Model::load("fixtures/checkpoints/tiny-bert").unwrap();
        assert!(Passages { texts: vec![], ..passages() }.read().is_err());
        assert!(Passages { length: 1, ..passages() }.read().is_err());
        assert!(Passages { length: 1 << 30, ..passages() }.read().is_err());
        let framed = Passages { length: 3, ..passages() }; // [CLS], [SEP] and one token
        let words = framed.read().unwrap();
        assert!(framed.draw(&words, &model, 1, &mut ChaCha8Rng::seed_from_u64(0)).is_err());
    }
}
