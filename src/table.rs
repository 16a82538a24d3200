//! What does a result look like? A tidy table: one observation per row, fixed column names and types, sorted, with its
//! provenance.

use std::fmt;
use std::path::Path;

use polars::prelude::{
    Column, CsvWriter, DataFrame, DataType, JsonFormat, JsonWriter, NamedFrom, ParquetWriter, SerWriter, Series,
    StringChunked,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file;
use crate::site::Site;

mod beside;
mod columns;
mod rows;

use beside::Beside;
use columns::columns;

columns! {
    /// What an observation is about. A field that does not apply is `None`, and its column is left out.
    ///
    /// The derived order is the order of rows in a table.
    #[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    pub struct Keys {
        columns
        /// The model.
        pub model: String,
        /// The cell of an experiment's grid.
        pub cell: String,
        /// Index of the prompt in the batch.
        pub prompt: u32,
        /// How the value was obtained, if there are several ways: `exact`, `attribution`, ...
        pub method: String,
        /// The sender's layer, if the row has a sender.
        pub from_layer: u32,
        /// The sender's site, without its layer.
        pub from_site: String,
        /// The sender's head.
        pub from_head: u32,
        /// The sender's position or its name, if it sends from one only.
        pub from_at: String,
        /// The heads that a path leads through, and their inputs: `20.0.q 23.3.qkv`.
        pub via: String,
        /// The layer; the receiver's if the row has a sender.
        pub layer: u32,
        /// A site without its layer, or another part of the model.
        pub site: String,
        /// Query head.
        pub head: u32,
        /// Key/value head.
        pub kv_head: u32,
        /// Component of a decomposition, strongest first.
        pub component: u32,
        /// Position in the sequence.
        pub position: u32,
        /// The position that changes, or its name, if each variant changes the same.
        pub at: String,
        /// The position that attends (the query).
        pub query: u32,
        /// The position attended to (the key).
        pub key: u32,
        /// Number of dimensions of a site that were used.
        pub dimension: u32,
        /// Coordinate along a site's last axis; a neuron at `mlp_pre` and `mlp_post`.
        pub neuron: u32,
        /// Position of the predicted token.
        pub target: u32,
        /// Place in an order, 0 first.
        pub rank: u32,
        /// A token's text.
        pub token: String,
        /// A task or feature.
        pub task: String,
        /// Number of a variant that no other key distinguishes.
        pub variant: u32,
        /// The names of the parts that change together.
        pub set: String,
        /// How many parts change together: heads that are ablated, members of a set.
        pub parts: u32,
        /// Training step.
        pub step: u32,
        /// Seed.
        pub seed: u64,
    }
}

columns! {
    /// One observation. A field that does not apply is `None`, and its column is left out.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Observation {
        /// What the observation is about.
        pub keys: Keys,
        /// What was measured.
        pub metric: String,
        /// The measurement.
        pub value: f64,
        columns
        /// The unit of `value`, if it has one: `nats`, `logits`.
        pub unit: String,
        /// The same measurement without the intervention, if there was one.
        pub baseline: f64,
        /// Lower end of the value's interval.
        pub low: f64,
        /// Upper end of the value's interval.
        pub high: f64,
        /// The distance of the value from the mean of its null distribution, in standard deviations.
        pub z_score: f64,
        /// Number of samples.
        pub samples: u32,
        /// Reasons to doubt the value.
        pub warnings: String,
    }
}

/// Where the numbers of a table come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// headscope's version.
    pub headscope: String,
    /// The model, by the name it was loaded with.
    pub model: String,
    /// SHA-256 of the model's weight files, or of its parameters if it was created or changed in memory
    /// ([`Model::sha256`](crate::model::Model::sha256)). Empty if there is no model.
    pub sha256: String,
    /// What was computed, with all options.
    pub options: serde_json::Value,
    /// The seed, if the computation was random.
    pub seed: Option<u64>,
}

