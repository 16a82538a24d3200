//! How do texts become token ids, and back? Through `tokenizer.json`.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Tokens;
use crate::error::{Error, Result};
use crate::file;

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Bos,
}

/// Does a text begin with a token that says so?
#[derive(Debug, Clone, Copy, Default)]
struct Bos {
    /// The token, if one is known.
    id: Option<i64>,
    /// Whether the tokenizer itself puts it before a text.
    own: bool,
    /// What was asked for instead.
    asked: Option<bool>,
}

/// The tokens of a text: the id of each, the byte range that it comes from, and whether it is special.
type Encoded = Vec<(i64, Range<usize>, bool)>;

impl Tokenizer {
    /// Reads a `tokenizer.json`. Any truncation and padding that it configures are disabled.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a tokenizer ([`Error::Tokenizer`]).
    pub fn read(path: &Path) -> Result<Self> {
        Self::of_json(&file::read(path)?, &path.display().to_string())
    }

    /// The tokenizer that a `tokenizer.json` describes; `at` names it in errors.
    pub(crate) fn of_json(bytes: &[u8], at: &str) -> Result<Self> {
        let at = || at.to_owned();
        // The tokenizers crate panics on some files that are not JSON, and on some that are not tokenizers.
        let _: serde_json::Value = serde_json::from_slice(bytes).map_err(|reason| failed(at(), reason))?;
        let read = guarded(|| tokenizers::Tokenizer::from_bytes(bytes));
        let mut inner = read.map_err(|reason| failed(at(), reason))?;
        inner.with_truncation(None).map_err(|reason| failed(at(), reason))?;
        inner.with_padding(None);
        Ok(Self::of(inner))
    }

    /// A tokenizer that splits texts at whitespace into whole words, whose ids are their indices in `words`. Unknown
    /// words are errors.
    pub(crate) fn of_words(words: &[String]) -> Result<Self> {
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            words.iter().enumerate().map(|(id, word)| (word.clone(), id.into())).collect();
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"});
        Self::made(model, serde_json::json!({"type": "WhitespaceSplit"}), serde_json::Value::Null, "words")
    }

    /// A tokenizer that splits texts into characters, whose ids are their indices in `characters`. Unknown characters are
    /// errors.
    pub(crate) fn of_characters(characters: &[char]) -> Result<Self> {
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            characters.iter().enumerate().map(|(id, character)| (character.to_string(), id.into())).collect();
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"});
        let each = serde_json::json!({"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated",
            "invert": false});
        Self::made(model, each, serde_json::json!({"type": "Fuse"}), "characters")
    }

    /// A byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019) of `vocab` tokens, 256 of them the bytes,
    /// trained on a text: always the same for the same text. It has fewer tokens if no pair is left that occurs twice.
    ///
    /// # Errors
    /// If `vocab` is less than 256, or the tokenizers crate fails.
    pub(crate) fn trained(text: &str, vocab: usize) -> Result<Self> {
        let alphabet = ByteLevel::alphabet();
        if vocab < alphabet.len() {
            return Err(Error::argument("vocab", format!("at least {}, one for each byte", alphabet.len()), vocab));
        }
        let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": true});
        let empty = serde_json::json!({"type": "BPE", "vocab": {}, "merges": []});
        let mut made = Self::made(empty, level.clone(), level, "a text")?;
        let trainer = BpeTrainer::builder().vocab_size(vocab).min_frequency(2).show_progress(false);
        let mut trainer = TrainerWrapper::from(trainer.initial_alphabet(alphabet.into_iter().collect()).build());
        let done = guarded(|| made.inner.train(&mut trainer, std::iter::once(text)).map(drop));
        done.map_err(|reason| failed("a text".to_owned(), reason))?;
        Ok(made)
    }

