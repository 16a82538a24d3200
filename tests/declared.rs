//! What the lab declares and what is committed of it: every experiment can be judged, the first round still is as it was,
//! and results are those of the experiments that stand beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use common::{Tol, assert_near, assert_same};
use headscope::lab::experiment::{Cell, Start, Work};
use headscope::lab::verdict::{Evidence, Judgement, LEARNED, SubClaim, first};
use headscope::lab::{Answer, Experiment, Grid, Results, Tongue, Verdict};
use headscope::table::Observation;

const RESULTS: &str = "notebooks/results";
const FIRST_ROUND: &str = "notebooks/results/first-round";
/// Seeds from here on are for trying things out.
const PILOTS: u64 = 900_000;

fn named(grid: Grid) -> Vec<Experiment> {
    Experiment::NAMES.iter().map(|name| Experiment::named(name, grid).unwrap()).collect()
}

/// The seeds of all looks.
fn seeds(experiment: &Experiment) -> std::ops::Range<u64> {
    experiment.seed..experiment.seed + experiment.rule.looks.last().unwrap().seeds as u64
}

#[test]
fn every_experiment_is_consistent_and_reads_back_as_it_was_written() {
    for experiment in [Grid::Small, Grid::Full].into_iter().flat_map(named) {
        experiment.validate().unwrap_or_else(|error| panic!("{}: {error}", experiment.id));
        assert_eq!(experiment.runs, experiment.rule.looks[0].seeds, "{}", experiment.id);
        let json = serde_json::to_vec(&experiment).unwrap();
        assert_eq!(serde_json::from_slice::<Experiment>(&json).unwrap(), experiment, "{}", experiment.id);
    }
    let all = named(Grid::Full);
    let old = all.iter().flat_map(|experiment| &experiment.first_predictions).map(|prediction| &prediction.claim[..]);
    let new = all.iter().flat_map(|experiment| &experiment.sub_claims).map(|claim| &claim.id[..2]);
    let claims: BTreeSet<&str> = old.chain(new).collect();
    assert!(["C1", "C2", "C3", "C4", "C5", "C6"].iter().all(|claim| claims.contains(claim)), "{claims:?}");
}

/// The small grid is a part of the full one, decides nothing else, and has every cell that its sub-claims read.
#[test]
fn the_small_grid_has_what_sub_claims_need() {
    for (small, full) in named(Grid::Small).iter().zip(named(Grid::Full)) {
        let ids = |of: &Experiment| of.sub_claims.iter().map(|claim| claim.id.clone()).collect::<BTreeSet<_>>();
        assert!(ids(small).is_subset(&ids(&full)), "{}", small.id);
        for cell in small.sub_claims.iter().flat_map(SubClaim::cells) {
            assert!(small.cell(cell).is_ok(), "{}: {cell}", small.id);
        }
        let names: BTreeSet<&str> = full.cells.iter().map(|cell| cell.name.as_str()).collect();
        assert!(small.cells.iter().all(|cell| names.contains(cell.name.as_str())), "{}", small.id);
    }
}

/// A sub-claim in a setting is decided by one experiment, so that its name says which verdict is meant.
#[test]
fn sub_claims_have_names_of_their_own() {
    let mut seen = BTreeMap::new();
    for experiment in named(Grid::Full) {
        for claim in &experiment.sub_claims {
            let before = seen.insert((claim.id.clone(), claim.setting), experiment.id.clone());
            assert_eq!(before, None, "{} in {} as well", claim.id, experiment.id);
        }
    }
}

/// No run of any experiment has a seed of another, of the first round, or of a pilot.
#[test]
fn experiments_have_seeds_of_their_own() {
    let all = named(Grid::Full);
    let first: Vec<Experiment> =
        folders(FIRST_ROUND).map(|of| Experiment::read(of.join("experiment.json")).unwrap()).collect();
    for experiment in &all {
        let number: u64 = experiment.id[1..].parse().unwrap();
        assert_eq!(seeds(experiment), 17_000 + 100 * number..17_000 + 100 * number + 64, "{}", experiment.id);
        assert!(seeds(experiment).end <= PILOTS);
        let others = all.iter().filter(|other| other.id != experiment.id).map(seeds);
        let rounds = first.iter().map(|other| other.seed..other.seed + other.runs as u64);
        for other in others.chain(rounds) {
            assert!(seeds(experiment).all(|seed| !other.contains(&seed)), "{}: {other:?}", experiment.id);
        }
    }
    assert!(named(Grid::Small).iter().zip(&all).all(|(small, full)| seeds(small) == seeds(full)));
}

