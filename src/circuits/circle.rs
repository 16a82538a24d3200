//! How much rank does attention need? Keys on a circle, and the logits that a pattern requires.

use std::f64::consts::PI;

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::factored::{Factored, check_finite, shape};
use super::lapack;
use crate::error::{Error, Result};

/// How can logits of rank 2 give every query a target of its own, with any number of keys? By keys on a circle.
///
/// Key j lies at angle `2 pi j / n`, and a query at the angle of its target t. Their logit is `beta cos(2 pi (t - j) / n)`. The
/// nearest other key is lower by `beta (1 - cos(2 pi / n))`, so the weight of the target is at least `1 / (1 + (n - 1)
/// exp(-beta (1 - cos(2 pi / n))))`.
///
/// A low rank of the logits therefore limits neither which single targets a head can attend to, nor the rank of its attention:
/// for a permutation of targets that is n. The cost is the length of queries and keys: beta grows with `n^2 ln n`.
///
/// ```
/// use headscope::circuits::Circle;
/// let targets: Vec<usize> = (0..50).map(|query| query * 7 % 50).collect(); // a permutation
/// let circle = Circle::new(50, &targets, Circle::sharpness(50, 0.9)?)?;
/// assert_eq!(circle.logits().rank()?, 2);
/// assert!(circle.target_weight()? >= circle.bound() && circle.bound() > 0.899);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Circle {
    logits: Factored,
    targets: Vec<usize>,
    beta: f64,
}

impl Circle {
    /// A circle of `n` keys with one query for each of `targets`, which are indices of keys.
    ///
    /// # Errors
    /// If there are fewer than 2 keys or no query, a target is not a key, or beta is not finite and above 0.
    pub fn new(n: usize, targets: &[usize], beta: f64) -> Result<Self> {
        check(n)?;
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::argument("beta", "a finite number above 0", beta));
        }
        if let Some(&found) = targets.iter().find(|&&target| target >= n) {
            let (found, limit) = (found as i64, n as i64);
            return Err(Error::OutOfRange { at: "targets".into(), axis: "key", found, limit });
        }
        let on_circle = |i: usize, axis: usize| {
            let angle = 2.0 * PI * i as f64 / n as f64;
            if axis == 0 { angle.cos() } else { angle.sin() }
        };
        let queries = Array2::from_shape_fn((targets.len(), 2), |(i, axis)| beta * on_circle(targets[i], axis));
        let keys = Array2::from_shape_fn((2, n), |(axis, j)| on_circle(j, axis));
        Ok(Self { logits: Factored::new(queries, keys)?, targets: targets.to_vec(), beta })
    }

    /// How large must beta be for every target to have at least this weight among `n` keys?
    ///
    /// # Errors
    /// If there are fewer than 2 keys, or the weight is not between 1/n and 1.
    pub fn sharpness(n: usize, weight: f64) -> Result<f64> {
        check(n)?;
        if !(weight > 1.0 / n as f64 && weight < 1.0) {
            return Err(Error::argument("weight", format!("a number above 1/{n} and below 1"), weight));
        }
        Ok(((n as f64 - 1.0) * weight / (1.0 - weight)).ln() / step(n))
    }

    /// The logits, `[query, key]`, as factors of width 2.
    pub fn logits(&self) -> &Factored {
        &self.logits
    }

    /// The attention pattern, `[query, key]`: the softmax of the logits over keys.
    ///
    /// # Errors
    /// A circle from [`Circle::new`] gives none.
    pub fn pattern(&self) -> Result<Array2<f64>> {
        attention(&self.logits)
    }

    /// The smallest weight that a query gives its target.
    ///
    /// # Errors
    /// As [`Circle::pattern`].
    pub fn target_weight(&self) -> Result<f64> {
        let pattern = self.pattern()?;
        Ok(self.targets.iter().enumerate().map(|(i, &t)| pattern[[i, t]]).fold(f64::INFINITY, f64::min))
    }

    /// A lower bound on the weight of every target: `1 / (1 + (n - 1) exp(-beta (1 - cos(2 pi / n))))`.
    pub fn bound(&self) -> f64 {
        let n = self.logits.ncols();
        1.0 / (1.0 + (n as f64 - 1.0) * (-self.beta * step(n)).exp())
    }
}

/// What pattern do these logits give? The softmax over keys of each query's logits, `[query, key]`; no key is masked.
///
/// # Errors
/// If the logits are not finite.
pub fn attention(logits: &Factored) -> Result<Array2<f64>> {
    let mut pattern = logits.rows(0..logits.nrows())?;
    soften(&mut pattern);
    check_finite("attention", &pattern.view())?;
    Ok(pattern)
}

/// Logits become weights: the softmax of each row.
pub(super) fn soften(logits: &mut Array2<f64>) {
    for mut row in logits.rows_mut() {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.mapv_inplace(|value| (value - largest).exp());
        let sum = row.sum();
        row /= sum;
    }
}

/// The gap between the logits of the target and of the nearest other key, divided by beta.
fn step(n: usize) -> f64 {
    1.0 - (2.0 * PI / n as f64).cos()
}

fn check(n: usize) -> Result<()> {
    if n >= 2 { Ok(()) } else { Err(Error::argument("n", "at least 2 keys", n)) }
}

/// What rank must the logits of a pattern have? The singular values of `log P (I - 11^T / n)`, in descending order.
///
/// The softmax ignores a constant added to all logits of a query. So logits L give P exactly if `L C = log P C`, with `C = I -
/// 11^T / n`. A head of width k can produce P only if this rank is at most k; if its inputs have full rank, it can produce any
/// such P.
///
/// # Shapes
/// `pattern`: `[query, key]`, with rows that sum to 1. All queries must see the same keys (no causal mask).
///
/// # Errors
/// If a weight is not above 0, a row does not sum to 1, or LAPACK fails.
///
/// ```
/// use headscope::circuits::{Circle, logit_spectrum};
/// // Every one of 12 queries attends to a key of its own, and yet logits of rank 2 do.
/// let targets: Vec<usize> = (0..12).rev().collect();
/// let circle = Circle::new(12, &targets, Circle::sharpness(12, 0.5)?)?;
/// let sigma = logit_spectrum(&circle.pattern()?.view())?;
/// assert!(sigma[1] > 1.0 && sigma[2] < 1e-8);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn logit_spectrum(pattern: &ArrayView2<'_, f64>) -> Result<Array1<f64>> {
    lapack::singular_values(&centred_log(pattern)?)
}

/// `log P (I - 11^T / n)` of a pattern: its logits with a mean of 0 for each query.
pub(super) fn centred_log(pattern: &ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    if pattern.is_empty() {
        return Err(shape("pattern", "[query, key], neither 0".to_owned(), pattern));
    }
    if let Some(found) = pattern.iter().find(|weight| !(**weight > 0.0 && weight.is_finite())) {
        return Err(Error::argument("pattern", "weights above 0: no key that is masked", found));
    }
    if let Some(found) = pattern.sum_axis(Axis(1)).iter().find(|sum| (**sum - 1.0).abs() > 1e-4) {
        return Err(Error::argument("pattern", "rows that sum to 1", found));
    }
    let mut logits = pattern.mapv(f64::ln);
    for mut row in logits.rows_mut() {
        let mean = row.sum() / row.len() as f64;
        row -= mean;
    }
    Ok(logits)
}