    /// The tokenizer of these parts; `at` names it in errors.
    fn made(
        model: serde_json::Value,
        pre_tokenizer: serde_json::Value,
        decoder: serde_json::Value,
        at: &str,
    ) -> Result<Self> {
        let file = serde_json::json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": decoder,
            "model": model,
        });
        let made = guarded(|| tokenizers::Tokenizer::from_bytes(file.to_string().as_bytes()));
        Ok(Self::of(made.map_err(|reason| failed(at.to_owned(), reason))?))
    }

    fn of(inner: tokenizers::Tokenizer) -> Self {
        let mut made = Self { inner, bos: Bos::default() };
        // A tokenizer of words does not know the text that this asks about; it has no frame.
        let (before, _) = made.frame().unwrap_or_default();
        made.bos = Bos { id: before.first().copied(), own: !before.is_empty(), asked: None };
        made
    }

    /// The same tokenizer, whose texts begin with the beginning-of-sequence token or do not; by default (`None`) as its own
    /// `tokenizer.json` says. A token that is there already is not put there twice.
    ///
    /// ```
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokenizer = model.tokenizer().ok_or("no tokenizer")?.clone();
    /// let [as_it_is, with] = [None, Some(true)].map(|bos| tokenizer.clone().with_prepend_bos(bos)?.encode(&["the head"]));
    /// let (as_it_is, with) = (as_it_is?, with?);
    /// assert_eq!(with.row(0)[1..], *as_it_is.row(0)); // GPT-2's own tokenizer puts nothing there
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is asked for and no such token is known.
    pub fn with_prepend_bos(mut self, asked: Option<bool>) -> Result<Self> {
        if asked == Some(true) && self.bos.id.is_none() {
            let expected = "a tokenizer or a config.json that names a beginning-of-sequence token";
            return Err(Error::argument("prepend_bos", expected, "none"));
        }
        self.bos.asked = asked;
        Ok(self)
    }

    /// The same tokenizer, with the beginning-of-sequence token of a config, unless it has one of its own.
    pub(crate) fn with_bos(mut self, id: Option<i64>) -> Self {
        self.bos.id = self.bos.id.or(id);
        self
    }

    /// The token that says that a text begins, if one is known: the first that the tokenizer itself puts there, otherwise
    /// `bos_token_id` of the checkpoint's config.
    pub fn bos(&self) -> Option<i64> {
        self.bos.id
    }

    /// Whether texts begin with [`Tokenizer::bos`].
    pub fn prepends_bos(&self) -> bool {
        self.bos.asked.unwrap_or(self.bos.own)
    }

    /// The tokens of a text, with or without special ones; `at` names the text in errors.
    fn encoded(&self, text: &str, special: bool, at: impl FnOnce() -> String) -> Result<Encoded> {
        let encoded = guarded(|| self.inner.encode(text, special)).map_err(|reason| failed(at(), reason))?;
        let ids = encoded.get_ids().iter().map(|&id| i64::from(id));
        let spans = encoded.get_offsets().iter().map(|&(a, b)| a..b);
        let marks = encoded.get_special_tokens_mask().iter().map(|&mask| mask == 1);
        let mut all: Encoded = ids.zip(spans).zip(marks).map(|((id, span), mark)| (id, span, mark)).collect();
        let first = all.first().map(|(id, _, mark)| (*id, *mark));
        match (special.then_some(self.bos.asked).flatten(), self.bos.id) {
            (Some(true), Some(bos)) if first.is_none_or(|(id, _)| id != bos) => all.insert(0, (bos, 0..0, true)),
            // Not one that stands in the text.
            (Some(false), Some(bos)) if first == Some((bos, true)) => drop(all.remove(0)),
            _ => {}
        }
        Ok(all)
    }

    /// Number of tokens.
    pub(crate) fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Writes `tokenizer.json`.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text =
            guarded(|| self.inner.to_string(true)).map_err(|reason| failed(path.display().to_string(), reason))?;
        file::write_bytes(path, text.as_bytes())
    }

    /// Encodes `texts`, including special tokens: those that the tokenizer adds, and the beginning-of-sequence token as
    /// [asked](Tokenizer::with_prepend_bos).
    ///
    /// # Errors
    /// If a text gives no token.
    pub fn encode(&self, texts: &[impl AsRef<str>]) -> Result<Tokens> {
        let mut rows = vec![];
        for (i, text) in texts.iter().enumerate() {
            rows.push(self.ids(text.as_ref(), true, &format!("text {i}"))?);
        }
        self.batch(rows)
    }

    /// A batch of these ids, with the text of each token and the id for padding.
    pub(super) fn batch(&self, rows: Vec<Vec<i64>>) -> Result<Tokens> {
        let pieces = rows.iter().map(|row| row.iter().map(|&id| self.piece(id)).collect()).collect();
        let pad = ["[PAD]", "<pad>", "<|endoftext|>"].iter().find_map(|token| self.inner.token_to_id(token));
        Ok(Tokens::owning(rows)?.with_pieces(pieces)?.with_pad(pad.map_or(0, i64::from)))
    }

    /// The byte range of the text that each token of [`Tokenizer::encode`] comes from; empty for a token without text,
    /// such as `[CLS]`.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn spans(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let encoded = self.encoded(text, true, || format!("{text:?}"))?;
        let blank = |id: i64| self.piece(id).trim().is_empty();
        let span = |(id, Range { start, end }, special)| start..if special || blank(id) { start } else { end };
        Ok(encoded.into_iter().map(span).collect())
    }

    /// The tokens of a text without special ones: the id of each, and the byte range that it comes from, with its spaces.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub(crate) fn pieces(&self, text: &str) -> Result<Vec<(i64, Range<usize>)>> {
        let encoded = self.encoded(text, false, || "a text".to_owned())?;
        Ok(encoded.into_iter().map(|(id, range, _)| (id, range)).collect())
    }

    /// Whether a token is special: a start or end token, padding, a mask.
    pub fn is_special(&self, id: i64) -> bool {
        let added = |id| self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        u32::try_from(id).ok().and_then(added).is_some_and(|token| token.special)
    }

    /// The id of a special token, by its text.
    pub(crate) fn special(&self, text: &str) -> Option<i64> {
        self.inner.token_to_id(text).map(i64::from).filter(|&id| self.is_special(id))
    }

    /// The special tokens before and after a text.
    ///
    /// # Errors
    /// If the tokenizer fails on a text.
    pub fn frame(&self) -> Result<(Vec<i64>, Vec<i64>)> {
        let (with, without) = (self.ids("a", true, "a text")?, self.ids("a", false, "a text")?);
        let before = with.iter().position(|id| without.first() == Some(id)).unwrap_or(0);
        let behind = with.get(before + without.len()..).unwrap_or_default();
        Ok((with.iter().take(before).copied().collect(), behind.to_vec()))
    }

    /// The id of a text that is a single token.
    ///
    /// A tokenizer that puts a space before every text of its own would turn `" Mary"` into two tokens. The text is then
    /// read as the continuation of another word, which is what an answer is.
    ///
    /// # Errors
    /// If the text is several tokens, none, or unknown to the tokenizer.
    pub fn single(&self, text: &str) -> Result<i64> {
        let ids = self.ids(text, false, &format!("{text:?}"))?;
        if ids.len() > 1 && text.starts_with(' ') {
            let (start, whole) = (self.ids("a", false, "a text")?, self.ids(&format!("a{text}"), false, "a text")?);
            if let Some([id]) = whole.strip_prefix(start.as_slice()) {
                return Ok(*id);
            }
        }
        match ids.as_slice() {
            [id] if !self.is_unknown(*id) || self.piece(*id) == text => Ok(*id),
            _ => {
                let pieces: Vec<String> = ids.iter().map(|&id| self.piece(id)).collect();
                let found = format!("{} tokens in `{text}`: `{}`", pieces.len(), pieces.join("` `"));
                Err(Error::argument("answer", "a text that is a single token", found))
            }
        }
    }

    /// Whether an id stands for whatever the tokenizer does not know.
    fn is_unknown(&self, id: i64) -> bool {
        ["<unk>", "[UNK]"].iter().any(|token| self.inner.token_to_id(token).map(i64::from) == Some(id))
    }

    /// Decodes `ids` to text, without special tokens.
    ///
    /// # Errors
    /// If an id is negative or too large.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .map(|&id| u32::try_from(id))
            .collect::<Result<_, _>>()
            .map_err(|_| failed("decoding".to_owned(), format!("expected token ids, found {ids:?}")))?;
        guarded(|| self.inner.decode(&ids, true)).map_err(|reason| failed("decoding".to_owned(), reason))
    }

    /// One token as readable text.
    pub fn piece(&self, id: i64) -> String {
        let Ok(id) = u32::try_from(id) else { return id.to_string() };
        match guarded(|| self.inner.decode(&[id], false)) {
            Ok(text) if !text.is_empty() => text,
            _ => self.inner.id_to_token(id).map_or_else(|| id.to_string(), |token| token.replace('▁', " ")),
        }
    }

    /// The ids of a text, with or without special tokens; `at` names the text in errors.
    pub(super) fn ids(&self, text: &str, special: bool, at: &str) -> Result<Vec<i64>> {
        let encoded = self.encoded(text, special, || at.to_owned())?;
        Ok(encoded.into_iter().map(|(id, ..)| id).collect())
    }
}

