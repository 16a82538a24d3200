//! `headscope scan` as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::{Command, Output};

use common::architectures::any_config;
use common::{Tol, assert_near, random, some_tokens};
use headscope::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);
const GPT2: &str = "fixtures/checkpoints/tiny-gpt2";
const PROMPT: &str = "the cat sat on the mat";

fn scan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headscope")).arg("scan").args(arguments).output().unwrap()
}

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = scan(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines after the one that begins with `title`, up to an empty one.
fn section<'a>(text: &'a str, title: &str) -> Vec<&'a str> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(title));
    assert!(lines.next().is_some(), "no `{title}` in {text}");
    lines.take_while(|line| !line.is_empty()).collect()
}

/// Of any architecture: what can be said is what the parts of the library say, the rest is left out.
#[test]
fn any_architecture_is_scanned() {
    let (mut with, mut without) = (0, 0);
    for seed in 0..u64::from(common::cases(24)) {
        let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
        let (model, tokens) = (random(&config, seed), some_tokens(2, 5, config.vocab, seed as usize));
        let scan = Scan::of(&model, &tokens, &ScanOptions { parts: 3, ..ScanOptions::default() }).unwrap();
        assert!(scan.page().unwrap().as_str().contains("<svg"), "{config:?}");
        assert_eq!(scan.heads.len(), 5.min(config.n_layers * config.n_heads));
        let metric = match (config.causal, config.has_logits()) {
            (true, true) => {
                let run = model.run(&tokens, &Plan::new()).unwrap();
                let last = run.last(Site::Logits).unwrap();
                let best = last.softmax(-1, Kind::Double).amax(-1, false);
                let found = scan.predictions().unwrap().unwrap().filtered(|row| row.keys.rank == Some(0)).unwrap();
                common::assert_close("predictions", &Tensor::from_slice(&found.f64("value").unwrap()), &best, MODEL);
                Metric::logit(Vec::<i64>::try_from(last.argmax(-1, false)).unwrap())
            }
            (_, true) => Metric::Loss,
            _ => Metric::EmbeddingDistance,
        };
        assert_eq!(scan.lens.is_some(), config.causal && config.has_logits());
        let parts = usize::from(scan.lens.is_none()) + usize::from(scan.attribution.is_none());
        assert_eq!(scan.left_out.len(), parts, "{:?}", scan.left_out);
        *if scan.attribution.is_some() { &mut with } else { &mut without } += 1;
        for row in scan.ablation.rows().unwrap() {
            let layer = row.keys.layer.unwrap() as usize;
            let edit = match row.keys.head {
                Some(head) => Edit::new(Site::Z(layer), Action::Zero).head(head as usize),
                None => Edit::new(Site::MlpOut(layer), Action::Zero),
            };
            let end = if config.has_logits() { Site::Logits } else { Site::ResidPost(config.n_layers - 1) };
            let run = model.run(&tokens, &Plan::new().edit(edit).tap(end)).unwrap();
            let values = metric.of(&model, &run).unwrap();
            assert_near("ablation", row.value, values.iter().sum::<f64>() / values.len() as f64, MODEL);
        }
    }
    assert!(with > 0 && without > 0, "{with} with attribution, {without} without");
}

#[test]
fn a_causal_model_has_everything_and_numbers_are_those_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiny-gpt2", "tiny-llama"] {
        let (checkpoint, out) = (format!("fixtures/checkpoints/{name}"), folder.path().join(name));
        let text = done(&[&checkpoint, "--prompt", PROMPT, "--out", out.to_str().unwrap()]);
        assert!(!text.contains("left out"), "{text}");
        let model = Model::load(&checkpoint).unwrap();
        let tokens = model.tokens(&[PROMPT]).unwrap();
        let logits = model.run(&tokens, &Plan::new()).unwrap().last(Site::Logits).unwrap();
        let best = logits.argmax(-1, false).int64_value(&[0]);
        let piece = model.tokenizer().unwrap().piece(best);
        let next = section(&text, "next token");
        assert_eq!(next.len(), 5);
        assert!(next[0].ends_with(&format!("{piece:?}")), "{next:?}");
        let depths: Vec<&str> =
            section(&text, "logit lens").iter().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(depths, ["resid_pre.0", "resid_pre.1", "resid_pre.2", "resid_post.2"]);

        // Attribution and ablation are of the logit of the first choice.
        let metric = Metric::logit(best);
        let direct = direct_attribution(&model, &tokens, &metric).unwrap();
        let written = Table::read(out.join("attribution.parquet")).unwrap();
        assert_eq!(written.len(), direct.len());
        let total: f64 = written.f64("value").unwrap().iter().sum();
        assert_near("attribution sums to the logit", total, logits.max().double_value(&[]), Tol::Model(Kind::Float));
        let exact = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(metric).run().unwrap().rows().unwrap();
        let ablation = Table::read(out.join("ablation.parquet")).unwrap().rows().unwrap();
        assert_eq!(ablation.len(), 10);
        let heads = ablation.iter().filter(|row| row.keys.head.is_some());
        for row in heads.clone() {
            let same =
                exact.iter().find(|other| (other.keys.layer, other.keys.head) == (row.keys.layer, row.keys.head));
            assert_near("ablation", row.value, same.unwrap().value, Tol::Model(Kind::Float));
        }
        assert!(heads.count() > 0);
        assert_eq!(section(&text, "the heads and MLPs that write most").len(), 1 + 10 + 1);

        // What is ablated is what writes most.
        let part = |row: &Observation| matches!(row.keys.site.as_deref(), Some("result" | "mlp_out"));
        let top = direct.filtered(part).unwrap().top(10).unwrap().rows().unwrap();
        for row in &top {
            assert!(
                ablation.iter().any(|other| (other.keys.layer, other.keys.head) == (row.keys.layer, row.keys.head))
            );
        }

        // A page without anything from elsewhere, and a grid of the patterns.
        let page = std::fs::read_to_string(out.join("page.html")).unwrap();
        assert!(page.contains("<svg") && page.contains("hs-attention"), "{page}");
        for outside in ["src=\"http", "href=\"http", "url(http", "<link", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        let shaded = |line: &&str| line.contains('|') && line.contains(['░', '▒', '▓', '█']);
        assert_eq!(text.lines().filter(shaded).count() % tokens.positions(), 0, "{text}");
        for table in ["tokens", "lens", "curve", "attention"] {
            assert!(!Table::read(out.join(format!("{table}.parquet"))).unwrap().is_empty());
        }
    }
}

