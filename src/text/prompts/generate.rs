//! How are prompts of a known behaviour made? Templates filled with words drawn at random, single tokens all.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::json;

use super::pair::{Pair, Prompt, Word};
use super::words::{EVENTS, NAMES, NOUNS, OBJECTS, PLACES, VERBS, WORDS, singles};
use crate::error::{Error, Result};
use crate::file;
use crate::text::{HasTokenizer, Tokenizer};

/// What [`Prompts`](super::Prompts) are made from: pairs of prompts, or a generator that makes them for any tokenizer.
///
/// Anything that turns into a recipe can be given to [`Model::prompts`](crate::model::Model::prompts): arrays, slices
/// and vectors of `(clean, corrupt)` texts or of [`Pair`], and what [`ioi`], [`greater_than`], [`induction`] and
/// [`agreement`] return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Pairs(Vec<Pair>),
    Generated { task: Task, n: usize, seed: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Ioi,
    GreaterThan,
    Induction,
    Agreement,
}

/// Indirect object identification: `n` prompts in which two people are named, one of them once more, and the other
/// comes next.
///
/// "When John and Mary met at the station, Mary gave the book to" is answered by " John"; in the corrupt prompt the second
/// "Mary" is "John", which exchanges the answers. The names stand in either order. Positions: `IO` (the one to be
/// named), `S1` and `S2` (the other, twice), `S1+1` (after `S1`), `END`. The task is that of Wang et al., "Interpretability
/// in the Wild", 2022; the sentences are our own.
pub fn ioi(n: usize, seed: u64) -> Recipe {
    Recipe(Kind::Generated { task: Task::Ioi, n, seed })
}

/// Years that must be later: "The war lasted from the year 1743 to the year 17" is answered by a later year ("62"), not by
/// an earlier one ("21"); in the corrupt prompt ("1703"), both are later.
///
/// Where a tokenizer writes two digits as one token, the answers are such tokens; where it writes each digit by itself, as
/// SmolLM2's does, they are tens digits ("6" and "2"). Positions: `XX` (the first year's century), `YY` (its two digits, or
/// its tens digit), `END`. The task is that of Hanna et al., "How does GPT-2 compute greater-than?", 2023.
pub fn greater_than(n: usize, seed: u64) -> Recipe {
    Recipe(Kind::Generated { task: Task::GreaterThan, n, seed })
}

/// A sequence of words at random that begins once more: what followed the last word the first time follows again.
///
/// In the corrupt prompt another word followed the first time, which is the wrong answer. Positions: `A1` and `A2` (the last
/// word, both times), `B` (what followed `A1`), `END` (which is `A2`). All prompts are equally long; the distance of `A1` and
/// `A2` varies.
pub fn induction(n: usize, seed: u64) -> Recipe {
    Recipe(Kind::Generated { task: Task::Induction, n, seed })
}

/// Subject-verb agreement: "The keys near the door" is answered by " are", not by " is"; in the corrupt prompt the subject
/// has the other number, which exchanges the answers.
///
/// The noun between them is as often singular as plural, in both prompts alike. Positions: `subject`, `attractor`, `END`. The
/// task is that of Linzen et al., "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", 2016.
pub fn agreement(n: usize, seed: u64) -> Recipe {
    Recipe(Kind::Generated { task: Task::Agreement, n, seed })
}

