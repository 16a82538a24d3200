//! Tables as numbers and as pictures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::Error;
use headscope::table::{Keys, Observation, Provenance, Table};
use serde_json::{Value, json};

/// Rows that between them have every key: one row for each key alone, and one with all of them. The keys are those that the
/// struct has, whatever they are, so that a new one is among them.
fn rows_of_every_key() -> (Vec<String>, Vec<Observation>) {
    let Value::Object(empty) = serde_json::to_value(Keys::default()).unwrap() else { panic!("no object") };
    let names: Vec<String> = empty.keys().cloned().collect();
    let (mut rows, mut all) = (vec![], json!({}));
    for (number, name) in names.iter().enumerate() {
        let fits = |value: &Value| serde_json::from_value::<Keys>(json!({ name: value })).ok();
        let values = [json!(format!("text {number}")), json!(number), json!(number as f64 + 0.5), json!(true)];
        let value = values.iter().find(|value| fits(value).is_some_and(|keys| keys != Keys::default()));
        let value = value.unwrap_or_else(|| panic!("no value for key {name}"));
        all[name.as_str()] = value.clone();
        rows.push(fits(value).unwrap());
    }
    rows.push(serde_json::from_value(all).unwrap());
    // Without `..`: a new column does not compile here until the test has it, too.
    let row = |(number, keys): (usize, Keys)| Observation {
        keys,
        metric: "loss".to_owned(),
        value: number as f64,
        unit: Some("nats".to_owned()),
        baseline: Some(1.5),
        low: Some(-0.5),
        high: Some(2.5),
        z_score: Some(0.25),
        samples: Some(7),
        warnings: (number % 2 == 0).then(|| "few samples".to_owned()),
    };
    (names, rows.into_iter().enumerate().map(row).collect())
}

#[test]
fn every_key_survives_whatever_is_done_with_a_table() {
    let (names, rows) = rows_of_every_key();
    let provenance = Provenance { model: "none".to_owned(), seed: Some(u64::MAX), ..Provenance::default() };
    let table = Table::new(rows.clone(), provenance.clone()).unwrap();
    let mut columns = names.clone();
    columns.extend(
        ["metric", "value", "unit", "baseline", "low", "high", "z_score", "samples", "warnings"].map(str::to_owned),
    );
    assert_eq!(
        {
            let mut found = table.columns();
            found.sort();
            found
        },
        {
            columns.sort();
            columns
        }
    );
    let mut sorted = rows;
    sorted.sort_by(|a, b| a.keys.cmp(&b.keys));
    assert_eq!(table.rows().unwrap(), sorted);
    assert_eq!(table.filtered(|_| true).unwrap().rows().unwrap(), sorted, "filtered");
    let parts = [table.filtered(|row| row.value < 3.0).unwrap(), table.filtered(|row| row.value >= 3.0).unwrap()];
    assert_eq!(Table::union(&parts, provenance.clone()).unwrap().rows().unwrap(), sorted, "union");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    table.write(&path).unwrap();
    let read = Table::read(&path).unwrap();
    assert_eq!((read.rows().unwrap(), read.provenance()), (sorted.clone(), &provenance), "written and read");
    assert_eq!(read.columns(), table.columns());
    assert_eq!(Table::read_foreign(&path).unwrap().rows().unwrap(), sorted, "read as a foreign table");
}

