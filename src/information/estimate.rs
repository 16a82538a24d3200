//! How sure is an estimate, and what speaks against it?

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::sample::Sample;
use crate::error::{Error, Result};
use crate::stats::{Interval, check_level, normal_quantile, shuffled, stream};

/// A reason to doubt an estimate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Warning {
    /// The estimate is larger than this many samples can support.
    Wall {
        /// The largest value that they support: ln(N / 10).
        most: f64,
    },
    /// Too few samples for the number of dimensions.
    Dimension {
        /// Dimensions of all variables together.
        dimensions: usize,
        /// The smallest number of samples for so many dimensions.
        needed: usize,
    },
    /// The estimate still changes with the number of samples.
    NotConverged {
        /// The mean estimate from half of the samples.
        half: f64,
    },
    /// The spread of the estimate is unknown: the estimator fails on half of the samples.
    NoInterval {
        /// How it fails.
        reason: String,
    },
    /// Some samples are copies of others and were treated as discrete.
    Copies {
        /// Their share.
        share: f64,
    },
    /// Ties: a column takes few values, or was rounded, but the estimator measures distances as if it were continuous.
    Ties {
        /// `x`, `y` or `z`.
        variable: &'static str,
        /// How many of its columns have ties.
        columns: usize,
        /// The share of samples that have their value in common with another sample, in the column where it is largest. Copies
        /// of whole samples do not count here; see [`Warning::Copies`].
        share: f64,
    },
    /// Samples recur in a way that independent draws do not: perhaps the same data twice.
    Repeated {
        /// Their share.
        share: f64,
        /// How often each of them occurs, on average.
        times: f64,
    },
    /// Columns that never vary were left out.
    Constant {
        /// `x`, `y` or `z`.
        variable: &'static str,
        /// Their indices.
        columns: Vec<usize>,
    },
    /// Too many cells for the samples: few samples share one.
    SparseCells {
        /// Occupied cells.
        cells: usize,
    },
    /// A few outliers dominate the distances or correlations of all other samples.
    HeavyTails {
        /// The largest kurtosis of a coordinate: the fourth moment over the squared second moment, 3 for a normal variable.
        kurtosis: f64,
    },
    /// x is a deterministic function of what is asked about, and no noise was added.
    Noiseless,
    /// A trained lower bound, or a probe, far below 0: what it learned fails on some held-out samples.
    BelowNothing,
    /// The estimate is larger than the entropy of the labels.
    Entropy {
        /// Their entropy.
        most: f64,
    },
}

impl Warning {
    /// Whether the estimate should not be reported as a fact.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Copies { .. } | Self::Constant { .. })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wall { most } => write!(f, "past the ln N wall: this many samples support at most {most:.2} nats"),
            Self::Dimension { dimensions, needed } => {
                write!(f, "too few samples: {dimensions} dimensions together need {needed} or more")
            }
            Self::NotConverged { half } => write!(f, "not converged: half of the samples give {half:.4} nats"),
            Self::NoInterval { reason } => write!(f, "no interval: half of the samples are not enough ({reason})"),
            Self::Copies { share } => {
                write!(f, "{:.1} % of the samples are copies of others and were treated as discrete", 100.0 * share)
            }
            Self::Ties { variable, columns, share } => write!(
                f,
                "ties: in {columns} column(s) of {variable} up to {:.1} % of the samples have the same value as another, but \
                 distances are measured as between continuous values (try ross if y holds labels, binned for counts)",
                100.0 * share
            ),
            Self::Repeated { share, times } => {
                let share = 100.0 * share;
                write!(
                    f,
                    "{share:.1} % of the samples occur {times:.1} times each: the same data again, which adds nothing"
                )
            }
            Self::Constant { variable, columns } => {
                write!(f, "constant columns of {variable} were left out: {columns:?}")
            }
            Self::HeavyTails { kurtosis } => {
                write!(
                    f,
                    "heavy tails, kurtosis {kurtosis:.0}: a few samples outweigh the others (try ranks, as normal scores)"
                )
            }
            Self::Noiseless => {
                write!(
                    f,
                    "no noise: the true value for a deterministic map depends on its input alone, not on what the map keeps"
                )
            }
            Self::BelowNothing => {
                write!(f, "far below 0, so it says nothing: what was learned fails on some held-out samples")
            }
            Self::Entropy { most } => write!(f, "more than the entropy of the labels, {most:.4} nats"),
            Self::SparseCells { cells } => write!(f, "sparse cells: {cells} are occupied, fewer than 5 samples each"),
        }
    }
}

