//! How much can a simple probe use of x? V-information, online codes, selectivity.

mod code;
mod linear;
mod network;

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use code::{OnlineCode, Selectivity, online_code, selectivity};

use super::sample::{Sample, same_length};
use super::suspect::{heavy_tails, repeated};
use super::{Estimate, NOTHING, Warning};
use crate::error::{Error, Result};
use crate::stats::{BootstrapMethod, BootstrapOptions, Interval, bootstrap_mean, shuffled};
use linear::Linear;
use network::Network;

/// The functions that a probe can compute from x; usable information depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ProbeFamily {
    /// Linear functions of x.
    #[default]
    Linear,
    /// Linear functions of x and of hidden units, trained until held-back samples are predicted no better.
    Network {
        /// Number of hidden units.
        hidden: usize,
    },
}

/// Options of probes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeOptions {
    /// The functions that the probe can compute.
    pub family: ProbeFamily,
    /// Weight of the squared weights, in standardised x, relative to the mean loss.
    pub ridge: f64,
    /// Number of folds; each is predicted from the others.
    pub folds: usize,
    /// Confidence level of the interval.
    pub level: f64,
    /// Shuffles of y for the permutation null; 0 for no p-value.
    pub permutations: usize,
    /// Whether to estimate from halves and quarters of the samples, too: does the estimate still change with their number?
    pub convergence: bool,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { family: ProbeFamily::Linear, ridge: 1e-3, folds: 5, level: 0.95, permutations: 0, convergence: true }
    }
}

impl ProbeOptions {
    /// The estimator's name in tables and on the command line.
    pub fn name(&self) -> &'static str {
        match self.family {
            ProbeFamily::Linear => "vinfo",
            ProbeFamily::Network { .. } => "vinfo-mlp",
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// If the ridge is negative or not finite, there are fewer than 2 folds, a network has no hidden unit, the level is not
    /// between 0 and 1, or there are more than a million permutations.
    pub fn validate(&self) -> Result<()> {
        if !(self.ridge >= 0.0 && self.ridge.is_finite()) {
            return Err(Error::argument("ridge", "0 or more", self.ridge));
        }
        if self.folds < 2 {
            return Err(Error::argument("folds", "2 or more", self.folds));
        }
        if self.family == (ProbeFamily::Network { hidden: 0 }) {
            return Err(Error::argument("hidden", "1 or more", 0));
        }
        super::check_permutations(self.permutations)?;
        crate::stats::check_level(self.level)
    }
}

/// The targets that a probe is fitted to.
enum Known {
    Labels { labels: Vec<usize>, classes: usize },
    Numbers(Array2<f64>),
}

impl Known {
    fn outputs(&self) -> usize {
        match self {
            Self::Labels { classes, .. } => *classes,
            Self::Numbers(y) => y.ncols(),
        }
    }

    fn select(&self, rows: &[usize]) -> Self {
        match self {
            Self::Labels { labels, classes } => {
                Self::Labels { labels: rows.iter().map(|&row| labels[row]).collect(), classes: *classes }
            }
            Self::Numbers(y) => Self::Numbers(y.select(Axis(0), rows)),
        }
    }
}

/// The shares of the classes, with one added to each count.
fn shares(labels: &[usize], classes: usize) -> Array1<f64> {
    let mut counts = Array1::<f64>::ones(classes);
    labels.iter().for_each(|&label| counts[label] += 1.0);
    let all = counts.sum();
    counts / all
}

/// Turns scores into probabilities, minus 1 at the label: the gradient of its surprise. Returns the label's log-probability.
fn soften(scores: &mut [f64], label: usize) -> f64 {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let own = scores[label] - most;
    scores.iter_mut().for_each(|score| *score = (*score - most).exp());
    let all: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= all);
    scores[label] -= 1.0;
    own - all.ln()
}

/// A fitted probe.
struct Probe {
    mean: Array1<f64>,
    spread: Array1<f64>,
    body: Body,
}

enum Body {
    Linear(Linear),
    Network(Network),
}

