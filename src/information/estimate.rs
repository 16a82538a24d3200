//! One front door: an estimate, its interval, and what speaks against it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use ndarray::ArrayView2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::binned::{self, BinnedOptions};
use super::gaussian::{self, CcaOptions, GaussianOptions};
use super::neighbour::{self, KsgOptions, KsgVariant};
use super::sample::{Sample, beside, differ, same_length};
use crate::error::{Error, Result};
use crate::stats::{Interval, normal_quantile, shuffled, stream};

/// What is done with each coordinate before distances are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Scaling {
    /// Nothing: the estimate then depends on the units of x against those of y.
    None,
    /// Mean 0 and variance 1.
    #[default]
    Standard,
    /// Ranks, as normal quantiles: for heavy tails. Information does not change, distances do.
    NormalScores,
}

/// How information is estimated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Estimator {
    /// In closed form, as if all were Gaussian; misses what is not linear.
    Gaussian(GaussianOptions),
    /// From nearest neighbours (Kraskov, Stögbauer & Grassberger 2004): the first choice for few dimensions.
    Ksg(KsgOptions),
    /// From nearest neighbours, y being labels (Ross 2014).
    Ross(KsgOptions),
    /// From counts in bins: for discrete variables, or one dimension each.
    Binned(BinnedOptions),
    /// From the canonical correlations that are there by Bartlett's test.
    Cca(CcaOptions),
}

impl Estimator {
    /// Its name in tables and on the command line.
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

    /// The names that [`Estimator::from_str`] knows.
    pub const NAMES: [&str; 7] = ["gaussian", "ksg", "ksg2", "lnc", "ross", "binned", "cca"];

    /// The same with `k` neighbours.
    ///
    /// # Errors
    /// Where the estimator has no neighbours.
    pub fn with_k(self, k: usize) -> Result<Self> {
        match self {
            Self::Ksg(options) => Ok(Self::Ksg(KsgOptions { k, ..options })),
            Self::Ross(options) => Ok(Self::Ross(KsgOptions { k, ..options })),
            other => Err(Error::argument("k", "an estimator with neighbours: ksg, ksg2, lnc or ross", other.name())),
        }
    }

    /// The estimate and, where cells are counted, how many are occupied.
    fn point(&self, x: &Sample, y: &Sample, z: Option<&Sample>) -> Result<(f64, usize)> {
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

    /// How many samples so many dimensions need at the least; below, the estimate says little.
    fn samples_needed(&self, dimensions: usize) -> usize {
        match self {
            // Fewer samples than this leave less than k a quadrant.
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

/// What speaks against an estimate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Warning {
    /// So large an estimate would need more samples.
    Wall {
        /// The largest that this many samples support: ln(N / 10).
        most: f64,
    },
    /// Too few samples for so many dimensions.
    Dimension {
        /// Dimensions together.
        dimensions: usize,
        /// Samples that they need at the least.
        needed: usize,
    },
    /// The estimate still moves with the number of samples.
    NotConverged {
        /// The mean estimate from half of the samples.
        half: f64,
    },
    /// Half of the samples do not suffice for the estimator, so that nothing is known about its spread.
    NoInterval {
        /// What it said.
        reason: String,
    },
    /// Samples are copies of others, and were taken as discrete.
    Copies {
        /// Their share.
        share: f64,
    },
    /// Columns that never vary were left out.
    Constant {
        /// `x`, `y` or `z`.
        variable: &'static str,
        /// Their numbers.
        columns: Vec<usize>,
    },
    /// So many cells that few samples share one.
    SparseCells {
        /// How many are occupied.
        cells: usize,
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
            Self::Wall { most } => write!(f, "past the ln N wall: so few samples support at most {most:.2} nats"),
            Self::Dimension { dimensions, needed } => {
                write!(f, "hopeless dimension: {dimensions} dimensions together need {needed} samples or more")
            }
            Self::NotConverged { half } => write!(f, "not converged: half of the samples give {half:.4} nats"),
            Self::NoInterval { reason } => write!(f, "no interval: half of the samples do not suffice ({reason})"),
            Self::Copies { share } => {
                write!(f, "{:.1} % of the samples are copies of others and were taken as discrete", 100.0 * share)
            }
            Self::Constant { variable, columns } => {
                write!(f, "constant columns of {variable} were left out: {columns:?}")
            }
            Self::SparseCells { cells } => write!(f, "sparse cells: {cells} are occupied, fewer than 5 samples each"),
        }
    }
}

/// An estimate in nats, how sure it is, and what speaks against it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate and its interval, which covers chance and not bias.
    pub interval: Interval,
    /// The estimator's name.
    pub estimator: &'static str,
    /// Number of samples.
    pub n: usize,
    /// Dimensions of each variable.
    pub dimensions: Vec<usize>,
    /// The chance of as high an estimate from unrelated variables, where it was asked for.
    pub p: Option<f64>,
    /// Mean estimates from a quarter, a half and all of the samples: (number of samples, nats).
    pub convergence: Vec<(usize, f64)>,
    /// What speaks against it.
    pub warnings: Vec<Warning>,
}

impl Estimate {
    /// The estimate, in nats.
    pub fn nats(&self) -> f64 {
        self.interval.estimate
    }
}

/// How much is done to learn how sure an estimate is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certainty {
    /// Random halves of the samples from which the spread is found; 0 for no interval.
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
    /// The estimate alone.
    pub const NONE: Self = Self { halves: 0, level: 0.95, permutations: 0 };

