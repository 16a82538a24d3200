//! Which kinds of lookup can a head learn? Queries about preceding tokens.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Dependency, Sample, Target, TaskInfo, within};
use crate::error::{Error, Result};

/// Number of sequences from which the minimum loss in the bag regime is estimated, to within 0.01 nat.
const FLOOR_SAMPLES: usize = 2000;

/// Content tokens, followed by a query whose answer is found at one of them.
///
/// A content token is a symbol and, if a task needs them, a colour and a bracket (opening or closing). Every task has
/// as many possible answers as there are symbols, all equally likely, so chance is ln(symbols) in every task.
///
/// | task | the answer is | its source |
/// |---|---|---|
/// | `back_k` | the symbol of the token k before the query (1-back: the previous one) | that token |
/// | `first` | the symbol of the first token | that token |
/// | `class` | the symbol of the only token with colour 0: agreement with the one token of a class | that token |
/// | `duplicate` | the colour of the earlier token with the query's symbol | that token |
/// | `bracket` | the symbol of the opening token that the query closes | that token |
/// | `induction` | the symbol after the earlier token with the query's symbol | the token after it |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Which of the tasks a query asks for.
    pub regime: Regime,
    /// Number of symbols, which is also the number of possible answers.
    pub symbols: usize,
    /// Smallest and largest number of content tokens before a query (in a mixture: between two queries).
    pub length: (usize, usize),
}

/// One task; see [`Tasks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The token this many positions before the query.
    Back(usize),
    /// The first token.
    First,
    /// The only token of a class.
    Class,
    /// The earlier token with the query's symbol.
    Duplicate,
    /// The opening token that the query closes.
    Bracket,
    /// The token after the earlier one with the query's symbol.
    Induction,
}

/// Which tasks a query asks for. Claims about heads can have different outcomes in each regime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Regime {
    /// The query names the one task to solve.
    Gated,
    /// One query asks for all tasks; each task has its own logits.
    Simultaneous,
    /// One query asks for all tasks, which share their logits: the target is the answer to any task, with equal
    /// probability.
    Bag,
    /// This many gated queries in one stream; task r of the list, counted from 1, has a frequency proportional to 1 /
    /// r.
    Mixture(usize),
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tasks: vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate],
            regime: Regime::Gated,
            symbols: 8,
            length: (6, 12),
        }
    }
}

impl Task {
    /// The task's name in tables and annotations.
    pub fn name(self) -> String {
        match self {
            Self::Back(k) => format!("back_{k}"),
            Self::First => "first".to_owned(),
            Self::Class => "class".to_owned(),
            Self::Duplicate => "duplicate".to_owned(),
            Self::Bracket => "bracket".to_owned(),
            Self::Induction => "induction".to_owned(),
        }
    }
}

/// A content token.
#[derive(Debug, Clone, Copy)]
struct Content {
    symbol: usize,
    /// 0 is the class; queries ask for colours from 1 on.
    colour: usize,
    opens: bool,
    /// Its position in the sequence.
    place: usize,
}

/// A query's answer in `0..symbols`, and the index of the content token that holds it.
type Answer = (usize, usize);

impl Tasks {
    pub(super) fn validate(&self) -> Result<()> {
        within("tasks", self.tasks.len(), 1..=1000)?;
        within("symbols", self.symbols, 2..=1000)?;
        if let Some(twice) = (1..self.tasks.len()).find(|&i| self.tasks[..i].contains(&self.tasks[i])) {
            return Err(Error::argument("tasks", "each task once", format!("{} twice", self.tasks[twice].name())));
        }
        let back = self.tasks.iter().map(|task| if let Task::Back(k) = task { *k } else { 2 });
        if self.tasks.contains(&Task::Back(0)) {
            return Err(Error::argument("tasks", "back by at least 1", 0));
        }
        within("length", self.length.1, self.length.0..=100_000)?;
        within("length", self.length.0, back.max().unwrap_or(2).max(2)..=100_000)?;
        match self.regime {
            Regime::Mixture(queries) => within("queries", queries, 1..=10_000),
            _ => Ok(()),
        }
    }

