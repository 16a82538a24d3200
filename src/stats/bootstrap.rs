//! How sure is an estimate? Bootstrap intervals of any statistic, and of many columns at once, from the same draws.

use ndarray::{Array2, ArrayView2};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{check_level, check_sample, mean, normal_cdf, normal_quantile, stream};
use crate::error::{Error, Result};

/// An estimate with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate from the whole sample.
    pub estimate: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The confidence level: how often such intervals contain the true value, for instance 0.95.
    pub level: f64,
}

impl Interval {
    /// Whether the interval contains a value.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// How to get the ends of an interval from the resampled statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BootstrapMethod {
    /// Quantiles of the resampled statistics.
    Percentile,
    /// Bias-corrected and accelerated: quantiles shifted by the median bias and by how fast the spread changes with the value;
    /// second-order accurate.
    #[default]
    Bca,
}

/// Options of [`bootstrap`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootstrapOptions {
    /// Number of resamples.
    pub resamples: usize,
    /// Confidence level.
    pub level: f64,
    /// How to get the ends.
    pub method: BootstrapMethod,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        Self { resamples: 4000, level: 0.95, method: BootstrapMethod::Bca }
    }
}

impl BootstrapOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If there are fewer than 100 or more than a million resamples, or the level is not between 0 and 1.
    pub fn validate(&self) -> Result<()> {
        if !(100..=1_000_000).contains(&self.resamples) {
            return Err(Error::argument("resamples", "from 100 to 1000000", self.resamples));
        }
        check_level(self.level)
    }
}

/// How sure is the mean of these values? [`bootstrap`] with the mean as the statistic.
///
/// # Errors
/// If there are fewer than two values, one is not finite, or an option makes no sense.
///
/// ```
/// use headscope::stats::{BootstrapOptions, bootstrap_mean};
/// let seeds = [0.31, 0.42, 0.28, 0.35, 0.40, 0.33, 0.37, 0.30];
/// let interval = bootstrap_mean(&seeds, &BootstrapOptions::default(), 0)?;
/// assert!(interval.low > 0.3 && interval.contains(0.345) && interval.high < 0.4);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn bootstrap_mean(values: &[f64], options: &BootstrapOptions, seed: u64) -> Result<Interval> {
    check_sample("values", values, 2)?;
    bootstrap(values, mean, options, seed)
}

/// How sure is a statistic of a sample? Draws as many items with replacement, many times, and looks at the spread of the
/// statistic.
///
/// Items may be numbers, pairs, or indices into something larger; they are assumed to be independent. Let theta be the
/// statistic, theta* its resampled values, G their distribution and Phi the normal one. The ends at level 1 - 2 alpha are
///
/// - percentile: `G^-1(alpha)` and `G^-1(1 - alpha)`;
/// - BCa (Efron 1987): `G^-1(Phi(z0 + (z0 + z) / (1 - a (z0 + z))))` for `z = Phi^-1(alpha)` and `Phi^-1(1 - alpha)`, with
///   the bias `z0 = Phi^-1(P(theta* < theta) + P(theta* = theta) / 2)` and the acceleration
///   `a = sum d^3 / (6 (sum d^2)^(3/2))`, `d` the jackknife's mean minus its values.
///
/// If every resample gives the same value, the interval is that value. With few items (fewer than ten, say) any bootstrap
/// interval is somewhat too short.
///
/// # Errors
/// If there are fewer than two items, a statistic is not finite, an option makes no sense, or, for BCa, the estimate lies
/// outside all its resamples (a statistic that biased needs another method).
///
/// ```
/// use headscope::stats::{BootstrapOptions, bootstrap};
/// let pairs: Vec<(f64, f64)> = (0..40).map(|i| f64::from(i)).map(|x| (x, 2.0 * x + x.sin())).collect();
/// let slope = |pairs: &[(f64, f64)]| {
///     let (xy, xx) = pairs.iter().fold((0.0, 0.0), |sums, (x, y)| (sums.0 + x * y, sums.1 + x * x));
///     xy / xx
/// };
/// let interval = bootstrap(&pairs, slope, &BootstrapOptions::default(), 0)?;
/// assert!(interval.contains(2.0) && interval.high - interval.low < 0.1);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn bootstrap<T: Copy + Send + Sync>(
    items: &[T],
    statistic: impl Fn(&[T]) -> f64 + Sync,
    options: &BootstrapOptions,
    seed: u64,
) -> Result<Interval> {
    options.validate()?;
    if items.len() < 2 {
        return Err(Error::argument("items", "2 or more", items.len()));
    }
    let estimate = statistic(items);
    let draw = |number| statistic(&drawn(items.len(), seed, number).map(|item| items[item]).collect::<Vec<T>>());
    let resampled: Vec<f64> = (0..options.resamples).into_par_iter().map(draw).collect();
    check_sample("statistic", &[estimate], 1)?;
    let without = |left_out: usize| {
        let rest: Vec<T> = items[..left_out].iter().chain(&items[left_out + 1..]).copied().collect();
        statistic(&rest)
    };
    ends(estimate, resampled, options, || (0..items.len()).into_par_iter().map(without).collect())
}

