//! What does a linear probe predict? Softmax regression and least squares, both with ridge.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use ndarray_linalg::{Eigh, UPLO};

use super::Known;
use crate::error::{Error, Result};
use crate::lbfgs::{Stop, minimise};

/// Scores that are linear in standardised features: log-probabilities up to a constant, or predicted numbers.
pub(super) struct Linear {
    /// `[feature, output]`
    weights: Array2<f64>,
    intercept: Array1<f64>,
}

/// Standardised features rotated to their principal axes, where they are uncorrelated; constant ones are left out.
struct Turned {
    /// `[feature, axis]`
    axes: Array2<f64>,
    /// Variance along each axis.
    variances: Array1<f64>,
    /// `[sample, axis]`
    rows: Array2<f64>,
}

impl Turned {
    fn new(x: ArrayView2<f64>) -> Result<Self> {
        let failed = |reason| Error::argument("x", "columns that a probe can be fitted to", reason);
        let gram = x.t().dot(&x) / x.nrows() as f64;
        let (variances, axes) = gram.eigh(UPLO::Lower).map_err(failed)?;
        let most = variances.iter().copied().fold(0.0, f64::max);
        let kept: Vec<usize> = (0..variances.len()).filter(|&i| variances[i] > 1e-10 * most).collect();
        let axes = axes.select(Axis(1), &kept);
        let rows = x.dot(&axes);
        Ok(Self { axes, variances: variances.select(Axis(0), &kept), rows })
    }
}

impl Linear {
    /// Minimises the mean loss plus `ridge / 2` times the sum of squared weights, without the intercept. `start` affects only
    /// the time to the optimum, not the optimum itself.
    ///
    /// # Shapes
    /// `x`: `[sample, feature]`, with mean 0.
    pub fn fit(x: ArrayView2<f64>, known: &Known, ridge: f64, start: Option<&Self>) -> Result<Self> {
        let turned = Turned::new(x)?;
        match known {
            Known::Labels { labels, classes } => Ok(softmax_regression(&turned, labels, *classes, ridge, start)),
            Known::Numbers(y) => {
                let mean = y.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(y.ncols()));
                let mut weights = turned.rows.t().dot(&(y - &mean)) / x.nrows() as f64;
                weights /= &(&turned.variances + ridge).insert_axis(Axis(1));
                Ok(Self { weights: turned.axes.dot(&weights), intercept: mean })
            }
        }
    }

    /// `[sample, output]`
    pub fn scores(&self, x: ArrayView2<f64>) -> Array2<f64> {
        x.dot(&self.weights) + &self.intercept
    }
}

/// Softmax regression by L-BFGS. For each principal axis and class, the curvature is known if x tells nothing: `pi (1 - pi)
/// variance + ridge`. Divided by its root, steps of length 1 are about right from the start.
fn softmax_regression(x: &Turned, labels: &[usize], classes: usize, ridge: f64, start: Option<&Linear>) -> Linear {
    let (n, d) = x.rows.dim();
    let shares = super::shares(labels, classes);
    let curvature = Array2::from_shape_fn((d + 1, classes), |(axis, class)| {
        let own = shares[class] * (1.0 - shares[class]);
        if axis == d { own } else { own * x.variances[axis] + ridge }
    });
    let root = curvature.mapv(f64::sqrt);
    let mut weights = Array2::zeros((d + 1, classes));
    match start {
        Some(start) => {
            weights.slice_mut(ndarray::s![..d, ..]).assign(&x.axes.t().dot(&start.weights));
            weights.row_mut(d).assign(&start.intercept);
        }
        None => weights.row_mut(d).assign(&shares.mapv(f64::ln)),
    }
    let start: Vec<f64> = (&weights * &root).into_iter().collect();
    let unscaled = |point: &[f64]| Array2::from_shape_fn((d + 1, classes), |(i, c)| point[i * classes + c]) / &root;
    let loss = |point: &[f64], gradient: &mut [f64]| {
        let weights = unscaled(point);
        let slopes = weights.slice(ndarray::s![..d, ..]);
        let mut residual = x.rows.dot(&slopes) + weights.row(d);
        let mut loss = 0.5 * ridge * slopes.iter().map(|w| w * w).sum::<f64>();
        for (mut row, &label) in residual.rows_mut().into_iter().zip(labels) {
            loss -= super::soften(row.as_slice_mut().unwrap_or_default(), label) / n as f64;
        }
        let slope = x.rows.t().dot(&residual) / n as f64 + &(&slopes * ridge);
        let intercept = residual.sum_axis(Axis(0)) / n as f64;
        let all = slope.iter().chain(&intercept).zip(&root);
        gradient.iter_mut().zip(all).for_each(|(into, (value, root))| *into = value / root);
        loss
    };
    let end = unscaled(&minimise(start, Stop { steps: 500, tolerance: 1e-6 }, loss, |_| true));
    Linear { weights: x.axes.dot(&end.slice(ndarray::s![..d, ..])), intercept: end.row(d).to_owned() }
}