impl Probe {
    /// `before` is a probe of similar samples, from which a linear one reaches its optimum sooner.
    fn fit(
        x: ArrayView2<f64>,
        known: &Known,
        options: &ProbeOptions,
        before: Option<&Self>,
        seed: u64,
    ) -> Result<Self> {
        let mean = x.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(x.ncols()));
        let spread = x.std_axis(Axis(0), 0.0).mapv(|s| if s > 0.0 { s } else { 1.0 });
        let scaled = (&x - &mean) / &spread;
        let body = match options.family {
            ProbeFamily::Linear => {
                let start = before.and_then(|probe| match &probe.body {
                    Body::Linear(linear) => Some(linear),
                    Body::Network(_) => None,
                });
                Body::Linear(Linear::fit(scaled.view(), known, options.ridge, start)?)
            }
            ProbeFamily::Network { hidden } => {
                Body::Network(Network::fit(scaled.view(), known, hidden, options.ridge, seed))
            }
        };
        Ok(Self { mean, spread, body })
    }

    /// `[sample, output]`: log-probabilities up to a constant, or predicted numbers.
    fn scores(&self, x: ArrayView2<f64>) -> Array2<f64> {
        let scaled = (&x - &self.mean) / &self.spread;
        match &self.body {
            Body::Linear(linear) => linear.scores(scaled.view()),
            Body::Network(network) => network.scores(scaled.view()),
        }
    }
}

/// (rows to fit, rows to predict) of each fold.
fn folds(n: usize, folds: usize, seed: u64) -> Vec<(Vec<usize>, Vec<usize>)> {
    let order = shuffled(&(0..n).collect::<Vec<_>>(), seed);
    let fold = |number: usize| {
        let (predict, fit): (Vec<_>, Vec<_>) = order.iter().enumerate().partition(|(at, _)| at % folds == number);
        let rows = |pairs: Vec<(usize, &usize)>| pairs.into_iter().map(|(_, row)| *row).collect();
        (rows(fit), rows(predict))
    };
    (0..folds).map(fold).collect()
}

/// How much can a probe with Gaussian noise use of x to predict y? `H_V(Y | nothing) - H_V(Y | X)`, in nats, on held-out
/// samples (Xu et al. 2020).
///
/// For Gaussian variables and linear probes it is at most their mutual information. If y is a single number it estimates `-1/2
/// ln(1 - R^2)` of the population. Below zero the probe overfits, and uses nothing.
///
/// Both families predict each coordinate of y by a normal distribution whose variance does not depend on x and is fitted on the
/// other folds.
///
/// # Shapes
/// `x`, `y`: \[sample, dimension\].
///
/// # Errors
/// If the variables differ in the number of samples, there are fewer than two samples per fold, a value is not finite, a
/// variable is constant, every sample occurs a few times, x determines y, or an option makes no sense.
///
/// ```
/// use headscope::information::{ProbeOptions, Truth, v_information};
/// let (x, y) = Truth::Normal { rho: 0.75 }.sample(2000, 0)?; // 0.413 nats, all of it linear
/// let found = v_information(x.view(), y.view(), &ProbeOptions::default(), 0)?;
/// assert!((found.nats() - 0.413).abs() < 0.06);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn v_information(x: ArrayView2<f64>, y: ArrayView2<f64>, options: &ProbeOptions, seed: u64) -> Result<Estimate> {
    options.validate()?;
    same_length("y", x, y)?;
    let mut warnings = vec![];
    let parts = [Sample::new("x", x, &mut warnings)?, Sample::new("y", y, &mut warnings)?];
    warnings.extend(repeated(&parts)?.into_iter().chain(heavy_tails(&parts)));
    let [x, y] = parts;
    let asked = Asked { n: x.rows.nrows(), dimensions: vec![x.dimensions(), y.dimensions()], warnings };
    let y = y.scaled(super::Scaling::Standard).rows;
    asked.answer(options, seed, |rows, order| {
        let (mut gains, mut before) = (vec![], None);
        for (fit, predict) in folds(rows.len(), options.folds, seed) {
            let of = |numbers: &[usize], from: &Array2<f64>, order: &[usize]| {
                from.select(Axis(0), &numbers.iter().map(|&i| order[i]).collect::<Vec<_>>())
            };
            let (known, wanted) = (of(&fit, &y, order), of(&predict, &y, order));
            let mean = known.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(y.ncols()));
            let (train, test) = (of(&fit, &x.rows, rows), of(&predict, &x.rows, rows));
            let probe = Probe::fit(train.view(), &Known::Numbers(known.clone()), options, before.as_ref(), seed)?;
            let spread = &known - &mean;
            let with =
                surprise(&(&known - &probe.scores(train.view())), &(&wanted - &probe.scores(test.view())), &spread)?;
            let without = surprise(&spread, &(&wanted - &mean), &spread)?;
            gains.extend(without.into_iter().zip(with).map(|(without, with)| without - with));
            before = Some(probe);
        }
        Ok(gains)
    })
}

