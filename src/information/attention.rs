//! What an attention pattern, as a channel from queries to keys, carries.

use ndarray::ArrayView2;

use super::entropy;
use crate::error::{Error, Result};

/// How widely does each query's attention spread? The entropy of each row, in nats: 0 looks at one key, `ln n` at n alike.
///
/// # Shapes
/// `pattern`: \[query, key\], each row summing to 1.
///
/// # Errors
/// Where a row is no distribution, or there is none.
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

/// How much does the query decide about the key? Read as a channel from the query, drawn alike from the rows, to the key drawn
/// from its row, a pattern transfers `I(query; key) = H(mean row) - mean H(row)` nats: 0 where all queries look alike (however
/// sharply), `ln n` where each of n looks at a key of its own. In a causal pattern part of it is the mask's: compare with
/// uniform attention under the same mask.
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
