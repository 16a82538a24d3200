//! Is an effect too small to matter? Equivalence tests.

use serde::{Deserialize, Serialize};

use super::{Interval, Student, check_sample, mean, variance};
use crate::error::{Error, Result};

/// The result of an equivalence test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Equivalence {
    /// The larger of the two one-sided p-values. Below alpha, the effect lies within the bounds.
    pub p: f64,
    /// The p-value against an effect at or below the lower bound.
    pub p_low: f64,
    /// The p-value against an effect at or above the upper bound.
    pub p_high: f64,
    /// The mean with its t-interval of level 1 - 2 alpha, which lies within the bounds exactly if `equivalent`.
    pub interval: Interval,
    /// Whether `p` is below alpha.
    pub equivalent: bool,
}

/// Is the mean within the bounds of what would matter? Two one-sided t-tests (Schuirmann 1987).
///
/// `bounds` are the smallest effects of interest, fixed in advance, for instance (-0.1, 0.1). The statistics are
/// `t_low = (mean - low) / (s / sqrt n)` and `t_high = (mean - high) / (s / sqrt n)`, with n - 1 degrees of freedom. If all
/// values are equal, p is 0 within the bounds and 1 outside.
///
/// # Errors
/// If there are fewer than two values, one is not finite, the bounds are not in order, or alpha is not between 0 and 0.5.
///
/// ```
/// use headscope::stats::tost;
/// let effects = [0.01, -0.02, 0.015, 0.0, -0.01, 0.02, -0.005, 0.01];
/// assert!(tost(&effects, (-0.1, 0.1), 0.05)?.equivalent);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn tost(values: &[f64], bounds: (f64, f64), alpha: f64) -> Result<Equivalence> {
    check_sample("values", values, 2)?;
    let n = values.len() as f64;
    decide(mean(values), (variance(values) / n).sqrt(), n - 1.0, bounds, alpha)
}

/// Is the difference mean(x) - mean(y) of two independent samples within the bounds of what would matter? As [`tost`], with
/// Welch's standard error and degrees of freedom, so the spreads may differ.
///
/// # Errors
/// As [`tost`].
///
/// ```
/// use headscope::stats::tost_two_sample;
/// let (x, y) = ([1.01, 0.99, 1.02, 0.98, 1.0], [1.0, 1.01, 0.99, 0.98, 1.03]);
/// assert!(tost_two_sample(&x, &y, (-0.1, 0.1), 0.05)?.equivalent);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn tost_two_sample(x: &[f64], y: &[f64], bounds: (f64, f64), alpha: f64) -> Result<Equivalence> {
    check_sample("x", x, 2)?;
    check_sample("y", y, 2)?;
    let (n, m) = (x.len() as f64, y.len() as f64);
    let (a, b) = (variance(x) / n, variance(y) / m);
    let freedom = if a + b > 0.0 { (a + b).powi(2) / (a * a / (n - 1.0) + b * b / (m - 1.0)) } else { n + m - 2.0 };
    decide(mean(x) - mean(y), (a + b).sqrt(), freedom, bounds, alpha)
}

fn decide(estimate: f64, error: f64, freedom: f64, bounds: (f64, f64), alpha: f64) -> Result<Equivalence> {
    let (low, high) = bounds;
    check_sample("bounds", &[low, high], 2)?;
    if low >= high {
        return Err(Error::argument("bounds", "the lower one below the upper one", format!("{low} and {high}")));
    }
    let student = Student::new(estimate, error, freedom)?;
    let (p_low, p_high) = (student.p_above(low), student.p_below(high));
    let p = f64::max(p_low, p_high);
    let interval = student.interval(alpha)?;
    Ok(Equivalence { p, p_low, p_high, interval, equivalent: p < alpha })
}
