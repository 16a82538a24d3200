//! What do two sources tell about a target: the same, each something of its own, or something only both together? Partial
//! information decomposition, exact.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

use super::gaussian_information;
use crate::error::{Error, Result};

/// Which information counts as redundant. The measures disagree, so say which one you used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Redundancy {
    /// What the weaker source tells, `min(I1, I2)` (Barrett 2015).
    Mmi,
    /// The least that either source tells about a value of the target, averaged over the values (Williams & Beer 2010). It
    /// compares amounts only: different information of the same amount counts as redundant.
    IMin,
    /// Unique information is what no coupling of the sources can remove: the sources are coupled so that together they tell
    /// least about the target, while each keeps its joint distribution with the target (Bertschinger et al. 2014).
    #[default]
    Broja,
}

/// `I(T; X1, X2)` in four parts, in nats: `I1 = redundant + unique_1`, `I2 = redundant + unique_2`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Decomposition {
    /// Told by both sources.
    pub redundant: f64,
    /// Told by the first source alone.
    pub unique_1: f64,
    /// Told by the second source alone.
    pub unique_2: f64,
    /// Told only by both sources together.
    pub synergistic: f64,
    /// The measure of redundancy.
    pub measure: Redundancy,
}

impl Decomposition {
    pub(super) fn new(measure: Redundancy, redundant: f64, first: f64, second: f64, both: f64) -> Self {
        let (unique_1, unique_2) = (first - redundant, second - redundant);
        Self { redundant, unique_1, unique_2, synergistic: both - redundant - unique_1 - unique_2, measure }
    }

    /// What both sources tell together: the sum of the four parts.
    pub fn total(&self) -> f64 {
        self.redundant + self.unique_1 + self.unique_2 + self.synergistic
    }

    /// Synergy minus redundancy, `I12 - I1 - I2`; it does not depend on the measure.
    pub fn synergy_minus_redundancy(&self) -> f64 {
        self.synergistic - self.redundant
    }
}

/// What do two Gaussian sources tell about a Gaussian target? The redundancy is the smaller of the two informations
/// ([`Redundancy::Mmi`]). For a target of one dimension, every measure that depends only on the pairs (source, target) agrees
/// (Barrett 2015).
///
/// # Shapes
/// `covariance`: \[variable, variable\]; `target`, `first`, `second`: indices of variables.
///
/// # Errors
/// As [`gaussian_information`].
///
/// ```
/// use headscope::information::gaussian_decomposition;
/// let covariance = ndarray::array![[1.0, 0.6, 0.3], [0.6, 1.0, 0.2], [0.3, 0.2, 1.0]];
/// let parts = gaussian_decomposition(covariance.view(), &[0], &[1], &[2])?;
/// assert!(parts.unique_1 > 0.1 && parts.unique_2 == 0.0); // all that the weaker source tells is redundant
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn gaussian_decomposition(
    covariance: ArrayView2<f64>,
    target: &[usize],
    first: &[usize],
    second: &[usize],
) -> Result<Decomposition> {
    let one = gaussian_information(covariance, target, first, &[])?;
    let two = gaussian_information(covariance, target, second, &[])?;
    let both = gaussian_information(covariance, target, &[first, second].concat(), &[])?;
    Ok(Decomposition::new(Redundancy::Mmi, one.min(two), one, two, both))
}

/// What do two discrete sources tell about a discrete target, given the joint distribution?
///
/// The coupling of [`Redundancy::Broja`] is found by alternating projections. Let r(x1, x2) be the joint distribution of the
/// sources. Each p(x1, x2 | t) becomes the coupling of p(x1 | t) and p(x2 | t) that is nearest to r, then r becomes their
/// mixture. Both steps lower `I_Q(T; X1, X2)`, which is convex; iteration stops once neither lowers it by 1e-12 (Csiszár &
/// Tusnády 1984).
///
/// # Shapes
/// `p`: \[target, first, second\], summing to 1.
///
/// # Errors
/// If a probability is negative or not finite, or the sum is not 1 within 1e-9.
///
/// ```
/// use headscope::information::{Redundancy, decomposition};
/// let xor = ndarray::Array3::from_shape_fn((2, 2, 2), |(t, a, b)| if t == a ^ b { 0.25 } else { 0.0 });
/// let parts = decomposition(xor.view(), Redundancy::Broja)?;
/// assert!((parts.synergistic - 2f64.ln()).abs() < 1e-9 && parts.redundant.abs() < 1e-9); // one bit, only together
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// ```
/// use headscope::information::{Redundancy, decomposition};
/// // The target is the exclusive or of two fair bits: neither tells anything alone.
/// let xor = ndarray::Array3::from_shape_fn((2, 2, 2), |(t, a, b)| if t == a ^ b { 0.25 } else { 0.0 });
/// let parts = decomposition(xor.view(), Redundancy::Broja)?;
/// assert!((parts.synergistic - 2f64.ln()).abs() < 1e-6 && parts.redundant.abs() < 1e-6);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn decomposition(p: ArrayView3<f64>, measure: Redundancy) -> Result<Decomposition> {
    if let Some((index, found)) = p.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(Error::NotFinite { at: "p".into(), index, found: *found });
    }
    if (p.sum() - 1.0).abs() > 1e-9 || p.iter().any(|value| *value < 0.0) {
        return Err(Error::argument("p", "probabilities that sum to 1", format!("a sum of {}", p.sum())));
    }
    let (first, second) = (p.sum_axis(Axis(2)), p.sum_axis(Axis(1)));
    let (one, two, both) = (information(&first), information(&second), joint_information(&p.to_owned()));
    let redundant = match measure {
        Redundancy::Mmi => one.min(two),
        Redundancy::IMin => i_min(&first, &second),
        Redundancy::Broja => one + two - joint_information(&least_together(&first, &second)),
    };
    Ok(Decomposition::new(measure, redundant, one, two, both))
}