/// A cell with the same rows, computed in a moment: few steps, few sequences.
fn brief(cell: &Cell) -> Option<Cell> {
    let mut cell = cell.clone();
    match &mut cell.work {
        Work::Training(training) => {
            (training.train.steps, training.train.batch, training.held_out) = (4, 4, 24);
            training.records = 2;
            if let Start::Taken { steps, .. } = &mut training.start {
                *steps = 2;
            }
            training.after.iter_mut().for_each(|after| after.steps = 4);
        }
        Work::Regression(regression) => regression.steps = 3,
        Work::Circle(_) => {}
        Work::Construction(construction) => construction.set.steps = 3,
        // These take long, and some need data.
        Work::Pretrained(_) | Work::Weights(_) | Work::OnText(_) | Work::Demand(_) | Work::Attainable(_) => {
            return None;
        }
    }
    Some(cell)
}

/// What determines which rows a training cell has.
fn kind(cell: &Cell) -> String {
    match &cell.work {
        Work::Training(training) => {
            let tasks: Vec<String> = training.language.tasks().into_iter().map(|task| task.name).collect();
            format!("{:?} {tasks:?} {} {}", training.measures, training.model.n_heads, training.model.d_head)
        }
        _ => cell.name.clone(),
    }
}

/// Every metric that a sub-claim or a gate reads is measured in the cells that it reads it of: a wrong name would show only
/// after all cells are computed.
#[test]
fn what_sub_claims_read_is_measured() {
    for experiment in named(Grid::Full).into_iter().filter(|experiment| !experiment.sub_claims.is_empty()) {
        let mut read: BTreeSet<(String, String, Option<String>)> = BTreeSet::new();
        for claim in &experiment.sub_claims {
            let own = claim.cases.iter().map(|case| (case, &claim.endpoint.metric, &claim.endpoint.task));
            let gates =
                claim.gates.iter().flat_map(|gate| gate.cases.iter().map(|case| (case, &gate.metric, &gate.task)));
            for (case, metric, task) in own.chain(gates) {
                let task = case.task.as_ref().or(task.as_ref());
                read.extend(case.cells().map(|cell| (cell.to_owned(), metric.clone(), task.cloned())));
            }
        }
        let mut known: BTreeMap<String, Option<Evidence>> = BTreeMap::new();
        for (name, metric, task) in read.into_iter().filter(|(_, metric, _)| metric != LEARNED) {
            let cell = experiment.cell(&name).unwrap();
            let compute = || {
                let cell = Cell { name: "it".into(), ..brief(cell)? };
                Some(Evidence::new(&cell.compute(PILOTS, 2).unwrap()).unwrap())
            };
            let Some(evidence) = known.entry(kind(cell)).or_insert_with(compute) else { continue };
            let runs = evidence.runs("it", &metric, task.as_deref()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(runs.len(), 2, "{name}: {metric}");
        }
    }
}

/// Results folders.
fn folders(of: &str) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(of)).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.join("experiment.json").is_file());
    all.sort();
    all.into_iter()
}

/// The results judge as the `verdict.json` beside them says, up to rounding.
fn assert_judged_as_committed(results: &Results, folder: &Path) -> Judgement {
    let judgement = results.judge().unwrap();
    let committed: Judgement = serde_json::from_slice(&std::fs::read(folder.join("verdict.json")).unwrap()).unwrap();
    let [found, committed] = [&judgement, &committed].map(|it| serde_json::to_value(it).unwrap());
    assert_same(&judgement.experiment, &found, &committed, Tol::Samples);
    judgement
}

/// The tables of the first round read, are whole and undamaged, and get from its rule the verdicts that it gave.
#[test]
fn the_first_round_is_judged_as_it_was() {
    use first::Verdict::{Inconclusive, Mixed, Supported};
    let said: [(&str, &[(&str, first::Verdict)]); 8] = [
        ("E1", &[("C1", Inconclusive), ("C6", Inconclusive)]),
        ("E2", &[("C2", Mixed), ("C6", Inconclusive)]),
        ("E3", &[("C2", Inconclusive)]),
        ("E4", &[("C3", Mixed)]),
        ("E5", &[("C4", Inconclusive)]),
        ("E6", &[("C5", Mixed)]),
        ("E7", &[("C5", Mixed)]),
        ("E8", &[("C1", Inconclusive), ("decay", Supported)]),
    ];
    assert_eq!(folders(FIRST_ROUND).count(), said.len());
    for (folder, (id, verdicts)) in folders(FIRST_ROUND).zip(said) {
        // A checksum that does not hold is an error, and one that is missing a note.
        let results = Results::read(&folder).unwrap();
        assert_eq!((results.experiment.id.as_str(), results.missing.len(), &results.notes), (id, 0, &vec![]));
        let judgement = assert_judged_as_committed(&results, &folder);
        let claims: Vec<(String, first::Verdict)> = first::claims(&judgement.first).into_iter().collect();
        assert_eq!(claims, verdicts.iter().map(|(claim, verdict)| ((*claim).to_owned(), *verdict)).collect::<Vec<_>>());
        assert!(judgement.sub_claims.is_empty() && judgement.first_rule.is_some_and(|rule| rule.least_seeds == 8));
    }
}

