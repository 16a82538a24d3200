//! Which word should attend to which? Texts with known structure.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::file;

/// A text, its words (or longer mentions), and links between them that a head may know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotated {
    /// The text.
    pub text: String,
    /// The byte ranges of its words, in order.
    pub words: Vec<Range<usize>>,
    /// The links.
    pub links: Vec<Link>,
}

/// A link from a word to the words that are correct for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The role of a head that knows such links, such as `nsubj_to_head`.
    pub role: String,
    /// Index of the query word.
    pub query: usize,
    /// Indices of the words that it should attend to; any of them is correct.
    pub keys: Vec<usize>,
    /// Indices of the candidate words; by default all other words.
    pub among: Option<Vec<usize>>,
}

/// Reads Universal Dependencies in CoNLL-U format, optionally compressed with gzip.
///
/// Every relation becomes two roles: `nsubj_to_head`, from each dependent to its head, and `nsubj_to_dependent`, from
/// each head to its dependents with that relation. The words of a name (adjacent words tagged `PROPN`) attend to each
/// other in the role `entity`. The words of a contraction share its place in the text unless their forms spell it out.
/// Empty nodes are skipped.
///
/// # Errors
/// If the file cannot be read or is not CoNLL-U. The error names the line.
pub fn read_conllu(path: impl AsRef<Path>) -> Result<Vec<Annotated>> {
    let path = path.as_ref();
    let text = file::read_text(path)?;
    let (mut all, mut sentence) = (vec![], Sentence::default());
    for (number, line) in text.lines().enumerate() {
        let wrong = |expected: &str| Error::Format {
            path: path.to_owned(),
            at: format!("line {}", number + 1),
            expected: expected.to_owned(),
            found: line.to_owned(),
        };
        match line.trim_end() {
            "" => all.extend(std::mem::take(&mut sentence).finish().map_err(wrong)?),
            line if line.starts_with('#') => {}
            line => sentence.push(line).map_err(wrong)?,
        }
    }
    let wrong = |expected: &str| Error::Format {
        path: path.to_owned(),
        at: "its end".to_owned(),
        expected: expected.to_owned(),
        found: "a sentence that is cut off".to_owned(),
    };
    all.extend(sentence.finish().map_err(wrong)?);
    Ok(all)
}

/// The part of a CoNLL-U sentence read so far.
#[derive(Default)]
struct Sentence {
    text: String,
    words: Vec<Range<usize>>,
    /// Head, relation and part of speech of each word.
    trees: Vec<(usize, String, String)>,
    /// The open contraction: the number of its last word, its range in the text, and whether a space follows.
    contraction: Option<(usize, Range<usize>, bool)>,
}

