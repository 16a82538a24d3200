//! Points halved again and again into boxes: what the trees of `tree` and `counter` have in common.
//!
//! The well-kept crates do not serve: `kiddo` needs the number of dimensions when it is compiled, and counts a ball's points
//! by collecting them. Here dimensions come with the data, a node has eight children whose boxes are compared at once (`wide`),
//! and what is compared is small: single precision for neighbours, the few that it cannot exclude being measured exactly, and
//! for counts the ranks of coordinates, which are exact.

use std::ops::Range;

/// Leaves hold at most so many points.
const LEAF: usize = 32;

/// What is compared at once: a node's children, a block of a leaf's points.
pub(super) const WIDE: usize = 8;

/// For each level from the root's down, node and dimension: its children's lowest coordinates, and their highest.
pub(super) type Levels<T> = Vec<Vec<([T; WIDE], [T; WIDE])>>;

/// Points halved `depth` times, each time at the median across the widest side. A node's eight children are three halvings
/// below it; the root may have one, two or four.
pub(super) struct Halves {
    pub dimensions: usize,
    pub depth: u32,
    /// The points' rows, leaf by leaf.
    pub order: Vec<u32>,
    /// The first place in `order` of each leaf, and last the number of points.
    starts: Vec<usize>,
    /// Blocks of a leaf.
    pub blocks: usize,
}

impl Halves {
    /// Of rows of `dimensions` numbers.
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

    /// How many halvings are below the root's children.
    pub fn below_root(&self) -> u32 {
        self.depth.saturating_sub(1) / 3 * 3
    }

    /// Where the points of a node lie that has `below` halvings below it.
    pub fn places(&self, node: usize, below: u32) -> Range<usize> {
        self.starts[node << below]..self.starts[(node + 1) << below]
    }

    /// The points leaf by leaf, in blocks: of each first all first coordinates, then all second ones. `missing` fills the last
    /// block of a leaf; `value` is asked for (row, dimension).
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

    /// The boxes around all nodes but the root; `missing` stands on both sides of a child that is not there.
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

/// Puts `order` into leaves that are (halvings, place) away, and notes where each starts.
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

/// The lowest and the highest of some ranges.
fn around<T: Copy + PartialOrd>(ranges: impl Iterator<Item = (T, T)>, none: T) -> (T, T) {
    let smaller = |a: T, b: T| if b < a { b } else { a };
    ranges.reduce(|a, b| (smaller(a.0, b.0), larger(a.1, b.1))).unwrap_or((none, none))
}

/// The larger of two numbers; without f64::max's care for NaN, of which there are none, it is one instruction.
pub(super) fn larger<T: PartialOrd>(a: T, b: T) -> T {
    if a > b { a } else { b }
}
