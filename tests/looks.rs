//! Looks: which cells get more seeds, which seeds those are, and how a run goes on from what is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use headscope::Error;
use headscope::lab::experiment::{Cell, Circle, Regression, Work};
use headscope::lab::verdict::{
    Contrast, Endpoint, Form, Gate, Limit, Look, Reading, Rule, Setting, Side, SubClaim, Verdict,
};
use headscope::lab::{Experiment, Grid, Results, RunOptions};
use headscope::stats::Student;
use headscope::table::Table;

const SEED: u64 = 950_000;
const DELTA: f64 = 0.1;
const LOOKS: [(usize, f64); 3] = [(6, 0.01), (12, 0.015), (18, 0.025)];

/// A cell whose one number, the loss of a linear head after a few steps, differs between seeds.
fn noisy(name: &str, steps: usize) -> Cell {
    let work = Regression { d_model: 4, width: 1, decay: 0.7, steps, learning_rate: 0.4 };
    Cell { name: name.to_owned(), work: Work::Regression(work) }
}

/// The rows of a cell's metric, by seed.
fn by_seed(table: &Table, cell: Option<&str>, metric: &str) -> BTreeMap<u64, f64> {
    let rows = table.rows().unwrap().into_iter();
    let own = rows.filter(|row| row.metric == metric && (cell.is_none() || row.keys.cell.as_deref() == cell));
    own.map(|row| (row.keys.seed.unwrap(), row.value)).collect()
}

/// What a case subtracts, so that the claim "above delta" about one cell is decided at look 1, 2 or 3, or, with 4, never.
fn level(cell: &Cell, decided: usize) -> f64 {
    let values: Vec<f64> = by_seed(&cell.compute(SEED, LOOKS[2].0).unwrap(), None, "loss").into_values().collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let spread = values.iter().map(|value| (value - mean).abs()).fold(0.0, f64::max);
    let first = |level: &f64| {
        let found = LOOKS.iter().position(|&(seeds, alpha)| {
            let effects: Vec<f64> = values[..seeds].iter().map(|value| value - level).collect();
            let effect = Student::of_mean(&effects).unwrap();
            effect.p_above(DELTA) <= alpha || effect.p_below(DELTA) <= alpha
        });
        found.map_or(4, |look| look + 1)
    };
    // From where all effects are above delta to where all are below.
    let levels = (0..=4000).map(|step| mean - DELTA + (f64::from(step) / 2000.0 - 1.0) * 2.0 * spread);
    levels.into_iter().find(|level| first(level) == decided).expect("a level at which that look decides")
}

fn claim(id: &str, form: Form, cases: Vec<Contrast>) -> SubClaim {
    let endpoint = Endpoint {
        metric: "loss".into(),
        task: None,
        reading: Reading::End,
        expect: Side::Above,
        delta: DELTA,
        scale: "a tenth".into(),
        least: None,
        most: None,
        given_learning: true,
    };
    SubClaim { id: id.into(), text: id.into(), setting: Setting::MadeUp, form, endpoint, cases, gates: vec![] }
}

/// The claim about one cell that a given look decides.
fn decided_at(id: &str, cell: &Cell, look: usize) -> SubClaim {
    let case = Contrast::of("only", &cell.name).minus(level(cell, look));
    claim(id, Form::Directional, vec![case])
}

fn of(cells: Vec<Cell>, sub_claims: Vec<SubClaim>) -> Experiment {
    let looks = LOOKS.map(|(seeds, alpha)| Look { seeds, alpha }).to_vec();
    let experiment = Experiment {
        id: "looks".into(),
        seed: SEED,
        runs: LOOKS[0].0,
        sub_claims,
        rule: Rule { looks, ..Rule::default() },
        first_predictions: vec![],
        cells,
        ..Experiment::named("E5", Grid::Small).unwrap()
    };
    experiment.validate().unwrap();
    experiment
}