impl Sentence {
    /// Adds one line. The error says what was expected.
    fn push(&mut self, line: &str) -> Result<(), &'static str> {
        let columns: Vec<&str> = line.split('\t').collect();
        let [id, form, _, tag, _, _, head, relation, _, misc] = columns.as_slice() else {
            return Err("ten columns, separated by tabs");
        };
        let space = !misc.split('|').any(|item| item == "SpaceAfter=No");
        if id.contains('.') {
            return Ok(());
        }
        if let Some((first, last)) = id.split_once('-') {
            let number = |id: &str| id.parse::<usize>().map_err(|_| "two numbers of words");
            if number(first)? != self.words.len() + 1 {
                return Err("a contraction of the next word");
            }
            let start = self.text.len();
            self.contraction = Some((number(last)?, start..start + form.len(), space));
            self.text.push_str(form);
            return Ok(());
        }
        if id.parse() != Ok(self.words.len() + 1) {
            return Err("words that are numbered from 1");
        }
        let head = head.parse().map_err(|_| "the number of a head in column 7")?;
        self.trees.push((head, (*relation).to_owned(), (*tag).to_owned()));
        let done = match &self.contraction {
            Some((last, place, space)) => {
                // The word's own part of the contraction, if the form of the word is spelt out there.
                let from = self.words.last().map_or(place.start, |before| before.end.max(place.start));
                let here = self.text.get(from..from + form.len()).is_some_and(|part| part == *form);
                self.words.push(if here && from + form.len() <= place.end {
                    from..from + form.len()
                } else {
                    place.clone()
                });
                (self.words.len() == *last).then_some(*space)
            }
            None => {
                self.words.push(self.text.len()..self.text.len() + form.len());
                self.text.push_str(form);
                Some(space)
            }
        };
        if let Some(space) = done {
            self.contraction = None;
            if space {
                self.text.push(' ');
            }
        }
        Ok(())
    }

    /// The sentence with its links; `None` if it is empty.
    fn finish(self) -> Result<Option<Annotated>, &'static str> {
        if self.words.is_empty() {
            return Ok(None);
        }
        if self.contraction.is_some() || self.trees.iter().any(|(head, ..)| *head > self.words.len()) {
            return Err("heads and contractions within the sentence");
        }
        let mut links = vec![];
        let mut dependents: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
        for (word, (head, relation, _)) in self.trees.iter().enumerate().filter(|(_, (head, ..))| *head > 0) {
            links.push(Link::new(format!("{relation}_to_head"), word, vec![head - 1]));
            dependents.entry((head - 1, relation)).or_default().push(word);
        }
        for ((head, relation), words) in dependents {
            links.push(Link::new(format!("{relation}_to_dependent"), head, words));
        }
        let numbers: Vec<usize> = (0..self.words.len()).collect();
        let name = |word: usize| self.trees[word].2 == "PROPN";
        for run in numbers.chunk_by(|&a, &b| name(a) && name(b)).filter(|run| run.len() > 1) {
            for &word in run {
                let others = run.iter().copied().filter(|&other| other != word).collect();
                links.push(Link::new("entity".to_owned(), word, others));
            }
        }
        Ok(Some(Annotated { text: self.text.trim_end().to_owned(), words: self.words, links }))
    }
}

impl Link {
    fn new(role: String, query: usize, keys: Vec<usize>) -> Self {
        Self { role, query, keys, among: None }
    }
}

/// Reads GAP (Webster et al. 2018), optionally compressed with gzip: ambiguous pronouns, each with two names.
///
/// In the role `coreference`, the pronoun attends to the name that it refers to, with the two names as candidates.
/// Pronouns that refer to neither are left out.
///
/// # Errors
/// If the file cannot be read or is not GAP. The error names the line.
pub fn read_gap(path: impl AsRef<Path>) -> Result<Vec<Annotated>> {
    let path = path.as_ref();
    let text = file::read_text(path)?;
    let mut all = vec![];
    for (number, line) in text.lines().enumerate().skip(1) {
        let wrong = |expected: &str| Error::Format {
            path: path.to_owned(),
            at: format!("line {}", number + 1),
            expected: expected.to_owned(),
            found: line.chars().take(80).collect(),
        };
        let columns: Vec<&str> = line.split('\t').collect();
        let [_, text, pronoun, at, a, a_at, a_is, b, b_at, b_is, ..] = columns.as_slice() else {
            return Err(wrong("ten columns or more, separated by tabs"));
        };
        let span = |word: &str, at: &str| {
            let start = text.char_indices().nth(at.parse().ok()?).map(|(byte, _)| byte)?;
            text.get(start..).is_some_and(|rest| rest.starts_with(word)).then(|| start..start + word.len())
        };
        let spans = [span(pronoun, at), span(a, a_at), span(b, b_at)];
        let [Some(pronoun), Some(a), Some(b)] = spans else { return Err(wrong("words at their offsets")) };
        let right = match (a_is.eq_ignore_ascii_case("true"), b_is.eq_ignore_ascii_case("true")) {
            (true, false) => a.clone(),
            (false, true) => b.clone(),
            _ => continue,
        };
        let mut words = vec![pronoun.clone(), a, b];
        words.sort_by_key(|word| word.start);
        let place = |word: &Range<usize>| words.iter().position(|other| other == word).unwrap_or_default();
        let (query, key) = (place(&pronoun), place(&right));
        let among = Some((0..3).filter(|&word| word != query).collect());
        let link = Link { role: "coreference".to_owned(), query, keys: vec![key], among };
        all.push(Annotated { text: (*text).to_owned(), words, links: vec![link] });
    }
    Ok(all)
}
