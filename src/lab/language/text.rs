//! What do heads learn from natural text? Windows of a real text, whose next tokens fall into classes.

mod class;
mod corpus;

use std::path::PathBuf;
use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::class::Class;
use self::corpus::{Corpus, Part};
use super::{Dependency, Sample, Target, TaskInfo, within};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Windows of a natural text, in which every next token is predicted.
///
/// Training windows start at random in the first 90 % of the text, held-out windows (batches numbered from
/// [`u64::MAX`]) in the last 10 %; no window crosses the border. The tasks are classes of the token to predict. The first
/// that applies counts:
///
/// | class | the token |
/// |---|---|
/// | `punctuation` | belongs to no word: punctuation, spaces, line breaks |
/// | `repeat` | follows the same token as once before in the window: the last token of a bigram that occurred earlier |
/// | `name` | belongs to a capitalised word that begins no sentence, quotation or line, and has two letters or more |
/// | `word_start` | begins a word, perhaps with the space before it |
/// | `inside_word` | goes on with a word |
///
/// A word is a run of letters and digits, with the apostrophes between them. A token belongs to the word of its first letter
/// or digit, a single apostrophe to the word that it is inside of. A sentence ends with `.`, `!`, `?` or `:`, but not with
/// the full stop of a title such as `Mr.`; a quotation begins at a double quotation mark. The names of speakers in a play,
/// at the beginning of their lines, and the words at the beginning of verses are thus no names.
///
/// A repeat depends on the earlier tokens that end the same bigram (annotated as dependencies of kind `repeat`); what the
/// other classes depend on is not known.
///
/// Chance, by class, is the mean of -ln of the tokens' frequencies in the training part: the loss of a model that knows only how
/// often each token occurs, so that the excess loss of such a model is 1 in every class.
///
/// ```
/// use headscope::lab::Language;
/// let language: Language = serde_json::from_str(
///     r#"{"text": {"text": "pride_and_prejudice", "tokens": {"bpe": {"vocab": 512}}, "length": 32}}"#,
/// ).unwrap();
/// let batch = language.batch(2, 0, 0)?;
/// let window = language.tokenizer()?.unwrap().decode(batch.tokens.row(0))?;
/// println!("{window}"); // 32 tokens of the novel
/// let names: Vec<String> = language.tasks().into_iter().map(|class| class.name).collect();
/// assert_eq!(names, ["inside_word", "word_start", "punctuation", "name", "repeat"]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Text {
    /// The text.
    pub text: TextSource,
    /// What its tokens are.
    pub tokens: TextTokens,
    /// Tokens in a window.
    pub length: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { text: TextSource::Shakespeare, tokens: TextTokens::Characters, length: 64 }
    }
}

/// A text to sample windows from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextSource {
    /// Plays by William Shakespeare in the selection known as tinyshakespeare: 1.1 million characters, part of the
    /// library.
    Shakespeare,
    /// Pride and Prejudice by Jane Austen (1813): 0.7 million characters, part of the library.
    PrideAndPrejudice,
    /// A file with UTF-8 text, plain or packed by gzip, also looked up in the folder named by the environment variable
    /// `HEADSCOPE_DATA`.
    Path(PathBuf),
}

/// How a text is split into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TextTokens {
    /// Every character that occurs in the text is a token.
    Characters,
    /// Byte-level byte pair encoding, trained on the training part of the text.
    Bpe {
        /// Number of tokens, 256 of them the bytes; fewer if no pair of tokens is left that occurs twice.
        vocab: usize,
    },
}

/// Most tokens of the training part from which the classes' chance is computed, in windows that follow each other.
const CHANCE_TOKENS: usize = 100_000;

