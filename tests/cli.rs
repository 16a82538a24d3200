//! The command as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::{Command, Output};

use common::{Tol, assert_close, fixture, read_tensors};
use headscope::table::Table;
use tch::Kind;

fn headscope(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).output().unwrap()
}

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = headscope(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a run that must end with `code`.
#[track_caller]
fn fails(arguments: &[&str], code: i32) -> String {
    let output = headscope(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn path(name: &str) -> String {
    fixture(name).to_str().unwrap().to_owned()
}

#[test]
fn activations_are_the_golden_ones() {
    let folder = tempfile::tempdir().unwrap();
    for (name, logits) in [("tiny-gpt2", true), ("tiny-llama", true), ("tiny-bert", true), ("tiny-bert-encoder", false)]
    {
        for (dtype, kind) in [("float32", Kind::Float), ("float64", Kind::Double)] {
            let golden = read_tensors(&fixture(name).join("golden-float64.safetensors"));
            let rows: Vec<Vec<i64>> =
                golden["tokens"].unbind(0).into_iter().map(|row| Vec::try_from(row).unwrap()).collect();
            let file = folder.path().join("tokens.json");
            std::fs::write(&file, serde_json::to_string(&rows).unwrap()).unwrap();
            let out = folder.path().join("out.safetensors");
            let mut sites = vec!["resid_pre.0", "pattern.2", "z.1", "resid_post.2"];
            sites.extend(logits.then_some("logits"));
            let tokens = format!("@{}", file.display());
            done(&[
                "activations",
                &path(name),
                "--tokens",
                &tokens,
                "--sites",
                &sites.join(","),
                "--out",
                out.to_str().unwrap(),
                "--dtype",
                dtype,
            ]);
            let found = read_tensors(&out);
            assert_eq!(found.len(), sites.len());
            for site in sites {
                assert_eq!(found[site].kind(), kind);
                assert_close(&format!("{name} {site}"), &found[site], &golden[site], Tol::Model(kind));
            }
        }
    }
}

#[test]
fn ablate_writes_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = "[[5,6,7,8,9],[9,8,7,6,5],[10,11,12,13,14]]";
    for (kind, metric) in [("zero", "loss"), ("mean", "kl"), ("resample", "logit-difference")] {
        let out = folder.path().join(format!("{kind}.parquet"));
        let mut arguments = vec![
            "ablate",
            "fixtures/checkpoints/tiny-gpt2",
            "--tokens",
            tokens,
            "--kind",
            kind,
            "--metric",
            metric,
            "--out",
            out.to_str().unwrap(),
        ];
        if metric == "logit-difference" {
            arguments.extend(["--answers", "[[1,2],[3,4],[5,6]]"]);
        }
        let shown = done(&arguments);
        assert!(shown.contains("layer") && shown.contains("head"), "{shown}");
        let table = Table::read(&out).unwrap();
        assert_eq!(table.columns(), ["layer", "head", "metric", "value", "unit", "baseline"]);
        assert_eq!(table.len(), 12);
        assert_eq!(table.provenance().sha256.len(), 64);
    }
    for ending in ["csv", "json"] {
        let out = folder.path().join(format!("table.{ending}"));
        done(&["ablate", &path("tiny-bert"), "--text", "the cat sat", "a dog ran", "--out", out.to_str().unwrap()]);
        assert!(std::fs::read_to_string(out).unwrap().contains("head"));
    }
    done(&[
        "ablate",
        &path("tiny-bert"),
        "--text",
        "the cat sat",
        "a dog",
        "--metric",
        "embedding-distance",
        "--per-prompt",
    ]);
}

#[test]
fn sweeps_go_along_any_axes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("table.parquet");
    let out = out.to_str().unwrap();
    let sweep = |verb: &str, more: &[&str]| {
        let tokens: &[&str] = match verb {
            "ablate" => &["--tokens", "[[5,6,7,8,9],[9,8,7,6,5]]"],
            _ => &["--clean", "[[5,6,7,8,9],[9,8,7,6,5]]", "--corrupt", "[[5,6,70,8,9],[9,80,7,6,5]]"],
        };
        done(&[&[verb, "fixtures/checkpoints/tiny-llama", "--out", out], tokens, more].concat());
        let table = Table::read(out).unwrap();
        let columns = table.columns();
        let keys = columns.iter().take_while(|column| *column != "metric");
        (keys.cloned().collect::<Vec<_>>().join(","), table.len())
    };
    let is = |columns: &str, rows: usize| (columns.to_owned(), rows);
    assert_eq!(sweep("ablate", &["--kind", "knock-out"]), is("layer,head,query,key", 12 * 15));
    let last = ["--kind", "knock-out", "--each", "head,edge", "--positions", "4", "--layers", "0,2"];
    assert_eq!(sweep("ablate", &last), is("layer,head,query,key", 8 * 5));
    assert_eq!(sweep("ablate", &["--site", "mlp_post", "--each", "neuron", "--layers", "1"]).0, "layer,neuron");
    assert_eq!(sweep("ablate", &["--subsets", "0.1,1.2,2.3"]), is("set,parts", 7));
    assert_eq!(sweep("ablate", &["--subsets", "0.1,1.2,2.3", "--drawn", "3"]), is("set,parts", 3));
    assert_eq!(sweep("patch", &["--site", "pattern", "--each", "head,edge"]), is("layer,head,query,key", 12 * 15));
    assert_eq!(sweep("patch", &["--each", "kv-head,position"]), is("layer,kv_head,position", 3 * 2 * 5));
    assert_eq!(sweep("patch", &["--site", "resid_mid", "--each", "position"]), is("layer,position", 3 * 5));
    let refused = |more: &[&str], part: &str| {
        let tokens = ["ablate", "fixtures/checkpoints/tiny-llama", "--tokens", "[[5,6,7,8,9]]"];
        let message = fails(&[&tokens, more].concat(), 2);
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    };
    refused(&["--heads", "4"], "--heads: expected numbers below 4, found 4");
    refused(&["--positions", "1"], "--positions: expected --each with rows for them");
    refused(&["--each", "key"], "a selector on the site's axes");
    refused(&["--subsets", "0-1"], "expected a head as LAYER.HEAD, found 0-1");
    refused(&["--kind", "knock-out", "--site", "z"], "expected --site scores with it, found z");
    fails(
        &["ablate", "fixtures/checkpoints/tiny-llama", "--tokens", "[[5,6]]", "--subsets", "0.1", "--each", "head"],
        2,
    );
}

#[test]
fn patch_writes_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("patch.parquet");
    let model = path("tiny-llama");
    let common = ["patch", &model, "--clean", "[[5,6,7,8],[9,8,7,6]]", "--corrupt", "[[5,60,7,8],[9,80,7,6]]"];
    let metric = ["--metric", "logit-difference", "--answers", "[[1,2],[3,4]]", "--out", out.to_str().unwrap()];
    for (site, each, columns, rows) in [
        ("z", "head", vec!["layer", "head"], 12),
        ("resid_pre", "position", vec!["layer", "position"], 12),
        ("v", "head,position", vec!["layer", "kv_head", "position"], 24),
    ] {
        for direction in ["denoise", "noise"] {
            let more = ["--site", site, "--each", each, "--direction", direction, "--normalised"];
            done(&[&common[..], &more[..], &metric[..]].concat());
            let table = Table::read(&out).unwrap();
            assert_eq!(table.columns()[..columns.len()], columns);
            assert_eq!(table.len(), rows);
        }
    }
    let wrong = fails(&[&common[..], &["--site", "zz"], &metric[..]].concat(), 2);
    assert!(wrong.contains("zz"), "{wrong}");
}

