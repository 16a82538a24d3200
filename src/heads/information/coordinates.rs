//! How does a head's activation become samples? Its principal coordinates, scaled to unit power, plus noise.

use ndarray::{Array2, ArrayView2, Axis, s};
use ndarray_linalg::{Eigh, UPLO};
use rand::Rng;
use rand_distr::StandardNormal;
use tch::{Kind, Tensor};

use super::Source;
use super::places::{rows, rows_of};
use crate::error::{Error, Result};
use crate::heads::DEAD;
use crate::stats::stream;

/// The principal coordinates of a source, strongest first; none if it is the same at every place.
pub(super) struct Coordinates {
    /// `[place, axis]`
    rows: Array2<f64>,
    /// Gives each source its own noise.
    number: usize,
}

impl Coordinates {
    pub fn new(rows: ArrayView2<f64>, number: usize) -> Result<Self> {
        let mean = rows.mean_axis(Axis(0)).unwrap_or_default();
        let centred = &rows - &mean;
        let (n, d) = rows.dim();
        let power = |rows: &ArrayView2<f64>| rows.iter().map(|value| value * value).sum::<f64>();
        let none = Self { rows: Array2::zeros((n, 0)), number };
        if power(&centred.view()) <= DEAD * DEAD * power(&rows) {
            return Ok(none);
        }
        let failed = Error::linear_algebra("turning a source to its principal axes");
        let (variances, axes) = (centred.t().dot(&centred) / n as f64).eigh(UPLO::Lower).map_err(failed)?;
        let most = variances.iter().copied().fold(0.0, f64::max);
        let kept: Vec<usize> = (0..d).rev().filter(|&axis| variances[axis] > 1e-12 * most).collect();
        Ok(Self { rows: centred.dot(&axes.select(Axis(1), &kept)), number })
    }

    /// The number of axes along which the source varies.
    pub fn rank(&self) -> usize {
        self.rows.ncols()
    }

    /// The first `k` coordinates at a mean power of 1 per dimension, plus Gaussian noise of standard deviation `sigma`.
    pub fn leading(&self, k: usize, sigma: f64, seed: u64) -> Array2<f64> {
        let mut rows = self.rows.slice(s![.., ..k]).to_owned();
        let power = rows.iter().map(|value| value * value).sum::<f64>() / rows.len().max(1) as f64;
        rows /= power.sqrt();
        if sigma > 0.0 {
            let mut rng = stream(seed, self.number + 1);
            rows.mapv_inplace(|value| value + sigma * rng.sample::<f64, _>(StandardNormal));
        }
        rows
    }
}

/// `capacity = k / 2 ln(1 + 1 / sigma^2)`: the most information, in nats, that k dimensions of mean power 1 can carry
/// about anything with noise sigma. Infinite without noise.
pub(super) fn capacity(k: usize, sigma: f64) -> f64 {
    k as f64 / 2.0 * (1.0 / (sigma * sigma)).ln_1p()
}

/// One head's source, given the model's activations at the places. `w_o` are the output matrices of the layer.
pub(super) fn of_head(tensor: &Tensor, source: Source, head: usize, w_o: &Tensor) -> Result<Array2<f64>> {
    let values = rows_of(tensor, head)?;
    if source != Source::O {
        return Ok(values);
    }
    // |z W_O|^2 = z (W_O W_O^T) z^T, so z times a square root of that matrix preserves all distances of z W_O.
    let w = w_o.get(head as i64).to_kind(Kind::Double);
    let gram = rows(&w.f_matmul(&w.tr()).map_err(Error::torch("what a head writes"))?)?;
    let (squares, axes) = gram.eigh(UPLO::Lower).map_err(Error::linear_algebra("a root of W_O W_O^T"))?;
    Ok(values.dot(&(axes * &squares.mapv(|square| square.max(0.0).sqrt()))))
}
