//! What does a probe with one hidden layer predict?

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use rand::Rng;

use super::{Known, shares, soften};
use crate::lbfgs::{Stop, minimise};
use crate::stats::{shuffled, stream};

/// One in this many samples is held back to decide when to stop.
const KEPT_BACK: usize = 5;
/// Training stops after this many steps without improvement on the held-back samples.
const PATIENCE: usize = 15;

/// Scores `[tanh(x W + b), x, 1] V`: a linear probe plus hidden units.
pub(super) struct Network {
    inputs: usize,
    hidden: usize,
    outputs: usize,
    weights: Vec<f64>,
}

impl Network {
    /// Fits by L-BFGS to four fifths of the samples, with ridge, until the rest are predicted no better.
    pub fn fit(x: ArrayView2<f64>, known: &Known, hidden: usize, ridge: f64, seed: u64) -> Self {
        let order = shuffled(&(0..x.nrows()).collect::<Vec<usize>>(), seed);
        let (watched, fitted) = order.split_at((x.nrows() / KEPT_BACK).max(1));
        let mut network = Self::start(x.ncols(), hidden, known, seed);
        let (ours, theirs) = (x.select(Axis(0), fitted), x.select(Axis(0), watched));
        let (known, unseen) = (known.select(fitted), known.select(watched));
        let mut best = (network.loss(&network.weights, theirs.view(), &unseen, 0.0, None), network.weights.clone());
        let mut waited = 0;
        minimise(
            network.weights.clone(),
            Stop { steps: 500, tolerance: 1e-6 },
            |point, gradient| network.loss(point, ours.view(), &known, ridge, Some(gradient)),
            |point| {
                let loss = network.loss(point, theirs.view(), &unseen, 0.0, None);
                waited += 1;
                if loss < best.0 {
                    (best, waited) = ((loss, point.to_vec()), 0);
                }
                waited < PATIENCE
            },
        );
        network.weights = best.1;
        network
    }

    /// Small random hidden weights; the initial outputs predict the targets without x.
    fn start(inputs: usize, hidden: usize, known: &Known, seed: u64) -> Self {
        let outputs = known.outputs();
        let mut rng = stream(seed, 1);
        let mut weights = vec![0.0; (inputs + 1) * hidden + (hidden + inputs + 1) * outputs];
        let (reach, out) = ((3.0 / (inputs + 1) as f64).sqrt(), (3.0 / hidden as f64).sqrt() * 0.1);
        let (first, last) = weights.split_at_mut((inputs + 1) * hidden);
        first.iter_mut().for_each(|weight| *weight = rng.random_range(-reach..reach));
        last[..hidden * outputs].iter_mut().for_each(|weight| *weight = rng.random_range(-out..out));
        let intercept = (hidden + inputs) * outputs;
        match known {
            Known::Labels { labels, classes } => {
                let shares = shares(labels, *classes);
                last[intercept..].iter_mut().zip(&shares).for_each(|(weight, share)| *weight = share.ln());
            }
            Known::Numbers(y) => {
                let mean = y.mean_axis(Axis(0)).unwrap_or_default();
                last[intercept..].iter_mut().zip(&mean).for_each(|(weight, mean)| *weight = *mean);
            }
        }
        Self { inputs, hidden, outputs, weights }
    }

    /// The matrices of the two layers; the last row of each belongs to the constant.
    fn layers(&self, weights: &[f64]) -> (Array2<f64>, Array2<f64>) {
        let (first, last) = weights.split_at((self.inputs + 1) * self.hidden);
        let shaped = |rows: usize, columns: usize, values: &[f64]| {
            Array2::from_shape_fn((rows, columns), |(row, column)| values[row * columns + column])
        };
        (shaped(self.inputs + 1, self.hidden, first), shaped(self.hidden + self.inputs + 1, self.outputs, last))
    }

    /// The hidden units, x and 1 side by side; and the scores.
    fn forward(&self, weights: &[f64], x: ArrayView2<f64>) -> (Array2<f64>, Array2<f64>) {
        let (first, last) = self.layers(weights);
        let hidden = (x.dot(&first.slice(s![..self.inputs, ..])) + first.row(self.inputs)).mapv(f64::tanh);
        let ones = Array2::ones((x.nrows(), 1));
        let parts = [hidden.view(), x.view(), ones.view()];
        let all = concatenate(Axis(1), &parts).unwrap_or_else(|_| hidden.clone());
        let scores = all.dot(&last);
        (all, scores)
    }

    /// Mean loss plus ridge, and its gradient.
    fn loss(
        &self,
        weights: &[f64],
        x: ArrayView2<f64>,
        known: &Known,
        ridge: f64,
        gradient: Option<&mut [f64]>,
    ) -> f64 {
        let n = x.nrows() as f64;
        let (all, mut residual) = self.forward(weights, x);
        let mut loss = 0.0;
        match known {
            Known::Labels { labels, .. } => {
                for (mut row, &label) in residual.rows_mut().into_iter().zip(labels) {
                    loss -= soften(row.as_slice_mut().unwrap_or_default(), label) / n;
                }
            }
            Known::Numbers(y) => {
                residual -= y;
                loss += 0.5 * residual.iter().map(|r| r * r).sum::<f64>() / n;
            }
        }
        let (first, last) = self.layers(weights);
        let penalised = |layer: &Array2<f64>| layer.slice(s![..layer.nrows() - 1, ..]).mapv(|w| w * w).sum();
        loss += 0.5 * ridge * (penalised(&first) + penalised(&last));
        let Some(gradient) = gradient else { return loss };
        let residual = residual / n;
        let mut of_last = all.t().dot(&residual);
        let hidden = all.slice(s![.., ..self.hidden]);
        let back = residual.dot(&last.slice(s![..self.hidden, ..]).t()) * &hidden.mapv(|a| 1.0 - a * a);
        let mut of_first = Array2::zeros(first.dim());
        of_first.slice_mut(s![..self.inputs, ..]).assign(&x.t().dot(&back));
        of_first.row_mut(self.inputs).assign(&back.sum_axis(Axis(0)));
        for (of, layer) in [(&mut of_first, first), (&mut of_last, last)] {
            let inner = layer.nrows() - 1;
            of.slice_mut(s![..inner, ..]).scaled_add(ridge, &layer.slice(s![..inner, ..]));
        }
        gradient.iter_mut().zip(of_first.iter().chain(&of_last)).for_each(|(into, value)| *into = *value);
        loss
    }

    /// `[sample, output]`
    pub fn scores(&self, x: ArrayView2<f64>) -> Array2<f64> {
        self.forward(&self.weights, x).1
    }
}
