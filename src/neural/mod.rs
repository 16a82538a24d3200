//! How much do x and y share, at the least? Lower bounds from trained critics, always evaluated on samples that training has
//! not seen.
//!
//! | bound | formula, with critic T | tight if |
//! |---|---|---|
//! | [`Bound::InfoNce`] | `mean_i [T(x_i, y_i) - ln mean_j e^T(x_i, y_j)]` over K samples, at most `ln K` | T is the log density ratio |
//! | [`Bound::Nwj`] | `E_p T - E_q e^(T - 1)` | T is 1 + the log density ratio |
//! | [`Bound::Mine`] | `E_p T - ln E_q e^T` (Donsker & Varadhan) | T is the log density ratio, up to a constant |
//!
//! p is the distribution of the pairs as they come, q that of independent pairs.
//!
//! Use these bounds if neighbours fail: many dimensions, and no linear structure. They are lower bounds: a small value can mean
//! little information or a poor critic. No reliable lower bound from N samples exceeds ln N (McAllester & Stratos 2020), so
//! larger ones are flagged.

mod critic;
mod evaluate;

use std::collections::HashSet;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::information::{
    Estimate, NOTHING, Warning, check_classes, check_permutations, checked_pair, come_again, discrete_information,
    exceeded,
};
use crate::stats::{BootstrapOptions, bootstrap_mean, shuffled};
use critic::Critic;

/// A lower bound on mutual information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Contrastive prediction (van den Oord et al. 2018): low variance, at most ln K.
    #[default]
    InfoNce,
    /// Nguyen, Wainwright & Jordan 2010: unbiased, but with a variance that grows exponentially with the information.
    Nwj,
    /// MINE (Belghazi et al. 2018) by the Donsker-Varadhan bound. The logarithm of a mean over held-out pairs is biased
    /// slightly upwards if few of them dominate it.
    Mine,
}

impl Bound {
    /// The names on the command line.
    pub const NAMES: [&str; 3] = ["infonce", "nwj", "mine"];

    /// The name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::InfoNce => "infonce",
            Self::Nwj => "nwj",
            Self::Mine => "mine",
        }
    }
}

impl std::str::FromStr for Bound {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::InfoNce, Self::Nwj, Self::Mine];
        let found = all.into_iter().find(|bound| bound.name() == name);
        found.ok_or_else(|| Error::argument("estimator", Self::NAMES.join(", "), name))
    }
}

/// Options of the trained bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct NeuralOptions {
    /// The bound to train and report.
    pub bound: Bound,
    /// Units in each of the two hidden layers of f and of g.
    pub hidden: usize,
    /// Dimension of the outputs of f and g: `T(x, y) = f(x) . g(y)`.
    pub embedding: usize,
    /// Samples per training step, each paired with every other.
    pub batch: usize,
    /// Step size of Adam.
    pub rate: f64,
    /// The most training steps.
    pub steps: usize,
    /// Training ends after this many looks at the validation samples, one every 50 steps, without improvement.
    pub patience: usize,
    /// Confidence level of the interval.
    pub level: f64,
    /// Shuffles of y for the permutation null, each with a critic of its own; 0 for no p-value.
    pub permutations: usize,
    /// Whether to train a critic on half of the samples, too: does the estimate still change with their number?
    pub convergence: bool,
    /// Where to compute.
    pub device: Device,
}

impl Default for NeuralOptions {
    fn default() -> Self {
        Self {
            bound: Bound::InfoNce,
            hidden: 64,
            embedding: 32,
            batch: 256,
            rate: 1e-3,
            steps: 3000,
            patience: 8,
            level: 0.95,
            permutations: 0,
            convergence: true,
            device: Device::Cpu,
        }
    }
}

