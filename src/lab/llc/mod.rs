//! How many directions around trained parameters matter to the loss? The local learning coefficient, by Langevin sampling.
//!
//! Near parameters w*, the volume in which the loss exceeds L(w*) by less than e shrinks like `e^lambda`. The local
//! learning coefficient lambda is half the number of parameters if the loss curves in every direction, and less if it is
//! flat in some (Lau et al. 2023). It is estimated from parameters drawn with density proportional to
//! `exp(-n beta L(w) - gamma / 2 |w - w*|^2)`, as `n beta (E L(w) - L(w*))`: [`sample`]. Refined to one head, only the
//! head's parameters are drawn and all others stay as they are (Wang, Hoogland et al. 2024): [`Heads`].

mod heads;

pub use heads::Heads;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Options for estimating a local learning coefficient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlcOptions {
    /// Step size epsilon.
    pub step: f64,
    /// The factor n beta on the loss.
    pub inverse_temperature: f64,
    /// The strength gamma with which parameters are drawn back to where they started.
    pub localisation: f64,
    /// Number of steps whose losses are discarded.
    pub burn_in: usize,
    /// Number of steps after that, over which the loss is averaged.
    pub draws: usize,
}

impl Default for LlcOptions {
    fn default() -> Self {
        Self { step: 1e-3, inverse_temperature: 100.0, localisation: 100.0, burn_in: 50, draws: 100 }
    }
}

impl LlcOptions {
    /// Checks that the options are valid.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first invalid one.
    pub fn validate(&self) -> Result<()> {
        let positive = [("step", self.step), ("inverse_temperature", self.inverse_temperature)];
        for (name, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::argument(name, "a finite number above 0", value));
            }
        }
        if !(self.localisation.is_finite() && self.localisation >= 0.0) {
            return Err(Error::argument("localisation", "a finite number, at least 0", self.localisation));
        }
        if self.draws == 0 {
            return Err(Error::argument("draws", "at least 1", 0));
        }
        crate::take::at_most("burn_in", self.burn_in.saturating_add(self.draws), 1_000_000_000, "a step of sampling")
    }
}

/// Estimates `n beta (E L(w) - L(w*))` by stochastic-gradient Langevin dynamics, for several chains at once.
///
/// From w* each step adds `-epsilon / 2 (n beta grad L(w) + gamma (w - w*)) + sqrt(epsilon) eta` with standard normal eta
/// (Welling & Teh 2011). The step size biases the draws: along a direction of curvature h, with `p = n beta h + gamma`,
/// their variance is `1 / (p (1 - epsilon p / 4))` instead of `1 / p`, and they diverge unless `epsilon p < 4`.
///
/// `excess` gets the parameters and the number of the step. It returns the loss of each chain minus its loss at w*, on the
/// same sequences, `[chain]`, and its gradient, `[chain, number]`.
///
/// # Shapes
/// `start`, w*: `[chain, number]`. `free`: true for the numbers that are drawn, `[number]`; the others keep their bits.
/// `rngs`: the noise of each chain. Returns one value per chain, NaN for a chain that diverged.
///
/// # Errors
/// If an option is invalid, the shapes do not match, nothing is free, or `excess` fails.
pub fn sample(
    start: &Tensor,
    free: &Tensor,
    options: &LlcOptions,
    rngs: &mut [ChaCha8Rng],
    mut excess: impl FnMut(&Tensor, usize) -> Result<(Tensor, Tensor)>,
) -> Result<Vec<f64>> {
    options.validate()?;
    let shape = start.size();
    if shape.len() != 2 || shape[0] != rngs.len() as i64 || free.size() != [shape[1]] || free.kind() != Kind::Bool {
        let found = format!("{shape:?}, {:?} of {:?}, {} streams", free.size(), free.kind(), rngs.len());
        return Err(Error::argument("start, free", "[chain, number] and bools [number], a stream per chain", found));
    }
    let columns = free.nonzero().squeeze_dim(1).to_device(start.device());
    if columns.numel() == 0 {
        return Err(Error::argument("free", "at least one number", 0));
    }
    tch::no_grad(|| {
        let own = |w: &Tensor| w.index_select(1, &columns);
        let (home, mut place) = (own(start), own(start));
        let mut sum = Tensor::zeros([shape[0]], (Kind::Double, Device::Cpu));
        for step in 0..options.burn_in + options.draws {
            let w = start.index_copy(1, &columns, &place);
            let (loss, gradient) = tch::with_grad(|| excess(&w, step))?;
            if step >= options.burn_in {
                sum += loss.to_kind(Kind::Double).to_device(Device::Cpu);
            }
            let force = own(&gradient) * options.inverse_temperature + (&place - &home) * options.localisation;
            let noise = normal(rngs, columns.numel(), start);
            place = &place - force * (options.step / 2.0) + noise * options.step.sqrt();
        }
        let mean = sum * (options.inverse_temperature / options.draws as f64);
        Vec::<f64>::try_from(mean).map_err(Error::torch("reading learning coefficients"))
    })
}

/// Standard normal numbers, `[chain, number]`, each chain from its own stream.
fn normal(rngs: &mut [ChaCha8Rng], number: usize, like: &Tensor) -> Tensor {
    let draws = rngs.iter_mut().flat_map(|rng| rng.sample_iter::<f64, _>(StandardNormal).take(number));
    let draws: Vec<f64> = draws.collect();
    Tensor::from_slice(&draws).view([-1, number as i64]).to_kind(like.kind()).to_device(like.device())
}
