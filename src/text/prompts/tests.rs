//! Properties of generated prompts under tokenizers that write words and years in different ways, alignment, and errors.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::words::{EVENTS, NAMES, NOUNS, OBJECTS, PLACES, VERBS, WORDS};
use super::*;
use crate::text::Tokenizer;

/// How a test's tokenizer splits texts. All have whole words.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Style {
    /// Spaces belong to no token; two digits are one token.
    Plain,
    /// A token has its space; every digit is a token; nothing is added.
    Bytes,
    /// As `Bytes`, with a token at the start and one at the end.
    Framed,
    /// Three digits are one token.
    Triples,
}

const STYLES: [Style; 3] = [Style::Plain, Style::Bytes, Style::Framed];

/// A tokenizer that knows all words of the templates and pools except `unknown`.
fn tokenizer(style: Style, unknown: &[&str]) -> Tokenizer {
    let sentences = "When and met at the gave to After had left handed While were waiting near passed Once back from showed \
                     Yesterday worked lent Because lived above brought Words The beside in front of that belonged lasted year \
                     , : . a";
    let pairs = NOUNS.iter().chain(&VERBS).flat_map(|(one, many)| [*one, *many]);
    let mut words: BTreeSet<String> = sentences.split_whitespace().chain(pairs).map(str::to_owned).collect();
    for pool in [&NAMES[..], &PLACES, &OBJECTS, &EVENTS, &WORDS] {
        words.extend(pool.iter().map(|word| (*word).to_owned()));
    }
    words.retain(|word| !unknown.contains(&word.as_str()));
    words.extend((0..1000).map(|number| number.to_string()).chain((0..100).map(|number| format!("{number:02}"))));
    let spaced: Vec<String> = words.iter().map(|word| format!("Ġ{word}")).collect();
    let all = ["<unk>", "<s>", "</s>", "Ġ"].map(str::to_owned).into_iter().chain(words).chain(spaced);
    let vocab: serde_json::Map<String, Value> = all.enumerate().map(|(id, word)| (word, id.into())).collect();
    let digits = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let spaces = json!({"type": "Whitespace"});
    let splits = match style {
        Style::Plain => vec![spaces, digits("[0-9]{2}")],
        Style::Triples => vec![spaces, digits("[0-9]{3}")],
        Style::Bytes | Style::Framed => vec![json!({"type": "Digits", "individual_digits": true}), bytes.clone()],
    };
    let part = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let special = |id: usize, token: &str| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let frame = json!({
        "type": "TemplateProcessing",
        "single": [part("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, part("</s>")],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(1, "<s>"), special(2, "</s>")],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": if style == Style::Framed { frame } else { Value::Null },
        "decoder": if style == Style::Plain { Value::Null } else { bytes },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    Tokenizer::read(&path).unwrap()
}

/// What holds of the prompts of every generator; returns the positions in which a pair differs.
fn check(of: &Tokenizer, prompts: &Prompts, n: usize, style: Style) -> Vec<usize> {
    assert_eq!((prompts.len(), prompts.answers().len(), prompts.answer_texts().len()), (n, n, n));
    prompts.check_aligned().unwrap();
    let after = usize::from(style == Style::Framed);
    let mut differ = vec![];
    for i in 0..n {
        let (clean, corrupt) = (prompts.clean().row(i), prompts.corrupt().row(i));
        assert_eq!(clean.len(), corrupt.len());
        assert!(!clean.contains(&0) && !corrupt.contains(&0), "unknown words in {:?}", prompts.clean().pieces(i));
        let at: Vec<usize> = (0..clean.len()).filter(|&at| clean[at] != corrupt[at]).collect();
        assert_eq!(at.len(), 1, "{:?} {:?}", prompts.clean().pieces(i), prompts.corrupt().pieces(i));
        differ.push(at[0]);
        assert_eq!(prompts.position("END").unwrap()[i], clean.len() - 1 - after);
        assert_eq!(prompts.alignment(i).unwrap(), (0..clean.len()).map(Some).collect::<Vec<_>>());
        let ((right, wrong), (right_text, wrong_text)) = (prompts.answers()[i], &prompts.answer_texts()[i]);
        assert_ne!(right, wrong);
        for (id, text) in [(right, right_text), (wrong, wrong_text)] {
            assert!(id > 2 && of.piece(id).trim() == text.trim(), "{id} {text}");
        }
    }
    assert_eq!(prompts.position("END").unwrap(), prompts.corrupt_position("END").unwrap());
    differ
}

/// The ids at a named position of the clean and of the corrupt prompts.
fn ids(prompts: &Prompts, name: &str) -> (Vec<i64>, Vec<i64>) {
    let at = |tokens: &Tokens, at: Vec<usize>| at.into_iter().enumerate().map(|(i, at)| tokens.row(i)[at]).collect();
    (
        at(prompts.clean(), prompts.position(name).unwrap()),
        at(prompts.corrupt(), prompts.corrupt_position(name).unwrap()),
    )
}

fn sides(prompts: &Prompts) -> (Vec<i64>, Vec<i64>) {
    prompts.answers().iter().copied().unzip()
}

const N: usize = 23;

#[test]
fn indirect_objects() {
    for (style, seed) in STYLES.into_iter().flat_map(|style| (0..20).map(move |seed| (style, seed))) {
        let of = tokenizer(style, &[]);
        let prompts = Prompts::new(&of, ioi(N, seed)).unwrap();
        assert_eq!(check(&of, &prompts, N, style), prompts.position("S2").unwrap());
        let ((io, s1), s2) = ((ids(&prompts, "IO").0, ids(&prompts, "S1").0), ids(&prompts, "S2"));
        assert_eq!((&s2.0, &s2.1), (&s1, &io), "S2 is S1 in the clean prompt and IO in the corrupt one");
        assert_eq!(sides(&prompts), (io, s1), "{style:?}");
        let next: Vec<usize> = prompts.position("S1").unwrap().iter().map(|at| at + 1).collect();
        assert_eq!(prompts.position("S1+1").unwrap(), next);
        assert!(ids(&prompts, "S1+1").0.iter().any(|&id| of.piece(id).trim() == "and"));
        assert_eq!(prompts.positions().into_iter().collect::<BTreeSet<_>>(), ["IO", "S1", "S1+1", "S2", "END"].into());
        let first = prompts
            .position("IO")
            .unwrap()
            .iter()
            .zip(prompts.position("S1").unwrap())
            .filter(|(io, s1)| *io < s1)
            .count();
        assert!((1..N).contains(&first), "names stand in both orders");
    }
}

#[test]
fn later_years() {
    for (style, seed) in STYLES.into_iter().flat_map(|style| (0..20).map(move |seed| (style, seed))) {
        let of = tokenizer(style, &[]);
        let prompts = Prompts::new(&of, greater_than(N, seed)).unwrap();
        assert_eq!(check(&of, &prompts, N, style), prompts.position("YY").unwrap());
        let number = |ids: &[i64]| -> Vec<u32> { ids.iter().map(|&id| of.piece(id).trim().parse().unwrap()).collect() };
        let (clean, corrupt) = ids(&prompts, "YY");
        let (right, wrong) = sides(&prompts);
        let all = number(&clean).into_iter().zip(number(&corrupt)).zip(number(&right).into_iter().zip(number(&wrong)));
        for ((clean, corrupt), (right, wrong)) in all {
            assert!(wrong < clean && clean < right && corrupt < wrong, "{wrong} {clean} {right}, corrupt {corrupt}");
            assert_eq!(right > 9, style == Style::Plain);
        }
        assert_eq!(ids(&prompts, "XX").0, ids(&prompts, "END").0, "the century once more");
        assert!(prompts.position("XX").unwrap().iter().zip(prompts.position("YY").unwrap()).all(|(x, y)| x + 1 == y));
    }
    let error = Prompts::new(&tokenizer(Style::Triples, &[]), greater_than(3, 0)).unwrap_err().to_string();
    assert!(error.contains("`174` `3`"), "{error}");
}

#[test]
fn repeated_words() {
    for (style, seed) in STYLES.into_iter().flat_map(|style| (0..20).map(move |seed| (style, seed))) {
        let of = tokenizer(style, &[]);
        let prompts = Prompts::new(&of, induction(N, seed)).unwrap();
        assert_eq!(check(&of, &prompts, N, style), prompts.position("B").unwrap());
        let (b, other) = ids(&prompts, "B");
        assert_eq!(sides(&prompts), (b, other));
        assert_eq!(ids(&prompts, "A1").0, ids(&prompts, "A2").0);
        assert_eq!(prompts.position("A2").unwrap(), prompts.position("END").unwrap());
        assert_eq!(prompts.position("A1+1").unwrap(), prompts.position("B").unwrap());
        assert!(!prompts.clean().is_padded());
        let (a1, a2) = (prompts.position("A1").unwrap(), prompts.position("A2").unwrap());
        let start = 2 + usize::from(style == Style::Framed); // `Words` `:`
        let distances: BTreeSet<usize> = a1.iter().zip(&a2).map(|(a1, a2)| a2 - a1).collect();
        assert_eq!(distances, [7, 8, 9].into());
        for (i, (&a1, &a2)) in a1.iter().zip(&a2).enumerate() {
            let row = prompts.clean().row(i);
            assert_eq!(row[start..=a1], row[start + a2 - a1..=a2], "the sequence begins once more");
            let once: BTreeSet<i64> = row[start..start + a2 - a1].iter().copied().collect();
            assert_eq!(once.len(), a2 - a1, "no word is twice among the first");
            assert!(!once.contains(&sides(&prompts).1[i]), "the wrong answer is in the corrupt prompt only");
        }
    }
}

#[test]
fn subjects_and_verbs() {
    for (style, seed) in STYLES.into_iter().flat_map(|style| (0..20).map(move |seed| (style, seed))) {
        let of = tokenizer(style, &[]);
        let prompts = Prompts::new(&of, agreement(N, seed)).unwrap();
        assert_eq!(check(&of, &prompts, N, style), prompts.position("subject").unwrap());
        let is_plural = |id: &i64| {
            let word = of.piece(*id).trim().to_owned();
            NOUNS.iter().chain(&VERBS).any(|(_, many)| *many == word)
        };
        let plural = |ids: &[i64]| ids.iter().map(is_plural).collect::<Vec<_>>();
        let ((clean, corrupt), (right, wrong)) = (ids(&prompts, "subject"), sides(&prompts));
        assert_eq!((plural(&clean), plural(&corrupt)), (plural(&right), plural(&wrong)));
        let attractors = ids(&prompts, "attractor");
        assert_eq!(attractors.0, attractors.1);
        let same = plural(&attractors.0).iter().zip(plural(&clean)).filter(|(a, b)| **a == *b).count();
        assert!((1..N).contains(&same), "attractors of both numbers");
    }
}

/// The same seed gives the same prompts, another one others, and so says their provenance.
#[test]
fn seeds() {
    let of = tokenizer(Style::Bytes, &[]);
    for recipe in [ioi, greater_than, induction, agreement] {
        let [a, b, c] = [3, 3, 4].map(|seed| Prompts::new(&of, recipe(N, seed)).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.provenance(), b.provenance());
        assert_ne!(a.clean(), c.clean());
        assert_ne!(a.provenance(), c.provenance());
        let half = a.select(&[5, 2]).unwrap();
        assert_eq!((half.clean().row(0), half.answers()[1]), (a.clean().row(5), a.answers()[2]));
        assert_eq!(half.position("END").unwrap()[1], a.position("END").unwrap()[2]);
        assert_ne!(half.provenance(), a.provenance());
        assert!(a.select(&[N]).is_err());
        assert!(Prompts::new(&of, recipe(0, 0)).is_err());
    }
}

/// Words that are not single tokens are never drawn; where too few are left, the error names them.
#[test]
fn words_that_are_no_single_tokens() {
    let unknown: Vec<&str> =
        NAMES.into_iter().step_by(2).chain(PLACES.into_iter().skip(1)).chain(WORDS.into_iter().skip(12)).collect();
    for style in STYLES {
        let of = tokenizer(style, &unknown);
        for recipe in [ioi, greater_than, induction, agreement] {
            check(&of, &Prompts::new(&of, recipe(N, 1)).unwrap(), N, style);
        }
        let of = tokenizer(style, &NAMES[1..]);
        let error = Prompts::new(&of, ioi(N, 1)).unwrap_err().to_string();
        assert!(error.contains("2 names") && error.contains("1 (Mary)") && error.contains("John, Alice"), "{error}");
        assert!(Prompts::new(&of, agreement(N, 1)).is_ok());
        let error = Prompts::new(&tokenizer(style, &["is", "were", "has"]), agreement(N, 1)).unwrap_err().to_string();
        assert!(error.contains("verbs"), "{error}");
    }
}

/// Pairs of unequal length: the tokens that stand for each other, and which do not.
#[test]
fn alignment() {
    let of = tokenizer(Style::Plain, &[]);
    let prompts = |pairs: &[Pair]| Prompts::new(&of, pairs).unwrap();
    let map = |pair: Pair| {
        prompts(&[pair]).alignment(0).unwrap().into_iter().map(|at| at.map_or(-1, |at| at as i64)).collect::<Vec<_>>()
    };
    let (long, short) = ("When Mary the teacher and John met", "When Anna and John met");
    // Without a name, only what is the same from the left or from the right on.
    assert_eq!(map(Pair::new(long, short)), [0, -1, -1, -1, 2, 3, 4]);
    let named = Pair::new(long, short).at_each("S1", "Mary", "Anna");
    assert_eq!(map(named.clone()), [0, 1, -1, -1, 2, 3, 4]);
    let error = prompts(&[named]).check_aligned().unwrap_err().to_string();
    for part in ["pair 0", "`the` at 2, `teacher` at 3", "no token of the corrupt one"] {
        assert!(error.contains(part), "{error}");
    }
    let error = prompts(&[Pair::new(long, short)]).check_aligned().unwrap_err().to_string();
    assert!(error.contains("`Mary` at 1") && error.contains("`Anna` at 1"), "{error}");
    // Equally long between names: one by one, whatever the tokens are.
    assert_eq!(map(Pair::new("Mary met John", "the dog near").at("verb", 1)), [0, 1, 2]);
    // The same length in all, with a name that has moved.
    let moved = Pair::new("Mary and John met Anna", "Mary met Anna and John").at("met", "met");
    assert_eq!(map(moved.clone()), [0, -1, -1, 1, 4], "the ends stand for each other");
    assert!(prompts(&[moved]).check_aligned().is_err());
    let crossed = Pair::new("Mary met John", "John met Mary").at("a", "Mary").at("b", "John");
    let error = prompts(&[crossed]).alignment(0).unwrap_err().to_string();
    assert!(error.contains("`a` before `b`") && error.contains("pair 0"), "{error}");
    let repeated = Pair::new("a a a a", "a a");
    assert_eq!(map(repeated), [0, -1, -1, 1]);
    assert!(prompts(&[Pair::new("Mary", "John")]).alignment(1).is_err());
}

/// Places by number, by words, by bytes, and in JSON.
#[test]
fn places() {
    for style in STYLES {
        let of = tokenizer(style, &[]);
        let first = usize::from(style == Style::Framed);
        let json = r#"[{"clean": "When Mary and Mary met", "corrupt": "When Mary and John met", "answers": [" John", 5],
            "positions": {"S1": ["Mary", 0], "S2": {"clean": ["Mary", 1], "corrupt": "John"}, "verb": "met",
                          "none": {"start": 10, "end": 11}, "number": -2}}]"#;
        let recipe = Recipe::from_json(json).unwrap();
        let prompts = Prompts::new(&of, recipe.clone()).unwrap();
        for (name, at) in [("S1", 1), ("S2", 3), ("verb", 4), ("none", 2)] {
            let at = vec![at + first];
            assert_eq!(
                (prompts.position(name).unwrap(), prompts.corrupt_position(name).unwrap()),
                (at.clone(), at),
                "{name}"
            );
        }
        assert_eq!(prompts.position("number").unwrap()[0], prompts.clean().positions() - 2);
        assert_eq!(prompts.answers()[0].1, 5);
        assert_eq!(prompts.position("verb-1").unwrap(), prompts.position("S2").unwrap());
        let columns = r#"{"clean": ["When Mary met"], "corrupt": [[7, 8, 9]], "answers": [[" John", " Mary"]]}"#;
        let prompts = Prompts::new(&of, Recipe::from_json(columns).unwrap()).unwrap();
        assert_eq!(prompts.corrupt().row(0), [7, 8, 9]);
        assert_eq!(prompts.positions(), ["END"]);
    }
}

#[test]
fn errors() {
    let of = tokenizer(Style::Plain, &["Paul"]);
    let pair = || Pair::new("When Mary and Mary met", "When Mary and John met");
    let says = |pairs: Vec<Pair>, parts: &[&str]| {
        let error = Prompts::new(&of, pairs).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "`{error}` does not say `{part}`"));
    };
    says(vec![], &["at least one pair"]);
    says(vec![Pair::new("", "When")], &["clean prompt 0"]);
    says(vec![pair(), Pair::new("When", Vec::<i64>::new())], &["corrupt prompt 1"]);
    says(vec![pair().at("S", "Mary")], &["`S`", "`Mary` once", "2 times", "clean prompt 0"]);
    says(vec![pair().at("S", "Mar")], &["0 times"]);
    says(vec![pair().at("S", "")], &["0 times"]);
    says(vec![pair().at("S", Place::Nth("John".into(), 0))], &["at least 1 times", "0 times in clean"]);
    says(vec![pair().at("S", 5)], &["5 positions", "found 5"]);
    says(vec![pair().at("S", -6)], &["5 positions", "found -6"]);
    says(vec![pair().at("S", i64::MIN)], &["5 positions"]);
    says(vec![pair().at("S", 100..200)], &["bytes 100..200"]);
    says(vec![pair().at("END", 0)], &["END"]);
    says(vec![pair().at("S", 0), pair()], &["`S` in all pairs", "pair 1"]);
    says(vec![pair().answers(" Mary", " John"), pair()], &["answers in all pairs", "1 of 2"]);
    says(vec![pair().answers(" Mary", " Mary")], &["differ", "prompt 0"]);
    says(vec![pair().answers(" Mary met", " Mary")], &["single token", "prompt 0"]);
    says(vec![pair().answers(" Mary", " Paul")], &["single token"]);
    says(vec![Pair::new(vec![3, 4], vec![4, 3]).at("S", "Mary")], &["a number", "`Mary`"]);
    let prompts = Prompts::new(&of, [pair().at("S", 1)]).unwrap();
    for name in ["T", "S+4", "S-2", "S+", "S+x", "+1", "", "S+99999999999999999999"] {
        let error = prompts.position(name).unwrap_err().to_string();
        assert!(error.contains("S, END") || error.contains("prompt 0"), "{error}");
    }
    for text in ["", "[1]", "{}", r#"[{"clean": "a"}]"#, r#"[{"clean": "a", "corrupt": "b", "answer": 1}]"#] {
        assert!(Recipe::from_json(text).is_err(), "{text}");
    }
    let error = Recipe::from_json(r#"{"clean": ["a", "b"], "corrupt": ["a"]}"#).unwrap_err().to_string();
    assert!(error.contains("2 corrupt prompts"), "{error}");
    assert!(Recipe::read("no/such/file.json").is_err());
}
