//! What a simple probe can use: V-information, online codes, selectivity.

use ndarray::{Array2, ArrayView2, Axis, concatenate};
use ndarray_linalg::{FactorizeC, SolveC, UPLO};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::logistic::Logistic;
use super::sample::{Sample, same_length};
use super::{Estimate, Warning};
use crate::error::{Error, Result};
use crate::stats::{BootstrapOptions, Interval, bootstrap_mean, shuffled, stream};

/// Options of linear probes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeOptions {
    /// Weight of the squared weights, in standardised x, relative to the mean loss.
    pub ridge: f64,
    /// Number of folds, each predicted from the others.
    pub folds: usize,
    /// Confidence level of the interval.
    pub level: f64,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { ridge: 1e-3, folds: 5, level: 0.95 }
    }
}

impl ProbeOptions {
    /// Fails where an option makes no sense.
    ///
    /// # Errors
    /// Where the ridge is negative or not finite, there are fewer than 2 folds, or the level is not between 0 and 1.
    pub fn validate(&self) -> Result<()> {
        if !(self.ridge >= 0.0 && self.ridge.is_finite()) {
            return Err(Error::argument("ridge", "0 or more", self.ridge));
        }
        if self.folds < 2 {
            return Err(Error::argument("folds", "2 or more", self.folds));
        }
        crate::stats::check_probability("level", self.level)
    }
}

