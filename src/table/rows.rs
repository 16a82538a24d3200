//! Tables back to rows, and several tables as one.

use polars::prelude::{DataFrame, DataType, ParquetReader, SerReader};
use std::path::Path;

use super::{Observation, Provenance, Table};
use crate::error::{Error, Result};

/// The columns of numbers beside `value`.
const NUMBERS: [&str; 4] = ["baseline", "low", "high", "z_score"];

impl Table {
    /// The table's rows. Columns that a table does not have are ignored, as those of other programs' files may be.
    ///
    /// # Errors
    /// Where `metric` or `value` is absent, or a column is of another type.
    pub fn rows(&self) -> Result<Vec<Observation>> {
        let mut rows = vec![Observation::default(); self.len()];
        macro_rules! keys {
            ($read:ident: $($name:ident),*) => {$(
                for (row, value) in rows.iter_mut().zip($read(&self.frame, stringify!($name))?.into_iter().flatten()) {
                    row.keys.$name = value;
                }
            )*};
        }
        keys!(texts: model, cell, method, from_site, site, token, task);
        keys!(whole: prompt, from_layer, from_head, layer, head, kv_head, component, position, query, key, dimension, neuron);
        keys!(whole: target, step);
        keys!(wide: seed);
        let metrics = texts(&self.frame, "metric")?;
        let metrics =
            metrics.ok_or_else(|| Error::argument("table", "a column `metric`", format!("{:?}", self.columns())))?;
        let missing = "a metric in every row";
        for (number, (row, metric)) in rows.iter_mut().zip(metrics).enumerate() {
            row.metric = metric.ok_or_else(|| Error::argument("table", missing, format!("none in row {number}")))?;
        }
        rows.iter_mut().zip(self.f64("value")?).for_each(|(row, value)| row.value = value);
        for (row, warnings) in rows.iter_mut().zip(texts(&self.frame, "warnings")?.into_iter().flatten()) {
            row.warnings = warnings;
        }
        for (row, samples) in rows.iter_mut().zip(whole(&self.frame, "samples")?.into_iter().flatten()) {
            row.samples = samples;
        }
        let known = self.columns();
        for name in NUMBERS.into_iter().filter(|name| known.iter().any(|known| known == name)) {
            for (row, value) in rows.iter_mut().zip(self.f64(name)?) {
                let place = match name {
                    "baseline" => &mut row.baseline,
                    "low" => &mut row.low,
                    "high" => &mut row.high,
                    _ => &mut row.z_score,
                };
                *place = Some(value).filter(|value| !value.is_nan());
            }
        }
        Ok(rows)
    }

    /// The rows of all tables as one, sorted: the same bytes in whatever order they come.
    ///
    /// # Errors
    /// As [`Table::rows`].
    pub fn union(tables: &[Self], provenance: Provenance) -> Result<Self> {
        let rows: Result<Vec<Vec<Observation>>> = tables.iter().map(Self::rows).collect();
        Self::new(rows?.into_iter().flatten().collect(), provenance)
    }

    /// The rows that `keep` keeps.
    ///
    /// # Errors
    /// As [`Table::rows`].
    pub fn filtered(&self, keep: impl Fn(&Observation) -> bool) -> Result<Self> {
        let rows = self.rows()?.into_iter().filter(|row| keep(row)).collect();
        Self::new(rows, self.provenance.clone())
    }

    /// Reads a Parquet file that has a table's columns, whoever wrote it: without provenance.
    ///
    /// # Errors
    /// Where the file is not there or is none.
    pub fn read_foreign(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
        let frame = ParquetReader::new(file).finish().map_err(Error::table(format!("reading {}", path.display())))?;
        Ok(Self { frame, provenance: Provenance::default() })
    }
}

/// A column as texts; nothing where there is none.
fn texts(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<String>>>> {
    let Ok(column) = frame.column(name) else { return Ok(None) };
    let doing = || Error::table(format!("reading column `{name}` as texts"));
    let column = column.cast(&DataType::String).map_err(doing())?;
    Ok(Some(column.str().map_err(doing())?.iter().map(|text| text.map(str::to_owned)).collect()))
}

/// A column as whole numbers up to 2^64; nothing where there is none.
fn wide(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<u64>>>> {
    let Ok(column) = frame.column(name) else { return Ok(None) };
    let doing = || Error::table(format!("reading column `{name}` as whole numbers"));
    let column = column.strict_cast(&DataType::UInt64).map_err(doing())?;
    Ok(Some(column.u64().map_err(doing())?.iter().collect()))
}

/// A column as whole numbers up to 2^32; nothing where there is none.
fn whole(frame: &DataFrame, name: &str) -> Result<Option<Vec<Option<u32>>>> {
    let Some(column) = wide(frame, name)? else { return Ok(None) };
    let small = |value: Option<u64>| value.map(u32::try_from).transpose();
    let column: Result<_, _> = column.into_iter().map(small).collect();
    column
        .map(Some)
        .map_err(|_| Error::argument("table", format!("numbers below 2^32 in column `{name}`"), "a larger one"))
}