impl Recipe {
    /// Pairs from JSON, in one of two forms.
    ///
    /// - a list of pairs: `[{"clean": .., "corrupt": .., "answers": [" Mary", " John"], "positions": {"S2": 9}}, ..]`; see
    ///   [`Pair`]
    /// - the lists that `headscope patch` takes: `{"clean": [..], "corrupt": [..], "answers": [[" Mary", " John"], ..]}`
    ///
    /// A prompt is a text or a list of token ids, an answer a text or a token id; answers and positions may be absent.
    ///
    /// # Errors
    /// If the text has another form, or the lists differ in length ([`Error::Argument`]).
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum File {
            Pairs(Vec<Pair>),
            Columns { clean: Vec<Prompt>, corrupt: Vec<Prompt>, answers: Option<Vec<(Word, Word)>> },
        }
        const EXPECTED: &str =
            "a JSON list of {\"clean\": .., \"corrupt\": ..}, or {\"clean\": [..], \"corrupt\": [..]}";
        match serde_json::from_str(text) {
            Ok(File::Pairs(pairs)) => Ok(pairs.into()),
            Ok(File::Columns { clean, corrupt, answers }) => Self::columns(clean, corrupt, answers),
            Err(reason) => Err(Error::argument("prompts", EXPECTED, reason)),
        }
    }

    /// [`Recipe::from_json`] of a file.
    ///
    /// # Errors
    /// As there; also if the file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wrong = |expected: String, found: String| Error::Format {
            path: path.to_owned(),
            at: "the file".to_owned(),
            expected,
            found,
        };
        let text = String::from_utf8(file::read(path)?).map_err(|reason| wrong("UTF-8".into(), reason.to_string()))?;
        Self::from_json(&text).map_err(|error| match error {
            Error::Argument { expected, found, .. } => wrong(expected, found),
            other => other,
        })
    }

    /// Clean prompts, corrupt prompts and answers, equally many of each.
    ///
    /// # Errors
    /// If they are not equally many ([`Error::Argument`]).
    pub fn columns(clean: Vec<Prompt>, corrupt: Vec<Prompt>, answers: Option<Vec<(Word, Word)>>) -> Result<Self> {
        let n = clean.len();
        let given = [("corrupt prompts", Some(corrupt.len())), ("answers", answers.as_ref().map(Vec::len))];
        if let Some((what, found)) =
            given.into_iter().find_map(|(what, found)| Some((what, found.filter(|&m| m != n)?)))
        {
            return Err(Error::argument("prompts", format!("{n} {what}, one for each clean prompt"), found));
        }
        let mut pairs: Vec<Pair> =
            clean.into_iter().zip(corrupt).map(|(clean, corrupt)| Pair::new(clean, corrupt)).collect();
        for (pair, answers) in pairs.iter_mut().zip(answers.into_iter().flatten()) {
            pair.answers = Some(answers);
        }
        Ok(pairs.into())
    }

    /// The pairs for one tokenizer.
    ///
    /// # Errors
    /// If there is no tokenizer where words must be chosen, or too few words are single tokens.
    pub(super) fn pairs(&self, of: &impl HasTokenizer) -> Result<Vec<Pair>> {
        let (task, n, seed) = match &self.0 {
            Kind::Pairs(pairs) => return Ok(pairs.clone()),
            Kind::Generated { task, n, seed } => (*task, *n, *seed),
        };
        let (tokenizer, rng) = (of.need_tokenizer()?, &mut ChaCha8Rng::seed_from_u64(seed));
        match task {
            Task::Ioi => draw_ioi(tokenizer, n, rng),
            Task::GreaterThan => draw_years(tokenizer, n, rng),
            Task::Induction => draw_induction(tokenizer, n, rng),
            Task::Agreement => draw_agreement(tokenizer, n, rng),
        }
    }

    /// What the prompts come from.
    pub(super) fn provenance(&self) -> serde_json::Value {
        match &self.0 {
            Kind::Pairs(pairs) => {
                json!({"pairs": pairs.len(), "sha256": file::sha256(json!(pairs).to_string().as_bytes())})
            }
            Kind::Generated { task, n, seed } => json!({"generator": format!("{task:?}"), "n": n, "seed": seed}),
        }
    }
}

/// A template with its gaps filled: the text, and the bytes of each gap's word; as `S1+1`, of the first letter after `S1`.
struct Filled {
    text: String,
    gaps: BTreeMap<String, Range<usize>>,
}

