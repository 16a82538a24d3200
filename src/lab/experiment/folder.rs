//! Where do the results of an experiment live? In a folder with `experiment.json` and `cells/NAME.parquet`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Experiment;
use super::looks::Part;
use super::origin::Origin;
use crate::error::{Error, Result};
use crate::file::{self, Lock};
use crate::lab::differences::differences;
use crate::lab::verdict::{EXCESS_LOSS, Evidence, Judged, Judgement, Reading, Runs, first, judge};
use crate::table::{Observation, Provenance, Table};

const DECLARATION: &str = "experiment.json";
const CELLS: &str = "cells";
const UNION: &str = "results.parquet";
const VERDICT: &str = "verdict.json";
const TIMES: &str = "times.json";

/// Notes how many seconds a cell took, beside its table. Its own file: times differ between runs of the same bytes.
pub(super) fn note_time(folder: &Path, cell: &str, seconds: f64) -> Result<()> {
    let path = folder.join(CELLS).join(format!("{cell}.seconds"));
    file::write_bytes(&path, format!("{seconds:.1}\n").as_bytes())
}

/// The seconds that each cell took, as far as it is known.
fn times(folder: &Path) -> BTreeMap<String, f64> {
    let kept = std::fs::read(folder.join(TIMES)).ok();
    let mut times: BTreeMap<String, f64> = kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default();
    for entry in std::fs::read_dir(folder.join(CELLS)).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
        let seconds = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        if let (true, Some(name), Some(seconds)) = (path.extension().is_some_and(|e| e == "seconds"), name, seconds) {
            times.insert(name, seconds);
        }
    }
    times
}

/// Path of a cell's table.
pub(super) fn cell_path(folder: &Path, cell: &str) -> PathBuf {
    folder.join(CELLS).join(format!("{cell}.parquet"))
}

/// Locks a folder against other processes that would compute the same cells. Creates the folder if it does not exist.
///
/// Shards without common cells may run concurrently. Each shard first takes its own lock, `shard-K-of-N.lock`, and then
/// checks the others: two overlapping shards that start at the same moment may both stop, but never both continue.
pub(super) fn hold(folder: &Path, shard: (usize, usize), cells: usize) -> Result<Lock> {
    let folder_of_cells = folder.join(CELLS);
    std::fs::create_dir_all(&folder_of_cells).map_err(Error::io("make", &folder_of_cells))?;
    let own = Lock::hold(&shard_path(folder, shard))?;
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for other in names.filter_map(|name| shard_of(&name)).filter(|other| *other != shard) {
        let both = |cell: usize| [shard, other].iter().all(|(k, n)| cell % n == k - 1);
        if (0..cells).any(both) {
            // A lock left by a killed process is free; taking and dropping it removes the file.
            drop(Lock::hold(&shard_path(folder, other))?);
        }
    }
    Ok(own)
}

/// Path from which a shard's lock file gets its name.
fn shard_path(folder: &Path, (k, n): (usize, usize)) -> PathBuf {
    folder.join(format!("shard-{k}-of-{n}"))
}

/// Parses the shard from the name of its lock file.
fn shard_of(name: &str) -> Option<(usize, usize)> {
    let (k, n) = name.strip_prefix("shard-")?.strip_suffix(".lock")?.split_once("-of-")?;
    Some((k.parse().ok()?, n.parse().ok()?)).filter(|(k, n)| (1..=*n).contains(k))
}

/// Writes the experiment to its folder, unless the folder already contains it.
pub(super) fn begin(experiment: &Experiment, folder: &Path) -> Result<()> {
    let path = folder.join(DECLARATION);
    if !path.exists() {
        return file::write_bytes(&path, &experiment.to_json()?);
    }
    let as_data = |experiment: &Experiment| serde_json::to_value(experiment).unwrap_or_default();
    match differences(&as_data(experiment), &as_data(&Experiment::read(&path)?)) {
        None => Ok(()),
        Some((expected, found)) => {
            let expected = format!("this experiment, or an empty folder ({expected})");
            Err(Error::argument("folder", expected, format!("another experiment in {} ({found})", path.display())))
        }
    }
}

