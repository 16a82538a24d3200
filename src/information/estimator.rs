//! Which estimator? The choices, and their names.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::binned::{self, BinnedOptions};
use super::gaussian::{self, CcaOptions, GaussianOptions};
use super::neighbour::{self, KsgOptions, KsgVariant};
use super::sample::Sample;
use crate::error::{Error, Result};

/// How to scale each coordinate before measuring distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Scaling {
    /// Not at all: the estimate depends on the units of x relative to those of y.
    None,
    /// To mean 0 and variance 1.
    #[default]
    Standard,
    /// By ranks, to normal quantiles: for heavy tails. This does not change the information, only the distances.
    NormalScores,
}

/// An estimator of mutual information.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Estimator {
    /// Closed form, as if all variables were Gaussian. Misses nonlinear dependence.
    Gaussian(GaussianOptions),
    /// Nearest neighbours (Kraskov, Stögbauer & Grassberger 2004): the first choice for continuous variables of few dimensions.
    Ksg(KsgOptions),
    /// Nearest neighbours for continuous x and labels y (Ross 2014).
    Ross(KsgOptions),
    /// Counts in bins: for discrete variables, or one dimension each.
    Binned(BinnedOptions),
    /// The canonical correlations that are significant by Bartlett's test.
    Cca(CcaOptions),
}

impl Estimator {
    /// The name in tables and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gaussian(_) => "gaussian",
            Self::Ksg(KsgOptions { variant: KsgVariant::One, .. }) => "ksg",
            Self::Ksg(KsgOptions { variant: KsgVariant::Two, .. }) => "ksg2",
            Self::Ksg(KsgOptions { variant: KsgVariant::LocalNonUniformity, .. }) => "lnc",
            Self::Ross(_) => "ross",
            Self::Binned(_) => "binned",
            Self::Cca(_) => "cca",
        }
    }

    /// The names that [`Estimator::from_str`] accepts.
    pub const NAMES: [&str; 7] = ["gaussian", "ksg", "ksg2", "lnc", "ross", "binned", "cca"];

    /// Sets the number of neighbours.
    ///
    /// # Errors
    /// If `k` is 0, or the estimator has no neighbours.
    pub fn with_k(self, k: usize) -> Result<Self> {
        let with = |options: KsgOptions| {
            let options = KsgOptions { k, ..options };
            options.validate().map(|()| options)
        };
        match self {
            Self::Ksg(options) => with(options).map(Self::Ksg),
            Self::Ross(options) => with(options).map(Self::Ross),
            other => Err(Error::argument("k", "an estimator with neighbours: ksg, ksg2, lnc or ross", other.name())),
        }
    }

    /// Fails if `n` samples have too few neighbours. Halves of the samples need `k` neighbours too: they give the interval and
    /// the check for convergence.
    pub(super) fn fits(&self, n: usize) -> Result<()> {
        let (Self::Ksg(options) | Self::Ross(options)) = self else { return Ok(()) };
        options.validate()?;
        if options.k < n / 2 {
            return Ok(());
        }
        Err(Error::argument("k", format!("less than {}, half of the {n} samples", n / 2), options.k))
    }

    /// The estimate and the number of occupied cells, 0 if none are counted.
    pub(super) fn point(&self, x: &Sample, y: &Sample, z: Option<&Sample>) -> Result<(f64, usize)> {
        match (self, z) {
            (Self::Gaussian(options), z) => Ok((gaussian::gaussian(x, y, z, options)?, 0)),
            (Self::Ksg(options), None) => Ok((neighbour::shared(&[x, y], options)?, 0)),
            (Self::Ksg(options), Some(z)) => Ok((neighbour::conditional(x, y, z, options)?, 0)),
            (Self::Ross(options), None) => Ok((neighbour::ross(x, &y.labels(), options)?, 0)),
            (Self::Binned(options), None) => binned::binned(x, y, options),
            (Self::Binned(options), Some(z)) => binned::conditional(x, y, z, options),
            (Self::Cca(options), None) => Ok((gaussian::cca(x, y, options)?, 0)),
            (other, Some(_)) => Err(Error::argument(
                "estimator",
                "gaussian, ksg or binned, which have a conditional form",
                other.name(),
            )),
        }
    }

    /// The smallest number of samples for so many dimensions; with fewer the estimate says little.
    pub(super) fn samples_needed(&self, dimensions: usize) -> usize {
        match self {
            // With fewer samples an orthant holds less than k of them.
            Self::Ksg(options) | Self::Ross(options) => options.k.saturating_mul(1 << dimensions.min(40)),
            Self::Gaussian(_) | Self::Cca(_) => 10 * dimensions,
            Self::Binned(_) => 0,
        }
    }
}

impl FromStr for Estimator {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let ksg = |variant| KsgOptions { variant, ..KsgOptions::default() };
        match name {
            "gaussian" => Ok(Self::Gaussian(GaussianOptions::default())),
            "ksg" => Ok(Self::Ksg(KsgOptions::default())),
            "ksg2" => Ok(Self::Ksg(ksg(KsgVariant::Two))),
            "lnc" => Ok(Self::Ksg(KsgOptions { k: 15, ..ksg(KsgVariant::LocalNonUniformity) })),
            "ross" => Ok(Self::Ross(KsgOptions::default())),
            "binned" => Ok(Self::Binned(BinnedOptions::default())),
            "cca" => Ok(Self::Cca(CcaOptions::default())),
            other => Err(Error::argument("estimator", Self::NAMES.join(", "), other)),
        }
    }
}
