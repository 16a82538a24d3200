//! Inner products of many products with many others, tile by tile.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, CowArray, Ix2, s};
use rayon::prelude::*;

/// Side of a tile: the tiles of all heads of a model stay within the cache.
const TILE: usize = 96;

/// How many members of the second family are taken together.
const GROUP: usize = 36;

/// `L R`, of which only tiles are ever made.
pub(super) struct Tiled<'a> {
    pub left: CowArray<'a, f64, Ix2>,
    pub right: CowArray<'a, f64, Ix2>,
}

/// `<X_i, Y_j>`, `[x, y]`, for `i < until(j)`, which must not fall; 0 elsewhere.
///
/// A tile of every product becomes a row; one matrix product of those rows then adds to all inner products at once. With n
/// heads of width k in d dimensions that takes `n d^2 (2 k + n)` multiplications, where a product for each pair takes
/// `n^2 d k^2`. `symmetric` says that all products are, so that the tiles below the diagonal need not be made.
pub(super) fn inner_products(
    xs: &[Tiled<'_>],
    ys: &[Tiled<'_>],
    symmetric: bool,
    until: impl Fn(usize) -> usize + Sync,
) -> Array2<f64> {
    let shape = (xs.len(), ys.len());
    let Some(first) = xs.first() else { return Array2::zeros(shape) };
    let (rows, columns) = (spans(first.left.nrows()), spans(first.right.ncols()));
    let pairs: Vec<(usize, usize)> = (0..rows.len())
        .flat_map(|i| (0..columns.len()).map(move |j| (i, j)))
        .filter(|(i, j)| !symmetric || i <= j)
        .collect();
    let until = &until;
    let tile = |mut sum: Array2<f64>, (i, j): (usize, usize)| {
        let weight = if symmetric && i != j { 2.0 } else { 1.0 };
        let (rows, columns) = (&rows[i], &columns[j]);
        let needed = (0..ys.len()).map(until).max().unwrap_or(0).min(xs.len());
        let first = (0..ys.len()).find(|&y| until(y) > 0).unwrap_or(ys.len());
        let x = stacked(&xs[..needed], rows, columns);
        for start in (first..ys.len()).step_by(GROUP) {
            let end = ys.len().min(start + GROUP);
            let until = until(end - 1).min(needed);
            let y = stacked(&ys[start..end], rows, columns);
            let mut part = sum.slice_mut(s![..until, start..end]);
            general_mat_mul(weight, &x.slice(s![..until, ..]), &y.t(), 1.0, &mut part);
        }
        sum
    };
    let zeros = || Array2::zeros(shape);
    let mut all = pairs.into_par_iter().fold(zeros, tile).reduce(zeros, |a, b| a + b);
    all.indexed_iter_mut().filter(|((x, y), _)| *x >= until(*y)).for_each(|(_, value)| *value = 0.0);
    all
}

/// A tile of each product, `[product, row * column]`.
fn stacked(products: &[Tiled<'_>], rows: &Range<usize>, columns: &Range<usize>) -> Array2<f64> {
    let shape = (rows.len(), columns.len());
    let mut all = Array2::zeros((products.len(), shape.0 * shape.1));
    for (product, mut row) in products.iter().zip(all.rows_mut()) {
        let left: ArrayView2<'_, f64> = product.left.slice(s![rows.clone(), ..]);
        let right = product.right.slice(s![.., columns.clone()]);
        // A row of a fresh array always has this shape.
        if let Ok(mut tile) = row.view_mut().into_shape_with_order(shape) {
            general_mat_mul(1.0, &left, &right, 0.0, &mut tile);
        }
    }
    all
}

fn spans(length: usize) -> Vec<Range<usize>> {
    (0..length).step_by(TILE).map(|start| start..length.min(start + TILE)).collect()
}