#[test]
fn circuits_write_tables() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("circuits.parquet");
    let pair = ["from_layer", "from_head", "layer", "head", "metric", "value", "z_score"];
    let spectrum = ["layer", "head", "component", "metric", "value", "baseline", "z_score"];
    let copying = ["layer", "head", "metric", "value"];
    let cases: [(&[&str], &[&str], usize); 7] = [
        (&["--svd", "qk"], &spectrum, 12 * (4 + 8)),
        (&["--svd", "ov", "--null", "shuffled", "--seed", "3"], &spectrum, 12 * (4 + 8)),
        (&["--composition", "q"], &pair, 48),
        (&["--composition", "k", "--raw"], &pair, 48),
        (&["--composition", "v"], &pair, 48),
        (&["--similarity"], &pair, 66 * 6),
        (&["--copying"], &copying, 12 * 3),
    ];
    for model in ["tiny-gpt2", "tiny-llama"] {
        for (question, columns, rows) in cases {
            let more = [question, &["--out", out.to_str().unwrap()]].concat();
            done(&[&["circuits", &path(model)][..], &more].concat());
            let table = Table::read(&out).unwrap();
            assert_eq!(table.columns(), columns, "{model} {question:?}");
            assert_eq!(table.len(), rows, "{model} {question:?}");
        }
    }
    let error = ["layer", "head", "component", "metric", "value", "baseline", "z_score"];
    for which in ["qk", "ov"] {
        let cut = |more: &[&str]| {
            let common = ["circuits", &path("tiny-llama"), "--truncate", which, "--out", out.to_str().unwrap()];
            done(&[&common[..], more].concat());
            Table::read(&out).unwrap()
        };
        let table = cut(&["--ranks", "1,4", "--null", "shuffled"]);
        assert_eq!((table.columns(), table.len()), (error.map(str::to_owned).to_vec(), 12 * 2));
        let text = ["--tokens", "[[5,6,7,8,9],[9,8,7,6,5]]", "--ranks", "2"];
        assert_eq!(cut(&text).len(), 2 * if which == "qk" { 6 } else { 12 });
        assert_eq!(cut(&[&text[..], &["--together", "--random", "1"]].concat()).len(), 2);
    }
    done(&["circuits", &path("tiny-llama"), "--composition", "k", "--offset", "3"]);
    done(&["circuits", &path("tiny-llama"), "--svd", "qk", "--mean-offset", "16", "--dtype", "float64"]);
    done(&["circuits", &path("tiny-bert"), "--composition", "q"]);
    fails(&["circuits", &path("tiny-gpt2")], 2);
    fails(&["circuits", &path("tiny-gpt2"), "--similarity", "--copying"], 2);
    let run = |arguments: &[&str]| fails(&[&["circuits", &path("tiny-gpt2")][..], arguments].concat(), 2);
    assert!(run(&["--composition", "k", "--offset", "3"]).contains("rotary"));
    assert!(run(&["--composition", "v", "--mean-offset", "3"]).contains("QK"));
    assert!(run(&["--similarity", "--seed", "3"]).contains("--svd"));
    assert!(run(&["--similarity", "--tokens", "[[1,2]]"]).contains("--truncate"));
    assert!(run(&["--truncate", "ov", "--together"]).contains("prompts"));
    assert!(run(&["--truncate", "ov", "--tokens", "[[1,2]]", "--ranks", "99"]).contains("d_head"));
    assert!(run(&["--truncate", "ov", "--tokens", "[[1,2]]", "--raw"]).contains("--raw"));
    assert!(run(&["--similarity", "--out", "x.txt"]).contains("x.txt"));
    assert!(fails(&["circuits", &path("tiny-llama"), "--svd", "qk", "--mean-offset", "0"], 2).contains("offset"));
    assert!(fails(&["circuits", &path("tiny-bert"), "--copying"], 2).contains("linear"));
}

