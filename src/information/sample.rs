//! Can these values be estimated from? Samples are checked, stripped of constant columns, and scaled.

use std::collections::HashMap;

use ndarray::{Array2, ArrayView2, Axis};
use rand::seq::SliceRandom;

use super::{Scaling, Warning};
use crate::error::{Error, Result};
use crate::stats::normal_quantile;

/// One variable: rows are samples.
#[derive(Clone)]
pub(super) struct Sample {
    pub rows: Array2<f64>,
}

impl Sample {
    /// Checks `values`, leaves out constant columns, and says so.
    pub fn new(name: &'static str, values: ArrayView2<f64>, warnings: &mut Vec<Warning>) -> Result<Self> {
        let (n, d) = values.dim();
        if n < 8 || d == 0 {
            return Err(Error::Shape {
                at: name.into(),
                expected: "[sample, dimension], at least 8 samples and 1 dimension".into(),
                found: vec![n as i64, d as i64],
            });
        }
        if let Some((index, found)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { at: name.into(), index, found: *found });
        }
        // Outside this range squares, and with them variances and correlations, over- or underflow: x and y would seem
        // unrelated.
        let size = |column: usize| values.column(column).iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        let fits = |size: f64| size == 0.0 || (1e-100..=1e100).contains(&size);
        if let Some((column, size)) = (0..d).map(|column| (column, size(column))).find(|(_, size)| !fits(*size)) {
            let expected = "columns whose largest value is between 1e-100 and 1e100 in size";
            return Err(Error::argument(name, expected, format!("{size:e} in column {column}")));
        }
        let varies = |column: usize| values.column(column).iter().any(|value| *value != values[[0, column]]);
        let (kept, constant): (Vec<usize>, Vec<usize>) = (0..d).partition(|&column| varies(column));
        if kept.is_empty() {
            return Err(Error::argument(name, "values that vary", format!("a constant, {}", values[[0, 0]])));
        }
        if !constant.is_empty() {
            warnings.push(Warning::Constant { variable: name, columns: constant });
        }
        Ok(Self { rows: values.select(Axis(1), &kept) })
    }

    /// Labels as a variable of one dimension.
    pub fn of_labels(labels: &[usize]) -> Self {
        Self { rows: Array2::from_shape_fn((labels.len(), 1), |(row, _)| labels[row] as f64) }
    }

    pub fn dimensions(&self) -> usize {
        self.rows.ncols()
    }

    pub fn take(&self, rows: &[usize]) -> Self {
        Self { rows: self.rows.select(Axis(0), rows) }
    }

    pub fn scaled(&self, scaling: Scaling) -> Self {
        let mut rows = self.rows.clone();
        for mut column in rows.columns_mut() {
            match scaling {
                Scaling::None => {}
                Scaling::Standard => {
                    let mean = column.mean().unwrap_or(0.0);
                    let spread = column.mapv(|value| (value - mean).powi(2)).mean().unwrap_or(0.0).sqrt();
                    let spread = if spread > 0.0 { spread } else { 1.0 };
                    column.mapv_inplace(|value| (value - mean) / spread);
                }
                Scaling::NormalScores => {
                    let n = column.len() as f64;
                    let ranks = crate::stats::ranks(&column.to_vec());
                    column.iter_mut().zip(ranks).for_each(|(value, rank)| *value = normal_quantile((rank + 0.5) / n));
                }
            }
        }
        Self { rows }
    }

    /// A number for each row, the same for equal rows, counted from 0 in order of first appearance.
    pub fn labels(&self) -> Vec<usize> {
        let mut seen: HashMap<Vec<u64>, usize> = HashMap::new();
        let label = |row: ndarray::ArrayView1<f64>, seen: &mut HashMap<Vec<u64>, usize>| {
            let bits = row.iter().map(|value| (value + 0.0).to_bits()).collect();
            let next = seen.len();
            *seen.entry(bits).or_insert(next)
        };
        self.rows.rows().into_iter().map(|row| label(row, &mut seen)).collect()
    }

    /// Shuffles the rows: the same values, related to nothing.
    pub fn shuffled(&self, rng: &mut impl rand::Rng) -> Self {
        let mut order: Vec<usize> = (0..self.rows.nrows()).collect();
        order.shuffle(rng);
        self.take(&order)
    }
}

/// Fails if most labels occur once: continuous values mistaken for labels, each of which identifies its sample.
pub(crate) fn come_again(name: &'static str, labels: usize, samples: usize) -> Result<()> {
    if 2 * labels <= samples {
        return Ok(());
    }
    let found = format!("{labels} different ones in {samples} samples (continuous values are not labels)");
    Err(Error::argument(name, "labels that occur twice or more on average", found))
}

/// Fails if one number for each sample and class would take more than 2 GiB.
pub(crate) fn check_classes(samples: usize, classes: usize) -> Result<()> {
    const MOST: usize = 1 << 28;
    if samples.saturating_mul(classes) <= MOST {
        return Ok(());
    }
    let expected = format!("at most {} for {samples} samples (2 GiB)", MOST / samples.max(1));
    Err(Error::argument("classes", expected, classes))
}

/// All columns of several variables side by side.
pub(super) fn beside(parts: &[&Sample]) -> Array2<f64> {
    let n = parts.first().map_or(0, |part| part.rows.nrows());
    let mut all = Array2::zeros((n, parts.iter().map(|part| part.dimensions()).sum()));
    let mut first = 0;
    for part in parts {
        all.slice_mut(ndarray::s![.., first..first + part.dimensions()]).assign(&part.rows);
        first += part.dimensions();
    }
    all
}

/// Fails if the variables differ in the number of samples.
pub(super) fn same_length(name: &'static str, x: ArrayView2<f64>, y: ArrayView2<f64>) -> Result<()> {
    if x.nrows() == y.nrows() {
        return Ok(());
    }
    Err(Error::Shape {
        at: name.into(),
        expected: format!("[sample {}, dimension], as many samples as x", x.nrows()),
        found: vec![y.nrows() as i64, y.ncols() as i64],
    })
}

/// Fails if a column of one variable equals a column of the other: two copies of a continuous variable share infinitely much.
pub(super) fn differ(x: &Sample, y: &Sample) -> Result<()> {
    for (i, a) in x.rows.columns().into_iter().enumerate() {
        if let Some(j) = y.rows.columns().into_iter().position(|b| a == b) {
            return Err(Error::argument(
                "x, y",
                "different variables (what two copies of a continuous variable share is infinite)",
                format!("column {i} of x again as column {j} of y"),
            ));
        }
    }
    Ok(())
}
