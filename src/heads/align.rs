//! Which word does a head attend to most? From attention between tokens to attention between words.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::annotation::{Annotated, Link};
use super::batches::{batches, select};
use crate::error::{Error, Result};
use crate::model::{Model, Site, Tokens};
use crate::progress::Progress;

/// Which tokens of a word count as the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Looking {
    /// The mean over all of its tokens (Clark et al. 2019).
    Mean,
    /// The last token: in a causal model, only this one has seen the whole word.
    Last,
}

/// A link that can be judged, and the choice of every head. Places are counted among the candidate words: -1 is the
/// nearest before the query, 1 the nearest after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub role: String,
    /// Index of the text.
    pub text: usize,
    /// The tokens of the query word.
    pub tokens: Vec<usize>,
    /// The correct places.
    pub right: Vec<i32>,
    /// The number of candidate words before and after the query.
    pub before: i32,
    pub behind: i32,
    /// The place that each head attends to most; heads are numbered layer * heads + head.
    pub found: Vec<i32>,
}

impl Item {
    /// Whether a place is one of the candidates.
    pub fn has(&self, place: i32) -> bool {
        (-self.before..0).contains(&place) || (1..=self.behind).contains(&place)
    }
}

/// Texts that fit the model, as tokens, and the tokens of each of their words.
pub(super) struct Aligned {
    pub tokens: Tokens,
    /// For each prompt, the index of its text.
    pub texts: Vec<usize>,
    /// The tokens of each word of each prompt.
    words: Vec<Vec<Vec<usize>>>,
}

impl Aligned {
    /// Tokenizes texts and finds the tokens of each word. Texts longer than the model's context are left out.
    pub fn new(model: &Model, annotated: &[Annotated]) -> Result<Self> {
        let none = || Error::argument("model", "one with a tokenizer", "none");
        let tokenizer = model.tokenizer().ok_or_else(none)?;
        let (mut texts, mut words) = (vec![], vec![]);
        for (number, annotated) in annotated.iter().enumerate() {
            if let Some(word) = annotated.words.iter().find(|word| annotated.text.get((*word).clone()).is_none()) {
                let expected = format!("words within text {number}, of {} bytes", annotated.text.len());
                return Err(Error::argument(
                    "words",
                    expected,
                    format!("one from byte {} to {}", word.start, word.end),
                ));
            }
            let spans = tokenizer.spans(&annotated.text)?;
            if (1..=model.config().n_positions).contains(&spans.len()) {
                texts.push(number);
                words.push(tokens_of_words(&spans, &annotated.words));
            }
        }
        if texts.is_empty() {
            let expected = format!("a text of at most {} tokens", model.config().n_positions);
            return Err(Error::argument("texts", expected, format!("none among {}", annotated.len())));
        }
        let chosen: Vec<&str> = texts.iter().map(|&text| annotated[text].text.as_str()).collect();
        Ok(Self { tokens: model.tokens(&chosen)?, texts, words })
    }

    /// For each token of each prompt, the dependency relation of its word (the role `..._to_head` without that suffix),
    /// at the last token of the word.
    pub fn roles(&self, annotated: &[Annotated]) -> Vec<Vec<Option<String>>> {
        let of_prompt = |(number, text): (usize, &usize)| {
            let mut roles = vec![None; self.tokens.row(number).len()];
            for link in &annotated[*text].links {
                let role = link.role.strip_suffix("_to_head").map(str::to_owned);
                let token = self.words[number].get(link.query).and_then(|tokens| tokens.last());
                if let (Some(role), Some(&token)) = (role, token) {
                    roles[token] = Some(role);
                }
            }
            roles
        };
        self.texts.iter().enumerate().map(of_prompt).collect()
    }

    /// Every link that can be judged, with the place that each head attends to most.
    pub fn items(
        &self,
        model: &Model,
        annotated: &[Annotated],
        looking: Looking,
        role: Option<&str>,
    ) -> Result<Vec<Item>> {
        let mut items = vec![];
        let mut progress = Progress::new("texts", self.texts.len());
        for numbers in batches(model, &self.tokens) {
            let mut asked = vec![];
            for (row, &number) in numbers.iter().enumerate() {
                let text = &annotated[self.texts[number]];
                let links = text.links.iter().filter(|link| role.is_none_or(|role| link.role == role));
                for link in links {
                    asked.extend(self.ask(number, row, link, model.config().causal)?);
                }
            }
            progress.add(numbers.len());
            if asked.is_empty() {
                continue;
            }
            let reader = WordMaps::new(self, &numbers, &asked, looking, model);
            let tokens = select(&self.tokens, &numbers)?;
            let mut found: Vec<Vec<i32>> = vec![vec![]; asked.len()];
            model.each_layer(&tokens, &[Site::Pattern], |layer, run| {
                let words = reader.favourites(run.get(Site::Pattern(layer))?)?;
                for (link, (places, words)) in found.iter_mut().zip(words.chunks(model.config().n_heads)).enumerate() {
                    places.extend(words.iter().map(|&word| asked[link].place(word as usize)));
                }
                Ok(())
            })?;
            items.extend(asked.into_iter().zip(found).map(|(asked, found)| Item { found, ..asked.item }));
        }
        Ok(items)
    }

