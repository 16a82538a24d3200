//! `headscope lab` as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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

/// An experiment file whose cells need no training: keys on circles of some sizes. Its one prediction is that the attention of
/// the first has rank 2, which is wrong: it has as many as there are keys.
fn experiment(folder: &Path, sizes: &[usize]) -> String {
    let mut experiment: serde_json::Value = serde_json::from_str(&done(&["show", "E5", "--json"])).unwrap();
    let cell =
        |n: &usize| serde_json::json!({"name": format!("circle{n}"), "work": {"circle": {"n": n, "beta": 90.5}}});
    experiment["cells"] = sizes.iter().map(cell).collect();
    experiment["predictions"] = serde_json::json!([{
        "claim": "C4",
        "text": "Attention by logits of rank 2 has rank 2",
        "metric": "pattern_rank",
        "expect": "zero",
        "level": 2.0,
        "smallest": 1.0,
        "cases": [{"name": "circle", "cell": format!("circle{}", sizes[0])}],
    }]);
    experiment["runs"] = 8.into();
    let path = folder.join("mine.json");
    std::fs::write(&path, experiment.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every file of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for inner in [folder.to_owned(), folder.join("cells")] {
        for entry in std::fs::read_dir(inner).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            // A killed process leaves the hidden file that it was writing.
            let hidden = entry.file_name().unwrap().to_str().unwrap().starts_with('.');
            if !hidden {
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
    for name in ["E1", "E2", "E3", "E4", "E5", "E6", "E8", "induction", "english"] {
        assert!(list.contains(name), "{name}: {list}");
    }
    let shown = done(&["show", "E1"]);
    for part in ["Do narrow heads", "C1: ", "C6: ", "alpha 0.05", "10 runs", "gated-heads4-width4"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(done(&["show", "E1", "--grid", "full"]).contains("32 runs"));
    assert!(done(&["show", "induction"]).contains("\"language\""));
    assert!(fails(&["show", "E99"], 2).contains("E8"));
    assert!(fails(&["run", "E99"], 2).contains("E8"));
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
    assert!(verdict.contains("C4: refuted"), "{verdict}");
    let json: serde_json::Value = serde_json::from_str(&done(&["verdict", &parts, "--json"])).unwrap();
    assert_eq!(json[0]["claims"]["C4"], "refuted");
    assert_eq!(json[0]["predictions"][0]["findings"][0]["effect"]["estimate"], 3.0);
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
    assert!(std::fs::read_to_string(page).unwrap().contains("Attention by logits of rank 2"));
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
    assert!(verdict.contains("C4: refuted") && !verdict.contains("note:"), "{verdict}");
    std::fs::remove_file(folder.path().join("out/cells/circle5.parquet.provenance.json")).unwrap();
    let verdict = done(&["verdict", &out]);
    assert!(verdict.contains("C4: refuted") && verdict.contains("note: no checksum"), "{verdict}");
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
    let mut shell = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    // Another experiment has another folder, and is what the job runs.
    let folder = |script: &str| script.lines().find(|line| line.starts_with("OUT=")).unwrap().to_owned();
    assert!(folder(&script).contains("headscope-lab/E1-full}"), "{script}");
    let mut folders = std::collections::BTreeSet::from([folder(&script)]);
    for change in [vec!["--seed", "5"], vec!["--runs", "9"], vec!["--seed", "5", "--runs", "9"]] {
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
