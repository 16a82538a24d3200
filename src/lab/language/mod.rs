//! Languages with known structure: seeded, streamed, every dependency annotated.
//!
//! | language | what it is | where |
//! |---|---|---|
//! | [`Tasks`] | a query about what stands before it: k-back, first token, class, duplicate, bracket, induction; one task at a time, all at once, or in a mixture | `tasks.rs` |
//! | [`Repeats`] | random sequences that repeat with a random period from a random offset on: what induction heads solve | `repeats.rs` |
//! | [`English`] | a small English: agreement, recurring entities, coreference, verbs and their objects, verbs and their particles | `english.rs` |
//!
//! [`Language::annotated`] gives the stories as annotated text for any model.
//!
//! A stream is random access: batch `i` of a seed is the same whenever it is asked for, so that training resumes anywhere.

mod annotated;
mod english;
mod lexicon;
mod repeats;
mod tasks;

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use annotated::LookFrom;
pub use english::English;
pub use repeats::Repeats;
pub use tasks::{Regime, Task, Tasks};

use crate::error::{Error, Result};
use crate::model::Tokens;

/// A language, as a declaration states it.
///
/// ```
/// use headscope::lab::Language;
/// let language: Language = serde_json::from_str(r#"{"repeats": {"symbols": 20}}"#).unwrap();
/// let batch = language.batch(4, 0, 0)?;
/// let sample = &batch.samples[0];
/// let dependency = &sample.dependencies[0]; // what is predicted at `query` stands at `source`
/// assert_eq!(sample.tokens[dependency.query + 1], sample.tokens[dependency.source]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Queries about what stands before them.
    Tasks(Tasks),
    /// Random sequences that repeat.
    Repeats(Repeats),
    /// A small English.
    English(English),
}

/// One sequence, what is to be predicted in it, and why that can be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// What is to be predicted.
    pub targets: Vec<Target>,
    /// What the predictions depend on.
    pub dependencies: Vec<Dependency>,
}

/// One prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The position at which it is made: it may read this position and those before.
    pub position: usize,
    /// The token that is right.
    pub token: i64,
    /// The tokens among which it is chosen.
    pub choices: Range<i64>,
    /// The task, as its place in [`Language::tasks`].
    pub task: usize,
}

/// One dependency: what is predicted at `query` is decided by what stands at `source`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dependency {
    /// The position at which the prediction is made.
    pub query: usize,
    /// The position that decides it.
    pub source: usize,
    /// Which kind of dependency: one of [`Language::tasks`].
    pub kind: String,
}

/// Some sequences of a language.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The token ids of all samples.
    pub tokens: Tokens,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// A language's tasks, and what one loses who does not know or knows what a prediction depends on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskInfo {
    /// The name.
    pub name: String,
    /// Loss in nats of one who knows the distribution of the answers only.
    pub chance: f64,
    /// Loss in nats of one who reads the source of every dependency.
    pub floor: f64,
}

impl Language {
    /// Checks that the options make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first that does not.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Tasks(tasks) => tasks.validate(),
            Self::Repeats(repeats) => repeats.validate(),
            Self::English(english) => english.validate(),
        }
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Tasks(tasks) => tasks.vocab(),
            Self::Repeats(repeats) => repeats.vocab(),
            Self::English(_) => lexicon::words().len(),
        }
    }

    /// Length of the longest sequence.
    pub fn positions(&self) -> usize {
        match self {
            Self::Tasks(tasks) => tasks.positions(),
            Self::Repeats(repeats) => repeats.length,
            Self::English(english) => english.length,
        }
    }

    /// The tasks whose losses are told apart.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        match self {
            Self::Tasks(tasks) => tasks.infos(),
            Self::Repeats(repeats) => repeats.infos(),
            Self::English(english) => english.infos(),
        }
    }

    /// The text of every token, where tokens are words.
    pub fn words(&self) -> Option<Vec<String>> {
        match self {
            Self::Tasks(_) => None,
            Self::Repeats(repeats) => repeats.words(),
            Self::English(_) => Some(lexicon::words().into_iter().map(str::to_owned).collect()),
        }
    }

    /// `n` sequences: the batch of this number in the stream of this seed.
    ///
    /// # Errors
    /// Where an option makes no sense, or `n` is 0.
    pub fn batch(&self, n: usize, seed: u64, number: u64) -> Result<Batch> {
        let samples = self.samples(n, seed, number, true)?;
        let rows: Vec<Vec<i64>> = samples.iter().map(|sample| sample.tokens.clone()).collect();
        let mut tokens = Tokens::new(&rows)?;
        if let Some(words) = self.words() {
            let pieces = |row: &Vec<i64>| row.iter().map(|&id| words[id as usize].clone()).collect();
            tokens = tokens.with_pieces(rows.iter().map(pieces).collect())?;
        }
        Ok(Batch { tokens, samples })
    }

    /// The samples of [`Language::batch`]; where they are not to be annotated, without dependencies.
    pub(in crate::lab) fn samples(&self, n: usize, seed: u64, number: u64, annotated: bool) -> Result<Vec<Sample>> {
        self.validate()?;
        if n == 0 {
            return Err(Error::argument("batch", "at least 1", n));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        Ok((0..n).map(|_| self.sample(&mut rng, annotated)).collect())
    }

    /// One sequence; the options have been validated.
    fn sample(&self, rng: &mut ChaCha8Rng, annotated: bool) -> Sample {
        match self {
            Self::Tasks(tasks) => tasks.sample(rng, annotated),
            Self::Repeats(repeats) => repeats.sample(rng, annotated),
            Self::English(english) => english.sample(rng, annotated),
        }
    }
}

/// Fails where a length is outside its bounds.
fn within(name: &'static str, value: usize, bounds: std::ops::RangeInclusive<usize>) -> Result<()> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(Error::argument(name, format!("{} to {}", bounds.start(), bounds.end()), value))
}
