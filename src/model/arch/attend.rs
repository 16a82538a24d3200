//! What does the attention of a layer do to queries, keys and scores, apart from the products?

use super::config::{ModelConfig, Position, QkNorm};
use super::rotary::Rotary;

/// What the attention of a layer does to queries, keys and scores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attend {
    pub causal: bool,
    /// Whether keys are positions of an encoder-decoder's source.
    pub source: bool,
    pub scale: f64,
    pub norm: QkNorm,
    pub rotary: Option<Rotary>,
    pub bias: ScoreBias,
    pub cap: Option<f64>,
    pub window: Option<usize>,
    pub sinks: bool,
    /// Whether a learned vector per position is added to what queries and keys are projected from.
    pub positions: bool,
    /// Queries, keys and values are cut off at plus and minus this.
    pub clip: Option<f64>,
    /// How many query heads share a key/value head.
    pub group: usize,
}

/// What is added to the scores, by relative position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ScoreBias {
    None,
    Alibi,
    /// By the key's position, rounded to bfloat16.
    RoundedAlibi,
    Buckets {
        n: usize,
        max_distance: usize,
    },
}

impl Attend {
    /// Attention with nothing but a scale and, in a causal model, the causal mask.
    pub(crate) fn plain(causal: bool, scale: f64) -> Self {
        Self {
            causal,
            source: false,
            scale,
            norm: QkNorm::None,
            rotary: None,
            bias: ScoreBias::None,
            cap: None,
            window: None,
            sinks: false,
            positions: false,
            clip: None,
            group: 1,
        }
    }

    /// Whether the pattern of a head depends on its own queries and keys only, so that a head can be computed by itself: not
    /// where a norm spans all heads, or has weights for each.
    pub(crate) fn has_heads_apart(&self) -> bool {
        // No `..`: a new field must be put on one side or the other.
        let Self {
            causal: _,
            source: _,
            scale: _,
            norm,
            rotary: _,
            bias: _,
            cap: _,
            window: _,
            sinks: _,
            positions: _,
            clip: _,
            group: _,
        } = self;
        matches!(norm, QkNorm::None | QkNorm::Head)
    }

    /// Whether libtorch's fused kernel computes the attention: it takes queries, keys and values as they are after norms and
    /// rotation, a scale and a mask, but no bias, cap or sinks.
    pub(crate) fn is_fusable(&self) -> bool {
        let Self {
            causal: _,
            source: _,
            scale: _,
            norm: _,
            rotary: _,
            bias,
            cap,
            window: _,
            sinks,
            positions: _,
            clip: _,
            group: _,
        } = self;
        (*bias, *cap, *sinks) == (ScoreBias::None, None, false)
    }

    /// Cross-attention in an encoder-decoder: scores are scaled as elsewhere, and no positions enter.
    pub(super) fn across(config: &ModelConfig, layer: usize) -> Self {
        let Self { scale, group, .. } = Self::new(config, layer);
        Self { source: true, group, ..Self::plain(false, scale) }
    }

    pub(super) fn new(config: &ModelConfig, layer: usize) -> Self {
        let scale = config.attention_scale.unwrap_or_else(|| (config.d_head as f64).powf(-0.5));
        Self {
            causal: config.is_causal(layer),
            source: layer < config.encoder_layers(),
            scale: if config.scale_by_layer { scale / (layer + 1) as f64 } else { scale },
            norm: config.qk_norm,
            rotary: config.rotary(layer),
            bias: match config.position {
                Position::Alibi => ScoreBias::Alibi,
                Position::RoundedAlibi => ScoreBias::RoundedAlibi,
                Position::Buckets { n, max_distance } => ScoreBias::Buckets { n, max_distance },
                Position::None
                | Position::Learned
                | Position::Sinusoidal
                | Position::Shortformer
                | Position::Rotary(_) => ScoreBias::None,
            },
            cap: config.score_cap,
            window: config.layer(layer).window,
            sinks: config.sinks,
            positions: config.position == Position::Shortformer,
            clip: config.clip_qkv,
            group: config.n_heads / config.n_kv_heads,
        }
    }
}
