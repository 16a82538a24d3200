//! What distinguishes one architecture from another, as data.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Everything the forward pass needs to know about an architecture.
///
/// GPT-2, Llama and BERT differ only in the values of these fields; there is no second copy of the code.
///
/// ```
/// use headscope::model::{ModelConfig, NormPlace};
/// let config = ModelConfig { n_layers: 2, ..ModelConfig::default() };
/// assert!(config.validate().is_ok());
/// assert_eq!(config.norm_place, NormPlace::Pre);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The family's name, such as `gpt2`; for messages and provenance only.
    pub family: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads per layer.
    pub n_heads: usize,
    /// Key/value heads per layer; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Width of the MLP's hidden layer; 0 for an attention-only model.
    pub d_mlp: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// The longest sequence the model can read.
    pub n_positions: usize,
    /// Number of token types (BERT's segments); 0 where there are none.
    pub n_token_types: usize,
    /// Whether a position sees only itself and what stands before it.
    pub causal: bool,
    /// Kind of normalisation.
    pub norm: NormKind,
    /// Added to the variance before the square root.
    pub norm_eps: f64,
    /// Whether norms stand before (GPT-2, Llama) or after (BERT) each sub-layer.
    pub norm_place: NormPlace,
    /// Whether the sum of the embeddings is normalised before the first block (BERT).
    pub embed_norm: bool,
    /// How positions enter.
    pub position: Position,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether the MLP multiplies the activation by a second projection (Llama).
    pub gated_mlp: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub attn_out_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// How the residual stream becomes logits.
    pub unembed: Unembed,
    /// Whether the unembedding is the token embedding transposed.
    pub tied_unembed: bool,
}

impl Default for ModelConfig {
    /// A small causal pre-norm model in GPT-2's style.
    fn default() -> Self {
        Self {
            family: "toy".to_owned(),
            n_layers: 1,
            d_model: 32,
            n_heads: 4,
            n_kv_heads: 4,
            d_head: 8,
            d_mlp: 64,
            vocab: 50,
            n_positions: 64,
            n_token_types: 0,
            causal: true,
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            norm_place: NormPlace::Pre,
            embed_norm: false,
            position: Position::Learned,
            activation: Activation::GeluTanh,
            gated_mlp: false,
            qkv_bias: true,
            attn_out_bias: true,
            mlp_bias: true,
            unembed: Unembed::Linear { bias: false },
            tied_unembed: false,
        }
    }
}

/// Kind of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// (x - mean) / sqrt(var + eps) * weight + bias.
    Layer,
    /// x / sqrt(mean(x^2) + eps) * weight.
    Rms,
    /// No normalisation anywhere: a linear residual stream, for toy models.
    None,
}

/// Where the norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// `x + f(norm(x))`, and one norm before the unembedding.
    Pre,
    /// `norm(x + f(x))`.
    Post,
}

/// How positions enter the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// No positions at all.
    None,
    /// A learned vector per position, added to the embedding.
    Learned,
    /// Queries and keys are rotated by an angle proportional to the position (Su et al. 2021).
    Rotary {
        /// Base of the geometric series of wave lengths.
        base: f64,
        /// How the frequencies are stretched for long contexts.
        scaling: RotaryScaling,
    },
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
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wave lengths above `original_positions / low` are divided.
        low: f64,
        /// Wave lengths below `original_positions / high` are kept.
        high: f64,
        /// The context length that the model was trained with first.
        original_positions: f64,
    },
}

/// The MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x Phi(x), exact.
    Gelu,
    /// x Phi(x) in its tanh approximation (`gelu_new`).
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x sigmoid(x).
    Silu,
}

/// How the residual stream becomes logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unembed {
    /// The model ends in the residual stream (an encoder for embeddings).
    None,
    /// One matrix.
    Linear {
        /// Whether a bias is added.
        bias: bool,
    },
    /// BERT's masked-language-model head: dense, activation, norm, matrix with bias.
    MaskedLm,
}

impl NormKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "LayerNorm",
            Self::Rms => "RMSNorm",
            Self::None => "none",
        }
    }
}

impl NormPlace {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pre => "before each sub-layer",
            Self::Post => "after each sub-layer",
        }
    }
}

impl Position {
    /// In words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Learned => "learned",
            Self::Rotary { .. } => "rotary",
        }
    }
}

impl ModelConfig {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first field that does not.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("n_layers", self.n_layers),
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("d_head", self.d_head),
            ("vocab", self.vocab),
            ("n_positions", self.n_positions),
        ];
        // Bounds far above any model, so that products of two of them never overflow.
        for (name, value) in positive.into_iter().chain([("d_mlp", self.d_mlp), ("n_token_types", self.n_token_types)])
        {
            if value > 1 << 28 {
                return Err(Error::argument(name, "at most 268435456", value));
            }
        }
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::argument(name, "at least 1", 0));
        }
        if self.n_layers > 10_000 {
            return Err(Error::argument("n_layers", "at most 10000", self.n_layers));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::argument(
                "n_kv_heads",
                format!("a divisor of n_heads = {}", self.n_heads),
                self.n_kv_heads,
            ));
        }
        // It keeps a division from failing; of the size of what is divided, the norm would be none.
        if !(0.0..1.0).contains(&self.norm_eps) {
            return Err(Error::argument("norm_eps", "a number from 0 to below 1", self.norm_eps));
        }
        if let Position::Rotary { base, scaling } = &self.position {
            if !self.d_head.is_multiple_of(2) {
                return Err(Error::argument("d_head", "an even number with rotary positions", self.d_head));
            }
            if !(base.is_finite() && *base > 0.0) {
                return Err(Error::argument("rope_theta", "a finite number above 0", base));
            }
            scaling.validate()?;
        }
        Ok(())
    }

    /// Whether the model has an MLP in each block.
    pub fn has_mlp(&self) -> bool {
        self.d_mlp > 0
    }

    /// Whether the model has logits.
    pub fn has_logits(&self) -> bool {
        self.unembed != Unembed::None
    }

    /// The key/value head that serves query head `head`.
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.n_heads / self.n_kv_heads)
    }
}

impl RotaryScaling {
    fn validate(&self) -> Result<()> {
        let numbers: Vec<f64> = match *self {
            Self::None => vec![],
            Self::Linear { factor } => vec![factor],
            Self::Llama3 { factor, low, high, original_positions } => {
                if low >= high {
                    return Err(Error::argument(
                        "low_freq_factor",
                        format!("less than high_freq_factor = {high}"),
                        low,
                    ));
                }
                vec![factor, low, high, original_positions]
            }
        };
        match numbers.iter().find(|n| !(n.is_finite() && **n > 0.0)) {
            Some(bad) => Err(Error::argument("rope_scaling", "finite numbers above 0", bad)),
            None => Ok(()),
        }
    }
}
