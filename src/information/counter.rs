//! How many points lie within a distance of a point, in the maximum norm?
//!
//! The points near enough in one coordinate are a range of its sorted values. Comparing ranks (whole numbers) therefore gives
//! the same count as comparing distances, exactly.

use wide::i32x8;

use super::halves::{Halves, Levels, WIDE};

/// Points to be counted.
pub(super) struct Counter {
    n: usize,
    /// The values of each coordinate, sorted, one coordinate after the other.
    sorted: Vec<f64>,
    /// Only for more than one dimension.
    space: Option<Space>,
}

/// Ranks of the points' coordinates; equal values share the rank of the first.
struct Space {
    halves: Halves,
    leaves: Vec<[i32; WIDE]>,
    boxes: Levels<i32>,
}

impl Counter {
    /// From rows of `dimensions` numbers.
    pub fn new(rows: &[f64], dimensions: usize) -> Self {
        let n = rows.len() / dimensions;
        let mut sorted = Vec::with_capacity(rows.len());
        let mut ranks = vec![0; rows.len()];
        for dimension in 0..dimensions {
            let at = |row: usize| (rows[row * dimensions + dimension], row);
            let mut column: Vec<(f64, usize)> = (0..n).map(at).collect();
            column.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let mut rank = 0;
            for (place, &(value, row)) in column.iter().enumerate() {
                if value != column[rank].0 {
                    rank = place;
                }
                ranks[row * dimensions + dimension] = rank as i32;
            }
            sorted.extend(column.into_iter().map(|(value, _)| value));
        }
        let space = (dimensions > 1).then(|| {
            let halves = Halves::new(rows, dimensions);
            let rank = |row: usize, dimension: usize| ranks[row * dimensions + dimension];
            let (leaves, boxes) = (halves.leaves(i32::MAX, rank), halves.boxes(i32::MAX, rank));
            Space { halves, leaves, boxes }
        });
        Self { n, sorted, space }
    }

    /// How many points lie closer to `query` than `radius`, or, if `closed`, at most that far away. Includes the query itself
    /// if it is one of the points. `ranges` is scratch space.
    pub fn count(&self, query: &[f64], radius: f64, closed: bool, ranges: &mut Vec<(i32, i32)>) -> usize {
        ranges.clear();
        for (sorted, q) in self.sorted.chunks_exact(self.n).zip(query) {
            let (first, end) = if closed {
                let first = sorted.partition_point(|value| q - value > radius);
                (first, sorted.partition_point(|value| value - q <= radius))
            } else {
                let first = sorted.partition_point(|value| q - value >= radius);
                (first, sorted.partition_point(|value| value - q < radius))
            };
            ranges.push((first as i32, end as i32 - 1));
        }
        match &self.space {
            None => ranges.iter().map(|(first, last)| (last + 1 - first).max(0) as usize).sum(),
            Some(space) if space.halves.depth == 0 => space.leaf(0, ranges),
            Some(space) => space.node(0, 0, ranges),
        }
    }
}

impl Space {
    /// Counts a child that lies within the ranges as a whole, and skips one that lies outside.
    fn node(&self, level: usize, number: usize, ranges: &[(i32, i32)]) -> usize {
        let d = self.halves.dimensions;
        let (mut apart, mut cut) = (i32x8::ZERO, i32x8::ZERO);
        for (&(low, high), &(first, last)) in self.boxes[level][number * d..][..d].iter().zip(ranges) {
            let (low, high, first, last) = (i32x8::new(low), i32x8::new(high), i32x8::splat(first), i32x8::splat(last));
            apart |= low.simd_gt(last) | first.simd_gt(high);
            cut |= first.simd_gt(low) | high.simd_gt(last);
        }
        let below = self.halves.below_root() - 3 * level as u32;
        let cut = cut.to_bitmask();
        let mut reached = !apart.to_bitmask() & ((1 << WIDE) - 1);
        let mut count = 0;
        while reached != 0 {
            let child = reached.trailing_zeros() as usize;
            reached &= reached - 1;
            let node = number * WIDE + child;
            count += match (cut >> child & 1, below) {
                (0, _) => self.halves.places(node, below).len(),
                (_, 0) => self.leaf(node, ranges),
                _ => self.node(level + 1, node, ranges),
            };
        }
        count
    }

    fn leaf(&self, number: usize, ranges: &[(i32, i32)]) -> usize {
        let (d, blocks) = (self.halves.dimensions, self.halves.blocks);
        let mut count = i32x8::ZERO;
        for block in self.leaves[number * blocks * d..][..blocks * d].chunks_exact(d) {
            let mut apart = i32x8::ZERO; // -1 where a point is
            for (&values, &(first, last)) in block.iter().zip(ranges) {
                let values = i32x8::new(values);
                apart |= values.simd_gt(i32x8::splat(last)) | i32x8::splat(first).simd_gt(values);
            }
            count += apart + i32x8::splat(1);
        }
        count.reduce_add() as usize
    }
}
