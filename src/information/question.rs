//! How much do samples of two or more variables share? The questions, each answered by an estimator of choice.

use ndarray::{Array3, ArrayView2};

use super::estimate::{Certainty, Estimate, Question, Warning, finish, finish_all};
use super::sample::{Sample, beside, come_again, differ, same_length};
use super::suspect::suspicions;
use super::{BinnedOptions, Estimator, Redundancy, binned, decomposition, gaussian, neighbour};
use crate::error::{Error, Result};

/// How much do x and y share? `I(X; Y)`, in nats.
///
/// The interval is `estimate ± z s`. s is the standard deviation of the estimates from random halves of the samples; for
/// estimators that average over samples it equals that of the whole (the delete-half jackknife; Shao & Wu 1989). A bootstrap
/// would create copies of samples, which nearest-neighbour estimators take for information. The interval covers chance; bias
/// shows in `convergence`.
///
/// # Shapes
/// `x`, `y`: \[sample, dimension\]. For [`Estimator::Ross`], each distinct row of `y` is a label.
///
/// # Errors
/// If the numbers of samples differ or are below 8; a value is not finite; the largest absolute value of a column is not
/// between 1e-100 and 1e100; a variable is constant; a column of x equals one of y (except for `Ross` and `Binned`); there are
/// too few samples for the estimator, or not more than `2 k` for neighbours; most labels of `Ross` occur once; every sample
/// occurs a few times; or an option makes no sense.
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
    estimator.fits(parts[0].rows.nrows())?;
    warnings.extend(suspicions(estimator, &parts, &["x", "y"])?);
    let dimensions =
        if matches!(estimator, Estimator::Ross(_)) { parts[0].dimensions() } else { total_dimensions(&parts) };
    let question =
        Question { estimator: estimator.name(), needed: estimator.samples_needed(dimensions), shuffled: 1..2 };
    let ask = |warnings| {
        finish(question, &parts, warnings, certainty, seed, |parts| estimator.point(&parts[0], &parts[1], None))
    };
    if !matches!(estimator, Estimator::Ross(_)) {
        return ask(warnings);
    }
    let labels = parts[1].labels();
    come_again("y", labels.iter().max().map_or(0, |most| most + 1), labels.len())?;
    let found = ask(warnings)?;
    Ok(found.below(binned::discrete_information(&labels, &labels, false)?))
}

/// How much do x and y share that z does not tell? `I(X; Y | Z)`, in nats, by the Gaussian, KSG-1 or binned estimator. The null
/// shuffles y, which also breaks its dependence on z: p tests `I(X; Y | Z) = 0` only if y and z are unrelated.
///
/// # Shapes
/// `x`, `y`, `z`: \[sample, dimension\].
///
/// # Errors
/// As [`mutual_information`], and if the estimator has no conditional form.
///
/// ```
/// use headscope::information::{Certainty, Estimator, Truth, conditional_information};
/// let (x, z) = Truth::Normal { rho: 0.8 }.sample(1000, 0)?;
/// let (_, noise) = Truth::Normal { rho: 0.0 }.sample(1000, 1)?;
/// let y = &z + &noise; // x tells about y only through z
/// let gaussian: Estimator = "gaussian".parse()?;
/// let given = conditional_information(x.view(), y.view(), z.view(), &gaussian, &Certainty::NONE, 0)?;
/// assert!(given.nats().abs() < 0.02);
/// # Ok::<(), headscope::Error>(())
/// ```
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
    estimator.fits(parts[0].rows.nrows())?;
    warnings.extend(suspicions(estimator, &parts, &["x", "y", "z"])?);
    let needed = estimator.samples_needed(total_dimensions(&parts));
    let question = Question { estimator: estimator.name(), needed, shuffled: 1..2 };
    finish(question, &parts, warnings, certainty, seed, |parts| estimator.point(&parts[0], &parts[1], Some(&parts[2])))
}

