//! Which subspaces of the residual stream do heads read from and write to, and do they overlap?

use ndarray::{Array2, ArrayView2, s};

use super::blas::product;
use super::factored::{check_finite, shape};
use super::lapack;
use crate::error::{Error, Result};

/// Directions with a singular value below this share of the largest do not count.
const NEGLIGIBLE: f64 = 1e-10;

/// A subspace of a space of d dimensions, as an orthonormal basis.
#[derive(Debug, Clone, PartialEq)]
pub struct Subspace {
    basis: Array2<f64>,
}

impl Subspace {
    /// The span of the columns of `vectors`, `[d, k]`.
    ///
    /// # Errors
    /// If a value is not finite, or all are zero.
    pub fn span(vectors: &ArrayView2<'_, f64>) -> Result<Self> {
        check_finite("vectors", vectors)?;
        if vectors.is_empty() {
            return Err(shape("vectors", "[d, k], neither 0".to_owned(), vectors));
        }
        if let Some(basis) = lapack::basis(vectors) {
            return Ok(Self { basis });
        }
        let (u, sigma, _) = lapack::svd(&vectors.to_owned())?;
        let dim = sigma.iter().filter(|&&value| value > NEGLIGIBLE * sigma[0]).count();
        match dim {
            0 => Err(Error::argument("vectors", "a vector that is not zero", "none")),
            _ => Ok(Self { basis: u.slice(s![.., ..dim]).to_owned() }),
        }
    }

    /// A subspace from a basis known to be orthonormal.
    pub(super) fn orthonormal(basis: Array2<f64>) -> Self {
        Self { basis }
    }

    /// The orthonormal basis, in columns, `[d, dim]`.
    pub fn basis(&self) -> ArrayView2<'_, f64> {
        self.basis.view()
    }

    /// Its dimension.
    pub fn dim(&self) -> usize {
        self.basis.ncols()
    }

    /// The dimension d of the surrounding space.
    pub fn ambient(&self) -> usize {
        self.basis.nrows()
    }

    /// At which angles do two subspaces meet? The principal angles, in radians and ascending, as many as the smaller subspace
    /// has dimensions.
    ///
    /// `cos theta_i` are the singular values of `Q1^T Q2`. Angles below pi/4 are computed from their sines, the singular values
    /// of `Q2 - Q1 Q1^T Q2`, which are accurate there (Bjorck & Golub 1973).
    ///
    /// # Errors
    /// If the surrounding spaces differ in dimension.
    pub fn angles(&self, other: &Self) -> Result<Vec<f64>> {
        let (large, small) = if self.dim() >= other.dim() { (self, other) } else { (other, self) };
        let inner = large.inner(small)?;
        let cosines = lapack::singular_values(&inner)?;
        let beside = &small.basis - &large.basis.dot(&inner);
        let mut sines = lapack::singular_values(&beside)?.to_vec();
        sines.reverse();
        let angle = |(cosine, sine): (&f64, &f64)| match *sine < std::f64::consts::FRAC_1_SQRT_2 {
            true => sine.min(1.0).asin(),
            false => cosine.min(1.0).acos(),
        };
        Ok(cosines.iter().zip(&sines).map(angle).collect())
    }

    /// How much do two subspaces overlap? The mean squared cosine of the principal angles, `|Q1^T Q2|_F^2 / min(k1, k2)`: 0 if
    /// they are orthogonal, 1 if one contains the other.
    ///
    /// # Errors
    /// If the surrounding spaces differ in dimension.
    pub fn overlap(&self, other: &Self) -> Result<f64> {
        let squares = self.inner(other)?.iter().map(|value| value * value).sum::<f64>();
        Ok((squares / self.dim().min(other.dim()) as f64).min(1.0))
    }

    /// The mean and standard deviation of the overlap if one of the two is rotated at random.
    ///
    /// The mean is `max(k1, k2) / d`; the variance is exact, see [`rotated`](super::rotated).
    pub fn random_overlap(&self, other: &Self) -> (f64, f64) {
        random_overlap(self.dim(), other.dim(), self.ambient())
    }

    fn inner(&self, other: &Self) -> Result<Array2<f64>> {
        if self.ambient() != other.ambient() {
            return Err(shape("other", format!("[{}, k]", self.ambient()), &other.basis()));
        }
        Ok(product(&self.basis.t(), &other.basis.view()))
    }
}

/// How much do random subspaces overlap? The mean and standard deviation for `k1` and `k2` of `d` dimensions.
///
/// ```
/// use headscope::circuits::random_overlap;
/// let (mean, deviation) = random_overlap(4, 4, 64);
/// assert!((mean - 4.0 / 64.0).abs() < 1e-12 && deviation > 0.0);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn random_overlap(k1: usize, k2: usize, d: usize) -> (f64, f64) {
    let (k1, k2, d) = (k1 as f64, k2 as f64, d as f64);
    let (mean, deviation) = rotated([k1, k1], [k2, k2], d);
    (mean / k1.min(k2), deviation / k1.min(k2))
}

/// What is `tr(G U H U^T)` over random rotations U of d dimensions (Haar)? Its mean and standard deviation, for symmetric G and
/// H given as `[tr, |.|_F^2]`.
///
/// The mean is `tr G tr H / d`. The traceless parts of G and H rotate within an irreducible space of `(d - 1)(d + 2) / 2`
/// dimensions, so by Schur orthogonality the variance is `(|G|^2 - tr^2 G / d)(|H|^2 - tr^2 H / d) / ((d - 1)(d + 2) / 2)`.
/// This is exact and needs no sampling.
///
/// ```
/// use headscope::circuits::rotated;
/// // The squared cosine of two random directions of 10 dimensions: G and H are projections on one direction each.
/// let (mean, deviation) = rotated([1.0, 1.0], [1.0, 1.0], 10.0);
/// assert!((mean - 0.1).abs() < 1e-12 && (deviation.powi(2) - 0.9 * 0.9 / 54.0).abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn rotated(g: [f64; 2], h: [f64; 2], d: f64) -> (f64, f64) {
    let traceless = |[trace, squares]: [f64; 2]| (squares - trace * trace / d).max(0.0);
    let variance = traceless(g) * traceless(h) * 2.0 / ((d - 1.0) * (d + 2.0));
    (g[0] * h[0] / d, if d > 1.0 { variance.sqrt() } else { 0.0 })
}
