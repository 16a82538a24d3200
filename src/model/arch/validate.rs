//! Do the numbers of a configuration fit together?

use super::config::{
    EmbedProjection, Experts, LayerRotary, ModelConfig, NormPlace, Parallel, Position, Rotary, RotaryScaling,
};
use crate::error::{Error, Result};

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
        if !(1..=self.n_layers).contains(&self.blocks()) {
            return Err(Error::argument("n_blocks", format!("at most n_layers = {}", self.n_layers), self.n_blocks));
        }
        if let EmbedProjection::Tokens(0) | EmbedProjection::Sum(0) = self.embed_projection {
            return Err(Error::argument("embed_projection", "a width of at least 1", 0));
        }
        self.validate_factors()?;
        self.validate_attention()?;
        self.validate_sublayers()
    }

    fn validate_factors(&self) -> Result<()> {
        let factors = [
            ("embed_scale", Some(self.embed_scale)),
            ("residual_scale", Some(self.residual_scale)),
            ("logit_scale", Some(self.logit_scale)),
            ("attention_scale", self.attention_scale),
        ];
        let caps = [("logit_cap", self.logit_cap), ("score_cap", self.score_cap)];
        for (name, value) in factors {
            if let Some(bad) = value.filter(|value| !value.is_finite() || *value == 0.0) {
                return Err(Error::argument(name, "a finite number other than 0", bad));
            }
        }
        for (name, value) in caps {
            if let Some(bad) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(Error::argument(name, "a finite number above 0", bad));
            }
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<()> {
        if let Position::Buckets { n, max_distance } = self.position {
            let exact = if self.causal { n / 2 } else { n / 4 };
            if !(4..=1 << 16).contains(&n) || max_distance <= exact {
                let expected = "4 to 65536 buckets, and a largest distance beyond those with a bucket of their own";
                return Err(Error::argument("position", expected, format!("{n} buckets up to {max_distance}")));
            }
        }
        let model = if let Position::Rotary(rotary) = &self.position { Some(rotary) } else { None };
        let own = self.layers.iter().filter_map(|layer| match &layer.rotary {
            LayerRotary::Own(rotary) => Some(rotary),
            LayerRotary::Model | LayerRotary::None => None,
        });
        model.into_iter().chain(own).try_for_each(|rotary| rotary.validate(self.d_head))?;
        match self.layers.iter().find_map(|layer| layer.window.filter(|&window| window == 0)) {
            Some(_) => Err(Error::argument("window", "at least 1", 0)),
            None => Ok(()),
        }
    }

    fn validate_sublayers(&self) -> Result<()> {
        if self.parallel != Parallel::No && (self.norm_place == NormPlace::Post || !self.has_mlp()) {
            let expected = "a serial block where norms follow the sum, or where there is no MLP";
            return Err(Error::argument("parallel", expected, "a parallel one"));
        }
        if let Some(Experts { n, top_k, .. }) = self.experts
            && !((1..=n).contains(&top_k) && n <= 1 << 16 && self.has_mlp())
        {
            let found = format!("{top_k} of {n}, d_mlp = {}", self.d_mlp);
            return Err(Error::argument("experts", "1 to n of at most 65536 chosen, of width d_mlp > 0", found));
        }
        Ok(())
    }
}

impl Rotary {
    fn validate(&self, d_head: usize) -> Result<()> {
        let width = self.width.unwrap_or(d_head);
        if !width.is_multiple_of(2) || width == 0 || width > d_head || !d_head.is_multiple_of(2) {
            let expected = format!("an even number with rotary positions, of which up to {d_head} turn");
            return Err(Error::argument("d_head", expected, width));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return Err(Error::argument("rope_theta", "a finite number above 0", self.base));
        }
        self.scaling.validate()
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