/// How much do several variables share, all together? The total correlation `sum H(X_i) - H(X)`, in nats, by
/// [`Estimator::Gaussian`] or [`Estimator::Ksg`] (Watanabe 1960). For two variables it is their mutual information.
///
/// # Shapes
/// `variables`: each \[sample, dimension\].
///
/// # Errors
/// As [`mutual_information`], and if there are fewer than two variables or the estimator is another one.
///
/// ```
/// use headscope::information::{Certainty, Estimator, Truth, total_correlation};
/// let (x, y) = Truth::Normal { rho: 0.75 }.sample(2000, 0)?; // 0.413 nats
/// let found = total_correlation(&[x.view(), y.view()], &"gaussian".parse::<Estimator>()?, &Certainty::NONE, 0)?;
/// assert!((found.nats() - 0.413).abs() < 0.05);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn total_correlation(
    variables: &[ArrayView2<f64>],
    estimator: &Estimator,
    certainty: &Certainty,
    seed: u64,
) -> Result<Estimate> {
    let (parts, mut warnings) = several(variables, 2)?;
    estimator.fits(parts[0].rows.nrows())?;
    warnings.extend(suspicions(estimator, &parts, &["variables"])?);
    let needed = estimator.samples_needed(total_dimensions(&parts));
    let question = Question { estimator: estimator.name(), needed, shuffled: 1..parts.len() };
    finish(question, &parts, warnings, certainty, seed, |parts| Ok((total(parts, estimator)?, 0)))
}