#[test]
fn heads_writes_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("heads.parquet");
    let common =
        ["heads", &path("tiny-bert"), "--text", "the cat sat. the head", "mary sat.", "--out", out.to_str().unwrap()];
    let shown = done(&common);
    assert!(shown.contains("previous_token") && shown.contains("prefix_matching"), "{shown}");
    let table = Table::read(&out).unwrap();
    assert_eq!(table.columns(), ["layer", "head", "metric", "value", "baseline", "low", "high", "z_score"]);
    assert_eq!(table.len(), 12 * (16 + 2));
    done(&[&common[..], &["--scores", "back_2,entropy", "--repeats", "0"][..]].concat());
    assert_eq!(Table::read(&out).unwrap().len(), 12 * 2);
    for (measure, metric) in [("jensen-shannon", "jensen_shannon"), ("cka", "cka")] {
        let shown = done(&[&common[..], &["--similarity", measure][..]].concat());
        assert!(shown.contains(metric), "{shown}");
        let table = Table::read(&out).unwrap();
        assert_eq!(table.columns(), ["from_layer", "from_head", "layer", "head", "metric", "value"]);
        assert_eq!(table.len(), 12 * 11 / 2);
    }
    assert!(fails(&[&common[..], &["--scores", "back_0"][..]].concat(), 2).contains("at least 1"));
    assert!(fails(&[&common[..], &["--similarity", "cca"][..]].concat(), 2).contains("positions"));
    fails(&[&common[..], &["--similarity", "cka", "--scores", "entropy"][..]].concat(), 2);
}

#[test]
fn inspect_and_generate() {
    let shown = done(&["inspect", &path("tiny-llama")]);
    for part in ["llama", "2 key/value heads", "RMSNorm", "rotary", "cpu", "pattern.L", "sha256"] {
        assert!(shown.contains(part), "{shown}");
    }
    let json: serde_json::Value = serde_json::from_str(&done(&["inspect", &path("tiny-gpt2"), "--json"])).unwrap();
    assert_eq!(json["config"]["n_layers"], 3);
    let shown = done(&["generate", &path("tiny-gpt2"), "--prompt", "the cat", "--max-new", "5"]);
    assert!(shown.starts_with("the cat") && shown.ends_with('\n'), "{shown}");
    assert_eq!(
        shown,
        done(&["generate", &path("tiny-gpt2"), "--prompt", "the cat", "--max-new", "5", "--temperature", "0"])
    );
    assert!(done(&["completions", "bash"]).contains("activations"));
    assert!(done(&["--help"]).contains("minilm"));
}

/// Prompts are written as by the library: each in turn as text, or as JSON; with edits of every form.
#[test]
fn encoder_decoders_read_a_source() {
    let (folder, model) = (tempfile::tempdir().unwrap(), path("families/t5"));
    let out = folder.path().join("a.safetensors");
    let given = ["--source-tokens", "[[5,6,7],[8,9]]", "--tokens", "[[0,11],[0,12]]"];
    let with = |words: &[&str]| [&words[..2], &given, &words[2..]].concat().join(" ");
    let run = |words: &[&str]| done(&with(words).split(' ').collect::<Vec<_>>());
    let file = out.to_str().unwrap();
    assert!(
        run(&["activations", &model, "--sites", "cross_pattern.*,pattern.0", "--out", file])
            .contains("cross_pattern.2")
    );
    assert_eq!(read_tensors(&out)["cross_pattern.4"].size(), [2, 4, 2, 3]);
    let table = folder.path().join("t.parquet");
    let file = table.to_str().unwrap();
    run(&["ablate", &model, "--site", "cross_z", "--metric", "loss", "--out", file]);
    assert_eq!(Table::read(&table).unwrap().len(), 3 * 4);
    let line = run(&["generate", &model, "--max-new", "2", "--json"]);
    assert_eq!(line.lines().count(), 2);
    let words = ["patch", &model, "--clean", "[[0,11]]", "--corrupt", "[[0,11]]", "--clean-source", "[[5,6]]"];
    let words = [&words[..], &["--corrupt-source", "[[5,7]]", "--site", "memory", "--each", "position", "--out", file]]
        .concat();
    done(&words);
    assert_eq!(Table::read(&table).unwrap().len(), 2);
    assert!(done(&["inspect", &model]).contains("2 of the encoder, then 3 of the decoder"));
    let sites = ["--sites", "logits", "--out", out.to_str().unwrap()];
    assert!(fails(&[&["activations", &model, "--tokens", "[[0]]"][..], &sites].concat(), 2).contains("source"));
    let plain = path("tiny-gpt2");
    let other = [&["activations", &plain, "--tokens", "[[0]]", "--source-tokens", "[[1]]"][..], &sites].concat();
    assert!(fails(&other, 2).contains("no encoder"));
}

