//! What does the answer say where a sub-claim holds, fails, or depends? Sentences by language, as data.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use super::Tongue;
use crate::lab::verdict::{Setting, Verdict};

/// Everything that is said in one language.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// Headings of the table.
    pub columns: Vec<String>,
    /// "over all runs".
    pub over_all: String,
    /// Between two sentences.
    pub between: String,
    /// Between two items of a list.
    pub listed: String,
    verdicts: BTreeMap<Verdict, String>,
    settings: BTreeMap<Setting, String>,
    /// Names of cases; others keep theirs.
    #[serde(default)]
    cases: BTreeMap<String, String>,
    /// Sub-claims in this language; others keep the text of their declaration.
    #[serde(default)]
    claims: BTreeMap<String, String>,
    pub questions: Vec<Question>,
}

/// A question, and the sentences that answer it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    pub title: String,
    pub sentences: Vec<Sentence>,
}

/// What is said of a sub-claim under a question.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sentence {
    /// The sub-claim.
    pub of: String,
    /// By verdict.
    #[serde(default)]
    pub told: BTreeMap<Verdict, String>,
    /// For any other verdict.
    #[serde(default)]
    pub otherwise: Option<String>,
}

impl Page {
    pub(super) fn verdict(&self, verdict: Verdict) -> &str {
        self.verdicts.get(&verdict).map_or_else(|| verdict.name(), String::as_str)
    }

    pub(super) fn setting(&self, setting: Setting) -> &str {
        self.settings.get(&setting).map_or_else(|| setting.name(), String::as_str)
    }

    pub(super) fn claim(&self, name: &str) -> Option<&str> {
        self.claims.get(name).map(String::as_str)
    }

    pub(super) fn case(&self, name: &str) -> String {
        // A name such as "gated, width 4" is put together from known parts.
        let part = |part: &str| self.cases.get(part).cloned().unwrap_or_else(|| part.to_owned());
        self.cases.get(name).cloned().unwrap_or_else(|| name.split(", ").map(part).collect::<Vec<_>>().join(", "))
    }
}

/// The sentences of a language.
pub(super) fn sentences(tongue: Tongue) -> &'static Page {
    static PAGES: OnceLock<[Page; 2]> = OnceLock::new();
    let read = |text| serde_json::from_str(text).unwrap_or_default(); // a test reads both
    let pages = PAGES.get_or_init(|| [read(include_str!("english.json")), read(include_str!("chinese.json"))]);
    match tongue {
        Tongue::English => &pages[0],
        Tongue::Chinese => &pages[1],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Both languages answer the same questions with sentences about the same sub-claims and verdicts.
    #[test]
    fn both_languages_say_the_same() {
        let english: Page = serde_json::from_str(include_str!("english.json")).unwrap();
        let chinese: Page = serde_json::from_str(include_str!("chinese.json")).unwrap();
        assert_eq!(english.columns.len(), 6);
        assert_eq!(chinese.columns.len(), 6);
        let shape = |page: &Page| {
            let sentence =
                |s: &Sentence| (s.of.clone(), s.told.keys().copied().collect::<Vec<_>>(), s.otherwise.is_some());
            page.questions.iter().map(|q| q.sentences.iter().map(sentence).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(shape(&english), shape(&chinese));
        assert!(!english.questions.is_empty());
    }
}
