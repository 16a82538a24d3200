//! Nearest neighbours in the maximum norm.

use wide::f32x8;

use super::halves::{Halves, Levels, WIDE, larger};

/// By what share of a distance and of the query's largest coordinate single precision may err: four times 2^-23, which is what
/// rounding both points (2^-24 of each, the other's at most the query's and the distance) and their difference can add up to.
const ERROR: f64 = 1.0 / (1u64 << 21) as f64;

/// What searches write on, kept from one to the next so that none allocates.
#[derive(Default)]
pub(super) struct Notes {
    /// The nearest found, as (distance, row), the nearest first.
    pub best: Vec<(f64, u32)>,
    /// The query in single precision.
    rounded: Vec<f32>,
    /// For counters: the ranks that are near enough, dimension by dimension.
    pub ranges: Vec<(i32, i32)>,
}

/// Points among which neighbours are looked for.
pub(super) struct Tree {
    halves: Halves,
    /// Leaf by leaf, exactly.
    points: Vec<f64>,
    /// What they are multiplied by before they are rounded: then the largest is 1, and none too large or small.
    unit: f64,
    leaves: Vec<[f32; WIDE]>,
    boxes: Levels<f32>,
}

/// What is looked for: around where, without which row, and the `k` nearest so far.
struct Search<'a> {
    query: &'a [f64],
    rounded: &'a [f32],
    own: u32,
    k: usize,
    best: &'a mut Vec<(f64, u32)>,
    unit: f64,
    /// How far off the query's own rounding may put a distance.
    slack: f64,
    /// The distance of the k-th nearest so far.
    limit: f64,
    /// What is farther than this in single precision is no nearer than `limit`.
    past: f32,
}

impl Search<'_> {
    /// Measures a point, and takes it if it is one of the nearest.
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
    /// A tree of rows of `dimensions` numbers.
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

    /// The rows, neighbours close to each other.
    pub fn order(&self) -> &[u32] {
        &self.halves.order
    }

    /// The `k` points nearest to row `own` at `query`, itself left out, into `scratch.best`.
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

    /// Goes through a node's children, the nearest first.
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
