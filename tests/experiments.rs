//! Experiments as data, cells as pure functions, shards, resuming, and the constructions whose outcome is known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use common::{Tol, assert_near};
use headscope::Error;
use headscope::lab::experiment::{After, Cell, Circle, Measurement, Occupant, Regression, Spacing, Start, Work};
use headscope::lab::train::HeadOptions;
use headscope::lab::verdict::{Contrast, Endpoint, Form, Look, Reading, Rule, Setting, Side, SubClaim, Verdict, first};
use headscope::lab::{Experiment, Grid, Results, RunOptions, report};
use headscope::table::Table;
use tch::Kind;

/// The claim that attention by logits of rank 2 has a higher rank itself, on some cells.
fn above_rank_two(cases: Vec<Contrast>) -> SubClaim {
    let endpoint = Endpoint {
        metric: "pattern_rank".into(),
        task: None,
        reading: Reading::End,
        expect: Side::Above,
        delta: 2.5,
        scale: "a rank".into(),
        least: Some(0.0),
        most: None,
        given_learning: true,
    };
    let text = "attention by logits of rank 2 has a higher rank".into();
    let (setting, form) = (Setting::MadeUp, Form::Directional);
    SubClaim { id: "C4a".into(), text, setting, form, endpoint, cases, gates: vec![] }
}

/// Some cells that are computed at once, in looks of four, six and eight seeds.
fn quick(cells: usize) -> Experiment {
    let cell = |number: usize| {
        let circle = Circle { n: 3 + number, beta: 50.0 };
        Cell { name: format!("circle{number}"), work: Work::Circle(circle) }
    };
    let looks = [(4, 0.01), (6, 0.015), (8, 0.025)].map(|(seeds, alpha)| Look { seeds, alpha }).to_vec();
    let experiment = Experiment {
        runs: 4,
        sub_claims: vec![above_rank_two(vec![Contrast::of("circle", "circle0")])],
        rule: Rule { looks, ..Rule::default() },
        first_predictions: vec![],
        cells: (0..cells).map(cell).collect(),
        ..Experiment::named("E5", Grid::Small).unwrap()
    };
    experiment.validate().unwrap();
    experiment
}

/// A small training cell of an experiment: few steps, few sequences.
fn trained(id: &str, cell: &str) -> Cell {
    let mut cell = Experiment::named(id, Grid::Full).unwrap().cell(cell).unwrap().clone();
    if let Work::Training(training) = &mut cell.work {
        training.train.steps = 6;
        training.train.batch = 8;
        (training.records, training.spacing) = (3, Spacing::Even);
        training.held_out = 24;
        if let Start::Taken { steps, .. } = &mut training.start {
            *steps = 3;
        }
    }
    cell
}

