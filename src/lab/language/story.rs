//! How is a story told? Sentence by sentence, and every word knows what it depends on.

use std::ops::Range;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::lexicon::{
    ACTS, ADJECTIVES, ADVERBS, BOS, FIRST_NAMES, GREETS, MOODS, NOUNS, OBJECTS, PERIODS, PLACES, PRONOUNS, SURNAMES,
    VERBS, id,
};

/// A kind of dependency; its number is that of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Agreement,
    Entity,
    Coreference,
    VerbObject,
}

/// All kinds, in the order of their tasks.
pub(super) const KINDS: [Kind; 4] = [Kind::Agreement, Kind::Entity, Kind::Coreference, Kind::VerbObject];

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Agreement => "agreement",
            Self::Entity => "entity",
            Self::Coreference => "coreference",
            Self::VerbObject => "verb_object",
        }
    }

    /// The tokens that could stand in the place of one that depends on another in this way.
    pub(super) fn choices(self, token: i64) -> Range<i64> {
        let from = |word: &str, n: usize| id(word) as i64..(id(word) + n) as i64;
        match self {
            Self::Agreement => {
                let first = id(VERBS[0].0) as i64;
                let pair = first + (token - first) / 2 * 2;
                pair..pair + 2
            }
            Self::Entity => from(SURNAMES[0], SURNAMES.len()),
            Self::Coreference => from(PRONOUNS[0], PRONOUNS.len()),
            Self::VerbObject => from(OBJECTS[0][0], OBJECTS.len() * OBJECTS[0].len()),
        }
    }
}

/// What a word depends on: any of the sources determines it.
pub(super) struct Source {
    pub word: usize,
    pub sources: Vec<usize>,
    pub kind: Kind,
}

/// A person in a story.
struct Person {
    first: &'static str,
    last: &'static str,
    pronoun: &'static str,
    /// Positions of the surname so far.
    told: Vec<usize>,
}

/// A story under construction.
pub(super) struct Story {
    pub words: Vec<&'static str>,
    pub sources: Vec<Source>,
}

/// The number of people in a story.
const PEOPLE: usize = 3;

impl Story {
    /// A story of at least `length` words.
    pub(super) fn told(length: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut people = people(rng);
        let mut story = Self { words: vec![BOS], sources: vec![] };
        while story.words.len() < length {
            people.shuffle(rng);
            match rng.random_range(0..3) {
                0 => story.acts(&mut people, rng),
                1 => story.agrees(&mut people, rng),
                _ => story.because(&mut people, rng),
            }
            story.say(".");
        }
        story
    }

    /// Appends a word and returns its position.
    fn say(&mut self, word: &'static str) -> usize {
        self.words.push(word);
        self.words.len() - 1
    }

    /// Appends a word that depends on any of `sources` and returns its position.
    fn depend(&mut self, word: &'static str, sources: Vec<usize>, kind: Kind) -> usize {
        let word = self.say(word);
        self.sources.push(Source { word, sources, kind });
        word
    }

    /// Appends a person's full name and returns the position of the first name.
    fn name(&mut self, person: &mut Person) -> usize {
        let at = self.say(person.first);
        let surname = match person.told.is_empty() {
            true => self.say(person.last),
            false => self.depend(person.last, person.told.clone(), Kind::Entity),
        };
        person.told.push(surname);
        at
    }

    /// Appends a preposition and a place.
    fn at_a_place(&mut self, rng: &mut ChaCha8Rng) {
        self.say("near");
        self.say("the");
        self.say(pick(&PLACES, rng));
    }

    /// Appends this many words of time: none, an adverb, or a period.
    fn at_times(&mut self, words: usize, rng: &mut ChaCha8Rng) {
        match words {
            0 => {}
            1 => {
                self.say(pick(&ADVERBS, rng));
            }
            _ => {
                self.say("every");
                self.say(pick(&PERIODS, rng));
            }
        }
    }

    /// Appends zero to three words of time or place.
    fn aside(&mut self, rng: &mut ChaCha8Rng) {
        match rng.random_range(0..4) {
            3 => self.at_a_place(rng),
            words => self.at_times(words, rng),
        }
    }

    /// A person acts on a thing, which is named two to seven words behind the verb.
    fn acts(&mut self, people: &mut [Person], rng: &mut ChaCha8Rng) {
        self.name(&mut people[0]);
        let class = rng.random_range(0..ACTS.len());
        let verb = self.say(pick(&ACTS[class], rng));
        self.aside(rng);
        self.say("the");
        for _ in 0..rng.random_range(0..3) {
            self.say(pick(&ADJECTIVES, rng));
        }
        self.depend(pick(&OBJECTS[class], rng), vec![verb], Kind::VerbObject);
    }

    /// Someone looks at a place; the verb stands two to seven words behind its subject.
    fn agrees(&mut self, people: &mut [Person], rng: &mut ChaCha8Rng) {
        let (many, other) = (rng.random::<bool>(), rng.random::<bool>());
        self.say("the");
        let subject = self.say(noun(many, rng));
        let between = rng.random_range(0..4);
        match between {
            0 => {}
            1 | 2 => {
                self.say("near");
                self.say("the");
                if between == 2 {
                    self.say(pick(&ADJECTIVES, rng));
                }
                self.say(noun(other, rng));
            }
            _ => {
                self.say("that");
                self.name(&mut people[0]);
                self.say(pick(&GREETS, rng));
            }
        }
        // Without anything else, at least an adverb.
        let words = rng.random_range(usize::from(between == 0)..3);
        self.at_times(words, rng);
        let (one, several, particle) = VERBS[rng.random_range(0..VERBS.len())];
        self.depend(if many { several } else { one }, vec![subject], Kind::Agreement);
        self.say(particle);
        self.say("the");
        self.say(pick(&PLACES, rng));
    }

    /// One person thanks, calls, meets or helps another, and the reason; the pronoun stands 6 to 13 words behind the name for
    /// which it stands.
    fn because(&mut self, people: &mut [Person], rng: &mut ChaCha8Rng) {
        let subject = self.name(&mut people[0]);
        let pronoun = people[0].pronoun;
        if rng.random::<bool>() {
            self.at_a_place(rng);
        }
        self.say(pick(&GREETS, rng));
        self.name(&mut people[1]);
        self.aside(rng);
        self.say("because");
        let words = rng.random_range(0..2);
        self.at_times(words, rng);
        self.depend(pronoun, vec![subject], Kind::Coreference);
        self.say("was");
        self.say(pick(&MOODS, rng));
    }
}

/// People with first names and surnames of their own, women and men independently of each other.
fn people(rng: &mut ChaCha8Rng) -> Vec<Person> {
    let mut surnames = SURNAMES;
    surnames.shuffle(rng);
    let mut firsts = FIRST_NAMES.map(|mut names| {
        names.shuffle(rng);
        names.into_iter()
    });
    let person = |last| {
        let gender = rng.random_range(0..PRONOUNS.len());
        let first = firsts[gender].next().unwrap_or_default();
        Person { first, last, pronoun: PRONOUNS[gender], told: vec![] }
    };
    surnames.into_iter().take(PEOPLE).map(person).collect()
}

fn noun(many: bool, rng: &mut ChaCha8Rng) -> &'static str {
    let (one, several) = NOUNS[rng.random_range(0..NOUNS.len())];
    if many { several } else { one }
}

fn pick<'a>(words: &[&'a str], rng: &mut ChaCha8Rng) -> &'a str {
    words.choose(rng).copied().unwrap_or_default()
}