/// How sure are the means of many columns? [`bootstrap_ratios`] with each column's mean over the items that have a value.
/// Missing values are NaN.
///
/// # Shapes
/// `values`: \[item, column\]; the result: one interval for each column.
///
/// # Errors
/// As [`bootstrap_ratios`]; infinite values count as missing.
///
/// ```
/// use headscope::stats::{BootstrapOptions, bootstrap_columns};
/// let scores = ndarray::array![[0.1, 0.9], [0.2, f64::NAN], [0.3, 0.7], [0.2, 0.8]];
/// let intervals = bootstrap_columns(scores.view(), &BootstrapOptions::default(), 0)?;
/// assert!(intervals[0].is_some_and(|interval| (interval.estimate - 0.2).abs() < 1e-12));
/// assert!(intervals[1].is_some_and(|interval| interval.low >= 0.7 && interval.high <= 0.9));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn bootstrap_columns(
    values: ArrayView2<f64>,
    options: &BootstrapOptions,
    seed: u64,
) -> Result<Vec<Option<Interval>>> {
    let there = values.mapv(|value| f64::from(u8::from(value.is_finite())));
    let values = values.mapv(|value| if value.is_finite() { value } else { 0.0 });
    bootstrap_ratios(values.view(), there.view(), options, seed)
}

/// How sure are many ratios of sums? For instance the share of right answers, if items differ in their number of questions. The
/// statistic of each column is `sum above / sum below` over the items.
///
/// The resamples and the ends of the intervals are those of [`bootstrap`] with the same seed. All columns share the resamples,
/// so that columns can be compared, and one matrix product sums them all. Resamples in which `below` sums to 0 are left out for
/// that column. A column with fewer than two items above 0 in `below` has no interval.
///
/// # Shapes
/// `above`, `below`: \[item, column\]; the result: one interval for each column.
///
/// # Errors
/// If the shapes differ, a value is not finite or is negative below, an option makes no sense, or, for BCa, an estimate lies
/// outside all its resamples.
///
/// ```
/// use headscope::stats::{BootstrapOptions, bootstrap_ratios};
/// let right = ndarray::array![[3.0], [1.0], [4.0], [2.0]];
/// let questions = ndarray::array![[4.0], [2.0], [4.0], [2.0]];
/// let share = bootstrap_ratios(right.view(), questions.view(), &BootstrapOptions::default(), 0)?[0];
/// assert!(share.is_some_and(|share| share.contains(10.0 / 12.0) && share.high <= 1.0));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn bootstrap_ratios(
    above: ArrayView2<f64>,
    below: ArrayView2<f64>,
    options: &BootstrapOptions,
    seed: u64,
) -> Result<Vec<Option<Interval>>> {
    options.validate()?;
    let (items, columns) = above.dim();
    if below.dim() != above.dim() {
        let (expected, found) = (format!("[item {items}, column {columns}]"), below.shape());
        let found = found.iter().map(|&length| length as i64).collect();
        return Err(Error::Shape { at: "below".into(), expected, found });
    }
    for (name, values) in [("above", above.view()), ("below", below.view())] {
        if let Some((index, &found)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { at: name.into(), index, found });
        }
    }
    if let Some(found) = below.iter().find(|value| **value < 0.0) {
        return Err(Error::argument("below", "0 or more", found));
    }
    let mut ratios: Vec<Vec<f64>> = vec![Vec::with_capacity(options.resamples + 1); columns];
    for first in (0..=options.resamples).step_by(BLOCK) {
        let counts = counts(items, seed, first..(first + BLOCK).min(options.resamples + 1));
        let of_block = counts.dot(&above) / counts.dot(&below);
        ratios.iter_mut().zip(of_block.columns()).for_each(|(all, of_block)| all.extend(of_block));
    }
    let interval = |(column, ratios): (usize, Vec<f64>)| {
        let (above, below) = (above.column(column), below.column(column));
        if below.iter().filter(|weight| **weight > 0.0).count() < 2 {
            return Ok(None);
        }
        let (all, of) = (above.sum(), below.sum());
        let without = || {
            let rest = above.iter().zip(below).map(|(value, weight)| (all - value) / (of - weight));
            rest.filter(|ratio| ratio.is_finite()).collect()
        };
        let resampled = ratios[1..].iter().copied().filter(|ratio| ratio.is_finite()).collect();
        ends(ratios[0], resampled, options, without).map(Some)
    };
    ratios.into_par_iter().enumerate().map(interval).collect()
}