/// Fills the gaps of a template, such as `{S1}`, each with the word of that name. A gap that comes twice counts where it
/// comes first.
fn fill(template: &str, words: &[(&str, &str)]) -> Filled {
    let mut filled = Filled { text: String::new(), gaps: BTreeMap::new() };
    let mut last = None;
    for part in template.split_inclusive(['{', '}']) {
        let (part, is_gap) = match part.strip_suffix('}') {
            Some(name) => (name, true),
            None => (part.strip_suffix('{').unwrap_or(part), false),
        };
        let word = words.iter().find(|(name, _)| is_gap && *name == part).map_or(part, |(_, word)| word);
        let start = filled.text.len();
        let letter = start + word.len() - word.trim_start().len();
        if let Some(gap) = last.take()
            && letter < start + word.len()
        {
            filled.gaps.entry(format!("{gap}+1")).or_insert(letter..letter + 1);
        }
        filled.text.push_str(word);
        if is_gap {
            filled.gaps.entry(part.to_owned()).or_insert(start..filled.text.len());
            last = Some(part);
        }
    }
    filled
}

/// A pair of which both prompts fill one template, with a name for each of these gaps.
fn pair(template: &str, clean: &[(&str, &str)], corrupt: &[(&str, &str)], names: &[&str]) -> Pair {
    let (clean, corrupt) = (fill(template, clean), fill(template, corrupt));
    let mut pair = Pair::new(clean.text.clone(), corrupt.text.clone());
    for name in names {
        if let (Some(a), Some(b)) = (clean.gaps.get(*name), corrupt.gaps.get(*name)) {
            pair = pair.at_each(name, a.clone(), b.clone());
        }
    }
    pair
}

/// Any of a list that is not empty.
fn any<T: Copy>(from: &[T], rng: &mut ChaCha8Rng) -> Result<T> {
    from.choose(rng).copied().ok_or_else(|| Error::argument("prompts", "a word to draw", "none"))
}

