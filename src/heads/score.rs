//! Kinds of attention, each a weight on the edges from a query to the keys that it sees.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How much of a head's attention is of one kind?
///
/// All but the last two are a weight w on edges, and the score is the mean over queries q of the attention-weighted sum over
/// keys k, `1/|Q| sum_q sum_k A[q, k] w[q, k]`. A query counts where the score depends on where it looks: where w is not the same
/// for all keys that it sees. So the first token of a causal model, which has one key only, never counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PatternScore {
    /// `previous_token`: attention to the token before.
    PreviousToken,
    /// `current_token`: attention to the token itself.
    CurrentToken,
    /// `back_K`: attention to the K-th token before.
    Back(usize),
    /// `ahead_K`: attention to the K-th token behind; a causal model has none.
    Ahead(usize),
    /// `first_token`: attention to the first token of the prompt, whatever it is.
    FirstToken,
    /// `sentence_start`: attention to the first word of the query's own sentence, from its other tokens.
    SentenceStart,
    /// `special_token`: attention to tokens that stand for no text, such as `[CLS]` and `[SEP]`.
    SpecialToken,
    /// `delimiter`: attention to punctuation and line breaks.
    Delimiter,
    /// `local_window_K`: attention to tokens at most K away, the token itself included.
    LocalWindow(usize),
    /// `duplicate_token`: attention to other places where the same token stands (in a causal model: earlier ones).
    DuplicateToken,
    /// `induction`: attention to tokens that stand behind another place where the same token stands (Olsson et al. 2022).
    Induction,
    /// `distance`: how far away the tokens attended to are, in tokens.
    Distance,
    /// `entropy`: of each query's attention, in nats.
    Entropy,
    /// `positional`: how often the key of largest weight stands at the head's favourite offset (Voita et al. 2019), of the
    /// offsets up to 16 tokens away.
    Positional,
}

impl PatternScore {
    /// The scores that are computed unless others are asked for. A causal model leaves out [`PatternScore::Ahead`].
    pub fn usual() -> Vec<Self> {
        let mut all = vec![Self::PreviousToken, Self::CurrentToken, Self::Ahead(1), Self::FirstToken];
        all.extend((2..=4).map(Self::Back));
        all.extend([Self::SentenceStart, Self::SpecialToken, Self::Delimiter, Self::LocalWindow(4)]);
        all.extend([Self::DuplicateToken, Self::Induction, Self::Distance, Self::Entropy, Self::Positional]);
        all
    }

    /// Whether a causal model can have it.
    pub(super) fn looks_ahead(self) -> bool {
        matches!(self, Self::Ahead(_))
    }

    /// The weight of the edge from `query` to a `key` that it sees; 0 for the two scores that are none.
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

    /// Fails where the score's number makes no sense.
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

/// What the scores need to know of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    ids: Vec<i64>,
    causal: bool,
    special: Vec<bool>,
    delimiter: Vec<bool>,
    /// Where the sentence of each position starts, where that is known.
    starts: Vec<Option<usize>>,
}

impl Prompt {
    /// A prompt of which the token ids are known: scores that read the text will be missing.
    pub fn new(ids: &[i64], causal: bool) -> Self {
        let none = vec![false; ids.len()];
        Self { ids: ids.to_vec(), causal, special: none.clone(), delimiter: none, starts: vec![None; ids.len()] }
    }

    /// The same prompt with each token's text, and whether it stands for none (`[CLS]`, `<s>`).
    ///
    /// # Errors
    /// Where there are not as many as tokens.
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

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Number of keys that a query sees; they are the first ones.
    pub(super) fn seen(&self, query: usize) -> usize {
        if self.causal { query + 1 } else { self.len() }
    }
}

fn is_delimiter(piece: &str) -> bool {
    let word = piece.trim();
    piece.contains('\n') || (!word.is_empty() && word.chars().all(|c| ".,;:!?…。、！？".contains(c)))
}

/// A sentence starts at the first word behind a special token, a full stop or a line break.
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
