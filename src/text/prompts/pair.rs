//! How is a pair of prompts written down? As texts or token ids, with places named by number or by the words there.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::text::{HasTokenizer, Tokens};

/// A prompt: a text, or token ids. In JSON, a string or a list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Ids(Vec<i64>),
}

/// An answer: a text that is a single token, such as `" Mary"`, or a token id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word {
    /// A text that is a single token.
    Text(String),
    /// A token id.
    Id(i64),
}

/// A place in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// A position, counted from 0, or from the end if negative. In JSON, a number.
    Index(i64),
    /// The last token of some words that the text contains once. In JSON, a string.
    Words(String),
    /// The last token of these words where they occur for the n-th time, counted from 0. In JSON, `["Mary", 1]`.
    Nth(String, usize),
    /// The last token of this range of the text's bytes. In JSON, `{"start": 5, "end": 9}`.
    Bytes(Range<usize>),
}

/// The places of one name in the two prompts of a pair. In JSON, one place for both or `{"clean": .., "corrupt": ..}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Places {
    Each { clean: Place, corrupt: Place },
    Both(Place),
}

/// A clean and a corrupt prompt, with a right and a wrong answer and the positions that matter by name.
///
/// ```
/// use headscope::prelude::*;
/// let pair = Pair::new("When John met Mary, Mary gave a book to", "When John met Mary, John gave a book to")
///     .answers(" John", " Mary")
///     .at("verb", "gave")
///     .at("S1", prompts::Place::Nth("Mary".to_owned(), 0))
///     .at_each("S2", prompts::Place::Nth("Mary".to_owned(), 1), prompts::Place::Nth("John".to_owned(), 1));
/// let json = r#"[{"clean": "the cat", "corrupt": "the dog", "answers": [" sat", " ran"], "positions": {"animal": 1}}]"#;
/// assert_eq!(prompts::Recipe::from_json(json)?, [Pair::new("the cat", "the dog").answers(" sat", " ran").at("animal", 1)].into());
/// # assert_eq!(serde_json::from_str::<Pair>(&serde_json::to_string(&pair).unwrap()).unwrap(), pair);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    pub(super) clean: Prompt,
    pub(super) corrupt: Prompt,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) answers: Option<(Word, Word)>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    positions: BTreeMap<String, Places>,
}

impl Pair {
    /// A pair without answers and names.
    pub fn new(clean: impl Into<Prompt>, corrupt: impl Into<Prompt>) -> Self {
        Self { clean: clean.into(), corrupt: corrupt.into(), answers: None, positions: BTreeMap::new() }
    }

    /// Sets the right answer to the clean prompt, and the wrong one.
    pub fn answers(mut self, right: impl Into<Word>, wrong: impl Into<Word>) -> Self {
        self.answers = Some((right.into(), wrong.into()));
        self
    }

    /// Names a place that is the same in both prompts, by number or by words.
    pub fn at(mut self, name: &str, place: impl Into<Place>) -> Self {
        self.positions.insert(name.to_owned(), Places::Both(place.into()));
        self
    }

    /// Names a place that is given for each of the two prompts.
    pub fn at_each(mut self, name: &str, clean: impl Into<Place>, corrupt: impl Into<Place>) -> Self {
        self.positions.insert(name.to_owned(), Places::Each { clean: clean.into(), corrupt: corrupt.into() });
        self
    }

    /// Each name with its places in the clean and in the corrupt prompt.
    pub(super) fn places(&self) -> impl Iterator<Item = (&String, &Place, &Place)> {
        self.positions.iter().map(|(name, places)| match places {
            Places::Each { clean, corrupt } => (name, clean, corrupt),
            Places::Both(place) => (name, place, place),
        })
    }
}

/// A prompt's ids, with what is needed to find places in it.
pub(super) struct Encoded<'a> {
    pub(super) ids: Vec<i64>,
    /// Which prompt it is, for errors.
    at: String,
    /// The text, and the bytes that each token comes from; none if the prompt was given as ids.
    text: Option<(&'a str, Vec<Range<usize>>)>,
    /// The position of the last token that belongs to the prompt itself, not to what a tokenizer adds after it.
    pub(super) end: usize,
}

impl<'a> Encoded<'a> {
    /// The tokens of a prompt, with the special tokens that a tokenizer adds to texts.
    pub(super) fn new(prompt: &'a Prompt, of: &impl HasTokenizer, at: String) -> Result<Self> {
        let (ids, text, after) = match prompt {
            Prompt::Ids(ids) => (ids.clone(), None, 0),
            Prompt::Text(text) => {
                let tokenizer = of.need_tokenizer()?;
                let ids = tokenizer.ids(text, true, &at)?;
                (ids, Some((text.as_str(), tokenizer.spans(text)?)), tokenizer.frame()?.1.len())
            }
        };
        match ids.len().checked_sub(1 + after) {
            Some(end) => Ok(Self { ids, at, text, end }),
            None => Err(Error::argument("prompts", "at least one token a prompt", format!("{at} is empty"))),
        }
    }