impl NeuralOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If a size is 0, a batch has fewer than 8 samples, the step size is not above 0, the level is not between 0 and 1, there
    /// are more than a million permutations, or the device is missing.
    pub fn validate(&self) -> Result<()> {
        for (name, found, least) in [
            ("hidden", self.hidden, 1),
            ("embedding", self.embedding, 1),
            ("batch", self.batch, 8),
            ("steps", self.steps, 1),
            ("patience", self.patience, 1),
        ] {
            if found < least {
                return Err(Error::argument(name, format!("{least} or more"), found));
            }
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::argument("rate", "above 0", self.rate));
        }
        check_permutations(self.permutations)?;
        crate::device::check(self.device)?;
        crate::stats::check_level(self.level)
    }
}

/// How much do x and y share, at the least? A lower bound on `I(X; Y)`, in nats. The critic is trained on three fifths of the
/// samples, stopped by one fifth, and evaluated on the last, which neither has seen.
///
/// The interval is a bootstrap over the contributions of the held-out samples; it covers their chance, not that of the
/// training.
///
/// # Shapes
/// `x`, `y`: \[sample, dimension\].
///
/// # Errors
/// If the numbers of samples differ or are below 50, a value is not finite, a variable is constant, a column of x equals one of
/// y (they would share infinitely much), or an option makes no sense.
///
/// ```
/// use headscope::information::Truth;
/// use headscope::neural::{NeuralOptions, neural_information};
/// let (x, y) = Truth::Normal { rho: 0.75 }.sample(2000, 0)?; // 0.413 nats
/// let options = NeuralOptions { convergence: false, ..NeuralOptions::default() };
/// let found = neural_information(x.view(), y.view(), &options, 0)?;
/// assert!(found.nats() > 0.25 && found.interval.is_some_and(|interval| interval.low < 0.413));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn neural_information(
    x: ArrayView2<f64>,
    y: ArrayView2<f64>,
    options: &NeuralOptions,
    seed: u64,
) -> Result<Estimate> {
    options.validate()?;
    let mut warnings = vec![];
    let (x, y) = checked_pair(x, y, &mut warnings)?;
    let n = x.nrows();
    if n < 50 {
        return Err(Error::argument("x", "50 samples or more: a fifth of them is held out", n));
    }
    let pair = Pair { x: tensor(&x, options.device)?, y: tensor(&y, options.device)? };
    let rows: Vec<i64> = (0..n as i64).collect();
    let held_out = bound(&pair, &rows, &rows, options, seed)?;
    let bootstrap = BootstrapOptions { resamples: 1000, level: options.level, ..BootstrapOptions::default() };
    let interval = bootstrap_mean(&held_out, &bootstrap, seed)?;
    let estimate = interval.estimate;
    let mut convergence = vec![(n, estimate)];
    if options.convergence && n >= 100 {
        let half = &shuffled(&rows, seed.wrapping_add(1))[..n / 2];
        let values = bound(&pair, half, half, options, seed)?;
        let (mean, error) = mean_and_error(&values);
        convergence.insert(0, (half.len(), mean));
        let moved = (estimate - mean).abs();
        if moved > 0.02 + 0.05 * estimate.abs() && moved > 2.0 * error {
            warnings.push(Warning::NotConverged { half: mean });
        }
    }
    let dimensions = vec![x.ncols(), y.ncols()];
    let together: usize = dimensions.iter().sum();
    let (needed, most) = (20 * together, (held_out.len() as f64 / 10.0).ln());
    if n < needed {
        warnings.push(Warning::Dimension { dimensions: together, needed });
    }
    if estimate > most {
        warnings.push(Warning::Wall { most });
    }
    if estimate < NOTHING {
        warnings.push(Warning::BelowNothing);
    }
    let draws = (0..options.permutations).map(|number| {
        let order = shuffled(&rows, seed.wrapping_add(2 + number as u64));
        Ok(mean_and_error(&bound(&pair, &rows, &order, options, seed)?).0)
    });
    let p = exceeded(estimate, &draws.collect::<Result<Vec<f64>>>()?);
    let interval = Some(interval);
    Ok(Estimate { value: estimate, interval, estimator: options.bound.name(), n, dimensions, p, convergence, warnings })
}

