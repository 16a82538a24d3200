//! How sure is a result, and could it be chance? Intervals, tests and corrections that need few assumptions, on plain numbers.
//!
//! | question | function |
//! |---|---|
//! | how sure is this estimate? | [`bootstrap`], [`bootstrap_mean`] |
//! | how sure are these many means, or ratios of sums? | [`bootstrap_columns`], [`bootstrap_ratios`] |
//! | is the mean of these paired differences zero? | [`sign_flip`] |
//! | do these two samples differ? | [`two_sample`] |
//! | which of these many columns differ from zero, with no false finding? | [`max_sign_flip`], [`max_adjusted`] |
//! | do values rise from group to group? | [`jonckheere`]; [`page`] if the same subjects are in every group |
//! | is the mean above or below a threshold? | [`Student`] |
//! | is the effect too small to matter? | [`tost`], [`tost_two_sample`] |
//! | what if I test many things at once? | [`holm`], [`benjamini_hochberg`] |
//! | do two measurements agree in order, or lie on a line? | [`spearman`], [`pearson`] |
//! | how well do these variables predict that one? | [`predicted_r2`], [`slopes`] |
//!
//! Every random function takes a seed. On one machine the same seed gives the same bytes, whatever the number of threads.

mod bootstrap;
mod equivalence;
mod multiple;
mod permutation;
mod rank;
mod regression;
mod student;
mod trend;

pub use bootstrap::{
    BootstrapMethod, BootstrapOptions, Interval, bootstrap, bootstrap_columns, bootstrap_mean, bootstrap_ratios,
};
pub use equivalence::{Equivalence, tost, tost_two_sample};
pub use multiple::{benjamini_hochberg, holm};
pub use permutation::{MaxTest, PermutationOptions, Tail, Test, max_adjusted, max_sign_flip, sign_flip, two_sample};
pub(crate) use rank::ranks;
pub use rank::{pearson, shuffled, spearman};
pub use regression::{predicted_r2, slopes};
pub use student::Student;
pub use trend::{TrendMethod, TrendOptions, jonckheere, page};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use statrs::function::erf::{erfc, erfc_inv};

use crate::error::{Error, Result};

/// Fails if there are fewer than `least` values, or one is not finite.
fn check_sample(name: &'static str, values: &[f64], least: usize) -> Result<()> {
    if values.len() < least {
        return Err(Error::argument(name, format!("{least} or more values"), values.len()));
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::NotFinite { at: name.to_owned(), index, found: values[index] }),
        None => Ok(()),
    }
}

/// Fails if a probability, such as a level, is not between 0 and 1.
pub(crate) fn check_probability(name: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::argument(name, "a number between 0 and 1, neither of them", value))
}

/// Fails if a confidence level is not between 0 and 1, or is so close to 1 that the interval would be infinite.
pub(crate) fn check_level(level: f64) -> Result<()> {
    check_probability("level", level)?;
    if normal_quantile(0.5 + level / 2.0).is_finite() {
        return Ok(());
    }
    Err(Error::argument("level", "a number below 1 - 1e-15", level))
}

/// The random numbers of one piece of work; pieces can run in any order, on any number of threads.
pub(crate) fn stream(seed: u64, stream: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// The mean. For equal values it is exactly that value.
fn mean(values: &[f64]) -> f64 {
    let first = values.first().copied().unwrap_or(f64::NAN);
    first + values.iter().map(|value| value - first).sum::<f64>() / values.len() as f64
}

/// The variance, with n - 1 in the denominator.
fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)
}

/// The probability that a standard normal variable is at most `z`.
pub(crate) fn normal_cdf(z: f64) -> f64 {
    0.5 * erfc(-z / std::f64::consts::SQRT_2)
}

/// The value below which a standard normal variable lies with probability `p`.
pub(crate) fn normal_quantile(p: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * p)
}
