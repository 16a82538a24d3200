//! How are random parameters drawn? From one seeded stream.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;
use super::encoder::sinusoids;
use super::weights::{Linear, Make, Norm, Weights};
use crate::error::Result;
use crate::tensors::onednn;

/// Standard deviations of the random parameters that are not matrices of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    /// Of the token embeddings; position and type embeddings have half of it.
    pub embeddings: f64,
    /// Of biases around 0 and norm weights around 1.
    pub biases: f64,
}

impl Spread {
    /// For a random model in which every parameter matters.
    pub(crate) const RANDOM: Self = Self { embeddings: 1.0, biases: 0.1 };
}

/// Draws parameters from one seeded stream.
struct Init {
    rng: ChaCha8Rng,
    spread: Spread,
    kind: Kind,
    device: Device,
}

impl Weights {
    /// Parameters drawn from normal distributions; the variance of the attention scores does not depend on d_head.
    pub(crate) fn drawn(config: &ModelConfig, seed: u64, spread: Spread, kind: Kind, device: Device) -> Result<Self> {
        Self::made(config, &mut Init { rng: ChaCha8Rng::seed_from_u64(seed), spread, kind, device })
    }
}

impl Init {
    fn normal(&mut self, shape: &[usize], std: f64) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|_| std * f64::from(self.gauss())).collect();
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        Tensor::from_slice(&values).view(shape.as_slice()).to_kind(self.kind).to_device(self.device)
    }

    fn gauss(&mut self) -> f32 {
        StandardNormal.sample(&mut self.rng)
    }
}

impl Make for Init {
    fn linear(&mut self, _: &str, _: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        let w = self.normal(&[rows, columns], (rows as f64).powf(-0.5));
        Ok(Linear { w: onednn::laid_out(w), b: bias.then(|| self.normal(&[columns], self.spread.biases)) })
    }

    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear> {
        let (rows, columns) = (w_e.size()[1] as usize, w_e.size()[0] as usize);
        // Drawn all the same, so that what is drawn next does not depend on whether the two are tied.
        Ok(Linear { w: w_e.tr(), ..self.linear("", "u", rows, columns, bias)? })
    }

    fn norm(&mut self, _: &str, _: &str, width: usize, bias: bool) -> Result<Norm> {
        let w = self.normal(&[width], self.spread.biases) + 1.0;
        Ok(Norm { w, b: bias.then(|| self.normal(&[width], self.spread.biases)) })
    }

    fn sinusoids(&mut self, _: &str, _: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(sinusoids(shape, self.kind, self.device))
    }

    fn table(&mut self, _: &str, _: &str, shape: &[usize], share: f64) -> Result<Tensor> {
        Ok(self.normal(shape, share * self.spread.embeddings))
    }
}
