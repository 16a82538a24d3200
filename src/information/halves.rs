//! Which points are near each other? A tree of boxes, halved at medians, shared by `tree` (nearest neighbours) and `counter`
//! (counts).
//!
//! Existing crates do not fit: `kiddo` needs the number of dimensions at compile time, and counts a ball's points by collecting
//! them. Here the number of dimensions comes with the data, a node has eight children whose boxes are compared at once
//! (`wide`), and the compared values are small. Neighbours are searched in single precision, and the few candidates that remain
//! are measured exactly; counts use the ranks of coordinates, which are exact.

use std::ops::Range;

/// The most points in a leaf.
const LEAF: usize = 32;

/// How many values are compared at once: a node's children, or a block of a leaf's points.
pub(super) const WIDE: usize = 8;

/// For each level from the root down, node and dimension: the lowest and the highest coordinates of its eight children.
pub(super) type Levels<T> = Vec<Vec<([T; WIDE], [T; WIDE])>>;

/// Points halved `depth` times, each time at the median along the widest side. A node's eight children are three halvings below
/// it; the root may have one, two, four or eight children.
pub(super) struct Halves {
    pub dimensions: usize,
    pub depth: u32,
    /// The points' row numbers, leaf by leaf.
    pub order: Vec<u32>,
    /// The index in `order` at which each leaf starts, and finally the number of points.
    starts: Vec<usize>,
    /// Blocks per leaf.
    pub blocks: usize,
}

impl Halves {
    /// From rows of `dimensions` numbers.
    pub fn new(rows: &[f64], dimensions: usize) -> Self {
        let n = rows.len() / dimensions;
        let mut depth = 0;
        while n.div_ceil(1 << depth) > LEAF {
            depth += 1;
        }
        let blocks = n.div_ceil(1 << depth).div_ceil(WIDE);
        let mut halves = Self { dimensions, depth, order: (0..n as u32).collect(), starts: vec![], blocks };
        halve(rows, dimensions, &mut halves.order, (depth, 0), &mut halves.starts);
        halves.starts.push(n);
        halves
    }

    /// The number of halvings below the root's children.
    pub fn below_root(&self) -> u32 {
        self.depth.saturating_sub(1) / 3 * 3
    }

    /// The range in `order` of a node that has `below` halvings below it.
    pub fn places(&self, node: usize, below: u32) -> Range<usize> {
        self.starts[node << below]..self.starts[(node + 1) << below]
    }

    /// The points leaf by leaf, in blocks: the first coordinates of a block's points, then the second ones, and so on.
    /// `missing` pads the last block of a leaf; `value` is called with (row, dimension).
    pub fn leaves<T: Copy>(&self, missing: T, value: impl Fn(usize, usize) -> T) -> Vec<[T; WIDE]> {
        let mut leaves = Vec::with_capacity(self.starts.len() * self.blocks * self.dimensions);
        for leaf in self.starts.windows(2) {
            let rows = &self.order[leaf[0]..leaf[1]];
            for block in 0..self.blocks {
                for dimension in 0..self.dimensions {
                    let at = |lane: usize| rows.get(block * WIDE + lane).map(|&row| value(row as usize, dimension));
                    leaves.push(std::array::from_fn(|lane| at(lane).unwrap_or(missing)));
                }
            }
        }
        leaves
    }

    /// The boxes around all nodes but the root. Both sides are `missing` for a child that does not exist.
    pub fn boxes<T: Copy + PartialOrd>(&self, missing: T, value: impl Fn(usize, usize) -> T) -> Levels<T> {
        let d = self.dimensions;
        let mut boxes: Vec<(T, T)> = Vec::with_capacity(d << self.depth);
        for leaf in self.starts.windows(2) {
            let rows = &self.order[leaf[0]..leaf[1]];
            let side = |c: usize| around(rows.iter().map(|&row| value(row as usize, c)).map(|v| (v, v)), missing);
            boxes.extend((0..d).map(side));
        }
        let mut levels = vec![];
        for below in (0..=self.below_root()).step_by(3) {
            let nodes = 1 << (self.depth - below);
            if below > 0 {
                let merged =
                    |i: usize| around((0..WIDE).map(|child| boxes[(i / d * WIDE + child) * d + i % d]), missing);
                boxes = (0..nodes * d).map(merged).collect();
            }
            let side = |i: usize, child: usize| {
                boxes.get((i / d * WIDE + child) * d + i % d).copied().unwrap_or((missing, missing))
            };
            let both = |i: usize| (std::array::from_fn(|c| side(i, c).0), std::array::from_fn(|c| side(i, c).1));
            levels.push((0..nodes.div_ceil(WIDE) * d).map(both).collect());
        }
        levels.reverse();
        levels
    }
}

/// Sorts `order` into leaves, `depth` halvings down, and records where each starts; the first point is at index `start`.
fn halve(rows: &[f64], dimensions: usize, order: &mut [u32], (depth, start): (u32, usize), starts: &mut Vec<usize>) {
    if depth == 0 {
        return starts.push(start);
    }
    let (mut widest, mut width) = (0, -1.0);
    for dimension in 0..dimensions {
        let column = order.iter().map(|&row| rows[row as usize * dimensions + dimension]);
        let (low, high) =
            column.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if high - low > width {
            (widest, width) = (dimension, high - low);
        }
    }
    let mid = order.len() / 2;
    let at = |row: &u32| rows[*row as usize * dimensions + widest];
    order.select_nth_unstable_by(mid, |a, b| at(a).total_cmp(&at(b)));
    let (left, right) = order.split_at_mut(mid);
    halve(rows, dimensions, left, (depth - 1, start), starts);
    halve(rows, dimensions, right, (depth - 1, start + mid), starts);
}

/// The lowest start and the highest end of some ranges.
fn around<T: Copy + PartialOrd>(ranges: impl Iterator<Item = (T, T)>, none: T) -> (T, T) {
    let smaller = |a: T, b: T| if b < a { b } else { a };
    ranges.reduce(|a, b| (smaller(a.0, b.0), larger(a.1, b.1))).unwrap_or((none, none))
}

/// The larger of two numbers. Unlike `f64::max` it ignores NaN, which does not occur here, and compiles to one instruction.
pub(super) fn larger<T: PartialOrd>(a: T, b: T) -> T {
    if a > b { a } else { b }
}