/// The cells' tables and what stands beside them, but for the time that each took.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder.join("cells"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending != "seconds"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn what_does_not_hold_together_is_refused() {
    let refused = |change: &dyn Fn(&mut Experiment)| {
        let mut experiment = quick(2);
        change(&mut experiment);
        experiment.validate().unwrap_err().to_string()
    };
    assert!(refused(&|e| e.runs = 0).contains("runs"));
    assert!(refused(&|e| e.cells[1].name = "circle0".into()).contains("twice"));
    assert!(refused(&|e| e.cells[1].name = "../elsewhere".into()).contains("a cell's name"));
    assert!(refused(&|e| e.sub_claims[0].cases[0].terms[0].cell = "nowhere".into()).contains("nowhere"));
    assert!(refused(&|e| e.sub_claims[0].endpoint.delta = 0.0).contains("delta"));
    assert!(refused(&|e| e.sub_claims.push(e.sub_claims[0].clone())).contains("`C4a` twice"));
    assert!(refused(&|e| e.rule.looks[1].alpha = 2.0).contains("alpha"));
    assert!(refused(&|e| e.rule.looks[1].seeds = 4).contains("looks"));
    assert!(refused(&|e| e.runs = 5).contains("4, as in the first look"));
    assert!(refused(&|e| e.first_rule.alpha = 2.0).contains("alpha"));
    assert!(refused(&|e| e.first_predictions = vec![first_prediction("nowhere", 0.1)]).contains("nowhere"));
    assert!(refused(&|e| e.first_predictions = vec![first_prediction("circle0", 0.0)]).contains("smallest"));
    assert!(refused(&|e| e.seed = u64::MAX - 5).contains("seed"), "4 runs from there, and 8 at the last look");
    assert!(refused(&|e| e.id = "../E5".into()).contains("id"));
    let last = || Experiment { seed: u64::MAX - 7, ..quick(1) };
    last().validate().unwrap();
    assert!(matches!(last().cells[0].compute(u64::MAX, 2), Err(Error::Argument { name: "seed", .. })));
    assert!(matches!(Experiment::named("E99", Grid::Small), Err(Error::Argument { name: "experiment", .. })));
    let none = RunOptions { threads: Some(0), ..RunOptions::default() };
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(quick(1).run(folder.path(), &none), Err(Error::Argument { name: "threads", .. })));
    for looks in [0, 4] {
        let options = RunOptions { looks, ..RunOptions::default() };
        assert!(matches!(quick(1).run(folder.path(), &options), Err(Error::Argument { name: "looks", .. })));
    }
}

/// The same id in another setting is another sub-claim.
#[test]
fn a_sub_claim_is_tested_once_in_each_setting() {
    let mut experiment = quick(2);
    experiment.sub_claims.push(SubClaim { setting: Setting::RealModels, ..experiment.sub_claims[0].clone() });
    experiment.validate().unwrap();
}

/// A prediction of the first round.
fn first_prediction(cell: &str, smallest: f64) -> first::Prediction {
    let case = first::Case { name: "circle".into(), cell: cell.into(), against: None, trend: vec![] };
    first::Prediction {
        claim: "C4".into(),
        text: "attention by logits of rank 2 has rank 2".into(),
        metric: "pattern_rank".into(),
        task: None,
        reading: Reading::End,
        expect: first::Expect::Zero,
        smallest,
        level: 2.0,
        learned: true,
        cases: vec![case],
    }
}

/// Shards, in any order and with any number of threads, leave the bytes of one run.
#[test]
fn shards_together_are_one_run() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut experiment = quick(7);
    experiment.cells.push(trained("E1", "gated-heads4-width4"));
    let one = RunOptions { threads: Some(2), ..RunOptions::default() };
    assert_eq!(experiment.run(whole.path(), &one).unwrap(), 8);
    let mut done = 0;
    for shard in [3, 1, 2] {
        let options = RunOptions { shard: (shard, 3), threads: Some(1), ..RunOptions::default() };
        done += experiment.run(parts.path(), &options).unwrap();
    }
    assert_eq!(done, 8);
    assert_eq!(files(whole.path()), files(parts.path()));
    for folder in [&whole, &parts] {
        let results = Results::read(folder.path()).unwrap();
        assert!(results.missing.is_empty());
        results.write(&results.judge().unwrap(), folder.path()).unwrap();
    }
    for file in ["results.parquet", "verdict.json", "experiment.json"] {
        let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(read(&whole), read(&parts), "{file}");
    }
}

/// A run that is stopped keeps its finished cells; another one goes on, to the same bytes; without `resume` nothing is touched.
#[test]
fn a_stopped_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = quick(3);
    let stop = AtomicBool::new(true);
    let stopped = experiment.run(folder.path(), &RunOptions { stop: Some(&stop), ..RunOptions::default() });
    assert!(matches!(stopped, Err(Error::Stopped { done: 0, total: 3, .. })), "{stopped:?}");
    experiment.run(folder.path(), &RunOptions { shard: (2, 3), ..RunOptions::default() }).unwrap();
    let before = files(folder.path());
    // A table and its provenance.
    assert_eq!((before.len(), Results::read(folder.path()).unwrap().missing.len()), (2, 2));
    let again = experiment.run(folder.path(), &RunOptions::default()).unwrap_err().to_string();
    assert!(again.contains("circle1.parquet") && again.contains("resume"), "{again}");
    let resumed = experiment.run(folder.path(), &RunOptions { resume: true, ..RunOptions::default() });
    assert_eq!(resumed.unwrap(), 2);
    assert!(before.iter().all(|file| files(folder.path()).contains(file)) && files(folder.path()).len() == 6);
    let mut other = quick(3);
    other.seed += 1;
    assert!(other.run(folder.path(), &RunOptions::default()).unwrap_err().to_string().contains("experiment.json"));
}