#[test]
fn generation_streams_stops_and_steers() {
    use headscope::prelude::*;
    let (gpt2, folder) = (path("tiny-gpt2"), tempfile::tempdir().unwrap());
    let model = Model::load(&gpt2).unwrap();
    let texts = ["the cat", "a dog sat on"];
    let tokens = model.tokens(&texts).unwrap();
    let generate = |more: &[&str]| {
        let words = ["generate", &gpt2, "--max-new", "12", "--prompt", texts[0], texts[1]];
        done(&[&words, more].concat())
    };
    let ids = |more: &[&str]| -> Vec<Continuation> {
        let shown = generate(&[&["--json"], more].concat());
        shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let library =
        |plan: &Plan, span| model.generate(&tokens).max_new(12).plan(plan).span(span).run().unwrap().continuations;
    let plain = library(&Plan::new(), Span::Everywhere);
    assert_eq!(ids(&[]), plain);
    let as_text = |all: &[Continuation]| format!("the cat{}\n\na dog sat on{}\n", all[0].text, all[1].text);
    assert_eq!(generate(&[]), as_text(&plain));
    let stop: String = plain[1].text.chars().skip(2).take(2).collect();
    let stopped = model.generate(&tokens).max_new(12).stop([&stop]).run().unwrap().continuations;
    assert_eq!(generate(&["--stop", &stop]), as_text(&stopped));
    assert!(stopped[1].text.len() < plain[1].text.len());
    assert!(generate(&["--stop", &stop, "--keep-stop"]).ends_with(&format!("{stop}\n")));

    let ablate = |edit: Edit| Plan::new().edit(edit);
    let silent = library(&ablate(Edit::new(Site::Z(1), Action::Zero).head(2)), Span::Written);
    assert_eq!(ids(&["--ablate", "1.2", "--span", "written"]), silent);
    let edits = r#"[{"site": "z.1", "at": {"heads": [2]}, "action": "zero"}]"#;
    assert_eq!(ids(&["--edits", edits, "--span", "written"]), silent);

    let site = Site::ResidPre(2);
    let run = |text: &str| model.run(&model.tokens(&[text]).unwrap(), &Plan::new().tap(site)).unwrap();
    let last = |text: &str| run(text).get(site).unwrap().get(0).get(-1);
    let direction = last("dog") - last("cat");
    let steer = Edit::new(site, Action::Add { key: "d".into(), alpha: -30.0 });
    let steered = library(&ablate(steer).with_tensor("d", site, &direction), Span::Everywhere);
    assert_ne!(steered, plain);
    assert_eq!(ids(&["--steer", "resid_pre.2", "--toward", "dog", "--away", "cat", "--factor", "-30"]), steered);
    let file = folder.path().join("d.safetensors");
    Tensor::write_safetensors(&[("any", &direction)], &file).unwrap();
    assert_eq!(ids(&["--steer", "resid_pre.2", "--direction", file.to_str().unwrap(), "--factor=-30"]), steered);

    // A prompt patched with its own activations is continued as it is; beyond their end there is nothing to patch with.
    let file = folder.path().join("own.safetensors");
    let file = file.to_str().unwrap();
    done(&["activations", &gpt2, "--text", texts[0], "--sites", "resid_post.1,z.0", "--out", file]);
    let patch = r#"[{"site": "resid_post.1", "at": {"prompts": [0]}, "action": {"replace": {"key": "own"}}}]"#;
    let with = format!("own={file}");
    assert_eq!(ids(&["--edits", patch, "--with", &with, "--span", "prompt"])[0].ids, plain[0].ids);
    let words = ["generate", &gpt2, "--prompt", texts[0], "--edits", patch, "--with", &with];
    assert!(fails(&words, 2).contains("an activation that reaches position"));
}

#[test]
fn misuse_exits_with_2_and_failure_with_1() {
    fails(&["frobnicate"], 2);
    fails(&["ablate", &path("tiny-gpt2")], 2);
    fails(
        &["activations", &path("tiny-gpt2"), "--text", "a", "--tokens", "[[1]]", "--sites", "logits", "--out", "x"],
        2,
    );
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("x.safetensors");
    let file = file.to_str().unwrap();
    let run = |tokens: &str, sites: &str, code: i32| {
        fails(&["activations", &path("tiny-gpt2"), "--tokens", tokens, "--sites", sites, "--out", file], code)
    };
    assert!(run("[[1,2]]", "patern.0", 2).contains("did you mean pattern.0"));
    assert!(run("[[1,2]]", "z.-1", 2).contains("did you mean z.0?"));
    assert!(run("[[1,2]]", "pattern.9", 2).contains("layers 0 to 2"));
    assert!(run("[[1,200]]", "logits", 2).contains("200 is out of range"));
    assert!(run("[[1,", "logits", 2).contains("--tokens"));
    assert!(run("@/no/such/file", "logits", 1).contains("/no/such/file"));
    assert!(run("[]", "logits", 2).contains("at least one prompt"));
    assert!(!std::path::Path::new(file).exists(), "a failed run left a file");
}

#[test]
fn attribute_and_paths_write_tables() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("table.parquet");
    let out = out.to_str().unwrap();
    let model = path("tiny-llama");
    let common = [&model, "--clean", "[[5,6,7,8],[9,8,7,6]]", "--corrupt", "[[5,60,7,8],[9,80,7,6]]", "--out", out];
    let metric = ["--metric", "logit-difference", "--answers", "[[1,2],[3,4]]"];
    for method in ["attribution", "integrated-gradients", "atp-star"] {
        let shown = done(&[&["attribute"][..], &common, &metric, &["--method", method, "--exact", "3"]].concat());
        assert!(shown.contains("agreement"), "{shown}");
        let table = Table::read(out).unwrap();
        assert_eq!(table.columns(), ["method", "layer", "head", "metric", "value", "unit", "baseline"]);
        assert_eq!(table.len(), 12 + 3);
    }
    done(&[&["paths"][..], &common, &metric, &["--from", "embed,head", "--to", "query,value,logits"]].concat());
    let table = Table::read(out).unwrap();
    assert_eq!(table.len(), (4 * 4 * 3 + 4 * 2 * 3 + 12) + (4 * 3 + 2 * 3 + 1));
    assert_eq!(table.columns()[..6], ["from_layer", "from_site", "from_head", "layer", "site", "head"]);
    for (method, n) in [("eap", 4), ("eap-ig", 0)] {
        let more = ["--to", "query", "--frozen-mlps", "--method", method, "--exact", &n.to_string()];
        let shown = done(&[&["paths"][..], &common, &metric, &more].concat());
        assert_eq!(shown.contains("agreement"), n > 0, "{shown}");
        assert_eq!(Table::read(out).unwrap().len(), 4 * 4 * 3 + n);
    }
    let free = fails(&[&["paths"][..], &common, &metric, &["--to", "query", "--method", "eap"]].concat(), 2);
    assert!(free.contains("frozen MLPs"), "{free}");
    let wrong = fails(&[&["paths"][..], &common, &metric, &["--layers", "0", "--to", "query"]].concat(), 2);
    assert!(wrong.contains("comes after"), "{wrong}");
    fails(&[&["attribute"][..], &common, &metric, &["--steps", "3"]].concat(), 2);
}

