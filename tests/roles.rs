//! Roles of heads against annotation: readers, alignment, judging, taking away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Tol, assert_near, fixture, load};
use headscope::heads::{Annotated, Link, Looking, Role, RoleOptions, Roles, read_conllu, read_gap};
use headscope::lab::Language;
use headscope::lab::experiment::{Cell, Pretrained, Texts, Work};
use headscope::lab::language::{English, LookFrom};
use headscope::model::Model;
use headscope::table::Table;
use tch::Kind;

fn made_up(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn words(text: &Annotated) -> Vec<&str> {
    text.words.iter().map(|word| &text.text[word.clone()]).collect()
}

fn links<'a>(text: &'a Annotated, role: &str) -> Vec<(usize, &'a [usize])> {
    text.links.iter().filter(|link| link.role == role).map(|link| (link.query, link.keys.as_slice())).collect()
}

/// Rows (task, metric, value, baseline) of a table.
fn rows(table: &Table) -> Vec<(String, String, f64, f64)> {
    let text = |name: &str| -> Vec<String> {
        table.frame().column(name).unwrap().str().unwrap().iter().map(|text| text.unwrap().to_owned()).collect()
    };
    let numbers = table.f64("value").unwrap().into_iter().zip(table.f64("baseline").unwrap());
    text("task").into_iter().zip(text("metric")).zip(numbers).map(|((t, m), (v, b))| (t, m, v, b)).collect()
}

fn of(table: &Table, metric: &str) -> (f64, f64) {
    rows(table).into_iter().find(|row| row.1 == metric).map(|(_, _, value, baseline)| (value, baseline)).unwrap()
}

#[test]
fn conllu_is_read() {
    let texts = read_conllu(made_up("made-up.conllu")).unwrap();
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0].text, "The cat sees John Smith.");
    assert_eq!(words(&texts[0]), ["The", "cat", "sees", "John", "Smith", "."]);
    assert_eq!(links(&texts[0], "det_to_head"), [(0, &[1][..])]);
    assert_eq!(links(&texts[0], "obj_to_dependent"), [(2, &[3][..])]);
    assert_eq!(links(&texts[0], "entity"), [(3, &[4][..]), (4, &[3][..])]);
    assert!(links(&texts[0], "root_to_head").is_empty());
    assert_eq!(texts[1].text, "They don't go du jour");
    // Parts of a contraction have their own place where the form shows it, else they share it; empty nodes are no words.
    assert_eq!(words(&texts[1]), ["They", "do", "n't", "go", "du", "du", "jour"]);
    assert_eq!(links(&texts[1], "obl_to_head"), [(6, &[3][..])]);
}

#[test]
fn gap_is_read() {
    let texts = read_gap(made_up("made-up-gap.tsv")).unwrap();
    assert_eq!(texts.len(), 1, "a pronoun that stands for neither name is left out");
    assert_eq!(words(&texts[0]), ["Zoë", "Ann Lee", "she"]);
    let expected = Link { role: "coreference".into(), query: 2, keys: vec![1], among: Some(vec![0, 1]) };
    assert_eq!(texts[0].links, [expected]);
}

#[test]
fn files_that_are_none_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.conllu");
    let fails = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        read_conllu(&file).unwrap_err().to_string()
    };
    assert!(fails(b"1\ta\n").contains("line 1"));
    assert!(fails(b"2\ta\t_\tX\t_\t_\t0\troot\t_\t_\n").contains("numbered from 1"));
    assert!(fails(b"1\ta\t_\tX\t_\t_\tx\troot\t_\t_\n").contains("column 7"));
    assert!(fails(b"1\ta\t_\tX\t_\t_\t9\tdet\t_\t_\n").contains("within the sentence"));
    assert!(
        fails(b"1-3\tab\t_\t_\t_\t_\t_\t_\t_\t_\n1\ta\t_\tX\t_\t_\t0\troot\t_\t_\n").contains("within the sentence")
    );
    assert!(fails(b"\x1f\x8b\xff").contains("gzip"));
    assert!(fails("1\té\t_\tX\t_\t_\t0\troot\t_\t_\n1-2\t\n".as_bytes()).contains("line 2"));
    std::fs::write(&file, "header\nid\ttext\tshe\t99\tA\t0\tTRUE\tB\t1\tFALSE\n").unwrap();
    assert!(read_gap(&file).unwrap_err().to_string().contains("line 2"));
    assert!(read_conllu(folder.path().join("none")).is_err());
    // Packed by gzip it is the same.
    let packed = Command::new("gzip").arg("-c").arg(made_up("made-up.conllu")).output().unwrap();
    std::fs::write(&file, packed.stdout).unwrap();
    assert_eq!(read_conllu(&file).unwrap(), read_conllu(made_up("made-up.conllu")).unwrap());
}