/// Declarations of the first round read as what they were, and are then written in today's form; what neither form knows is
/// refused by name.
#[test]
fn declarations_of_the_first_round_still_read() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("experiment.json");
    for folder in folders(FIRST_ROUND) {
        let old = Experiment::read(folder.join("experiment.json")).unwrap();
        assert!(old.sub_claims.is_empty() && !old.first_predictions.is_empty() && old.grid.is_none(), "{}", old.id);
        std::fs::write(&path, serde_json::to_vec(&old).unwrap()).unwrap();
        assert_eq!(Experiment::read(&path).unwrap(), old);

        let json = std::fs::read(folder.join("experiment.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert!(json.get("predictions").is_some());
        for place in ["", "/rule", "/predictions/0", "/predictions/0/cases/0", "/cells/0"] {
            let mut strange = json.clone();
            strange.pointer_mut(place).unwrap()["colour"] = "red".into();
            std::fs::write(&path, strange.to_string()).unwrap();
            let refused = Experiment::read(&path).unwrap_err().to_string();
            assert!(refused.contains("unknown field `colour`"), "{place}: {refused}");
        }
    }
}

/// Whatever is committed was computed by the full experiment as it is declared, has every cell that decides a sub-claim, and
/// is judged as it says.
#[test]
fn committed_results_are_of_these_experiments() {
    for folder in folders(RESULTS) {
        let results = Results::read(&folder).unwrap();
        let id = results.experiment.id.clone();
        assert!(folder.ends_with(&id), "{}", folder.display());
        assert!(results.experiment == Experiment::named(&id, Grid::Full).unwrap(), "{id} is declared otherwise");
        let deciding: BTreeSet<&str> = results.experiment.sub_claims.iter().flat_map(SubClaim::cells).collect();
        let missing: Vec<&String> = results.missing.iter().filter(|cell| deciding.contains(cell.as_str())).collect();
        assert!(missing.is_empty(), "{id}: {missing:?}");
        let strange = results.notes.iter().find(|note| !note.contains("different commits"));
        assert_eq!(strange, None, "{id}");
        assert_judged_as_committed(&results, &folder);
    }
}

/// The answer in both READMEs is the one that the committed results give: `headscope lab answer` writes it.
#[test]
fn the_answer_in_the_readme_is_that_of_the_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results: Vec<Results> = folders(RESULTS).map(|folder| Results::read(folder).unwrap()).collect();
    let answer = Answer::of(&results).unwrap();
    for (name, tongue) in [("README.md", Tongue::English), ("README.zh-CN.md", Tongue::Chinese)] {
        let page = std::fs::read_to_string(root.join(name)).unwrap();
        let (_, rest) = page.split_once("<!-- answer -->\n").unwrap();
        let (found, _) = rest.split_once("<!-- /answer -->").unwrap();
        assert_eq!(found, answer.markdown(tongue), "{name}");
    }
}

/// What the answer says has a number for every placeholder, in both languages and whatever the verdict.
#[test]
fn no_sentence_of_the_answer_is_left_unfilled() {
    let results: Vec<Results> = folders(RESULTS).map(|folder| Results::read(folder).unwrap()).collect();
    let mut answer = Answer::of(&results).unwrap();
    use Verdict::{AtThreshold, Depends, Fails, Holds, Open, Untested};
    for verdict in [Holds, Fails, Depends, AtThreshold, Open, Untested] {
        for row in &mut answer.rows {
            row.judged.all.verdict = verdict;
            row.judged.learned.iter_mut().for_each(|learned| learned.verdict = verdict);
        }
        for tongue in [Tongue::English, Tongue::Chinese] {
            let text = answer.markdown(tongue);
            assert!(!text.contains('{') && !text.contains('}'), "{verdict}: {text}");
        }
    }
}

/// Another processor may leave other last digits, and no other table. Training would make more of them, so that only cells
/// without it are computed again.
#[test]
fn a_committed_cell_is_computed_again() {
    for folder in folders(RESULTS) {
        let Results { experiment, table, .. } = Results::read(&folder).unwrap();
        let small = |cell: &&Cell| matches!(&cell.work, Work::Circle(circle) if circle.n <= 32);
        for cell in experiment.cells.iter().filter(small) {
            let kept = table.filtered(|row| row.keys.cell.as_ref() == Some(&cell.name)).unwrap().rows().unwrap();
            let seeds: BTreeSet<u64> = kept.iter().filter_map(|row| row.keys.seed).collect();
            let found = cell.compute(experiment.seed, seeds.len()).unwrap().rows().unwrap();
            assert_eq!(found.len(), kept.len(), "{}", cell.name);
            let key = |row: &Observation| (row.metric.clone(), row.keys.seed);
            let kept: BTreeMap<_, f64> = kept.iter().map(|row| (key(row), row.value)).collect();
            for row in found {
                assert_near(&format!("{} {}", cell.name, row.metric), row.value, kept[&key(&row)], Tol::Samples);
            }
        }
    }
}