/// Cells of every fate. `clear` is decided at the first look, `later` at the second, with `control` for its gate, which is decided at the first; `never`
/// stays at the threshold; of a claim about two cells, `clear` is decided and `half` is not; `unread` is in no sub-claim.
fn every_fate() -> Experiment {
    let cells = ["clear", "later", "control", "never", "half"].iter().zip(14..);
    let mut cells: Vec<Cell> = cells.map(|(name, steps)| noisy(name, steps)).collect();
    cells.push(Cell { name: "unread".into(), work: Work::Circle(Circle { n: 5, beta: 20.0 }) });
    let [clear, later, never, half] = [0, 1, 3, 4].map(|number| &cells[number]);
    let gate = Gate {
        text: "the control has a loss".into(),
        metric: "loss".into(),
        task: None,
        reading: Reading::End,
        limit: Limit::Above(-1.0),
        cases: vec![Contrast::of("control", "control")],
    };
    let case = |cell: &Cell, look| Contrast::of(&cell.name, &cell.name).minus(level(cell, look));
    let sub_claims = vec![
        decided_at("X1", clear, 1),
        SubClaim { gates: vec![gate], ..decided_at("X2", later, 2) },
        decided_at("X3", never, 4),
        claim("X4", Form::Universal, vec![case(clear, 1), case(half, 2)]),
    ];
    of(cells, sub_claims)
}

fn to_look(looks: usize) -> RunOptions<'static> {
    RunOptions { looks, resume: true, ..RunOptions::default() }
}

/// The cells' tables and what stands beside them, but for the time that each took.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let paths = std::fs::read_dir(folder.join("cells")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths
        .map(|path| (name(&path), std::fs::read(&path).unwrap()))
        .filter(|(name, _)| !name.ends_with("seconds"))
        .collect()
}

/// The parts that are computed, by name.
fn parts(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        files(folder).into_keys().filter_map(|name| Some(name.strip_suffix(".parquet")?.to_owned())).collect();
    names.sort();
    names
}

fn verdicts(folder: &Path) -> Vec<(Verdict, usize)> {
    let judgement = Results::read(folder).unwrap().judge().unwrap();
    judgement.sub_claims.iter().map(|judged| (judged.decided().verdict, judged.decided().looks)).collect()
}

/// The second look computes the cells that the first left open, those of their gates included, with the seeds that follow,
/// and the third those that the second left open; nothing else is touched.
#[test]
fn a_later_look_computes_only_what_an_earlier_one_left_open() {
    let folder = tempfile::tempdir().unwrap();
    let (experiment, folder) = (every_fate(), folder.path());
    let first = ["clear", "control", "half", "later", "never", "unread"];
    assert_eq!(experiment.run(folder, &to_look(1)).unwrap(), 6);
    assert_eq!(parts(folder), first);
    let open = (Verdict::Open, 1);
    assert_eq!(verdicts(folder), [(Verdict::Holds, 1), open, open, open]);
    let before = files(folder);

    // The gate on `control` is decided, and needs no more of it.
    assert_eq!(experiment.run(folder, &to_look(2)).unwrap(), 3);
    let second = ["half+2", "later+2", "never+2"];
    assert_eq!(parts(folder).iter().filter(|name| name.contains('+')).collect::<Vec<_>>(), second);
    let now = files(folder);
    assert!(before.iter().all(|(name, bytes)| now[name] == *bytes), "the first look is as it was");
    for name in second {
        let table = Table::read(folder.join(format!("cells/{name}.parquet"))).unwrap();
        let cell = name.strip_suffix("+2").unwrap();
        let seeds: Vec<u64> = by_seed(&table, Some(cell), "loss").into_keys().collect();
        assert_eq!(seeds, (SEED + 6..SEED + 12).collect::<Vec<_>>(), "{name}: fresh seeds");
        assert_eq!(table.provenance().options["look"], 2);
    }
    let [_, later, never, half] = verdicts(folder).try_into().unwrap();
    assert!(later.0 != Verdict::Open && later.1 == 2 && half.0 != Verdict::Open && half.1 == 2);
    assert_eq!(never, (Verdict::Open, 2));

    assert_eq!(experiment.run(folder, &to_look(3)).unwrap(), 1);
    assert_eq!(parts(folder).iter().filter(|name| name.ends_with("+3")).collect::<Vec<_>>(), ["never+3"]);
    assert_eq!(verdicts(folder)[2], (Verdict::AtThreshold, 3));
    assert_eq!(experiment.run(folder, &to_look(3)).unwrap(), 0, "nothing is left");

    // In one go: the same.
    let whole = tempfile::tempdir().unwrap();
    let options = RunOptions { resume: false, threads: Some(2), ..to_look(3) };
    assert_eq!(experiment.run(whole.path(), &options).unwrap(), 10);
    assert!(files(whole.path()) == files(folder));
}

