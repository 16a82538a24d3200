//! What if many tests are made at once? Corrected p-values.

use super::check_sample;
use crate::error::{Error, Result};

/// Checks the p-values, and returns their order.
fn check(p: &[f64]) -> Result<Vec<usize>> {
    check_sample("p", p, 1)?;
    if let Some(bad) = p.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(Error::argument("p", "p-values from 0 to 1", bad));
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    Ok(order)
}

/// Which of many p-values hold, with no false finding among them? Corrected p-values: those below alpha contain even one false
/// finding with probability at most alpha, however the tests depend on each other. Sorted ascending, `p~_(i) = max_{j <= i}
/// min(1, (m - j + 1) p_(j))` (Holm 1979).
///
/// # Errors
/// If there are none, or one is not from 0 to 1.
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

/// Which of many p-values hold, with a small share of false findings among them? Corrected p-values: among those below alpha,
/// the expected share of false findings is at most alpha, for independent or positively dependent tests. Sorted ascending,
/// `p~_(i) = min_{j >= i} m p_(j) / j` (Benjamini & Hochberg 1995).
///
/// # Errors
/// As [`holm`].
///
/// ```
/// use headscope::stats::benjamini_hochberg;
/// let corrected = benjamini_hochberg(&[0.01, 0.02, 0.03, 0.5])?;
/// assert!((corrected[0] - 0.04).abs() < 1e-12 && (corrected[3] - 0.5).abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
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