/// An estimate in nats, how sure it is, and what speaks against it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate, in nats.
    pub value: f64,
    /// Its confidence interval, which covers chance, not bias. Both ends are finite. `None` if no interval was asked for, or if
    /// there can be none; [`Warning::NoInterval`] then says why.
    pub interval: Option<Interval>,
    /// The estimator's name.
    pub estimator: &'static str,
    /// Number of samples.
    pub n: usize,
    /// Dimensions of each variable.
    pub dimensions: Vec<usize>,
    /// The p-value: the probability of an estimate as high from unrelated variables. `None` without permutations.
    pub p: Option<f64>,
    /// Mean estimates from a quarter, half and all of the samples, as (number of samples, nats).
    pub convergence: Vec<(usize, f64)>,
    /// What speaks against it.
    pub warnings: Vec<Warning>,
}

impl Estimate {
    /// The estimate, in nats.
    pub fn nats(&self) -> f64 {
        self.value
    }

    /// Adds a warning if the estimate exceeds the entropy of the labels, the most that anything can share with them.
    #[must_use]
    pub fn below(mut self, entropy: f64) -> Self {
        if self.nats() > 1.05 * entropy + 0.02 {
            self.warnings.push(Warning::Entropy { most: entropy });
        }
        self
    }
}

/// A trained estimate below this value says nothing.
pub(crate) const NOTHING: f64 = -0.1;

/// How much work to spend on the uncertainty of an estimate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certainty {
    /// Random halves of the samples, whose spread gives the interval; 0 for no interval.
    pub halves: usize,
    /// Confidence level.
    pub level: f64,
    /// Shuffles of y for the permutation null; 0 for no p-value.
    pub permutations: usize,
}

impl Default for Certainty {
    fn default() -> Self {
        Self { halves: 32, level: 0.95, permutations: 0 }
    }
}

impl Certainty {
    /// The estimate alone, without interval and p-value.
    pub const NONE: Self = Self { halves: 0, level: 0.95, permutations: 0 };

    /// Checks the options.
    ///
    /// # Errors
    /// If there are fewer than 8 halves (but not 0), the level is not between 0 and 1, or there are more than a million
    /// permutations.
    pub fn validate(&self) -> Result<()> {
        if (1..8).contains(&self.halves) {
            return Err(Error::argument("halves", "0, or 8 or more", self.halves));
        }
        check_permutations(self.permutations)?;
        check_level(self.level)
    }

    /// Half the width of an interval, in standard deviations of the estimate.
    fn reach(&self) -> f64 {
        normal_quantile(0.5 + self.level / 2.0)
    }
}

/// What to ask of the samples.
pub(super) struct Question {
    pub estimator: &'static str,
    /// The answer says little from fewer samples than this.
    pub needed: usize,
    /// The variables that the permutation null shuffles.
    pub shuffled: Range<usize>,
}

/// Estimates from all samples, from halves and quarters of them, and from shuffled ones, and collects the warnings. `point`
/// returns an estimate and the number of cells that it counted (0 if it counts none).
pub(super) fn finish(
    question: Question,
    parts: &[Sample],
    warnings: Vec<Warning>,
    certainty: &Certainty,
    seed: u64,
    point: impl Fn(&[Sample]) -> Result<(f64, usize)> + Sync,
) -> Result<Estimate> {
    let one = |parts: &[Sample]| point(parts).map(|(estimate, cells)| ([estimate], cells));
    finish_all(question, parts, warnings, certainty, seed, one).map(|[found]| found)
}