/// Sweeps and paths that were killed in the middle go on where they stopped, and end with the same table.
#[test]
fn killed_sweeps_resume() {
    let prompts = |shift: usize| {
        let row = |prompt: usize| (0..24).map(|p| (p * 7 + prompt * 13 + shift * usize::from(p == 3)) % 90).collect();
        serde_json::to_string(&(0..4).map(row).collect::<Vec<Vec<usize>>>()).unwrap()
    };
    let (clean, corrupt) = (prompts(0), prompts(1));
    let common = ["--clean", &clean, "--corrupt", &corrupt, "--memory", "1"];
    resumes("patch", &[&common[..], &["--site", "z", "--each", "head,position"]].concat());
    resumes("paths", &[&common[..], &["--from", "embed,head,mlp", "--to", "query,key,value,mlp,logits"]].concat());
}

fn resumes(command: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole.csv"), folder.path().join("table.csv"));
    let partial = folder.path().join("table.csv.partial");
    let model = path("tiny-gpt2");
    let (whole_name, out_name) = (whole.to_str().unwrap(), out.to_str().unwrap());
    let as_given = |path: &std::path::Path| -> Vec<&str> {
        let name = if path == out { out_name } else { whole_name };
        [&[command, &model], words, &["--out", name]].concat()
    };
    let run = |out: &std::path::Path, more: &[&str]| done(&[&as_given(out)[..], more].concat());
    run(&whole, &[]);
    assert!(!folder.path().join("whole.csv.partial").exists());
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_headscope")).args(as_given(&out)).spawn().unwrap();
    let lines = || std::fs::read_to_string(&partial).map_or(0, |text| text.lines().count());
    while lines() < 4 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let second = child.try_wait().unwrap().is_none().then(|| headscope(&[&as_given(&out)[..], &["--resume"]].concat()));
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    if let Some(second) = second.filter(|_| running) {
        let said = String::from_utf8(second.stderr).unwrap();
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("process {} is at work on it", child.id())), "{said}");
    }
    if !out.exists() {
        // Without a word on what is to become of them, finished rows stay.
        let before = std::fs::read(&partial).unwrap();
        let refused = fails(&as_given(&out), 2);
        assert!(refused.contains("--resume") && refused.contains("--restart"), "{refused}");
        assert_eq!(std::fs::read(&partial).unwrap(), before);
        // A line that was cut off in the middle counts as not computed.
        let text = std::fs::read_to_string(&partial).unwrap();
        std::fs::write(&partial, &text[..text.len() - 3]).unwrap();
        let other = fails(&["ablate", &model, "--tokens", "[[1,2]]", "--out", out.to_str().unwrap(), "--resume"], 1);
        assert!(other.contains("another one"), "{other}");
        // A row that was edited is named, and computed again.
        let text = std::fs::read_to_string(&partial).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = lines[1].find("\"bits\":[").unwrap() + 8;
        let digit = if lines[1].as_bytes()[at] == b'1' { "2" } else { "1" };
        lines[1].replace_range(at..=at, digit);
        std::fs::write(&partial, lines.join("\n") + "\n").unwrap();
        let resumed = headscope(&[&as_given(&out)[..], &["--resume"]].concat());
        let said = String::from_utf8(resumed.stderr).unwrap();
        assert_eq!(resumed.status.code(), Some(0), "{said}");
        assert!(said.contains("table.csv.partial, line 2: damaged or edited"), "{said}");
    }
    assert!(!folder.path().join("table.csv.lock").exists());
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&out).unwrap());
    assert!(!partial.exists());
    let shown = run(&out, &["--explain"]);
    assert!(shown.contains("times as many"), "{shown}");
    std::fs::write(&partial, "what another run left").unwrap();
    run(&out, &["--restart"]);
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&out).unwrap());
}