/// How well the estimates in a table agree with the exact values beside them ([`Table::agreement`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The number of variants that have both.
    pub variants: usize,
    /// Pearson's correlation of the two; `None` if one of them is constant.
    pub pearson: Option<f64>,
    /// Spearman's rank correlation of the two; `None` if one of them is constant.
    pub spearman: Option<f64>,
    /// Whether magnitudes are compared, because the estimate (AtP*) gives no signs.
    #[serde(default)]
    pub magnitudes: bool,
}

/// A tidy table and its provenance.
///
/// ```
/// use headscope::table::{Keys, Observation, Provenance, Table};
/// let keys = Keys { layer: Some(0), head: Some(3), ..Keys::default() };
/// let row = Observation { keys, metric: "loss".into(), value: 2.5, baseline: Some(2.0), ..Observation::default() };
/// let table = Table::new(vec![row], Provenance::default())?;
/// assert_eq!(table.columns(), ["layer", "head", "metric", "value", "baseline"]);
/// assert_eq!(table.f64("value")?, [2.5]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Clone)]
pub struct Table {
    frame: DataFrame,
    provenance: Provenance,
}

/// The exclusive right to compute the table at a path, from [`Table::reserve`].
#[derive(Debug)]
pub struct Reserved(#[expect(dead_code, reason = "held until it is dropped")] file::Lock);

/// A column as an axis: numbers are used as indices, and texts are numbered in order of first appearance.
pub(crate) struct Indices {
    /// The texts.
    pub names: Option<Vec<String>>,
    /// The index of each row; `None` if the value is missing.
    pub rows: Vec<Option<usize>>,
}

impl Table {
    /// Creates a table from `rows`, sorted by their keys and metric. A value that is not finite becomes a missing value
    /// (`null`), so that one of them does not cost a whole long computation.
    ///
    /// # Errors
    /// If polars rejects the columns.
    pub fn new(mut rows: Vec<Observation>, provenance: Provenance) -> Result<Self> {
        rows.sort_by(|a, b| (&a.keys, &a.metric).cmp(&(&b.keys, &b.metric)));
        let metrics = Series::new("metric".into(), rows.iter().map(|row| row.metric.as_str()).collect::<Vec<_>>());
        let values = rows.iter().map(|row| Some(row.value).filter(|value| value.is_finite())).collect::<Vec<_>>();
        let values = Series::new("value".into(), values);
        let used = |series: &Series| series.null_count() < series.len() || series.is_empty();
        let keys = Keys::to_columns(rows.iter().map(|row| &row.keys)).into_iter().filter(used);
        let rest = Observation::to_columns(rows.iter()).into_iter().filter(used);
        // Keep the column even if every value is missing.
        let columns = keys.chain([metrics, values]).chain(rest).map(Column::from).collect();
        let frame = DataFrame::new_infer_height(columns).map_err(Error::table("building a table"))?;
        Ok(Self { frame, provenance })
    }

    /// The table as a polars data frame.
    pub fn frame(&self) -> &DataFrame {
        &self.frame
    }

    /// Where the numbers come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// How well estimates agree with the exact values that [`Sweep::exact`](crate::intervene::Sweep::exact) put beside
    /// them. `None` if the table has no exact values beside estimates.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).estimate(Estimate::Attribution);
    /// let table = sweep.exact(5).run()?;
    /// assert_eq!(table.agreement().map(|agreement| agreement.variants), Some(5));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn agreement(&self) -> Option<Agreement> {
        Agreement::deserialize(&self.provenance.options["what"]["agreement"]).ok()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The column names.
    pub fn columns(&self) -> Vec<String> {
        self.frame.get_column_names().into_iter().map(ToString::to_string).collect()
    }

    /// A column as numbers; a missing value is NaN.
    ///
    /// # Errors
    /// If there is no such column, or it contains texts.
    pub fn f64(&self, column: &str) -> Result<Vec<f64>> {
        let doing = || Error::table(format!("reading column `{column}` as numbers"));
        let series = self.frame.column(column).map_err(doing())?;
        if series.dtype() == &DataType::String {
            return Err(Error::argument("column", "one of numbers", format!("texts in `{column}`")));
        }
        let series = series.cast(&DataType::Float64).map_err(doing())?;
        Ok(series.f64().map_err(doing())?.iter().map(|value| value.unwrap_or(f64::NAN)).collect())
    }

    /// The index of each row along the axis that a column forms.
    pub(crate) fn places(&self, column: &str) -> Result<Indices> {
        let doing = || Error::table(format!("reading column `{column}`"));
        let series = self.frame.column(column).map_err(doing())?;
        if series.dtype() != &DataType::String {
            let whole = |value: f64| (value >= 0.0).then_some(value as usize);
            return Ok(Indices { names: None, rows: self.f64(column)?.into_iter().map(whole).collect() });
        }
        let mut names: Vec<String> = vec![];
        let mut place = |name: &str| {
            names.iter().position(|known| known == name).unwrap_or_else(|| {
                names.push(name.to_owned());
                names.len() - 1
            })
        };
        let rows = series.str().map_err(doing())?.iter().map(|name| name.map(&mut place)).collect();
        Ok(Indices { names: Some(names), rows })
    }

    /// Whether the table has a column of this name.
    pub(crate) fn has(&self, column: &str) -> bool {
        self.frame.column(column).is_ok()
    }

    /// The effect of the intervention, `value - baseline`, for each row. In a table without a column `baseline`, where
    /// there was no intervention, it is the value itself.
    ///
    /// # Errors
    /// If the table has no column `value`.
    pub fn effect(&self) -> Result<Vec<f64>> {
        let values = self.f64("value")?;
        if !self.has("baseline") {
            return Ok(values);
        }
        Ok(values.into_iter().zip(self.f64("baseline")?).map(|(value, baseline)| value - baseline).collect())
    }

    /// The `n` rows with the largest effects in magnitude ([`Table::effect`]), largest first, missing ones last.
    ///
    /// # Errors
    /// As [`Table::effect`].
    pub fn top(&self, n: usize) -> Result<Self> {
        let sizes: Vec<f64> = self.effect()?.into_iter().map(f64::abs).collect();
        self.first(&sizes, n)
    }

    /// The `n` rows with the largest values in `column`, largest first, missing ones last.
    ///
    /// # Errors
    /// If there is no such column, or it contains texts.
    pub fn largest(&self, column: &str, n: usize) -> Result<Self> {
        self.first(&self.f64(column)?, n)
    }

    /// The `n` rows with the largest `sizes`, largest first, missing ones last.
    fn first(&self, sizes: &[f64], n: usize) -> Result<Self> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        let size = |row: usize| if sizes[row].is_nan() { f64::NEG_INFINITY } else { sizes[row] };
        order.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
        self.take(order.into_iter().take(n))
    }

    /// The `n` rows with the largest values for each metric (and task, if there are tasks), largest first.
    ///
    /// # Errors
    /// If the table has no column `value`, or polars fails to select the rows.
    pub fn leading(&self, n: usize) -> Result<Self> {
        let values = self.f64("value")?;
        let text = |column: &str| -> Vec<String> {
            let column = self.frame.column(column).ok().and_then(|column| column.str().ok().cloned());
            let read = |column: StringChunked| column.iter().map(|text| text.unwrap_or_default().to_owned()).collect();
            column.map_or_else(|| vec![String::new(); self.len()], read)
        };
        let groups: Vec<(String, String)> = text("task").into_iter().zip(text("metric")).collect();
        let mut order: Vec<usize> = (0..self.len()).filter(|&row| !values[row].is_nan()).collect();
        order.sort_by(|&a, &b| groups[a].cmp(&groups[b]).then(values[b].total_cmp(&values[a])));
        let first = order.chunk_by(|&a, &b| groups[a] == groups[b]).flat_map(|group| &group[..n.min(group.len())]);
        self.take(first.copied())
    }

    /// The given rows, in the given order.
    fn take(&self, rows: impl Iterator<Item = usize>) -> Result<Self> {
        let rows: Vec<u32> = rows.filter_map(|row| u32::try_from(row).ok()).collect();
        let rows = polars::prelude::IdxCa::new("row".into(), rows);
        let frame = self.frame.take(&rows).map_err(Error::table("taking rows"))?;
        Ok(Self { frame, provenance: self.provenance.clone() })
    }

    /// The heads, as (layer, head), of a table with one row per head, largest effect in magnitude first.
    ///
    /// # Errors
    /// If the table has no columns `layer` and `head`.
    pub fn heads_by_effect(&self) -> Result<Vec<(usize, usize)>> {
        let sorted = self.top(self.len())?;
        let (layers, heads) = (sorted.f64("layer")?, sorted.f64("head")?);
        Ok(layers.into_iter().zip(heads).map(|(layer, head)| (layer as usize, head as usize)).collect())
    }

    /// The points (x, [effect](Table::effect)) of the table, sorted by column `x`, for a line plot. If x is the layer, residual
    /// streams stand where they are: `resid_pre` at its layer, `resid_mid` half a layer and `resid_post` a whole layer on.
    ///
    /// # Errors
    /// If the table has no such column.
    pub fn curve(&self, x: &str) -> Result<Vec<(f64, f64)>> {
        let sites = self.frame.column("site").ok().and_then(|names| names.str().ok().cloned());
        let kind = |row: usize| sites.as_ref().filter(|_| x == "layer")?.get(row);
        let further = |row: usize| match kind(row) {
            Some("resid_mid") => 0.5,
            Some("resid_post") => 1.0,
            _ => 0.0,
        };
        // Other sites of one layer in the order of the forward pass.
        let order = |row: usize| sites.as_ref()?.get(row).and_then(Site::of_kind);
        let xs = self.f64(x)?.into_iter().enumerate().map(|(row, x)| x + further(row));
        let mut points: Vec<(usize, (f64, f64))> = xs.zip(self.effect()?).enumerate().collect();
        points.sort_by(|(row, a), (other, b)| a.0.total_cmp(&b.0).then_with(|| order(*row).cmp(&order(*other))));
        Ok(points.into_iter().map(|(_, point)| point).collect())
    }

    /// The mean of a numeric column over the rows of each value of column `by`: pairs of a value and a mean, sorted, for a
    /// line plot. Missing numbers are left out.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).run()?; // a row for each head
    /// assert_eq!(table.means("layer", "value")?.len(), 3);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the table has no such column, or it contains texts.
    pub fn means(&self, by: &str, column: &str) -> Result<Vec<(f64, f64)>> {
        let mut rows: Vec<(f64, f64)> = self.f64(by)?.into_iter().zip(self.f64(column)?).collect();
        rows.retain(|(value, number)| value.is_finite() && number.is_finite());
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mean = |rows: &[(f64, f64)]| (rows[0].0, rows.iter().map(|row| row.1).sum::<f64>() / rows.len() as f64);
        Ok(rows.chunk_by(|a, b| a.0 == b.0).map(mean).collect())
    }

    /// How the effects, in magnitude, are distributed over the values of column `by`: pairs of a value and its share of
    /// the sum over all rows, sorted.
    ///
    /// # Errors
    /// If the table has no such column, or all effects for a value are zero.
    pub fn share(&self, by: &str) -> Result<Vec<(f64, f64)>> {
        let groups = self.effects_by(by)?;
        let all: f64 = groups.iter().flat_map(|(_, effects)| effects).sum();
        Ok(groups.iter().map(|(value, effects)| (*value, effects.iter().sum::<f64>() / all)).collect())
    }

    /// For each value of column `by`, the share of its strongest row in its effects, in magnitude: pairs of a value and
    /// a share, sorted.
    ///
    /// # Errors
    /// As [`Table::share`].
    pub fn strongest_share(&self, by: &str) -> Result<Vec<(f64, f64)>> {
        let strongest = |effects: &[f64]| effects.iter().copied().fold(0.0, f64::max) / effects.iter().sum::<f64>();
        Ok(self.effects_by(by)?.iter().map(|(value, effects)| (*value, strongest(effects))).collect())
    }

    /// The magnitudes of the effects, grouped by a numeric column, sorted.
    fn effects_by(&self, by: &str) -> Result<Vec<(f64, Vec<f64>)>> {
        let effects = self.effect()?.into_iter().map(f64::abs);
        let mut rows: Vec<(f64, f64)> = self.f64(by)?.into_iter().zip(effects).collect();
        rows.retain(|(value, effect)| value.is_finite() && effect.is_finite());
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let groups = rows
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| (group[0].0, group.iter().map(|row| row.1).collect::<Vec<f64>>()));
        let groups: Vec<(f64, Vec<f64>)> = groups.collect();
        match groups.iter().find(|(_, effects)| effects.iter().sum::<f64>() == 0.0) {
            Some((value, _)) => {
                Err(Error::argument("table", "an effect in every group", format!("none for {by} = {value}")))
            }
            None => Ok(groups),
        }
    }

    /// Writes the table in the format given by the extension of `path`: `.parquet`, `.csv` or `.json` (a list of
    /// objects). A Parquet file is accompanied by its provenance in `<name>.provenance.json`, with the checksums that
    /// [`Table::read`] verifies.
    ///
    /// # Errors
    /// If the extension is a different one, or the file cannot be written. A file is never left half-written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut frame = self.frame.clone();
        let doing = || Error::table(format!("writing {}", path.display()));
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("parquet") => {
                let mut bytes = vec![];
                ParquetWriter::new(&mut bytes).finish(&mut frame).map_err(doing())?;
                Beside::new(&self.provenance, &bytes)?.write(path)?;
                file::write_bytes(path, &bytes)
            }
            Some("csv") => file::write_whole(path, |file| CsvWriter::new(file).finish(&mut frame).map_err(doing())),
            Some("json") => file::write_whole(path, |file| {
                JsonWriter::new(file).with_json_format(JsonFormat::Json).finish(&mut frame).map_err(doing())
            }),
            _ => Self::check_path(path),
        }
    }

    /// Checks that a table can be written to `path`. Call it before a long computation.
    ///
    /// # Errors
    /// If the extension is not that of a table, or the folder does not exist.
    pub fn check_path(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !path
            .extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|ending| ["parquet", "csv", "json"].contains(&ending))
        {
            return Err(Error::argument("out", "a name ending in .parquet, .csv or .json", path.display()));
        }
        file::check_folder(path)
    }

    /// Keeps other processes from computing the table at `path` until the returned value is dropped or this process
    /// ends. The file `PATH.lock` contains the id of this process; a lock file left by a killed process is taken over.
    ///
    /// ```
    /// use headscope::Error;
    /// use headscope::table::Table;
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("table.parquet");
    /// let reserved = Table::reserve(&path)?;
    /// assert!(matches!(Table::reserve(&path), Err(Error::Held { .. })));
    /// drop(reserved);
    /// Table::reserve(&path)?;
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If another process holds the lock ([`Error::Held`], without waiting), or the folder is not writable.
    pub fn reserve(path: impl AsRef<Path>) -> Result<Reserved> {
        file::Lock::hold(path.as_ref()).map(Reserved)
    }

    /// Reads a table that [`Table::write`] wrote as Parquet.
    ///
    /// # Errors
    /// If the file or its provenance is missing or malformed, or has changed since it was written ([`Error::Damaged`]).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (table, _) = Self::read_beside(path, Some(Beside::read(path)?))?;
        Ok(table)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.frame.fmt(f)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} rows: {})", self.len(), self.columns().join(", "))
    }
}
