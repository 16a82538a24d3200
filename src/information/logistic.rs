//! Softmax regression with ridge.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use ndarray_linalg::{FactorizeC, SolveC, UPLO};

use crate::error::{Error, Result};

/// Log-probabilities of classes as a linear function of x.
pub(super) struct Logistic {
    weights: Array2<f64>,
}

impl Logistic {
    /// Minimises the mean cross-entropy plus `ridge / 2` times the sum of squared weights, the intercept's left out, by
    /// steps on Böhning's bound of the Hessian, `X^T X / 2`, with Nesterov's momentum: the bound is factored once, and no
    /// step can overshoot.
    ///
    /// # Shapes
    /// `x`: \[sample, feature\], the last feature being 1; `labels` below `classes`.
    pub fn fit(x: ArrayView2<f64>, labels: &[usize], classes: usize, ridge: f64) -> Result<Self> {
        let (n, d) = x.dim();
        let mut bound = x.t().dot(&x) / (2.0 * n as f64);
        let penalty = Array1::from_shape_fn(d, |i| if i + 1 == d { 1e-9 } else { ridge.max(1e-9) });
        bound.diag_mut().zip_mut_with(&penalty, |value, penalty| *value += penalty);
        let failed = |reason| Error::argument("x", "columns that a probe can be fitted to", reason);
        let bound = bound.factorizec(UPLO::Lower).map_err(failed)?;
        let mut weights = Array2::<f64>::zeros((d, classes));
        let mut ahead = weights.clone();
        let mut momentum: f64 = 1.0;
        for _ in 0..500 {
            let mut residual = log_softmax(x.dot(&ahead)).mapv(f64::exp);
            labels.iter().enumerate().for_each(|(row, &label)| residual[[row, label]] -= 1.0);
            let gradient = x.t().dot(&residual) / n as f64 + &ahead * &penalty.view().insert_axis(Axis(1));
            let mut next = ahead.clone();
            for (class, mut column) in next.columns_mut().into_iter().enumerate() {
                column -= &bound.solvec(&gradient.column(class).to_owned()).map_err(failed)?;
            }
            let step = &next - &weights;
            if step.iter().all(|value| value.abs() < 1e-7) {
                return Ok(Self { weights: next });
            }
            // Momentum that points uphill is dropped (O'Donoghue & Candès 2015).
            let uphill = (&gradient * &step).sum() > 0.0;
            let after = if uphill { 1.0 } else { (1.0 + (1.0 + 4.0 * momentum * momentum).sqrt()) / 2.0 };
            let share = if uphill { 0.0 } else { (momentum - 1.0) / after };
            ahead = &next + step * share;
            (weights, momentum) = (next, after);
        }
        Ok(Self { weights })
    }

    /// Log-probabilities \[sample, class\].
    pub fn log_probabilities(&self, x: ArrayView2<f64>) -> Array2<f64> {
        log_softmax(x.dot(&self.weights))
    }
}

fn log_softmax(mut scores: Array2<f64>) -> Array2<f64> {
    for mut row in scores.rows_mut() {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = row.iter().map(|score| (score - most).exp()).sum::<f64>();
        let all = most + sum.ln();
        row.mapv_inplace(|score| score - all);
    }
    scores
}
