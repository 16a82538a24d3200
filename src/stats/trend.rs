//! Do values rise over ordered groups? Tests for a trend.

use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::permutation::{Tail, Test};
use super::rank::ranks;
use super::{check_sample, normal_cdf, stream};
use crate::error::{Error, Result};

/// How to find the p-value of a trend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TrendMethod {
    /// Exact for small samples without ties, drawn for small samples with ties, otherwise normal.
    #[default]
    Auto,
    /// By the exact distribution; an error if there are ties or the samples are too large.
    Exact,
    /// By drawn permutations.
    Permutation,
    /// By the normal approximation, with its variance corrected for ties.
    Normal,
}

/// Options of the tests for a trend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrendOptions {
    /// Which trends count: upward, downward, or both.
    pub tail: Tail,
    /// How to find p.
    pub method: TrendMethod,
    /// How many permutations to draw, if any.
    pub draws: usize,
}

impl Default for TrendOptions {
    fn default() -> Self {
        Self { tail: Tail::Both, method: TrendMethod::Auto, draws: 10_000 }
    }
}

impl TrendOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If fewer than 100 permutations are drawn.
    pub fn validate(&self) -> Result<()> {
        if self.draws < 100 { Err(Error::argument("draws", "100 or more", self.draws)) } else { Ok(()) }
    }

    /// The method to use. `fits`: the exact one is possible; `small`: the normal one would be poor.
    fn choose(&self, fits: bool, small: bool) -> Result<TrendMethod> {
        match self.method {
            TrendMethod::Auto if fits => Ok(TrendMethod::Exact),
            TrendMethod::Auto if small => Ok(TrendMethod::Permutation),
            TrendMethod::Auto => Ok(TrendMethod::Normal),
            TrendMethod::Exact if !fits => Err(Error::argument(
                "method",
                "another than the exact one where there are ties or many values",
                "the exact one",
            )),
            method => Ok(method),
        }
    }
}

/// Samples with more values than this use the normal approximation by default.
const SMALL: usize = 100;

/// Do values rise (or fall) from each group to the next? The Jonckheere-Terpstra test.
///
/// `J = sum over groups i < j of #{x in i, y in j: x < y} + #{x = y} / 2` (Terpstra 1952; Jonckheere 1954).
///
/// Without ties the exact distribution is given by the coefficients of the Gaussian multinomial (Harding 1984). The normal
/// approximation has mean `(N^2 - sum n_i^2) / 4` and a variance corrected for ties (Hollander & Wolfe 1999, eq. 6.19). The
/// groups must be independent: if the same seed occurs in every group, use [`page`].
///
/// # Errors
/// If there are fewer than two groups, one is empty, a value is not finite, all values are equal, or an option makes no sense.
///
/// ```
/// use headscope::stats::{TrendOptions, jonckheere};
/// let by_width = [vec![0.1, 0.2, 0.15], vec![0.25, 0.3, 0.22], vec![0.4, 0.5, 0.35]];
/// let trend = jonckheere(&by_width, &TrendOptions::default(), 0)?;
/// assert!(trend.exact && trend.statistic == 27.0);
/// assert!((trend.p - 2.0 / 1680.0).abs() < 1e-12); // 1680 = 9! / (3!)^3 orders, this one rises most
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn jonckheere<G: AsRef<[f64]>>(groups: &[G], options: &TrendOptions, seed: u64) -> Result<Test> {
    options.validate()?;
    if groups.len() < 2 {
        return Err(Error::argument("groups", "2 or more", groups.len()));
    }
    for group in groups {
        check_sample("a group's values", group.as_ref(), 1)?;
    }
    let values: Vec<f64> = groups.iter().flat_map(|group| group.as_ref().iter().copied()).collect();
    let sizes: Vec<usize> = groups.iter().map(|group| group.as_ref().len()).collect();
    let ties = tie_sizes(&values);
    if ties.first() == Some(&values.len()) {
        return Err(Error::argument("groups", "values that differ", "a constant"));
    }
    let ranks = ranks(&values);
    let statistic = rises(&ranks, &sizes);
    let small = values.len() <= SMALL;
    let method = options.choose(small && ties.iter().all(|&tie| tie == 1), small)?;
    let p = match method {
        TrendMethod::Exact => Chance::of(&jonckheere_counts(&sizes), statistic),
        TrendMethod::Permutation => drawn(options.draws, statistic, |number| {
            let mut ranks = ranks.clone();
            ranks.shuffle(&mut stream(seed, number));
            rises(&ranks, &sizes)
        }),
        _ => {
            let (mean, variance) = jonckheere_moments(&sizes, &ties);
            Chance::normal((statistic - mean) / variance.sqrt())
        }
    };
    Ok(Test { statistic, p: p.p(options.tail), exact: method == TrendMethod::Exact })
}

