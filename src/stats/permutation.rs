//! Could this be chance? Permutation tests compare a statistic with its values under exchanged labels or flipped signs.

use ndarray::ArrayView2;
use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{check_sample, mean, stream};
use crate::error::{Error, Result};

/// Which deviations from the null count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Tail {
    /// Large values.
    Greater,
    /// Small values.
    Less,
    /// Either: twice the smaller one-sided p-value, at most 1.
    #[default]
    Both,
}

/// Options of the permutation tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermutationOptions {
    /// Which deviations count.
    pub tail: Tail,
    /// Up to this many arrangements, all are enumerated; beyond that, `draws` are drawn.
    pub exact_up_to: u64,
    /// How many arrangements to draw.
    pub draws: usize,
}

impl Default for PermutationOptions {
    fn default() -> Self {
        Self { tail: Tail::Both, exact_up_to: 1 << 20, draws: 10_000 }
    }
}

impl PermutationOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If fewer than 100 arrangements are drawn, or more than 2^28 would be enumerated.
    pub fn validate(&self) -> Result<()> {
        if self.draws < 100 {
            return Err(Error::argument("draws", "100 or more", self.draws));
        }
        if self.exact_up_to > 1 << 28 {
            return Err(Error::argument("exact_up_to", "at most 2^28", self.exact_up_to));
        }
        Ok(())
    }
}

/// The result of a test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// The statistic; the test says which.
    pub statistic: f64,
    /// The probability, under the null, of a statistic at least as extreme.
    pub p: f64,
    /// Whether `p` is exact, not drawn or approximated.
    pub exact: bool,
}

/// The result of a test of many columns; the p-values are corrected for all columns together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaxTest {
    /// The statistic of each column.
    pub statistic: Vec<f64>,
    /// The probability, under the null, that the most extreme column is at least as extreme as this one.
    pub p: Vec<f64>,
    /// Whether `p` is exact, not drawn.
    pub exact: bool,
}

/// How many arrangements were at least as high as the observed one, and how many at least as low.
#[derive(Clone, Copy, Default)]
struct Count {
    high: u64,
    low: u64,
}

impl Count {
    /// Counts one value; differences below `slack` are rounding.
    fn add(mut self, value: f64, observed: f64, slack: f64) -> Self {
        self.high += u64::from(value >= observed - slack);
        self.low += u64::from(value <= observed + slack);
        self
    }

    fn both(self, other: Self) -> Self {
        Self { high: self.high + other.high, low: self.low + other.low }
    }

    /// The p-value from `all` arrangements. If they were drawn, the observed one counts as one more; otherwise p could be 0,
    /// and the test would reject too often (Phipson & Smyth 2010).
    fn p(self, all: u64, exact: bool, tail: Tail) -> f64 {
        let extra = u64::from(!exact);
        let p = |count: u64| (count + extra) as f64 / (all + extra) as f64;
        match tail {
            Tail::Greater => p(self.high),
            Tail::Less => p(self.low),
            Tail::Both => (2.0 * p(self.high).min(p(self.low))).min(1.0),
        }
    }
}

/// Is the mean of paired differences zero? Under the null, each difference is equally likely to have either sign.
///
/// The statistic is the mean. All 2^n sign patterns are enumerated if there are few enough (n up to 20 by default), otherwise
/// drawn (Fisher 1935; Dwass 1957). The smallest two-sided p-value of n differences is 2^(1-n): 8 seeds can reach 0.008.
///
/// # Errors
/// If there are no differences, one is not finite, or an option makes no sense.
///
/// ```
/// use headscope::stats::{PermutationOptions, sign_flip};
/// let wide_minus_narrow = [0.12, 0.08, 0.15, 0.02, 0.11, 0.09, 0.14, 0.07];
/// let test = sign_flip(&wide_minus_narrow, &PermutationOptions::default(), 0)?;
/// assert!(test.exact && test.p == 2.0 / 256.0); // all of one sign: only two of 2^8 are as extreme
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn sign_flip(differences: &[f64], options: &PermutationOptions, seed: u64) -> Result<Test> {
    options.validate()?;
    check_sample("differences", differences, 1)?;
    let n = differences.len();
    let observed: f64 = differences.iter().sum();
    let slack = slack(differences);
    let exact = n < 60 && 1u64 << n <= options.exact_up_to;
    let (count, all) = if exact {
        // The signed sums of each half, so that every full sum is a single addition.
        let (left, right) = differences.split_at(n / 2);
        let (left, right) = (signed_sums(left), signed_sums(right));
        let row = |&a: &f64| right.iter().fold(Count::default(), |count, b| count.add(a + b, observed, slack));
        (left.par_iter().map(row).reduce(Count::default, Count::both), 1 << n)
    } else {
        let draw = |number| {
            let mut rng = stream(seed, number);
            let sum = differences.iter().map(|d| if rng.random() { *d } else { -d }).sum();
            Count::default().add(sum, observed, slack)
        };
        ((0..options.draws).into_par_iter().map(draw).reduce(Count::default, Count::both), options.draws as u64)
    };
    Ok(Test { statistic: observed / n as f64, p: count.p(all, exact, options.tail), exact })
}