#[test]
fn answers_are_the_metric_and_prompts_are_several() {
    let text = done(&[GPT2, "--prompt", PROMPT, "the head", "--correct", " he", "--wrong", " to", "--top", "2"]);
    assert!(text.contains("prompt 1, ") && text.contains("logit_difference") && text.contains("mean over prompts"));
    assert_eq!(section(&text, "the heads and MLPs that write most").len(), 1 + 2 + 1);
    let folder = tempfile::tempdir().unwrap();
    done(&[GPT2, "--prompt", PROMPT, "--out", folder.path().to_str().unwrap(), "--format", "csv"]);
    assert!(std::fs::read_to_string(folder.path().join("lens.csv")).unwrap().contains("resid_post"));
    let four = done(&[GPT2, "--tokens", "[[5,6],[7,8,9],[9],[4,4]]", "--heads", "1", "--top-k", "1"]);
    assert!(four.contains("and 1 more prompts"), "{four}");
}

#[test]
fn what_an_encoder_cannot_do_is_left_out_and_said() {
    let folder = tempfile::tempdir().unwrap();
    for (name, metric) in [("tiny-bert", "loss "), ("tiny-bert-encoder", "embedding_distance ")] {
        let (checkpoint, out) = (format!("fixtures/checkpoints/{name}"), folder.path().join(name));
        let text = done(&[&checkpoint, "--tokens", "[[5,6,7,8],[9,8,7]]", "--out", out.to_str().unwrap()]);
        assert!(text.contains("left out: next tokens and the lens") && text.contains("left out: direct attribution"));
        assert!(text.lines().any(|line| line.starts_with(metric)), "{text}");
        assert_eq!(section(&text, "the heads and MLPs without which").len(), 1 + 10);
        let page = std::fs::read_to_string(out.join("page.html")).unwrap();
        assert!(page.contains("Left out: direct attribution"));
        assert!(!out.join("lens.parquet").exists() && out.join("ablation.parquet").exists());
        // Mean over queries: weights that sum to 1 for each head and prompt.
        let attention = Table::read(out.join("attention.parquet")).unwrap();
        let total: f64 = attention.f64("value").unwrap().iter().sum();
        assert_near("weights", total, 5.0 * 2.0, Tol::Layer(Kind::Float));
    }
}

#[test]
fn a_model_without_mlps_is_scanned() {
    let text = done(&["induction", "--tokens", "[[2,3,4,5,6,7,2,3]]", "--top", "100"]);
    assert!(!text.contains("MLP 0"), "{text}");
    assert_eq!(section(&text, "the heads and MLPs that write most").len(), 1 + 8 + 1); // all there are
}

#[test]
fn misuse_exits_with_2_and_says_what_was_expected() {
    let cases: [(&[&str], i32, &str); 7] = [
        (&[GPT2], 2, "--prompt"),
        (&[GPT2, "--prompt", PROMPT, "--top", "0"], 2, "at least 1"),
        (&[GPT2, "--prompt", PROMPT, "--format", "csv"], 2, "--out"),
        (&[GPT2, "--prompt", PROMPT, "--wrong", " to"], 2, "--correct"),
        (&[GPT2, "--prompt", PROMPT, "--correct", "no token"], 2, "single token"),
        (&["fixtures/checkpoints/tiny-bert", "--prompt", PROMPT, "--correct", "cat"], 2, "no next token"),
        (&[GPT2, "--prompt", PROMPT, "--out", "Cargo.toml"], 1, "Cargo.toml"),
    ];
    for (arguments, code, expected) in cases {
        let output = scan(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{error}");
    }
}