/// Do values rise (or fall) from each condition to the next, if every subject (a seed, say) was measured under all of them?
/// Page's test.
///
/// `L = sum_j j R_j`, with R_j the sum over subjects of the rank of condition j within the subject (Page 1963). The exact
/// distribution is used without ties and with up to 8 conditions. The normal approximation has mean `n k (k+1)^2 / 4` and
/// variance `n k^2 (k+1)^2 (k-1) / 144`.
///
/// # Shapes
/// `values`: \[subject, condition\], with conditions in the order of the predicted rise.
///
/// # Errors
/// If there is no subject, there are fewer than three conditions, a value is not finite, or an option makes no sense.
///
/// ```
/// use headscope::stats::{TrendOptions, page};
/// // Four seeds under three conditions: every seed rises.
/// let values = ndarray::array![[1.0, 2.0, 3.0], [0.5, 0.6, 0.9], [2.0, 2.5, 3.5], [1.5, 1.7, 1.8]];
/// assert!(page(values.view(), &TrendOptions::default(), 0)?.p < 0.01);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn page(values: ndarray::ArrayView2<f64>, options: &TrendOptions, seed: u64) -> Result<Test> {
    options.validate()?;
    let (n, k) = values.dim();
    if n == 0 || k < 3 {
        return Err(Error::Shape {
            at: "values".into(),
            expected: "[subject, condition], at least 3 conditions".into(),
            found: vec![n as i64, k as i64],
        });
    }
    let rows: Vec<Vec<f64>> = values.rows().into_iter().map(|row| row.to_vec()).collect();
    let mut tied = false;
    for row in &rows {
        check_sample("values", row, 1)?;
        tied |= tie_sizes(row).iter().any(|&tie| tie > 1);
    }
    let ranks: Vec<Vec<f64>> = rows.iter().map(|row| ranks(row)).collect();
    let weigh = |ranks: &[f64]| ranks.iter().zip(1..).map(|(rank, j)| f64::from(j) * (rank + 1.0)).sum::<f64>();
    let statistic: f64 = ranks.iter().map(|ranks| weigh(ranks)).sum();
    let method = options.choose(!tied && k <= 8 && n * k <= 10 * SMALL, n * k <= SMALL)?;
    let p = match method {
        TrendMethod::Exact => Chance::of(&page_counts(n, k), statistic),
        TrendMethod::Permutation => drawn(options.draws, statistic, |number| {
            let mut rng = stream(seed, number);
            let shuffled = ranks.iter().map(|ranks| {
                let mut ranks = ranks.clone();
                ranks.shuffle(&mut rng);
                weigh(&ranks)
            });
            shuffled.sum()
        }),
        _ => {
            let (n, k) = (n as f64, k as f64);
            let variance = n * k * k * (k + 1.0).powi(2) * (k - 1.0) / 144.0;
            Chance::normal((statistic - n * k * (k + 1.0).powi(2) / 4.0) / variance.sqrt())
        }
    };
    Ok(Test { statistic, p: p.p(options.tail), exact: method == TrendMethod::Exact })
}

/// The probabilities of values at least as high, and at least as low.
struct Chance {
    high: f64,
    low: f64,
}

impl Chance {
    /// From the probabilities of 0, 1, 2, ...
    fn of(shares: &[f64], statistic: f64) -> Self {
        let at = (statistic.round() as usize).min(shares.len() - 1);
        Self { high: shares[at..].iter().sum(), low: shares[..=at].iter().sum() }
    }

    fn normal(z: f64) -> Self {
        Self { high: normal_cdf(-z), low: normal_cdf(z) }
    }

    fn p(&self, tail: Tail) -> f64 {
        match tail {
            Tail::Greater => self.high.min(1.0),
            Tail::Less => self.low.min(1.0),
            Tail::Both => (2.0 * self.high.min(self.low)).min(1.0),
        }
    }
}

