//! How do the values of variants become the rows of a table?

use super::Options;
use super::batch_split::Part;
use crate::error::{Error, Result};
use crate::intervene::metric::{Cell, Metric};
use crate::stats::{BootstrapMethod, BootstrapOptions, bootstrap};
use crate::table::{Keys, Observation};

/// Turns values into rows.
pub(in crate::intervene) struct Outcome<'a> {
    metrics: &'a [Metric],
    /// What each value is of.
    pub cells: Vec<Cell>,
    /// The metrics of the unchanged run, one value per cell.
    pub baseline: Vec<f64>,
    /// The metrics of the run that patches come from, if values are normalised.
    other: Option<Vec<f64>>,
    /// Whether the normalised scale starts (0) at the unchanged run, rather than ends there (1).
    denoises: bool,
    per_prompt: bool,
    /// The seed of the bootstrap over prompts, if an interval is requested.
    interval: Option<u64>,
}

impl<'a> Outcome<'a> {
    /// An outcome without prompts; [`Outcome::add`] adds them.
    pub(in crate::intervene) fn new(options: &'a Options<'_>, denoises: bool) -> Self {
        let (metrics, per_prompt, interval) = (options.metrics.as_slice(), options.per_prompt, options.interval);
        Self { metrics, cells: vec![], baseline: vec![], other: None, denoises, per_prompt, interval }
    }

    /// Adds the cells of a part, the metrics of its unchanged run, and those of the run that patches come from if
    /// values are normalised.
    ///
    /// # Errors
    /// If the part is the last and both ends of the normalised scale are the same.
    pub(in crate::intervene) fn add(
        &mut self,
        part: Part,
        cells: Vec<Cell>,
        baseline: &[f64],
        other: Option<Vec<f64>>,
    ) -> Result<()> {
        self.cells.extend(cells.into_iter().map(|cell| Cell { prompt: cell.prompt + part.first, ..cell }));
        self.baseline.extend_from_slice(baseline);
        if let Some(other) = other {
            self.other.get_or_insert_default().extend(other);
        }
        if part.is_last() { (0..self.metrics.len()).try_for_each(|metric| self.check(metric)) } else { Ok(()) }
    }

    /// The cells of a metric.
    fn of(&self, metric: usize) -> Vec<usize> {
        (0..self.cells.len()).filter(|&cell| self.cells[cell].metric == metric).collect()
    }

    fn by_token(&self) -> bool {
        self.cells.iter().any(|cell| cell.token.is_some())
    }

    /// Fails if values are normalised to a scale whose ends are the same.
    fn check(&self, metric: usize) -> Result<()> {
        let Some(other) = &self.other else { return Ok(()) };
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-300);
        let cells = self.of(metric);
        let all = |values: &[f64]| cells.iter().map(|&cell| values[cell]).sum::<f64>() / cells.len() as f64;
        let none = match self.per_prompt || self.by_token() {
            true => cells.iter().any(|&cell| same(self.baseline[cell], other[cell])),
            false => same(all(&self.baseline), all(other)),
        };
        if none {
            let expected = "a metric that differs between the clean and the corrupted run";
            let found = format!("{} {} in both", self.metrics[metric].name(), all(&self.baseline));
            return Err(Error::argument("normalised", expected, found));
        }
        Ok(())
    }

    /// The rows of one variant: for each metric one of the mean over prompts, or one per prompt or token.
    pub(in crate::intervene) fn rows(&self, keys: &Keys, values: &[f64]) -> Result<Vec<Observation>> {
        let rows = (0..self.metrics.len()).map(|metric| self.rows_of(metric, keys, values));
        Ok(rows.collect::<Result<Vec<_>>>()?.concat())
    }

    fn rows_of(&self, metric: usize, keys: &Keys, values: &[f64]) -> Result<Vec<Observation>> {
        let row = |keys, [value, baseline]: [f64; 2]| Observation {
            keys,
            metric: self.metrics[metric].name().to_owned(),
            value,
            unit: self.metrics[metric].unit_of_rows().filter(|_| self.other.is_none()),
            baseline: Some(baseline),
            ..Observation::default()
        };
        let all = self.of(metric);
        if !self.per_prompt && !self.by_token() {
            let mut row = row(keys.clone(), self.scaled(values, &all));
            if let Some(seed) = self.interval.filter(|_| all.len() > 1) {
                let options = BootstrapOptions { method: BootstrapMethod::Percentile, ..Default::default() };
                let found = bootstrap(&all, |drawn| self.scaled(values, drawn)[0], &options, seed)?;
                (row.low, row.high) = (Some(found.low), Some(found.high));
            }
            return Ok(vec![row]);
        }
        let number = |n: usize| u32::try_from(n).ok();
        let each = all.into_iter().map(|cell| {
            let Cell { prompt, token, .. } = self.cells[cell];
            let keys = Keys { prompt: number(prompt), target: token.and_then(number), ..keys.clone() };
            row(keys, self.scaled(values, &[cell]))
        });
        Ok(each.collect())
    }

    /// Value and baseline, averaged over some cells and normalised if requested.
    fn scaled(&self, values: &[f64], cells: &[usize]) -> [f64; 2] {
        let mean = |values: &[f64]| cells.iter().map(|&cell| values[cell]).sum::<f64>() / cells.len() as f64;
        let (value, baseline) = (mean(values), mean(&self.baseline));
        match self.other.as_deref().map(mean) {
            Some(clean) if self.denoises => [(value - baseline) / (clean - baseline), 0.0],
            Some(corrupt) => [(value - corrupt) / (baseline - corrupt), 1.0],
            None => [value, baseline],
        }
    }
}