/// The hashes of the experiment's declaration: of its JSON, and of the file in its folder, which may be older and write out
/// defaults, or leave out later fields.
pub(super) fn declarations(experiment: &Experiment, folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(DECLARATION);
    let own = experiment.sha256()?;
    Ok(if path.exists() { vec![own, file::sha256(&file::read(&path)?)] } else { vec![own] })
}

/// The union, if the folder has no cells beside it.
pub(super) fn only_union(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(UNION)).filter(|union| union.exists() && tables(folder).is_empty())
}

/// Paths of the cells' tables, sorted.
fn tables(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join(CELLS)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "parquet"));
    paths.sort();
    paths
}

/// Writes the cells that only their union still has as files of their own, so that a run can go on from what was
/// committed. Cells of another declaration are left where they are, and so are those of a damaged union, which is
/// reported through `note`.
pub(super) fn unpack(experiment: &Experiment, folder: &Path, note: fn(&str)) -> Result<()> {
    let union = folder.join(UNION);
    let absent = |part: &Part<'_>| !cell_path(folder, &part.name()).exists();
    if !union.exists() || !experiment.parts(1, experiment.cells.iter()).iter().any(absent) {
        return Ok(());
    }
    let (table, checked) = match Table::read_checked(&union) {
        Ok(read) => read,
        Err(damage @ (Error::Damaged { .. } | Error::Format { .. } | Error::Table { .. })) => {
            note(&format!("{damage}; cells that only it holds are computed again"));
            return Ok(());
        }
        Err(other) => return Err(other),
    };
    let declared = declarations(experiment, folder)?;
    let is_own = |origin: &&Origin| origin.declaration.as_ref().is_some_and(|own| declared.contains(own));
    let (origins, rows) = (origins(&table), table.rows()?);
    // Without sub-claims nothing is ever left open.
    let looks = if experiment.sub_claims.is_empty() { 1 } else { experiment.rule.looks.len() };
    for look in 1..=looks {
        for part in experiment.parts(look, experiment.cells.iter()).into_iter().filter(absent) {
            let origin = origins.get(&part.name()).filter(|origin| checked && is_own(origin));
            let Some(origin) = origin else { continue };
            let seeds = part.seed..=part.seed + (part.runs as u64 - 1);
            let own = |row: &&Observation| {
                row.keys.cell.as_ref() == Some(&part.cell.name)
                    && row.keys.seed.is_some_and(|seed| seeds.contains(&seed))
            };
            let headscope = table.provenance().headscope.clone();
            let provenance = Provenance { headscope, ..part.provenance(origin) };
            Table::new(rows.iter().filter(own).cloned().collect(), provenance)?
                .write(cell_path(folder, &part.name()))?;
        }
    }
    Ok(())
}

/// The results of an experiment's cells.
pub struct Results {
    /// The experiment.
    pub experiment: Experiment,
    /// The rows of all cells.
    pub table: Table,
    /// Names of the cells that have not been computed yet.
    pub missing: Vec<String>,
    /// Caveats about the tables: some have no checksum, or were computed for another declaration or by different
    /// commits.
    pub notes: Vec<String>,
    evidence: Evidence,
}

