//! Which words does the small English have?

use std::collections::HashMap;
use std::sync::OnceLock;

/// The token that begins every sequence.
pub(super) const BOS: &str = "<bos>";

pub(super) const WOMEN: [&str; 8] = ["Anna", "Beth", "Clara", "Dora", "Emma", "Grace", "Helen", "Ida"];
pub(super) const MEN: [&str; 8] = ["Adam", "Ben", "Carl", "David", "Eric", "Frank", "George", "Hugo"];
pub(super) const SURNAMES: [&str; 12] =
    ["Adler", "Brown", "Clark", "Davis", "Evans", "Fisher", "Green", "Hill", "Jones", "King", "Lewis", "Moore"];

/// Verbs, and the nouns that can be their objects.
pub(super) const OBJECTS: [([&str; 2], [&str; 4]); 4] = [
    (["eats", "cooks"], ["apple", "bread", "soup", "cake"]),
    (["reads", "writes"], ["book", "letter", "poem", "story"]),
    (["drives", "parks"], ["car", "truck", "van", "bus"]),
    (["wears", "sews"], ["coat", "dress", "hat", "shirt"]),
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
const OTHERS: [&str; 8] = [BOS, ".", "the", "near", "because", "he", "she", "was"];

/// The id of a word of the lexicon.
pub(super) fn id(word: &str) -> usize {
    static IDS: OnceLock<HashMap<&str, usize>> = OnceLock::new();
    let ids = IDS.get_or_init(|| words().into_iter().zip(0..).collect());
    ids.get(word).copied().unwrap_or_default()
}

/// Every word, in the order of its id.
pub(super) fn words() -> Vec<&'static str> {
    let mut words = OTHERS.to_vec();
    words.extend(WOMEN.iter().chain(&MEN).chain(&SURNAMES).chain(&GREETS));
    words.extend(OBJECTS.iter().flat_map(|(verbs, objects)| verbs.iter().chain(objects)));
    words.extend(NOUNS.iter().flat_map(|(one, many)| [one, many]));
    words.extend(VERBS.iter().flat_map(|(one, many, particle)| [one, many, particle]));
    words.extend(PLACES.iter().chain(&ADJECTIVES).chain(&MOODS));
    words
}