/// [`finish`] for several estimates that are computed together.
pub(super) fn finish_all<const M: usize>(
    question: Question,
    parts: &[Sample],
    warnings: Vec<Warning>,
    certainty: &Certainty,
    seed: u64,
    point: impl Fn(&[Sample]) -> Result<([f64; M], usize)> + Sync,
) -> Result<[Estimate; M]> {
    certainty.validate()?;
    let Question { estimator, needed, shuffled } = question;
    let n = parts[0].rows.nrows();
    let dimensions: Vec<usize> = parts.iter().map(Sample::dimensions).collect();
    let (estimates, cells) = point(parts)?;
    if let Some((index, &found)) = estimates.iter().enumerate().find(|(_, estimate)| !estimate.is_finite()) {
        return Err(Error::NotFinite { at: format!("the estimate by {estimator}"), index, found });
    }
    let some = if certainty.halves == 0 { None } else { Some(Subsamples::new(parts, certainty, seed, &point)) };
    let draws = (0..certainty.permutations).into_par_iter().map(|number| {
        let mut rng = stream(seed, number + 1);
        let shuffle = |(i, part): (usize, &Sample)| match shuffled.contains(&i) {
            true => part.shuffled(&mut rng),
            false => part.clone(),
        };
        Ok(point(&parts.iter().enumerate().map(shuffle).collect::<Vec<Sample>>())?.0)
    });
    let draws = draws.collect::<Result<Vec<[f64; M]>>>()?;
    Ok(std::array::from_fn(|which| {
        let (estimate, mut warnings) = (estimates[which], warnings.clone());
        let most = (n as f64 / 10.0).ln();
        if estimate > most {
            warnings.push(Warning::Wall { most });
        }
        if n < needed {
            warnings.push(Warning::Dimension { dimensions: dimensions.iter().sum(), needed });
        }
        if cells * 5 > n {
            warnings.push(Warning::SparseCells { cells });
        }
        let (interval, convergence) = match &some {
            Some(some) => some.judge(which, estimate, certainty, n, &mut warnings),
            None => (None, vec![(n, estimate)]),
        };
        let null: Vec<f64> = draws.iter().map(|draw| draw[which]).collect();
        let p = exceeded(estimate, &null);
        Estimate { value: estimate, interval, estimator, n, dimensions: dimensions.clone(), p, convergence, warnings }
    }))
}

/// Estimates from random halves of the samples, and from quarters if they are large enough.
struct Subsamples<const M: usize> {
    halves: Result<Vec<[f64; M]>>,
    quarters: Option<Vec<[f64; M]>>,
}

impl<const M: usize> Subsamples<M> {
    fn new(
        parts: &[Sample],
        certainty: &Certainty,
        seed: u64,
        point: &(impl Fn(&[Sample]) -> Result<([f64; M], usize)> + Sync),
    ) -> Self {
        let n = parts[0].rows.nrows();
        let rows: Vec<usize> = (0..n).collect();
        let part = |count: usize, of: usize| -> Result<Vec<[f64; M]>> {
            let estimates = (0..count).into_par_iter().map(|number| {
                let rows = &shuffled(&rows, seed.wrapping_add((number * 4 + of) as u64))[..n / of];
                Ok(point(&parts.iter().map(|part| part.take(rows)).collect::<Vec<_>>())?.0)
            });
            estimates.collect()
        };
        let halves = part(certainty.halves, 2);
        let quarters = if halves.is_ok() { part(certainty.halves / 2, 4).ok() } else { None };
        Self { halves, quarters }
    }

