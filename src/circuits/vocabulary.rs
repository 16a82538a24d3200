//! What a head does to tokens: its circuit over the whole vocabulary, in blocks of rows.

use rayon::prelude::*;

use super::factored::Factored;
use crate::error::{Error, Result};

/// Rows of a full circuit that are held at a time, times the vocabulary: 32 MiB.
const BLOCK: usize = 1 << 22;

/// Does the head raise the token that it attends to? `sum Re(lambda) / sum |lambda|` over the eigenvalues of the full OV
/// circuit `W_E W_V W_O W_U` (Elhage et al. 2021): 1 where it copies, -1 where it does the opposite; NaN where all are zero.
///
/// The eigenvalues that are not zero are those of `W_O W_U W_E W_V`, `[d_head, d_head]`.
///
/// # Errors
/// Where the circuit is not square, or LAPACK fails.
pub fn copying_score(circuit: &Factored) -> Result<f64> {
    let values = circuit.eigenvalues()?;
    let (real, size) = values.iter().fold((0.0, 0.0), |(real, size), value| (real + value.re, size + value.norm()));
    Ok(if size > 0.0 { (real / size).clamp(-1.0, 1.0) } else { f64::NAN })
}

/// For each token, how many tokens the circuit favours over the token itself, `[vocab]`: 0 where the head's first choice
/// is a copy.
///
/// Rows are made in blocks, as many at a time as a few tens of megabytes hold; equal values do not count as favoured.
///
/// # Errors
/// Where the circuit is not square.
pub fn diagonal_ranks(circuit: &Factored) -> Result<Vec<usize>> {
    if circuit.nrows() != circuit.ncols() {
        let found = vec![circuit.nrows() as i64, circuit.ncols() as i64];
        return Err(Error::Shape { at: "circuit".into(), expected: "[vocab, vocab]".into(), found });
    }
    let vocab = circuit.nrows();
    // Shared out among the threads, each of which holds a block.
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

/// The share of ranks below `k`: how often the token itself is among the circuit's first k choices.
///
/// # Errors
/// Where there is no rank, or `k` is 0.
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

/// The `k` largest of `values` with their places, largest first; of equal ones the first first.
pub fn top_k(values: &[f64], k: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| !values[i].is_nan()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.into_iter().take(k).map(|i| (i, values[i])).collect()
}
