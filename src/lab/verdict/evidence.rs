//! What did an experiment measure? Its table as values by cell, metric and seed.

use std::collections::{BTreeMap, BTreeSet};

use super::rule::{Prediction, Reading, Rule};
use crate::error::{Error, Result};
use crate::table::Table;

/// The metric used to compare runs at matched loss, and to decide whether they learned.
pub const EXCESS_LOSS: &str = "excess_loss";

/// (metric, task).
type Name = (String, Option<String>);
/// The values of a metric, by seed and step.
pub type Runs = BTreeMap<u64, BTreeMap<u32, f64>>;
/// The measurements of a cell.
type Metrics = BTreeMap<Name, Runs>;

/// The measurements of an experiment's runs, without the rows about single heads or layers.
pub struct Evidence {
    cells: BTreeMap<String, Metrics>,
}

impl Evidence {
    /// Reads the evidence from a table with the columns `cell`, `seed`, `metric` and `value`, plus `step` and `task`
    /// where they apply. Rows that name a head or a layer are details and are skipped.
    ///
    /// # Errors
    /// If a row has no cell or no seed, or a value is given twice.
    pub fn new(table: &Table) -> Result<Self> {
        let mut cells: BTreeMap<String, Metrics> = BTreeMap::new();
        for row in table.rows()? {
            let keys = row.keys;
            if keys.head.is_some() || keys.layer.is_some() {
                continue;
            }
            let (Some(cell), Some(seed)) = (keys.cell, keys.seed) else {
                return Err(Error::argument("results", "a cell and a seed in every row", &row.metric));
            };
            let name = (row.metric, keys.task);
            let runs = cells.entry(cell.clone()).or_default().entry(name.clone()).or_default();
            if runs.entry(seed).or_default().insert(keys.step.unwrap_or(0), row.value).is_some() {
                let found = format!("two of {} in cell {cell}, seed {seed}", name.0);
                return Err(Error::argument("results", "one value for each cell, metric, task, seed and step", found));
            }
        }
        Ok(Self { cells })
    }

    /// The cells with any measurement.
    pub fn cells(&self) -> BTreeSet<&str> {
        self.cells.keys().map(String::as_str).collect()
    }

    /// The values of a metric in a cell, by seed and step.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are none; it names the available metrics.
    pub fn runs(&self, cell: &str, metric: &str, task: Option<&str>) -> Result<Runs> {
        let metrics = self.cells.get(cell);
        let found = metrics.and_then(|all| all.get(&(metric.to_owned(), task.map(str::to_owned))));
        found.cloned().ok_or_else(|| {
            let names: Vec<&Name> = metrics.into_iter().flat_map(BTreeMap::keys).collect();
            Error::argument("metric", format!("one of cell {cell}: {names:?}"), format!("{metric}, task {task:?}"))
        })
    }

    /// The last value of a metric in every run of a cell.
    pub(super) fn last(&self, cell: &str, metric: &str) -> BTreeMap<u64, f64> {
        let runs = self.cells.get(cell).and_then(|metrics| metrics.get(&(metric.to_owned(), None)));
        let last = |steps: &BTreeMap<u32, f64>| steps.last_key_value().map(|(_, value)| *value);
        runs.into_iter().flatten().filter_map(|(seed, steps)| Some((*seed, last(steps)?))).collect()
    }

    /// The seeds of a cell whose runs did not learn.
    pub fn unlearned(&self, cell: &str, rule: &Rule) -> BTreeSet<u64> {
        let learned = |loss: f64| loss <= rule.learned; // NaN counts as not learned
        self.last(cell, EXCESS_LOSS).into_iter().filter(|(_, loss)| !learned(*loss)).map(|(seed, _)| seed).collect()
    }

    /// The value of the prediction's metric for every run of a cell that counts; runs without a finite value are
    /// skipped.
    pub(super) fn read(&self, cell: &str, prediction: &Prediction, rule: &Rule) -> BTreeMap<u64, f64> {
        let name = (prediction.metric.clone(), prediction.task.clone());
        let Some(runs) = self.cells.get(cell).and_then(|metrics| metrics.get(&name)) else { return BTreeMap::new() };
        let out = if prediction.learned { self.unlearned(cell, rule) } else { BTreeSet::new() };
        let counted = runs.iter().filter(|(seed, _)| !out.contains(seed));
        let value = |seed: &u64, steps: &BTreeMap<u32, f64>| match prediction.reading {
            Reading::End => steps.last_key_value().map(|(_, value)| *value),
            Reading::AtExcessLoss(most) => {
                let losses = self.cells.get(cell)?.get(&(EXCESS_LOSS.to_owned(), None))?.get(seed)?;
                steps.iter().find(|(step, _)| losses.get(step).is_some_and(|loss| *loss <= most)).map(|(_, v)| *v)
            }
        };
        let finite = |(seed, steps): (&u64, &BTreeMap<u32, f64>)| {
            Some((*seed, value(seed, steps).filter(|value| value.is_finite())?))
        };
        counted.filter_map(finite).collect()
    }
}