/// What a look adds to a cell is what the cell gives for those seeds.
#[test]
fn a_look_adds_what_its_seeds_give() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = every_fate();
    experiment.run(folder.path(), &to_look(3)).unwrap();
    let results = Results::read(folder.path()).unwrap();
    for (cell, runs) in [("clear", 6), ("later", 12), ("never", 18)] {
        let alone = experiment.cell(cell).unwrap().compute(SEED, runs).unwrap();
        assert_eq!(by_seed(&results.table, Some(cell), "loss"), by_seed(&alone, None, "loss"), "{cell}");
    }
}

/// Shards agree about what a look leaves open, however far the others are: in any order they share the second look without
/// computing a part twice or leaving one out, and their bytes are those of one run.
#[test]
fn shards_share_a_later_look() {
    let cells: Vec<Cell> = (0..6).map(|number| noisy(&format!("cell{number}"), 14 + number)).collect();
    // What a shard adds decides its own claims: they must not vanish from the list that the other one shares.
    let claims = cells.iter().enumerate().map(|(number, cell)| decided_at(&format!("X{number}"), cell, 2)).collect();
    let experiment = of(cells, claims);
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(experiment.run(whole.path(), &to_look(2)).unwrap(), 12);
    for order in [[1, 2], [2, 1]] {
        let folder = tempfile::tempdir().unwrap();
        let shard = |shard| experiment.run(folder.path(), &RunOptions { shard: (shard, 2), ..to_look(2) }).unwrap();
        assert_eq!(shard(order[0]), 3, "the other shard has not finished the first look");
        assert_eq!(shard(order[1]), 3 + 3, "now it has: on to the second look");
        assert_eq!(shard(order[0]), 3);
        assert!(files(folder.path()) == files(whole.path()), "{order:?}");
    }
}

/// The third look waits for all shards of the second.
#[test]
fn a_third_look_waits_for_the_second() {
    let cells: Vec<Cell> = (0..4).map(|number| noisy(&format!("cell{number}"), 14 + number)).collect();
    let claims = cells.iter().enumerate().map(|(number, cell)| decided_at(&format!("X{number}"), cell, 4)).collect();
    let experiment = of(cells, claims);
    let folder = tempfile::tempdir().unwrap();
    let shard = |shard| experiment.run(folder.path(), &RunOptions { shard: (shard, 2), ..to_look(3) }).unwrap();
    assert_eq!([shard(1), shard(2), shard(1), shard(2)], [2, 4, 2 + 2, 2]);
    let whole = tempfile::tempdir().unwrap();
    experiment.run(whole.path(), &to_look(3)).unwrap();
    assert!(files(folder.path()) == files(whole.path()));
}

/// What a run told; one test at a time reads it.
static TOLD: Mutex<Vec<String>> = Mutex::new(vec![]);

fn tell(note: &str) {
    TOLD.lock().unwrap().push(note.to_owned());
}

/// A run that is stopped before its second look goes on, and a part of a look that is lost or damaged is computed again, to
/// the same bytes.
#[test]
fn a_later_look_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let (experiment, folder) = (every_fate(), folder.path());
    experiment.run(folder, &to_look(1)).unwrap();
    let stop = AtomicBool::new(true);
    let stopped = experiment.run(folder, &RunOptions { stop: Some(&stop), ..to_look(2) });
    assert!(matches!(stopped, Err(Error::Stopped { done: 0, total: 3, .. })), "{stopped:?}");
    let refused = experiment.run(folder, &RunOptions { resume: false, ..to_look(2) }).unwrap_err().to_string();
    assert!(refused.contains("resume"), "{refused}");
    assert_eq!(experiment.run(folder, &to_look(2)).unwrap(), 3);
    let whole = files(folder);

    let part = folder.join("cells/later+2.parquet");
    std::fs::remove_file(&part).unwrap();
    assert_eq!(experiment.run(folder, &to_look(2)).unwrap(), 1);
    assert!(files(folder) == whole);
    let mut damaged = whole["later+2.parquet"].clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&part, damaged).unwrap();
    assert!(Results::read(folder).is_err());
    TOLD.lock().unwrap().clear();
    assert_eq!(experiment.run(folder, &RunOptions { note: tell, ..to_look(2) }).unwrap(), 1);
    let told = TOLD.lock().unwrap().join("\n");
    assert!(told.contains("later+2 is computed again"), "{told}");
    assert!(files(folder) == whole);
}

/// What is committed of a folder: no cells, only their union and what was judged.
fn committed(folder: &Path) -> tempfile::TempDir {
    let results = Results::read(folder).unwrap();
    results.write(&results.judge().unwrap(), folder).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        std::fs::copy(&entry, copy.path().join(entry.file_name().unwrap())).unwrap();
    }
    copy
}