fn draw_ioi(tokenizer: &Tokenizer, n: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Pair>> {
    const TEMPLATES: [&str; 6] = [
        "When {A} and {B} met at the {place}, {S2} gave the {object} to",
        "After {A} and {B} had left the {place}, {S2} handed the {object} to",
        "While {A} and {B} were waiting near the {place}, {S2} passed the {object} to",
        "Once {A} and {B} were back from the {place}, {S2} showed the {object} to",
        "Yesterday {A} and {B} worked at the {place}, and {S2} lent the {object} to",
        "Because {A} and {B} lived above the {place}, {S2} brought the {object} to",
    ];
    let names = singles(tokenizer, "names", &NAMES, 2)?;
    let (places, objects) = (singles(tokenizer, "places", &PLACES, 1)?, singles(tokenizer, "objects", &OBJECTS, 1)?);
    let one = |i: usize| {
        let order = if rng.random() { ["{IO}", "{S1}"] } else { ["{S1}", "{IO}"] };
        let template = TEMPLATES[i % TEMPLATES.len()].replace("{A}", order[0]).replace("{B}", order[1]);
        let mut two = names.choose_multiple(rng, 2).copied();
        let (io, s) = (two.next().unwrap_or_default(), two.next().unwrap_or_default());
        let (place, object) = (any(&places, rng)?, any(&objects, rng)?);
        let words = |s2| [("IO", io), ("S1", s), ("S2", s2), ("place", place), ("object", object)];
        let pair = pair(&template, &words(s), &words(io), &["IO", "S1", "S1+1", "S2"]);
        Ok(pair.answers(format!(" {io}"), format!(" {s}")))
    };
    (0..n).map(one).collect()
}

fn draw_induction(tokenizer: &Tokenizer, n: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Pair>> {
    /// How many words there are once, at least and at most, and how many there are in all.
    const ONCE: (usize, usize) = (7, 9);
    const ALL: usize = 13;
    let pool = singles(tokenizer, "words", &WORDS, ONCE.1 + 1)?;
    let one = |_| {
        let once = rng.random_range(ONCE.0..=ONCE.1);
        let again = ALL - once;
        let words: Vec<&str> = pool.choose_multiple(rng, once + 1).copied().collect();
        let (other, words) = words.split_last().unwrap_or((&"", &[]));
        // The last word is words[again - 1], so that words[again] is the answer.
        let gap = |i: usize| match i {
            i if i + 1 == again => "{A1}".to_owned(),
            i if i == again => "{B}".to_owned(),
            i => words[i].to_owned(),
        };
        let first = (0..once).map(gap);
        let second = words[..again - 1].iter().map(|word| (*word).to_owned());
        let template: Vec<String> = first.chain(second).chain(["{A2}".to_owned()]).collect();
        let template = format!("Words: {}", template.join(" "));
        let (a, b) = (words[again - 1], words[again]);
        let filling = |b| [("A1", a), ("A2", a), ("B", b)];
        pair(&template, &filling(b), &filling(other), &["A1", "B", "A2"]).answers(format!(" {b}"), format!(" {other}"))
    };
    Ok((0..n).map(one).collect())
}

fn draw_agreement(tokenizer: &Tokenizer, n: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Pair>> {
    const TEMPLATES: [&str; 5] = [
        "The {subject} near the {attractor}",
        "The {subject} beside the {attractor}",
        "The {subject} from the {attractor}",
        "The {subject} in front of the {attractor}",
        "The {subject} that belonged to the {attractor}",
    ];
    let forms = |what, all: &[(&'static str, &'static str)], least: usize| {
        let flat: Vec<&str> = all.iter().flat_map(|(one, many)| [*one, *many]).collect();
        let single = singles(tokenizer, what, &flat, 2 * least)?;
        let both: Vec<_> =
            all.iter().filter(|(one, many)| single.contains(one) && single.contains(many)).copied().collect();
        let expected = || format!("{least} {what} or more that are single tokens in both numbers");
        if both.len() < least { Err(Error::argument("prompts", expected(), format!("{both:?}"))) } else { Ok(both) }
    };
    let (nouns, verbs) = (forms("nouns", &NOUNS, 2)?, forms("verbs", &VERBS, 1)?);
    let one = |i: usize| {
        let mut two = nouns.choose_multiple(rng, 2).copied();
        let (subject, attractor) = (two.next().unwrap_or_default(), two.next().unwrap_or_default());
        let (many, verb) = (rng.random::<bool>(), any(&verbs, rng)?);
        let number = |(one, many): (&'static str, &'static str), is_many: bool| if is_many { many } else { one };
        let attractor = number(attractor, rng.random());
        let words = |is_many| [("subject", number(subject, is_many)), ("attractor", attractor)];
        let pair = pair(TEMPLATES[i % TEMPLATES.len()], &words(many), &words(!many), &["subject", "attractor"]);
        Ok(pair.answers(format!(" {}", number(verb, many)), format!(" {}", number(verb, !many))))
    };
    (0..n).map(one).collect()
}

/// How one tokenizer writes the years of a century: for the tens and the unit digit, the tokens after the century's.
struct Century {
    name: String,
    tails: BTreeMap<(u8, u8), Vec<i64>>,
}

impl Century {
    const TEXT: &str = "The war lasted from the year";

    fn new(tokenizer: &Tokenizer, century: u8) -> Result<Self> {
        let name = century.to_string();
        let before = tokenizer.ids(&format!("{} {name}", Self::TEXT), false, "a century")?;
        let mut tails = BTreeMap::new();
        for (tens, unit) in (0..=9).flat_map(|tens| (1..=9).map(move |unit| (tens, unit))) {
            let year = tokenizer.ids(&format!("{} {name}{tens}{unit}", Self::TEXT), false, "a year")?;
            if let Some(tail) = year.strip_prefix(before.as_slice()) {
                tails.insert((tens, unit), tail.to_vec());
            }
        }
        Ok(Self { name, tails })
    }

    /// Keeps the years whose two digits are so many tokens.
    fn written_in(&self, tokens: usize) -> Self {
        let tails = self.tails.iter().filter(|(_, tail)| tail.len() == tokens);
        Self { name: self.name.clone(), tails: tails.map(|(digits, tail)| (*digits, tail.clone())).collect() }
    }

    /// Years with an earlier and a later one, and with one in the first decade, the corrupt prompt's.
    fn questions(&self) -> Vec<(u8, u8)> {
        let any = |fits: &dyn Fn(u8) -> bool| self.tails.keys().any(|&(tens, _)| fits(tens));
        let fits = |&(tens, unit): &(u8, u8)| {
            tens > 1 && self.tails.contains_key(&(0, unit)) && any(&|t| t > tens) && any(&|t| t > 0 && t < tens)
        };
        self.tails.keys().copied().filter(fits).collect()
    }

    /// The first token of a year's two digits, drawn from those that fit.
    fn draw(&self, fits: impl Fn(u8) -> bool, rng: &mut ChaCha8Rng) -> Result<i64> {
        let all: Vec<i64> = self
            .tails
            .iter()
            .filter(|((tens, _), _)| fits(*tens))
            .filter_map(|(_, tail)| tail.first().copied())
            .collect();
        any(&all, rng)
    }
}

fn draw_years(tokenizer: &Tokenizer, n: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Pair>> {
    const TEMPLATE: &str = "The {event} lasted from the year {XX}{YY}{unit} to the year {XX}";
    let events = singles(tokenizer, "events", &EVENTS, 1)?;
    let all = (11..=19).map(|century| Century::new(tokenizer, century)).collect::<Result<Vec<_>>>()?;
    let written = |tokens| {
        let centuries = all.iter().map(|century| century.written_in(tokens));
        let asked = centuries.map(|century| (century.questions(), century)).filter(|(years, _)| !years.is_empty());
        Some((tokens, asked.collect::<Vec<_>>())).filter(|(_, centuries)| !centuries.is_empty())
    };
    let Some((tokens, centuries)) = written(1).or_else(|| written(2)) else {
        let expected = "a tokenizer that writes the last two digits of a year as one token or as two";
        let ids = tokenizer.ids(" 1743", false, "a year")?;
        let found: Vec<String> = ids.iter().map(|&id| tokenizer.piece(id)).collect();
        return Err(Error::argument("prompts", expected, format!("1743 as `{}`", found.join("` `"))));
    };
    let mut order: Vec<usize> = (0..centuries.len()).collect();
    order.shuffle(rng);
    let one = |i: usize| {
        let (years, century) = &centuries[order[i % order.len()]];
        let ((tens, unit), event) = (any(years, rng)?, any(&events, rng)?);
        // As one token, both digits are the place that matters; as two, only the first one is.
        let digits = |tens: u8| {
            if tokens == 1 { (format!("{tens}{unit}"), String::new()) } else { (tens.to_string(), unit.to_string()) }
        };
        let (clean, corrupt) = (digits(tens), digits(0));
        let words = |(yy, unit)| [("event", event), ("XX", century.name.as_str()), ("YY", yy), ("unit", unit)];
        let filled = pair(TEMPLATE, &words((&clean.0, &clean.1)), &words((&corrupt.0, &corrupt.1)), &["XX", "YY"]);
        Ok(filled.answers(century.draw(|t| t > tens, rng)?, century.draw(|t| t > 0 && t < tens, rng)?))
    };
    (0..n).map(one).collect()
}

impl From<Vec<Pair>> for Recipe {
    fn from(pairs: Vec<Pair>) -> Self {
        Self(Kind::Pairs(pairs))
    }
}

impl From<&[Pair]> for Recipe {
    fn from(pairs: &[Pair]) -> Self {
        pairs.to_vec().into()
    }
}

impl<const N: usize> From<[Pair; N]> for Recipe {
    fn from(pairs: [Pair; N]) -> Self {
        pairs.to_vec().into()
    }
}

impl<A: AsRef<str>, B: AsRef<str>> From<&[(A, B)]> for Recipe {
    fn from(pairs: &[(A, B)]) -> Self {
        pairs.iter().map(|(clean, corrupt)| Pair::new(clean.as_ref(), corrupt.as_ref())).collect::<Vec<_>>().into()
    }
}

impl<A: AsRef<str>, B: AsRef<str>> From<Vec<(A, B)>> for Recipe {
    fn from(pairs: Vec<(A, B)>) -> Self {
        pairs.as_slice().into()
    }
}

impl<A: AsRef<str>, B: AsRef<str>, const N: usize> From<[(A, B); N]> for Recipe {
    fn from(pairs: [(A, B); N]) -> Self {
        pairs.as_slice().into()
    }
}
