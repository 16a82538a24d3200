//! What did an experiment measure? Its table as values by cell, metric and seed.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::Contrast;
use super::reading::Reading;
use super::rule::Rule;
use crate::error::{Error, Result};
use crate::table::Table;

/// The metric used to compare runs at matched loss, and to decide whether they learned.
pub const EXCESS_LOSS: &str = "excess_loss";
/// 1 for a run that learned, 0 for one that did not: no row of the table, but derived from [`EXCESS_LOSS`].
pub const LEARNED: &str = "learned";

/// (metric, task).
type Name = (String, Option<String>);
/// The values of a metric, by seed and step.
pub type Runs = BTreeMap<u64, BTreeMap<u32, f64>>;
/// The measurements of a cell.
type Metrics = BTreeMap<Name, Runs>;

/// The measurements of an experiment's runs, without the rows about single heads, layers or models of a set.
pub struct Evidence {
    cells: BTreeMap<String, Metrics>,
}

impl Evidence {
    /// Reads the evidence from a table with the columns `cell`, `seed`, `metric` and `value`, plus `step` and `task`
    /// where they apply. Rows that name a head, a layer or a set are details and are skipped.
    ///
    /// # Errors
    /// If a row has no cell or no seed, or a value is given twice.
    pub fn new(table: &Table) -> Result<Self> {
        let mut cells: BTreeMap<String, Metrics> = BTreeMap::new();
        for row in table.rows()? {
            let keys = row.keys;
            if keys.head.is_some() || keys.layer.is_some() || keys.set.is_some() {
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
        let runs = self.metric(cell, metric, None);
        let last = |steps: &BTreeMap<u32, f64>| steps.last_key_value().map(|(_, value)| *value);
        runs.into_iter().flatten().filter_map(|(seed, steps)| Some((*seed, last(steps)?))).collect()
    }

    pub(super) fn metric(&self, cell: &str, metric: &str, task: Option<&String>) -> Option<&Runs> {
        self.cells.get(cell)?.get(&(metric.to_owned(), task.cloned()))
    }

    /// The seeds of which a cell has any measurement, in order.
    pub fn seeds(&self, cell: &str) -> BTreeSet<u64> {
        let metrics = self.cells.get(cell).into_iter().flat_map(BTreeMap::values);
        metrics.flat_map(BTreeMap::keys).copied().collect()
    }

    /// The seeds of a cell whose final excess loss is above `most`: runs that did not learn.
    pub fn unlearned(&self, cell: &str, most: f64) -> BTreeSet<u64> {
        let learned = |loss: f64| loss <= most; // NaN counts as not learned
        self.last(cell, EXCESS_LOSS).into_iter().filter(|(_, loss)| !learned(*loss)).map(|(seed, _)| seed).collect()
    }

    /// The first `n` seeds that all cells of a contrast have.
    pub(super) fn common(&self, contrast: &Contrast, n: usize) -> Vec<u64> {
        let mut seeds = contrast.cells().map(|cell| self.seeds(cell));
        let first = seeds.next().unwrap_or_default();
        let common = seeds.fold(first, |common, own| &common & &own);
        common.into_iter().take(n).collect()
    }

    /// The effects of the first `n` seeds. Runs that do not count, or without a finite value, are left out.
    pub(super) fn effects(&self, contrast: &Contrast, asked: &Effects<'_>, n: usize) -> BTreeMap<u64, f64> {
        let cells: Vec<(f64, BTreeMap<u64, f64>)> =
            contrast.terms.iter().map(|term| (term.weight, self.values(&term.cell, asked))).collect();
        let whole = contrast.relative_to.as_ref().map(|cell| self.values(cell, asked));
        let effect = |seed: u64| {
            let sum = cells.iter().map(|(weight, values)| Some(weight * values.get(&seed)?)).sum::<Option<f64>>()?;
            let whole = whole.as_ref().map_or(Some(1.0), |whole| whole.get(&seed).copied())?;
            Some((seed, sum / whole - contrast.level)).filter(|(_, effect)| effect.is_finite())
        };
        self.common(contrast, n).into_iter().filter_map(effect).collect()
    }

    /// The value of a metric for every run of a cell that counts.
    fn values(&self, cell: &str, asked: &Effects<'_>) -> BTreeMap<u64, f64> {
        let unlearned = self.unlearned(cell, asked.rule.learned);
        if asked.metric == LEARNED {
            let learned = |seed| (seed, f64::from(u8::from(!unlearned.contains(&seed))));
            return self.seeds(cell).into_iter().map(learned).collect();
        }
        let losses = self.metric(cell, EXCESS_LOSS, None);
        let value = |(&seed, steps): (&u64, &BTreeMap<u32, f64>)| {
            if asked.over == Over::Learned && unlearned.contains(&seed) {
                return None;
            }
            let value = asked.reading.of(steps, losses.and_then(|losses| losses.get(&seed)));
            // A run that never reaches the loss still counts among all runs, as it ended.
            let ended = || (asked.over == Over::All).then(|| Reading::End.of(steps, None)).flatten();
            Some((seed, value.or_else(ended)?))
        };
        self.metric(cell, asked.metric, asked.task).into_iter().flatten().filter_map(value).collect()
    }
}

/// Which values an effect is computed from.
pub(super) struct Effects<'a> {
    pub metric: &'a str,
    pub task: Option<&'a String>,
    pub reading: Reading,
    pub over: Over,
    pub rule: &'a Rule,
}

/// Which runs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Those that learned.
    Learned,
    /// All.
    All,
}
