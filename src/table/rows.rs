//! How do tables become rows again, and several tables one?

use polars::prelude::PolarsError;

use super::columns::Cell;
use super::{Keys, Observation, Provenance, Table};
use crate::error::{Error, Result};

impl Table {
    /// The rows of the table. Unknown columns, as in files of other programs, are ignored.
    ///
    /// # Errors
    /// If `metric` or `value` is missing, or a column has a different type.
    pub fn rows(&self) -> Result<Vec<Observation>> {
        let mut rows = vec![Observation::default(); self.len()];
        Keys::read_columns(&self.frame, &mut rows.iter_mut().map(|row| &mut row.keys).collect::<Vec<_>>())?;
        Observation::read_columns(&self.frame, &mut rows.iter_mut().collect::<Vec<_>>())?;
        let doing = || Error::table("reading column `metric`");
        let metrics = String::read_column(&self.frame, "metric")?;
        let metrics = metrics.ok_or_else(|| doing()(PolarsError::ColumnNotFound("metric".into())))?;
        for (number, (row, metric)) in rows.iter_mut().zip(metrics).enumerate() {
            let none = || {
                PolarsError::SchemaMismatch(
                    format!("expected a metric in every row, found none in row {number}").into(),
                )
            };
            row.metric = metric.ok_or_else(|| doing()(none()))?;
        }
        rows.iter_mut().zip(self.f64("value")?).for_each(|(row, value)| row.value = value);
        Ok(rows)
    }

    /// The rows of all tables in one, sorted: the same bytes for any order of the tables.
    ///
    /// # Errors
    /// As [`Table::rows`].
    pub fn union(tables: &[Self], provenance: Provenance) -> Result<Self> {
        let rows: Result<Vec<Vec<Observation>>> = tables.iter().map(Self::rows).collect();
        Self::new(rows?.into_iter().flatten().collect(), provenance)
    }

    /// The rows for which `keep` returns `true`.
    ///
    /// # Errors
    /// As [`Table::rows`].
    pub fn filtered(&self, keep: impl Fn(&Observation) -> bool) -> Result<Self> {
        let rows = self.rows()?.into_iter().filter(|row| keep(row)).collect();
        Self::new(rows, self.provenance.clone())
    }
}
