//! How much do Gaussian variables share? Closed forms, exact from a covariance and unbiased from samples.

use ndarray::{Array2, ArrayView2, Axis};
use ndarray_linalg::{Cholesky, Diag, SVD, SolveTriangular, UPLO};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ChiSquared, ContinuousCDF};
use statrs::function::gamma::digamma;

use super::sample::{Sample, beside};
use crate::error::{Error, Result};

/// How far to shrink a correlation matrix towards the identity.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub enum Shrinkage {
    /// Not at all. The bias of finite samples is subtracted instead.
    #[default]
    None,
    /// By the share that minimises the expected squared error (Schäfer & Strimmer 2005).
    Auto,
    /// By this share, from 0 to 1.
    Fixed(f64),
}

/// Options of the Gaussian estimator.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GaussianOptions {
    /// Shrinkage of the correlations.
    pub shrinkage: Shrinkage,
}

/// Options of the estimator from canonical correlations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CcaOptions {
    /// Significance level of Bartlett's test, which decides how many canonical correlations count.
    pub alpha: f64,
}

impl Default for CcaOptions {
    fn default() -> Self {
        Self { alpha: 0.05 }
    }
}

/// How much do Gaussian variables share, given their covariance? `I(X; Y | Z) = 1/2 ln(|S_xz| |S_yz| / (|S_z| |S_xyz|))` in
/// nats, exact. For two numbers and an empty `given` it is `-1/2 ln(1 - rho^2)`.
///
/// # Shapes
/// `covariance`: \[variable, variable\]; `x`, `y`, `given`: indices of variables.
///
/// # Errors
/// If the matrix is not square, not finite, or not positive definite on the chosen variables, or an index is out of range.
///
/// ```
/// use headscope::information::gaussian_information;
/// let covariance = ndarray::array![[1.0, 0.75], [0.75, 1.0]];
/// let nats = gaussian_information(covariance.view(), &[0], &[1], &[])?;
/// assert!((nats - 0.41334).abs() < 1e-5);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn gaussian_information(covariance: ArrayView2<f64>, x: &[usize], y: &[usize], given: &[usize]) -> Result<f64> {
    let (n, m) = covariance.dim();
    if n != m {
        let expected = "[variable, variable], square".into();
        return Err(Error::Shape { at: "covariance".into(), expected, found: vec![n as i64, m as i64] });
    }
    if let Some((index, found)) = covariance.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(Error::NotFinite { at: "covariance".into(), index, found: *found });
    }
    if let Some(&bad) = x.iter().chain(y).chain(given).find(|&&variable| variable >= n) {
        let at = "x, y, given".into();
        return Err(Error::OutOfRange { at, axis: "variable", found: bad as i64, limit: n as i64 });
    }
    let volume = |parts: &[&[usize]]| {
        let kept = parts.concat();
        log_det(&covariance.select(Axis(0), &kept).select(Axis(1), &kept))
    };
    Ok(0.5 * (volume(&[x, given])? + volume(&[y, given])? - volume(&[given])? - volume(&[x, y, given])?))
}

/// ln |S| of a positive definite matrix; 0 for an empty one.
pub(super) fn log_det(matrix: &Array2<f64>) -> Result<f64> {
    if matrix.is_empty() {
        return Ok(0.0);
    }
    let factor = factor(matrix)?;
    Ok(2.0 * factor.diag().iter().map(|value| value.ln()).sum::<f64>())
}

/// The lower Cholesky factor. A pivot near zero means that earlier columns determine this one.
fn factor(matrix: &Array2<f64>) -> Result<Array2<f64>> {
    let singular = |found: String| {
        Error::argument("x, y", "no column that is a linear combination of others (or shrinkage)", found)
    };
    let factor = matrix.cholesky(UPLO::Lower).map_err(|_| singular("columns that are".into()))?;
    match factor.diag().iter().zip(matrix.diag()).position(|(pivot, scale)| pivot * pivot <= 1e-12 * scale) {
        Some(column) => {
            Err(singular(format!("column {column} of x and y together, which the ones before it determine")))
        }
        None => Ok(factor),
    }
}

