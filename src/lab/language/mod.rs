//! What are models trained on? Languages with known structure: seeded, streamed, every dependency annotated. And natural
//! text, whose dependencies are mostly unknown.
//!
//! | language | what it is | where |
//! |---|---|---|
//! | [`Tasks`] | queries about preceding tokens: k-back, first token, class, duplicate, bracket, induction; one task at a time, all at once, or in a mixture | `tasks.rs` |
//! | [`Repeats`] | random sequences that repeat with a random period from a random offset: what induction heads solve | `repeats.rs` |
//! | [`English`] | a small English, at varying distances: agreement, recurring entities, coreference, verbs and their objects | `english.rs`, `story.rs` |
//! | [`Text`] | windows of a natural text, by character or by byte pair encoding, with tokens in classes | `text.rs` |
//!
//! [`Language::annotated`] returns the stories as annotated text for any model; [`Batch::best_offset`] says how far one
//! fixed distance gets.
//!
//! Streams are random access: batch `i` of a seed is always the same, so training can resume at any step.

mod annotated;
mod english;
mod lexicon;
mod offset;
mod repeats;
mod story;
mod tasks;
mod text;

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use annotated::LookFrom;
pub use english::English;
pub use offset::FixedOffset;
pub use repeats::Repeats;
pub use tasks::{Regime, Task, Tasks};
pub use text::{Text, TextSource, TextTokens};

use super::streams::is_held_out;
use crate::checkpoint::Tokenizer;
use crate::error::{Error, Result};
use crate::model::Tokens;

/// A language, as written in a declaration.
///
/// ```
/// use headscope::lab::Language;
/// let language: Language = serde_json::from_str(r#"{"repeats": {"symbols": 20}}"#).unwrap();
/// let batch = language.batch(4, 0, 0)?;
/// let sample = &batch.samples[0];
/// let dependency = &sample.dependencies[0]; // the token predicted at `query` is the one at `source`
/// assert_eq!(sample.tokens[dependency.query + 1], sample.tokens[dependency.source]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Queries about preceding tokens.
    Tasks(Tasks),
    /// Random sequences that repeat.
    Repeats(Repeats),
    /// A small English.
    English(English),
    /// Windows of a natural text.
    Text(Text),
}

/// A sequence, the predictions to make in it, and what they depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// The predictions to make.
    pub targets: Vec<Target>,
    /// What the predictions depend on.
    pub dependencies: Vec<Dependency>,
}

/// One prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The position of the prediction, which may depend on this position and earlier ones.
    pub position: usize,
    /// The correct token.
    pub token: i64,
    /// The range of tokens to choose from.
    pub choices: Range<i64>,
    /// The task, as an index into [`Language::tasks`].
    pub task: usize,
}

/// A dependency: the prediction at `query` is determined by the token at `source`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dependency {
    /// The position at which the prediction is made.
    pub query: usize,
    /// The position that determines it.
    pub source: usize,
    /// The kind of dependency: one of [`Language::tasks`].
    pub kind: String,
}

/// A batch of sequences.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The token ids of all samples.
    pub tokens: Tokens,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// A task of a language, and the reference losses with and without its dependency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskInfo {
    /// The name.
    pub name: String,
    /// Loss in nats of a model that knows only the distribution of the answers.
    pub chance: f64,
    /// Loss in nats of a model that uses the source of every dependency.
    pub floor: f64,
}

impl Language {
    /// Checks that the options are valid.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first invalid one.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Tasks(tasks) => tasks.validate(),
            Self::Repeats(repeats) => repeats.validate(),
            Self::English(english) => english.validate(),
            Self::Text(text) => text.validate(),
        }
    }

    /// Size of the vocabulary; 0 if it comes from a text that cannot be read, which [`Language::validate`] reports.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Tasks(tasks) => tasks.vocab(),
            Self::Repeats(repeats) => repeats.vocab(),
            Self::English(_) => lexicon::words().len(),
            Self::Text(text) => text.vocab(),
        }
    }

    /// Length of the longest sequence.
    pub fn positions(&self) -> usize {
        match self {
            Self::Tasks(tasks) => tasks.positions(),
            Self::Repeats(repeats) => repeats.length,
            Self::English(english) => english.length,
            Self::Text(text) => text.length,
        }
    }

    /// The tasks, whose losses are reported separately.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        match self {
            Self::Tasks(tasks) => tasks.infos(),
            Self::Repeats(repeats) => repeats.infos(),
            Self::English(english) => english.infos(),
            Self::Text(text) => text.infos(),
        }
    }

    /// The text of every token, if tokens are words.
    pub fn words(&self) -> Option<Vec<String>> {
        match self {
            Self::Tasks(_) | Self::Text(_) => None,
            Self::Repeats(repeats) => repeats.words(),
            Self::English(_) => Some(lexicon::words().into_iter().map(str::to_owned).collect()),
        }
    }

    /// The tokenizer that trained models are saved with: of words or, for a natural text, of its own tokens. `None` if
    /// tokens are not text.
    ///
    /// # Errors
    /// If the text cannot be read or split.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match self {
            Self::Text(text) => text.tokenizer().map(Some),
            _ => self.words().map(|words| Tokenizer::of_words(&words)).transpose(),
        }
    }

    /// The text of every token, if tokens are text.
    fn pieces(&self) -> Result<Option<Vec<String>>> {
        match self {
            Self::Text(text) => text.pieces().map(Some),
            _ => Ok(self.words()),
        }
    }

    /// Samples `n` sequences: batch `number` of the stream with the given seed.
    ///
    /// # Errors
    /// If an option is invalid, or `n` is 0.
    pub fn batch(&self, n: usize, seed: u64, number: u64) -> Result<Batch> {
        let samples = self.samples(n, seed, number, true)?;
        let rows: Vec<Vec<i64>> = samples.iter().map(|sample| sample.tokens.clone()).collect();
        let mut tokens = Tokens::new(&rows)?;
        if let Some(all) = self.pieces()? {
            let pieces = |row: &Vec<i64>| row.iter().map(|&id| all[id as usize].clone()).collect();
            tokens = tokens.with_pieces(rows.iter().map(pieces).collect())?;
        }
        Ok(Batch { tokens, samples })
    }

    /// The samples of [`Language::batch`], with dependencies only if `annotated`.
    pub(in crate::lab) fn samples(&self, n: usize, seed: u64, number: u64, annotated: bool) -> Result<Vec<Sample>> {
        self.validate()?;
        if n == 0 {
            return Err(Error::argument("batch", "at least 1", n));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        (0..n).map(|_| self.sample(&mut rng, is_held_out(number), annotated)).collect()
    }

    /// One sequence; the options must have been validated. Only a finite text has a part of its own that is held out.
    fn sample(&self, rng: &mut ChaCha8Rng, held_out: bool, annotated: bool) -> Result<Sample> {
        Ok(match self {
            Self::Tasks(tasks) => tasks.sample(rng, annotated),
            Self::Repeats(repeats) => repeats.sample(rng, annotated),
            Self::English(english) => english.sample(rng, annotated),
            Self::Text(text) => text.sample(rng, held_out, annotated)?,
        })
    }
}

/// Fails if a value is out of bounds.
fn within(name: &'static str, value: usize, bounds: std::ops::RangeInclusive<usize>) -> Result<()> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(Error::argument(name, format!("{} to {}", bounds.start(), bounds.end()), value))
}
