//! Which words does the small English have?

use std::collections::HashMap;
use std::sync::OnceLock;

/// The token that begins every sequence.
pub(super) const BOS: &str = "<bos>";

/// Pronouns, and the first names of those for whom they stand.
pub(super) const PRONOUNS: [&str; 2] = ["she", "he"];
pub(super) const FIRST_NAMES: [[&str; 8]; 2] = [
    ["Anna", "Beth", "Clara", "Dora", "Emma", "Grace", "Helen", "Ida"],
    ["Adam", "Ben", "Carl", "David", "Eric", "Frank", "George", "Hugo"],
];
pub(super) const SURNAMES: [&str; 12] =
    ["Adler", "Brown", "Clark", "Davis", "Evans", "Fisher", "Green", "Hill", "Jones", "King", "Lewis", "Moore"];

/// Verbs by class, and the nouns that can be the objects of a class.
pub(super) const ACTS: [[&str; 2]; 4] =
    [["eats", "cooks"], ["reads", "writes"], ["drives", "parks"], ["wears", "sews"]];
pub(super) const OBJECTS: [[&str; 4]; 4] = [
    ["apple", "bread", "soup", "cake"],
    ["book", "letter", "poem", "story"],
    ["car", "truck", "van", "bus"],
    ["coat", "dress", "hat", "shirt"],
];

/// Verbs for what one person does to another.
pub(super) const GREETS: [&str; 4] = ["thanks", "calls", "meets", "helps"];

/// Nouns, singular and plural.
pub(super) const NOUNS: [(&str, &str); 8] = [
    ("dog", "dogs"),
    ("cat", "cats"),
    ("bird", "birds"),
    ("horse", "horses"),
    ("child", "children"),
    ("farmer", "farmers"),
    ("teacher", "teachers"),
    ("sailor", "sailors"),
];

/// Verbs in the singular and the plural, and the particle that follows each.
pub(super) const VERBS: [(&str, &str, &str); 6] = [
    ("looks", "look", "at"),
    ("listens", "listen", "to"),
    ("waits", "wait", "for"),
    ("walks", "walk", "into"),
    ("runs", "run", "from"),
    ("dreams", "dream", "of"),
];

pub(super) const PLACES: [&str; 6] = ["house", "garden", "river", "forest", "market", "station"];
pub(super) const ADJECTIVES: [&str; 6] = ["red", "old", "small", "new", "green", "heavy"];
pub(super) const MOODS: [&str; 6] = ["happy", "tired", "late", "hungry", "busy", "sad"];
pub(super) const ADVERBS: [&str; 4] = ["often", "always", "seldom", "today"];
pub(super) const PERIODS: [&str; 4] = ["morning", "evening", "week", "summer"];
const OTHERS: [&str; 8] = [BOS, ".", "the", "near", "because", "that", "every", "was"];

/// The id of a word of the lexicon.
pub(super) fn id(word: &str) -> usize {
    static IDS: OnceLock<HashMap<&str, usize>> = OnceLock::new();
    let ids = IDS.get_or_init(|| words().into_iter().zip(0..).collect());
    ids.get(word).copied().unwrap_or_default()
}

/// Every word, in the order of its id. Words that can stand in each other's place are neighbours: pronouns, surnames, objects,
/// the two forms of a verb.
pub(super) fn words() -> Vec<&'static str> {
    let mut words = OTHERS.to_vec();
    words.extend(PRONOUNS.iter().chain(FIRST_NAMES.as_flattened()).chain(&SURNAMES).chain(&GREETS));
    words.extend(ACTS.as_flattened().iter().chain(OBJECTS.as_flattened()));
    words.extend(NOUNS.iter().flat_map(|(one, many)| [one, many]));
    words.extend(VERBS.iter().flat_map(|(one, many, _)| [one, many]));
    words.extend(VERBS.iter().map(|(.., particle)| particle));
    words.extend(PLACES.iter().chain(&ADJECTIVES).chain(&MOODS).chain(&ADVERBS).chain(&PERIODS));
    words
}
