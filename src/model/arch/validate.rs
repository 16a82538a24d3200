//! Do the numbers of a configuration fit together?

use super::config::{EmbedProjection, LayerRotary, ModelConfig, NormPlace, Parallel, Position};
use super::experts::{Experts, SharedExpert};
use super::rotary::{Rotary, RotaryScaling};
use crate::error::{Error, Result};

/// Fails unless a field holds what it may.
pub(super) fn check(name: &'static str, holds: bool, expected: impl Into<String>, found: impl ToString) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(name, expected, found)) }
}

impl ModelConfig {
    /// Checks that the numbers fit together.
    ///
    /// ```
    /// use headscope::model::ModelConfig;
    /// assert!(ModelConfig::default().validate().is_ok());
    /// assert!(ModelConfig { n_heads: 4, n_kv_heads: 3, ..ModelConfig::default() }.validate().is_err());
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first field that does not fit.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("n_layers", self.n_layers, 1),
            ("d_model", self.d_model, 1),
            ("n_heads", self.n_heads, 1),
            ("n_kv_heads", self.n_kv_heads, 1),
            ("d_head", self.d_head, 1),
            ("vocab", self.vocab, 1),
            ("n_positions", self.n_positions, 1),
            ("d_mlp", self.d_mlp, 0),
            ("n_token_types", self.n_token_types, 0),
        ];
        for (name, size, least) in sizes {
            check(name, size >= least, "at least 1", size)?;
            // Far above any model, so that products of two sizes never overflow.
            check(name, size <= 1 << 28, "at most 268435456", size)?;
        }
        check("n_layers", self.n_layers <= 10_000, "at most 10000", self.n_layers)?;
        let divides = self.n_heads.is_multiple_of(self.n_kv_heads);
        check("n_kv_heads", divides, format!("a divisor of n_heads = {}", self.n_heads), self.n_kv_heads)?;
        // It guards a division; as large as what it is added to, it would undo the normalisation.
        check("norm_eps", (0.0..1.0).contains(&self.norm_eps), "a number from 0 to below 1", self.norm_eps)?;
        let shared = (1..=self.n_layers).contains(&self.blocks());
        check("n_blocks", shared, format!("at most n_layers = {}", self.n_layers), self.n_blocks)?;
        let cycle = self.block_cycle;
        let whole = cycle > 0 && self.n_layers.is_multiple_of(cycle) && self.blocks().is_multiple_of(cycle);
        let expected = format!("a divisor of n_layers = {} and of the {} blocks", self.n_layers, self.blocks());
        check("block_cycle", whole, expected, cycle)?;
        let narrow = matches!(self.embed_projection, EmbedProjection::Tokens(0) | EmbedProjection::Sum(0));
        check("embed_projection", !narrow, "a width of at least 1", 0)?;
        self.validate_encoder()?;
        self.validate_factors()?;
        self.validate_attention()?;
        self.validate_sublayers()
    }

    fn validate_factors(&self) -> Result<()> {
        let factors = [
            ("embed_scale", self.embed_scale),
            ("residual_scale", self.residual_scale),
            ("logit_scale", self.logit_scale),
            ("attention_scale", self.attention_scale.unwrap_or(1.0)),
        ];
        for (name, factor) in factors {
            check(name, factor.is_finite() && factor != 0.0, "a finite number other than 0", factor)?;
        }
        let caps = [
            ("logit_cap", self.logit_cap),
            ("score_cap", self.score_cap),
            ("clip_qkv", self.clip_qkv),
            ("gate_limit", self.gate_limit),
        ];
        for (name, cap) in caps {
            let cap = cap.unwrap_or(1.0);
            check(name, cap.is_finite() && cap > 0.0, "a finite number above 0", cap)?;
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<()> {
        if let Position::Buckets { n, max_distance } = self.position {
            let exact = if self.causal { n / 2 } else { n / 4 };
            let holds = (4..=1 << 16).contains(&n) && max_distance > exact;
            let expected = "4 to 65536 buckets, and a largest distance beyond those with a bucket of their own";
            check("position", holds, expected, format!("{n} buckets up to {max_distance}"))?;
        }
        if let Position::Rotary(rotary) = &self.position {
            rotary.validate(self.d_head)?;
        }
        let counts = self.uncounted.is_none() || (self.position == Position::Learned && !self.causal);
        check("uncounted", counts, "none, except with learned positions in a bidirectional model", "one")?;
        for layer in &self.layers {
            if let LayerRotary::Own(rotary) = &layer.rotary {
                rotary.validate(self.d_head)?;
            }
            check("window", layer.window != Some(0), "at least 1", 0)?;
        }
        Ok(())
    }

    fn validate_sublayers(&self) -> Result<()> {
        let serial = self.parallel == Parallel::No;
        let can_be_parallel = self.norm_place != NormPlace::Post && self.has_mlp();
        let expected = "a serial block if norms follow the sum, or if there is no MLP";
        check("parallel", serial || can_be_parallel, expected, "a parallel one")?;
        let bare = |layer: usize| self.layer(layer).no_attn_norm;
        let first = |layer: usize| (0..self.n_layers).find(|&first| self.block_of(first) == self.block_of(layer));
        let alike = (0..self.n_layers).all(|layer| first(layer).is_some_and(|first| bare(first) == bare(layer)));
        let before = matches!(self.norm_place, NormPlace::Pre | NormPlace::Sandwich);
        let holds = alike && (before || !(0..self.n_layers).any(bare));
        let expected = "in no layer, unless norms come before sub-layers, and alike in layers that share weights";
        check("no_attn_norm", holds, expected, "otherwise")?;
        let widths = 1..=1 << 28;
        if let Some(Experts { n, top_k, shared, .. }) = self.experts {
            let holds = (1..=n).contains(&top_k) && n <= 1 << 16 && self.has_mlp();
            let found = format!("{top_k} of {n}, d_mlp = {}", self.d_mlp);
            check("experts", holds, "1 to n of at most 65536 chosen, of width d_mlp > 0", found)?;
            if let Some(SharedExpert { d_mlp, .. }) = shared {
                check("shared", widths.contains(&d_mlp), "a width from 1 to 268435456", d_mlp)?;
            }
        }
        for width in self.layers.iter().filter_map(|layer| layer.d_mlp) {
            let holds = widths.contains(&width) && self.has_mlp() && self.blocks() == self.n_layers;
            let expected = "a width from 1 to 268435456, in a model with MLPs whose layers do not share weights";
            check("d_mlp", holds, expected, width)?;
        }
        check("gate_limit", self.gate_limit.is_none() || self.gated_mlp, "none without a gated MLP", "one")
    }
}

impl Rotary {
    fn validate(&self, d_head: usize) -> Result<()> {
        let width = self.width.unwrap_or(d_head);
        let even = width.is_multiple_of(2) && d_head.is_multiple_of(2);
        let expected = format!("an even number with rotary positions, of which up to {d_head} turn");
        check("d_head", even && (1..=d_head).contains(&width), expected, width)?;
        check("rope_theta", self.base.is_finite() && self.base > 0.0, "a finite number above 0", self.base)?;
        let numbers: Vec<f64> = match &self.scaling {
            RotaryScaling::None => vec![],
            RotaryScaling::Linear { factor } => vec![*factor],
            RotaryScaling::Llama3 { factor, low, high, original_positions } => {
                check("low_freq_factor", low < high, format!("less than high_freq_factor = {high}"), low)?;
                vec![*factor, *low, *high, *original_positions]
            }
            RotaryScaling::Yarn { factor, fast, slow, original_positions, attention, truncate: _ } => {
                check("rope_theta", self.base > 1.0, "above 1 with YaRN", self.base)?;
                vec![*factor, *fast, *slow, *original_positions, *attention]
            }
            RotaryScaling::Long { short, long, original_positions, attention } => {
                for (name, divisors) in [("short_factor", short), ("long_factor", long)] {
                    let expected = format!("{} numbers, one for each frequency", width / 2);
                    check(name, divisors.len() == width / 2, expected, divisors.len())?;
                }
                let numbers = [*original_positions as f64, *attention];
                short.iter().chain(long).copied().chain(numbers).collect()
            }
            RotaryScaling::Dynamic { factor, original_positions } => {
                check("rope_scaling", width > 2, "more than one frequency with a dynamic base", 1)?;
                vec![*factor, *original_positions as f64]
            }
        };
        let bad = numbers.iter().find(|n| !(n.is_finite() && **n > 0.0));
        bad.map_or(Ok(()), |bad| Err(Error::argument("rope_scaling", "finite numbers above 0", bad)))
    }
}