/// Texts of the letters that tiny-bert knows, a word a letter, every word linked by `key`.
fn lettered(n: usize, length: usize, key: impl Fn(usize, usize) -> usize) -> Vec<Annotated> {
    let text = |t: usize| {
        let letters: Vec<String> =
            (0..length).map(|w| char::from(b'a' + ((t * 7 + w * 3) % 26) as u8).to_string()).collect();
        let words = (0..length).map(|w| 2 * w..2 * w + 1).collect();
        let link = |query: usize| Link { role: "made_up".into(), query, keys: vec![key(t, query)], among: None };
        let links = (0..length).map(link).filter(|link| link.keys[0] != link.query).collect();
        Annotated { text: letters.join(" "), words, links }
    };
    (0..n).map(text).collect()
}

/// A role that is a fixed offset is known by that offset, and the test that allows for distances does not take it for more.
#[test]
fn an_offset_is_an_offset() {
    let model = load("tiny-bert", Kind::Double);
    let texts = lettered(20, 6, |_, query| if query > 1 { query - 2 } else { query });
    let roles = Roles::measure(&model, &texts, &RoleOptions::default()).unwrap();
    let best = roles.best().unwrap();
    assert_eq!(of(&best, "offset").0, -2.0);
    assert_eq!(of(&best, "accuracy").1, 1.0);
    assert_eq!(of(&best, "links").0, 40.0);
    assert_eq!(of(&best, "p_value").0, 1.0, "where every distance is the same, shuffling them changes nothing");
    let all = roles.table().unwrap();
    assert_eq!(all.len(), 12);
    assert!(rows(&all).iter().all(|(_, _, value, baseline)| (0.0..=1.0).contains(value) && *baseline == 1.0));
}

/// Links that one head's own choices make are all known by that head, and no distance explains them.
#[test]
fn a_head_that_knows_its_links_is_found() {
    let model = load("tiny-bert", Kind::Double);
    let texts = lettered(40, 7, |_, query| (query + 1) % 7);
    // What head 1.2 looks at most, letter by letter: every letter is one token, behind [CLS].
    let mut known = texts.clone();
    for text in &mut known {
        let tokens = model.tokens(&[&text.text]).unwrap();
        assert_eq!(tokens.positions(), 9);
        let site = headscope::model::Site::Pattern(1);
        let run = model.run(&tokens, &headscope::model::Plan::new().tap(site)).unwrap();
        let pattern = run.get(site).unwrap().get(0).get(2);
        for link in &mut text.links {
            let weight = |key: usize| pattern.double_value(&[link.query as i64 + 1, key as i64 + 1]);
            let best = (0..7).filter(|&key| key != link.query).max_by(|&a, &b| weight(a).total_cmp(&weight(b)));
            link.keys = vec![best.unwrap()];
        }
    }
    let best = Roles::measure(&model, &known, &RoleOptions::default()).unwrap().best().unwrap();
    assert_eq!((best.f64("layer").unwrap()[0], best.f64("head").unwrap()[0]), (1.0, 2.0));
    assert_eq!(of(&best, "accuracy").0, 1.0);
    assert!(of(&best, "p_value").0 < 0.01);
    // The same links on other texts: the head knows no more than chance and distance tell.
    let mut wrong = known.clone();
    for (text, other) in wrong.iter_mut().zip(known.iter().skip(1)) {
        text.links.clone_from(&other.links);
    }
    let chance = Roles::measure(&model, &wrong, &RoleOptions::default()).unwrap().best().unwrap();
    assert!(of(&chance, "accuracy").0 < 0.8);
    // One call does both, and gives the same head and accuracy.
    let options = RoleOptions { controls: 5, texts: 8, ..RoleOptions::default() };
    let tested = Role::new("made_up").test(&model, &known, &options).unwrap();
    assert_eq!(of(&tested, "accuracy").0, 1.0);
    let p = of(&tested, "effect_p_value").0;
    assert_near("a sixth", (6.0 * p).round() / 6.0, p, Tol::Number);
    assert!((0.1..=1.0).contains(&p), "{p}");
    assert!(of(&tested, "effect").1.is_finite());
    assert_eq!(tested.len(), 7);
    let again = Role::new("made_up").test(&model, &known, &options).unwrap();
    assert_eq!(again.f64("value").unwrap(), tested.f64("value").unwrap(), "the same seed");
}

