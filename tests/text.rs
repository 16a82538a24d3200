//! Natural text as a language: windows are pieces of the text, classes are what they say, held-out text is never trained on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Read;
use std::path::{Path, PathBuf};

use headscope::Error;
use headscope::lab::experiment::{Cell, Spacing, Start, Training, Work};
use headscope::lab::language::{Sample, Text, TextSource, TextTokens};
use headscope::lab::{Language, TrainOptions, Trainer};
use headscope::model::{Model, ModelConfig};
use proptest::prelude::*;
use sha2::Digest;

const BPE: TextTokens = TextTokens::Bpe { vocab: 512 };

/// A committed text, read without the library.
fn whole(source: &TextSource) -> String {
    let name = match source {
        TextSource::Shakespeare => "tinyshakespeare",
        _ => "pride-and-prejudice",
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/text/{name}.txt.gz"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn language(text: TextSource, tokens: TextTokens, length: usize) -> Language {
    Language::Text(Text { text, tokens, length })
}

fn any_language() -> impl Strategy<Value = (TextSource, TextTokens, usize)> {
    let source = prop_oneof![Just(TextSource::Shakespeare), Just(TextSource::PrideAndPrejudice)];
    (source, prop_oneof![Just(TextTokens::Characters), Just(BPE)], 4usize..100)
}

/// The text of every token of a sample.
fn pieces(language: &Language, sample: &Sample) -> Vec<String> {
    let tokenizer = language.tokenizer().unwrap().unwrap();
    sample.tokens.iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect()
}

fn has_letters(piece: &str) -> bool {
    piece.contains(char::is_alphanumeric)
}

/// A language of the text in a file of its own.
fn of_text(folder: &Path, text: &str, tokens: TextTokens, length: usize) -> Language {
    let path = folder.join(format!("{}.txt", text.len()));
    std::fs::write(&path, text).unwrap();
    language(TextSource::Path(path), tokens, length)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Training windows lie in the first nine tenths and held-out windows in the last tenth, where no training window is.
    #[test]
    fn windows_are_pieces_of_their_own_part_of_the_text(
        (source, tokens, length) in any_language(), seed in any::<u64>(), number in 0u64..1 << 40, back in 0u64..1000,
    ) {
        let (language, text) = (language(source.clone(), tokens, length), whole(&source));
        let border = text.len() / 10 * 9;
        for (number, part) in [(number, &text[..border]), (u64::MAX - back, &text[border..])] {
            let batch = language.batch(3, seed, number).unwrap();
            prop_assert_eq!(&batch.samples, &language.batch(3, seed, number).unwrap().samples);
            for sample in &batch.samples {
                prop_assert_eq!(sample.tokens.len(), length);
                prop_assert!(part.contains(&pieces(&language, sample).concat()));
            }
        }
    }

    /// Every next token is predicted, in one class each, which is the one that its definition says as far as the window
    /// shows; repeats, and nothing else, are annotated with all earlier places of their bigram.
    #[test]
    fn every_next_token_is_in_the_class_of_its_definition(
        (source, tokens, length) in any_language(), seed in any::<u64>(),
    ) {
        let language = language(source, tokens, length);
        let names: Vec<String> = language.tasks().into_iter().map(|class| class.name).collect();
        for sample in language.batch(3, seed, 0).unwrap().samples {
            let pieces = pieces(&language, &sample);
            let places: Vec<usize> = sample.targets.iter().map(|target| target.position).collect();
            prop_assert_eq!(places, (0..length - 1).collect::<Vec<_>>());
            for target in &sample.targets {
                let at = target.position + 1;
                prop_assert_eq!(target.token, sample.tokens[at]);
                prop_assert_eq!(&target.choices, &(0..language.vocab() as i64));
                let ends = |other: &usize| sample.tokens[other - 1..=*other] == sample.tokens[at - 1..=at];
                let earlier: Vec<usize> = (1..at).filter(ends).collect();
                let mut found: Vec<usize> = sample.dependencies.iter().filter(|one| one.query + 1 == at)
                    .map(|one| one.source).collect();
                found.sort_unstable();
                let class = names[target.task].as_str();
                if pieces[at] == "'" {
                    continue; // inside a word or punctuation, which may depend on what follows the window
                }
                prop_assert_eq!(class == "punctuation", !has_letters(&pieces[at]));
                prop_assert_eq!(class == "repeat", has_letters(&pieces[at]) && !earlier.is_empty());
                prop_assert_eq!(found, if class == "repeat" { earlier } else { vec![] });
                let before = pieces[..at].concat();
                let goes_on = !pieces[at].starts_with(|c: char| !c.is_alphanumeric() && c != '\'')
                    && before.ends_with(|c: char| c.is_alphanumeric());
                match class {
                    "inside_word" => prop_assert!(goes_on || before.ends_with('\''), "{before:?} {:?}", pieces[at]),
                    "word_start" => prop_assert!(!goes_on, "{before:?} {:?}", pieces[at]),
                    "name" if !goes_on && !before.ends_with('\'') => {
                        let first = pieces[at].trim_start_matches(|c: char| !c.is_alphanumeric()).chars().next();
                        prop_assert!(first.is_some_and(char::is_uppercase), "{:?}", pieces[at]);
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn other_seeds_and_numbers_give_other_windows(seed in 0u64..1 << 40, number in 0u64..1 << 40) {
        let language = language(TextSource::Shakespeare, TextTokens::Characters, 64);
        let of = |seed, number| language.batch(8, seed, number).unwrap().samples;
        prop_assert_ne!(of(seed, number), of(seed + 1, number));
        prop_assert_ne!(of(seed, number), of(seed, number + 1));
        prop_assert_ne!(of(seed, u64::MAX), of(seed, u64::MAX - 1));
    }
}

/// A text whose every token is as frequent as any other: chance is the logarithm of their number in every class that
/// occurs, and 0 in the others.
#[test]
fn chance_is_the_loss_of_the_tokens_frequencies() {
    let folder = tempfile::tempdir().unwrap();
    let language = of_text(folder.path(), &"ab ".repeat(100), TextTokens::Characters, 4);
    let chance: Vec<f64> = language.tasks().into_iter().map(|class| class.chance).collect();
    for (found, expected) in chance.into_iter().zip([3f64.ln(), 3f64.ln(), 3f64.ln(), 0.0, 0.0]) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    assert!(language.tasks().iter().all(|class| class.floor == 0.0));
}

/// Every class has its share of the committed texts, so that none is empty in what is measured.
#[test]
fn every_class_occurs_in_the_committed_texts() {
    for (source, tokens) in [(TextSource::Shakespeare, TextTokens::Characters), (TextSource::PrideAndPrejudice, BPE)] {
        let language = language(source, tokens, 64);
        for (task, class) in language.tasks().iter().enumerate() {
            let samples = language.batch(200, 1, u64::MAX).unwrap().samples;
            let targets = || samples.iter().flat_map(|sample| &sample.targets);
            let share = targets().filter(|target| target.task == task).count() as f64 / targets().count() as f64;
            println!("{} {share:.3}, chance {:.3}", class.name, class.chance);
            assert!(share > 0.01 && class.chance > 1.0, "{} {share}", class.name);
        }
    }
}

#[test]
fn bad_options_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let short = of_text(folder.path(), &"A short text. ".repeat(10), TextTokens::Characters, 64);
    let binary = folder.path().join("binary");
    std::fs::write(&binary, [0xff; 100]).unwrap();
    let of = |path: PathBuf| language(TextSource::Path(path), TextTokens::Characters, 8);
    for (bad, expected) in [
        (language(TextSource::Shakespeare, TextTokens::Characters, 3), "length"),
        (language(TextSource::Shakespeare, TextTokens::Bpe { vocab: 256 }, 64), "vocab"),
        (short, "length"),
        (of_text(folder.path(), "too short", TextTokens::Characters, 4), "text"),
        (of(folder.path().join("missing")), "missing"),
        (of(binary), "UTF-8"),
    ] {
        let error = bad.batch(1, 0, 0).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(bad.validate().is_err());
    }
    let unknown = serde_json::from_str::<Language>(r#"{"text": {"text": "bible"}}"#);
    assert!(unknown.unwrap_err().to_string().contains("pride_and_prejudice"));
}

fn tiny(language: &Language) -> ModelConfig {
    let (vocab, n_positions) = (language.vocab(), language.positions());
    ModelConfig { d_model: 16, d_head: 4, d_mlp: 16, vocab, n_positions, ..ModelConfig::default() }
}

/// What is saved turns the text into the ids that the model was trained on, and back.
#[test]
fn a_trained_model_has_the_tokenizer_of_its_text() {
    let folder = tempfile::tempdir().unwrap();
    for (source, tokens) in [(TextSource::Shakespeare, TextTokens::Characters), (TextSource::PrideAndPrejudice, BPE)] {
        let language = language(source, tokens, 32);
        let options = TrainOptions { steps: 1, batch: 2, ..TrainOptions::default() };
        let trained = Trainer::new(&tiny(&language), &language, &options).unwrap().run().unwrap().remove(0);
        let path = folder.path().join("model");
        trained.model.save(&path).unwrap();
        let loaded = Model::load(path.to_str().unwrap()).unwrap();
        let text = "My good lord,\nI know it's  so.";
        let ids = loaded.tokens(&[text]).unwrap().row(0).to_vec();
        assert_eq!(language.tokenizer().unwrap().unwrap().decode(&ids).unwrap(), text);
        let sample = &language.batch(1, 0, 0).unwrap().samples[0];
        if tokens == TextTokens::Characters {
            let window = pieces(&language, sample).concat();
            assert_eq!(loaded.tokens(&[&window]).unwrap().row(0), sample.tokens);
            assert!(
                matches!(loaded.tokens(&["na\u{ef}ve"]), Err(Error::Tokenizer { .. })),
                "a character that it lacks"
            );
        }
    }
}

#[test]
fn a_file_that_has_changed_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    let language = language(TextSource::Path(path.clone()), TextTokens::Characters, 8);
    std::fs::write(&path, "ab ".repeat(100)).unwrap();
    assert_eq!(language.vocab(), 3);
    std::fs::write(&path, "abcd ".repeat(100)).unwrap();
    assert_eq!(language.vocab(), 5);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(language.vocab(), 0);
    assert!(language.batch(1, 0, 0).is_err());
}

/// A cell trained on a file names it with its hash.
#[test]
fn a_cell_says_which_text_it_read() {
    let folder = tempfile::tempdir().unwrap();
    let language =
        of_text(folder.path(), &"some words of a text, and more of them. ".repeat(20), TextTokens::Characters, 8);
    let train = TrainOptions { steps: 2, batch: 2, ..TrainOptions::default() };
    let (model, start) = (tiny(&language), Start::Fresh);
    let (measures, spacing) = (vec![], Spacing::Even);
    let training = Training {
        model,
        language,
        train,
        start,
        measures,
        records: 2,
        spacing,
        held_out: 4,
        layer: None,
        after: None,
    };
    let cell = Cell { name: "own".to_owned(), work: Work::Training(Box::new(training)) };
    let table = cell.compute(900_000, 2).unwrap();
    let read = &table.provenance().options["origin"]["read"][0];
    let path = read["name"].as_str().unwrap();
    let hash = format!("{:x}", sha2::Sha256::digest(std::fs::read(path).unwrap()));
    assert_eq!(read["sha256"].as_str().unwrap(), hash);
}