    /// Fails where an option makes no sense.
    ///
    /// # Errors
    /// Where there are fewer than 8 halves (but not 0), or the level is not between 0 and 1.
    pub fn validate(&self) -> Result<()> {
        if (1..8).contains(&self.halves) {
            return Err(Error::argument("halves", "0, or 8 or more", self.halves));
        }
        crate::stats::check_probability("level", self.level)
    }
}

/// What do x and y share? `I(X; Y)`, in nats, by the estimator given.
///
/// The interval is `estimate ± z s`, s the spread of the estimates from random halves of the samples, which for estimators
/// that average over samples is that of the whole (the delete-half jackknife; Shao & Wu 1989); resampling with replacement
/// would make copies, which nearest neighbours take for information. It covers chance; bias shows in `convergence`.
///
/// # Shapes
/// `x`, `y`: \[sample, dimension\]. For [`Estimator::Ross`], equal rows of `y` are one label.
///
/// # Errors
/// Where the numbers of samples differ or are fewer than 8, a value is not finite, a variable is constant, a column of x is
/// one of y (not for `Ross` and `Binned`), there are too few samples for the estimator, or an option makes no sense.
///
/// ```
/// use headscope::information::{Certainty, Estimator, Truth, mutual_information};
/// let (x, y) = Truth::Normal { rho: 0.75 }.sample(2000, 0)?;
/// let found = mutual_information(x.view(), y.view(), &"ksg".parse::<Estimator>()?, &Certainty::default(), 0)?;
/// assert!((found.nats() - 0.413).abs() < 0.06 && found.warnings.is_empty());
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn mutual_information(
    x: ArrayView2<f64>,
    y: ArrayView2<f64>,
    estimator: &Estimator,
    certainty: &Certainty,
    seed: u64,
) -> Result<Estimate> {
    same_length("y", x, y)?;
    let mut warnings = vec![];
    let parts = [Sample::new("x", x, &mut warnings)?, Sample::new("y", y, &mut warnings)?];
    if !matches!(estimator, Estimator::Ross(_) | Estimator::Binned(_)) {
        differ(&parts[0], &parts[1])?;
    }
    warnings.extend(copies(estimator, &parts));
    let dimensions =
        if matches!(estimator, Estimator::Ross(_)) { parts[0].dimensions() } else { total_dimensions(&parts) };
    let question =
        Question { estimator: estimator.name(), needed: estimator.samples_needed(dimensions), shuffled: 1..2 };
    finish(question, &parts, warnings, certainty, seed, |parts| estimator.point(&parts[0], &parts[1], None))
}

/// What do x and y share that z does not tell? `I(X; Y | Z)`, in nats; Gaussian, KSG-1 or binned. The null shuffles y, which
/// also breaks its tie to z: p is of `I(X; Y | Z) = 0` only where y and z are unrelated.
///
/// # Shapes
/// `x`, `y`, `z`: \[sample, dimension\].
///
/// # Errors
/// As [`mutual_information`]; and where the estimator has no conditional form.
pub fn conditional_information(
    x: ArrayView2<f64>,
    y: ArrayView2<f64>,
    z: ArrayView2<f64>,
    estimator: &Estimator,
    certainty: &Certainty,
    seed: u64,
) -> Result<Estimate> {
    same_length("y", x, y)?;
    same_length("z", x, z)?;
    let mut warnings = vec![];
    let x = Sample::new("x", x, &mut warnings)?;
    let parts = [x, Sample::new("y", y, &mut warnings)?, Sample::new("z", z, &mut warnings)?];
    if !matches!(estimator, Estimator::Binned(_)) {
        differ(&parts[0], &parts[1])?;
    }
    warnings.extend(copies(estimator, &parts));
    let needed = estimator.samples_needed(total_dimensions(&parts));
    let question = Question { estimator: estimator.name(), needed, shuffled: 1..2 };
    finish(question, &parts, warnings, certainty, seed, |parts| estimator.point(&parts[0], &parts[1], Some(&parts[2])))
}