/// Sub-words: a word looks with the mean (or the last) of its tokens and is looked at by the sum over them.
#[test]
fn words_of_several_tokens() {
    let model = load("tiny-bert", Kind::Double);
    let text = "xyz heads qq the";
    let tokens = model.tokens(&[text]).unwrap();
    let spans = model.tokenizer().unwrap().spans(text).unwrap();
    assert_eq!(spans.len(), tokens.positions());
    assert!(spans[0].is_empty() && spans[spans.len() - 1].is_empty());
    let places = [0..3, 4..9, 10..12, 13..16];
    let of_word: Vec<Vec<usize>> = places
        .iter()
        .map(|word| (0..spans.len()).filter(|&t| spans[t].start < word.end && word.start < spans[t].end).collect())
        .collect();
    assert!(of_word[0].len() > 1, "{of_word:?}");
    let site = headscope::model::Site::Pattern(2);
    let run = model.run(&tokens, &headscope::model::Plan::new().tap(site)).unwrap();
    let looks = |head: i64, speaking: &[usize], word: usize| -> f64 {
        let pattern = run.get(site).unwrap().get(0).get(head);
        let to =
            |from: &usize| of_word[word].iter().map(|k| pattern.double_value(&[*from as i64, *k as i64])).sum::<f64>();
        speaking.iter().map(to).sum::<f64>() / speaking.len() as f64
    };
    for (looking, speaking) in [(Looking::Mean, &of_word[0][..]), (Looking::Last, &of_word[0][of_word[0].len() - 1..])]
    {
        for key in 1..4 {
            let link = Link { role: "made_up".into(), query: 0, keys: vec![key], among: None };
            let one = Annotated { text: text.into(), words: places.to_vec(), links: vec![link] };
            let options = RoleOptions { looking: Some(looking), ..RoleOptions::default() };
            let table = Roles::measure(&model, &[one], &options).unwrap().table().unwrap();
            for head in 0..4 {
                let best =
                    (1..4).max_by(|&a, &b| looks(head, speaking, a).total_cmp(&looks(head, speaking, b))).unwrap();
                let found = table.f64("value").unwrap()[8 + head as usize];
                assert_near("right", found, f64::from(best == key), Tol::Exact);
            }
        }
    }
}

#[test]
fn what_makes_no_sense_says_so() {
    let model = load("tiny-bert", Kind::Double);
    let texts = lettered(4, 5, |_, query| if query > 0 { query - 1 } else { 0 });
    let roles = |texts: &[Annotated], options: RoleOptions| Roles::measure(&model, texts, &options);
    let few = roles(&texts, RoleOptions::default()).unwrap().best().unwrap_err().to_string();
    assert!(few.contains("20 links") && few.contains("made_up: 16"), "{few}");
    assert!(roles(&texts, RoleOptions { draws: 0, ..RoleOptions::default() }).is_err());
    assert!(roles(&[], RoleOptions::default()).is_err());
    let mut outside = texts.clone();
    outside[0].words[0] = 0..99;
    assert!(roles(&outside, RoleOptions::default()).unwrap_err().to_string().contains("0 to 99"));
    let mut no_word = texts.clone();
    no_word[1].links[0].query = 9;
    assert!(roles(&no_word, RoleOptions::default()).unwrap_err().to_string().contains("made_up"));
    assert!(Role::new("none").test(&model, &texts, &RoleOptions::default()).is_err());
    let untold = Model::random(model.config(), 0).unwrap();
    assert!(Roles::measure(&untold, &texts, &RoleOptions::default()).unwrap_err().to_string().contains("tokenizer"));
    // A causal query cannot look at what comes behind it: such links are not judged.
    let causal = load("tiny-gpt2", Kind::Double);
    let ahead = lettered(4, 5, |_, query| (query + 1).min(4));
    assert!(Roles::measure(&causal, &ahead, &RoleOptions::default()).unwrap().names().is_empty());
}

