//! Which directions does a linear head of a given width keep?

use ndarray::{Array1, Array2, s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use super::row;
use crate::circuits::{Subspace, random_frame};
use crate::error::{Error, Result};
use crate::table::Observation;

/// Does a linear head of width k keep exactly the k directions that matter most to the loss?
///
/// The input x is white noise of `d_model` dimensions and the target is y = x B. The head learns x W_V W_O, with W_V
/// `[d_model, k]` and W_O `[k, d_model]`, by gradient descent on the mean squared error |B - W_V W_O|^2. The singular
/// values of B decrease by a factor `decay` from each to the next. The optimum is the rank-k regression (Eckart & Young
/// 1936), whose error is the sum of the squared singular values after the k-th.
///
/// Rows, as fractions of |B|^2: `optimum` and `loss` (the error after the last step), and their difference `gap`; also
/// `kept_overlap`, the overlap of the column space of W_V with the first k directions of B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regression {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the head.
    pub width: usize,
    /// Ratio of each singular value to the previous one.
    pub decay: f64,
    /// Number of gradient descent steps.
    pub steps: usize,
    /// Step size, in units of 1 over the squared largest singular value.
    pub learning_rate: f64,
}

impl Regression {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Vec<Observation>> {
        let sizes = self.width >= 1 && self.width < self.d_model && self.d_model <= 1000;
        let rates = self.decay > 0.0 && self.decay <= 1.0 && self.learning_rate > 0.0 && self.learning_rate < 1.0;
        if !(sizes && rates) {
            let found = format!("{self:?}");
            let expected = "1 <= width < d_model <= 1000, decay in (0, 1] and a learning rate in (0, 1)";
            return Err(Error::argument("regression", expected, found));
        }
        Ok(seeds.iter().map(|seed| self.rows(*seed)).collect::<Result<Vec<_>>>()?.concat())
    }

    fn rows(&self, seed: u64) -> Result<Vec<Observation>> {
        let (d, k) = (self.d_model, self.width);
        let (left, right) = (random_frame(d, d, seed)?, random_frame(d, d, seed ^ 1 << 63)?);
        let sigma: Vec<f64> = (0..d).map(|i| self.decay.powi(i as i32)).collect();
        let b = (&left * &Array1::from(sigma.clone())).dot(&right.t());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut small = |shape| Array2::from_shape_simple_fn(shape, || rng.sample::<f64, _>(StandardNormal) * START);
        let (mut w_v, mut w_o) = (small((d, k)), small((k, d)));
        for _ in 0..self.steps {
            let error = w_v.dot(&w_o) - &b;
            let (by_v, by_o) = (error.dot(&w_o.t()), w_v.t().dot(&error));
            w_v.scaled_add(-self.learning_rate, &by_v);
            w_o.scaled_add(-self.learning_rate, &by_o);
        }
        let all: f64 = sigma.iter().map(|sigma| sigma * sigma).sum();
        let loss = (w_v.dot(&w_o) - &b).mapv(|error| error * error).sum() / all;
        let optimum = sigma[k..].iter().map(|sigma| sigma * sigma).sum::<f64>() / all;
        let best = Subspace::span(&left.slice(s![.., ..k]))?;
        let kept = Subspace::span(&w_v.view())?.overlap(&best)?;
        let found = [("optimum", optimum), ("loss", loss), ("gap", loss - optimum), ("kept_overlap", kept)];
        Ok(found.into_iter().map(|(metric, value)| row(seed, self.steps, metric, value)).collect())
    }
}

/// Standard deviation of the initial weights.
const START: f64 = 0.01;
