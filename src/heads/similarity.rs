//! How alike are two heads? Measures of what they attend to and what they write.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use ndarray_linalg::{QR, SVD};

use crate::error::{Error, Result};

/// Variation below this fraction of the size counts as rounding.
pub(crate) const DEAD: f64 = 1e-6;

/// How far apart are two distributions? Their Jensen-Shannon divergence in nats, from 0 (equal) to ln 2 (disjoint).
///
/// `H((p + q) / 2) - (H(p) + H(q)) / 2` with the entropy `H(p) = -sum p ln p` (Lin 1991).
///
/// # Errors
/// If the lengths differ, or one is not a distribution.
///
/// ```
/// use headscope::heads::jensen_shannon;
/// use ndarray::array;
/// let apart = jensen_shannon(array![1.0, 0.0].view(), array![0.0, 1.0].view())?;
/// assert!((apart - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn jensen_shannon(p: ArrayView1<f64>, q: ArrayView1<f64>) -> Result<f64> {
    if p.len() != q.len() {
        let expected = format!("[key = {}]", p.len());
        return Err(Error::Shape { at: "q".into(), expected, found: vec![q.len() as i64] });
    }
    distribution("p", p)?;
    distribution("q", q)?;
    let h = |x: f64| if x > 0.0 { -x * x.ln() } else { 0.0 };
    let gap = |(&p, &q): (&f64, &f64)| h((p + q) / 2.0) - (h(p) + h(q)) / 2.0;
    Ok(p.iter().zip(q).map(gap).sum::<f64>().clamp(0.0, 2f64.ln()))
}

fn distribution(name: &'static str, weights: ArrayView1<f64>) -> Result<()> {
    let sum: f64 = weights.sum();
    let found = || format!("weights that sum to {sum}, the least {}", weights.iter().copied().fold(f64::NAN, f64::min));
    if weights.iter().all(|&weight| weight >= 0.0) && (sum - 1.0).abs() < 1e-4 {
        Ok(())
    } else {
        Err(Error::argument(name, "weights of at least 0 that sum to 1", found()))
    }
}

/// Do two representations of the same samples have the same shape? Linear centred kernel alignment, from 0 to 1.
///
/// `|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)` with centred columns (Kornblith et al. 2019). Invariant under rotation, scale
/// and shift of either representation, but not under other linear maps. `None` if one of them is constant over the
/// samples: a dead head. With few samples relative to the dimensions, even unrelated representations look alike.
///
/// # Shapes
/// `x` `[sample, d]`, `y` `[sample, e]`.
///
/// # Errors
/// If the numbers of samples differ, there are fewer than two, or a value is not finite.
pub fn linear_cka(x: ArrayView2<f64>, y: ArrayView2<f64>) -> Result<Option<f64>> {
    same_samples(x, y, 2)?;
    let (Some(x), Some(y)) = (centred(x)?, centred(y)?) else { return Ok(None) };
    let square = |a: &Array2<f64>, b: &Array2<f64>| a.t().dot(b).iter().map(|v| v * v).sum::<f64>();
    Ok(Some((square(&y, &x) / (square(&x, &x) * square(&y, &y)).sqrt()).min(1.0)))
}

/// Which directions do two representations of the same samples share? Their canonical correlations, from 0 to 1,
/// largest first.
///
/// The singular values of `Q_x^T Q_y`, where each Q is an orthonormal basis of the centred columns (Bjorck & Golub
/// 1973); as many as the smaller of the two ranks. Invariant under invertible linear maps of either representation.
/// `None` if one of them is constant over the samples.
///
/// # Shapes
/// `x` `[sample, d]`, `y` `[sample, e]`, with more than `d + e` samples: with fewer, everything correlates.
///
/// # Errors
/// If the numbers of samples differ or are too small, or a value is not finite.
pub fn canonical_correlations(x: ArrayView2<f64>, y: ArrayView2<f64>) -> Result<Option<Vec<f64>>> {
    same_samples(x, y, x.ncols() + y.ncols() + 1)?;
    let (Some(x), Some(y)) = (basis(x)?, basis(y)?) else { return Ok(None) };
    correlations(&x, &y).map(Some)
}

/// The canonical correlations between the spans of two orthonormal bases.
pub(super) fn correlations(x: &Array2<f64>, y: &Array2<f64>) -> Result<Vec<f64>> {
    let (_, values, _) = x.t().dot(y).svd(false, false).map_err(failed)?;
    Ok(values.iter().map(|value| value.clamp(0.0, 1.0)).collect())
}

/// An orthonormal basis of the centred columns, `[sample, rank]`; `None` if they are constant.
pub(super) fn basis(x: ArrayView2<f64>) -> Result<Option<Array2<f64>>> {
    let Some(x) = centred(x)? else { return Ok(None) };
    let (q, r) = x.qr().map_err(failed)?;
    let (u, values, _) = r.svd(true, false).map_err(failed)?;
    let u = u.ok_or_else(|| Error::argument("x", "a matrix with singular vectors", "none"))?;
    let rank = values.iter().filter(|value| **value > DEAD * values[0]).count();
    Ok(Some(q.dot(&u.slice(s![.., ..rank]))))
}

/// The columns minus their means; `None` if they are constant.
fn centred(x: ArrayView2<f64>) -> Result<Option<Array2<f64>>> {
    if let Some((index, found)) = x.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(Error::NotFinite { at: "samples".into(), index, found: *found });
    }
    let Some(mean) = x.mean_axis(Axis(0)) else { return Ok(None) };
    let centred = &x - &mean;
    let size = |x: ArrayView2<f64>| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    Ok((size(centred.view()) > DEAD * size(x)).then_some(centred))
}

fn same_samples(x: ArrayView2<f64>, y: ArrayView2<f64>, least: usize) -> Result<()> {
    if x.nrows() != y.nrows() || x.nrows() < least || x.ncols() == 0 || y.ncols() == 0 {
        let expected = format!("as many samples of each, at least {least}, of one dimension or more");
        return Err(Error::argument("x, y", expected, format!("{:?} and {:?}", x.shape(), y.shape())));
    }
    Ok(())
}

fn failed(source: ndarray_linalg::error::LinalgError) -> Error {
    Error::argument("samples", "a matrix that can be decomposed", source)
}
