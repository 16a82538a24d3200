//! How much do two variables share, counted? Discrete variables as they are, continuous ones cut into bins.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::sample::Sample;
use crate::error::{Error, Result};

/// Where to cut a column into bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BinRule {
    /// Into bins of equal counts; equal values stay together.
    #[default]
    Quantile,
    /// Into bins of equal width.
    Width,
}

/// Options of the binned estimator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinnedOptions {
    /// Bins per dimension. By default the cube root of the number of samples, between 2 and 32. A column with no more distinct
    /// values than bins is not cut.
    pub bins: Option<usize>,
    /// Where to cut.
    pub rule: BinRule,
    /// Whether to subtract the bias of counting, `(K_xy - K_x - K_y + 1) / (2 N)` with K the number of occupied cells (Miller
    /// 1955).
    pub miller_madow: bool,
}

impl Default for BinnedOptions {
    fn default() -> Self {
        Self { bins: None, rule: BinRule::Quantile, miller_madow: true }
    }
}

impl BinnedOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If there are fewer than 2 bins.
    pub fn validate(&self) -> Result<()> {
        match self.bins {
            Some(bins) if bins < 2 => Err(Error::argument("bins", "2 or more", bins)),
            _ => Ok(()),
        }
    }
}

/// How uncertain is a draw from a distribution? The entropy `-sum p ln p`, in nats, with `0 ln 0 = 0`; for instance of a row of
/// an attention pattern.
///
/// # Errors
/// If `p` is empty, a value is negative or not finite, or the sum is not 1 within 1e-6.
///
/// ```
/// use headscope::information::entropy;
/// assert!((entropy(&[0.5, 0.25, 0.25])? - 1.5 * 2f64.ln()).abs() < 1e-12); // 1.5 bits
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn entropy(p: &[f64]) -> Result<f64> {
    if let Some((index, found)) = p.iter().enumerate().find(|(_, p)| !p.is_finite()) {
        return Err(Error::NotFinite { at: "p".into(), index, found: *found });
    }
    let sum: f64 = p.iter().sum();
    if p.iter().any(|p| *p < 0.0) || (sum - 1.0).abs() > 1e-6 {
        let found = format!("a sum of {sum}, the smallest {}", p.iter().copied().fold(f64::INFINITY, f64::min));
        return Err(Error::argument("p", "probabilities that sum to 1", found));
    }
    Ok(p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum())
}

/// Counts of labels.
struct Counts {
    entropy: f64,
    occupied: usize,
}

impl Counts {
    fn of<T: std::hash::Hash + Eq + Ord + Copy>(labels: impl Iterator<Item = T>) -> Self {
        let mut counts: HashMap<T, u32> = HashMap::new();
        labels.for_each(|label| *counts.entry(label).or_default() += 1);
        // Summed in sorted order: the same labels give the same bytes, whatever the order of the hash map.
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable();
        let n: f64 = counts.iter().map(|count| f64::from(*count)).sum();
        let entropy = counts.iter().map(|count| f64::from(*count) / n).map(|p| -p * p.ln()).sum();
        Self { entropy, occupied: counts.len() }
    }
}

/// How much do two lists of labels share? `H(X) + H(Y) - H(X, Y)` of their counts, in nats, with or without the Miller-Madow
/// correction.
///
/// Without the correction it is symmetric, at most either entropy, and the entropy itself if both lists are the same.
///
/// # Errors
/// If the lists are empty or differ in length.
///
/// ```
/// use headscope::information::discrete_information;
/// let (x, y) = ([0, 1, 2, 3], [0, 0, 1, 1]);
/// assert!((discrete_information(&x, &y, false)? - 2f64.ln()).abs() < 1e-12); // y is one of the two bits of x
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn discrete_information(x: &[usize], y: &[usize], miller_madow: bool) -> Result<f64> {
    if x.len() != y.len() || x.is_empty() {
        let found = format!("{} and {}", x.len(), y.len());
        return Err(Error::argument("x, y", "two lists of labels of the same length, not empty", found));
    }
    let (a, b) = (Counts::of(x.iter()), Counts::of(y.iter()));
    let joint = Counts::of(x.iter().zip(y));
    let cells = (a.occupied + b.occupied) as f64 - joint.occupied as f64 - 1.0;
    let correction = if miller_madow { cells / (2.0 * x.len() as f64) } else { 0.0 };
    Ok(a.entropy + b.entropy - joint.entropy + correction)
}

/// The cell of each sample.
pub(super) fn cells(sample: &Sample, options: &BinnedOptions) -> Vec<usize> {
    let n = sample.rows.nrows();
    let bins = options.bins.unwrap_or((n as f64).cbrt() as usize).max(2);
    let bins = if options.bins.is_none() { bins.min(32) } else { bins };
    let mut binned = sample.clone();
    for mut column in binned.rows.columns_mut() {
        let mut sorted = column.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut distinct = sorted.clone();
        distinct.dedup();
        if distinct.len() <= bins {
            continue;
        }
        let (low, high) = (sorted[0], sorted[n - 1]);
        let bin = |value: f64| match options.rule {
            BinRule::Quantile => sorted.partition_point(|other| *other < value) * bins / n,
            BinRule::Width => (((value - low) / (high - low) * bins as f64) as usize).min(bins - 1),
        };
        column.mapv_inplace(|value| bin(value) as f64);
    }
    binned.labels()
}

/// The binned estimate, and the number of occupied joint cells.
pub(super) fn binned(x: &Sample, y: &Sample, options: &BinnedOptions) -> Result<(f64, usize)> {
    options.validate()?;
    let (x, y) = (cells(x, options), cells(y, options));
    let joint = Counts::of(x.iter().zip(&y)).occupied;
    Ok((discrete_information(&x, &y, options.miller_madow)?, joint))
}

/// I(X; Y | Z): the mean over the cells of Z, weighted by their numbers of samples.
pub(super) fn conditional(x: &Sample, y: &Sample, z: &Sample, options: &BinnedOptions) -> Result<(f64, usize)> {
    options.validate()?;
    let (x, y, z) = (cells(x, options), cells(y, options), cells(z, options));
    let mut groups: Vec<Vec<usize>> = vec![vec![]; z.iter().max().map_or(0, |most| most + 1)];
    z.iter().enumerate().for_each(|(row, &cell)| groups[cell].push(row));
    let mut sum = 0.0;
    let mut joint = 0;
    for rows in groups {
        let of = |labels: &[usize]| rows.iter().map(|&row| labels[row]).collect::<Vec<usize>>();
        let (x, y) = (of(&x), of(&y));
        sum += rows.len() as f64 * discrete_information(&x, &y, options.miller_madow)?;
        joint += Counts::of(x.iter().zip(&y)).occupied;
    }
    Ok((sum / z.len() as f64, joint))
}
