//! How does a text become tokens that can be sampled fast? It is read, split and classified once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::class::{Class, classes};
use super::{TextSource, TextTokens};
use crate::error::{Error, Result};
use crate::file;
use crate::text::Tokenizer;

const SHAKESPEARE: &[u8] = include_bytes!("../../../../fixtures/text/tinyshakespeare.txt.gz");
const PRIDE_AND_PREJUDICE: &[u8] = include_bytes!("../../../../fixtures/text/pride-and-prejudice.txt.gz");

/// Share of the text, in tenths, that training windows come from; held-out windows come from the rest.
const TRAINING: usize = 9;

/// A text, its tokens and their classes.
pub(super) struct Corpus {
    pub tokenizer: Tokenizer,
    /// The text of every token.
    pub pieces: Vec<String>,
    /// The logarithm of every token's frequency in the training part; minus infinity for those that do not occur.
    pub ln_frequency: Vec<f64>,
    pub training: Part,
    pub held_out: Part,
}

/// One of the two parts of a text.
pub(super) struct Part {
    tokens: Vec<u32>,
    /// The class of every token, whatever the window.
    classes: Vec<Class>,
    /// How many tokens back the same bigram ended last; 0 if it did not.
    back: Vec<u32>,
}

impl TextSource {
    /// The whole text.
    pub(in crate::lab) fn read(&self) -> Result<String> {
        match self {
            Self::Shakespeare => file::text(SHAKESPEARE.to_vec(), Path::new("tinyshakespeare.txt.gz")),
            Self::PrideAndPrejudice => {
                file::text(PRIDE_AND_PREJUDICE.to_vec(), Path::new("pride-and-prejudice.txt.gz"))
            }
            Self::Path(path) => file::read_text(&file::found(path)),
        }
    }

    /// What tells a changed file from the one that was read: its size and the time of its last change.
    fn version(&self) -> Result<Option<Version>> {
        let Self::Path(path) = self else { return Ok(None) };
        let path = file::found(path);
        let metadata = std::fs::metadata(&path).map_err(Error::io("read", &path))?;
        Ok(Some((metadata.len(), metadata.modified().map_err(Error::io("read", &path))?)))
    }
}

type Version = (u64, SystemTime);
/// A corpus, and the version of the file that it was made of.
type Kept = (Option<Version>, Arc<Corpus>);

impl Corpus {
    /// The corpus of a text, kept for the rest of the process, or until its file changes.
    ///
    /// # Errors
    /// If the text cannot be read or split, or has fewer than 20 characters.
    pub fn of(source: &TextSource, tokens: TextTokens) -> Result<Arc<Self>> {
        static KEPT: Mutex<BTreeMap<(TextSource, TextTokens), Kept>> = Mutex::new(BTreeMap::new());
        let version = source.version()?;
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.clone(), tokens);
        if let Some((_, corpus)) = kept.get(&key).filter(|(then, _)| *then == version) {
            return Ok(Arc::clone(corpus));
        }
        let corpus = Arc::new(Self::new(&source.read()?, tokens)?);
        kept.insert(key, (version, Arc::clone(&corpus)));
        Ok(corpus)
    }

    pub fn new(text: &str, tokens: TextTokens) -> Result<Self> {
        if text.len() < 20 {
            return Err(Error::argument("text", "at least 20 bytes", text.len()));
        }
        let border = text.floor_char_boundary(text.len() / 10 * TRAINING);
        let (split, tokenizer) = match tokens {
            TextTokens::Characters => Split::characters(text)?,
            TextTokens::Bpe { vocab } => Split::bpe(&text[..border], vocab)?,
        };
        let classes = classes(text);
        let part = |range: Range<usize>| Part::new(split.tokens(&text[range.clone()])?, &classes[range]);
        let (training, held_out) = (part(0..border)?, part(border..text.len())?);
        let pieces: Vec<String> = (0..tokenizer.vocab() as i64).map(|id| tokenizer.piece(id)).collect();
        let mut counts = vec![0.0; pieces.len()];
        training.tokens.iter().for_each(|&token| counts[token as usize] += 1.0);
        let ln_frequency = counts.iter().map(|count: &f64| (count / training.len() as f64).ln()).collect();
        Ok(Self { tokenizer, pieces, ln_frequency, training, held_out })
    }
}

/// How a text is split into tokens.
enum Split {
    /// The id of every character.
    Characters(BTreeMap<char, u32>),
    Bpe(Box<Tokenizer>),
}

/// A token's id, and the bytes that it comes from.
type Piece = (u32, Range<usize>);

impl Split {
    fn characters(text: &str) -> Result<(Self, Tokenizer)> {
        let all: Vec<char> = text.chars().collect::<BTreeSet<char>>().into_iter().collect();
        let tokenizer = Tokenizer::of_characters(&all)?;
        Ok((Self::Characters(all.into_iter().zip(0..).collect()), tokenizer))
    }