/// The correlations of the columns, after shrinkage.
fn correlations(rows: &Array2<f64>, shrinkage: Shrinkage) -> Result<Array2<f64>> {
    let n = rows.nrows() as f64;
    let scaled = Sample { rows: rows.clone() }.scaled(super::Scaling::Standard).rows;
    let mut matrix = scaled.t().dot(&scaled) / n;
    let share = match shrinkage {
        Shrinkage::None => 0.0,
        Shrinkage::Fixed(share) if (0.0..=1.0).contains(&share) => share,
        Shrinkage::Fixed(share) => return Err(Error::argument("shrinkage", "from 0 to 1", share)),
        Shrinkage::Auto => {
            let squares = scaled.mapv(|value| value * value);
            let spread = (squares.t().dot(&squares) / n - matrix.mapv(|r| r * r)) / (n - 1.0);
            let off = |matrix: &Array2<f64>| matrix.sum() - matrix.diag().sum();
            (off(&spread) / off(&matrix.mapv(|r| r * r)).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
        }
    };
    matrix.mapv_inplace(|value| value * (1.0 - share));
    matrix.diag_mut().fill(1.0);
    Ok(matrix)
}

/// The expected log-determinant of the sample covariance of `d` Gaussian columns minus that of the true one, up to terms that
/// cancel: `sum_i psi((freedom - i + 1) / 2)`.
fn shortfall(d: usize, freedom: usize) -> f64 {
    (0..d).map(|i| digamma((freedom - i) as f64 / 2.0)).sum()
}

/// I(X; Y | Z) as if all variables were Gaussian; `z` may be missing. Without shrinkage, the bias of finite samples is
/// subtracted, exactly for Gaussian variables (Goodman 1963).
pub(super) fn gaussian(x: &Sample, y: &Sample, z: Option<&Sample>, options: &GaussianOptions) -> Result<f64> {
    let parts: Vec<&Sample> = [x, y].into_iter().chain(z).collect();
    let joint = beside(&parts);
    let (n, dx, dy) = (joint.nrows(), x.dimensions(), y.dimensions());
    let (d, dz) = (joint.ncols(), joint.ncols() - dx - dy);
    if options.shrinkage == Shrinkage::None && n <= d + 1 {
        let expected = format!("more than {} samples for {d} dimensions together, or shrinkage", d + 1);
        return Err(Error::argument("x, y", expected, n));
    }
    let matrix = correlations(&joint, options.shrinkage)?;
    let range = |range: std::ops::Range<usize>| range.collect::<Vec<usize>>();
    let plain = gaussian_information(matrix.view(), &range(0..dx), &range(dx..dx + dy), &range(dx + dy..d))?;
    if options.shrinkage != Shrinkage::None {
        return Ok(plain);
    }
    let short = |d| shortfall(d, n - 1);
    Ok(plain - 0.5 * (short(dx + dz) + short(dy + dz) - short(dz) - short(d)))
}

/// The total correlation of several variables as if they were Gaussian.
pub(super) fn total(parts: &[&Sample], options: &GaussianOptions) -> Result<f64> {
    let mut sum = 0.0;
    let mut before = parts.iter().take(1).map(|part| (*part).clone()).collect::<Vec<Sample>>();
    for part in parts.iter().skip(1) {
        if let Some(joint) = before.pop() {
            sum += gaussian(&joint, part, None, options)?;
            before.push(Sample { rows: beside(&[&joint, part]) });
        }
    }
    Ok(sum)
}

/// The canonical correlations, largest first.
pub(super) fn canonical_correlations(x: &Sample, y: &Sample) -> Result<Vec<f64>> {
    let (dx, d) = (x.dimensions(), x.dimensions() + y.dimensions());
    let matrix = correlations(&beside(&[x, y]), Shrinkage::None)?;
    let block = |a: std::ops::Range<usize>, b: std::ops::Range<usize>| matrix.slice(ndarray::s![a, b]).to_owned();
    let failed = |reason| Error::argument("x, y", "variables that have canonical correlations", reason);
    let solve = |factor: &Array2<f64>, right: &Array2<f64>| {
        factor.solve_triangular(UPLO::Lower, Diag::NonUnit, right).map_err(failed)
    };
    let half = solve(&factor(&block(0..dx, 0..dx))?, &block(0..dx, dx..d))?;
    let half = solve(&factor(&block(dx..d, dx..d))?, &half.t().as_standard_layout().into_owned())?;
    let (_, values, _) = half.svd(false, false).map_err(failed)?;
    Ok(values.into_iter().map(|value| value.min(1.0)).collect())
}

/// -1/2 sum ln(1 - rho_i^2) over the canonical correlations that Bartlett's sequential test finds.
pub(super) fn cca(x: &Sample, y: &Sample, options: &CcaOptions) -> Result<f64> {
    let (n, p, q) = (x.rows.nrows(), x.dimensions(), y.dimensions());
    if n <= p + q + 1 {
        let expected = format!("more than {} samples for {} dimensions together", p + q + 1, p + q);
        return Err(Error::argument("x, y", expected, n));
    }
    if !(options.alpha > 0.0 && options.alpha <= 1.0) {
        return Err(Error::argument("alpha", "more than 0, at most 1", options.alpha));
    }
    let terms: Vec<f64> = canonical_correlations(x, y)?.iter().map(|rho| -(1.0 - rho * rho).ln()).collect();
    if let Some(infinite) = terms.iter().find(|term| **term > 27.0) {
        let found = format!("1 - rho^2 = {:.0e}: they share infinitely much", (-infinite).exp());
        return Err(Error::argument("x, y", "variables that do not determine each other linearly", found));
    }
    let mut shared = 0.0;
    for i in 0..terms.len() {
        let statistic = (n as f64 - 1.5 - (p + q) as f64 / 2.0) * terms[i..].iter().sum::<f64>();
        let freedom = ((p - i) * (q - i)) as f64;
        let chance = ChiSquared::new(freedom).map_or(1.0, |chi| chi.sf(statistic.max(0.0)));
        if chance > options.alpha {
            break;
        }
        shared += terms[i] / 2.0;
    }
    Ok(shared)
}