/// Do variables mostly repeat each other (positive), or do they tell something only all together (negative)? The O-information
/// `(m - 2) H(X) + sum_i [H(X_i) - H(X without i)] = (2 - m) TC(X) + sum_i TC(X without i)`, in nats (Rosas et al. 2019). For
/// three variables it is redundancy minus synergy, for every measure of redundancy.
///
/// # Shapes
/// `variables`: each \[sample, dimension\].
///
/// # Errors
/// As [`total_correlation`], and if there are fewer than three variables.
///
/// ```
/// use headscope::information::{Certainty, Estimator, Truth, o_information};
/// let (x, y) = Truth::Normal { rho: 0.0 }.sample(2000, 0)?;
/// let (_, noise) = Truth::Normal { rho: 0.0 }.sample(2000, 1)?;
/// let sum = &x + &y + &noise * 0.1; // x and y tell more about it together than apart
/// let variables = [x.view(), y.view(), sum.view()];
/// let found = o_information(&variables, &"gaussian".parse::<Estimator>()?, &Certainty::NONE, 0)?;
/// assert!(found.nats() < -1.0);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn o_information(
    variables: &[ArrayView2<f64>],
    estimator: &Estimator,
    certainty: &Certainty,
    seed: u64,
) -> Result<Estimate> {
    let (parts, mut warnings) = several(variables, 3)?;
    estimator.fits(parts[0].rows.nrows())?;
    warnings.extend(suspicions(estimator, &parts, &["variables"])?);
    let needed = estimator.samples_needed(total_dimensions(&parts));
    let question = Question { estimator: estimator.name(), needed, shuffled: 1..parts.len() };
    finish(question, &parts, warnings, certainty, seed, |parts| {
        let m = parts.len();
        // H(X) = sum H(X_i) - TC(X), so the entropies of single variables cancel.
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

/// The four parts of what two sources tell about a target, each with its interval.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Parts {
    /// Told by both sources.
    pub redundant: Estimate,
    /// Told by the first source alone.
    pub unique_1: Estimate,
    /// Told by the second source alone.
    pub unique_2: Estimate,
    /// Told only by both sources together.
    pub synergistic: Estimate,
    /// The measure of redundancy.
    pub measure: Redundancy,
}

/// What do two sources tell about a target: the same, each something of its own, or something only both together?
/// [`decomposition`] from samples, in nats.
///
/// `Mmi` treats all variables as Gaussian and subtracts the bias of finite samples. `IMin` and `Broja` count; variables with
/// many values are cut into bins. Counts of three variables need many samples, and the parts carry warnings as any estimate
/// does.
///
/// # Shapes
/// `target`, `first`, `second`: \[sample, dimension\].
///
/// # Errors
/// As [`mutual_information`].
///
/// ```
/// use headscope::information::{BinnedOptions, Certainty, Redundancy, decomposition_of_samples};
/// let bit = |samples: &dyn Fn(usize) -> usize| ndarray::Array2::from_shape_fn((400, 1), |(i, _)| samples(i) as f64);
/// let (a, b) = (bit(&|i| i % 2), bit(&|i| i / 2 % 2));
/// let xor = bit(&|i| (i % 2) ^ (i / 2 % 2));
/// let options = BinnedOptions::default();
/// let certainty = Certainty::default();
/// let parts = decomposition_of_samples(xor.view(), a.view(), b.view(), Redundancy::Broja, &options, &certainty, 0)?;
/// assert!((parts.synergistic.nats() - 2f64.ln()).abs() < 1e-6 && parts.redundant.nats().abs() < 1e-6);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn decomposition_of_samples(
    target: ArrayView2<f64>,
    first: ArrayView2<f64>,
    second: ArrayView2<f64>,
    measure: Redundancy,
    options: &BinnedOptions,
    certainty: &Certainty,
    seed: u64,
) -> Result<Parts> {
    same_length("first", target, first)?;
    same_length("second", target, second)?;
    options.validate()?;
    let mut warnings = vec![];
    let parts = [
        Sample::new("target", target, &mut warnings)?,
        Sample::new("first", first, &mut warnings)?,
        Sample::new("second", second, &mut warnings)?,
    ];
    let gaussian = Estimator::Gaussian(gaussian::GaussianOptions::default());
    let (estimator, needed) = match measure {
        Redundancy::Mmi => {
            differ(&parts[0], &parts[1])?;
            differ(&parts[0], &parts[2])?;
            warnings.extend(suspicions(&gaussian, &parts, &["target", "first", "second"])?);
            ("mmi", gaussian.samples_needed(total_dimensions(&parts)))
        }
        Redundancy::IMin => ("i_min", 0),
        Redundancy::Broja => ("broja", 0),
    };
    // Cut all samples into the same bins, so that halves differ by chance alone.
    let parts = match measure {
        Redundancy::Mmi => parts,
        _ => parts.map(|part| Sample::of_labels(&binned::cells(&part, options))),
    };
    let question = Question { estimator, needed, shuffled: 0..1 };
    let [redundant, unique_1, unique_2, synergistic] =
        finish_all(question, &parts, warnings, certainty, seed, |parts| {
            let (found, cells) = decompose(parts, measure)?;
            Ok(([found.redundant, found.unique_1, found.unique_2, found.synergistic], cells))
        })?;
    Ok(Parts { redundant, unique_1, unique_2, synergistic, measure })
}

/// The decomposition of target, first and second source, and the number of occupied cells (0 if nothing is counted).
fn decompose(parts: &[Sample], measure: Redundancy) -> Result<(decomposition::Decomposition, usize)> {
    let [target, first, second] = parts else {
        return Err(Error::argument("variables", "a target and two sources", parts.len()));
    };
    if measure == Redundancy::Mmi {
        let options = gaussian::GaussianOptions::default();
        let both = Sample { rows: beside(&[first, second]) };
        let told = |source: &Sample| gaussian::gaussian(target, source, None, &options);
        let (one, two) = (told(first)?, told(second)?);
        return Ok((decomposition::Decomposition::new(measure, one.min(two), one, two, told(&both)?), 0));
    }
    let labels: Vec<Vec<usize>> = parts.iter().map(Sample::labels).collect();
    let sizes = [0, 1, 2].map(|i| labels[i].iter().max().map_or(0, |most| most + 1));
    let mut p = Array3::zeros(sizes);
    let share = 1.0 / labels[0].len() as f64;
    (0..labels[0].len()).for_each(|row| p[[labels[0][row], labels[1][row], labels[2][row]]] += share);
    let cells = p.iter().filter(|p| **p > 0.0).count();
    Ok((decomposition::decomposition(p.view(), measure)?, cells))
}