/// How many resamples are in memory at a time.
const BLOCK: usize = 128;

/// The items of a resample: as many as the sample has, drawn with replacement.
fn drawn(items: usize, seed: u64, number: usize) -> impl Iterator<Item = usize> {
    let mut rng = stream(seed, number);
    (0..items).map(move |_| rng.random_range(0..items))
}

/// How often each item counts, `[row, item]`. Row 0 is the sample itself, and row r + 1 is resample r. The same product sums
/// both, so a resample equal to the sample has exactly the sample's value.
fn counts(items: usize, seed: u64, rows: std::ops::Range<usize>) -> Array2<f64> {
    let mut counts = Array2::zeros((rows.len(), items));
    for (mut counts, row) in counts.rows_mut().into_iter().zip(rows) {
        match row.checked_sub(1) {
            Some(number) => drawn(items, seed, number).for_each(|item| counts[item] += 1.0),
            None => counts.fill(1.0),
        }
    }
    counts
}

/// The interval of an estimate from its resampled values. `jackknife` gives the values with one item left out, for BCa.
fn ends(
    estimate: f64,
    mut resampled: Vec<f64>,
    options: &BootstrapOptions,
    jackknife: impl FnOnce() -> Vec<f64>,
) -> Result<Interval> {
    check_sample("the statistic of a resample", &resampled, 1)?;
    resampled.sort_by(f64::total_cmp);
    let tail = (1.0 - options.level) / 2.0;
    let (low, high) = match options.method {
        BootstrapMethod::Percentile => (tail, 1.0 - tail),
        BootstrapMethod::Bca if resampled[0] == resampled[resampled.len() - 1] => (tail, 1.0 - tail),
        BootstrapMethod::Bca => {
            let bias = median_bias(estimate, &resampled)?;
            let acceleration = acceleration(&jackknife())?;
            let moved = |p: f64| {
                let z = bias + normal_quantile(p);
                normal_cdf(bias + z / (1.0 - acceleration * z))
            };
            (moved(tail), moved(1.0 - tail))
        }
    };
    Ok(Interval { estimate, low: quantile(&resampled, low), high: quantile(&resampled, high), level: options.level })
}

/// z0: the position of the estimate among its resamples, as a normal quantile.
fn median_bias(estimate: f64, resampled: &[f64]) -> Result<f64> {
    let below = resampled.partition_point(|&value| value < estimate);
    let not_above = resampled.partition_point(|&value| value <= estimate);
    let place = (below + not_above) as f64 / (2 * resampled.len()) as f64;
    if place == 0.0 || place == 1.0 {
        let (low, high) = (resampled[0], resampled[resampled.len() - 1]);
        return Err(Error::argument(
            "method",
            "the percentile method where the estimate lies outside its resamples",
            format!("BCa with estimate {estimate} and resamples from {low} to {high}"),
        ));
    }
    Ok(normal_quantile(place))
}

/// a: a sixth of the skewness of the jackknife values.
fn acceleration(values: &[f64]) -> Result<f64> {
    check_sample("the statistic with one item left out", values, 1)?;
    let mean = mean(values);
    let power = |exponent| values.iter().map(|value| (mean - value).powi(exponent)).sum::<f64>();
    let spread = power(2);
    Ok(if spread > 0.0 { power(3) / (6.0 * spread.powf(1.5)) } else { 0.0 })
}

/// The `p`-quantile of sorted values, interpolated linearly.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let place = p * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}
