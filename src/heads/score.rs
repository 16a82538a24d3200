//! What kinds of attention are there? Each is a weight on the edges from a query to the keys that it sees.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How much of a head's attention is of one kind?
///
/// All but the last two scores are a weight w on edges; the score is the mean over queries q of the attention-weighted
/// sum over keys k, `1/|Q| sum_q sum_k A[q, k] w[q, k]`. A query counts only if the score depends on where it attends,
/// that is, if w differs between the keys that it sees. The first token of a causal model, which sees a single key,
/// therefore never counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PatternScore {
    /// `previous_token`: attention to the previous token.
    PreviousToken,
    /// `current_token`: attention to the token itself.
    CurrentToken,
    /// `back_K`: attention to the token K positions before.
    Back(usize),
    /// `ahead_K`: attention to the token K positions after; a causal model has none.
    Ahead(usize),
    /// `first_token`: attention to the first token of the prompt, whatever it is.
    FirstToken,
    /// `sentence_start`: attention to the first word of the query's own sentence, from its other tokens.
    SentenceStart,
    /// `special_token`: attention to special tokens, such as `[CLS]` and `[SEP]`.
    SpecialToken,
    /// `delimiter`: attention to punctuation and line breaks.
    Delimiter,
    /// `local_window_K`: attention to tokens at most K positions away, the token itself included.
    LocalWindow(usize),
    /// `duplicate_token`: attention to other occurrences of the same token (in a causal model: earlier ones).
    DuplicateToken,
    /// `induction`: attention to tokens that follow another occurrence of the same token (Olsson et al. 2022).
    Induction,
    /// `distance`: the mean distance to the attended tokens, in tokens.
    Distance,
    /// `entropy`: the mean entropy of the queries' attention, in nats.
    Entropy,
    /// `positional`: how often the key of largest weight is at the head's favourite offset (Voita et al. 2019), among
    /// offsets of up to 16 tokens.
    Positional,
}

impl PatternScore {
    /// The default scores. [`PatternScore::Ahead`] is left out for a causal model.
    pub fn usual() -> Vec<Self> {
        let mut all = vec![Self::PreviousToken, Self::CurrentToken, Self::Ahead(1), Self::FirstToken];
        all.extend((2..=4).map(Self::Back));
        all.extend([Self::SentenceStart, Self::SpecialToken, Self::Delimiter, Self::LocalWindow(4)]);
        all.extend([Self::DuplicateToken, Self::Induction, Self::Distance, Self::Entropy, Self::Positional]);
        all
    }

    /// Whether the score needs to see later tokens, which a causal model cannot.
    pub(super) fn looks_ahead(self) -> bool {
        matches!(self, Self::Ahead(_))
    }

    /// The weight of the edge from `query` to a `key` that it sees; 0 for the two scores that are not edge weights.
    pub(super) fn weight(self, prompt: &Prompt, query: usize, key: usize) -> f64 {
        let same = |a: usize, b: usize| prompt.ids[a] == prompt.ids[b];
        let hit = match self {
            Self::PreviousToken => query == key + 1,
            Self::CurrentToken => query == key,
            Self::Back(k) => query == key + k,
            Self::Ahead(k) => key == query + k,
            Self::FirstToken => key == 0,
            Self::SentenceStart => prompt.starts[query] == Some(key) && key != query,
            Self::SpecialToken => prompt.special[key],
            Self::Delimiter => prompt.delimiter[key],
            Self::LocalWindow(k) => query.abs_diff(key) <= k,
            Self::DuplicateToken => query != key && same(query, key),
            Self::Induction => key > 0 && key - 1 != query && same(query, key - 1),
            Self::Distance => return query.abs_diff(key) as f64,
            Self::Entropy | Self::Positional => false,
        };
        f64::from(hit)
    }

