//! Statistics on plain numbers: intervals, tests and corrections that need few assumptions.
//!
//! | question | function |
//! |---|---|
//! | how sure is this estimate? | [`bootstrap`], [`bootstrap_mean`] |
//! | how sure are these many means, or ratios of sums? | [`bootstrap_columns`], [`bootstrap_ratios`] |
//! | is the mean of these paired differences zero? | [`sign_flip`] |
//! | do these two samples differ? | [`two_sample`] |
//! | which of these many columns differ from zero, none by luck? | [`max_sign_flip`], [`max_adjusted`] |
//! | does it rise from group to group? | [`jonckheere`], and [`page`] where the same subjects stand in every group |
//! | is it as good as zero? | [`tost`], [`tost_two_sample`] |
//! | many tests at once | [`holm`], [`benjamini_hochberg`] |
//! | do two measurements order things alike, or lie on a line? | [`spearman`], [`pearson`] |
//!
//! Randomness comes from a seed that is an argument; the same seed gives the same bytes, whatever the number of threads.

mod bootstrap;
mod equivalence;
mod multiple;
mod permutation;
mod rank;
mod trend;

pub use bootstrap::{
    BootstrapMethod, BootstrapOptions, Interval, bootstrap, bootstrap_columns, bootstrap_mean, bootstrap_ratios,
};
pub use equivalence::{Equivalence, tost, tost_two_sample};
pub use multiple::{benjamini_hochberg, holm};
pub use permutation::{MaxTest, PermutationOptions, Tail, Test, max_adjusted, max_sign_flip, sign_flip, two_sample};
pub(crate) use rank::ranks;
pub use rank::{pearson, shuffled, spearman};
pub use trend::{TrendMethod, TrendOptions, jonckheere, page};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use statrs::function::erf::{erfc, erfc_inv};

use crate::error::{Error, Result};

/// Fails where a value is not finite, or where there are fewer than `least` values.
fn check_sample(name: &'static str, values: &[f64], least: usize) -> Result<()> {
    if values.len() < least {
        return Err(Error::argument(name, format!("{least} or more values"), values.len()));
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::NotFinite { at: name.to_owned(), index, found: values[index] }),
        None => Ok(()),
    }
}

/// Fails where a probability such as a level is not between 0 and 1.
pub(crate) fn check_probability(name: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::argument(name, "a number between 0 and 1, neither of them", value))
}

/// Fails if a confidence level is not between 0 and 1, or so close to 1 that an interval of this level has no ends.
pub(crate) fn check_level(level: f64) -> Result<()> {
    check_probability("level", level)?;
    if normal_quantile(0.5 + level / 2.0).is_finite() {
        return Ok(());
    }
    Err(Error::argument("level", "a number below 1 - 1e-15", level))
}

/// Random numbers of the `stream`-th piece of work: pieces may run in any order, on any number of threads.
pub(crate) fn stream(seed: u64, stream: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// The mean; of equal values it is that value, without rounding.
fn mean(values: &[f64]) -> f64 {
    let first = values.first().copied().unwrap_or(f64::NAN);
    first + values.iter().map(|value| value - first).sum::<f64>() / values.len() as f64
}

/// The variance with n - 1 below the line.
fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)
}

/// The chance that a standard normal value is at most `z`.
pub(crate) fn normal_cdf(z: f64) -> f64 {
    0.5 * erfc(-z / std::f64::consts::SQRT_2)
}

/// The value that a standard normal one is below with chance `p`.
pub(crate) fn normal_quantile(p: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * p)
}