/// x, standardised on the rows that the probe is fitted to, with a column of ones.
fn features(x: &Sample, fit: &[usize], predict: &[usize]) -> (Array2<f64>, Array2<f64>) {
    let rows = x.rows.select(Axis(0), fit);
    let mean = rows.mean_axis(Axis(0)).unwrap_or_else(|| ndarray::Array1::zeros(x.dimensions()));
    let spread = rows.std_axis(Axis(0), 0.0).mapv(|s| if s > 0.0 { s } else { 1.0 });
    let with_ones = |rows: Array2<f64>| {
        let scaled = (rows - &mean) / &spread;
        let ones = Array2::ones((scaled.nrows(), 1));
        concatenate(Axis(1), &[scaled.view(), ones.view()]).unwrap_or(scaled)
    };
    (with_ones(rows), with_ones(x.rows.select(Axis(0), predict)))
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

/// How much can a linear probe with Gaussian noise use of x to predict y? `H_V(Y | nothing) - H_V(Y | X)`, in nats, held out
/// (Xu et al. 2020); for Gaussian variables at most their information, and `-1/2 ln(1 - R^2)` of the population where y is a
/// number. Below zero where the probe overfits: it then uses nothing.
///
/// Both families predict each coordinate of y by a normal distribution whose variance does not depend on x, fitted on the
/// other folds.
///
/// # Shapes
/// `x`, `y`: \[sample, dimension\].
///
/// # Errors
/// Where the samples differ in number, are fewer than two a fold, are not finite, a variable is constant, or an option makes
/// no sense.
pub fn v_information(x: ArrayView2<f64>, y: ArrayView2<f64>, options: &ProbeOptions, seed: u64) -> Result<Estimate> {
    options.validate()?;
    same_length("y", x, y)?;
    let mut warnings = vec![];
    let (x, y) = (Sample::new("x", x, &mut warnings)?, Sample::new("y", y, &mut warnings)?);
    enough(x.rows.nrows(), options.folds)?;
    let mut gains = vec![];
    for (fit, predict) in folds(x.rows.nrows(), options.folds, seed) {
        let (train, test) = features(&x, &fit, &predict);
        let (known, wanted) = (y.rows.select(Axis(0), &fit), y.rows.select(Axis(0), &predict));
        let weights = ridge(&train, &known, options.ridge)?;
        let ones = |rows: usize| Array2::<f64>::ones((rows, 1));
        let mean = ridge(&ones(fit.len()), &known, 0.0)?;
        let spread = &known - &ones(fit.len()).dot(&mean);
        let with = surprise(&(&known - &train.dot(&weights)), &(&wanted - &test.dot(&weights)), &spread)?;
        let without = surprise(&spread, &(&wanted - &ones(predict.len()).dot(&mean)), &spread)?;
        gains.extend(without.into_iter().zip(with).map(|(without, with)| without - with));
    }
    estimate("v-information", gains, vec![x.dimensions(), y.dimensions()], warnings, options, seed)
}

fn enough(n: usize, folds: usize) -> Result<()> {
    if n >= 2 * folds {
        Ok(())
    } else {
        Err(Error::argument("x", format!("2 samples a fold, {} in all", 2 * folds), n))
    }
}

/// Least squares with ridge on all columns but the last, that of ones.
fn ridge(x: &Array2<f64>, y: &Array2<f64>, ridge: f64) -> Result<Array2<f64>> {
    let (n, d) = x.dim();
    let mut gram = x.t().dot(x) / n as f64;
    for i in 0..d - 1 {
        gram[[i, i]] += ridge.max(1e-10);
    }
    let failed = |reason| Error::argument("x", "columns that a probe can be fitted to", reason);
    let gram = gram.factorizec(UPLO::Lower).map_err(failed)?;
    let right = x.t().dot(y) / n as f64;
    let mut weights = Array2::zeros((d, y.ncols()));
    for (mut weights, right) in weights.columns_mut().into_iter().zip(right.columns()) {
        weights.assign(&gram.solvec(&right.to_owned()).map_err(failed)?);
    }
    Ok(weights)
}

/// The nats that each held-out residual costs under a normal distribution with the variance of the fitted ones, up to a
/// constant; `spread` is what no probe at all leaves.
fn surprise(fitted: &Array2<f64>, held_out: &Array2<f64>, spread: &Array2<f64>) -> Result<Vec<f64>> {
    let squares = |rows: &Array2<f64>| rows.mapv(|r| r * r).sum_axis(Axis(0)) / rows.nrows() as f64;
    let (variance, all) = (squares(fitted), squares(spread));
    if let Some(column) = variance.iter().zip(&all).position(|(left, all)| *left <= 1e-14 * all) {
        let found = format!("column {column} of y, which x determines linearly: the information is infinite");
        return Err(Error::argument("y", "what x does not determine linearly", found));
    }
    let cost = |row: ndarray::ArrayView1<f64>| row.iter().zip(&variance).map(|(r, v)| 0.5 * (v.ln() + r * r / v)).sum();
    Ok(held_out.rows().into_iter().map(cost).collect())
}

/// The mean of held-out gains, its interval by the bootstrap over samples.
fn estimate(
    estimator: &'static str,
    gains: Vec<f64>,
    dimensions: Vec<usize>,
    mut warnings: Vec<Warning>,
    options: &ProbeOptions,
    seed: u64,
) -> Result<Estimate> {
    let bootstrap = BootstrapOptions { resamples: 1000, level: options.level, ..BootstrapOptions::default() };
    let interval: Interval = bootstrap_mean(&gains, &bootstrap, seed)?;
    let (n, needed) = (gains.len(), 10 * dimensions[0]);
    if n < needed {
        warnings.push(Warning::Dimension { dimensions: dimensions[0], needed });
    }
    Ok(Estimate { interval, estimator, n, dimensions, p: None, convergence: vec![(n, interval.estimate)], warnings })
}

/// Checks labels and returns the number of classes.
fn classes(x: &Sample, labels: &[usize]) -> Result<usize> {
    if labels.len() != x.rows.nrows() {
        let found = vec![labels.len() as i64];
        return Err(Error::Shape { at: "labels".into(), expected: format!("[sample {}]", x.rows.nrows()), found });
    }
    let classes = labels.iter().max().map_or(0, |most| most + 1);
    let seen = labels.iter().collect::<std::collections::HashSet<_>>().len();
    if seen < 2 || classes > labels.len() {
        return Err(Error::argument(
            "labels",
            "two or more classes, numbered from 0 without great gaps",
            format!("{seen} classes up to {classes}"),
        ));
    }
    Ok(classes)
}

/// The log-probabilities of held-out rows, and those of the classes' shares alone (one added to each count).
fn predictions(
    x: &Sample,
    labels: &[usize],
    classes: usize,
    fit: &[usize],
    predict: &[usize],
    ridge: f64,
) -> Result<(Array2<f64>, Vec<f64>)> {
    let (train, test) = features(x, fit, predict);
    let known: Vec<usize> = fit.iter().map(|&row| labels[row]).collect();
    let probe = Logistic::fit(train.view(), &known, classes, ridge)?;
    let mut counts = vec![1.0; classes];
    known.iter().for_each(|&label| counts[label] += 1.0);
    let all = counts.iter().sum::<f64>();
    Ok((probe.log_probabilities(test.view()), counts.iter().map(|count| (count / all).ln()).collect()))
}

/// How much can a linear probe use of x to predict labels? `H_V(Y | nothing) - H_V(Y | X)` by softmax regression, in nats,
/// held out (Xu et al. 2020).
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`: \[sample\], numbered from 0.
///
/// # Errors
/// As [`v_information`]; and where there are fewer than two classes.
pub fn v_information_of_labels(
    x: ArrayView2<f64>,
    labels: &[usize],
    options: &ProbeOptions,
    seed: u64,
) -> Result<Estimate> {
    options.validate()?;
    let mut warnings = vec![];
    let x = Sample::new("x", x, &mut warnings)?;
    let classes = classes(&x, labels)?;
    enough(labels.len(), options.folds)?;
    let mut gains = vec![];
    for (fit, predict) in folds(labels.len(), options.folds, seed) {
        let (with, without) = predictions(&x, labels, classes, &fit, &predict, options.ridge)?;
        gains.extend(predict.iter().enumerate().map(|(at, &row)| with[[at, labels[row]]] - without[labels[row]]));
    }
    estimate("v-information", gains, vec![x.dimensions(), classes], warnings, options, seed)
}

/// What sending labels costs, in nats, to one who has x.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OnlineCode {
    /// The length with a probe that learns from what was sent already.
    pub codelength: f64,
    /// The length without x and without learning: `n ln K` (`n log2 K` bits).
    pub uniform: f64,
    /// `uniform / codelength`: above 1 where x helps.
    pub compression: f64,
}

/// How many nats does it take to send labels to one who has x? The online code (Voita & Titov 2020): the first block is sent
/// at `ln K` each, every further one with a linear probe fitted to all that came before. A short code needs labels that are
/// easy to get out of x from few examples, where accuracy asks only whether many suffice. Blocks end at 0.1, 0.2, 0.4, 0.8,
/// 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 % of the samples, in an order drawn with the seed.
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`: \[sample\], numbered from 0.
///
/// # Errors
/// As [`v_information_of_labels`].
pub fn online_code(x: ArrayView2<f64>, labels: &[usize], options: &ProbeOptions, seed: u64) -> Result<OnlineCode> {
    options.validate()?;
    let x = Sample::new("x", x, &mut vec![])?;
    let classes = classes(&x, labels)?;
    let n = labels.len();
    let order = shuffled(&(0..n).collect::<Vec<_>>(), seed);
    let ends = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0];
    let mut ends: Vec<usize> =
        ends.iter().map(|share| ((share * n as f64).round() as usize).max(classes.min(n))).collect();
    ends.dedup();
    let mut codelength = ends[0] as f64 * (classes as f64).ln();
    for pair in ends.windows(2) {
        let (fit, predict) = (&order[..pair[0]], &order[pair[0]..pair[1]]);
        let (log_p, _) = predictions(&x, labels, classes, fit, predict, options.ridge)?;
        // A probe from few examples can be sure and wrong: a hundredth of the uniform code is mixed in, as a coder would.
        let cost = |(at, &row): (usize, &usize)| -(0.99 * log_p[[at, labels[row]]].exp() + 0.01 / classes as f64).ln();
        codelength += predict.iter().enumerate().map(cost).sum::<f64>();
    }
    let uniform = n as f64 * (classes as f64).ln();
    Ok(OnlineCode { codelength, uniform, compression: uniform / codelength })
}