/// While a process holds a table's place, every command that writes tables stops at once.
#[test]
fn a_table_is_computed_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("table.csv");
    let held = Table::reserve(&out).unwrap();
    let (model, out) = (path("tiny-bert"), out.to_str().unwrap());
    let text = ["--text", "the cat sat", "--out", out];
    let pair = ["--clean", "[[1,2]]", "--corrupt", "[[1,3]]", "--metric", "embedding-distance", "--out", out];
    let calls: [(&str, &[&str]); 6] = [
        ("ablate", &text),
        ("heads", &text),
        ("information", &text),
        ("patch", &pair),
        ("attribute", &pair),
        ("paths", &pair),
    ];
    for (command, words) in calls {
        let said = fails(&[&[command, &model][..], words].concat(), 1);
        assert!(said.contains(&format!("process {} is at work on it", std::process::id())), "{command}: {said}");
    }
    drop(held);
    done(&[&["heads", &model][..], &text].concat());
}

/// Calls that are at fault, over every command: the exit code, and what the message says of what was expected. 1 is for what
/// is no fault of the call: a file that is not there or damaged.
#[test]
fn bad_command_lines_say_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let arrays = folder.path().join("arrays.safetensors");
    let column = tch::Tensor::randn([40], (Kind::Float, tch::Device::Cpu));
    tch::Tensor::write_safetensors(&[("x", &column), ("y", &column.sin())], &arrays).unwrap();
    let arrays = arrays.to_str().unwrap();
    let damaged = file("damaged.safetensors", b"no tensors");
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::copy(fixture("tiny-gpt2").join("config.json"), broken.join("config.json")).unwrap();
    std::fs::write(broken.join("model.safetensors"), b"cut off").unwrap();
    let wide_eps = |eps: &str, name: &str| {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        let config = std::fs::read_to_string(fixture("tiny-gpt2").join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["layer_norm_epsilon"] = serde_json::from_str(eps).unwrap();
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
        std::fs::copy(fixture("tiny-gpt2").join("model.safetensors"), to.join("model.safetensors")).unwrap();
        to.to_str().unwrap().to_owned()
    };
    let (eps, huge) = (wide_eps("33", "eps"), wide_eps("1e308", "huge"));
    let (gpt2, llama, bert) = (path("tiny-gpt2"), path("tiny-llama"), path("tiny-bert"));
    let (encoder, out) = (path("tiny-bert-encoder"), folder.path().join("never.csv").to_str().unwrap().to_owned());
    let (broken, experiment) = (broken.to_str().unwrap(), file("experiment.json", b"{}"));
    let lines = format!(
        r#"
        2 | inspect {gpt2} --device xx | cpu, cuda or cuda:N
        2 | inspect {gpt2} --device cuda:99 | one that is there: cpu
        2 | inspect {gpt2} --dtype int8 | bfloat16
        2 | inspect | <MODEL>
        2 | frobnicate | subcommand
        1 | inspect /no/such/model | /no/such/model
        1 | inspect {broken} | model.safetensors
        1 | inspect {eps} | norm_eps: expected a number from 0 to below 1, found 33
        1 | inspect {huge} | norm_eps
        2 | activations {gpt2} --tokens [[1,2]] --sites zz --out {out} | unknown site `zz`
        2 | activations {gpt2} --tokens [1,2] --sites z.0 --out {out} | --tokens: expected a list of lists
        2 | activations {gpt2} --tokens [[]] --sites z.0 --out {out} | at least one token
        2 | activations {gpt2} --tokens [[-1]] --sites z.0 --out {out} | less than
        2 | activations {gpt2} --text a --tokens [[1]] --sites z.0 --out {out} | --text
        2 | activations {bert} --tokens [[1]] --sites resid_pre.0,z.7 --out {out} | layers 0 to 2
        1 | activations {gpt2} --text-file /no/such/file --sites z.0 --out {out} | /no/such/file
        1 | activations {gpt2} --tokens [[1]] --sites z.0 --out /no/such/folder/x | /no/such/folder
        2 | ablate {gpt2} | --text
        2 | ablate {gpt2} --tokens [[1,2]] --out x.txt | .parquet, .csv or .json
        1 | ablate {gpt2} --tokens [[1,2]] --out /no/such/folder/x.csv | /no/such/folder
        2 | ablate {gpt2} --tokens [[1,2]] --memory 0 --out {out} | 1..
        2 | ablate {gpt2} --tokens [[1,2]] --site zz | unknown site `zz`
        2 | ablate {gpt2} --tokens [[1,2]] --site z.-1 | did you mean z.0?
        2 | ablate {gpt2} --tokens [[1,2]] --metric logit-difference | --answers
        2 | ablate {gpt2} --tokens [[1,2]] --metric rank | --answers
        2 | ablate {gpt2} --tokens [[1,2]] --metric logit-difference --answers [1] | pairs
        2 | ablate {gpt2} --tokens [[1,2]] --metric logit-difference --answers [[1,1]] | two different tokens
        2 | ablate {gpt2} --tokens [[1,2]] --metric logit --answers [1,2] | one for each of 1 prompts
        2 | ablate {gpt2} --tokens [[1,2]] --metric logit --answers [999] | less than
        2 | ablate {gpt2} --tokens [[1,2]] --metric logit --answers nonsense | --answers: expected a list
        2 | ablate {bert} --tokens [[1,2]] --metric logit --correct nosuchword | a single token
        2 | ablate {gpt2} --tokens [[1,2]] --answers [[1,2]] | --metric logit
        2 | ablate {gpt2} --tokens [[1,2]] --seed 1 | --kind resample
        2 | ablate {gpt2} --tokens [[1,2]] --reference a | --kind mean
        2 | ablate {gpt2} --tokens [[1,2]] --resume | --out
        2 | ablate {gpt2} --tokens [[1,2]] --resume --restart --out {out} | cannot be used with
        2 | ablate {gpt2} --tokens [[1,2]] --heads 4 | below 4, found 4
        2 | ablate {gpt2} --tokens [[1,2]] --heads -1 | -1
        2 | ablate {gpt2} --tokens [[1,2]] --subsets 0.0,1.1,2.9 --drawn 2 | out of range
        2 | ablate {gpt2} --tokens [[1,2]] --subsets 0.0,1.1 --drawn 99999999999 | subsets
        2 | ablate {encoder} --tokens [[1,2]] --metric loss | embedding_distance
        2 | patch {gpt2} --clean [[1,2]] --corrupt [[1]] --site z | of the same lengths
        2 | patch {gpt2} --clean [[1,2]] --corrupt nonsense --site z | --corrupt: expected a JSON list
        2 | patch {gpt2} --clean [[1,2]] --corrupt [[1,3]] --site pattern --each neuron | axes
        2 | attribute {gpt2} --clean [[1,2]] --corrupt [[1,3]] --method integrated-gradients --steps 0 | at least 1
        2 | attribute {gpt2} --clean [[1,2]] --corrupt [[1,3]] --method integrated-gradients --steps 9999999999 | steps: 9999999999 would take
        2 | attribute {gpt2} --clean [[1,2]] --corrupt [[1,3]] --steps 3 | --method integrated-gradients
        2 | attribute {gpt2} --clean [[1,2]] --corrupt [[1,3]] --metric rank --answers [3] | gradient
        2 | paths {gpt2} --clean [[1,2]] --corrupt [[1,3]] --exact 3 | --method eap
        2 | paths {gpt2} --clean [[1,2]] --corrupt [[1,3]] --method eap | frozen MLPs
        2 | paths {gpt2} --clean [[1,2]] --corrupt [[1,3]] --frozen-mlps --method eap-ig --steps 9999999999 | steps: 9999999999 would take
        2 | paths {gpt2} --clean [[1,2]] --corrupt [[1,3]] --layers 9 | receiver that comes after
        2 | circuits {gpt2} | --svd
        2 | circuits {gpt2} --similarity --out x.txt | .parquet, .csv or .json
        2 | circuits {llama} --truncate qk --ranks 0,99 | ranks from 1 to d_head = 8, found 0
        2 | circuits {llama} --truncate qk --ranks 1,99 --tokens [[1,2]] | below d_head = 8, found 99
        2 | circuits {gpt2} --composition k --offset 3 | rotary positions, found learned
        2 | circuits {llama} --svd qk --mean-offset 0 | at least one
        2 | circuits {llama} --svd qk --mean-offset 4000000000 | --mean-offset: expected at most
        2 | heads {gpt2} --tokens [[1,2]] --repeats 99999999999 | would take
        2 | heads {gpt2} --tokens [[1,2]] --repeat-length 100000 | length
        2 | heads {gpt2} --tokens [[1,2]] --repeat-length 1 | at least 2
        2 | heads {gpt2} --tokens [[1,2]] --scores back_0 | at least 1
        2 | heads {gpt2} --tokens [[1,2]] --scores nonsense | nonsense
        2 | heads {gpt2} --tokens [[1,2]] --out x.txt | .parquet, .csv or .json
        2 | roles {bert} | --conllu
        1 | roles {bert} --conllu /no/such/file | /no/such/file
        2 | roles {bert} --gap /no/such/file --least -1 | -1
        2 | information {bert} --tokens [[1,2]] --target nonsense | previous-token
        2 | information {bert} --tokens [[1,2]] --target role | --conllu
        2 | information {bert} | --conllu
        2 | information {bert} --tokens [[1,2]] --classes 0 | classes
        2 | information {bert} --tokens [[1,2]] --level 2 | level
        2 | information {bert} --tokens [[1,2]] --other 0,3 | LAYER.HEAD
        2 | mi {arrays} --x x --y y --k 0 | k: expected
        2 | mi {arrays} --x x --y nope | there is no array `nope`
        2 | mi {arrays} --x x --y y --level 7 | level
        2 | mi {arrays} --x x --y y --estimator guess | ksg
        2 | mi {arrays} --x x --y y --estimator gaussian --k 3 | neighbours
        1 | mi /no/such/file --x x --y y | /no/such/file
        1 | mi {damaged} --x x --y y | safetensors
        2 | generate {bert} --prompt a | causal
        2 | generate {gpt2} --prompt a --temperature=-1 | temperature: expected
        2 | generate {gpt2} --prompt a --top-k 3 | a temperature above 0
        2 | generate {gpt2} | --prompt
        2 | generate {gpt2} --prompt a --tokens [[1]] | cannot be used with
        2 | generate {gpt2} --prompt a --max-new 0 | max_new: expected at least 1
        2 | generate {gpt2} --prompt a --keep-stop | --stop
        2 | generate {gpt2} --prompt a --stop= | stop: expected texts that are not empty
        2 | generate {gpt2} --tokens [[99]] | out of range
        2 | generate {gpt2} --prompt a --ablate 9.0 | layers 0 to 2
        2 | generate {gpt2} --prompt a --ablate 1.9 | head 9 is out of range
        2 | generate {gpt2} --prompt a --ablate 1 | LAYER.HEAD
        2 | generate {gpt2} --prompt a --steer resid_pre.1 | --toward
        2 | generate {gpt2} --prompt a --steer resid_per.1 --toward b | did you mean resid_pre.1
        2 | generate {gpt2} --prompt a --steer pattern.1 --toward b | a position axis
        2 | generate {gpt2} --prompt a --factor 2 | --steer
        2 | generate {gpt2} --prompt a --away b | --toward
        1 | generate {gpt2} --prompt a --steer resid_pre.1 --direction /no/such/file | /no/such/file
        2 | generate {gpt2} --prompt a --edits nonsense | --edits: expected a list
        2 | generate {gpt2} --prompt a --edits [] --with x | KEY=FILE
        1 | generate {gpt2} --prompt a --edits [] --with x=/no/such/file | /no/such/file
        2 | generate {gpt2} --prompt a --span written | --ablate
        2 | generate {gpt2} --prompt a --max-new x | x
        2 | lab run E99 | E1, E2
        2 | lab show E99 | E1, E2
        2 | lab run E1 --out {out} --threads 0 | 1..
        2 | lab run E1 --out {out} --runs 0 | runs
        2 | lab run E1 --out {out} --runs 99999999999 | runs
        2 | lab run E1 --out {out} --shard 4/3 | K from 1 to N
        1 | lab run {experiment} --out {out} | lab show E1 --json
        2 | lab slurm E1 --shards 0 | 1..
        2 | lab train nonsense --out {out} | induction
        2 | lab train induction --out {out} --steps 99999999999 | steps: 99999999999 would take
        2 | lab train induction --out {out} --trace nonsense | expected one of
        1 | lab verdict /no/such/folder | /no/such/folder
        2 | lab report | <DIR>
        2 | completions nonsense | bash
        "#
    );
    let check = |line: &str| {
        let [code, words, says] = line.split(" | ").collect::<Vec<_>>().try_into().unwrap();
        let words: Vec<&str> = words.split(' ').collect();
        let said = fails(&words, code.parse().unwrap());
        assert!(said.contains(says), "{line}\nsays: {said}");
        for debug in ["Some(", "None", "Cuda(", "Cpu]", "Learned", ".headscope-", "Err(", "{"] {
            assert!(!said.contains(debug), "{line}\nsays {debug}: {said}");
        }
    };
    let lines: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for lines in lines.chunks(lines.len().div_ceil(cores)) {
            scope.spawn(move || lines.iter().for_each(|line| check(line)));
        }
    });
    assert!(!std::path::Path::new(&out).exists(), "a call that was refused left a table");
}

