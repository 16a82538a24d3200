//! How much rank attention needs: keys on a circle, and the logits behind a pattern.

use std::f64::consts::PI;

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::factored::{Factored, shape};
use super::lapack;
use crate::error::{Error, Result};

/// Keys on a circle: logits of rank 2 by which every query attends to a target of its own, however many keys there are.
///
/// Key j stands at the angle `2 pi j / n`, and a query at that of its target t: the logit of the two is
/// `beta cos(2 pi (t - j) / n)`. The nearest other key is `1 - cos(2 pi / n)` lower, so that the target's weight is at least
/// `1 / (1 + (n - 1) exp(-beta (1 - cos(2 pi / n))))`. So a low rank of logits is no bound on which pattern of single targets a
/// head can have, nor on the rank of its attention: for a permutation of targets that is n. What it does need is length: beta
/// grows with `n^2 ln n`.
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
    /// `n` keys, and a query for each of `targets`, the number of its key.
    ///
    /// # Errors
    /// Where there are fewer than 2 keys, no query, a target that is no key, or beta is not finite and above 0.
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

    /// The beta with which every target has at least this weight among `n` keys.
    ///
    /// # Errors
    /// Where there are fewer than 2 keys, or the weight is not above 1/n and below 1.
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

    /// The attention, the softmax of the logits over keys, `[query, key]`.
    ///
    /// # Errors
    /// None that a circle which could be made has.
    pub fn pattern(&self) -> Result<Array2<f64>> {
        let mut pattern = self.logits.rows(0..self.targets.len())?;
        for mut row in pattern.rows_mut() {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.mapv_inplace(|value| (value - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
        Ok(pattern)
    }

    /// The least weight that a query gives its target.
    ///
    /// # Errors
    /// As [`Circle::pattern`].
    pub fn target_weight(&self) -> Result<f64> {
        let pattern = self.pattern()?;
        Ok(self.targets.iter().enumerate().map(|(i, &t)| pattern[[i, t]]).fold(f64::INFINITY, f64::min))
    }

    /// What every target's weight is at least: `1 / (1 + (n - 1) exp(-beta (1 - cos(2 pi / n))))`.
    pub fn bound(&self) -> f64 {
        let n = self.logits.ncols();
        1.0 / (1.0 + (n as f64 - 1.0) * (-self.beta * step(n)).exp())
    }
}

/// How much lower than the target's the logit of the nearest other key is, over beta.
fn step(n: usize) -> f64 {
    1.0 - (2.0 * PI / n as f64).cos()
}

fn check(n: usize) -> Result<()> {
    if n >= 2 { Ok(()) } else { Err(Error::argument("n", "at least 2 keys", n)) }
}

/// Which rank do the logits behind a pattern have? The singular values of `log P (I - 11^T / n)`, descending.
///
/// The softmax forgets what is added to all logits of a query, so that logits L give P exactly where `L C = log P C`, with
/// `C = I - 11^T / n`: a head of width k makes P only if the rank here is k or less, and for inputs of full rank any such P
/// can be made.
///
/// # Shapes
/// `pattern` `[query, key]`, rows that sum to 1; queries that see the same keys only (no causal mask).
///
/// # Errors
/// Where a weight is not above 0, a row does not sum to 1, or LAPACK fails.
pub fn logit_spectrum(pattern: &ArrayView2<'_, f64>) -> Result<Array1<f64>> {
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
    lapack::singular_values(&logits)
}