/// Accuracies of a probe on a task and on its control.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Selectivity {
    /// Held-out accuracy on the task.
    pub task: f64,
    /// Held-out accuracy on the control task.
    pub control: f64,
    /// Task minus control.
    pub selectivity: f64,
}

/// Does the probe read x, or learn by heart? Its accuracy less that on a control task, in which each type (the word, say)
/// has a label of its own drawn at random from the labels' distribution (Hewitt & Liang 2019).
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`, `types`: \[sample\], numbered from 0.
///
/// # Errors
/// As [`v_information_of_labels`]; and where the types differ in number, or all control labels come out the same.
pub fn selectivity(
    x: ArrayView2<f64>,
    labels: &[usize],
    types: &[usize],
    options: &ProbeOptions,
    seed: u64,
) -> Result<Selectivity> {
    options.validate()?;
    let x = Sample::new("x", x, &mut vec![])?;
    if types.len() != labels.len() {
        let (expected, found) = (format!("[sample {}]", labels.len()), vec![types.len() as i64]);
        return Err(Error::Shape { at: "types".into(), expected, found });
    }
    let draw = |kind: usize| labels[stream(seed, kind + 1).random_range(0..labels.len())];
    let control: Vec<usize> = types.iter().map(|&kind| draw(kind)).collect();
    let task = accuracy(&x, labels, options, seed)?;
    let control = accuracy(&x, &control, options, seed)?;
    Ok(Selectivity { task, control, selectivity: task - control })
}

/// Held-out accuracy.
fn accuracy(x: &Sample, labels: &[usize], options: &ProbeOptions, seed: u64) -> Result<f64> {
    let classes = classes(x, labels)?;
    enough(labels.len(), options.folds)?;
    let mut right = 0;
    for (fit, predict) in folds(labels.len(), options.folds, seed) {
        let (log_p, _) = predictions(x, labels, classes, &fit, &predict, options.ridge)?;
        for (row, scores) in predict.iter().zip(log_p.rows()) {
            right +=
                usize::from(scores.iter().enumerate().all(|(c, s)| c == labels[*row] || *s < scores[labels[*row]]));
        }
    }
    Ok(right as f64 / labels.len() as f64)
}
