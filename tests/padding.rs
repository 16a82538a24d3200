//! Padding on either side changes nothing, and texts begin as they are asked to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::Command;

use common::architectures::any_config;
use common::{Tol, assert_close, fixture, load, random, some_tokens};
use headscope::model::{Rotary, RotaryScaling};
use headscope::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);

fn logits(model: &Model, tokens: &Tokens) -> Tensor {
    model.run(tokens, &Plan::new()).unwrap().logits().unwrap().shallow_clone()
}

fn with_bos(name: &str, prepend_bos: Option<bool>) -> headscope::Result<Model> {
    let options = LoadOptions { prepend_bos, ..LoadOptions::default() };
    Model::load_with(fixture(name).to_str().unwrap(), &options)
}

/// Rows padded to `length` with `before` zeros in front of each, as far as there is room.
fn padded(rows: &[Vec<i64>], length: usize, before: usize) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    let pad = |row: &Vec<i64>, with: &dyn Fn(i64) -> i64| {
        let mut all = vec![0; before.min(length - row.len())];
        all.extend(row.iter().map(|&id| with(id)));
        all.resize(length, 0);
        all
    };
    (rows.iter().map(|row| pad(row, &|id| id)).collect(), rows.iter().map(|row| pad(row, &|_| 1)).collect())
}

/// Whether rotary positions depend on the longest text of a batch, as they do in transformers.
fn goes_by_length(config: &ModelConfig) -> bool {
    let by_length =
        |rotary: Rotary| matches!(rotary.scaling, RotaryScaling::Dynamic { .. } | RotaryScaling::Long { .. });
    (0..config.n_layers).filter_map(|layer| config.rotary(layer)).any(by_length)
}

/// Prompts of unequal lengths give what each gives alone, whether they are padded on the left, on the right or on both sides,
/// in every architecture.
#[test]
fn padding_on_either_side_changes_nothing() {
    for seed in 0..u64::from(common::cases(80)) {
        let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
        if goes_by_length(&config) {
            continue;
        }
        let model = random(&config, seed);
        let rows: Vec<Vec<i64>> = [7, 3, 5]
            .iter()
            .map(|&length| some_tokens(1, length, config.vocab, seed as usize + length).row(0).to_vec())
            .collect();
        let alone: Vec<Tensor> =
            rows.iter().map(|row| logits(&model, &Tokens::new(std::slice::from_ref(row)).unwrap())).collect();
        for (length, before) in [(7, 99), (7, 0), (12, 99), (12, 2)] {
            let (ids, mask) = padded(&rows, length, before);
            let tokens = Tokens::from_padded(&model, &ids, &mask).unwrap();
            let found = logits(&model, &tokens);
            for (prompt, expected) in alone.iter().enumerate() {
                let own = found.narrow(0, prompt as i64, 1).narrow(1, 0, rows[prompt].len() as i64);
                assert_close(&format!("{before} zeros before: {config:?}"), &own, expected, MODEL);
            }
        }
    }
}

/// Masks that are none are errors.
#[test]
fn masks_that_do_not_fit() {
    let model = load("tiny-gpt2", Kind::Float);
    let refused = |ids: &[Vec<i64>], mask: &[Vec<i64>]| Tokens::from_padded(&model, ids, mask).unwrap_err().to_string();
    assert!(refused(&[vec![5, 6, 7]], &[vec![1, 0, 1]]).contains("stand together"));
    assert!(refused(&[vec![5, 6, 7]], &[vec![1, 2, 1]]).contains("stand together"));
    assert!(refused(&[vec![5, 6, 7]], &[vec![1, 1]]).contains("lengths"));
    assert!(refused(&[vec![5, 6, 7]], &[vec![0, 0, 0]]).contains("empty"));
    assert!(refused(&[vec![5, 6, 7]], &[]).contains("lengths"));
}

/// By default the tokenizer decides; asked for, the token is there once; unwanted, it is not, unless the text has it.
#[test]
fn texts_begin_as_asked() {
    for (name, own) in [("tiny-gpt2", false), ("tiny-llama", true), ("tiny-bert", true)] {
        let ids = |bos: Option<bool>, text: &str| {
            let model = with_bos(name, bos).unwrap();
            let tokenizer = model.tokenizer().unwrap();
            let bos = tokenizer.bos().unwrap();
            let spans = tokenizer.spans(text).unwrap();
            let row = model.tokens(&[text]).unwrap().row(0).to_vec();
            assert_eq!(spans.len(), row.len());
            let read: String = spans.iter().map(|span| &text[span.clone()]).collect();
            assert_eq!(read.replace(' ', ""), text.replace(' ', ""));
            assert_eq!(tokenizer.frame().unwrap().0 == [bos], tokenizer.prepends_bos());
            (row, bos)
        };
        let text = "the head";
        let (default, bos) = ids(None, text);
        let (with, without) = (ids(Some(true), text).0, ids(Some(false), text).0);
        assert_eq!(default, if own { with.clone() } else { without.clone() }, "{name}");
        assert_eq!((with[0], &with[1..]), (bos, without.as_slice()), "{name}");
        assert!(!without.contains(&bos), "{name}");
    }
    // Written out in the text, it is neither doubled nor taken away.
    let model = with_bos("tiny-gpt2", Some(true)).unwrap();
    let written = model.tokenizer().unwrap().piece(0) + "the head";
    for bos in [None, Some(true), Some(false)] {
        let row = with_bos("tiny-gpt2", bos).unwrap().tokens(&[&written]).unwrap().row(0).to_vec();
        assert_eq!((row[0], row.iter().filter(|&&id| id == 0).count()), (0, 1), "{bos:?}");
    }
    let error = with_bos("induction", Some(true)).unwrap_err().to_string();
    assert!(error.contains("prepend_bos") && error.contains("beginning-of-sequence"), "{error}");
}

/// `inspect` shows the rule, and tables keep it with the tokens.
#[test]
fn the_command_shows_how_texts_begin() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("table.parquet");
    let gpt2 = fixture("tiny-gpt2").to_str().unwrap().to_owned();
    let done = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (asked, begins) in [(None, false), (Some("true"), true), (Some("false"), false)] {
        let asked: Vec<&str> = asked.into_iter().flat_map(|asked| ["--prepend-bos", asked]).collect();
        let said = done(&[&["inspect", &gpt2], asked.as_slice()].concat());
        let line = said.lines().find(|line| line.starts_with("bos ")).unwrap();
        assert_eq!(line.contains("before every text"), begins, "{line}");
        let json: serde_json::Value =
            serde_json::from_str(&done(&[&["inspect", &gpt2, "--json"], asked.as_slice()].concat())).unwrap();
        assert_eq!((&json["bos"]["id"], &json["bos"]["prepended"]), (&0.into(), &begins.into()));
        let text = ["ablate", &gpt2, "--text", "the head", "the cat", "--out", out.to_str().unwrap()];
        done(&[text.as_slice(), asked.as_slice()].concat());
        let options = Table::read(&out).unwrap().provenance().options.clone();
        assert_eq!(options["prepend_bos"], serde_json::json!(begins));
        let first = &options["what"]["tokens"]["rows"][0][0];
        assert_eq!(first == 0, begins, "{options}");
    }
}
