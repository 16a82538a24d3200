//! A k-d tree in the maximum norm.
//!
//! The well-kept crates do not serve: `kiddo` needs the number of dimensions when it is compiled, and counts a ball's points
//! by collecting them; here dimensions come with the data, and a box that lies within the ball is counted whole.

/// Boxes of at most so many points are not split.
const LEAF: usize = 32;

/// Points in boxes, each split at its median across its widest side.
pub(super) struct Tree {
    dimensions: usize,
    /// The points, box by box; within one first all points' first coordinates, then all second ones, and so on.
    points: Vec<f64>,
    /// The row that each of them had.
    pub order: Vec<u32>,
    /// Lowest and highest corner of every box, the children of box i being 2 i + 1 and 2 i + 2.
    corners: Vec<f64>,
}

/// A box: its number, and its first point and the one after its last.
#[derive(Clone, Copy)]
struct Node {
    number: usize,
    lo: usize,
    hi: usize,
}

impl Node {
    fn is_leaf(self) -> bool {
        self.hi - self.lo <= LEAF
    }

    fn halves(self) -> [Self; 2] {
        let mid = self.lo + (self.hi - self.lo) / 2;
        let number = 2 * self.number + 1;
        [Self { number, lo: self.lo, hi: mid }, Self { number: number + 1, lo: mid, hi: self.hi }]
    }
}

/// What is looked for: around where, without which row, and the `k` nearest so far as (distance, row), the nearest first.
struct Search<'a> {
    query: &'a [f64],
    own: u32,
    k: usize,
    best: &'a mut Vec<(f64, u32)>,
}

impl Search<'_> {
    fn limit(&self) -> f64 {
        if self.best.len() == self.k { self.best[self.k - 1].0 } else { f64::INFINITY }
    }
}

impl Tree {
    /// A tree of rows of `dimensions` numbers.
    pub fn new(rows: &[f64], dimensions: usize) -> Self {
        let n = rows.len() / dimensions;
        let mut tree = Self { dimensions, points: vec![], order: (0..n as u32).collect(), corners: vec![] };
        split(rows, dimensions, &mut tree.order, 0, &mut tree.corners);
        tree.points.reserve(rows.len());
        tree.lay_out(rows, Node { number: 0, lo: 0, hi: n });
        tree
    }

    fn lay_out(&mut self, rows: &[f64], node: Node) {
        if !node.is_leaf() {
            return node.halves().into_iter().for_each(|half| self.lay_out(rows, half));
        }
        for dimension in 0..self.dimensions {
            let column =
                self.order[node.lo..node.hi].iter().map(|&row| rows[row as usize * self.dimensions + dimension]);
            self.points.extend(column);
        }
    }

    fn root(&self) -> Node {
        Node { number: 0, lo: 0, hi: self.order.len() }
    }

    /// How far the box is from `query`, 0 within it; and how far its farthest corner.
    fn reach(&self, node: Node, query: &[f64]) -> (f64, f64) {
        let (low, high) =
            self.corners[2 * node.number * self.dimensions..][..2 * self.dimensions].split_at(self.dimensions);
        let (mut near, mut far) = (0.0, 0.0);
        for ((q, low), high) in query.iter().zip(low).zip(high) {
            near = larger(near, larger(low - q, q - high));
            far = larger(far, larger(q - low, high - q));
        }
        (near, far)
    }

    /// The distances of a leaf's points; where all are past `limit`, something past it.
    fn distances(&self, node: Node, query: &[f64], limit: f64) -> [f64; LEAF] {
        let count = node.hi - node.lo;
        let mut distances = [0.0; LEAF];
        let points = &self.points[node.lo * self.dimensions..node.hi * self.dimensions];
        for (dimension, (q, column)) in query.iter().zip(points.chunks_exact(count)).enumerate() {
            for (distance, value) in distances.iter_mut().zip(column) {
                *distance = larger(*distance, (q - value).abs());
            }
            if dimension % 3 == 2 && distances[..count].iter().all(|distance| *distance > limit) {
                break;
            }
        }
        distances
    }

