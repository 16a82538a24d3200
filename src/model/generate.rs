//! Generation with cached keys and values.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Joins, KvCache, Model, Pass, Past, Program};
use crate::error::{Error, Result};
use crate::text::Tokens;

/// How to continue a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// At most this many new tokens; an end token or the end of the model's context stops earlier.
    pub max_new: usize,
    /// 0 takes the likeliest token; above, logits are divided by it before sampling.
    pub temperature: f64,
    /// Sample from this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Seed of the sampling.
    pub seed: u64,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_new: 50, temperature: 0.0, top_k: None, seed: 0 }
    }
}

impl Generation {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] for a negative or non-finite temperature, or a top-k of 0.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::argument("temperature", "a finite number, at least 0", self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(Error::argument("top_k", "at least 1", 0));
        }
        Ok(())
    }
}

impl Model {
    /// Continues the one prompt in `tokens` and returns the new ids; `each` sees them as they come.
    ///
    /// Every step computes one position against the cached keys and values of those before.
    ///
    /// ```
    /// use headscope::model::{Generation, Model, ModelConfig, Tokens};
    /// let model = Model::random(&ModelConfig::default(), 0)?;
    /// let new = model.generate(&Tokens::new(&[vec![1, 2, 3]])?, &Generation { max_new: 4, ..Default::default() }, |_| {})?;
    /// assert_eq!(new.len(), 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the model is not causal or has no logits, the batch is not one prompt, or an option makes no sense.
    pub fn generate(&self, tokens: &Tokens, options: &Generation, mut each: impl FnMut(i64)) -> Result<Vec<i64>> {
        options.validate()?;
        self.check_tokens(tokens)?;
        if !(self.config().causal && self.config().has_logits()) {
            return Err(Error::argument("model", "a causal model with logits, to generate", &self.config().family));
        }
        if tokens.batch() != 1 {
            return Err(Error::argument("tokens", "one prompt", format!("{} prompts", tokens.batch())));
        }
        let program = Program::taps([]);
        let mut cache = KvCache::default();
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let mut next = tokens.ids(self.device());
        let mut new = vec![];
        while new.len() < options.max_new {
            let logits = tch::no_grad(|| self.step(&program, &mut cache, &next))?;
            let id = options.choose(&logits, &mut rng)?;
            new.push(id);
            each(id);
            if self.origin().end_tokens.contains(&id) || cache.positions() >= self.config().n_positions as i64 {
                break;
            }
            next = Tensor::from_slice(&[id]).view([1, 1]).to_device(self.device());
        }
        Ok(new)
    }

    /// The logits after the last of the ids `next`, `[vocab]`; the ids are added to the cache.
    fn step(&self, program: &Program, cache: &mut KvCache, next: &Tensor) -> Result<Tensor> {
        let mut pass = Pass::over(self, program, next.size()[1] as usize, None, Past::Growing(cache));
        let x = pass.residual(&Joins::whole(next.shallow_clone()), self.config().n_layers)?;
        let last = x.narrow(1, x.size()[1] - 1, 1);
        Ok(pass.logits(&last)?.flatten(0, -1))
    }
}

impl Generation {
    /// The next id given `logits`, `[vocab]`.
    fn choose(&self, logits: &Tensor, rng: &mut ChaCha8Rng) -> Result<i64> {
        if self.temperature == 0.0 {
            return Ok(logits.argmax(-1, false).int64_value(&[]));
        }
        let k = self.top_k.unwrap_or(usize::MAX).min(logits.numel()) as i64;
        let (top, ids) = logits.to_kind(Kind::Double).topk(k, -1, true, true);
        let weights = (top / self.temperature).softmax(-1, None);
        let weights = Vec::<f64>::try_from(weights).map_err(Error::torch("reading probabilities"))?;
        let mut left: f64 = rng.random();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a little probability after the last weight.
        Ok(ids.int64_value(&[chosen.unwrap_or(weights.len() - 1) as i64]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::super::{Activation, ModelConfig, NormKind, NormPlace, Plan, Position, Rotary, Site};
    use super::*;

    /// Causal architectures of every kind of norm, position, and sharing of keys.
    fn configs() -> impl Strategy<Value = ModelConfig> {
        let norms = prop::sample::select(vec![NormKind::Layer, NormKind::Rms, NormKind::None]);
        let places = prop::sample::select(vec![NormPlace::Pre, NormPlace::Post]);
        let rotary = Position::Rotary(Rotary::default());
        let positions = prop::sample::select(vec![Position::Learned, rotary]);
        (norms, places, positions, prop::sample::select(vec![1, 2, 4]), any::<bool>(), any::<bool>()).prop_map(
            |(norm, norm_place, position, n_kv_heads, gated_mlp, mlp)| ModelConfig {
                norm,
                norm_place,
                position,
                n_kv_heads,
                gated_mlp: gated_mlp && mlp,
                activation: if gated_mlp { Activation::Silu } else { Activation::Gelu },
                d_mlp: if mlp { ModelConfig::default().d_mlp } else { 0 },
                ..ModelConfig::default()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However a prompt is cut into steps, the logits after each are those of one run over all that came before.
        #[test]
        fn a_cached_step_equals_the_whole_run(
            config in configs(), seed in 0u64..1000, steps in prop::collection::vec(1usize..5, 1..5),
        ) {
            prop_assert!(config.validate().is_ok());
            let model = Model::random_as(&config, seed, Kind::Double, Device::Cpu).unwrap();
            let ids: Vec<i64> = (0..steps.iter().sum()).map(|i: usize| (i * 7 + seed as usize) as i64 % config.vocab as i64).collect();
            let whole = model.run(&Tokens::new(std::slice::from_ref(&ids)).unwrap(), &Plan::new().tap(Site::Logits)).unwrap();
            let whole = whole.get(Site::Logits).unwrap().squeeze_dim(0);
            let (program, mut cache, mut done) = (Program::taps([]), KvCache::default(), 0);
            for step in steps {
                let next = Tensor::from_slice(&ids[done..done + step]).unsqueeze(0);
                done += step;
                let found = tch::no_grad(|| model.step(&program, &mut cache, &next)).unwrap();
                prop_assert_eq!(cache.positions(), done as i64);
                let expected = whole.get(done as i64 - 1);
                let error = ((found - &expected).abs() / expected.abs().clamp_min(1.0)).max().double_value(&[]);
                prop_assert!(error <= 1e-10, "after {} tokens: {}", done, error); // the bound of float64 models
            }
        }
    }
}