/// What do several variables share, all together? `sum H(X_i) - H(X)`, in nats, by [`Estimator::Gaussian`] or
/// [`Estimator::Ksg`]; of two variables it is their mutual information (Watanabe 1960).
///
/// # Shapes
/// `variables`: each \[sample, dimension\].
///
/// # Errors
/// As [`mutual_information`]; and where there are fewer than two variables, or the estimator is another one.
pub fn total_correlation(
    variables: &[ArrayView2<f64>],
    estimator: &Estimator,
    certainty: &Certainty,
    seed: u64,
) -> Result<Estimate> {
    let (parts, warnings) = several(variables, 2)?;
    let needed = estimator.samples_needed(total_dimensions(&parts));
    let question = Question { estimator: estimator.name(), needed, shuffled: 1..parts.len() };
    finish(question, &parts, warnings, certainty, seed, |parts| Ok((total(parts, estimator)?, 0)))
}

/// Do variables share more by repeating each other (positive), or by what only all of them together tell (negative)?
/// The O-information `(m - 2) H(X) + sum_i [H(X_i) - H(X without i)] = (2 - m) TC(X) + sum_i TC(X without i)` (Rosas et al.
/// 2019); of three variables it is redundancy minus synergy, whatever measure of redundancy is used.
///
/// # Shapes
/// `variables`: each \[sample, dimension\].
///
/// # Errors
/// As [`total_correlation`]; and where there are fewer than three variables.
pub fn o_information(
    variables: &[ArrayView2<f64>],
    estimator: &Estimator,
    certainty: &Certainty,
    seed: u64,
) -> Result<Estimate> {
    let (parts, warnings) = several(variables, 3)?;
    let needed = estimator.samples_needed(total_dimensions(&parts));
    let question = Question { estimator: estimator.name(), needed, shuffled: 1..parts.len() };
    finish(question, &parts, warnings, certainty, seed, |parts| {
        let m = parts.len();
        // H(X) = sum H(X_i) - TC(X), so that the entropies of single variables cancel.
        let mut sum = (2.0 - m as f64) * total(parts, estimator)?;
        for left_out in 0..m {
            let rest: Vec<Sample> =
                parts.iter().enumerate().filter(|(i, _)| *i != left_out).map(|(_, part)| part.clone()).collect();
            sum += total(&rest, estimator)?;
        }
        Ok((sum, 0))
    })
}

fn several(variables: &[ArrayView2<f64>], least: usize) -> Result<(Vec<Sample>, Vec<Warning>)> {
    if variables.len() < least {
        return Err(Error::argument("variables", format!("{least} or more"), variables.len()));
    }
    let mut warnings = vec![];
    let mut parts: Vec<Sample> = vec![];
    for variable in variables {
        same_length("variables", variables[0], *variable)?;
        let part = Sample::new("variables", *variable, &mut warnings)?;
        parts.iter().try_for_each(|other| differ(other, &part))?;
        parts.push(part);
    }
    Ok((parts, warnings))
}

fn total(parts: &[Sample], estimator: &Estimator) -> Result<f64> {
    let parts: Vec<&Sample> = parts.iter().collect();
    match estimator {
        Estimator::Gaussian(options) => gaussian::total(&parts, options),
        Estimator::Ksg(options) => neighbour::shared(&parts, options),
        other => Err(Error::argument("estimator", "gaussian or ksg, which take many variables", other.name())),
    }
}

fn total_dimensions(parts: &[Sample]) -> usize {
    parts.iter().map(Sample::dimensions).sum()
}

