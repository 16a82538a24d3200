//! Bootstrap intervals over prompts, with the same draws for every head and score.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// How often each prompt was drawn in each resample.
pub(super) struct Resamples {
    /// `[resample, prompt]`.
    counts: Array2<f64>,
}

impl Resamples {
    /// Draws as many prompts as there are, with replacement, `resamples` times.
    pub(super) fn draw(prompts: usize, resamples: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut counts = Array2::zeros((resamples, prompts));
        for mut row in counts.rows_mut() {
            (0..prompts).for_each(|_| row[rng.random_range(0..prompts)] += 1.0);
        }
        Self { counts }
    }

    /// The percentile interval of the mean of the values that are there; none where fewer than two are.
    pub(super) fn interval(&self, values: &Array1<f64>, confidence: f64) -> Option<(f64, f64)> {
        let columns = values.view().insert_axis(Axis(1));
        self.intervals(&columns, confidence).pop().flatten()
    }

    /// [`Resamples::interval`] of every column of `[prompt, column]`, by one product for all of them.
    pub(super) fn intervals(&self, values: &ArrayView2<'_, f64>, confidence: f64) -> Vec<Option<(f64, f64)>> {
        let there = values.mapv(|v| f64::from(v.is_finite()));
        self.ratios(&values.mapv(|v| if v.is_finite() { v } else { 0.0 }), &there, confidence)
    }

    /// The percentile interval of sum(above) / sum(below) over prompts; none where fewer than two prompts count.
    pub(super) fn ratio(&self, above: &Array1<f64>, below: &Array1<f64>, confidence: f64) -> Option<(f64, f64)> {
        let column = |values: &Array1<f64>| values.clone().insert_axis(Axis(1));
        self.ratios(&column(above), &column(below), confidence).pop().flatten()
    }

    fn ratios(&self, above: &Array2<f64>, below: &Array2<f64>, confidence: f64) -> Vec<Option<(f64, f64)>> {
        let (sums, weights) = (self.counts.dot(above), self.counts.dot(below));
        let column = |column: usize| {
            if below.column(column).iter().filter(|&&weight| weight > 0.0).count() < 2 {
                return None;
            }
            let ratios = sums.column(column).into_iter().zip(weights.column(column)).map(|(sum, weight)| sum / weight);
            let mut ratios: Vec<f64> = ratios.filter(|ratio| ratio.is_finite()).collect();
            let last = ratios.len().checked_sub(1)? as f64;
            let tail = (1.0 - confidence) / 2.0;
            let mut at = |p: f64| *ratios.select_nth_unstable_by((p * last).round() as usize, f64::total_cmp).1;
            Some((at(tail), at(1.0 - tail)))
        };
        (0..above.ncols()).into_par_iter().map(column).collect()
    }
}
