//! What do the heads of an existing model's layers have in common on natural text? Redundancy, and where they attend.

use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::passages::{Passages, Words};
use super::{Computed, Input, drawn, load, row, spread};
use crate::error::Result;
use crate::heads::{RedundancyOptions, Similarity, redundancy, similarity_matrix};
use crate::intervene::Metric;
use crate::model::{Model, ModelConfig};
use crate::table::Observation;

/// What do the heads of a layer have in common when an existing model reads natural text? A seed draws the passages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnText {
    /// A bundled name, a folder (also looked up in `HEADSCOPE_DATA`) or a Hugging Face Hub id.
    pub model: String,
    /// Keep the architecture and tokenizer but draw random weights from the seed: a control.
    pub random: bool,
    /// The passages.
    pub passages: Passages,
    /// What is asked.
    pub asked: AskedOnText,
}

/// A question of [`OnText`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedOnText {
    /// Do heads stand in for each other? See [`redundancy`]. A run is one *layer* on passages of its own: consecutive seeds
    /// go through the layers, in an order that spreads any first few over all depths, and begin again with other passages. An
    /// interval over runs covers this model's layers and texts like these; it does not cover other models. Heads are replaced
    /// by their means over twice as many other passages. An effect is the divergence (KL) of the predictions from those of the
    /// unchanged model, in nats.
    ///
    /// Rows: `redundancy` of the layer; `redundant`, 1 if it is above half and 0 otherwise; `joint_effect`, that of all heads of
    /// the layer together: where it is below .01, the first two are missing; `loss`, and `loss_share`, the loss over that of
    /// equal probabilities for all tokens. Rows that name the layer, or a head too, are those of [`redundancy`], also with the
    /// loss as the effect.
    Redundancy,
    /// Do heads of one layer, whose outputs are added, attend apart more than heads of neighbouring layers? A run is a draw of
    /// passages.
    ///
    /// Rows: `pattern_divergence`, the mean Jensen-Shannon divergence over pairs of heads of one layer with different keys, and
    /// over layers; `pattern_divergence_next`, that over pairs of heads in neighbouring layers; `pattern_gap`, the former minus
    /// the latter.
    Patterns,
}