    /// Returns an error if the offset of the score is 0.
    pub(super) fn validate(self) -> Result<()> {
        match self {
            Self::Back(0) | Self::Ahead(0) => Err(Error::argument("scores", "an offset of at least 1", self)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for PatternScore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Back(k) => write!(f, "back_{k}"),
            Self::Ahead(k) => write!(f, "ahead_{k}"),
            Self::LocalWindow(k) => write!(f, "local_window_{k}"),
            Self::PreviousToken => f.write_str("previous_token"),
            Self::CurrentToken => f.write_str("current_token"),
            Self::FirstToken => f.write_str("first_token"),
            Self::SentenceStart => f.write_str("sentence_start"),
            Self::SpecialToken => f.write_str("special_token"),
            Self::Delimiter => f.write_str("delimiter"),
            Self::DuplicateToken => f.write_str("duplicate_token"),
            Self::Induction => f.write_str("induction"),
            Self::Distance => f.write_str("distance"),
            Self::Entropy => f.write_str("entropy"),
            Self::Positional => f.write_str("positional"),
        }
    }
}

impl FromStr for PatternScore {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let numbered = |prefix: &str| name.strip_prefix(prefix).and_then(|k| k.parse().ok());
        let unnumbered = || Self::usual().into_iter().find(|score| score.to_string() == name);
        let found = numbered("back_").map(Self::Back).or_else(|| numbered("ahead_").map(Self::Ahead));
        let found = found.or_else(|| numbered("local_window_").map(Self::LocalWindow)).or_else(unnumbered);
        let known = || Self::usual().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| Error::argument("scores", format!("one of {}", known()), name))
    }
}

impl TryFrom<String> for PatternScore {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<PatternScore> for String {
    fn from(score: PatternScore) -> Self {
        score.to_string()
    }
}

/// What the scores need to know about a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    ids: Vec<i64>,
    causal: bool,
    special: Vec<bool>,
    delimiter: Vec<bool>,
    /// The start of the sentence of each position, if known.
    starts: Vec<Option<usize>>,
}

impl Prompt {
    /// A prompt given by its token ids only. Scores that need the text will be missing.
    pub fn new(ids: &[i64], causal: bool) -> Self {
        let none = vec![false; ids.len()];
        Self { ids: ids.to_vec(), causal, special: none.clone(), delimiter: none, starts: vec![None; ids.len()] }
    }

    /// Sets the text of each token, and whether it is a special token (`[CLS]`, `<s>`).
    ///
    /// # Errors
    /// If their numbers differ from the number of tokens.
    pub fn with_text(mut self, pieces: &[String], special: &[bool]) -> Result<Self> {
        if (pieces.len(), special.len()) != (self.ids.len(), self.ids.len()) {
            let found = format!("{} and {}", pieces.len(), special.len());
            return Err(Error::argument("pieces, special", format!("{} of each", self.ids.len()), found));
        }
        self.special = special.to_vec();
        self.delimiter = pieces.iter().zip(special).map(|(piece, special)| !special && is_delimiter(piece)).collect();
        self.starts = sentence_starts(pieces, special);
        Ok(self)
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The number of keys that a query sees, starting with the first.
    pub(super) fn seen(&self, query: usize) -> usize {
        if self.causal { query + 1 } else { self.len() }
    }
}

fn is_delimiter(piece: &str) -> bool {
    let word = piece.trim();
    piece.contains('\n') || (!word.is_empty() && word.chars().all(|c| ".,;:!?…。、！？".contains(c)))
}

/// A sentence starts at the first word after a special token, a full stop or a line break.
fn sentence_starts(pieces: &[String], special: &[bool]) -> Vec<Option<usize>> {
    let ends = |piece: &str| is_delimiter(piece) && piece.contains(['.', '!', '?', '\n', '…', '。', '！', '？']);
    let (mut start, mut fresh) = (None, true);
    let at = |(position, (piece, special)): (usize, (&String, &bool))| {
        if *special {
            (start, fresh) = (None, true);
        } else if fresh && piece.contains(char::is_alphanumeric) {
            (start, fresh) = (Some(position), false);
        }
        fresh |= ends(piece);
        start
    };
    pieces.iter().zip(special).enumerate().map(at).collect()
}
