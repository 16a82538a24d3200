//! An experiment's folder: `experiment.json` and `cells/NAME.parquet`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Experiment;
use crate::error::{Error, Result};
use crate::file;
use crate::lab::verdict::{Evidence, Judgement, Runs, claims, judge};
use crate::table::{Provenance, Table};

const DECLARATION: &str = "experiment.json";
const CELLS: &str = "cells";
const UNION: &str = "results.parquet";
const VERDICT: &str = "verdict.json";

/// Where the table of a cell stands.
pub(super) fn cell_path(folder: &Path, cell: &str) -> PathBuf {
    folder.join(CELLS).join(format!("{cell}.parquet"))
}

/// Makes the folder and writes the experiment into it, unless it is there already.
pub(super) fn begin(experiment: &Experiment, folder: &Path) -> Result<()> {
    let path = folder.join(DECLARATION);
    if path.exists() {
        return match Experiment::read(&path)? == *experiment {
            true => Ok(()),
            false => Err(Error::argument(
                "folder",
                "this experiment's or a new one",
                format!("another in {}", path.display()),
            )),
        };
    }
    let cells = folder.join(CELLS);
    std::fs::create_dir_all(&cells).map_err(Error::io("make", &cells))?;
    let json = serde_json::to_vec_pretty(experiment).map_err(|reason| Error::io("write", &path)(reason.into()))?;
    file::write_bytes(&path, &json)
}

/// What the cells of an experiment found.
pub struct Results {
    /// The experiment.
    pub experiment: Experiment,
    /// The rows of all its cells.
    pub table: Table,
    /// Names of cells that are not computed yet.
    pub missing: Vec<String>,
    evidence: Evidence,
}

impl Results {
    /// Reads an experiment's folder: `experiment.json`, and the cells' tables or their union, `results.parquet`.
    ///
    /// Tables need the columns `cell`, `seed`, `metric`, `value`, and where they apply `step`, `task`, `layer`, `head`;
    /// whoever wrote them, and in however many files in `cells`.
    ///
    /// # Errors
    /// Where something cannot be read, or a table names a cell that the experiment does not have.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let experiment = Experiment::read(folder.join(DECLARATION))?;
        let cells = folder.join(CELLS);
        let mut paths: Vec<PathBuf> = match std::fs::read_dir(&cells) {
            Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
            Err(_) => vec![],
        };
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "parquet"));
        paths.sort();
        if paths.is_empty() && folder.join(UNION).exists() {
            paths.push(folder.join(UNION));
        }
        let tables = paths.iter().map(Table::read_foreign).collect::<Result<Vec<_>>>()?;
        let provenance = Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            options: serde_json::json!({"experiment": experiment.id, "runs": experiment.runs}),
            seed: Some(experiment.seed),
            ..Provenance::default()
        };
        let table = Table::union(&tables, provenance)?;
        let evidence = Evidence::new(&table)?;
        let there = evidence.cells();
        if let Some(strange) = there.iter().find(|name| experiment.cell(name).is_err()) {
            return Err(Error::argument("results", "cells of the experiment", strange));
        }
        let names = experiment.cells.iter().map(|cell| cell.name.clone());
        let missing = names.filter(|name| !there.contains(name.as_str())).collect();
        Ok(Self { experiment, table, missing, evidence })
    }

    /// Reads all experiments of a folder, which is one's own or holds such folders; by name, each with its folder.
    ///
    /// # Errors
    /// As [`Results::read`], and where there is none.
    pub fn read_all(folder: impl AsRef<Path>) -> Result<Vec<(PathBuf, Self)>> {
        let folder = folder.as_ref();
        let is_one = |folder: &Path| folder.join(DECLARATION).is_file();
        let mut found = vec![folder.to_owned()];
        if !is_one(folder) {
            let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
            found = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(|f| is_one(f)).collect();
            found.sort();
        }
        if found.is_empty() {
            let expected = format!("{DECLARATION}, or folders with one");
            return Err(Error::argument("folder", expected, format!("neither in {}", folder.display())));
        }
        found.into_iter().map(|folder| Ok((folder.clone(), Self::read(&folder)?))).collect()
    }

    /// The runs of a cell: the values of a metric by seed and step.
    ///
    /// # Errors
    /// [`Error::Argument`] where the experiment has no such cell, or the cell no such metric.
    pub fn runs(&self, cell: &str, metric: &str, task: Option<&str>) -> Result<Runs> {
        self.experiment.cell(cell)?;
        self.evidence.runs(cell, metric, task)
    }

    /// The course of a metric: at each recorded step the mean over runs, without missing values.
    ///
    /// # Errors
    /// As [`Results::runs`].
    pub fn course(&self, cell: &str, metric: &str, task: Option<&str>) -> Result<Vec<(f64, f64)>> {
        let mut steps: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for (step, value) in self.runs(cell, metric, task)?.into_values().flatten().filter(|(_, v)| !v.is_nan()) {
            steps.entry(step).or_default().push(value);
        }
        let mean =
            |(step, values): (u32, Vec<f64>)| (f64::from(step), values.iter().sum::<f64>() / values.len() as f64);
        Ok(steps.into_iter().map(mean).collect())
    }

    /// The value of a metric at the last step of each run.
    ///
    /// # Errors
    /// As [`Results::runs`].
    pub fn last(&self, cell: &str, metric: &str, task: Option<&str>) -> Result<Vec<f64>> {
        let runs = self.runs(cell, metric, task)?;
        Ok(runs.into_values().filter_map(|steps| steps.last_key_value().map(|(_, value)| *value)).collect())
    }

    /// The verdict on each prediction and on each claim, by the experiment's own rule.
    ///
    /// # Errors
    /// Where the table does not hold what the rule reads.
    pub fn judge(&self) -> Result<Judgement> {
        let experiment = &self.experiment;
        let predictions = judge(&experiment.predictions, &experiment.rule, &self.evidence)?;
        Ok(Judgement {
            experiment: experiment.id.clone(),
            title: experiment.title.clone(),
            rule: experiment.rule.clone(),
            cells: experiment.cells.len(),
            missing_cells: self.missing.clone(),
            claims: claims(&predictions),
            predictions,
        })
    }

    /// Writes the union of the cells, `results.parquet`, and a judgement, `verdict.json`, into the folder.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn write(&self, judgement: &Judgement, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.table.write(folder.join(UNION))?;
        let path = folder.join(VERDICT);
        let json = serde_json::to_vec_pretty(judgement).map_err(|reason| Error::io("write", &path)(reason.into()))?;
        file::write_bytes(&path, &json)
    }
}