    pub(super) fn infos(&self) -> Vec<TaskInfo> {
        let chance = (self.symbols as f64).ln();
        let floors = if self.regime == Regime::Bag { self.bag_floors() } else { vec![0.0; self.tasks.len()] };
        let named = self.tasks.iter().zip(floors);
        named.map(|(task, floor)| TaskInfo { name: task.name(), chance, floor }).collect()
    }

    /// The optimal prediction in the bag regime gives every symbol its share of the tasks' answers, which sometimes
    /// coincide: the floor is the mean of -ln(share) of each task's answer, over [`FLOOR_SAMPLES`] sequences from a
    /// separate stream.
    fn bag_floors(&self) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (mut sums, mut counts) = (vec![0.0; self.tasks.len()], vec![0.0; self.tasks.len()]);
        for _ in 0..FLOOR_SAMPLES {
            let targets = self.sample(&mut rng, false).targets;
            for target in &targets {
                let alike = targets.iter().filter(|other| other.token == target.token).count();
                sums[target.task] -= (alike as f64 / targets.len() as f64).ln();
                counts[target.task] += 1.0;
            }
        }
        sums.iter().zip(&counts).map(|(sum, count)| if *count > 0.0 { sum / count } else { 0.0 }).collect()
    }

    fn colours(&self) -> usize {
        let coloured = self.tasks.contains(&Task::Class) || self.tasks.contains(&Task::Duplicate);
        if coloured { self.symbols + 1 } else { 1 }
    }

    fn brackets(&self) -> usize {
        if self.tasks.contains(&Task::Bracket) { 2 } else { 1 }
    }

    /// The query tokens: one per symbol or, if the query names the task, one per symbol and task.
    fn queries(&self) -> Range<usize> {
        let first = self.symbols * self.colours() * self.brackets();
        let gated = matches!(self.regime, Regime::Gated | Regime::Mixture(_));
        first..first + self.symbols * if gated { self.tasks.len() } else { 1 }
    }

    /// The tokens that can answer `task`.
    fn answers(&self, task: usize) -> Range<i64> {
        let own = if self.regime == Regime::Simultaneous { task } else { 0 };
        let first = (self.queries().end + own * self.symbols) as i64;
        first..first + self.symbols as i64
    }

    pub(super) fn vocab(&self) -> usize {
        self.answers(self.tasks.len() - 1).end as usize
    }

    pub(super) fn positions(&self) -> usize {
        match self.regime {
            Regime::Mixture(queries) => queries * (self.length.1 + 1),
            _ => self.length.1 + 1,
        }
    }

    pub(super) fn sample(&self, rng: &mut ChaCha8Rng, annotated: bool) -> Sample {
        let queries = if let Regime::Mixture(queries) = self.regime { queries } else { 1 };
        let most = self.positions();
        let mut sample = Sample { tokens: Vec::with_capacity(most), ..Sample::default() };
        let mut content = Vec::with_capacity(most);
        for _ in 0..queries {
            let n = rng.random_range(self.length.0..=self.length.1);
            let old = content.len();
            self.extend(&mut content, n, sample.tokens.len(), rng);
            let key = self.key(&mut content, queries == 1, rng);
            sample.tokens.extend(content[old..].iter().map(|token| self.token(*token)));
            let asked = self.asked(rng);
            let query = sample.tokens.len();
            let named = if asked.len() == 1 && self.queries().len() > self.symbols { asked.start } else { 0 };
            let symbol = content[key].symbol;
            sample.tokens.push((self.queries().start + named * self.symbols + symbol) as i64);
            for task in asked {
                let Some((answer, at)) = answer(self.tasks[task], &content, symbol) else { continue };
                let choices = self.answers(task);
                sample.targets.push(Target { position: query, token: choices.start + answer as i64, choices, task });
                if annotated {
                    let kind = self.tasks[task].name();
                    sample.dependencies.push(Dependency { query, source: content[at].place, kind });
                }
            }
        }
        sample
    }

    fn token(&self, content: Content) -> i64 {
        let form = usize::from(content.opens && self.brackets() == 2) * self.colours() + content.colour;
        (form * self.symbols + content.symbol) as i64
    }

    /// The tasks that a query asks for, chosen by the regime.
    fn asked(&self, rng: &mut ChaCha8Rng) -> Range<usize> {
        let n = self.tasks.len();
        let one = match self.regime {
            Regime::Simultaneous | Regime::Bag => return 0..n,
            Regime::Gated => rng.random_range(0..n),
            Regime::Mixture(_) => {
                let total: f64 = (1..=n).map(|rank| 1.0 / rank as f64).sum();
                let mut left = rng.random::<f64>() * total;
                let place = (1..=n).position(|rank| {
                    left -= 1.0 / rank as f64;
                    left < 0.0
                });
                place.unwrap_or(n - 1)
            }
        };
        one..one + 1
    }

    /// Appends `n` content tokens, the first at position `place`. If a task asks for the class, the first call gives one token
    /// colour 0. At the end at least one bracket is open.
    fn extend(&self, content: &mut Vec<Content>, n: usize, place: usize, rng: &mut ChaCha8Rng) {
        let first = content.is_empty();
        let class = (first && self.tasks.contains(&Task::Class)).then(|| rng.random_range(0..n));
        let mut depth: usize = open(content).len();
        for i in 0..n {
            let symbol = rng.random_range(0..self.symbols);
            let colour = match self.colours() {
                1 => 0,
                _ if class == Some(i) => 0,
                colours => rng.random_range(1..colours),
            };
            let opens = depth == 0 || (i + 1 == n && depth == 1) || rng.random::<bool>();
            depth = if opens { depth + 1 } else { depth - 1 };
            content.push(Content { symbol, colour, opens, place: place + i });
        }
    }

    /// Chooses the content token whose symbol the query gets. If `unique`, no other token keeps that symbol.
    fn key(&self, content: &mut [Content], unique: bool, rng: &mut ChaCha8Rng) -> usize {
        // The last token has no successor, and the class token has no colour to ask for.
        let coloured = self.colours() > 1;
        let fits = || (0..content.len() - 1).filter(|&i| !coloured || content[i].colour > 0);
        let chosen = rng.random_range(0..fits().count());
        let key = fits().nth(chosen).unwrap_or_default();
        if unique {
            let symbol = content[key].symbol;
            for (_, other) in content.iter_mut().enumerate().filter(|(i, other)| *i != key && other.symbol == symbol) {
                other.symbol = (symbol + rng.random_range(1..self.symbols)) % self.symbols;
            }
        }
        key
    }
}

/// Indices of the opening tokens that are still open.
fn open(content: &[Content]) -> Vec<usize> {
    let mut stack = vec![];
    for (i, token) in content.iter().enumerate() {
        if token.opens {
            stack.push(i);
        } else {
            stack.pop();
        }
    }
    stack
}

/// The answer to `task` for a query with `symbol`; `None` if there is none.
fn answer(task: Task, content: &[Content], symbol: usize) -> Option<Answer> {
    let last = |end: usize, fits: &dyn Fn(&Content) -> bool| content[..end].iter().rposition(fits);
    let at = match task {
        Task::Back(k) => content.len().checked_sub(k)?,
        Task::First => 0,
        Task::Class => last(content.len(), &|token| token.colour == 0)?,
        Task::Duplicate => last(content.len(), &|token| token.symbol == symbol)?,
        Task::Bracket => *open(content).last()?,
        Task::Induction => last(content.len() - 1, &|token| token.symbol == symbol)? + 1,
    };
    let found = content.get(at)?;
    match task {
        // In a mixture, the last token with that symbol may be the class token, which has no colour to ask for.
        Task::Duplicate => Some((found.colour.checked_sub(1)?, at)),
        _ => Some((found.symbol, at)),
    }
}
