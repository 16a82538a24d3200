//! How much do continuous variables share, judged by the distances to nearest neighbours?

use std::sync::OnceLock;

use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use statrs::function::gamma::digamma;

use super::Scaling;
use super::counter::Counter;
use super::local::{self, Corner};
use super::sample::{Sample, beside};
use super::tree::{Notes, Tree};
use crate::error::{Error, Result};

/// A nearest-neighbour estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KsgVariant {
    /// KSG-1: counts within the cube that reaches to the k-th neighbour.
    #[default]
    One,
    /// KSG-2: counts within the smallest box that holds the k neighbours.
    Two,
    /// KSG-2 with a correction where the neighbours fill only a slanted part of their box: for strong dependence.
    LocalNonUniformity,
}

/// Options of the nearest-neighbour estimators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KsgOptions {
    /// Number of neighbours, less than half of the samples. Few have less bias, many have less variance.
    pub k: usize,
    /// Which estimator.
    pub variant: KsgVariant,
    /// How to scale each coordinate first.
    pub scaling: Scaling,
}

impl Default for KsgOptions {
    fn default() -> Self {
        Self { k: 5, variant: KsgVariant::One, scaling: Scaling::Standard }
    }
}

impl KsgOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If `k` is 0.
    pub fn validate(&self) -> Result<()> {
        if self.k == 0 { Err(Error::argument("k", "1 or more", 0)) } else { Ok(()) }
    }

    fn fits(&self, n: usize) -> Result<()> {
        self.validate()?;
        if self.k < n { Ok(()) } else { Err(Error::argument("k", format!("less than the {n} samples"), self.k)) }
    }
}

/// psi(1), psi(2), ..., psi(n) at indices 1, 2, ..., n.
pub(super) fn digammas(n: usize) -> Vec<f64> {
    let mut values = vec![f64::NAN, digamma(1.0)];
    (1..n).for_each(|m| values.push(values[m] + 1.0 / m as f64));
    values
}

/// A marginal space of the joint one: its columns, its points, and the sign of its term.
struct Marginal {
    columns: std::ops::Range<usize>,
    points: Array2<f64>,
    counter: Counter,
    sign: f64,
}

impl Marginal {
    fn new(points: Array2<f64>, columns: std::ops::Range<usize>, sign: f64) -> Self {
        let points = points.as_standard_layout().into_owned();
        let counter = Counter::new(points.as_slice().unwrap_or_default(), points.ncols());
        Self { columns, points, counter, sign }
    }

    fn query(&self, row: usize) -> &[f64] {
        let d = self.points.ncols();
        &self.points.as_slice().unwrap_or_default()[row * d..][..d]
    }
}

/// The information shared by m variables, `psi(k) + (m - 1) psi(N) - <sum psi(n_i + 1)>`: mutual information for m = 2, total
/// correlation for more (Kraskov, Stögbauer & Grassberger 2004, eqs. 8, 9, 23, 24).
pub(super) fn shared(parts: &[&Sample], options: &KsgOptions) -> Result<f64> {
    let scaled: Vec<Sample> = parts.iter().map(|part| part.scaled(options.scaling)).collect();
    let n = parts.first().map_or(0, |part| part.rows.nrows());
    options.fits(n)?;
    let joint = beside(&scaled.iter().collect::<Vec<_>>());
    let mut first = 0;
    let mut placed = vec![];
    for part in scaled {
        let columns = first..first + part.dimensions();
        first = columns.end;
        placed.push((part.rows, columns));
    }
    let marginals: Vec<Marginal> =
        placed.into_par_iter().map(|(rows, columns)| Marginal::new(rows, columns, 1.0)).collect();
    let more = (parts.len() - 1) as f64;
    let psi_n = digamma(n as f64);
    match options.variant {
        KsgVariant::One => Ok(more * psi_n + cubes(&joint, &marginals, options.k)),
        KsgVariant::Two => Ok(more * psi_n + boxes(&joint, &marginals, options.k)),
        KsgVariant::LocalNonUniformity => {
            let corner = Corner::new(options.k, joint.ncols())?;
            let base = more * psi_n + boxes(&joint, &marginals, options.k);
            Ok(base + local::correction(&joint, options.k, corner)?)
        }
    }
}

/// I(X; Y | Z) = psi(k) - <psi(n_xz + 1) + psi(n_yz + 1) - psi(n_z + 1)> (Frenzel & Pompe 2007).
pub(super) fn conditional(x: &Sample, y: &Sample, z: &Sample, options: &KsgOptions) -> Result<f64> {
    if options.variant != KsgVariant::One {
        return Err(Error::argument(
            "variant",
            "ksg, the variant that has a conditional form",
            super::Estimator::Ksg(options.clone()).name(),
        ));
    }
    options.fits(x.rows.nrows())?;
    let (x, y, z) = (x.scaled(options.scaling), y.scaled(options.scaling), z.scaled(options.scaling));
    let joint = beside(&[&x, &y, &z]);
    let all = 0..joint.ncols();
    let marginals = [
        Marginal::new(beside(&[&x, &z]), all.clone(), 1.0),
        Marginal::new(beside(&[&y, &z]), all.clone(), 1.0),
        Marginal::new(z.rows, all, -1.0),
    ];
    Ok(cubes(&joint, &marginals, options.k))
}