/// Sums closer than this differ by rounding alone.
fn slack(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).sum::<f64>() * 1e-13
}

/// The sums of `values` under all their signs.
fn signed_sums(values: &[f64]) -> Vec<f64> {
    values.iter().fold(vec![0.0], |sums, value| sums.iter().flat_map(|sum| [sum + value, sum - value]).collect())
}

/// Do two independent samples have the same mean? Under the null, the labels can be exchanged.
///
/// The statistic is mean(x) - mean(y). All splits of the pooled values are enumerated if there are few enough, otherwise drawn.
/// Strictly, the null is that both have the same distribution: with unequal spreads and sizes the test may reject because of
/// the spread.
///
/// # Errors
/// If a sample is empty, a value is not finite, or an option makes no sense.
///
/// ```
/// use headscope::stats::{PermutationOptions, two_sample};
/// let test = two_sample(&[5.1, 5.3, 5.0, 5.4], &[4.0, 4.2, 3.9, 4.1], &PermutationOptions::default(), 0)?;
/// assert!(test.exact && (test.p - 2.0 / 70.0).abs() < 1e-12); // the most extreme of 70 splits, on either side
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn two_sample(x: &[f64], y: &[f64], options: &PermutationOptions, seed: u64) -> Result<Test> {
    options.validate()?;
    check_sample("x", x, 1)?;
    check_sample("y", y, 1)?;
    let pooled: Vec<f64> = x.iter().chain(y).copied().collect();
    let (observed, slack) = (x.iter().sum::<f64>(), slack(&pooled)); // the sum of x decides the difference of means
    let ways = choose(pooled.len(), x.len(), options.exact_up_to);
    let (count, all) = match ways {
        Some(ways) => (count_splits(&pooled, x.len(), observed, slack), ways),
        None => {
            let draw = |number| {
                let mut values = pooled.clone();
                let (drawn, _) = values.partial_shuffle(&mut stream(seed, number), x.len());
                Count::default().add(drawn.iter().sum(), observed, slack)
            };
            ((0..options.draws).into_par_iter().map(draw).reduce(Count::default, Count::both), options.draws as u64)
        }
    };
    Ok(Test { statistic: mean(x) - mean(y), p: count.p(all, ways.is_some(), options.tail), exact: ways.is_some() })
}

/// n choose k, if it is at most `limit`.
pub(super) fn choose(n: usize, k: usize, limit: u64) -> Option<u64> {
    let ways = (0..k.min(n - k)).try_fold(1u128, |ways, i| {
        let ways = ways * (n - i) as u128 / (i + 1) as u128;
        (ways <= u128::from(limit) * n as u128).then_some(ways)
    })?;
    u64::try_from(ways).ok().filter(|&ways| ways <= limit)
}

/// Counts the sums over all ways to choose `k` of `values`.
fn count_splits(values: &[f64], k: usize, observed: f64, slack: f64) -> Count {
    fn visit(values: &[f64], k: usize, sum: f64, count: Count, observed: f64, slack: f64) -> Count {
        if k == 0 {
            return count.add(sum, observed, slack);
        }
        (0..=values.len() - k)
            .fold(count, |count, first| visit(&values[first + 1..], k - 1, sum + values[first], count, observed, slack))
    }
    visit(values, k, 0.0, Count::default(), observed, slack)
}

