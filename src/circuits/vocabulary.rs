//! What does a head do to tokens? Its circuit over the whole vocabulary, in blocks of rows.

use rayon::prelude::*;

use super::factored::Factored;
use crate::error::{Error, Result};

/// How many values of a full circuit are in memory at a time: 32 MiB.
const BLOCK: usize = 1 << 22;

/// Does the head raise the token that it attends to? `sum Re(lambda) / sum |lambda|` over the eigenvalues of the full OV
/// circuit `W_E W_V W_O W_U` (Elhage et al. 2021): 1 if it copies, -1 if it does the opposite, NaN if all are zero.
///
/// The nonzero eigenvalues are those of `W_O W_U W_E W_V`, `[d_head, d_head]`.
///
/// # Errors
/// If the circuit is not square, or LAPACK fails.
///
/// ```
/// use headscope::circuits::{Factored, copying_score};
/// let copies = Factored::new(ndarray::array![[1.0], [1.0]], ndarray::array![[0.5, 0.5]])?;
/// assert!((copying_score(&copies)? - 1.0).abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn copying_score(circuit: &Factored) -> Result<f64> {
    let values = circuit.eigenvalues()?;
    let (real, size) = values.iter().fold((0.0, 0.0), |(real, size), value| (real + value.re, size + value.norm()));
    Ok(if size > 0.0 { (real / size).clamp(-1.0, 1.0) } else { f64::NAN })
}

/// Which tokens does the circuit copy? For each token, the number of tokens that it favours over the token itself, `[vocab]`: 0
/// if its first choice is a copy.
///
/// Rows are computed in blocks of a few tens of megabytes. Tokens of equal value do not count as favoured.
///
/// # Errors
/// If the circuit is not square.
///
/// ```
/// use headscope::circuits::{Factored, diagonal_ranks};
/// let swaps = Factored::new(ndarray::array![[1.0, 0.0], [0.0, 1.0]], ndarray::array![[0.0, 1.0], [1.0, 0.0]])?;
/// assert_eq!(diagonal_ranks(&swaps)?, [1, 1]); // each token favours the other one
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn diagonal_ranks(circuit: &Factored) -> Result<Vec<usize>> {
    if circuit.nrows() != circuit.ncols() {
        let found = vec![circuit.nrows() as i64, circuit.ncols() as i64];
        return Err(Error::Shape { at: "circuit".into(), expected: "[vocab, vocab]".into(), found });
    }
    let vocab = circuit.nrows();
    // Divided among the threads, each of which holds a block.
    let rows = (BLOCK / vocab / rayon::current_num_threads()).clamp(1, 256);
    let starts: Vec<usize> = (0..vocab).step_by(rows).collect();
    let blocks = starts.into_par_iter().map(|start| {
        let block = circuit.rows(start..vocab.min(start + rows))?;
        let rank = |(i, row): (usize, ndarray::ArrayView1<'_, f64>)| {
            let own = row[start + i];
            row.iter().filter(|&&value| value > own).count()
        };
        Ok(block.rows().into_iter().enumerate().map(rank).collect::<Vec<_>>())
    });
    Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
}

/// How often is the token itself among the circuit's first k choices? The share of ranks below `k`.
///
/// # Errors
/// If there is no rank, or `k` is 0.
///
/// ```
/// use headscope::circuits::top_k_accuracy;
/// assert_eq!(top_k_accuracy(&[0, 3, 1, 0], 1)?, 0.5);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// ```
/// use headscope::circuits::top_k;
/// assert_eq!(top_k(&[0.1, 0.9, 0.5], 2), [(1, 0.9), (2, 0.5)]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn top_k_accuracy(ranks: &[usize], k: usize) -> Result<f64> {
    if ranks.is_empty() || k == 0 {
        return Err(Error::argument(
            "ranks, k",
            "at least one rank, and k at least 1",
            format!("{}, {k}", ranks.len()),
        ));
    }
    Ok(ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len() as f64)
}

/// Which values are largest? The `k` largest with their indices, in descending order; of equal values the earlier ones.
pub fn top_k(values: &[f64], k: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| !values[i].is_nan()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.into_iter().take(k).map(|i| (i, values[i])).collect()
}