/// What a run told of finished cells; one test only reads it.
static TOLD: Mutex<Vec<String>> = Mutex::new(vec![]);

fn tell(note: &str) {
    TOLD.lock().unwrap().push(note.to_owned());
}

/// A bit that flips anywhere in a finished cell's table, or in what stands beside it, is noticed: the cell is not judged, and a
/// resumed run names it and computes it again, to the same bytes.
#[test]
fn a_damaged_cell_is_named_and_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = quick(2);
    experiment.run(folder.path(), &RunOptions::default()).unwrap();
    let whole = files(folder.path());
    let resume = RunOptions { resume: true, note: tell, ..RunOptions::default() };
    for name in ["circle1.parquet", "circle1.parquet.provenance.json"] {
        let path = folder.path().join("cells").join(name);
        let bytes = std::fs::read(&path).unwrap();
        for trial in 0..60 {
            let (place, bit) = ((trial * 7919 + 13) % bytes.len(), trial % 8);
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            let at = format!("{name}, byte {place}, bit {bit}");
            let read = Results::read(folder.path()).err().unwrap_or_else(|| panic!("{at} is read"));
            assert!(read.to_string().contains("circle1.parquet"), "{at}: {read}");
            TOLD.lock().unwrap().clear();
            assert_eq!(experiment.run(folder.path(), &resume).unwrap(), 1, "{at}");
            let told = TOLD.lock().unwrap().join("\n");
            assert!(told.contains("circle1") && told.contains("computed again"), "{at}: {told}");
            assert!(files(folder.path()) == whole, "{at}");
        }
    }
    assert_eq!(experiment.run(folder.path(), &resume).unwrap(), 0);
}

/// Finished cells of another declaration are not kept as if they were this one's, even where `experiment.json` was changed to
/// fit; the message names what differs. Neither are those of which nobody knows where they come from.
#[test]
fn a_declaration_that_does_not_fit_its_cells_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    quick(2).run(folder.path(), &RunOptions::default()).unwrap();
    let before = files(folder.path());
    let resume = RunOptions { resume: true, ..RunOptions::default() };
    type Change = fn(&mut Experiment);
    let changes: [(&str, Change); 5] = [
        ("runs 5", |e| (e.runs, e.rule.looks[0].seeds) = (5, 5)),
        ("seed 77", |e| e.seed = 77),
        ("beta 51.0", |e| e.cells[1].work = Work::Circle(Circle { n: 4, beta: 51.0 })),
        ("declaration", |e| e.sub_claims[0].endpoint.delta *= 2.0),
        ("declaration", |e| e.rule.looks[0].alpha = 0.02),
    ];
    for (what, change) in changes {
        let mut other = quick(2);
        change(&mut other);
        let json = serde_json::to_vec(&other).unwrap();
        std::fs::write(folder.path().join("experiment.json"), json).unwrap();
        let refused = other.run(folder.path(), &resume).unwrap_err().to_string();
        assert!(refused.contains("circle") && refused.contains(what), "{what}: {refused}");
        assert_eq!(files(folder.path()), before);
        let notes = Results::read(folder.path()).unwrap().notes;
        assert!(notes.len() == 1 && notes[0].contains("another experiment.json"), "{what}: {notes:?}");
    }
    let json = serde_json::to_vec_pretty(&quick(2)).unwrap();
    std::fs::write(folder.path().join("experiment.json"), json).unwrap();
    assert!(Results::read(folder.path()).unwrap().notes.is_empty());
    std::fs::remove_file(folder.path().join("cells/circle0.parquet.provenance.json")).unwrap();
    let refused = quick(2).run(folder.path(), &resume).unwrap_err().to_string();
    assert!(refused.contains("circle0") && refused.contains("does not say where it comes from"), "{refused}");
    let results = Results::read(folder.path()).unwrap();
    assert!(results.notes.len() == 1 && results.notes[0].contains("no checksum"), "{:?}", results.notes);
    assert_eq!(results.judge().unwrap().notes, results.notes);
}