#[test]
fn the_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("roles.parquet");
    let bert = fixture("tiny-bert");
    let run = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_headscope"))
            .args(["roles", bert.to_str().unwrap(), "--least", "1", "--out", out.to_str().unwrap()])
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let twice = folder.path().join("twice.conllu");
    let text = std::fs::read_to_string(made_up("made-up.conllu")).unwrap();
    std::fs::write(&twice, format!("{text}\n{text}\n{text}\n{text}")).unwrap();
    let (code, shown, error) = run(&["--conllu", twice.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{error}");
    assert!(shown.contains("obj_to_head") && shown.contains("fixed offset"), "{shown}");
    let table = Table::read(&out).unwrap();
    let names: BTreeSet<String> = rows(&table).into_iter().map(|row| row.0).collect();
    assert!(names.contains("entity") && names.contains("det_to_head"), "{names:?}");
    assert_eq!(table.columns()[..5], ["layer", "head", "task", "metric", "value"]);
    let (code, _, error) = run(&["--conllu", twice.to_str().unwrap(), "--test", "obj_to_head"]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(Table::read(&out).unwrap().len(), 7);
    let (code, _, error) = run(&["--conllu", twice.to_str().unwrap(), "--every-head"]);
    assert_eq!((code, Table::read(&out).unwrap().len() % 12), (Some(0), 0), "{error}");
    let (code, _, error) = run(&["--conllu", "/no/such/file"]);
    assert!(code == Some(1) && error.contains("/no/such/file"), "{error}");
    assert_eq!(run(&[]).0, Some(2));
}

/// Stories of the small English as annotated text: links join the words that they should, for readers and for writers, and
/// the bundled model's heads are found by them.
#[test]
fn stories_are_annotated() {
    let language = Language::English(English { length: 40 });
    let stories = language.annotated(30, 5, 0, LookFrom::Word).unwrap();
    let mut seen = BTreeSet::new();
    for story in &stories {
        let word = |number: usize| &story.text[story.words[number].clone()];
        assert_eq!(story.words.len(), 39, "the token that begins a story is no word of it");
        for link in &story.links {
            let (query, key) = (word(link.query), word(link.keys[0]));
            let fits = match link.role.as_str() {
                "entity" => link.keys.iter().all(|&key| key < link.query && word(key) == query),
                "coreference" => ["he", "she"].contains(&query) && key.starts_with(char::is_uppercase),
                "agreement" => query.ends_with('s') != (key.ends_with('s') || key == "children"),
                role => role == "verb_object",
            };
            assert!(fits, "{}: {query} and {key}", link.role);
            seen.insert(link.role.clone());
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    let written = language.annotated(30, 5, 0, LookFrom::Prediction).unwrap();
    assert!(written[0].text.starts_with("<bos> ") && written[0].text.ends_with(&stories[0].text));
    for (a, b) in written.iter().zip(&stories) {
        // One word before, in a text of one word more: the same numbers for queries, one more for keys.
        assert_eq!(a.links.len(), b.links.len());
        for (a, b) in a.links.iter().zip(&b.links) {
            let behind: Vec<usize> = b.keys.iter().map(|key| key + 1).collect();
            assert_eq!((a.query, &a.keys, &a.role), (b.query, &behind, &b.role));
        }
    }
    let model = Model::load("english").unwrap();
    let roles =
        Roles::measure(&model, &language.annotated(60, 1, 0, LookFrom::Prediction).unwrap(), &RoleOptions::default());
    let best = roles.unwrap().best().unwrap();
    assert!(rows(&best).iter().any(|row| row.1 == "accuracy" && row.2 > row.3 + 0.2), "{best}");
    let symbols: Language = serde_json::from_str(r#"{"tasks": {"tasks": ["first"], "regime": "gated"}}"#).unwrap();
    assert!(symbols.annotated(1, 0, 0, LookFrom::Word).is_err());
}

/// A cell of E7: every role of every seed has its rows, the same from the same seed; random weights know less.
#[test]
fn a_cell_of_roles() {
    let work = |random: bool, roles: &[&str]| {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        let texts = Texts::Stories { length: 48, looking: LookFrom::Prediction };
        let work = Pretrained { model: "english".into(), random, texts, count: 30, roles, causal: !random };
        Cell { name: "english".into(), work: Work::Pretrained(work) }
    };
    let roles = ["agreement", "coreference", "entity", "verb_object"];
    let cell = work(false, &roles);
    let table = cell.compute(3, 2).unwrap();
    let of = |table: &Table, metric: &str| -> Vec<f64> {
        table.rows().unwrap().into_iter().filter(|row| row.metric == metric).map(|row| row.value).collect()
    };
    for metric in ["accuracy", "effect_rank", "p_value", "head_accuracy"] {
        let found = of(&table, metric);
        assert!(found.len() == 2 * 4 && found.iter().all(|value| (0.0..=1.0).contains(value)), "{metric}: {found:?}");
    }
    assert_eq!((of(&table, "effect").len(), of(&table, "gain_over_offset").len()), (8, 8));
    assert_eq!(cell.compute(3, 2).unwrap().f64("value").unwrap(), table.f64("value").unwrap());
    let random = work(true, &roles).compute(3, 2).unwrap();
    assert!(of(&random, "effect").is_empty());
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let (trained, drawn) = (mean(of(&table, "accuracy")), mean(of(&random, "accuracy")));
    assert!(trained > drawn + 0.1, "{trained} where random weights have {drawn}");
    assert!(work(false, &[]).compute(0, 1).is_err() && work(false, &["none"]).compute(0, 1).is_err());
}