/// How much does x tell about labels, at the least? [`neural_information`] with one-hot labels, in nats. An estimate above
/// their entropy is flagged.
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`: \[sample\], counted from 0.
///
/// # Errors
/// As [`neural_information`] and [`one_hot`], and if most labels occur once (continuous values are not labels).
///
/// ```
/// use headscope::neural::{NeuralOptions, neural_information_of_labels};
/// let labels: Vec<usize> = (0..400).map(|i| i / 7 % 2).collect();
/// let x = ndarray::Array2::from_shape_fn((400, 1), |(row, _)| labels[row] as f64 + (row as f64).sin() / 4.0);
/// let options = NeuralOptions { convergence: false, steps: 300, ..NeuralOptions::default() };
/// let found = neural_information_of_labels(x.view(), &labels, &options, 0)?;
/// assert!(found.nats() > 0.4 && found.nats() < 0.8); // of ln 2 = 0.69
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn neural_information_of_labels(
    x: ArrayView2<f64>,
    labels: &[usize],
    options: &NeuralOptions,
    seed: u64,
) -> Result<Estimate> {
    let seen = labels.iter().collect::<HashSet<_>>().len();
    come_again("labels", seen, labels.len())?;
    let y = one_hot(labels, labels.iter().max().map_or(0, |most| most + 1))?;
    let found = neural_information(x, y.view(), options, seed)?;
    Ok(found.below(discrete_information(labels, labels, false)?))
}

/// What are labels as coordinates? 1 at the label's own class, 0 elsewhere.
///
/// # Shapes
/// \[sample, class\].
///
/// # Errors
/// If a label is not below `classes`, or the array would take more than 2 GiB.
///
/// ```
/// use headscope::neural::one_hot;
/// assert_eq!(one_hot(&[1, 0], 3)?, ndarray::array![[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn one_hot(labels: &[usize], classes: usize) -> Result<Array2<f64>> {
    if let Some(&found) = labels.iter().find(|label| **label >= classes) {
        let (at, found, limit) = ("labels".into(), found as i64, classes as i64);
        return Err(Error::OutOfRange { at, axis: "class", found, limit });
    }
    check_classes(labels.len(), classes)?;
    Ok(Array2::from_shape_fn((labels.len(), classes), |(row, class)| f64::from(u8::from(labels[row] == class))))
}

/// Both variables, `[sample, dimension]`.
struct Pair {
    x: Tensor,
    y: Tensor,
}

impl Pair {
    /// Pairs rows `rows` of x with rows `order` of y.
    fn select(&self, rows: &[i64], order: &[i64]) -> Self {
        let take =
            |tensor: &Tensor, rows: &[i64]| tensor.index_select(0, &Tensor::from_slice(rows).to(tensor.device()));
        Self { x: take(&self.x, rows), y: take(&self.y, order) }
    }
}

/// Trains a critic, and returns the contribution of each held-out sample; their mean is the bound. Row `rows[i]` of x is paired
/// with row `order[i]` of y.
fn bound(pair: &Pair, rows: &[i64], order: &[i64], options: &NeuralOptions, seed: u64) -> Result<Vec<f64>> {
    let places = shuffled(&(0..rows.len()).collect::<Vec<usize>>(), seed);
    let fifth = rows.len() / 5;
    let part = |places: &[usize]| {
        let of = |from: &[i64]| places.iter().map(|&place| from[place]).collect::<Vec<i64>>();
        pair.select(&of(rows), &of(order))
    };
    let (test, rest) = places.split_at(fifth);
    let (validation, train) = rest.split_at(fifth);
    let critic = Critic::train(&part(train), &part(validation), options, seed)?;
    evaluate::contributions(&critic, &part(test), options.bound)
}

fn tensor(rows: &Array2<f64>, device: Device) -> Result<Tensor> {
    let (n, d) = rows.dim();
    let flat: Vec<f64> = rows.iter().copied().collect();
    let shaped = Tensor::from_slice(&flat).f_view([n as i64, d as i64]).map_err(Error::torch("reading samples"))?;
    Ok(shaped.to_kind(Kind::Float).to(device))
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}
