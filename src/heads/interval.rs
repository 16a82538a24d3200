//! Bootstrap intervals over prompts, with the same draws for every head and score.

use ndarray::{Array1, Array2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
        self.ratio(
            &values.mapv(|v| if v.is_finite() { v } else { 0.0 }),
            &values.mapv(|v| f64::from(v.is_finite())),
            confidence,
        )
    }

    /// The percentile interval of sum(above) / sum(below) over prompts; none where fewer than two prompts count.
    pub(super) fn ratio(&self, above: &Array1<f64>, below: &Array1<f64>, confidence: f64) -> Option<(f64, f64)> {
        if below.iter().filter(|&&weight| weight > 0.0).count() < 2 {
            return None;
        }
        let (above, below) = (self.counts.dot(above), self.counts.dot(below));
        let ratios = above.iter().zip(&below).map(|(above, below)| above / below);
        let mut ratios: Vec<f64> = ratios.filter(|ratio| ratio.is_finite()).collect();
        let last = ratios.len().checked_sub(1)? as f64;
        let tail = (1.0 - confidence) / 2.0;
        let mut at = |p: f64| *ratios.select_nth_unstable_by((p * last).round() as usize, f64::total_cmp).1;
        Some((at(tail), at(1.0 - tail)))
    }
}