/// A cell says by which commit, for which experiment, on what device and from which files it was computed, and what models it
/// left; the union of the cells says it of all.
#[test]
fn cells_say_where_they_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let mut experiment = quick(1);
    experiment.cells.push(trained("E1", "gated-heads4-width4"));
    let mut stories = Experiment::named("E7", Grid::Small).unwrap();
    stories.cells.retain(|cell| matches!(&cell.work, Work::Pretrained(p) if p.model == "english" && !p.random));
    let mut stories = stories.cells.remove(0);
    if let Work::Pretrained(pretrained) = &mut stories.work {
        pretrained.count = 40;
        pretrained.causal = false;
    }
    experiment.cells.push(stories.clone());
    experiment.run(folder.path(), &RunOptions::default()).unwrap();
    let of = |cell: &str| Table::read(folder.path().join(format!("cells/{cell}.parquet"))).unwrap();
    let origin = |cell: &str| of(cell).provenance().options["origin"].clone();
    let declaration = experiment.sha256().unwrap();
    for cell in &experiment.cells {
        let origin = origin(&cell.name);
        assert_eq!((&origin["declaration"], &origin["device"]), (&declaration.as_str().into(), &"cpu".into()));
        assert_eq!(origin["grid"], "small");
        let commit = origin["commit"].as_str().unwrap();
        let hash = commit.trim_end_matches("+dirty");
        assert!(commit == "unknown" || (hash.len() == 40 && hash.chars().all(|c| c.is_ascii_hexdigit())), "{commit}");
    }
    assert_eq!(origin("circle0")["read"], serde_json::json!([]));
    let parameters = origin("gated-heads4-width4")["parameters"].clone();
    let (first, second) = (experiment.seed.to_string(), (experiment.seed + 1).to_string());
    assert!(parameters[&first].as_str().unwrap().len() == 64 && parameters[&first] != parameters[&second]);
    let again = experiment.cells[1].compute(experiment.seed, 4).unwrap().provenance().options["origin"].clone();
    assert_eq!(again["parameters"], parameters, "the same models from the same seeds");
    assert!(again["declaration"].is_null() && again.get("grid").is_none(), "of no experiment: {again}");
    let english = headscope::model::Model::load("english").unwrap().sha256().unwrap();
    assert_eq!(origin(&stories.name)["read"], serde_json::json!([{"name": "english", "sha256": english}]));
    let provenance = of(&stories.name).provenance().clone();
    assert_eq!((provenance.model.as_str(), &provenance.sha256), ("english", &english));
    let union = Results::read(folder.path()).unwrap();
    union.write(&union.judge().unwrap(), folder.path()).unwrap();
    std::fs::remove_dir_all(folder.path().join("cells")).unwrap();
    let union = Results::read(folder.path()).unwrap().table.provenance().options["cells"].clone();
    let union = &union["gated-heads4-width4"];
    let grid = (&union["parameters"], &union["grid"], &union["declaration"]);
    assert_eq!(grid, (&parameters, &"small".into(), &declaration.as_str().into()), "the union alone still says it");
}

