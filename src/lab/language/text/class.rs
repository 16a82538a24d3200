//! What kind of token is it? The classes of a text's tokens, from its letters.

/// A class of tokens; see [`Text`](super::Text).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Inside,
    Start,
    Punctuation,
    Name,
    Repeat,
}

impl Class {
    /// The classes in the order of the tasks.
    pub const ALL: [Self; 5] = [Self::Inside, Self::Start, Self::Punctuation, Self::Name, Self::Repeat];

    /// The class's place among the tasks.
    pub fn task(self) -> usize {
        self as usize
    }

    /// The name of the task.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside_word",
            Self::Start => "word_start",
            Self::Punctuation => "punctuation",
            Self::Name => "name",
            Self::Repeat => "repeat",
        }
    }
}

/// Titles whose full stop ends no sentence.
const TITLES: [&str; 6] = ["Mr", "Mrs", "Ms", "Messrs", "Dr", "St"];

/// The class of every byte of a text, by the character that it belongs to. No byte is a [`Class::Repeat`], which depends
/// on the window.
pub(super) fn classes(text: &str) -> Vec<Class> {
    let mut all = vec![Class::Punctuation; text.len()];
    // Whether the next word begins a sentence, a quotation or a line, and the word before.
    let (mut begins, mut before) = (true, "");
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let at = text.len() - rest.len();
        let word = word(rest);
        if word.is_empty() {
            begins = match first {
                '.' => begins || !TITLES.contains(&before),
                '!' | '?' | ':' | '"' | '“' | '”' | '\n' => true,
                _ => begins,
            };
            before = "";
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (start, inside) = match !begins && is_capitalised(word) {
            true => (Class::Name, Class::Name),
            false => (Class::Start, Class::Inside),
        };
        all[at..at + first.len_utf8()].fill(start);
        all[at + first.len_utf8()..at + word.len()].fill(inside);
        (begins, before) = (false, word);
        rest = &rest[word.len()..];
    }
    all
}

/// The word at the beginning of a text: letters and digits, with the apostrophes between them; empty if there is none.
fn word(text: &str) -> &str {
    let mut end = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let next = characters.peek().is_some_and(|(_, next)| next.is_alphanumeric());
        if !(character.is_alphanumeric() || (at > 0 && "'’".contains(character) && next)) {
            break;
        }
        end = at + character.len_utf8();
    }
    &text[..end]
}

/// Whether a word begins with a capital and has at least two letters before any apostrophe: `I` and `I'll` do not count.
fn is_capitalised(word: &str) -> bool {
    let stem = word.split(['\'', '’']).next().unwrap_or(word);
    stem.chars().next().is_some_and(char::is_uppercase) && stem.chars().nth(1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text's characters, each with the first letter of its class's name: i, w, p or n.
    fn marked(text: &str) -> String {
        let all = classes(text);
        let first = |at: usize| all[at].name().chars().next().unwrap_or_default();
        text.char_indices().map(|(at, _)| first(at)).collect()
    }

    #[test]
    fn words_start_and_go_on_and_the_rest_is_punctuation() {
        assert_eq!(marked("the cat, a 1st one.\n"), "wiipwiippwpwiipwiipp");
        assert_eq!(marked("_so_--well"), "pwipppwiii");
        assert_eq!(marked("don't 'tis dogs' we’ll"), "wiiiippwiipwiiippwiiii");
        assert_eq!(marked("été œuf"), "wiipwii");
        assert_eq!(marked(""), "");
    }

    #[test]
    fn capitalised_words_are_names_unless_something_begins_with_them() {
        assert_eq!(marked("so Jane's ill"), "wipnnnnnnpwii");
        for begun in ["Jane", "so. Jane", "so! Jane", "so? Jane", "so: Jane", "so \"Jane", "so\nJane", "so.\" (Jane"] {
            assert!(marked(begun).ends_with("wiii"), "{begun}");
        }
        for goes_on in ["so; Jane", "so, Jane", "so--Jane", "so (Jane", "Mr. Jane", "so St. Jane", "Mrs. Jane"] {
            assert!(marked(goes_on).ends_with("nnnn"), "{goes_on}");
        }
        assert_eq!(marked("so I say I'll O'er"), "wipwpwiipwiiipwiii");
        assert_eq!(marked("No Mr. It was Mr."), "wipnnppnnpwiipnnp");
        assert_eq!(marked("so jAne"), "wipwiii");
    }
}