/// What can turn texts into tokens and back: a [`Tokenizer`], or a [`Model`](crate::model::Model) that has one.
///
/// A model also checks that tokens fit it.
pub trait HasTokenizer {
    /// The tokenizer, if there is one.
    fn tokenizer(&self) -> Option<&Tokenizer>;

    /// What this is called in errors.
    fn named(&self) -> String {
        "tokenizer".to_owned()
    }

    /// The tokens as they are used here, or an error if they do not fit.
    ///
    /// # Errors
    /// If an id or the length does not fit.
    fn fitted(&self, tokens: Tokens) -> Result<Tokens> {
        Ok(tokens)
    }

    /// The tokenizer, or an error that says there is none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    fn need_tokenizer(&self) -> Result<&Tokenizer> {
        let reason = || "the checkpoint has no tokenizer.json; give token ids instead".to_owned();
        self.tokenizer().ok_or_else(|| Error::Tokenizer { at: self.named(), reason: reason() })
    }
}

impl HasTokenizer for Tokenizer {
    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(self)
    }
}

/// Runs `work`, turning a panic inside the tokenizers crate into an error message.
fn guarded<T, E: ToString>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|reason| reason.to_string()),
        Err(_) => Err("the file is not what the tokenizers crate expects".to_owned()),
    }
}

fn failed(at: String, reason: impl ToString) -> Error {
    Error::Tokenizer { at, reason: reason.to_string() }
}
