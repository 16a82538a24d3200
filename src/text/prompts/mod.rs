//! Which prompts isolate a behaviour? Pairs that differ in one thing, with the answers and the positions that matter.
//!
//! A [`Recipe`] says what the prompts are: pairs of your own, or a generator with a number and a seed. [`Prompts`] are a
//! recipe's prompts for one tokenizer: token ids, answers checked to be single tokens, positions by name.
//!
//! | recipe | clean | corrupt | answers | positions besides `END` |
//! |---|---|---|---|---|
//! | [`ioi`] | "When John and Mary met at the station, Mary gave the book to" | the second "Mary" is "John" | " John", " Mary" | `IO` `S1` `S1+1` `S2` |
//! | [`greater_than`] | "The war lasted from the year 1743 to the year 17" | "1743" is "1703" | later and earlier years | `XX` `YY` |
//! | [`induction`] | words at random, then the first of them once more | another word at `B` | the word at `B`, the other | `A1` `B` `A2` |
//! | [`agreement`] | "The keys near the door" | "The key near the door" | " are", " is" | `subject` `attractor` |
//!
//! `END` is the last position of every prompt, the one that predicts the answer.
//!
//! ```
//! use headscope::prelude::*;
//! let model = Model::load("fixtures/gguf/tiny-llama.gguf")?; // or "smollm2", which can do the task
//! let prompts = model.prompts(prompts::ioi(8, 0))?;
//! let (i, at) = (0, prompts.position("S2")?);
//! let subject = prompts.clean().pieces(i)[at[i]].clone(); // " Mary", say
//! assert_eq!(prompts.answer_texts()[i].1, subject);
//! assert_ne!(prompts.corrupt().pieces(i)[at[i]], subject);
//! assert_eq!(prompts.clean().lengths(), prompts.corrupt().lengths());
//! # Ok::<(), headscope::Error>(())
//! ```

mod align;
mod generate;
mod pair;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;

use serde_json::json;

pub use self::generate::{Recipe, agreement, greater_than, induction, ioi};
use self::pair::Encoded;
pub use self::pair::{Pair, Place, Prompt, Word, tokens};
use super::{HasTokenizer, Tokens};
use crate::error::{Error, Result};

/// The name of the last position.
const END: &str = "END";

/// Pairs of clean and corrupt prompts with answers and named positions, for one tokenizer.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-bert")?;
/// let pair = Pair::new("john and mary: mary said that", "john and mary: john said that")
///     .answers(" john", " mary")
///     .at("IO", prompts::Place::Nth("john".to_owned(), 0))
///     .at("S2", -4);
/// let prompts = model.prompts([pair])?;
/// assert_eq!(prompts.position("S2")?, [prompts.clean().positions() - 4]);
/// assert_eq!(prompts.answer_texts()[0].0, " john");
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    source: serde_json::Value,
    clean: Tokens,
    corrupt: Tokens,
    answers: Vec<(i64, i64)>,
    answer_texts: Vec<(String, String)>,
    marks: Vec<Marks>,
}

/// A named position, the same in every prompt of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marks {
    name: String,
    clean: Vec<usize>,
    corrupt: Vec<usize>,
}

