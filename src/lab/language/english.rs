//! What does language look like when every dependency is known? A small English: a grammar with a lexicon.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::lexicon::{ADJECTIVES, BOS, GREETS, MEN, MOODS, NOUNS, OBJECTS, PLACES, SURNAMES, VERBS, WOMEN, id, words};
use super::{Dependency, Sample, Target, TaskInfo, within};
use crate::error::Result;

/// Short stories about two people, built sentence by sentence until the length is reached:
///
/// - `Anna Brown reads the old letter .`: the object fits the verb (`verb_object`); a person named before keeps the
///   same surname (`entity`);
/// - `the dogs near the cat wait for the house .`: the verb agrees with the subject, not with the nearer noun
///   (`agreement`); each verb has its own particle, one word after it (`position`);
/// - `Anna Brown thanks Carl Hill because she was tired .`: the pronoun refers to the subject, not to the nearer name
///   (`coreference`).
///
/// Every next word is predicted; predictions that depend on none of these belong to the task `other`.
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

/// The kinds of dependency, in the order of the tasks.
const KINDS: [&str; 5] = ["agreement", "entity", "position", "coreference", "verb_object"];
const AGREEMENT: usize = 0;
const ENTITY: usize = 1;
const POSITION: usize = 2;
const COREFERENCE: usize = 3;
const VERB_OBJECT: usize = 4;

/// A person in a story.
struct Person {
    first: &'static str,
    last: &'static str,
    pronoun: &'static str,
    /// Position of the surname, once it has been mentioned.
    told: Option<usize>,
}

/// A story under construction.
struct Story {
    words: Vec<&'static str>,
    /// (position of the word, position of its source, kind)
    sources: Vec<(usize, usize, usize)>,
}

impl English {
    pub(super) fn validate(&self) -> Result<()> {
        within("length", self.length, 12..=100_000)
    }

    pub(super) fn infos(&self) -> Vec<TaskInfo> {
        let ln = |n: usize| (n as f64).ln();
        let (verbs, objects) = (VERBS.len(), OBJECTS.len() * OBJECTS[0].1.len());
        // Verbs and objects remain uncertain even when the source of the dependency is known.
        let bounds = [
            (ln(2 * verbs), ln(verbs)),
            (ln(SURNAMES.len()), 0.0),
            (ln(verbs), 0.0),
            (ln(2), 0.0),
            (ln(objects), ln(OBJECTS[0].1.len())),
        ];
        let kinds = KINDS.iter().zip(bounds);
        let mut infos: Vec<TaskInfo> =
            kinds.map(|(name, (chance, floor))| TaskInfo { name: (*name).to_owned(), chance, floor }).collect();
        infos.push(TaskInfo { name: "other".to_owned(), chance: ln(words().len()), floor: 0.0 });
        infos
    }

    pub(super) fn sample(&self, rng: &mut ChaCha8Rng, annotated: bool) -> Sample {
        let mut people = people(rng);
        let mut story = Story { words: vec![BOS], sources: vec![] };
        while story.words.len() < self.length {
            people.shuffle(rng);
            match rng.random_range(0..3) {
                0 => story.does(&mut people, rng),
                1 => story.near(rng),
                _ => story.because(&mut people, rng),
            }
        }
        story.words.truncate(self.length);
        self.written(&story, annotated)
    }

    fn written(&self, story: &Story, annotated: bool) -> Sample {
        // Every word of a story is in the lexicon.
        let tokens: Vec<i64> = story.words.iter().map(|word| id(word) as i64).collect();
        let all = words().len() as i64;
        let kept: Vec<_> = story.sources.iter().filter(|(word, ..)| *word < self.length).collect();
        let task = |word| kept.iter().find(|(at, ..)| *at == word).map_or(KINDS.len(), |(.., kind)| *kind);
        let target =
            |word: usize| Target { position: word - 1, token: tokens[word], choices: 0..all, task: task(word) };
        let targets = (1..self.length).map(target).collect();
        let dependency = |(word, source, kind): &&(usize, usize, usize)| Dependency {
            query: word - 1,
            source: *source,
            kind: KINDS[*kind].to_owned(),
        };
        let dependencies = kept.iter().filter(|_| annotated).map(dependency).collect();
        Sample { tokens, targets, dependencies }
    }
}

/// A woman and a man with different surnames.
fn people(rng: &mut ChaCha8Rng) -> Vec<Person> {
    let woman = pick(&WOMEN, rng);
    let man = pick(&MEN, rng);
    let first = rng.random_range(0..SURNAMES.len());
    let second = (first + rng.random_range(1..SURNAMES.len())) % SURNAMES.len();
    vec![
        Person { first: woman, last: SURNAMES[first], pronoun: "she", told: None },
        Person { first: man, last: SURNAMES[second], pronoun: "he", told: None },
    ]
}

impl Story {
    /// Appends a word and returns its position.
    fn say(&mut self, word: &'static str) -> usize {
        self.words.push(word);
        self.words.len() - 1
    }

    /// Appends a word that depends on `source`.
    fn depend(&mut self, word: &'static str, source: usize, kind: usize) -> usize {
        let at = self.say(word);
        self.sources.push((at, source, kind));
        at
    }

    /// Appends a person's full name and returns the position of the first name.
    fn name(&mut self, person: &mut Person) -> usize {
        let at = self.say(person.first);
        let surname = match person.told {
            Some(source) => self.depend(person.last, source, ENTITY),
            None => self.say(person.last),
        };
        person.told.get_or_insert(surname);
        at
    }

    /// A sentence in which a person acts on a thing.
    fn does(&mut self, people: &mut [Person], rng: &mut ChaCha8Rng) {
        self.name(&mut people[0]);
        let (verbs, objects) = OBJECTS[rng.random_range(0..OBJECTS.len())];
        let verb = self.say(pick(&verbs, rng));
        self.say("the");
        if rng.random::<bool>() {
            self.say(pick(&ADJECTIVES, rng));
        }
        self.depend(pick(&objects, rng), verb, VERB_OBJECT);
        self.say(".");
    }

    /// A sentence in which someone near someone else looks at a place.
    fn near(&mut self, rng: &mut ChaCha8Rng) {
        let many = rng.random::<bool>();
        self.say("the");
        let subject = self.say(noun(many, rng));
        self.say("near");
        self.say("the");
        let other = rng.random::<bool>();
        self.say(noun(other, rng));
        let (one, several, particle) = VERBS[rng.random_range(0..VERBS.len())];
        let verb = self.depend(if many { several } else { one }, subject, AGREEMENT);
        self.depend(particle, verb, POSITION);
        self.say("the");
        self.say(pick(&PLACES, rng));
        self.say(".");
    }

    /// A sentence in which one person thanks, calls, meets or helps the other, and the reason.
    fn because(&mut self, people: &mut [Person], rng: &mut ChaCha8Rng) {
        let subject = self.name(&mut people[0]);
        let pronoun = people[0].pronoun;
        self.say(pick(&GREETS, rng));
        self.name(&mut people[1]);
        self.say("because");
        self.depend(pronoun, subject, COREFERENCE);
        self.say("was");
        self.say(pick(&MOODS, rng));
        self.say(".");
    }
}

fn noun(many: bool, rng: &mut ChaCha8Rng) -> &'static str {
    let (one, several) = NOUNS[rng.random_range(0..NOUNS.len())];
    if many { several } else { one }
}

fn pick<'a>(words: &[&'a str], rng: &mut ChaCha8Rng) -> &'a str {
    words.choose(rng).copied().unwrap_or_default()
}