/// I(T; X) of a joint distribution \[target, source\].
fn information(joint: &Array2<f64>) -> f64 {
    let (target, source) = (joint.sum_axis(Axis(1)), joint.sum_axis(Axis(0)));
    let term =
        |((t, x), &p): ((usize, usize), &f64)| if p > 0.0 { p * (p / (target[t] * source[x])).ln() } else { 0.0 };
    joint.indexed_iter().map(term).sum()
}

fn joint_information(p: &Array3<f64>) -> f64 {
    let (t, a, b) = p.dim();
    information(&Array2::from_shape_fn((t, a * b), |(t, x)| p[[t, x / b, x % b]]))
}

/// `sum_t p(t) min_i D(p(x_i | t) || p(x_i))`.
fn i_min(first: &Array2<f64>, second: &Array2<f64>) -> f64 {
    let specific = |joint: &Array2<f64>, t: usize| {
        let (row, source) = (joint.row(t), joint.sum_axis(Axis(0)));
        let all = row.sum();
        row.iter().zip(&source).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / (all * q)).ln()).sum::<f64>()
    };
    (0..first.nrows()).map(|t| specific(first, t).min(specific(second, t))).sum()
}

/// The distribution with these pairs (target, source) in which the sources together tell least.
fn least_together(first: &Array2<f64>, second: &Array2<f64>) -> Array3<f64> {
    let (targets, a, b) = (first.nrows(), first.ncols(), second.ncols());
    let mut coupled = Array3::from_shape_fn((targets, a, b), |(t, i, j)| {
        let p = first.row(t).sum();
        if p > 0.0 { first[[t, i]] * second[[t, j]] / p } else { 0.0 }
    });
    // A coupling is the mixture with scaled rows and columns; the scales change little between steps, so they are kept.
    let mut scales = vec![(vec![1.0; a], vec![1.0; b]); targets];
    let mut last = f64::INFINITY;
    for _ in 0..20_000 {
        let mixture = coupled.sum_axis(Axis(0));
        for (t, (left, right)) in scales.iter_mut().enumerate() {
            fit(&mixture, &first.row(t).to_vec(), &second.row(t).to_vec(), left, right);
            let coupling = coupled.index_axis_mut(Axis(0), t);
            coupling.into_iter().enumerate().for_each(|(i, value)| {
                *value = left[i / b] * mixture[[i / b, i % b]] * right[i % b];
            });
        }
        let now = joint_information(&coupled);
        if last - now < 1e-12 {
            break;
        }
        last = now;
    }
    coupled
}

/// Scales the mixture's rows and columns, in turn, to the required sums (Sinkhorn 1967).
fn fit(mixture: &Array2<f64>, rows: &[f64], columns: &[f64], left: &mut [f64], right: &mut [f64]) {
    // Any scale is right for a row that sums to nothing.
    let scale = |wanted: f64, sum: f64| if sum > 1e-290 { wanted / sum } else { 0.0 };
    for _ in 0..10_000 {
        let mut off: f64 = 0.0;
        for (i, row) in mixture.outer_iter().enumerate() {
            let sum: f64 = row.iter().zip(right.iter()).map(|(p, scale)| p * scale).sum();
            off = off.max((left[i] * sum - rows[i]).abs());
            left[i] = scale(rows[i], sum);
        }
        for (j, column) in mixture.axis_iter(Axis(1)).enumerate() {
            let sum: f64 = column.iter().zip(left.iter()).map(|(p, scale)| p * scale).sum();
            right[j] = scale(columns[j], sum);
        }
        if off < 1e-14 {
            return;
        }
    }
}
