//! Tables as numbers and as pictures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::table::{Keys, Observation, Provenance, Table};

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