/// From drawn arrangements; the observed one counts as one of them.
fn drawn(draws: usize, observed: f64, draw: impl Fn(usize) -> f64 + Sync) -> Chance {
    let counts = (0..draws).into_par_iter().map(|number| {
        let value = draw(number);
        (u32::from(value >= observed), u32::from(value <= observed))
    });
    let (high, low) = counts.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let chance = |count: u32| f64::from(count + 1) / (draws + 1) as f64;
    Chance { high: chance(high), low: chance(low) }
}

/// J from the ranks of the values, group after group.
fn rises(ranks: &[f64], sizes: &[usize]) -> f64 {
    let mut rises = 0.0;
    let mut first = 0;
    for size in sizes {
        let (group, later) = ranks[first..].split_at(*size);
        let pairs = group.iter().flat_map(|x| later.iter().map(move |y| (x, y)));
        rises += pairs.map(|(x, y)| f64::from(u8::from(x < y)) + 0.5 * f64::from(u8::from(x == y))).sum::<f64>();
        first += size;
    }
    rises
}

/// The sizes of the groups of equal values, largest first.
fn tie_sizes(values: &[f64]) -> Vec<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let mut sizes: Vec<usize> = sorted.chunk_by(|a, b| a == b).map(<[f64]>::len).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes
}

/// Mean and variance of J under the null.
fn jonckheere_moments(sizes: &[usize], ties: &[usize]) -> (f64, f64) {
    let n = sizes.iter().sum::<usize>() as f64;
    let sum = |counts: &[usize], f: &dyn Fn(f64) -> f64| counts.iter().map(|&c| f(c as f64)).sum::<f64>();
    let cubic = |m: f64| m * (m - 1.0) * (2.0 * m + 5.0);
    let threes = |m: f64| m * (m - 1.0) * (m - 2.0);
    let twos = |m: f64| m * (m - 1.0);
    let mean = (n * n - sum(sizes, &|m| m * m)) / 4.0;
    let mut variance = (cubic(n) - sum(sizes, &cubic) - sum(ties, &cubic)) / 72.0;
    if n > 2.0 {
        variance += sum(sizes, &threes) * sum(ties, &threes) / (36.0 * threes(n));
    }
    variance += sum(sizes, &twos) * sum(ties, &twos) / (8.0 * twos(n));
    (mean, variance)
}

/// The probability of each J over all arrangements: the coefficients of the product over groups of Gaussian binomials [n_1 +
/// ... + n_i over n_i], each scaled to sum to 1.
fn jonckheere_counts(sizes: &[usize]) -> Vec<f64> {
    let mut shares = vec![1.0];
    let mut before = 0;
    for &size in sizes {
        // times (1 - q^(before + i)) / (1 - q^i), i = 1 .. size
        for i in 1..=size {
            let up = before + i;
            shares.resize(shares.len() + before, 0.0);
            for at in (up..shares.len()).rev() {
                shares[at] -= shares[at - up];
            }
            for at in i..shares.len() {
                shares[at] += shares[at - i];
            }
            let scale = i as f64 / up as f64;
            shares.iter_mut().for_each(|share| *share *= scale);
        }
        before += size;
    }
    // The distribution is symmetric, and its lower half is free of rounding errors from larger probabilities.
    let last = shares.len() - 1;
    for at in 0..=last / 2 {
        shares[last - at] = shares[at];
    }
    shares
}

/// The probability of each L for n subjects and k conditions without ties.
fn page_counts(n: usize, k: usize) -> Vec<f64> {
    fn visit(left: &mut Vec<usize>, j: usize, sum: usize, counts: &mut [f64]) {
        if left.is_empty() {
            counts[sum] += 1.0;
        }
        for index in 0..left.len() {
            let rank = left.swap_remove(index);
            visit(left, j + 1, sum + j * rank, counts);
            left.push(rank);
            let last = left.len() - 1;
            left.swap(index, last);
        }
    }
    let mut one = vec![0.0; k * (k + 1) * (2 * k + 1) / 6 + 1];
    visit(&mut (1..=k).collect(), 1, 0, &mut one);
    let all: f64 = one.iter().sum();
    one.iter_mut().for_each(|count| *count /= all);
    let mut shares = vec![1.0];
    for _ in 0..n {
        let mut next = vec![0.0; shares.len() + one.len() - 1];
        for (at, share) in shares.iter().enumerate() {
            one.iter().zip(&mut next[at..]).for_each(|(one, next)| *next += share * one);
        }
        shares = next;
    }
    shares
}
