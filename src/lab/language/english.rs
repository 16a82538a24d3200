//! What does language look like when every dependency is known? A small English: a grammar with a lexicon.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::lexicon::{OBJECTS, SURNAMES, id, words};
use super::story::{KINDS, Kind, Source, Story};
use super::{Dependency, Sample, Target, TaskInfo, within};
use crate::error::Result;

/// Short stories about three people, built sentence by sentence until the length is reached:
///
/// - `Anna Brown reads every evening the small old letter .`: the object fits the verb (`verb_object`); a person named
///   before keeps the same surname (`entity`);
/// - `the dogs near the cat often wait for the house .`: the verb agrees with the subject, not with the nearer noun
///   (`agreement`);
/// - `Anna Brown thanks Carl Hill today because she was tired .`: the pronoun refers to the subject, not to the nearer name
///   (`coreference`).
///
/// Relative clauses, places, times, adverbs and adjectives come between a word and what it depends on, so that a word's
/// distance from its source varies: in no kind of dependency does one fixed distance find a source in more than 6 of 10
/// cases ([`Batch::best_offset`](super::Batch::best_offset)).
///
/// Every next word is predicted, among all words (the task `word`). Where a word depends on another, it is predicted a
/// second time, among the words that could stand there otherwise (the task named after the dependency): the two forms
/// of the verb, the surnames, the two pronouns, the objects. Chance and floor of these tasks are therefore exact; what
/// the least loss of `word` is, is not known, and its floor is given as 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct English {
    /// Words in a sequence, including `<bos>`; the last sentence may be cut off.
    pub length: usize,
}

impl Default for English {
    fn default() -> Self {
        Self { length: 48 }
    }
}

impl English {
    /// The kinds of dependency, in the order of the tasks.
    pub const KINDS: [&'static str; 4] = [KINDS[0].name(), KINDS[1].name(), KINDS[2].name(), KINDS[3].name()];

    pub(super) fn validate(&self) -> Result<()> {
        within("length", self.length, 12..=100_000)
    }

    pub(super) fn infos(&self) -> Vec<TaskInfo> {
        let ln = |n: usize| (n as f64).ln();
        let info = |name: &str, chance: f64, floor: f64| TaskInfo { name: name.to_owned(), chance, floor };
        let of_kind = |kind: Kind| {
            let (chance, floor) = match kind {
                Kind::Agreement | Kind::Coreference => (ln(2), 0.0),
                Kind::Entity => (ln(SURNAMES.len()), 0.0),
                // The verb leaves the objects of its own class.
                Kind::VerbObject => (ln(OBJECTS.len() * OBJECTS[0].len()), ln(OBJECTS[0].len())),
            };
            info(kind.name(), chance, floor)
        };
        KINDS.into_iter().map(of_kind).chain([info("word", ln(words().len()), 0.0)]).collect()
    }

    pub(super) fn sample(&self, rng: &mut ChaCha8Rng, annotated: bool) -> Sample {
        let story = Story::told(self.length, rng);
        // Every word of a story is in the lexicon.
        let tokens: Vec<i64> = story.words[..self.length].iter().map(|word| id(word) as i64).collect();
        let all = words().len() as i64;
        let next = |word: usize| Target { position: word - 1, token: tokens[word], choices: 0..all, task: KINDS.len() };
        let mut targets: Vec<Target> = (1..self.length).map(next).collect();
        let mut dependencies = vec![];
        for Source { word, sources, kind } in story.sources.into_iter().filter(|source| source.word < self.length) {
            let query = word - 1;
            let choices = kind.choices(tokens[word]);
            targets.push(Target { position: query, token: tokens[word], choices, task: kind as usize });
            if annotated {
                let one = |source| Dependency { query, source, kind: kind.name().to_owned() };
                dependencies.extend(sources.into_iter().map(one));
            }
        }
        targets.sort_by_key(|target| (target.position, target.task));
        Sample { tokens, targets, dependencies }
    }
}
