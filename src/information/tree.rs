//! Which points are nearest to a point, in the maximum norm?

use wide::f32x8;

use super::halves::{Halves, Levels, WIDE, larger};

/// Bound on the rounding error of a single-precision distance, relative to the distance plus the query's largest coordinate:
/// four times 2^-23. Rounding either point errs by at most 2^-24 of its coordinate (the other point's is at most the query's
/// plus the distance), and so does their difference.
const ERROR: f64 = 1.0 / (1u64 << 21) as f64;

/// Scratch space, kept from one search to the next so that none allocates.
#[derive(Default)]
pub(super) struct Notes {
    /// The nearest points found so far, as (distance, row), nearest first.
    pub best: Vec<(f64, u32)>,
    /// The query in single precision.
    rounded: Vec<f32>,
    /// For counters: the ranks that are near enough, for each dimension.
    pub ranges: Vec<(i32, i32)>,
}

/// The points to search.
pub(super) struct Tree {
    halves: Halves,
    /// The exact coordinates, leaf by leaf.
    points: Vec<f64>,
    /// Scale factor applied before rounding to single precision, so that the largest coordinate is 1 and none over- or
    /// underflows.
    unit: f64,
    leaves: Vec<[f32; WIDE]>,
    boxes: Levels<f32>,
}

/// A search: the query, the row to leave out, and the `k` nearest points so far.
struct Search<'a> {
    query: &'a [f64],
    rounded: &'a [f32],
    own: u32,
    k: usize,
    best: &'a mut Vec<(f64, u32)>,
    unit: f64,
    /// How far the query's own rounding can shift a distance.
    slack: f64,
    /// The distance of the k-th nearest point so far.
    limit: f64,
    /// A point farther than this in single precision is no nearer than `limit`.
    past: f32,
}

impl Search<'_> {
    /// Measures a point exactly, and keeps it if it is among the nearest.
    fn offer(&mut self, point: &[f64], row: u32) {
        let distance = self.query.iter().zip(point).fold(0.0, |far, (q, value)| larger(far, (q - value).abs()));
        if distance >= self.limit || row == self.own {
            return;
        }
        let place = self.best.partition_point(|other| other.0 <= distance);
        self.best.truncate(self.k - 1);
        self.best.insert(place, (distance, row));
        if self.best.len() == self.k {
            self.limit = self.best[self.k - 1].0;
            let limit = self.limit * self.unit;
            self.past = (limit + limit * ERROR + self.slack) as f32 + f32::MIN_POSITIVE;
        }
    }
}

impl Tree {
    /// Builds a tree from rows of `dimensions` numbers.
    pub fn new(rows: &[f64], dimensions: usize) -> Self {
        let halves = Halves::new(rows, dimensions);
        let unit = 1.0 / rows.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        let unit = if unit.is_finite() { unit } else { 1.0 };
        let value = |row: usize, dimension: usize| (rows[row * dimensions + dimension] * unit) as f32;
        let (leaves, boxes) = (halves.leaves(f32::INFINITY, value), halves.boxes(f32::INFINITY, value));
        let row = |&row: &u32| &rows[row as usize * dimensions..][..dimensions];
        let points = halves.order.iter().flat_map(row).copied().collect();
        Self { halves, points, unit, leaves, boxes }
    }

    /// The rows in tree order: neighbours are close to each other.
    pub fn order(&self) -> &[u32] {
        &self.halves.order
    }

    /// Finds the `k` points nearest to `query`, without row `own`, into `scratch.best`.
    pub fn nearest(&self, query: &[f64], own: u32, k: usize, scratch: &mut Notes) {
        let Notes { best, rounded, .. } = scratch;
        best.clear();
        rounded.clear();
        rounded.extend(query.iter().map(|value| (value * self.unit) as f32));
        let slack = f64::from(rounded.iter().fold(0.0_f32, |most, value| most.max(value.abs()))) * ERROR;
        let (unit, limit, past) = (self.unit, f64::INFINITY, f32::INFINITY);
        let mut search = Search { query, rounded, own, k, best, unit, slack, limit, past };
        match self.halves.depth {
            0 => self.leaf(0, &mut search),
            _ => self.node(0, 0, &mut search),
        }
    }

    /// Visits a node's children, nearest first.
    fn node(&self, level: usize, number: usize, search: &mut Search) {
        let d = self.halves.dimensions;
        let mut near = f32x8::ZERO;
        for (&(low, high), &q) in self.boxes[level][number * d..][..d].iter().zip(search.rounded) {
            let q = f32x8::splat(q);
            near = near.fast_max((f32x8::new(low) - q).fast_max(q - f32x8::new(high)));
        }
        let mut reached = near.simd_le(f32x8::splat(search.past)).to_bitmask();
        let near = near.to_array();
        let (mut queue, mut count) = ([(0.0, 0); WIDE], 0);
        while reached != 0 {
            let child = reached.trailing_zeros() as usize;
            reached &= reached - 1;
            if near[child] == f32::INFINITY {
                continue; // there is no such child
            }
            let mut place = count;
            while place > 0 && queue[place - 1].0 > near[child] {
                queue[place] = queue[place - 1];
                place -= 1;
            }
            queue[place] = (near[child], child);
            count += 1;
        }
        for &(near, child) in &queue[..count] {
            if near > search.past || search.limit == 0.0 {
                return;
            }
            let child = number * WIDE + child;
            if level + 1 == self.boxes.len() { self.leaf(child, search) } else { self.node(level + 1, child, search) }
        }
    }

    fn leaf(&self, number: usize, search: &mut Search) {
        let (d, blocks) = (self.halves.dimensions, self.halves.blocks);
        let places = self.halves.places(number, 0);
        for block in 0..blocks {
            let mut far = f32x8::ZERO;
            for (&values, &q) in self.leaves[(number * blocks + block) * d..][..d].iter().zip(search.rounded) {
                far = far.fast_max((f32x8::new(values) - f32x8::splat(q)).abs());
            }
            let mut candidates = far.simd_le(f32x8::splat(search.past)).to_bitmask();
            while candidates != 0 {
                let place = places.start + block * WIDE + candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                if place < places.end {
                    search.offer(&self.points[place * d..][..d], self.halves.order[place]);
                }
            }
        }
    }
}