/// The cost in nats of each held-out residual under a normal distribution with the variance of the fitted residuals, up to a
/// constant; `spread` are the residuals without a probe.
fn surprise(fitted: &Array2<f64>, held_out: &Array2<f64>, spread: &Array2<f64>) -> Result<Vec<f64>> {
    let squares = |rows: &Array2<f64>| rows.mapv(|r| r * r).sum_axis(Axis(0)) / rows.nrows() as f64;
    let (variance, all) = (squares(fitted), squares(spread));
    if let Some(column) = variance.iter().zip(&all).position(|(left, all)| *left <= 1e-14 * all) {
        let found = format!("column {column} of y, which x determines: the information is infinite");
        return Err(Error::argument("y", "values that x does not determine", found));
    }
    let cost = |row: ndarray::ArrayView1<f64>| row.iter().zip(&variance).map(|(r, v)| 0.5 * (v.ln() + r * r / v)).sum();
    Ok(held_out.rows().into_iter().map(cost).collect())
}

/// How much can a probe use of x to predict labels? `H_V(Y | nothing) - H_V(Y | X)` by softmax regression or a network with a
/// hidden layer, in nats, on held-out samples (Xu et al. 2020).
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`: \[sample\], counted from 0.
///
/// # Errors
/// As [`v_information`], and if there are fewer than two classes, or most labels occur once (continuous values are not labels).
///
/// ```
/// use headscope::information::{ProbeOptions, v_information_of_labels};
/// let labels: Vec<usize> = (0..200).map(|i| i % 2).collect();
/// let x = ndarray::Array2::from_shape_fn((200, 1), |(row, _)| labels[row] as f64 + (row as f64).sin() / 2.0);
/// let found = v_information_of_labels(x.view(), &labels, &ProbeOptions::default(), 0)?;
/// assert!(found.nats() > 0.5 && found.nats() < 2f64.ln()); // most of the one bit
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn v_information_of_labels(
    x: ArrayView2<f64>,
    labels: &[usize],
    options: &ProbeOptions,
    seed: u64,
) -> Result<Estimate> {
    options.validate()?;
    let mut warnings = vec![];
    let (x, classes) = labelled(x, labels, &mut warnings)?;
    let asked = Asked { n: labels.len(), dimensions: vec![x.dimensions(), classes], warnings };
    asked.answer(options, seed, |rows, order| {
        let mut gains = vec![];
        held_out(&x, rows, order, labels, classes, options, seed, |log_p, without, label| {
            gains.push(log_p[label] - without[label]);
        })?;
        Ok(gains)
    })
}

/// Predicts each row from the other folds, and calls `each` with its log-probabilities, those of the class shares, and its
/// label. Row `i` takes its features from row `rows[i]` of x, and its label from `order[i]`.
#[allow(clippy::too_many_arguments)]
fn held_out(
    x: &Sample,
    rows: &[usize],
    order: &[usize],
    labels: &[usize],
    classes: usize,
    options: &ProbeOptions,
    seed: u64,
    mut each: impl FnMut(&[f64], &Array1<f64>, usize),
) -> Result<()> {
    let mut before = None;
    for (fit, predict) in folds(rows.len(), options.folds, seed) {
        let of = |numbers: &[usize], order: &[usize]| numbers.iter().map(|&i| order[i]).collect::<Vec<usize>>();
        let labelled = |numbers: &[usize]| of(numbers, order).into_iter().map(|row| labels[row]).collect::<Vec<_>>();
        let known = Known::Labels { labels: labelled(&fit), classes };
        let probe = Probe::fit(x.rows.select(Axis(0), &of(&fit, rows)).view(), &known, options, before.as_ref(), seed)?;
        let without = shares(&labelled(&fit), classes).mapv(f64::ln);
        let scores = probe.scores(x.rows.select(Axis(0), &of(&predict, rows)).view());
        for (row, label) in scores.rows().into_iter().zip(labelled(&predict)) {
            each(&log_softmax(row), &without, label);
        }
        before = Some(probe);
    }
    Ok(())
}

