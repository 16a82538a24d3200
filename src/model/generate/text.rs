//! What does a continuation say so far, and how much of it can be shown?

use super::Piece;
use crate::error::Result;
use crate::text::Decoder;

/// The text written after a prompt.
pub(super) struct Text<'a> {
    /// `None` if the model has no tokenizer.
    decoder: Option<Decoder<'a>>,
    text: String,
    /// How many bytes have been shown.
    shown: usize,
}

impl<'a> Text<'a> {
    pub(super) fn new(decoder: Option<Decoder<'a>>) -> Self {
        Self { decoder, text: String::new(), shown: 0 }
    }

    /// Adds a token, the `last` or not, and returns the stop text that the text now has. The text then ends there.
    pub(super) fn push(&mut self, id: i64, last: bool, stops: &[String], keep: bool) -> Result<Option<String>> {
        let before = self.text.len();
        match &mut self.decoder {
            Some(decoder) => {
                self.text += &decoder.push(id)?;
                if last {
                    self.text += &decoder.finish()?;
                }
            }
            None if self.text.is_empty() => self.text = id.to_string(),
            None => self.text += &format!(" {id}"),
        }
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let from = (0..=before.saturating_sub(longest)).rfind(|&at| self.text.is_char_boundary(at)).unwrap_or(0);
        let found = stops.iter().filter_map(|stop| Some((from + self.text[from..].find(stop.as_str())?, stop)));
        let first = found.min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len())));
        Ok(first.map(|(at, stop)| {
            self.text.truncate(if keep { at + stop.len() } else { at });
            stop.clone()
        }))
    }

    /// The part that has not been shown: without an end that may become a stop text, unless it is the `last` part.
    pub(super) fn unseen(&mut self, last: bool, stops: &[String]) -> &str {
        let end = if last { self.text.len() } else { self.text.len() - held(&self.text[self.shown..], stops) };
        let shown = std::mem::replace(&mut self.shown, end);
        &self.text[shown..end]
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// The length of the longest end of `text` with which a stop text begins.
fn held(text: &str, stops: &[String]) -> usize {
    let begins = |at: &usize| stops.iter().any(|stop| stop.starts_with(&text[*at..]));
    text.char_indices().map(|(at, _)| at).find(begins).map_or(0, |at| text.len() - at)
}

/// Several texts that grow by turns, printed one after another.
pub(super) struct Turns {
    /// What is to be printed of each prompt, and whether it is complete.
    waiting: Vec<(String, bool)>,
    /// Whose turn it is.
    turn: usize,
}

impl Turns {
    pub(super) fn new(prompts: Vec<String>) -> Self {
        Self { waiting: prompts.into_iter().map(|prompt| (prompt, false)).collect(), turn: 0 }
    }

    /// The beginning of the first text.
    pub(super) fn begin(&mut self) -> String {
        self.waiting.first_mut().map_or_else(String::new, |(text, _)| std::mem::take(text))
    }

    /// What can be printed once there is this piece.
    pub(super) fn text(&mut self, piece: &Piece<'_>) -> String {
        if let Some((text, done)) = self.waiting.get_mut(piece.prompt) {
            text.push_str(piece.text);
            *done = piece.ending.is_some();
        }
        let mut print = String::new();
        while let Some((text, done)) = self.waiting.get_mut(self.turn) {
            print += &std::mem::take(text);
            if !*done {
                break;
            }
            self.turn += 1;
            print += if self.turn < self.waiting.len() { "\n\n" } else { "\n" };
        }
        print
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ending;
    use super::*;

    /// However the pieces of prompts alternate, the prompts are printed in order, each as soon as it can be.
    #[test]
    fn prompts_are_printed_by_turns() {
        let mut turns = Turns::new(["a:", "b:", "c:"].map(String::from).to_vec());
        assert_eq!(turns.begin(), "a:");
        let mut say = |prompt, text, ending: Option<&Ending>| turns.text(&Piece { prompt, id: 0, text, ending });
        assert_eq!(say(1, "1", None), "");
        assert_eq!(say(0, "2", None), "2");
        assert_eq!(say(2, "3", Some(&Ending::MaxNew)), "");
        assert_eq!(say(0, "4", Some(&Ending::Context)), "4\n\nb:1");
        assert_eq!(say(1, "5", Some(&Ending::MaxNew)), "5\n\nc:3\n");
    }
}