    fn bpe(text: &str, vocab: usize) -> Result<(Self, Tokenizer)> {
        let tokenizer = Tokenizer::trained(text, vocab)?;
        Ok((Self::Bpe(Box::new(tokenizer.clone())), tokenizer))
    }

    fn tokens(&self, text: &str) -> Result<Vec<Piece>> {
        match self {
            Self::Characters(ids) => {
                let piece = |(at, character): (usize, char)| {
                    // Every character of the text has an id.
                    (ids.get(&character).copied().unwrap_or_default(), at..at + character.len_utf8())
                };
                Ok(text.char_indices().map(piece).collect())
            }
            Self::Bpe(tokenizer) => {
                let pieces = tokenizer.pieces(text)?;
                Ok(pieces.into_iter().map(|(id, range)| (id as u32, range)).collect())
            }
        }
    }
}

impl Part {
    /// A part from its tokens and the class of every byte.
    fn new(pieces: Vec<Piece>, classes: &[Class]) -> Result<Self> {
        if u32::try_from(pieces.len()).is_err() {
            return Err(Error::argument("text", "fewer than 2^32 tokens", pieces.len()));
        }
        let class = |(_, range): &Piece| {
            let mut own = classes[range.clone()].iter().copied();
            own.find(|class| *class != Class::Punctuation).unwrap_or(Class::Punctuation)
        };
        let classes = pieces.iter().map(class).collect();
        let tokens: Vec<u32> = pieces.into_iter().map(|(id, _)| id).collect();
        let mut last: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        let mut back = vec![0; tokens.len()];
        for (at, pair) in tokens.windows(2).enumerate() {
            if let Some(before) = last.insert((pair[0], pair[1]), at) {
                back[at + 1] = (at - before) as u32;
            }
        }
        Ok(Self { tokens, classes, back })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn token(&self, at: usize) -> i64 {
        i64::from(self.tokens[at])
    }

    /// The class of the token at `at` in a window that begins at `start`.
    pub fn class(&self, at: usize, start: usize) -> Class {
        match self.classes[at] {
            Class::Punctuation => Class::Punctuation,
            _ if self.earlier(at, start).next().is_some() => Class::Repeat,
            own => own,
        }
    }

    /// Where the bigram that ends at `at` ended before, in a window that begins at `start`; the last place first.
    pub fn earlier(&self, at: usize, start: usize) -> impl Iterator<Item = usize> {
        let before = move |&at: &usize| Some(at - self.back[at] as usize).filter(|&found| found < at && found > start);
        std::iter::successors(Some(at), before).skip(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The class of every token of a text's training part, in the window that is all of it, by its first letter.
    fn marked(text: &str) -> String {
        // What follows is held out.
        let padded = format!("{text}{}", " ".repeat(text.len() / 9 + 20));
        let corpus = Corpus::new(&padded, TextTokens::Characters).unwrap();
        let name = |at| corpus.training.class(at, 0).name().chars().next().unwrap();
        (0..text.chars().count()).map(name).collect()
    }

    #[test]
    fn the_end_of_a_bigram_that_was_there_before_is_a_repeat() {
        assert_eq!(marked("abcabc"), "wiiirr");
        assert_eq!(marked("ab ba ab"), "wipwipwr");
        assert_eq!(marked("aaaa"), "wirr");
    }

    #[test]
    fn repeats_go_before_names_and_after_punctuation() {
        assert_eq!(marked("so Jo Ja, jo, jo"), "wipnnprnppwipprr");
    }

    #[test]
    fn a_bigram_before_the_window_does_not_count() {
        let corpus = Corpus::new(&"abcdabcdefghijklmnop".repeat(3), TextTokens::Characters).unwrap();
        let part = &corpus.training;
        assert_eq!(part.class(5, 0), Class::Repeat);
        assert_eq!(part.earlier(5, 0).collect::<Vec<_>>(), [1]);
        assert_eq!(part.class(5, 1), Class::Inside, "the bigram's first token is before the window");
        assert_eq!(part.earlier(25, 0).collect::<Vec<_>>(), [21, 5, 1]);
        assert_eq!(part.earlier(25, 5).collect::<Vec<_>>(), [21]);
    }

    #[test]
    fn the_committed_texts_are_those_of_their_readme() {
        let readme = include_str!("../../../../fixtures/text/README.md");
        for source in [TextSource::Shakespeare, TextSource::PrideAndPrejudice] {
            let text = source.read().unwrap();
            assert!(readme.contains(&file::sha256(text.as_bytes())), "{source:?}");
            assert!(!text.contains("Gutenberg") && text.is_ascii());
        }
    }

    #[test]
    fn a_tokenizer_trained_twice_is_the_same() {
        let text = TextSource::PrideAndPrejudice.read().unwrap();
        let pieces = |vocab| Corpus::new(&text[..100_000], TextTokens::Bpe { vocab }).unwrap().pieces;
        for vocab in [300, 512, 1024] {
            assert_eq!(pieces(vocab), pieces(vocab));
            assert_eq!(pieces(vocab).len(), vocab);
        }
    }
}