impl Prompts {
    /// The prompts of a recipe, for a model or a tokenizer. A recipe is one of the generators of this
    /// [module](self), or pairs: `[("clean text", "corrupt text")]`, `[Pair::new(..)]`, or JSON by
    /// [`Recipe::from_json`].
    ///
    /// # Errors
    /// If a prompt does not fit the model, an answer is not a single token, a place is not there, some pairs have
    /// answers or a name and others have not, or too few of a generator's words are single tokens.
    pub fn new(of: &impl HasTokenizer, recipe: impl Into<Recipe>) -> Result<Self> {
        let recipe = recipe.into();
        let pairs = recipe.pairs(of)?;
        if pairs.is_empty() {
            return Err(Error::argument("prompts", "at least one pair", "none"));
        }
        let read = |(i, pair)| Entry::new(i, pair, of);
        let entries = pairs.iter().enumerate().map(read).collect::<Result<Vec<Entry<'_>>>>()?;
        let (clean, corrupt): (Vec<_>, Vec<_>) =
            entries.iter().map(|entry| (entry.clean.ids.clone(), entry.corrupt.ids.clone())).unzip();
        let (clean, corrupt) = (Tokens::from_ids(of, &clean)?, Tokens::from_ids(of, &corrupt)?);
        let answered: Vec<_> = entries.iter().filter_map(|entry| entry.answers.clone()).collect();
        if !answered.is_empty() && answered.len() < entries.len() {
            let found = format!("{} of {}", answered.len(), entries.len());
            return Err(Error::argument("prompts", "answers in all pairs, or in none", found));
        }
        let (answers, answer_texts) = answered.into_iter().unzip();
        Ok(Self { source: recipe.provenance(), clean, corrupt, answers, answer_texts, marks: marks(&entries)? })
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.clean.batch()
    }

    /// Always `false`: there is at least one pair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The clean prompts.
    pub fn clean(&self) -> &Tokens {
        &self.clean
    }

    /// The corrupt prompts.
    pub fn corrupt(&self) -> &Tokens {
        &self.corrupt
    }

    /// The token ids of the right and the wrong answer to each clean prompt; empty if the pairs have no answers.
    pub fn answers(&self) -> &[(i64, i64)] {
        &self.answers
    }

    /// The texts of [`Prompts::answers`].
    pub fn answer_texts(&self) -> &[(String, String)] {
        &self.answer_texts
    }

    /// The names of the positions, in their order in the first prompt.
    pub fn positions(&self) -> Vec<&str> {
        self.marks.iter().map(|marks| marks.name.as_str()).collect()
    }

    /// The position called `name` in each clean prompt.
    ///
    /// A name that is not among [`Prompts::positions`] may be one of them with an offset: `S2+1`, `END-2`.
    ///
    /// # Errors
    /// If there is no such name, or the offset leaves a prompt ([`Error::Argument`]).
    pub fn position(&self, name: &str) -> Result<Vec<usize>> {
        self.positions_in(name, &self.clean, |marks| &marks.clean)
    }

    /// The position called `name` in each corrupt prompt.
    ///
    /// # Errors
    /// As [`Prompts::position`].
    pub fn corrupt_position(&self, name: &str) -> Result<Vec<usize>> {
        self.positions_in(name, &self.corrupt, |marks| &marks.corrupt)
    }

    fn positions_in(&self, name: &str, tokens: &Tokens, side: fn(&Marks) -> &Vec<usize>) -> Result<Vec<usize>> {
        let find = |name: &str| self.marks.iter().find(|marks| marks.name == name).map(side);
        if let Some(found) = find(name) {
            return Ok(found.clone());
        }
        let unknown = || Error::argument("position", format!("one of {}", self.positions().join(", ")), name);
        let sign = name.rfind(['+', '-']).ok_or_else(unknown)?;
        let offset: i64 = name[sign..].parse().map_err(|_| unknown())?;
        let found = find(&name[..sign]).ok_or_else(unknown)?;
        let moved = |(&position, length): (&usize, usize)| {
            let moved = usize::try_from(i64::try_from(position).ok()?.checked_add(offset)?).ok()?;
            (moved < length).then_some(moved)
        };
        let moved = found.iter().zip(tokens.lengths()).map(moved).enumerate();
        let outside = |prompt| {
            Error::argument(
                "position",
                format!("a token in every prompt at {name}"),
                format!("none in prompt {prompt}"),
            )
        };
        moved.map(|(prompt, moved)| moved.ok_or_else(|| outside(prompt))).collect()
    }

