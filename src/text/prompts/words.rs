//! Which words do generated prompts use? Common ones, of which those are drawn that are single tokens.

use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// First names.
pub(super) const NAMES: [&str; 40] = [
    "Mary", "John", "Alice", "Tom", "Sarah", "David", "Anna", "James", "Emma", "Peter", "Laura", "Paul", "Susan",
    "Mark", "Julia", "Robert", "Helen", "George", "Kate", "Henry", "Jane", "Michael", "Rachel", "Daniel", "Lisa",
    "Thomas", "Maria", "William", "Martin", "Charles", "Victoria", "Simon", "Adam", "Frank", "Grace", "Eric", "Rose",
    "Jack", "Amy", "Scott",
];
/// Where people meet.
pub(super) const PLACES: [&str; 12] = [
    "station", "library", "market", "park", "school", "museum", "beach", "garden", "office", "hospital", "bridge",
    "church",
];
/// What people hand over.
pub(super) const OBJECTS: [&str; 12] =
    ["book", "key", "letter", "ring", "box", "map", "camera", "ticket", "coat", "phone", "bag", "cup"];
/// What lasts for years.
pub(super) const EVENTS: [&str; 12] = [
    "war",
    "trial",
    "voyage",
    "project",
    "reign",
    "expedition",
    "drought",
    "trade",
    "siege",
    "strike",
    "debate",
    "campaign",
];
/// Nouns in the singular and the plural.
pub(super) const NOUNS: [(&str, &str); 20] = [
    ("key", "keys"),
    ("door", "doors"),
    ("author", "authors"),
    ("teacher", "teachers"),
    ("farmer", "farmers"),
    ("doctor", "doctors"),
    ("student", "students"),
    ("driver", "drivers"),
    ("picture", "pictures"),
    ("table", "tables"),
    ("window", "windows"),
    ("car", "cars"),
    ("dog", "dogs"),
    ("bird", "birds"),
    ("tree", "trees"),
    ("house", "houses"),
    ("letter", "letters"),
    ("book", "books"),
    ("river", "rivers"),
    ("town", "towns"),
];
/// Verbs that agree with the singular and with the plural.
pub(super) const VERBS: [(&str, &str); 3] = [("is", "are"), ("was", "were"), ("has", "have")];
/// Words that follow each other by chance only.
pub(super) const WORDS: [&str; 40] = [
    "apple", "river", "stone", "cloud", "paper", "green", "table", "music", "horse", "glass", "light", "winter",
    "sugar", "road", "clock", "silver", "forest", "window", "bread", "fire", "island", "metal", "orange", "queen",
    "ship", "summer", "tower", "water", "yellow", "bridge", "cotton", "dream", "engine", "flower", "garden", "heart",
    "iron", "king", "lake", "mountain",
];

/// The words that are single tokens after a space, each another one.
///
/// # Errors
/// If they are fewer than `least`, with some of those that are not.
pub(super) fn singles<'a>(tokenizer: &Tokenizer, what: &str, words: &[&'a str], least: usize) -> Result<Vec<&'a str>> {
    let (mut kept, mut ids, mut left) = (vec![], vec![], vec![]);
    for word in words {
        match tokenizer.single(&format!(" {word}")) {
            Ok(id) if !ids.contains(&id) => {
                kept.push(*word);
                ids.push(id);
            }
            _ => left.push(*word),
        }
    }
    if kept.len() >= least {
        return Ok(kept);
    }
    let expected = format!("{least} {what} or more that are single tokens to this tokenizer");
    let found = format!("{} ({}); not single: {}", kept.len(), kept.join(", "), left.join(", "));
    Err(Error::argument("prompts", expected, found))
}