    /// A link as a question to the heads. `None` if it cannot be judged: a word has no token of its own, a causal query
    /// cannot see the key, or there are fewer than two candidates.
    fn ask(&self, number: usize, row: usize, link: &Link, causal: bool) -> Result<Option<Asked>> {
        let words = &self.words[number];
        let named = || link.keys.iter().chain([&link.query]).chain(link.among.iter().flatten());
        if let Some(&found) = named().find(|&&word| word >= words.len()) {
            let at = format!("link `{}` of text {}", link.role, self.texts[number]);
            return Err(Error::OutOfRange { at, axis: "word", found: found as i64, limit: words.len() as i64 });
        }
        let Some(&first) = words[link.query].first() else { return Ok(None) };
        let mut among: Vec<usize> = match &link.among {
            Some(among) => among.clone(),
            None => (0..words.len()).collect(),
        };
        among.sort_unstable();
        among.dedup();
        let last = |word: usize| words[word].last().copied();
        among.retain(|&word| word != link.query && last(word).is_some_and(|last| !causal || last < first));
        let before = among.iter().filter(|&&word| word < link.query).count();
        let item = Item {
            role: link.role.clone(),
            text: self.texts[number],
            tokens: words[link.query].clone(),
            right: vec![],
            before: before as i32,
            behind: (among.len() - before) as i32,
            found: vec![],
        };
        let mut asked = Asked { row, query: link.query, among, item };
        let keys = link.keys.iter().filter(|key| asked.among.contains(key));
        asked.item.right = keys.map(|&key| asked.place(key)).collect();
        Ok((asked.among.len() > 1 && !asked.item.right.is_empty()).then_some(asked))
    }
}

/// A link in a batch.
struct Asked {
    row: usize,
    query: usize,
    among: Vec<usize>,
    item: Item,
}

impl Asked {
    /// The place of a word among the candidates.
    fn place(&self, word: usize) -> i32 {
        let number = self.among.partition_point(|&other| other < word) as i32;
        let place = number - self.item.before;
        if place < 0 { place } else { place + 1 }
    }
}

/// The tensors that map a batch's patterns from tokens to words.
struct WordMaps {
    /// `[batch, word, query]`; each row averages over the tokens of a word, or selects the last one.
    from: Tensor,
    /// `[batch, key, word]`, 1 if a token belongs to a word.
    to: Tensor,
    /// Flat indices of the query words, `[link]`.
    queries: Tensor,
    /// True at words that are not candidates, `[link, 1, word]`.
    closed: Tensor,
}

impl WordMaps {
    fn new(aligned: &Aligned, numbers: &[usize], asked: &[Asked], looking: Looking, model: &Model) -> Self {
        let n = numbers.iter().map(|&number| aligned.tokens.row(number).len()).max().unwrap_or(0);
        let most = numbers.iter().map(|&number| aligned.words[number].len()).max().unwrap_or(0);
        let (mut from, mut to) = (vec![0f64; numbers.len() * most * n], vec![0f64; numbers.len() * n * most]);
        for (row, &number) in numbers.iter().enumerate() {
            for (word, tokens) in aligned.words[number].iter().enumerate() {
                let speaking =
                    if looking == Looking::Last { &tokens[tokens.len().saturating_sub(1)..] } else { tokens };
                speaking.iter().for_each(|token| from[(row * most + word) * n + token] = 1.0 / speaking.len() as f64);
                tokens.iter().for_each(|token| to[(row * n + token) * most + word] = 1.0);
            }
        }
        let mut closed = vec![true; asked.len() * most];
        for (link, asked) in asked.iter().enumerate() {
            asked.among.iter().for_each(|word| closed[link * most + word] = false);
        }
        let queries: Vec<i64> = asked.iter().map(|asked| (asked.row * most + asked.query) as i64).collect();
        let (batch, n, most) = (numbers.len() as i64, n as i64, most as i64);
        let of = |flat: &[f64], shape: [i64; 3]| {
            Tensor::from_slice(flat).view(shape).to_kind(model.kind()).to_device(model.device())
        };
        Self {
            from: of(&from, [batch, most, n]),
            to: of(&to, [batch, n, most]),
            queries: Tensor::from_slice(&queries).to_device(model.device()),
            closed: Tensor::from_slice(&closed).view([-1, 1, most]).to_device(model.device()),
        }
    }

    /// The candidate that the query of each link attends to most, link by link and head by head.
    fn favourites(&self, pattern: &Tensor) -> Result<Vec<i64>> {
        let torch = || Error::torch("attention between words");
        let words = self.from.unsqueeze(1).f_matmul(pattern).and_then(|x| x.f_matmul(&self.to.unsqueeze(1)));
        let words = words.map_err(torch())?.transpose(1, 2).flatten(0, 1); // [batch * word, head, word]
        let rows = words.index_select(0, &self.queries).masked_fill(&self.closed, -1.0);
        Vec::<i64>::try_from(rows.argmax(-1, false).to_kind(Kind::Int64).flatten(0, -1)).map_err(torch())
    }
}

/// The tokens of each word. A token belongs to the word with which it overlaps most.
fn tokens_of_words(spans: &[Range<usize>], words: &[Range<usize>]) -> Vec<Vec<usize>> {
    let mut tokens = vec![vec![]; words.len()];
    for (token, span) in spans.iter().enumerate() {
        let shared = |word: &Range<usize>| word.end.min(span.end).saturating_sub(word.start.max(span.start));
        // The first of the words with the largest overlap.
        let best = words.iter().enumerate().rev().max_by_key(|(_, word)| shared(word));
        if let Some((word, place)) = best
            && shared(place) > 0
        {
            tokens[word].push(token);
        }
    }
    tokens
}