/// The mean over samples of `psi(k) - sum sign psi(count)`. A count includes the sample itself and all points strictly closer
/// in the marginal than the k-th neighbour is in the joint space. If the k nearest neighbours are copies of the sample, the
/// number of copies replaces k, and the counts are those of copies. This covers discrete and mixed variables (Gao, Kannan, Oh &
/// Viswanath 2017).
fn cubes(joint: &Array2<f64>, marginals: &[Marginal], k: usize) -> f64 {
    let psi = digammas(joint.nrows());
    let all = Copies::new(joint);
    mean_over(joint, |tree, point, row, scratch| {
        tree.nearest(point, row, k, scratch);
        let radius = scratch.best[k - 1].0;
        let copies = radius == 0.0;
        let own = if copies { all.count(point, scratch) } else { k };
        let mut count =
            |part: &Marginal| part.counter.count(part.query(row as usize), radius, copies, &mut scratch.ranges).max(1);
        psi[own] - marginals.iter().map(|part| part.sign * psi[count(part)]).sum::<f64>()
    })
}

/// The mean over samples of `psi(k) - (m - 1) / k - sum psi(n_i)`, with n_i the number of points in the marginal within the
/// extent of the k neighbours' box. Copies are counted as in [`cubes`].
fn boxes(joint: &Array2<f64>, marginals: &[Marginal], k: usize) -> f64 {
    let psi = digammas(joint.nrows());
    let d = joint.ncols();
    let rows = joint.as_slice().unwrap_or_default();
    let all = Copies::new(joint);
    mean_over(joint, |tree, point, row, scratch| {
        tree.nearest(point, row, k, scratch);
        let (own, itself) = match scratch.best[k - 1].0 == 0.0 {
            true => (psi[all.count(point, scratch)], 0),
            false => (psi[k] - (marginals.len() - 1) as f64 / k as f64, 1),
        };
        let Notes { best, ranges, .. } = scratch;
        let term = |part: &Marginal| {
            let far = |other: &(f64, u32)| {
                let other = &rows[other.1 as usize * d..][..d];
                part.columns.clone().map(|c| (point[c] - other[c]).abs()).fold(0.0, f64::max)
            };
            let reach = best.iter().map(far).fold(0.0, f64::max);
            part.sign * psi[(part.counter.count(part.query(row as usize), reach, true, ranges) - itself).max(1)]
        };
        own - marginals.iter().map(term).sum::<f64>()
    })
}

/// Counts a point's copies. Built on first use: most samples have none.
struct Copies<'a> {
    rows: &'a Array2<f64>,
    counter: OnceLock<Counter>,
}

impl<'a> Copies<'a> {
    fn new(rows: &'a Array2<f64>) -> Self {
        Self { rows, counter: OnceLock::new() }
    }

    fn count(&self, point: &[f64], scratch: &mut Notes) -> usize {
        let new = || Counter::new(self.rows.as_slice().unwrap_or_default(), self.rows.ncols());
        self.counter.get_or_init(new).count(point, 0.0, true, &mut scratch.ranges)
    }
}

/// The mean of `f(tree, point, row, scratch)` over the rows, visited box by box. Chunks are summed in order, so the result does
/// not depend on the number of threads.
pub(super) fn mean_over(joint: &Array2<f64>, f: impl Fn(&Tree, &[f64], u32, &mut Notes) -> f64 + Sync) -> f64 {
    let (n, d) = joint.dim();
    let rows = joint.as_slice().unwrap_or_default();
    let tree = Tree::new(rows, d);
    let chunk = |chunk: &[u32]| {
        let mut scratch = Notes::default();
        chunk.iter().map(|&row| f(&tree, &rows[row as usize * d..][..d], row, &mut scratch)).sum::<f64>()
    };
    let sums: Vec<f64> = tree.order().par_chunks(256).map(chunk).collect();
    sums.iter().sum::<f64>() / n as f64
}

/// What a continuous X tells about labels: `psi(N) + <psi(k_i)> - <psi(N_y)> - <psi(m_i)>`. N_y is the number of samples with
/// the same label, m_i the number of all samples within the distance to the k-th neighbour of the same label (Ross 2014).
/// Labels that occur once tell nothing and are left out.
pub(super) fn ross(x: &Sample, labels: &[usize], options: &KsgOptions) -> Result<f64> {
    options.validate()?;
    let x = x.scaled(options.scaling);
    let d = x.dimensions();
    let mut groups: Vec<Vec<usize>> = vec![vec![]; labels.iter().max().map_or(0, |most| most + 1)];
    labels.iter().enumerate().for_each(|(row, &label)| groups[label].push(row));
    groups.retain(|rows| rows.len() > 1);
    let kept: Vec<usize> = groups.iter().flatten().copied().collect();
    if groups.len() < 2 {
        return Err(Error::argument("y", "two or more labels that occur twice or more", groups.len()));
    }
    let all = x.take(&kept).rows;
    let counter = Counter::new(all.as_slice().unwrap_or_default(), d);
    let psi = digammas(kept.len());
    let sums = groups.par_iter().map(|rows| {
        let k = options.k.min(rows.len() - 1);
        let own = x.take(rows).rows;
        let copied = Copies::new(&own);
        let mean = mean_over(&own, |tree, point, row, scratch| {
            tree.nearest(point, row, k, scratch);
            let radius = scratch.best[k - 1].0;
            let copies = radius == 0.0;
            let near = if copies { copied.count(point, scratch) } else { k };
            psi[near] - psi[counter.count(point, radius, copies, &mut scratch.ranges).max(1)] - psi[rows.len()]
        });
        mean * rows.len() as f64
    });
    let sums: Vec<f64> = sums.collect();
    Ok(psi[kept.len()] + sums.iter().sum::<f64>() / kept.len() as f64)
}