/// A cell that cannot be computed says which it was, and leaves no file.
#[test]
fn a_cell_that_fails_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut experiment = quick(2);
    experiment.cells[1].work = Work::Circle(Circle { n: 2, beta: 1.0 });
    let failed = experiment.run(folder.path(), &RunOptions { threads: Some(1), ..RunOptions::default() });
    assert!(failed.unwrap_err().to_string().contains("cell `circle1`"));
    assert_eq!(files(folder.path()).len(), 2); // circle0's table and its provenance
}

/// Invariant 33: keys on a circle, each target's weight at least the bound, with logits of rank 2 and attention of full rank.
#[test]
fn keys_on_a_circle_need_rank_two() {
    for n in [5, 16, 40] {
        let step = 1.0 - (2.0 * std::f64::consts::PI / f64::from(n)).cos();
        let beta = (9.0 * f64::from(n - 1)).ln() / step;
        let cell = Cell { name: "circle".into(), work: Work::Circle(Circle { n: n as usize, beta }) };
        let table = cell.compute(3, 2).unwrap();
        for row in table.rows().unwrap() {
            match row.metric.as_str() {
                "bound" => assert_near("bound", row.value, 0.9, Tol::Layer(Kind::Double)),
                "target_weight" => assert!(row.value >= 0.9 - Tol::Layer(Kind::Double).bound(), "{n}: {}", row.value),
                "rank" => assert_eq!(row.value, 2.0),
                _ => assert_eq!(row.value, f64::from(n), "{}", row.metric),
            }
        }
    }
}

/// Invariant 35: a linear head that is trained ends in the reduced-rank regression.
#[test]
fn a_linear_head_ends_in_reduced_rank_regression() {
    let regression = Regression { d_model: 16, width: 3, decay: 0.7, steps: 5000, learning_rate: 0.1 };
    let table = Cell { name: "linear".into(), work: Work::Regression(regression) }.compute(0, 3).unwrap();
    for row in table.rows().unwrap() {
        match row.metric.as_str() {
            "gap" => assert!((0.0..1e-6).contains(&(row.value + Tol::Number.bound())), "{}", row.value),
            "kept_overlap" => assert!(row.value > 1.0 - 1e-5, "{}", row.value),
            _ => {}
        }
    }
}

/// The value of a metric at the last step, run by run.
fn last(table: &Table, metric: &str) -> Vec<f64> {
    let rows = table.rows().unwrap();
    let step = rows.iter().filter_map(|row| row.keys.step).max();
    rows.iter().filter(|row| row.metric == metric && row.keys.step == step).map(|row| row.value).collect()
}

/// Invariant 20, in a whole cell: heads that start identical attend alike at the end; heads that do not, do not.
#[test]
fn identical_heads_attend_alike_at_the_end() {
    let same = trained("E2", "gated-adam-narrow-same").compute(1, 2).unwrap();
    assert!(last(&same, "pattern_divergence").iter().all(|apart| *apart < Tol::Model(Kind::Float).bound()));
    let fresh = trained("E1", "gated-heads4-width4").compute(1, 2).unwrap();
    assert!(last(&fresh, "pattern_divergence").iter().all(|apart| *apart > 1e-3));
}

/// Invariant 24, in a whole cell: a frozen head that is silenced leaves the others alone; runs follow from their seeds.
#[test]
fn a_cell_follows_from_its_seed() {
    let cell = trained("E3", "gated-narrow-dose1");
    let (once, again) = (cell.compute(5, 2).unwrap(), cell.compute(5, 2).unwrap());
    assert!(once.frame().equals_missing(again.frame()));
    let other = cell.compute(6, 2).unwrap();
    let of = |table: &Table| last(table, "excess_loss");
    // Six steps, each of them a pass and its gradient.
    let training = Tol::Deep { kind: Kind::Float, layers: 6 * 2, terms: 128 };
    assert_near("run 1 of seed 5 is run 0 of seed 6", of(&once)[1], of(&other)[0], training);
    assert!((of(&once)[0] - of(&other)[1]).abs() > training.bound());
    let occupied = |occupant| {
        let mut cell = cell.clone();
        if let Work::Training(training) = &mut cell.work {
            training.start = Start::Taken { task: 2, steps: 3, occupant };
        }
        of(&cell.compute(5, 1).unwrap())[0]
    };
    let found = [Occupant::Solved, Occupant::Random, Occupant::Shuffled].map(occupied);
    assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2], "{found:?}");
}