/// Where there was no intervention, the effect is the value: whatever ranks or draws effects works on such a table, too.
#[test]
fn a_table_without_a_baseline_has_effects() {
    let row = |layer: u32, value: f64| Observation {
        keys: Keys { layer: Some(layer), head: Some(3 - layer), ..Keys::default() },
        metric: "logit".to_owned(),
        value,
        ..Observation::default()
    };
    let rows = vec![row(2, 0.5), row(0, 1.0), row(1, -4.5)];
    let table = Table::new(rows.clone(), Provenance::default()).unwrap();
    assert_eq!(table.effect().unwrap(), [1.0, -4.5, 0.5]);
    assert_eq!(table.curve("layer").unwrap(), [(0.0, 1.0), (1.0, -4.5), (2.0, 0.5)]);
    assert_eq!(table.top(2).unwrap().f64("value").unwrap(), [-4.5, 1.0]);
    assert_eq!(table.heads_by_effect().unwrap(), [(1, 2), (0, 3), (2, 1)]);
    assert_eq!(table.share("layer").unwrap()[1], (1.0, 0.75));
    assert!(table.heatmap("layer", "head").unwrap().as_str().contains("logit"));
    // A row whose baseline is missing has no effect, beside others that have one.
    let beside = Observation { baseline: Some(0.25), ..rows[0].clone() };
    let effects = Table::new(vec![rows[1].clone(), beside], Provenance::default()).unwrap().effect().unwrap();
    assert!(effects[0].is_nan() && effects[1] == 0.25, "{effects:?}");
}

#[test]
fn agreement_is_read_from_the_provenance() {
    let of = |options: Value| Table::new(vec![], Provenance { options, ..Provenance::default() }).unwrap().agreement();
    let found = of(json!({"what": {"agreement": {"variants": 3, "pearson": 0.5, "spearman": null}}})).unwrap();
    assert_eq!((found.variants, found.pearson, found.spearman), (3, Some(0.5), None));
    assert_eq!((of(json!({"what": {}})), of(json!(null)), of(json!({"what": "direct"}))), (None, None, None));
}

/// Positions on the axes of a heat map are labelled with their tokens, where all prompts of the table have the same one; the
/// labels are still there when the table comes from a file.
#[test]
fn axes_carry_the_tokens() {
    use headscope::prelude::*;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/checkpoints/tiny-gpt2");
    let model = Model::load(path).unwrap();
    let tokens = model.tokens(&["the cat sat.", "the dog sat."]).unwrap();
    let pieces = [tokens.pieces(0), tokens.pieces(1)];
    let other = (0..pieces[0].len()).find(|&at| pieces[0].get(at) != pieces[1].get(at)).unwrap();
    let sweep = || Sweep::ablate(&model, &tokens, Ablation::Zero).each(Site::ResidPre, [Every::Position]);
    let both = sweep().run().unwrap();
    let label = |at: usize| format!(">{at} {}<", pieces[0][at].replace(' ', "·"));
    let shown = |table: &Table, rows: &str| table.heatmap(rows, "position").unwrap().as_str().to_owned();
    let picture = shown(&both, "layer");
    assert!(picture.contains(&label(0)) && !picture.contains(&label(other)), "{picture}");
    let first = sweep().per_prompt().run().unwrap().filtered(|row| row.keys.prompt == Some(0)).unwrap();
    assert!(shown(&first, "layer").contains(&label(other)));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.parquet");
    both.write(&file).unwrap();
    assert_eq!(shown(&Table::read(&file).unwrap(), "layer"), picture);
    // Ids without texts are no labels.
    let bare = Tokens::new(&[vec![5, 6, 7]]).unwrap();
    let table = Sweep::ablate(&model, &bare, Ablation::Zero).each(Site::ResidPre, [Every::Position]).run().unwrap();
    assert!(shown(&table, "layer").contains(">2<"));
}

/// A table's place is one process': the lock says whose, ends with it, and a file that a dead process left is no lock.
#[test]
fn a_place_is_held_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, lock) = (folder.path().join("table.csv"), folder.path().join("table.csv.lock"));
    std::fs::write(&lock, "999999999\n").unwrap();
    let held = Table::reserve(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), format!("{}\n", std::process::id()));
    match Table::reserve(&path) {
        Err(Error::Held { path: found, holder }) => {
            assert_eq!((found, holder), (path.clone(), Some(std::process::id())));
        }
        other => panic!("{other:?}"),
    }
    drop(held);
    assert!(!lock.exists(), "a lock file was left");
    // Many at once: never two of them, and each gets it in the end.
    let inside = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let _held = loop {
                        match Table::reserve(&path) {
                            Ok(held) => break held,
                            Err(Error::Held { .. }) => std::thread::yield_now(),
                            Err(other) => panic!("{other}"),
                        }
                    };
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two at once");
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
    });
    assert!(!lock.exists());
}