/// Cells with columns of their own: steps, tasks and heads, or none of them.
fn of_every_kind() -> Experiment {
    let mut trained = Experiment::named("E1", Grid::Full).unwrap().cell("gated-heads4-width4").unwrap().clone();
    let Work::Training(training) = &mut trained.work else { panic!("a training") };
    (training.train.steps, training.train.batch, training.held_out) = (2, 4, 16);
    let mut experiment = every_fate();
    experiment.cells.push(trained);
    experiment
}

/// A run goes on from the union of the cells alone, as it is committed, to the bytes of a run that still has the cells; without
/// `resume` the union is left alone.
#[test]
fn a_run_goes_on_from_the_union_alone() {
    let (first, experiment) = (tempfile::tempdir().unwrap(), of_every_kind());
    experiment.run(first.path(), &to_look(2)).unwrap();
    let union = committed(first.path());
    let refused = experiment.run(union.path(), &RunOptions { resume: false, ..to_look(3) }).unwrap_err().to_string();
    assert!(refused.contains("resume") && refused.contains("results.parquet"), "{refused}");
    assert!(files(union.path()).is_empty());
    let judged = |folder: &Path| serde_json::to_value(Results::read(folder).unwrap().judge().unwrap()).unwrap();
    assert_eq!(judged(union.path()), judged(first.path()));
    for folder in [first.path(), union.path()] {
        assert_eq!(experiment.run(folder, &to_look(3)).unwrap(), 1, "only the third look");
    }
    assert!(files(union.path()) == files(first.path()));
    let (first, union) = (committed(first.path()), committed(union.path()));
    for name in ["results.parquet", "results.parquet.provenance.json", "verdict.json", "experiment.json"] {
        let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read(&union), read(&first), "{name}");
    }
}

/// The union of another declaration's cells is not taken for this one's, even where `experiment.json` was changed to fit; nor
/// is one that is damaged.
#[test]
fn another_union_is_not_unpacked() {
    let (first, experiment) = (tempfile::tempdir().unwrap(), every_fate());
    experiment.run(first.path(), &to_look(1)).unwrap();
    let mut other = experiment.clone();
    other.sub_claims[0].endpoint.delta *= 2.0;
    let changed = committed(first.path());
    std::fs::write(changed.path().join("experiment.json"), serde_json::to_vec_pretty(&other).unwrap()).unwrap();
    assert_eq!(other.run(changed.path(), &to_look(1)).unwrap(), 6, "all cells are computed");
    let table = Table::read(changed.path().join("cells/clear.parquet")).unwrap();
    assert_eq!(table.provenance().options["origin"]["declaration"], other.sha256().unwrap());

    let damaged = committed(first.path());
    let union = damaged.path().join("results.parquet");
    let mut bytes = std::fs::read(&union).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&union, bytes).unwrap();
    assert!(Results::read(damaged.path()).is_err());
    assert_eq!(experiment.run(damaged.path(), &to_look(1)).unwrap(), 6);
    assert!(files(damaged.path()) == files(first.path()));
}

/// `times.json` has the seconds of every cell and look, also after the cells are gone; tables and their provenance do not
/// depend on them.
#[test]
fn the_time_of_every_cell_is_kept_apart_from_its_table() {
    let (folder, experiment) = (tempfile::tempdir().unwrap(), every_fate());
    experiment.run(folder.path(), &to_look(2)).unwrap();
    let times = |folder: &Path| -> BTreeMap<String, f64> {
        serde_json::from_slice(&std::fs::read(folder.join("times.json")).unwrap()).unwrap()
    };
    let union = committed(folder.path());
    let found = times(union.path());
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), parts(folder.path()));
    assert!(found.values().all(|seconds| *seconds >= 0.0));
    let again = committed(union.path());
    assert_eq!(times(again.path()), found, "judged again without the cells");

    let read = |folder: &Path| std::fs::read(folder.join("results.parquet")).unwrap();
    for name in found.keys() {
        std::fs::write(folder.path().join(format!("cells/{name}.seconds")), "4711.0\n").unwrap();
    }
    let slower = committed(folder.path());
    assert!(times(slower.path()).values().all(|seconds| *seconds == 4711.0));
    assert_eq!(read(slower.path()), read(union.path()));
    let mut told = files(folder.path()).into_iter().filter(|(name, _)| name.ends_with("json"));
    assert!(told.all(|(_, json)| !String::from_utf8(json).unwrap().contains("seconds")));
}