impl Text {
    pub(super) fn validate(&self) -> Result<()> {
        within("length", self.length, 4..=100_000)?;
        if let TextTokens::Bpe { vocab } = self.tokens {
            within("vocab", vocab, 257..=65_536)?;
        }
        let corpus = self.corpus()?;
        let found = corpus.held_out.len().min(corpus.training.len());
        if found < self.length {
            let expected = format!("at most {found}, the tokens of the shorter part of the text");
            return Err(Error::argument("length", expected, self.length));
        }
        Ok(())
    }

    /// The text with its tokens and classes; read and split once per process.
    fn corpus(&self) -> Result<Arc<Corpus>> {
        Corpus::of(&self.text, self.tokens)
    }

    /// Number of tokens; 0 if the text cannot be read, which [`Text::validate`] reports.
    pub(super) fn vocab(&self) -> usize {
        self.corpus().map_or(0, |corpus| corpus.pieces.len())
    }

    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(self.corpus()?.tokenizer.clone())
    }

    /// The text of every token.
    pub(super) fn pieces(&self) -> Result<Vec<String>> {
        Ok(self.corpus()?.pieces.clone())
    }

    /// The file that is read, if it is not part of the library.
    pub(in crate::lab) fn file(&self) -> Option<&PathBuf> {
        match &self.text {
            TextSource::Path(path) => Some(path),
            _ => None,
        }
    }

    pub(super) fn infos(&self) -> Vec<TaskInfo> {
        let chance = self.corpus().map(|corpus| self.chance(&corpus)).unwrap_or_default();
        let info = |class: Class| {
            // What remains uncertain even to a reader who knows the language is not known: the floor is that of no
            // uncertainty, which no model reaches.
            TaskInfo { name: class.name().to_owned(), chance: chance[class.task()], floor: 0.0 }
        };
        Class::ALL.map(info).to_vec()
    }

    /// The mean of -ln frequency over the tokens of each class; 0 if there are none.
    fn chance(&self, corpus: &Corpus) -> [f64; Class::ALL.len()] {
        let part = &corpus.training;
        let most = part.len().min(CHANCE_TOKENS.max(self.length));
        let (mut sums, mut counts) = ([0.0; Class::ALL.len()], [0.0; Class::ALL.len()]);
        for start in (0..).step_by(self.length).take_while(|start| start + self.length <= most) {
            for at in start + 1..start + self.length {
                let task = part.class(at, start).task();
                sums[task] -= corpus.ln_frequency[part.token(at) as usize];
                counts[task] += 1.0;
            }
        }
        std::array::from_fn(|task| if counts[task] > 0.0 { sums[task] / counts[task] } else { 0.0 })
    }

    /// One window; the options must have been validated.
    pub(super) fn sample(&self, rng: &mut ChaCha8Rng, held_out: bool, annotated: bool) -> Result<Sample> {
        let corpus = self.corpus()?;
        let part = if held_out { &corpus.held_out } else { &corpus.training };
        let start = rng.random_range(0..=part.len().saturating_sub(self.length));
        let end = (start + self.length).min(part.len());
        Ok(window(part, start, end, corpus.pieces.len() as i64, annotated))
    }
}

/// The window from `start` to `end`.
fn window(part: &Part, start: usize, end: usize, vocab: i64, annotated: bool) -> Sample {
    let target = |at: usize| Target {
        position: at - 1 - start,
        token: part.token(at),
        choices: 0..vocab,
        task: part.class(at, start).task(),
    };
    let mut sample = Sample {
        tokens: (start..end).map(|at| part.token(at)).collect(),
        targets: (start + 1..end).map(target).collect(),
        dependencies: vec![],
    };
    if annotated {
        let repeats = (start + 1..end).filter(|&at| part.class(at, start) == Class::Repeat);
        let links = repeats.flat_map(|at| part.earlier(at, start).map(move |source| (at, source)));
        let dependency = |(at, source)| Dependency {
            query: at - 1 - start,
            source: source - start,
            kind: Class::Repeat.name().to_owned(),
        };
        sample.dependencies = links.map(dependency).collect();
    }
    sample
}