/// Training goes on behind the last step with other heads frozen and scaled: up to there nothing is different, what is deleted
/// is gone at once, and the steps are counted on.
#[test]
fn training_goes_on_with_other_heads() {
    let of = |after: Option<After>| {
        let mut cell = trained("E3", "gated-narrow-dose1");
        let Work::Training(training) = &mut cell.work else { panic!("a training") };
        training.after = after;
        let table = cell.compute(1, 1).unwrap();
        let losses = table.filtered(|row| row.metric == "excess_loss").unwrap().rows().unwrap();
        losses.into_iter().map(|row| (row.keys.step.unwrap(), row.value)).collect::<Vec<(u32, f64)>>()
    };
    let more = |factor| {
        let heads = HeadOptions { frozen: vec![(0, 0)], scaled: vec![(0, 0, factor)], ..HeadOptions::default() };
        of(Some(After { steps: 8, heads }))
    };
    let (without, kept, deleted) = (of(None), more(1.0), more(0.0));
    let last = without.last().unwrap().0;
    assert_eq!(kept.iter().map(|row| row.0).collect::<Vec<_>>(), [0, last / 2, last, last + 4, last + 8]);
    assert_eq!(kept[..3], without[..], "the same head, before and behind");
    assert_eq!(deleted[..2], without[..2]);
    assert_ne!(deleted[2].1, kept[2].1, "a deleted head writes nothing, from the first step on");
}

/// All measures on one small cell give finite rows where they say so.
#[test]
fn every_measure_measures() {
    let mut cell = trained("E1", "simultaneous-heads4-width11");
    let Work::Training(training) = &mut cell.work else { panic!("a training") };
    training.held_out = 64;
    training.measures = vec![
        Measurement::Division,
        Measurement::Patterns,
        Measurement::Written,
        Measurement::Overlaps,
        Measurement::Gradients,
        Measurement::Others(1),
        Measurement::Roles,
        Measurement::Information,
        Measurement::Truncated,
        Measurement::Norms,
    ];
    let table = cell.compute(0, 2).unwrap();
    let finite = |metric: &str, n: usize| {
        let found = last(&table, metric);
        assert!(found.len() == n && found.iter().all(|value| value.is_finite()), "{metric}: {found:?}");
    };
    let of_runs = [
        "excess_loss",
        "total_effect",
        "pattern_divergence",
        "cka",
        "cka_gain",
        "write_overlap",
        "weight_norm",
        "position_share",
    ];
    for metric in of_runs.into_iter().chain(["truncation_cost_4"]) {
        finite(metric, 2);
    }
    let of_tasks =
        ["role_attention", "role_beyond", "role_heads", "role_group_cost", "role_control_cost", "role_needed"];
    for metric in ["loss", "accuracy", "information_share"].into_iter().chain(of_tasks) {
        finite(metric, 2 * 4);
    }
    for metric in ["shapley", "gradient_share", "information"] {
        finite(metric, 2 * 4 * 4);
    }
    finite("others_gradient_share", 2);
}

/// The page says every verdict that the rule gave.
#[test]
fn the_report_says_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = quick(2);
    experiment.run(folder.path(), &RunOptions::default()).unwrap();
    let results = Results::read(folder.path()).unwrap();
    let judgement = results.judge().unwrap();
    let verdict = judgement.sub_claims[0].decided().verdict;
    assert_eq!((verdict, judgement.sub_claims.len(), judgement.first.len()), (Verdict::Holds, 1, 0));
    let page = report(&[results]).unwrap();
    assert!(page.as_str().contains("<b class=\"holds\">holds</b>") && page.as_str().contains("<svg"));
    assert!(!page.as_str().contains("https://") && !page.as_str().contains("first rule"));
}