    /// The interval from the spread of the halves; the mean estimates from quarters, halves and all samples; a warning if the
    /// estimate still changes with their number.
    fn judge(
        &self,
        which: usize,
        estimate: f64,
        certainty: &Certainty,
        n: usize,
        warnings: &mut Vec<Warning>,
    ) -> (Option<Interval>, Vec<(usize, f64)>) {
        let mut convergence = vec![(n, estimate)];
        let halves = match &self.halves {
            Ok(halves) => MeanAndSpread::of(halves, which),
            Err(reason) => {
                warnings.push(Warning::NoInterval { reason: reason.to_string() });
                return (None, convergence);
            }
        };
        let reach = certainty.reach() * halves.spread;
        let interval = Interval { estimate, low: estimate - reach, high: estimate + reach, level: certainty.level };
        if !(interval.low.is_finite() && interval.high.is_finite()) {
            warnings.push(Warning::NoInterval { reason: "their estimates are not finite".to_owned() });
            return (None, convergence);
        }
        convergence.insert(0, (n / 2, halves.mean));
        let moved = (estimate - halves.mean).abs();
        let mut to_come = 0.0;
        let quarters = self.quarters.as_ref().map(|quarters| MeanAndSpread::of(quarters, which));
        if let Some(quarters) = quarters.filter(|quarters| quarters.mean.is_finite()) {
            convergence.insert(0, (n / 4, quarters.mean));
            to_come = ahead(quarters.mean, halves.mean, estimate);
        }
        let tolerated = 0.02 + 0.05 * estimate.abs();
        if moved > 4.0 * halves.error && (moved > tolerated || to_come > 2.0 * tolerated) {
            warnings.push(Warning::NotConverged { half: halves.mean });
        }
        (Some(interval), convergence)
    }
}

/// The mean of some estimates, their standard deviation, and the standard error of the mean.
struct MeanAndSpread {
    mean: f64,
    spread: f64,
    error: f64,
}

impl MeanAndSpread {
    fn of<const M: usize>(estimates: &[[f64; M]], which: usize) -> Self {
        let count = estimates.len() as f64;
        let mean = estimates.iter().map(|estimate| estimate[which]).sum::<f64>() / count;
        let squares: f64 = estimates.iter().map(|estimate| (estimate[which] - mean).powi(2)).sum();
        let spread = (squares / (count - 1.0)).sqrt();
        Self { mean, spread, error: spread / count.sqrt() }
    }
}

/// How far the estimate is from its limit, extrapolated from a quarter, half and all of the samples.
///
/// A bias that falls with a power of N moves the estimate, with each doubling of N, by the same fraction r of the previous move
/// d; what remains is `d r / (1 - r)`. r is capped at 0.9 (N to the power -0.15; neighbours in many dimensions are that slow).
/// If the last move was larger than the one before, no such law holds, and 0.8 is used.
fn ahead(quarter: f64, half: f64, all: f64) -> f64 {
    let (before, last) = (half - quarter, all - half);
    let share = match last / before {
        share if share > 1.0 => 0.8,
        share => share.clamp(0.0, 0.9),
    };
    let share = if before == 0.0 { 0.0 } else { share };
    (last * share / (1.0 - share)).abs()
}

/// Fails if there are more permutations than anyone can wait for.
pub(crate) fn check_permutations(permutations: usize) -> Result<()> {
    const MOST: usize = 1_000_000;
    if permutations <= MOST {
        Ok(())
    } else {
        Err(Error::argument("permutations", format!("at most {MOST}"), permutations))
    }
}

/// The p-value of an estimate, given estimates under the null; `None` without any.
pub(crate) fn exceeded(estimate: f64, draws: &[f64]) -> Option<f64> {
    let reached = draws.iter().filter(|value| **value >= estimate).count();
    (!draws.is_empty()).then(|| (reached + 1) as f64 / (draws.len() + 1) as f64)
}
