//! Can a model learn induction? Random sequences that repeat with a random period from a random offset.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Dependency, Sample, Target, TaskInfo, within};
use crate::error::{Error, Result};

/// `<bos>`, some irrelevant symbols, then a block of distinct symbols, repeated.
///
/// From the second symbol of the second copy on, every symbol can be predicted: it is the one after the earlier
/// occurrence of the preceding symbol. Period and offset are drawn for each sequence, so that no fixed distance or
/// position is a shortcut (Olsson et al. 2022; fixed periods can be solved by position). Predictions that cannot be
/// made this way belong to the task `first_copy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repeats {
    /// Number of symbols.
    pub symbols: usize,
    /// Length of a sequence, including `<bos>`.
    pub length: usize,
    /// Shortest and longest period, the length of the block.
    pub period: (usize, usize),
    /// Smallest and largest number of symbols before the first block.
    pub offset: (usize, usize),
}

impl Default for Repeats {
    fn default() -> Self {
        Self { symbols: 32, length: 32, period: (5, 14), offset: (0, 6) }
    }
}

impl Repeats {
    pub(super) fn validate(&self) -> Result<()> {
        within("symbols", self.symbols, 2..=100_000)?;
        within("length", self.length, 5..=100_000)?;
        within("period", self.period.0, 1..=self.period.1)?;
        within("offset", self.offset.0, 0..=self.offset.1)?;
        if self.period.1 >= self.symbols {
            let expected = format!("less than the {} symbols", self.symbols);
            return Err(Error::argument("period", expected, self.period.1));
        }
        let needed = 1 + self.offset.1 + self.period.1 + 2;
        if needed > self.length {
            let expected = format!("at least {needed}, to fit the longest offset and period with something to predict");
            return Err(Error::argument("length", expected, self.length));
        }
        Ok(())
    }

    pub(super) fn vocab(&self) -> usize {
        self.symbols + 1
    }

    pub(super) fn infos(&self) -> Vec<TaskInfo> {
        let chance = (self.symbols as f64).ln();
        let info = |name: &str, floor| TaskInfo { name: name.to_owned(), chance, floor };
        vec![info("induction", 0.0), info("first_copy", chance)]
    }

    /// `<bos>`, then letters, if there are enough of them.
    pub(super) fn words(&self) -> Option<Vec<String>> {
        let letters: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
        (self.symbols <= letters.len()).then(|| {
            let letters = letters.iter().take(self.symbols).map(char::to_string);
            std::iter::once(super::lexicon::BOS.to_owned()).chain(letters).collect()
        })
    }

    pub(super) fn sample(&self, rng: &mut ChaCha8Rng, annotated: bool) -> Sample {
        let period = rng.random_range(self.period.0..=self.period.1);
        let offset = 1 + rng.random_range(self.offset.0..=self.offset.1);
        let mut symbols: Vec<i64> = (1..=self.symbols as i64).collect();
        symbols.shuffle(rng);
        let (block, others) = symbols.split_at(period);
        let mut tokens = vec![0];
        tokens.extend((1..offset).map(|_| others[rng.random_range(0..others.len())]));
        tokens.extend(block.iter().cycle().take(self.length - offset));
        let mut sample = Sample { tokens, ..Sample::default() };
        for query in 0..self.length - 1 {
            let repeats = query >= offset + period;
            let (token, choices) = (sample.tokens[query + 1], 0..self.vocab() as i64);
            sample.targets.push(Target { position: query, token, choices, task: usize::from(!repeats) });
            let sources = (1..).map(|copies| copies * period).take_while(|back| query >= offset + back);
            let dependency = |back| Dependency { query, source: query + 1 - back, kind: "induction".to_owned() };
            sample.dependencies.extend(sources.filter(|_| repeats && annotated).map(dependency));
        }
        sample
    }
}
