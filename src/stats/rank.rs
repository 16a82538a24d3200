//! Do two measurements agree? Correlations, ranks and random orders.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{check_sample, mean};
use crate::error::{Error, Result};

/// Do two measurements order the same things alike? Spearman's rank correlation, from -1 (reversed) to 1 (the same order).
///
/// It is the Pearson correlation of the ranks; equal values share the mean of their ranks (Spearman 1904).
///
/// # Errors
/// If the two differ in length, have fewer than two values, contain NaN, or one of them is constant.
///
/// ```
/// use headscope::stats::spearman;
/// assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 100.0, 1000.0])?, 1.0);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn spearman(x: &[f64], y: &[f64]) -> Result<f64> {
    paired(x, y)?;
    for values in [x, y] {
        if let Some(index) = values.iter().position(|value| value.is_nan()) {
            return Err(Error::NotFinite { at: "rank correlation".into(), index, found: f64::NAN });
        }
    }
    pearson(&ranks(x), &ranks(y))
}

/// Do two measurements lie on a line? Pearson's correlation coefficient, from -1 (falling) to 1 (rising).
///
/// # Errors
/// As [`spearman`], and if a value is infinite.
///
/// ```
/// use headscope::stats::pearson;
/// assert!((pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0])? - 1.0).abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn pearson(x: &[f64], y: &[f64]) -> Result<f64> {
    paired(x, y)?;
    check_sample("x", x, 2)?;
    check_sample("y", y, 2)?;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let centred: Vec<(f64, f64)> = x.iter().zip(y).map(|(x, y)| (x - mean_x, y - mean_y)).collect();
    let sum = |of: fn(&(f64, f64)) -> f64| centred.iter().map(of).sum::<f64>();
    let scale = (sum(|(x, _)| x * x) * sum(|(_, y)| y * y)).sqrt();
    if scale == 0.0 {
        return Err(Error::argument("x, y", "values that differ", "a constant"));
    }
    Ok(sum(|(x, y)| x * y) / scale)
}

/// Fails if the lengths differ or are below two.
fn paired(x: &[f64], y: &[f64]) -> Result<()> {
    if x.len() != y.len() || x.len() < 2 {
        let found = format!("{} and {}", x.len(), y.len());
        return Err(Error::argument("x, y", "two or more values each, as many of one as of the other", found));
    }
    Ok(())
}

/// The rank of each value, from 0; equal values share the mean of their ranks.
pub(crate) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let shared = first as f64 + (group.len() - 1) as f64 / 2.0;
        group.iter().for_each(|&index| ranks[index] = shared);
        first += group.len();
    }
    ranks
}

/// What is a random order of `items`? Shuffles a copy with `seed`; the same seed gives the same order.
///
/// ```
/// use headscope::stats::shuffled;
/// let mut order = shuffled(&[1, 2, 3, 4], 0);
/// assert_eq!(order, shuffled(&[1, 2, 3, 4], 0));
/// order.sort();
/// assert_eq!(order, [1, 2, 3, 4]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn shuffled<T: Clone>(items: &[T], seed: u64) -> Vec<T> {
    let mut items = items.to_vec();
    items.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
    }

    #[test]
    fn a_known_value_with_ties() -> Result<()> {
        // scipy.stats.spearmanr([1, 2, 2, 4, 5], [2, 1, 4, 3, 5])
        assert!(
            (spearman(&[1.0, 2.0, 2.0, 4.0, 5.0], &[2.0, 1.0, 4.0, 3.0, 5.0])? - 0.666_885_928_855_350_1).abs() < 1e-12
        );
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0])? + 1.0).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn what_has_no_correlation_says_so() {
        assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_err());
        assert!(spearman(&[1.0], &[1.0]).is_err());
        assert!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]).is_err());
        assert!(spearman(&[1.0, 2.0], &[1.0, 2.0, 3.0]).is_err());
    }

    #[test]
    fn shuffles_are_seeded() {
        let items: Vec<u32> = (0..50).collect();
        assert_eq!(shuffled(&items, 1), shuffled(&items, 1));
        assert_ne!(shuffled(&items, 1), shuffled(&items, 2));
        let mut sorted = shuffled(&items, 3);
        sorted.sort_unstable();
        assert_eq!(sorted, items);
    }
}
