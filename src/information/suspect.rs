//! What speaks against samples, before anything is estimated from them? Repetitions, copies, ties, heavy tails.

use ndarray::{Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use super::estimate::Warning;
use super::sample::{Sample, beside, differ, same_length};
use super::{Estimator, Scaling};
use crate::error::{Error, Result};

/// All warnings that matter to an estimator. `names` are those of the variables; the last one also names all that follow.
///
/// # Errors
/// As [`repeated`].
pub(super) fn suspicions(estimator: &Estimator, parts: &[Sample], names: &[&'static str]) -> Result<Vec<Warning>> {
    let joint = with_copies(parts);
    let repeated = joint.as_ref().map(repetition).transpose()?.flatten();
    // The samples whose distances are measured, if any, and their scale. x alone has no copies if x with the labels has none.
    let (near, tails, scaling) = match estimator {
        Estimator::Binned(_) => return Ok(vec![]), // equal samples are what it counts
        Estimator::Ksg(options) => (joint.as_ref(), parts, options.scaling),
        Estimator::Ross(options) => (joint.as_ref().map(|_| &parts[0]), &parts[..1], options.scaling),
        Estimator::Gaussian(_) | Estimator::Cca(_) => (None, parts, Scaling::Standard),
    };
    let copies = near.filter(|_| repeated.is_none()).and_then(copies);
    let heavy = if scaling == Scaling::NormalScores { None } else { heavy_tails(tails) };
    let measured = match estimator {
        Estimator::Ksg(_) | Estimator::Ross(_) if repeated.is_none() => tails,
        _ => &[],
    };
    let copied = near.map(Sample::labels);
    let name = |part: usize| names.get(part).or(names.last()).copied().unwrap_or("x");
    let ties = measured.iter().enumerate().filter_map(|(part, sample)| ties(name(part), sample, copied.as_deref()));
    Ok(repeated.into_iter().chain(copies).chain(ties).chain(heavy).collect())
}

/// Two variables in standard units, with the checks that all estimators share.
pub(crate) fn checked_pair(
    x: ArrayView2<f64>,
    y: ArrayView2<f64>,
    warnings: &mut Vec<Warning>,
) -> Result<(Array2<f64>, Array2<f64>)> {
    same_length("y", x, y)?;
    let parts = [Sample::new("x", x, warnings)?, Sample::new("y", y, warnings)?];
    let [x, y] = &parts;
    differ(x, y)?;
    warnings.extend(repeated(&parts)?);
    Ok((x.scaled(Scaling::Standard).rows, y.scaled(Scaling::Standard).rows))
}

/// How often a recurring sample should occur, at least, if the data are discrete.
const FEW: usize = 5;

/// From this many distinct samples on, equal counts of all of them are not a coincidence.
const KINDS: usize = 20;

/// Warns of samples that recur although they look continuous: few times each, or all equally often, and as whole rows wherever
/// a single coordinate recurs. Independent draws do not do this; the same data twice do. The number of samples is then
/// exaggerated, and a probe has already seen its held-out samples.
///
/// # Errors
/// If every sample recurs, a few times each.
pub(super) fn repeated(parts: &[Sample]) -> Result<Option<Warning>> {
    with_copies(parts).as_ref().map(repetition).transpose().map(Option::flatten)
}

/// [`repeated`] for all columns side by side.
fn repetition(joint: &Sample) -> Result<Option<Warning>> {
    let counts = counts(joint);
    let n = joint.rows.nrows();
    let of_more: Vec<usize> = counts.iter().copied().filter(|count| *count > 1).collect();
    let (again, kinds) = (of_more.iter().sum::<usize>(), of_more.len());
    let few = again < FEW * kinds && again * 100 > n;
    let equally = kinds == counts.len() && kinds >= KINDS && of_more.iter().all(|count| count * kinds == n);
    let one_tells = || joint.rows.columns().into_iter().any(|column| different(column) * 10 > counts.len() * 9);
    let times = again as f64 / kinds as f64;
    if !(few || equally) || !one_tells() {
        return Ok(None);
    }
    if few && again == n {
        let found = format!("{n}, each {times:.1} times: leave the repetitions out");
        return Err(Error::argument("x, y", "independent samples", found));
    }
    Ok(Some(Warning::Repeated { share: again as f64 / n as f64, times }))
}

/// How many different values a column has.
fn different(column: ArrayView1<f64>) -> usize {
    let mut values = column.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.dedup();
    values.len()
}

/// All columns side by side, if a sample can occur twice at all. Rows that differ in one coordinate differ, which rules out
/// copies quickly for most data.
fn with_copies(parts: &[Sample]) -> Option<Sample> {
    let mut first = parts.first()?.rows.column(0).to_vec();
    first.par_sort_unstable_by(f64::total_cmp);
    let any = first.windows(2).any(|pair| pair[0] == pair[1]);
    any.then(|| Sample { rows: beside(&parts.iter().collect::<Vec<_>>()) })
}

/// How often each distinct sample occurs.
fn counts(sample: &Sample) -> Vec<usize> {
    let mut counts = vec![];
    for label in sample.labels() {
        if label == counts.len() {
            counts.push(0);
        }
        counts[label] += 1;
    }
    counts
}

/// Warns of copies, if distances are measured.
fn copies(sample: &Sample) -> Option<Warning> {
    let n = sample.rows.nrows();
    let share = (n - counts(sample).len()) as f64 / n as f64;
    (share > 1e-3).then_some(Warning::Copies { share })
}

/// The share of tied samples from which on a column is flagged. A million normal samples in single precision have 3 % of ties
/// by rounding alone. These do no harm: ties are much closer than neighbours are.
const TIED: f64 = 0.1;

/// Warns of columns in which samples have equal values without being copies of each other. `copied` numbers the samples; copies
/// have the same number.
fn ties(variable: &'static str, sample: &Sample, copied: Option<&[usize]>) -> Option<Warning> {
    let n = sample.rows.nrows();
    let mut copies = vec![0_usize; n];
    copied.into_iter().flatten().for_each(|&number| copies[number] += 1);
    let alone = |row: usize| copied.is_none_or(|numbers| copies[numbers[row]] == 1);
    let share = |column: ArrayView1<f64>| {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_unstable_by(|&a, &b| column[a].total_cmp(&column[b]));
        let runs = order.chunk_by(|&a, &b| column[a] == column[b]).filter(|run| run.len() > 1);
        runs.flatten().filter(|&&row| alone(row)).count() as f64 / n as f64
    };
    let shares: Vec<f64> = sample.rows.columns().into_iter().map(share).filter(|share| *share >= TIED).collect();
    let share = shares.iter().copied().reduce(f64::max)?;
    Some(Warning::Ties { variable, columns: shares.len(), share })
}

/// Kurtosis above which an estimate from distances or correlations is flagged; an exponential variable has 9.
const HEAVY: f64 = 12.0;

/// Warns of continuous coordinates with heavy tails.
pub(super) fn heavy_tails(parts: &[Sample]) -> Option<Warning> {
    let columns = parts.iter().flat_map(|part| part.rows.columns().into_iter());
    let kurtosis = |column: ArrayView1<f64>| {
        let n = column.len() as f64;
        let mean = column.sum() / n;
        // In units of the largest deviation, so that fourth powers do not overflow.
        let most = column.iter().fold(0.0_f64, |most, value| most.max((value - mean).abs()));
        let moment = |power| column.iter().map(|value| ((value - mean) / most).powi(power)).sum::<f64>() / n;
        moment(4) / moment(2).powi(2)
    };
    let continuous = |column: &ArrayView1<f64>| 2 * different(*column) > column.len();
    let heavy = columns.filter(|column| kurtosis(*column) > HEAVY).filter(continuous).map(kurtosis);
    heavy.reduce(f64::max).map(|kurtosis| Warning::HeavyTails { kurtosis })
}
