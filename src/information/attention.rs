//! How much does a query decide about the key that it attends to? Attention patterns as channels from queries to keys.

use ndarray::ArrayView2;

use super::entropy;
use crate::error::{Error, Result};

/// How widely does each query spread its attention? The entropy of each row, in nats: 0 for attention to a single key, `ln n`
/// for equal attention to n keys.
///
/// # Shapes
/// `pattern`: \[query, key\], each row summing to 1.
///
/// # Errors
/// If a row is not a distribution, or the pattern is empty.
///
/// ```
/// use headscope::information::pattern_entropy;
/// let pattern = ndarray::array![[1.0, 0.0], [0.5, 0.5]];
/// assert_eq!(pattern_entropy(pattern.view())?, [0.0, 2f64.ln()]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn pattern_entropy(pattern: ArrayView2<f64>) -> Result<Vec<f64>> {
    if pattern.is_empty() {
        let found = vec![pattern.nrows() as i64, pattern.ncols() as i64];
        return Err(Error::Shape {
            at: "pattern".into(),
            expected: "[query, key], at least one of each".into(),
            found,
        });
    }
    pattern.rows().into_iter().map(|row| entropy(&row.to_vec())).collect()
}

/// How much does the query decide about the key? The mutual information between a query drawn uniformly from the rows and a key
/// drawn from the query's row: `I(query; key) = H(mean row) - mean H(row)`, in nats.
///
/// It is 0 if all queries have the same pattern, however sharp, and `ln n` if each of n queries attends to a different key. In
/// a causal pattern part of it comes from the mask: compare with uniform attention under the same mask.
///
/// # Shapes
/// `pattern`: \[query, key\], each row summing to 1.
///
/// # Errors
/// As [`pattern_entropy`].
///
/// ```
/// use headscope::information::pattern_transfer;
/// let each_its_own = ndarray::Array2::eye(4);
/// assert!((pattern_transfer(each_its_own.view())? - 4f64.ln()).abs() < 1e-12);
/// let all_the_first = ndarray::array![[1.0, 0.0], [1.0, 0.0]];
/// assert_eq!(pattern_transfer(all_the_first.view())?, 0.0);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn pattern_transfer(pattern: ArrayView2<f64>) -> Result<f64> {
    let rows = pattern_entropy(pattern)?;
    let mean: Vec<f64> = pattern.columns().into_iter().map(|column| column.sum() / pattern.nrows() as f64).collect();
    Ok((entropy(&mean)? - rows.iter().sum::<f64>() / rows.len() as f64).max(0.0))
}
