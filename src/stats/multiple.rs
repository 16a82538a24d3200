//! Corrections for many tests.

use super::check_sample;
use crate::error::{Error, Result};

/// Fails where a p-value is none.
fn check(p: &[f64]) -> Result<Vec<usize>> {
    check_sample("p", p, 1)?;
    if let Some(bad) = p.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(Error::argument("p", "p-values from 0 to 1", bad));
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    Ok(order)
}

/// p-values such that those below alpha hold the chance of even one false finding below alpha, whatever the tests'
/// dependence: sorted ascending, `p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))` (Holm 1979).
///
/// # Errors
/// Where there is none, or one is not from 0 to 1.
///
/// ```
/// use headscope::stats::{benjamini_hochberg, holm};
/// assert_eq!(holm(&[0.01, 0.04, 0.03])?, [0.03, 0.06, 0.06]);
/// assert_eq!(benjamini_hochberg(&[0.01, 0.04, 0.03])?, [0.03, 0.04, 0.04]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn holm(p: &[f64]) -> Result<Vec<f64>> {
    let order = check(p)?;
    let mut adjusted = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (place, &index) in order.iter().enumerate() {
        largest = largest.max(((p.len() - place) as f64 * p[index]).min(1.0));
        adjusted[index] = largest;
    }
    Ok(adjusted)
}

/// p-values such that among those below alpha the expected share of false findings is below alpha, for independent or
/// positively dependent tests: sorted ascending, `p~_(i) = min_{j >= i} m p_(j) / j` (Benjamini & Hochberg 1995).
///
/// # Errors
/// As [`holm`].
pub fn benjamini_hochberg(p: &[f64]) -> Result<Vec<f64>> {
    let order = check(p)?;
    let mut adjusted = vec![0.0; p.len()];
    let mut smallest: f64 = 1.0;
    for (place, &index) in order.iter().enumerate().rev() {
        smallest = smallest.min(p.len() as f64 * p[index] / (place + 1) as f64);
        adjusted[index] = smallest;
    }
    Ok(adjusted)
}
