//! How can any model with a tokenizer be tested on these languages? By sampling their sequences as annotated text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Language;
use crate::error::{Error, Result};
use crate::heads::{Annotated, Link};

/// Which word attends to the source of a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LookFrom {
    /// The previous word, at which a model of this language predicts the next one. Texts begin with the language's own
    /// BOS token.
    Prediction,
    /// The word itself, as in other annotated text: suited to models that read this language rather than generate it.
    Word,
}

impl Language {
    /// Samples `n` sequences as annotated texts, for [`Roles`](crate::heads::Roles). They are the sequences of
    /// [`Language::batch`].
    ///
    /// Every dependency becomes a link in the role of its kind, from the word that attends to its sources, with all
    /// other words as alternatives. A word is no source of its own.
    ///
    /// ```
    /// use headscope::lab::Language;
    /// use headscope::lab::language::LookFrom;
    /// let language: Language = serde_json::from_str(r#"{"english": {}}"#).unwrap();
    /// let text = &language.annotated(1, 0, 0, LookFrom::Word)?[0];
    /// let link = &text.links[0];
    /// println!("{}: {} looks at {}", link.role, &text.text[text.words[link.query].clone()], &text.text[text.words[link.keys[0]].clone()]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the language's tokens are not words; otherwise as for [`Language::batch`].
    pub fn annotated(&self, n: usize, seed: u64, number: u64, looking: LookFrom) -> Result<Vec<Annotated>> {
        let Some(lexicon) = self.words() else {
            return Err(Error::argument("language", "a language of words", "a language of symbols"));
        };
        // The BOS token is not a word of the text.
        let (skipped, ahead) = match looking {
            LookFrom::Prediction => (0, 0),
            LookFrom::Word => (usize::from(matches!(self, Self::English(_))), 1),
        };
        let of = |sample: &super::Sample| {
            let mut text = Annotated::default();
            for &token in &sample.tokens[skipped..] {
                if !text.text.is_empty() {
                    text.text.push(' ');
                }
                let (start, word) = (text.text.len(), &lexicon[token as usize]);
                text.text.push_str(word);
                text.words.push(start..start + word.len());
            }
            // Each query once, with all of its sources.
            let mut links: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
            for one in &sample.dependencies {
                let places = (one.query + ahead).checked_sub(skipped).zip(one.source.checked_sub(skipped));
                if let Some((query, key)) = places.filter(|&(query, key)| query < text.words.len() && query != key) {
                    links.entry((query, &one.kind)).or_default().push(key);
                }
            }
            let link = |((query, role), keys): ((usize, &str), Vec<usize>)| Link {
                role: role.to_owned(),
                query,
                keys,
                among: None,
            };
            text.links = links.into_iter().map(link).collect();
            text
        };
        Ok(self.batch(n, seed, number)?.samples.iter().map(of).collect())
    }
}