impl Results {
    /// Reads an experiment's folder: `experiment.json`, and the cells' tables or their union, `results.parquet`.
    ///
    /// Tables need the columns `cell`, `seed`, `metric` and `value`, plus `step`, `task`, `layer` and `head` where they
    /// apply. Any program may have written them, and `cells` may hold any number of files. Tables written by headscope
    /// are verified against the checksums stored beside them. Tables from other programs, or from versions of headscope
    /// that did not store checksums, are accepted without verification and listed in [`Results::notes`].
    ///
    /// # Errors
    /// If a file cannot be read, or a table names a cell that the experiment does not have; [`Error::Damaged`] if a
    /// table does not match its checksum.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut paths = tables(folder);
        paths.extend(only_union(folder));
        Self::of(Experiment::read(folder.join(DECLARATION))?, folder, &paths)
    }

    /// The results of the first looks only, as far as they are there.
    pub(super) fn of_looks(experiment: &Experiment, folder: &Path, looks: usize) -> Result<Self> {
        let parts = (1..=looks).flat_map(|look| experiment.parts(look, experiment.cells.iter()));
        let paths: Vec<PathBuf> =
            parts.map(|part| cell_path(folder, &part.name())).filter(|path| path.exists()).collect();
        Self::of(experiment.clone(), folder, &paths)
    }

    fn of(experiment: Experiment, folder: &Path, paths: &[PathBuf]) -> Result<Self> {
        let read = paths.iter().map(|path| Table::read_checked(path)).collect::<Result<Vec<_>>>()?;
        let unchecked: Vec<&PathBuf> =
            paths.iter().zip(&read).filter(|(_, read)| !read.1).map(|(path, _)| path).collect();
        let tables: Vec<Table> = read.iter().map(|(table, _)| table.clone()).collect();
        let origins: BTreeMap<String, Origin> = tables.iter().flat_map(origins).collect();
        let provenance = Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            options: union_options(&experiment, &origins),
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
        let notes = notes(&declarations(&experiment, folder)?, &unchecked, &origins);
        Ok(Self { experiment, table, missing, notes, evidence })
    }

    /// Reads all experiments in `folder`, which is a results folder or contains results folders; returns each with its
    /// path, sorted by name.
    ///
    /// # Errors
    /// As for [`Results::read`]; also if there is no experiment.
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
            let expected = format!("{DECLARATION}, or folders that contain it");
            return Err(Error::argument("folder", expected, format!("neither in {}", folder.display())));
        }
        found.into_iter().map(|folder| Ok((folder.clone(), Self::read(&folder)?))).collect()
    }

    /// The values of a metric in a cell, by seed and step.
    ///
    /// # Errors
    /// [`Error::Argument`] if the experiment has no such cell, or the cell no such metric.
    pub fn runs(&self, cell: &str, metric: &str, task: Option<&str>) -> Result<Runs> {
        self.experiment.cell(cell)?;
        self.evidence.runs(cell, metric, task)
    }

    /// The mean of a metric over runs at each recorded step; NaN values are skipped.
    ///
    /// # Errors
    /// As for [`Results::runs`].
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
    /// As for [`Results::runs`].
    pub fn last(&self, cell: &str, metric: &str, task: Option<&str>) -> Result<Vec<f64>> {
        let runs = self.runs(cell, metric, task)?;
        Ok(runs.into_values().filter_map(|steps| steps.last_key_value().map(|(_, value)| *value)).collect())
    }

    /// The mean of a metric over the runs of a cell, read at the end or at equal loss; runs without a value are skipped, and
    /// NaN says that there is none.
    ///
    /// # Errors
    /// As for [`Results::runs`].
    pub fn mean(&self, cell: &str, metric: &str, task: Option<&str>, reading: Reading) -> Result<f64> {
        let losses = self.evidence.runs(cell, EXCESS_LOSS, None).unwrap_or_default();
        let runs = self.runs(cell, metric, task)?;
        let values: Vec<f64> = runs.iter().filter_map(|(seed, steps)| reading.of(steps, losses.get(seed))).collect();
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The verdicts on the sub-claims.
    pub(super) fn judged(&self) -> Result<Vec<Judged>> {
        let Experiment { sub_claims, rule, .. } = &self.experiment;
        sub_claims.iter().map(|claim| judge(claim, rule, &self.evidence)).collect()
    }

    /// Judges each sub-claim by the experiment's own rule and, for comparison, each prediction of the first round by
    /// that round's rule.
    ///
    /// # Errors
    /// If the table lacks values that the rule reads.
    pub fn judge(&self) -> Result<Judgement> {
        let Experiment { rule, first_predictions, first_rule, .. } = &self.experiment;
        Ok(Judgement {
            experiment: self.experiment.id.clone(),
            title: self.experiment.title.clone(),
            rule: rule.clone(),
            cells: self.experiment.cells.len(),
            missing_cells: self.missing.clone(),
            notes: self.notes.clone(),
            sub_claims: self.judged()?,
            first: first::judge(first_predictions, first_rule, &self.evidence)?,
            first_rule: (!first_predictions.is_empty()).then(|| first_rule.clone()),
        })
    }

    /// Writes the union of the cells to `results.parquet`, a judgement to `verdict.json`, and the seconds that each cell
    /// took to `times.json`, all in `folder`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, judgement: &Judgement, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.table.write(folder.join(UNION))?;
        let path = folder.join(VERDICT);
        let json = serde_json::to_vec_pretty(judgement).map_err(|reason| Error::io("write", &path)(reason.into()))?;
        file::write_bytes(&path, &json)?;
        let times = times(folder);
        if times.is_empty() {
            return Ok(());
        }
        let path = folder.join(TIMES);
        let json = serde_json::to_vec_pretty(&times).map_err(|reason| Error::io("write", &path)(reason.into()))?;
        file::write_bytes(&path, &json)
    }
}