/// The share of samples that are copies, where distances matter.
fn copies(estimator: &Estimator, parts: &[Sample]) -> Option<Warning> {
    let joint = match estimator {
        Estimator::Ksg(_) => Sample { rows: beside(&parts.iter().collect::<Vec<_>>()) },
        Estimator::Ross(_) => parts[0].clone(),
        _ => return None,
    };
    let mut first = joint.rows.column(0).to_vec();
    first.par_sort_unstable_by(f64::total_cmp);
    if first.windows(2).all(|pair| pair[0] != pair[1]) {
        return None; // rows that differ in one coordinate differ: the usual case, and a quick one
    }
    let labels = joint.labels();
    let distinct = labels.iter().max().map_or(0, |most| most + 1);
    let share = (labels.len() - distinct) as f64 / labels.len() as f64;
    (share > 1e-3).then_some(Warning::Copies { share })
}

/// What is asked of the samples.
struct Question {
    estimator: &'static str,
    /// Samples below which the answer says little.
    needed: usize,
    /// The variables that the null shuffles.
    shuffled: Range<usize>,
}

/// The estimate from all samples, from halves and quarters of them, and from shuffled ones; and the warnings.
fn finish(
    question: Question,
    parts: &[Sample],
    mut warnings: Vec<Warning>,
    certainty: &Certainty,
    seed: u64,
    point: impl Fn(&[Sample]) -> Result<(f64, usize)> + Sync,
) -> Result<Estimate> {
    certainty.validate()?;
    let Question { estimator, needed, shuffled: among } = question;
    let n = parts[0].rows.nrows();
    let dimensions: Vec<usize> = parts.iter().map(Sample::dimensions).collect();
    let (estimate, cells) = point(parts)?;
    if !estimate.is_finite() {
        return Err(Error::NotFinite { at: format!("the estimate by {estimator}"), index: 0, found: estimate });
    }
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
    let mut interval = Interval { estimate, low: estimate, high: estimate, level: certainty.level };
    let mut convergence = vec![(n, estimate)];
    if certainty.halves > 0 {
        let part = |count: usize, of: usize| -> Result<Vec<f64>> {
            let rows: Vec<usize> = (0..n).collect();
            let estimates = (0..count).into_par_iter().map(|number| {
                let rows = &shuffled(&rows, seed.wrapping_add((number * 4 + of) as u64))[..n / of];
                Ok(point(&parts.iter().map(|part| part.take(rows)).collect::<Vec<_>>())?.0)
            });
            estimates.collect()
        };
        match part(certainty.halves, 2) {
            Ok(halves) => {
                let mean = halves.iter().sum::<f64>() / halves.len() as f64;
                let spread =
                    (halves.iter().map(|half| (half - mean).powi(2)).sum::<f64>() / (halves.len() - 1) as f64).sqrt();
                let reach = normal_quantile(0.5 + certainty.level / 2.0) * spread;
                (interval.low, interval.high) = (estimate - reach, estimate + reach);
                convergence.insert(0, (n / 2, mean));
                let moved = (estimate - mean).abs();
                if moved > 0.02 + 0.05 * estimate.abs() && moved > 4.0 * spread / (halves.len() as f64).sqrt() {
                    warnings.push(Warning::NotConverged { half: mean });
                }
                if let Ok(quarters) = part(8, 4) {
                    convergence.insert(0, (n / 4, quarters.iter().sum::<f64>() / 8.0));
                }
            }
            Err(reason) => {
                (interval.low, interval.high) = (0.0, f64::INFINITY);
                warnings.push(Warning::NoInterval { reason: reason.to_string() });
            }
        }
    }
    let p = null(parts, among, certainty, seed, estimate, &point)?;
    Ok(Estimate { interval, estimator, n, dimensions, p, convergence, warnings })
}

/// The chance of as high an estimate where the variables `among` are shuffled, each on its own.
fn null(
    parts: &[Sample],
    among: Range<usize>,
    certainty: &Certainty,
    seed: u64,
    estimate: f64,
    point: &(impl Fn(&[Sample]) -> Result<(f64, usize)> + Sync),
) -> Result<Option<f64>> {
    if certainty.permutations == 0 {
        return Ok(None);
    }
    let draws = (0..certainty.permutations).into_par_iter().map(|number| {
        let mut rng = stream(seed, number + 1);
        let shuffled: Vec<Sample> = parts
            .iter()
            .enumerate()
            .map(|(i, part)| if among.contains(&i) { part.shuffled(&mut rng) } else { part.clone() })
            .collect();
        Ok(point(&shuffled)?.0)
    });
    let draws: Result<Vec<f64>> = draws.collect();
    let reached = draws?.into_iter().filter(|value| *value >= estimate).count();
    Ok(Some((reached + 1) as f64 / (certainty.permutations + 1) as f64))
}
