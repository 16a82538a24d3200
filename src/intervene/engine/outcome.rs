//! How do the values of variants become the rows of a table?

use super::Options;
use super::batch_split::Part;
use crate::error::{Error, Result};
use crate::intervene::metric::Metric;
use crate::stats::{BootstrapMethod, BootstrapOptions, bootstrap};
use crate::table::{Keys, Observation};

/// Turns values into rows.
pub(in crate::intervene) struct Outcome<'a> {
    pub metric: &'a Metric,
    /// The cell of each value: its prompt and, with one value per token, the token's position.
    pub cells: Vec<(usize, Option<usize>)>,
    /// The metric of the unchanged run, one value per cell.
    pub baseline: Vec<f64>,
    /// The metric of the run that patches come from, if values are normalised.
    pub other: Option<Vec<f64>>,
    /// Whether the normalised scale starts (0) at the unchanged run, rather than ends there (1).
    pub denoises: bool,
    pub per_prompt: bool,
    /// The seed of the bootstrap over prompts, if an interval is requested.
    pub interval: Option<u64>,
}

impl<'a> Outcome<'a> {
    /// An outcome without prompts; [`Outcome::add`] adds them.
    pub(in crate::intervene) fn new(options: &'a Options<'_>, denoises: bool) -> Self {
        let (metric, per_prompt, interval) = (&options.metric, options.per_prompt, options.interval);
        Self { metric, cells: vec![], baseline: vec![], other: None, denoises, per_prompt, interval }
    }

    /// Adds the cells of a part, the metric of its unchanged run, and that of the run that patches come from if values
    /// are normalised.
    ///
    /// # Errors
    /// If the part is the last and both ends of the normalised scale are the same.
    pub(in crate::intervene) fn add(
        &mut self,
        part: Part,
        cells: Vec<(usize, Option<usize>)>,
        baseline: &[f64],
        other: Option<Vec<f64>>,
    ) -> Result<()> {
        self.cells.extend(cells.into_iter().map(|(prompt, token)| (prompt + part.first, token)));
        self.baseline.extend_from_slice(baseline);
        if let Some(other) = other {
            self.other.get_or_insert_default().extend(other);
        }
        if part.is_last() { self.check() } else { Ok(()) }
    }

    /// Fails if values are normalised to a scale whose ends are the same.
    fn check(&self) -> Result<()> {
        let Some(other) = &self.other else { return Ok(()) };
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-300);
        let pairs = || self.baseline.iter().zip(other);
        let all = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let none = match self.per_prompt || self.cells.iter().any(|(_, token)| token.is_some()) {
            true => pairs().any(|(a, b)| same(*a, *b)),
            false => same(all(&self.baseline), all(other)),
        };
        if none {
            let expected = "a metric that differs between the clean and the corrupted run";
            return Err(Error::argument("normalised", expected, format!("{} in both", all(&self.baseline))));
        }
        Ok(())
    }

    /// The rows of one variant: one of the mean over prompts, or one per prompt or token.
    pub(in crate::intervene) fn rows(&self, keys: &Keys, values: &[f64]) -> Result<Vec<Observation>> {
        let row = |keys, [value, baseline]: [f64; 2]| Observation {
            keys,
            metric: self.metric.name().to_owned(),
            value,
            baseline: Some(baseline),
            ..Observation::default()
        };
        let by_token = self.cells.iter().any(|(_, token)| token.is_some());
        let all: Vec<usize> = (0..values.len()).collect();
        if !self.per_prompt && !by_token {
            let mut row = row(keys.clone(), self.scaled(values, &all));
            if let Some(seed) = self.interval.filter(|_| values.len() > 1) {
                let options = BootstrapOptions { method: BootstrapMethod::Percentile, ..Default::default() };
                let found = bootstrap(&all, |drawn| self.scaled(values, drawn)[0], &options, seed)?;
                (row.low, row.high) = (Some(found.low), Some(found.high));
            }
            return Ok(vec![row]);
        }
        let number = |n: usize| u32::try_from(n).ok();
        let each = self.cells.iter().enumerate().map(|(cell, (prompt, token))| {
            let keys = Keys { prompt: number(*prompt), target: token.and_then(number), ..keys.clone() };
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
