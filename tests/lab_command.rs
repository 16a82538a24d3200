//! `headscope lab` as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use headscope::lab::{Experiment, Grid};

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headscope")).arg("lab").args(arguments).output().unwrap()
}

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = lab(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(arguments: &[&str], code: i32) -> String {
    let output = lab(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// An experiment file whose cells need no training: keys on circles of some sizes. Its one sub-claim is that the attention of
/// the first has rank 2, which is wrong: it has as many as there are keys.
fn experiment(folder: &Path, sizes: &[usize]) -> String {
    let cell =
        |n: &usize| serde_json::json!({"name": format!("circle{n}"), "work": {"circle": {"n": n, "beta": 90.5}}});
    let case = serde_json::json!({
        "name": "circle", "terms": [{"cell": format!("circle{}", sizes[0]), "weight": 1.0}], "level": 2.0,
    });
    let claim = serde_json::json!({
        "id": "C4a",
        "text": "Attention by logits of rank 2 has rank 2",
        "form": "directional",
        "endpoint": {"metric": "pattern_rank", "expect": "below", "delta": 0.5, "scale": "half a rank"},
        "cases": [case],
    });
    written(folder, sizes.iter().map(cell).collect(), claim)
}

/// An experiment file as E5's was printed, with other cells, one sub-claim, and looks at 8, 12 and 16 seeds.
fn written(folder: &Path, cells: Vec<serde_json::Value>, claim: serde_json::Value) -> String {
    let mut experiment: serde_json::Value = serde_json::from_str(&done(&["show", "E5", "--json"])).unwrap();
    experiment["cells"] = cells.into();
    experiment["sub_claims"] = vec![claim].into();
    experiment.as_object_mut().unwrap().remove("first_predictions");
    let looks = [(8, 0.01), (12, 0.015), (16, 0.025)].map(|(n, alpha)| serde_json::json!({"seeds": n, "alpha": alpha}));
    experiment["rule"]["looks"] = looks.to_vec().into();
    experiment["runs"] = 8.into();
    let path = folder.join("mine.json");
    std::fs::write(&path, experiment.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every file of a folder, by name, but for those that say how long it took.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for inner in [folder.to_owned(), folder.join("cells")] {
        for entry in std::fs::read_dir(inner).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            let name = entry.file_name().unwrap().to_str().unwrap();
            // A killed process leaves the hidden file that it was writing.
            if !name.starts_with('.') && !name.ends_with(".seconds") && name != "times.json" {
                let name = entry.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                all.insert(name, std::fs::read(entry).unwrap());
            }
        }
    }
    all
}

#[test]
fn list_and_show_say_what_there_is() {
    let list = done(&["list"]);
    for name in Experiment::NAMES.into_iter().chain(["induction", "english"]) {
        assert!(list.lines().any(|line| line.trim_start().starts_with(name)), "{name}: {list}");
    }
    let declared = Experiment::named("E1", Grid::Small).unwrap();
    let line = list.lines().find(|line| line.contains(" E1 ")).unwrap();
    for claim in &declared.sub_claims {
        assert!(line.contains(&claim.id), "{}: {line}", claim.id);
    }
    let shown = done(&["show", "E1"]);
    let mut parts = vec!["Do narrow heads", "looks at 16 seeds at 0.01", "16 runs", "gated-heads4-width4"];
    for claim in &declared.sub_claims {
        parts.extend([claim.id.as_str(), &claim.text, &claim.endpoint.scale]);
        parts.extend(claim.gates.iter().map(|gate| gate.text.as_str()));
    }
    for part in parts {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(done(&["show", "E1", "--grid", "full"]).contains("gated-heads4-width11") && !shown.contains("width11"));
    assert!(done(&["show", "induction"]).contains("\"language\""));
    assert!(fails(&["show", "E99"], 2).contains("E8"));
    assert!(fails(&["run", "E99"], 2).contains("E8"));
}

/// What `show --json` prints is the experiment, and is read as one.
#[test]
fn a_printed_experiment_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed.json");
    for (name, grid) in [("E1", "small"), ("E3", "full")] {
        let printed = done(&["show", name, "--grid", grid, "--json"]);
        let declared = if grid == "small" { Grid::Small } else { Grid::Full };
        let declared = Experiment::named(name, declared).unwrap();
        assert_eq!(serde_json::from_str::<Experiment>(&printed).unwrap(), declared);
        std::fs::write(&path, &printed).unwrap();
        assert_eq!(done(&["show", path.to_str().unwrap(), "--json"]), printed);
        assert_eq!(done(&["show", path.to_str().unwrap()]), done(&["show", name, "--grid", grid]));
    }
}

/// Shards of a run, one of them killed in the middle and resumed, are judged as one run is.
#[test]
fn shards_a_kill_and_a_resume_leave_the_bytes_of_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let mine = experiment(folder.path(), &[5, 6, 60, 61, 62, 63, 64, 65, 66, 67, 7, 8]);
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (whole, parts) = (place("whole"), place("parts"));
    assert!(done(&["run", &mine, "--out", &whole]).contains("12 cells"));

    let arguments = ["lab", "run", &mine, "--out", &parts, "--threads", "1", "--shard", "1/2"];
    let mut killed =
        Command::new(env!("CARGO_BIN_EXE_headscope")).args(arguments).stderr(Stdio::null()).spawn().unwrap();
    let first = folder.path().join("parts/cells/circle5.parquet");
    let start = Instant::now();
    while !first.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(first.exists());

    assert!(fails(&arguments[1..], 2).contains("resume"));
    done(&[&arguments[1..], &["--resume"]].concat());
    assert!(done(&["verdict", &parts]).contains("6 of 12 cells are missing"));
    assert!(done(&["run", &mine, "--out", &parts, "--shard", "2/2"]).contains("lab verdict"));

    let verdict = done(&["verdict", &whole]);
    assert!(verdict.contains("\n  C4a  fails ") && verdict.contains("3.000 [3.000, 3.000]"), "{verdict}");
    let json: serde_json::Value = serde_json::from_str(&done(&["verdict", &parts, "--json"])).unwrap();
    let judged = &json[0]["sub_claims"][0];
    assert_eq!((&judged["learned"]["verdict"], &judged["all"]["verdict"]), (&"fails".into(), &"fails".into()));
    assert_eq!(judged["learned"]["findings"][0]["interval"]["estimate"], 3.0);
    assert_eq!(files(&folder.path().join("whole")), files(&folder.path().join("parts")));

    // The union alone is judged alike, and a folder of folders stands for them.
    let union = folder.path().join("all/union");
    std::fs::create_dir_all(&union).unwrap();
    for name in ["experiment.json", "results.parquet", "results.parquet.provenance.json"] {
        std::fs::copy(folder.path().join("whole").join(name), union.join(name)).unwrap();
    }
    assert_eq!(done(&["verdict", &place("all")]), verdict);
    let page = place("page.html");
    done(&["report", &place("all"), "--out", &page]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("Attention by logits of rank 2") && page.contains("<b class=\"fails\">fails</b>"), "{page}");
}

/// A second look adds seeds to the cell that the first one left open, and the verdict is then another one; whoever asks for a
/// look that the rule does not have is told how many there are.
#[test]
fn a_second_look_is_taken_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let cell = |(name, steps): (&str, usize)| {
        let work = serde_json::json!({"d_model": 4, "width": 1, "decay": 0.7, "steps": steps, "learning_rate": 0.4});
        serde_json::json!({"name": name, "work": {"regression": work}})
    };
    let mine = |level: f64| {
        let claim = serde_json::json!({
            "id": "C9", "text": "The loss is above the level", "form": "directional",
            "endpoint": {"metric": "loss", "expect": "above", "delta": 0.1, "scale": "a tenth of the start"},
            "cases": [{"name": "only", "terms": [{"cell": "one", "weight": 1.0}], "level": level}],
        });
        written(folder.path(), [("one", 14), ("other", 15)].map(cell).to_vec(), claim)
    };
    let judged = |out: &str| {
        let json: serde_json::Value = serde_json::from_str(&done(&["verdict", out, "--json"])).unwrap();
        json[0]["sub_claims"][0]["learned"].clone()
    };
    let (before, out) = (place("before"), place("out"));
    let told = done(&["run", &mine(-9.0), "--out", &before, "--looks", "2"]);
    assert!(told.contains("2 cells computed") && !told.contains("open:"), "decided at the first look: {told}");
    let found = judged(&before);
    assert_eq!((&found["verdict"], &found["looks"]), (&"holds".into(), &1.into()));

    // With delta at the mean of the first look, that look decides nothing.
    let mine = mine(found["findings"][0]["interval"]["estimate"].as_f64().unwrap() - 9.0 - 0.1);
    let told = done(&["run", &mine, "--out", &out]);
    assert!(told.contains("open: C9 (--resume --looks 2 adds seeds)"), "{told}");
    let found = judged(&out);
    assert_eq!((&found["verdict"], &found["looks"]), (&"open".into(), &1.into()));
    assert!(fails(&["run", &mine, "--out", &out, "--looks", "2"], 2).contains("resume"));
    assert!(fails(&["run", &mine, "--out", &out, "--resume", "--looks", "4"], 2).contains("1 to 3"));
    let told = done(&["run", &mine, "--out", &out, "--resume", "--looks", "2"]);
    assert!(told.contains("1 cells computed"), "{told}");
    assert!(
        Path::new(&out).join("cells/one+2.parquet").exists() && !Path::new(&out).join("cells/other+2.parquet").exists()
    );
    let found = judged(&out);
    assert_eq!((&found["looks"], &found["findings"][0]["seeds"]), (&2.into(), &12.into()));
    let times: BTreeMap<String, f64> =
        serde_json::from_slice(&std::fs::read(Path::new(&out).join("times.json")).unwrap()).unwrap();
    assert_eq!(times.keys().collect::<Vec<_>>(), ["one", "one+2", "other"]);
}

/// A declaration whose threshold no effect can reach, or none can miss, is refused before anything is computed.
#[test]
fn a_declaration_that_cannot_succeed_or_fail_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    let cell = serde_json::json!({"name": "circle5", "work": {"circle": {"n": 5, "beta": 90.5}}});
    for (expect, delta, level, cannot) in [
        ("above", 0.7, 0.5, "0.7, so that case each query cannot succeed"),
        ("below", 0.75, 0.25, "0.75, so that case each query cannot fail"),
    ] {
        let claim = serde_json::json!({
            "id": "C4a", "text": "Each query has a target", "form": "directional",
            "endpoint": {"metric": "target_weight", "expect": expect, "delta": delta, "scale": "a share"},
            "cases": [{"name": "each query", "terms": [{"cell": "circle5", "weight": 1.0}], "level": level}],
        });
        let mine = written(folder.path(), vec![cell.clone()], claim);
        for arguments in [vec!["run", &mine, "--out", &out], vec!["show", &mine], vec!["slurm", &mine]] {
            let (error, range) = (fails(&arguments, 2), format!("{} to {}", -level, 1.0 - level));
            for part in ["sub-claim C4a", "target_weight", cannot, &range] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
    assert!(!Path::new(&out).exists(), "nothing was begun");
}

/// Results of the first round get the verdicts of its rule, in words, as JSON and on the page.
#[test]
fn results_of_the_first_round_are_judged_by_its_rule() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap().to_owned();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks/results/first-round/E5");
    for name in ["experiment.json", "results.parquet", "results.parquet.provenance.json"] {
        std::fs::copy(committed.join(name), folder.path().join(name)).unwrap();
    }
    let verdict = done(&["verdict", &place]);
    assert!(verdict.contains("by the first rule, for comparison: C4 inconclusive"), "{verdict}");
    assert!(verdict.contains("C4 refuted: Logits of rank 2") && !verdict.contains("note:"), "{verdict}");
    let json: serde_json::Value = serde_json::from_str(&done(&["verdict", &place, "--json"])).unwrap();
    let verdicts: Vec<&str> =
        json[0]["first"].as_array().unwrap().iter().map(|p| p["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["refuted", "inconclusive", "inconclusive"]);
    assert_eq!((&json[0]["sub_claims"], &json[0]["first_rule"]["least_seeds"]), (&serde_json::json!([]), &8.into()));
    assert!(!folder.path().join("times.json").exists(), "nobody noted how long that took");
    let page = folder.path().join("page.html");
    done(&["report", &place, "--out", page.to_str().unwrap()]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("The same tables by the first rule") && page.contains("<td>refuted</td>"), "{page}");
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    assert!(fails(&["verdict", empty], 2).contains("experiment.json"));
    assert!(fails(&["verdict", "no-such-folder"], 1).contains("no-such-folder"));
    fails(&["verdict"], 2);
    fails(&["run", "E1", "--shard", "4/3"], 2);
    fails(&["run", "E1", "--grid", "huge"], 2);
    let mine = experiment(folder.path(), &[5]);
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    assert!(fails(&["run", &mine, "--out", &out, "--runs", "0"], 2).contains("runs"));
    assert!(fails(&["run", &mine, "--out", &out, "--threads", "0"], 2).contains("--threads"));
    let last = u64::MAX.to_string();
    assert!(fails(&["run", &mine, "--out", &out, "--seed", &last], 2).contains("seed"));
    done(&["run", &mine, "--out", &out]);
    assert!(fails(&["run", &mine, "--out", &out, "--seed", "1"], 2).contains("experiment.json"));
    let cell = folder.path().join("out/cells/circle5.parquet");
    let whole = std::fs::read(&cell).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [b"no table".to_vec(), flipped] {
        std::fs::write(&cell, &damaged).unwrap();
        for arguments in [vec!["verdict", &out], vec!["report", &out]] {
            let error = fails(&arguments, 1);
            assert!(error.contains("circle5.parquet") && error.contains("damaged"), "{error}");
        }
        let resumed = lab(&["run", &mine, "--out", &out, "--resume"]);
        let told = String::from_utf8(resumed.stderr).unwrap();
        assert!(resumed.status.success() && told.contains("cell circle5 is computed again"), "{told}");
        assert_eq!(std::fs::read(&cell).unwrap(), whole);
    }
    done(&["verdict", &out]);
    std::fs::write(&mine, "{}").unwrap();
    assert!(fails(&["run", &mine], 1).contains("lab show E1 --json"));
}

/// Tables of anyone's, without a checksum, are judged, and the verdict notes it.
#[test]
fn tables_of_others_are_judged() {
    let folder = tempfile::tempdir().unwrap();
    let mine = experiment(folder.path(), &[5]);
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    done(&["run", &mine, "--out", &out]);
    let verdict = done(&["verdict", &out]);
    assert!(verdict.contains("C4a fails") && !verdict.contains("note:"), "{verdict}");
    std::fs::remove_file(folder.path().join("out/cells/circle5.parquet.provenance.json")).unwrap();
    let verdict = done(&["verdict", &out]);
    assert!(verdict.contains("C4a fails") && verdict.contains("note: no checksum"), "{verdict}");
    let page = folder.path().join("page.html").to_str().unwrap().to_owned();
    done(&["report", &out, "--out", &page]);
    assert!(std::fs::read_to_string(page).unwrap().contains("no checksum"));
}

/// Of two processes with one folder the second stops at once and names the first; a shard without a cell in common does not;
/// a killed process keeps nobody out.
#[test]
fn two_processes_do_not_compute_the_same_cells() {
    let folder = tempfile::tempdir().unwrap();
    let sizes: Vec<usize> = [5].into_iter().chain(300..340).collect();
    let mine = experiment(folder.path(), &sizes);
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    let run = ["run", &mine, "--out", &out, "--threads", "1"];
    let mut first = Command::new(env!("CARGO_BIN_EXE_headscope"))
        .arg("lab")
        .args([&run[..], &["--shard", "1/2"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (begun, cell) = (Instant::now(), folder.path().join("out/cells/circle5.parquet"));
    while !cell.exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let holder = format!("process {}", first.id());
    for shard in ["1/1", "1/2", "3/4"] {
        let error = fails(&[&run[..], &["--resume", "--shard", shard]].concat(), 1);
        assert!(error.contains(&holder), "{shard}: {error}");
    }
    assert!(first.try_wait().unwrap().is_none(), "the first was to be at work all the while");
    assert!(done(&[&run[..], &["--shard", "40/41"]].concat()).contains("1 cells"), "a cell of the other half");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(done(&[&run[..], &["--resume", "--shard", "1/41"]].concat()).contains("0 cells"));
}

/// Only finished cells are said to be kept.
#[test]
fn kept_cells_are_those_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    // A circle of two keys is refused when it is computed.
    let mine = experiment(folder.path(), &[2, 5, 6]);
    let shard = |shard: &'static str| ["run", &mine, "--out", &out, "--threads", "1", "--shard", shard];
    let error = String::from_utf8(lab(&shard("1/3")).stderr).unwrap();
    assert!(error.contains("cell `circle2`") && !error.contains("kept"), "{error}");
    done(&shard("2/3"));
    let error = String::from_utf8(lab(&shard("1/3")).stderr).unwrap();
    assert!(error.contains("cell `circle2`") && error.contains("1 finished cells are kept in"), "{error}");
}

#[test]
fn the_slurm_script_is_one() {
    let script = done(&["slurm", "E1", "--grid", "full", "--shards", "8"]);
    assert!(script.starts_with("#!/") && script.contains("#SBATCH --array=1-8"), "{script}");
    assert!(script.contains("lab run 'E1' --grid full --shard") && !script.contains("{ID}"), "{script}");
    assert!(script.contains("--resume --looks \"${LOOKS:-1}\""), "{script}");
    let mut shell = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    // Another experiment has another folder, and is what the job runs.
    let folder = |script: &str| script.lines().find(|line| line.starts_with("OUT=")).unwrap().to_owned();
    assert!(folder(&script).contains("headscope-lab/E1-full}"), "{script}");
    let mut folders = std::collections::BTreeSet::from([folder(&script)]);
    for change in [vec!["--seed", "5"], vec!["--runs", "16"], vec!["--seed", "5", "--runs", "16"]] {
        let script = done(&[&["slurm", "E1", "--grid", "full"], change.as_slice()].concat());
        assert!(script.contains(&format!("lab run 'E1' --grid full {} --shard", change.join(" "))), "{script}");
        assert!(folders.insert(folder(&script)), "{script}");
    }
    let place = tempfile::tempdir().unwrap();
    let spaced = place.path().join("my own.json");
    std::fs::rename(experiment(place.path(), &[5]), &spaced).unwrap();
    let script = done(&["slurm", spaced.to_str().unwrap()]);
    assert!(script.contains(&format!("lab run '{}' --grid", spaced.display())), "{script}");
}