#[test]
fn mi_finds_the_truth_and_refuses_nonsense() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("arrays.safetensors");
    let (x, y) = headscope::information::Truth::Normal { rho: 0.75 }.sample(4000, 0).unwrap();
    let (wide, short) = headscope::information::Truth::Dense { n: 50, rho: 0.5 }.sample(300, 0).unwrap();
    let tensor = |array: &ndarray::Array2<f64>| {
        let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
        tch::Tensor::from_slice(&array.iter().copied().collect::<Vec<_>>()).reshape(shape)
    };
    let constant = tch::Tensor::ones([4000, 2], (Kind::Float, tch::Device::Cpu));
    let float = tensor(&x).to_kind(Kind::Float);
    let tensors = [
        ("x", float),
        ("y", tensor(&y).flatten(0, -1)),
        ("wide", tensor(&wide)),
        ("short", tensor(&short)),
        ("c", constant),
    ];
    tch::Tensor::write_safetensors(&tensors, &file).unwrap();
    let file = file.to_str().unwrap();
    let ask = |x: &'static str, y: &'static str, more: &[&str]| {
        let words = [&["mi", file, "--x", x, "--y", y, "--json"][..], more].concat();
        serde_json::from_str::<serde_json::Value>(&done(&words)).unwrap()
    };
    for estimator in ["ksg", "gaussian", "binned", "cca"] {
        let found = ask("x", "y", &["--estimator", estimator, "--seed", "1"]);
        let (nats, low, high) = (found["estimate"].as_f64(), found["low"].as_f64(), found["high"].as_f64());
        assert!((nats.unwrap() - 0.41334).abs() < 0.05 && low < nats && nats < high, "{found}");
        assert_eq!((found["unit"].as_str(), found["warnings"].as_array().unwrap().len()), (Some("nats"), 0), "{found}");
        let hopeless = ask("wide", "short", &["--estimator", estimator]);
        assert!(!hopeless["warnings"].as_array().unwrap().is_empty(), "{hopeless}");
    }
    assert!(
        done(&["mi", file, "--x", "x", "--y", "y", "--k", "3"]).contains("by ksg, 4000 samples, dimensions 1 and 1")
    );
    for (y, message) in
        [("c", "constant"), ("wide", "as many samples"), ("x", "column 0 of x"), ("nope", "one of c, short")]
    {
        let said = fails(&["mi", file, "--x", "x", "--y", y], 2);
        assert!(said.contains(message), "{said}");
    }
    assert!(
        fails(&["mi", file, "--x", "x", "--y", "y", "--estimator", "gaussian", "--k", "3"], 2).contains("neighbours")
    );
    fails(&["mi", file, "--x", "x", "--y", "y", "--estimator", "guess"], 2);
}

/// A reader that has seen enough ends the command by its signal, without a word, as it ends other commands.
#[test]
#[cfg(unix)]
fn a_closed_pipe_ends_the_command_quietly() {
    use std::os::unix::process::ExitStatusExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_headscope"));
    command
        .args(["inspect", &path("tiny-gpt2")])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.signal(), output.stderr), (Some(13), vec![])); // SIGPIPE
}