impl OnText {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        let words = self.passages.read()?;
        let model = load(&self.model)?;
        let mut computed = Computed { read: self.inputs_with(&model)?, ..Computed::default() };
        for &seed in seeds {
            let other = self.random.then(|| drawn(&model, seed)).transpose()?;
            if let Some(other) = &other {
                computed.parameters.insert(seed, other.sha256()?);
            }
            let model = other.as_ref().unwrap_or(&model);
            computed.rows.extend(match self.asked {
                AskedOnText::Redundancy => self.redundancy(model, &words, seed)?,
                AskedOnText::Patterns => self.patterns(model, &words, seed)?,
            });
        }
        Ok(computed)
    }

    /// The checkpoint and the texts that are read from files, with their hashes.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        self.inputs_with(&load(&self.model)?)
    }

    fn inputs_with(&self, model: &Model) -> Result<Vec<Input>> {
        let mut all = vec![Input { name: self.model.clone(), sha256: model.sha256()? }];
        all.extend(self.passages.inputs()?);
        Ok(all)
    }

    fn redundancy(&self, model: &Model, words: &Words, seed: u64) -> Result<Vec<Observation>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tokens = self.passages.draw(words, model, self.passages.count, &mut rng)?;
        let reference = self.passages.draw(words, model, 2 * self.passages.count, &mut rng)?;
        let n_layers = model.config().n_layers;
        let layer = spread((seed % n_layers as u64) as usize, n_layers);
        let metrics = vec![Metric::Kl, Metric::Loss];
        let options =
            RedundancyOptions { layers: vec![layer], reference: Some(&reference), metrics, ..Default::default() };
        let found = redundancy(model, &tokens, &options)?.rows()?;
        let of_all = |metric: &str| found.iter().find(|row| row.metric == metric && row.keys.head.is_none());
        let before = |row: &Observation| row.baseline.unwrap_or(f64::NAN);
        let effect = of_all("kl").map_or(f64::NAN, |row| row.value - before(row));
        let loss = of_all("loss").map_or(f64::NAN, before);
        let by_kl = |row: &&Observation| row.metric == "redundancy" && row.keys.method.as_deref() == Some("kl");
        let index = found.iter().find(by_kl).map_or(f64::NAN, |row| row.value);
        let redundant = if index.is_nan() { index } else { f64::from(u8::from(index > 0.5)) };
        let share = loss / (model.config().vocab as f64).ln();
        let whole = [
            ("redundancy", index),
            ("redundant", redundant),
            ("joint_effect", effect),
            ("loss", loss),
            ("loss_share", share),
        ];
        let mut rows: Vec<Observation> = whole.map(|(metric, value)| row(seed, 0, metric, value)).to_vec();
        rows.extend(found.into_iter().map(|mut row| {
            (row.keys.seed, row.keys.step) = (Some(seed), Some(0));
            row
        }));
        Ok(rows)
    }

    fn patterns(&self, model: &Model, words: &Words, seed: u64) -> Result<Vec<Observation>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tokens = self.passages.draw(words, model, self.passages.count, &mut rng)?;
        let divergences = similarity_matrix(model, &tokens, Similarity::JensenShannon)?;
        let config = model.config();
        let within: Vec<f64> =
            (0..config.n_layers).map(|layer| mean_between(&divergences, config, layer, layer)).collect();
        let next: Vec<f64> =
            (1..config.n_layers).map(|layer| mean_between(&divergences, config, layer - 1, layer)).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (own, other) = (mean(&within), mean(&next));
        let whole = [("pattern_divergence", own), ("pattern_divergence_next", other), ("pattern_gap", own - other)];
        let mut rows: Vec<Observation> = whole.map(|(metric, value)| row(seed, 0, metric, value)).to_vec();
        rows.extend(within.iter().enumerate().map(|(layer, &value)| {
            let mut row = row(seed, 0, "pattern_divergence", value);
            row.keys.layer = u32::try_from(layer).ok();
            row
        }));
        Ok(rows)
    }
}

/// The mean over pairs of heads, one of each layer. Within a layer, heads that share their keys are no pair: what they have in
/// common is not learned. NaN if there is no pair.
fn mean_between(divergences: &Array2<f64>, config: &ModelConfig, first: usize, second: usize) -> f64 {
    let heads = config.n_heads;
    let pairs = (0..heads).flat_map(|a| (0..heads).map(move |b| (a, b)));
    let apart = |(a, b): &(usize, usize)| first != second || config.kv_head(*a) < config.kv_head(*b);
    let values: Vec<f64> =
        pairs.filter(apart).map(|(a, b)| divergences[[first * heads + a, second * heads + b]]).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers of four heads, of which two each share their keys: such a pair does not count within a layer, all pairs count
    /// between layers.
    #[test]
    fn heads_that_share_keys_are_no_pair_within_a_layer() {
        let config = ModelConfig { n_layers: 2, n_heads: 4, n_kv_heads: 2, ..ModelConfig::default() };
        let group = |head: usize| head % 4 / 2;
        let divergence = |(a, b): (usize, usize)| match (a / 4 == b / 4, group(a) == group(b)) {
            (true, true) => 0.0,
            (true, false) => 1.0,
            (false, true) => 0.2,
            (false, false) => 0.4,
        };
        let all = Array2::from_shape_fn((8, 8), divergence);
        assert_eq!([0, 1].map(|layer| mean_between(&all, &config, layer, layer)), [1.0, 1.0]);
        assert!((mean_between(&all, &config, 0, 1) - 0.3).abs() < 1e-12);
        let shared = ModelConfig { n_kv_heads: 1, ..config };
        assert!(mean_between(&all, &shared, 0, 0).is_nan(), "no pair is left");
    }
}
