//! What are the inner products of many matrix products with many others? Computed tile by tile.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, CowArray, Ix2, s};
use rayon::prelude::*;

use super::blas::add_product;

/// Side of a tile, chosen so that the tiles of all heads, for a few threads, fit into the cache.
const TILE: usize = 64;

/// How many members of the second family are processed together.
const GROUP: usize = 36;

/// `L R`, of which only tiles are ever formed.
pub(super) struct Tiled<'a> {
    pub left: CowArray<'a, f64, Ix2>,
    pub right: CowArray<'a, f64, Ix2>,
}

/// `<X_i, Y_j>`, `[x, y]`, for `i < until(j)`, and 0 elsewhere; `until` must not decrease.
///
/// A tile of every product becomes a row, and one matrix product of these rows adds to all inner products at once. For n heads
/// of width k in d dimensions this takes `n d^2 (2 k + n)` multiplications; a product for each pair would take `n^2 d k^2`. If
/// all products are `symmetric`, the tiles below the diagonal are skipped.
pub(super) fn inner_products(
    xs: &[Tiled<'_>],
    ys: &[Tiled<'_>],
    symmetric: bool,
    until: impl Fn(usize) -> usize + Sync,
) -> Array2<f64> {
    let last = (0..ys.len()).map(&until).max().unwrap_or(0).min(xs.len());
    let first = (0..ys.len()).find(|&y| until(y) > 0).unwrap_or(ys.len());
    let (needed, readers) = (&xs[..last], &ys[first..]);
    let mut all = Array2::zeros((xs.len(), ys.len()));
    let found = over_tiles(needed, readers.len(), symmetric, |tile, x, y, sum| {
        let y = tile.stack(readers, y);
        for start in (0..readers.len()).step_by(GROUP) {
            let end = readers.len().min(start + GROUP);
            let until = until(first + end - 1).min(last);
            let mut part = sum.slice_mut(s![..until, start..end]);
            add_product(tile.weight, &x.slice(s![..until, ..]), &y.slice(s![start..end, ..]).t(), 1.0, &mut part);
        }
    });
    all.slice_mut(s![..last, first..]).assign(&found);
    all.indexed_iter_mut().filter(|((x, y), _)| *x >= until(*y)).for_each(|(_, value)| *value = 0.0);
    all
}

/// `<X_i, X_j>`, `[x, x]`, each pair once.
pub(super) fn gram(xs: &[Tiled<'_>], symmetric: bool) -> Array2<f64> {
    let mut all = over_tiles(xs, xs.len(), symmetric, |tile, x, _, sum| {
        for start in (0..xs.len()).step_by(GROUP) {
            let end = xs.len().min(start + GROUP);
            let mut part = sum.slice_mut(s![..end, start..end]);
            add_product(tile.weight, &x.slice(s![..end, ..]), &x.slice(s![start..end, ..]).t(), 1.0, &mut part);
        }
    });
    for (i, j) in (0..xs.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
        all[[i, j]] = all[[j, i]];
    }
    all
}

/// A tile of the products, and how often it counts.
struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
    weight: f64,
}

/// Sums over tiles what `add` adds to `[x, readers]`. `add` gets the tile, the tile of every x in rows, and scratch space for
/// other rows.
fn over_tiles(
    xs: &[Tiled<'_>],
    readers: usize,
    symmetric: bool,
    add: impl Fn(&Tile, &ArrayView2<'_, f64>, &mut Array2<f64>, &mut Array2<f64>) + Sync,
) -> Array2<f64> {
    let zeros = || Array2::zeros((xs.len(), readers));
    let Some(first) = xs.first() else { return zeros() };
    let (rows, columns) = (spans(first.left.nrows()), spans(first.right.ncols()));
    let tile = |i: usize, j: usize| {
        let weight = if symmetric && i != j { 2.0 } else { 1.0 };
        Tile { rows: rows[i].clone(), columns: columns[j].clone(), weight }
    };
    let pairs = (0..rows.len()).flat_map(|i| (0..columns.len()).map(move |j| (i, j)));
    let tiles: Vec<Tile> = pairs.filter(|(i, j)| !symmetric || i <= j).map(|(i, j)| tile(i, j)).collect();
    // Each thread keeps its scratch space between tiles.
    let room = || (zeros(), Array2::zeros((0, 0)), Array2::zeros((0, 0)));
    let step = |(mut sum, mut x, mut y): (Array2<f64>, Array2<f64>, Array2<f64>), tile: Tile| {
        add(&tile, &tile.stack(xs, &mut x), &mut y, &mut sum);
        (sum, x, y)
    };
    let sums = tiles.into_par_iter().fold(room, step).map(|(sum, ..)| sum);
    sums.reduce(zeros, |a, b| a + b)
}

impl Tile {
    /// The tile of each product as a row, `[product, row * column]`, in `room`.
    fn stack<'a>(&self, products: &[Tiled<'_>], room: &'a mut Array2<f64>) -> ArrayView2<'a, f64> {
        let shape = (self.rows.len(), self.columns.len());
        let place = s![..products.len(), ..shape.0 * shape.1];
        if room.nrows() < products.len() {
            *room = Array2::zeros((products.len(), TILE * TILE));
        }
        for (product, mut row) in products.iter().zip(room.slice_mut(place).rows_mut()) {
            let left = product.left.slice(s![self.rows.clone(), ..]);
            let right = product.right.slice(s![.., self.columns.clone()]);
            // Rows are contiguous and as long as a tile.
            if let Ok(mut tile) = row.view_mut().into_shape_with_order(shape) {
                add_product(1.0, &left, &right, 0.0, &mut tile);
            }
        }
        room.slice(place)
    }
}

fn spans(length: usize) -> Vec<Range<usize>> {
    (0..length).step_by(TILE).map(|start| start..length.min(start + TILE)).collect()
}