/// Which of many columns of paired differences have a mean other than zero, with no false finding among them?
///
/// The statistic of a column is its mean over its root mean square, which orders columns as Student's t does and ignores their
/// scale. Signs are flipped for whole rows, which keeps the dependence between columns, and each column is compared with the
/// most extreme of all (Westfall & Young 1993). A column of zeros has statistic 0.
///
/// # Shapes
/// `differences`: \[sample, column\].
///
/// # Errors
/// If there is no sample or no column, a value is not finite, or an option makes no sense.
///
/// ```
/// use headscope::stats::{PermutationOptions, max_sign_flip};
/// let differences = ndarray::Array2::from_shape_fn((10, 3), |(row, column)| {
///     let noise = ((7 * row + 3 * column) as f64).sin();
///     if column == 1 { 5.0 + noise } else { noise }
/// });
/// let found = max_sign_flip(differences.view(), &PermutationOptions::default(), 0)?;
/// assert!(found.p[1] < 0.05 && found.p[0] > 0.05 && found.p[2] > 0.05);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn max_sign_flip(differences: ArrayView2<f64>, options: &PermutationOptions, seed: u64) -> Result<MaxTest> {
    options.validate()?;
    let (n, columns) = differences.dim();
    if n == 0 || columns == 0 {
        let found = vec![n as i64, columns as i64];
        return Err(Error::Shape {
            at: "differences".into(),
            expected: "[sample, column], none of them 0".into(),
            found,
        });
    }
    let flat: Vec<f64> = differences.iter().copied().collect();
    check_sample("differences", &flat, 1)?;
    let mut scaled = differences.to_owned();
    for mut column in scaled.columns_mut() {
        let scale = (column.iter().map(|v| v * v).sum::<f64>() / n as f64).sqrt() * n as f64;
        column.mapv_inplace(|value| if scale > 0.0 { value / scale } else { 0.0 });
    }
    let sign = |value: f64| match options.tail {
        Tail::Greater => value,
        Tail::Less => -value,
        Tail::Both => value.abs(),
    };
    let observed: Vec<f64> = scaled.columns().into_iter().map(|column| column.sum()).collect();
    let most = |signs: &dyn Fn(usize) -> bool| {
        let mut sums = vec![0.0; columns];
        for (row, values) in scaled.rows().into_iter().enumerate() {
            let sign = if signs(row) { 1.0 } else { -1.0 };
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += sign * value);
        }
        sums.into_iter().map(sign).fold(f64::NEG_INFINITY, f64::max)
    };
    let exact = n < 60 && 1u64 << n <= options.exact_up_to;
    let null: Vec<f64> = if exact {
        (0..1u64 << n).into_par_iter().map(|signs| most(&|row| signs >> row & 1 == 0)).collect()
    } else {
        let draw = |number| {
            let mut rng = stream(seed, number);
            let signs: Vec<bool> = (0..n).map(|_| rng.random()).collect();
            most(&|row| signs[row])
        };
        (0..options.draws).into_par_iter().map(draw).collect()
    };
    let p = against(&observed.iter().copied().map(sign).collect::<Vec<_>>(), null, exact);
    Ok(MaxTest { statistic: observed, p, exact })
}

/// Which of many statistics stand out, with no false finding among them? Corrected p-values from the same statistics on data
/// without any effect (permuted labels, shuffled positions): `(1 + #{b: max_j null[b, j] >= observed_i}) / (B + 1)` (Westfall &
/// Young 1993). Large values count; the statistics should share a scale.
///
/// # Shapes
/// `observed`: \[column\]; `null`: \[permutation, column\].
///
/// # Errors
/// If the columns differ in number, there are none, there is no permutation, or a value is not finite.
///
/// ```
/// use headscope::stats::max_adjusted;
/// let null = ndarray::array![[0.1, 0.5], [0.4, 0.2], [0.3, 0.3]];
/// assert_eq!(max_adjusted(&[0.45, 0.9], null.view())?, [0.5, 0.25]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn max_adjusted(observed: &[f64], null: ArrayView2<f64>) -> Result<Vec<f64>> {
    check_sample("observed", observed, 1)?;
    if null.ncols() != observed.len() || null.nrows() == 0 {
        return Err(Error::Shape {
            at: "null".into(),
            expected: format!("[permutation, column {}]", observed.len()),
            found: vec![null.nrows() as i64, null.ncols() as i64],
        });
    }
    check_sample("null", &null.iter().copied().collect::<Vec<_>>(), 1)?;
    let most = null.rows().into_iter().map(|row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max)).collect();
    Ok(against(observed, most, false))
}

/// How often the most extreme value under the null reaches each observed one.
fn against(observed: &[f64], mut null: Vec<f64>, exact: bool) -> Vec<f64> {
    null.sort_by(f64::total_cmp);
    let p = |&value: &f64| {
        let reached = null.len() - null.partition_point(|&other| other < value - value.abs() * 1e-12);
        let extra = usize::from(!exact);
        (reached + extra) as f64 / (null.len() + extra) as f64
    };
    observed.iter().map(p).collect()
}