    /// The `k` points nearest to row `own` at `query`, itself left out: (distance, row), the nearest first.
    pub fn nearest(&self, query: &[f64], own: u32, k: usize, best: &mut Vec<(f64, u32)>) {
        best.clear();
        self.search(self.root(), &mut Search { query, own, k, best });
    }

    fn search(&self, node: Node, search: &mut Search) {
        if node.is_leaf() {
            let distances = self.distances(node, search.query, search.limit());
            let rows = &self.order[node.lo..node.hi];
            let mut limit = search.limit();
            for (&distance, &row) in distances.iter().zip(rows) {
                if distance < limit && row != search.own {
                    let place = search.best.partition_point(|other| other.0 <= distance);
                    search.best.truncate(search.k - 1);
                    search.best.insert(place, (distance, row));
                    limit = search.limit();
                }
            }
            return;
        }
        let mut halves = node.halves().map(|half| (self.reach(half, search.query).0, half));
        if halves[1].0 < halves[0].0 {
            halves.swap(0, 1);
        }
        for (near, half) in halves {
            if near < search.limit() {
                self.search(half, search);
            }
        }
    }

    /// How many points lie nearer to `query` than `radius`, or, if `closed`, at most so far. The query's own row counts.
    pub fn count(&self, query: &[f64], radius: f64, closed: bool) -> usize {
        self.count_in(self.root(), query, radius, closed)
    }

    fn count_in(&self, node: Node, query: &[f64], radius: f64, closed: bool) -> usize {
        let within = |distance: f64| if closed { distance <= radius } else { distance < radius };
        let (near, far) = self.reach(node, query);
        if !within(near) {
            0
        } else if within(far) {
            node.hi - node.lo
        } else if node.is_leaf() {
            let distances = self.distances(node, query, radius);
            distances[..node.hi - node.lo].iter().map(|&distance| usize::from(within(distance))).sum()
        } else {
            node.halves().into_iter().map(|half| self.count_in(half, query, radius, closed)).sum()
        }
    }
}

/// The larger of two numbers; without f64::max's care for NaN, of which there are none, it is one instruction.
fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

/// Puts `order` into boxes and notes their corners.
fn split(rows: &[f64], dimensions: usize, order: &mut [u32], node: usize, corners: &mut Vec<f64>) {
    if corners.len() < 2 * dimensions * (node + 1) {
        corners.resize(2 * dimensions * (node + 1), 0.0);
    }
    let (mut widest, mut width) = (0, -1.0);
    for dimension in 0..dimensions {
        let column = order.iter().map(|&row| rows[row as usize * dimensions + dimension]);
        let (low, high) =
            column.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        corners[2 * dimensions * node + dimension] = low;
        corners[2 * dimensions * node + dimensions + dimension] = high;
        if high - low > width {
            (widest, width) = (dimension, high - low);
        }
    }
    if order.len() > LEAF {
        let mid = order.len() / 2;
        let at = |row: &u32| rows[*row as usize * dimensions + widest];
        order.select_nth_unstable_by(mid, |a, b| at(a).total_cmp(&at(b)));
        let (left, right) = order.split_at_mut(mid);
        split(rows, dimensions, left, 2 * node + 1, corners);
        split(rows, dimensions, right, 2 * node + 2, corners);
    }
}

/// Counts points around others; a line is a sorted list.
pub(super) enum Counter {
    Line(Vec<f64>),
    Space(Tree),
}

impl Counter {
    pub fn new(rows: &[f64], dimensions: usize) -> Self {
        if dimensions > 1 {
            return Self::Space(Tree::new(rows, dimensions));
        }
        let mut sorted = rows.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Self::Line(sorted)
    }

    /// As [`Tree::count`].
    pub fn count(&self, query: &[f64], radius: f64, closed: bool) -> usize {
        match self {
            Self::Line(sorted) if closed => {
                sorted.partition_point(|value| value - query[0] <= radius)
                    - sorted.partition_point(|value| query[0] - value > radius)
            }
            Self::Line(sorted) => {
                let upper = sorted.partition_point(|value| value - query[0] < radius);
                upper.saturating_sub(sorted.partition_point(|value| query[0] - value >= radius))
            }
            Self::Space(tree) => tree.count(query, radius, closed),
        }
    }
}