/// What two heads are worth to two tasks.
fn worth() -> Table {
    let row = |(head, task, value): (u32, &str, f64)| Observation {
        keys: Keys { head: Some(head), task: Some(task.to_owned()), ..Keys::default() },
        metric: "shapley".to_owned(),
        value,
        ..Observation::default()
    };
    let rows = [(0, "first", 0.25), (0, "class", 1.5), (1, "first", 2.75), (1, "class", f64::NAN)];
    Table::new(rows.map(row).to_vec(), Provenance::default()).unwrap()
}

#[test]
fn texts_are_no_numbers() {
    let refused = worth().f64("task").unwrap_err().to_string();
    assert!(refused.contains("task") && refused.contains("texts"), "{refused}");
    assert!(worth().f64("no-such-column").is_err());
    assert_eq!(worth().f64("head").unwrap(), [0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn heat_maps_have_texts_on_an_axis() {
    let picture = worth().heatmap("head", "task").unwrap();
    for text in ["first", "class", "shapley", "missing (1)"] {
        assert!(picture.as_str().contains(text), "{text}");
    }
    assert!(worth().heatmap("head", "layer").is_err());
}

#[test]
fn means_are_of_each_value_and_leave_out_what_is_missing() {
    let row = |layer: u32, head: u32, value: f64| Observation {
        keys: Keys { layer: Some(layer), head: Some(head), ..Keys::default() },
        metric: "loss".to_owned(),
        value,
        baseline: Some(10.0),
        ..Observation::default()
    };
    let rows = vec![row(1, 0, 3.0), row(0, 0, 1.0), row(0, 1, 2.0), row(1, 1, f64::NAN), row(2, 0, f64::NAN)];
    let table = Table::new(rows, Provenance::default()).unwrap();
    assert_eq!(table.means("layer", "value").unwrap(), [(0.0, 1.5), (1.0, 3.0)]);
    assert_eq!(table.means("head", "baseline").unwrap(), [(0.0, 10.0), (1.0, 10.0)]);
    assert!(table.means("metric", "value").is_err() && table.means("position", "value").is_err());
}

/// A bar for each row, named by what the row is about.
#[test]
fn bars_have_the_names_of_their_rows() {
    let text = |text: &str| Some(text.to_owned());
    let keys = [
        Keys { layer: Some(5), head: Some(10), ..Keys::default() },
        Keys { layer: Some(3), site: text("mlp_out"), ..Keys::default() },
        Keys {
            from_layer: Some(20),
            from_head: Some(0),
            from_site: text("z"),
            from_at: text("END"),
            via: text("23.0.q"),
            site: text("logits"),
            ..Keys::default()
        },
        Keys { from_site: text("embed"), layer: Some(1), site: text("k"), kv_head: Some(2), ..Keys::default() },
        Keys { set: text("q.23.*"), parts: Some(9), ..Keys::default() },
    ];
    let row = |keys: &Keys| Observation { keys: keys.clone(), metric: "loss".to_owned(), ..Observation::default() };
    let table = Table::new(keys.iter().map(row).collect(), Provenance::default()).unwrap();
    let picture = table.bars().unwrap().svg().unwrap();
    for name in ["head 5.10", "mlp_out.3", "head 20.0@END to 23.0.q to logits", "embed to k.1.2", "q.23.*"] {
        assert!(picture.as_str().contains(&format!(">{name}<")), "{name} is not in {}", picture.as_str());
    }
}