/// Provenance of the cells that a table holds: of its one cell, or of all cells if it is a union.
fn origins(table: &Table) -> BTreeMap<String, Origin> {
    let provenance = table.provenance();
    let name = provenance.options.pointer("/cell/name").and_then(|name| name.as_str());
    match (name, Origin::read(provenance)) {
        (Some(name), Some(origin)) => {
            let look = provenance.options.get("look").and_then(serde_json::Value::as_u64);
            let name = look.map_or_else(|| name.to_owned(), |look| format!("{name}+{look}"));
            BTreeMap::from([(name, origin)])
        }
        _ => {
            let cells = provenance.options.get("cells").cloned();
            cells.and_then(|cells| serde_json::from_value(cells).ok()).unwrap_or_default()
        }
    }
}

/// The `options` field in the provenance of the union table.
fn union_options(experiment: &Experiment, origins: &BTreeMap<String, Origin>) -> serde_json::Value {
    let mut options = json!({"experiment": experiment.id, "runs": experiment.runs});
    if !origins.is_empty() {
        options["cells"] = json!(origins);
    }
    options
}

/// Collects the caveats about an experiment's tables.
fn notes(declared: &[String], unchecked: &[&PathBuf], origins: &BTreeMap<String, Origin>) -> Vec<String> {
    let mut notes = vec![];
    if let Some(first) = unchecked.first() {
        let name = first.file_name().unwrap_or_default().to_string_lossy();
        notes.push(match unchecked.len() {
            1 => format!("no checksum: {name} was accepted without verification"),
            n => format!("no checksum: {n} tables, including {name}, were accepted without verification"),
        });
    }
    let other =
        |(_, origin): &(&String, &Origin)| origin.declaration.as_ref().is_some_and(|own| !declared.contains(own));
    if let Some((cell, _)) = origins.iter().find(other) {
        let n = origins.iter().filter(other).count();
        notes.push(format!("{n} cells were computed for another {DECLARATION} than this one ({cell})"));
    }
    let commits: BTreeSet<&str> = origins.values().map(|origin| origin.commit.as_str()).collect();
    if commits.len() > 1 {
        let commits: Vec<&str> = commits.into_iter().collect();
        notes.push(format!("cells were computed by {} different commits: {}", commits.len(), commits.join(", ")));
    }
    notes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two processes may share a folder if they have no cell in common; a stale lock blocks nobody.
    #[test]
    fn shards_that_share_cells_keep_each_other_out() {
        let folder = tempfile::tempdir().unwrap();
        let of = |shard| hold(folder.path(), shard, 12);
        let first = of((1, 3)).unwrap();
        let second = of((2, 3)).unwrap();
        for shard in [(1, 3), (1, 1), (1, 2), (4, 6), (2, 6)] {
            let other = of(shard);
            let here = Some(std::process::id());
            assert!(matches!(&other, Err(Error::Held { holder, .. }) if *holder == here), "{shard:?}: {other:?}");
        }
        let apart = of((3, 6)).unwrap();
        assert!(of((3, 3)).is_err(), "3/6 is a part of it");
        drop((first, second, apart));
        std::fs::write(folder.path().join("shard-2-of-5.lock"), "1\n").unwrap();
        drop(of((1, 1)).unwrap());
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["cells"]);
        assert!(
            hold(folder.path(), (1, 7), 3).is_ok_and(|_own| hold(folder.path(), (4, 6), 3).is_ok()),
            "no cell in common"
        );
    }
}