    /// The position of a place that is called `name`.
    pub(super) fn find(&self, name: &str, place: &Place) -> Result<usize> {
        let wrong = |expected: String, found: String| {
            Error::argument("position", format!("`{name}` at {expected}"), format!("{found} in {}", self.at))
        };
        let (words, nth) = match place {
            Place::Index(index) => {
                let length = self.ids.len() as i64;
                let from_start = if *index < 0 { length + index } else { *index };
                return match usize::try_from(from_start) {
                    Ok(position) if from_start < length => Ok(position),
                    _ => Err(wrong(format!("one of {length} positions"), index.to_string())),
                };
            }
            Place::Bytes(range) => {
                return self.token_of(range).ok_or_else(|| wrong(format!("a token of bytes {range:?}"), "none".into()));
            }
            Place::Words(words) => (words.trim(), None),
            Place::Nth(words, nth) => (words.trim(), Some(*nth)),
        };
        let Some((text, _)) = &self.text else {
            return Err(wrong("a number, where prompts are token ids".to_owned(), format!("`{words}`")));
        };
        let all = occurrences(text, words);
        let expected = || match nth {
            Some(nth) => format!("`{words}` at least {} times", nth + 1),
            None => format!("`{words}` once (`[\"{words}\", 1]` is the second time)"),
        };
        let chosen = match (nth, all.as_slice()) {
            (Some(nth), all) => all.get(nth),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let range = chosen.ok_or_else(|| wrong(expected(), format!("it {} times", all.len())))?;
        self.token_of(range).ok_or_else(|| wrong(expected(), "no token of it".to_owned()))
    }

    /// The last token that comes from this range of bytes.
    fn token_of(&self, range: &Range<usize>) -> Option<usize> {
        let (_, spans) = self.text.as_ref()?;
        spans.iter().rposition(|span| span.start < range.end && span.end > range.start && !span.is_empty())
    }
}

/// Where `words` occur in a text as whole words.
fn occurrences(text: &str, words: &str) -> Vec<Range<usize>> {
    let joins =
        |a: Option<char>, b: Option<char>| a.is_some_and(char::is_alphanumeric) && b.is_some_and(char::is_alphanumeric);
    let whole = |range: &Range<usize>| {
        let (before, after) = (text[..range.start].chars().next_back(), text[range.end..].chars().next());
        !joins(before, words.chars().next()) && !joins(words.chars().next_back(), after)
    };
    if words.is_empty() {
        return vec![];
    }
    text.match_indices(words).map(|(start, found)| start..start + found.len()).filter(whole).collect()
}

/// The tokens of prompts that are each a text or token ids.
///
/// # Errors
/// If one is empty, does not fit the model, or is a text where there is no tokenizer.
pub fn tokens(of: &impl HasTokenizer, prompts: &[Prompt]) -> Result<Tokens> {
    let ids = |(i, prompt)| Ok(Encoded::new(prompt, of, format!("prompt {i}"))?.ids);
    Tokens::from_ids(of, &prompts.iter().enumerate().map(ids).collect::<Result<Vec<_>>>()?)
}

impl Word {
    /// The token id of the answer.
    ///
    /// # Errors
    /// If the text is not a single token, or there is no tokenizer.
    pub fn id(&self, of: &impl HasTokenizer) -> Result<i64> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Text(text) => of.need_tokenizer()?.single(text),
        }
    }

    /// The id and the text of the answer.
    pub(super) fn resolve(&self, of: &impl HasTokenizer, at: &str) -> Result<(i64, String)> {
        let explained = |error| match error {
            Error::Argument { name, expected, found } => {
                Error::Argument { name, expected, found: format!("{found}, in {at}") }
            }
            other => other,
        };
        let id = self.id(of).map_err(explained)?;
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::Id(id) => of.tokenizer().map_or_else(|| id.to_string(), |tokenizer| tokenizer.piece(*id)),
        };
        Ok((id, text))
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<i64>> for Prompt {
    fn from(ids: Vec<i64>) -> Self {
        Self::Ids(ids)
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Word {
    fn from(id: i64) -> Self {
        Self::Id(id)
    }
}

impl From<i64> for Place {
    fn from(index: i64) -> Self {
        Self::Index(index)
    }
}

impl From<&str> for Place {
    fn from(words: &str) -> Self {
        Self::Words(words.to_owned())
    }
}

impl From<Range<usize>> for Place {
    fn from(bytes: Range<usize>) -> Self {
        Self::Bytes(bytes)
    }
}
