//! Bootstrap intervals.

use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{check_probability, check_sample, mean, normal_cdf, normal_quantile, stream};
use crate::error::{Error, Result};

/// An estimate and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate from the whole sample.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How often such intervals hold the true value, for instance 0.95.
    pub level: f64,
}

impl Interval {
    /// Whether a value lies within.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// How the ends of an interval come from the resampled statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BootstrapMethod {
    /// Quantiles of the resampled statistics.
    Percentile,
    /// Bias-corrected and accelerated: quantiles moved by the median bias and by how fast the spread changes with the
    /// value; second-order accurate.
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
    /// How the ends are found.
    pub method: BootstrapMethod,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        Self { resamples: 4000, level: 0.95, method: BootstrapMethod::Bca }
    }
}

impl BootstrapOptions {
    /// Fails where an option makes no sense.
    ///
    /// # Errors
    /// Where there are fewer than 100 resamples, or the level is not between 0 and 1.
    pub fn validate(&self) -> Result<()> {
        if self.resamples < 100 {
            return Err(Error::argument("resamples", "100 or more", self.resamples));
        }
        check_probability("level", self.level)
    }
}

/// How sure is the mean of these values? [`bootstrap`] with the mean as the statistic.
///
/// # Errors
/// Where there are fewer than two values, one is not finite, or an option makes no sense.
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

/// How sure is a statistic of a sample? Draws as many items with replacement, again and again, and looks how the
/// statistic varies.
///
/// Items may be numbers, pairs, or indices into something larger; they are taken to be independent. With theta the
/// statistic, theta* its resampled values, G their distribution and Phi the normal one, the ends of level 1 - 2 alpha are
///
/// - percentile: `G^-1(alpha)` and `G^-1(1 - alpha)`;
/// - BCa (Efron 1987): `G^-1(Phi(z0 + (z0 + z) / (1 - a (z0 + z))))` for `z = Phi^-1(alpha)` and `Phi^-1(1 - alpha)`, with
///   the bias `z0 = Phi^-1(P(theta* < theta) + P(theta* = theta) / 2)` and the acceleration
///   `a = sum d^3 / (6 (sum d^2)^(3/2))`, `d` the jackknife's mean minus its values.
///
/// Where every resample gives the same value the interval is that value. With few items (below ten, say) any bootstrap
/// interval is somewhat too short.
///
/// # Errors
/// Where there are fewer than two items, a statistic is not finite, an option makes no sense, or, for BCa, the estimate
/// lies outside all its resamples (so biased a statistic needs another method).
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
    let draw = |number| {
        let mut rng = stream(seed, number);
        let drawn: Vec<T> = (0..items.len()).map(|_| items[rng.random_range(0..items.len())]).collect();
        statistic(&drawn)
    };
    let mut resampled: Vec<f64> = (0..options.resamples).into_par_iter().map(draw).collect();
    check_sample("statistic", &[estimate], 1)?;
    check_sample("the statistic of a resample", &resampled, 1)?;
    resampled.sort_by(f64::total_cmp);
    let tail = (1.0 - options.level) / 2.0;
    let (low, high) = match options.method {
        BootstrapMethod::Percentile => (tail, 1.0 - tail),
        BootstrapMethod::Bca if resampled[0] == resampled[resampled.len() - 1] => (tail, 1.0 - tail),
        BootstrapMethod::Bca => {
            let bias = median_bias(estimate, &resampled)?;
            let acceleration = acceleration(items, &statistic)?;
            let moved = |p: f64| {
                let z = bias + normal_quantile(p);
                normal_cdf(bias + z / (1.0 - acceleration * z))
            };
            (moved(tail), moved(1.0 - tail))
        }
    };
    Ok(Interval { estimate, low: quantile(&resampled, low), high: quantile(&resampled, high), level: options.level })
}

/// z0: where the estimate stands among its resamples, as a normal quantile.
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

/// a: a sixth of the skewness of the jackknife's values.
fn acceleration<T: Copy + Send + Sync>(items: &[T], statistic: &(impl Fn(&[T]) -> f64 + Sync)) -> Result<f64> {
    let without = |left_out: usize| {
        let rest: Vec<T> = items[..left_out].iter().chain(&items[left_out + 1..]).copied().collect();
        statistic(&rest)
    };
    let values: Vec<f64> = (0..items.len()).into_par_iter().map(without).collect();
    check_sample("the statistic with one item left out", &values, 1)?;
    let mean = mean(&values);
    let power = |exponent| values.iter().map(|value| (mean - value).powi(exponent)).sum::<f64>();
    let spread = power(2);
    Ok(if spread > 0.0 { power(3) / (6.0 * spread.powf(1.5)) } else { 0.0 })
}

/// The `p`-quantile of sorted values, between neighbours by a straight line.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let place = p * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}