fn log_softmax(scores: ndarray::ArrayView1<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all = most + scores.iter().map(|score| (score - most).exp()).sum::<f64>().ln();
    scores.iter().map(|score| score - all).collect()
}

/// Checks x and its labels. Returns x and the number of classes.
fn labelled(x: ArrayView2<f64>, labels: &[usize], warnings: &mut Vec<Warning>) -> Result<(Sample, usize)> {
    let x = Sample::new("x", x, warnings)?;
    let classes = classes(&x, labels)?;
    let parts = [x, Sample::of_labels(labels)];
    warnings.extend(repeated(&parts)?);
    let [x, _] = parts;
    Ok((x, classes))
}

/// Checks labels and returns the number of classes.
fn classes(x: &Sample, labels: &[usize]) -> Result<usize> {
    if labels.len() != x.rows.nrows() {
        let found = vec![labels.len() as i64];
        return Err(Error::Shape { at: "labels".into(), expected: format!("[sample {}]", x.rows.nrows()), found });
    }
    let classes = labels.iter().max().map_or(0, |most| most + 1);
    let seen = labels.iter().collect::<std::collections::HashSet<_>>().len();
    super::sample::come_again("labels", seen, labels.len())?;
    if seen < 2 || classes > labels.len() {
        return Err(Error::argument(
            "labels",
            "two or more classes, numbered from 0 without large gaps",
            format!("{seen} classes up to {classes}"),
        ));
    }
    super::check_classes(labels.len(), classes)?;
    Ok(classes)
}

/// What is asked of a probe's gains on held-out samples.
struct Asked {
    n: usize,
    dimensions: Vec<usize>,
    warnings: Vec<Warning>,
}

impl Asked {
    /// The mean gain, its interval by the bootstrap over samples, its convergence, and its null. `gains` takes row numbers of x
    /// and, for each, that of y.
    fn answer(
        mut self,
        options: &ProbeOptions,
        seed: u64,
        gains: impl Fn(&[usize], &[usize]) -> Result<Vec<f64>> + Sync,
    ) -> Result<Estimate> {
        let (n, least) = (self.n, 2 * options.folds);
        if n < least {
            return Err(Error::argument("x", format!("2 samples per fold, {least} in all"), n));
        }
        let rows: Vec<usize> = (0..n).collect();
        let interval = interval(&gains(&rows, &rows)?, options.level, seed)?;
        let estimate = interval.estimate;
        let mut convergence = vec![(n, estimate)];
        if options.convergence {
            let order = shuffled(&rows, seed.wrapping_add(1));
            for share in [2, 4].into_iter().filter(|share| n / share >= least) {
                let some = &order[..n / share];
                let of_some = gains(some, some)?;
                let (mean, error) = mean_and_error(&of_some);
                convergence.insert(0, (some.len(), mean));
                let moved = (estimate - mean).abs();
                if share == 2 && moved > 0.02 + 0.05 * estimate.abs() && moved > 2.0 * error {
                    self.warnings.push(Warning::NotConverged { half: mean });
                }
            }
        }
        let (needed, most) = (10 * self.dimensions[0], (n as f64 / 10.0).ln());
        if n < needed {
            self.warnings.push(Warning::Dimension { dimensions: self.dimensions[0], needed });
        }
        if estimate > most {
            self.warnings.push(Warning::Wall { most });
        }
        if estimate < NOTHING {
            self.warnings.push(Warning::BelowNothing);
        }
        let draws = (0..options.permutations).into_par_iter().map(|number| {
            let order = shuffled(&rows, seed.wrapping_add(2 + number as u64));
            Ok(mean_and_error(&gains(&rows, &order)?).0)
        });
        let p = super::exceeded(estimate, &draws.collect::<Result<Vec<f64>>>()?);
        let (estimator, dimensions, warnings) = (options.name(), self.dimensions, self.warnings);
        Ok(Estimate { value: estimate, interval: Some(interval), estimator, n, dimensions, p, convergence, warnings })
    }
}

/// The mean of held-out values and its bootstrap interval; for many samples by percentiles, since the correction is then
/// smaller than chance.
fn interval(values: &[f64], level: f64, seed: u64) -> Result<Interval> {
    let method = if values.len() > 1000 { BootstrapMethod::Percentile } else { BootstrapMethod::Bca };
    bootstrap_mean(values, &BootstrapOptions { resamples: 1000, level, method }, seed)
}

/// The mean and its standard error.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}
