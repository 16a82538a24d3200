//! How are queries and keys rotated, and how do the frequencies stretch for long contexts?

use serde::{Deserialize, Serialize};

use super::config::ModelConfig;

/// Rotary positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rotary {
    /// Base of the geometric series of wavelengths.
    pub base: f64,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RotaryScaling,
    /// How many coordinates of a head are rotated, counted from the first; all by default.
    pub width: Option<usize>,
    /// Whether coordinate 2i is rotated with 2i + 1 (GPT-J) rather than i with i + width / 2.
    pub interleaved: bool,
}

impl Default for Rotary {
    fn default() -> Self {
        Self { base: 10_000.0, scaling: RotaryScaling::None, width: None, interleaved: false }
    }
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones kept, with a smooth transition between them.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Frequencies with wavelengths above `original_positions / low` are divided.
        low: f64,
        /// Frequencies with wavelengths below `original_positions / high` are kept.
        high: f64,
        /// The context length of the model's original training.
        original_positions: f64,
    },
    /// YaRN (Peng et al. 2023): frequencies that make fewer than `slow` turns in the original context are divided by `factor`,
    /// those that make more than `fast` are kept, with a linear transition between them.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Turns from which frequencies are kept.
        fast: f64,
        /// Turns up to which frequencies are divided.
        slow: f64,
        /// The context length of the model's original training.
        original_positions: f64,
        /// Factor of queries and keys.
        attention: f64,
        /// Whether the transition begins and ends at whole frequencies.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): each frequency is divided by a number of its own, which depends on whether the text (in a
    /// batch the longest one) is longer than the original context.
    Long {
        /// The divisors in texts up to the original context.
        short: Vec<f64>,
        /// The divisors in longer texts.
        long: Vec<f64>,
        /// The context length of the model's original training.
        original_positions: usize,
        /// Factor of queries and keys.
        attention: f64,
    },
    /// The base grows with the length of texts (in a batch the longest one) beyond the original context: "dynamic NTK".
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// The context length of the model's original training.
        original_positions: usize,
    },
}

impl ModelConfig {
    /// Whether what the model computes at a position of a text of this length depends on the length, even if later positions
    /// are hidden from it.
    pub(crate) fn depends_on_length(&self, positions: usize) -> bool {
        let grows = |rotary: Rotary| match rotary.scaling {
            RotaryScaling::Long { original_positions, .. } | RotaryScaling::Dynamic { original_positions, .. } => {
                positions > original_positions
            }
            RotaryScaling::None
            | RotaryScaling::Linear { .. }
            | RotaryScaling::Llama3 { .. }
            | RotaryScaling::Yarn { .. } => false,
        };
        (0..self.n_layers).filter_map(|layer| self.rotary(layer)).any(grows)
    }
}