    /// The given pairs, in the given order.
    ///
    /// # Errors
    /// If a pair does not exist ([`Error::OutOfRange`]).
    pub fn select(&self, pairs: &[usize]) -> Result<Self> {
        let (clean, corrupt) = (self.clean.select(pairs)?.trimmed(), self.corrupt.select(pairs)?.trimmed());
        let of = |all: &[usize]| pairs.iter().filter_map(|&pair| all.get(pair).copied()).collect();
        let marks =
            |marks: &Marks| Marks { name: marks.name.clone(), clean: of(&marks.clean), corrupt: of(&marks.corrupt) };
        Ok(Self {
            source: json!({"selected": pairs, "of": self.source}),
            clean,
            corrupt,
            answers: pairs.iter().filter_map(|&pair| self.answers.get(pair).copied()).collect(),
            answer_texts: pairs.iter().filter_map(|&pair| self.answer_texts.get(pair).cloned()).collect(),
            marks: self.marks.iter().map(marks).collect(),
        })
    }

    /// Identifies the prompts, for the provenance of a result: their source, both batches, the answers and the positions.
    pub fn provenance(&self) -> serde_json::Value {
        let positions: serde_json::Map<_, _> =
            self.marks.iter().map(|marks| (marks.name.clone(), json!([marks.clean, marks.corrupt]))).collect();
        json!({
            "source": self.source,
            "clean": self.clean.provenance(),
            "corrupt": self.corrupt.provenance(),
            "answers": self.answers,
            "positions": positions,
        })
    }
}

/// A pair for one tokenizer.
struct Entry<'a> {
    clean: Encoded<'a>,
    corrupt: Encoded<'a>,
    answers: Option<((i64, i64), (String, String))>,
    /// Each name with its positions in the clean and the corrupt prompt.
    marks: Vec<(&'a str, usize, usize)>,
}

impl<'a> Entry<'a> {
    fn new(number: usize, pair: &'a Pair, of: &impl HasTokenizer) -> Result<Self> {
        let clean = Encoded::new(&pair.clean, of, format!("clean prompt {number}"))?;
        let corrupt = Encoded::new(&pair.corrupt, of, format!("corrupt prompt {number}"))?;
        let place = |(name, a, b): (&'a String, &Place, &Place)| {
            if name == END || name.trim().is_empty() {
                return Err(Error::argument(
                    "position",
                    "a name other than END, which is the last position",
                    format!("`{name}`"),
                ));
            }
            Ok((name.as_str(), clean.find(name, a)?, corrupt.find(name, b)?))
        };
        let marks = pair.places().map(place).collect::<Result<Vec<_>>>()?;
        let answer = |(right, wrong): &(Word, Word)| {
            let at = format!("the answers to prompt {number}");
            let (right, wrong) = (right.resolve(of, &at)?, wrong.resolve(of, &at)?);
            if right.0 == wrong.0 {
                return Err(Error::argument(
                    "answers",
                    format!("two that differ as {at}"),
                    format!("`{}` twice", right.1),
                ));
            }
            Ok(((right.0, wrong.0), (right.1, wrong.1)))
        };
        let answers = pair.answers.as_ref().map(answer).transpose()?;
        Ok(Self { clean, corrupt, answers, marks })
    }
}

/// The named positions of all entries, and END.
fn marks(entries: &[Entry<'_>]) -> Result<Vec<Marks>> {
    let names: BTreeSet<&str> = entries.iter().flat_map(|entry| entry.marks.iter().map(|mark| mark.0)).collect();
    let mut all = vec![];
    for name in names {
        let find = |(i, entry): (usize, &Entry<'_>)| {
            let found = entry.marks.iter().find(|mark| mark.0 == name).map(|mark| (mark.1, mark.2));
            found.ok_or_else(|| {
                Error::argument("prompts", format!("a position `{name}` in all pairs"), format!("none in pair {i}"))
            })
        };
        let found = entries.iter().enumerate().map(find).collect::<Result<Vec<_>>>()?;
        let (clean, corrupt) = found.into_iter().unzip();
        all.push(Marks { name: name.to_owned(), clean, corrupt });
    }
    let ends = entries.iter().map(|entry| (entry.clean.end, entry.corrupt.end)).unzip();
    all.push(Marks { name: END.to_owned(), clean: ends.0, corrupt: ends.1 });
    all.sort_by_key(|marks| marks.clean.first().copied());
    Ok(all)
}
