//! How is a critic trained, and which one is kept?

use rand::Rng;
use rand_distr::StandardNormal;
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};

use super::{Bound, NeuralOptions, Pair, evaluate};
use crate::error::{Error, Result};
use crate::stats::stream;

/// Training steps between looks at the validation samples.
const BETWEEN_LOOKS: usize = 50;

/// `T(x, y) = f(x) . g(y)`, where f and g have two hidden layers each: one matrix product scores every pair of a batch.
pub(super) struct Critic {
    halves: [Half; 2],
}

/// Weights and biases of three layers.
struct Half(Vec<(Tensor, Tensor)>);

impl Half {
    /// Random weights (He et al. 2015). Those of the last layer are small, so the critic starts near 0.
    fn new(vars: &nn::Path, inputs: usize, options: &NeuralOptions, rng: &mut impl Rng) -> Self {
        let sizes = [inputs, options.hidden, options.hidden, options.embedding];
        let layer = |(number, pair): (usize, &[usize])| {
            let last = number == 2;
            let scale = (2.0 / pair[0] as f64).sqrt() * if last { 0.3 } else { 1.0 };
            let values: Vec<f64> =
                (0..pair[0] * pair[1]).map(|_| scale * rng.sample::<f64, _>(StandardNormal)).collect();
            let weights = Tensor::from_slice(&values).to_kind(Kind::Float).view([pair[0] as i64, pair[1] as i64]);
            let zeros = Tensor::zeros([pair[1] as i64], (Kind::Float, tch::Device::Cpu));
            (vars.var_copy(&format!("w{number}"), &weights), vars.var_copy(&format!("b{number}"), &zeros))
        };
        Self(sizes.windows(2).enumerate().map(layer).collect())
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut values = x.shallow_clone();
        for (number, (weights, bias)) in self.0.iter().enumerate() {
            values = values.matmul(weights) + bias;
            if number + 1 < self.0.len() {
                values = values.gelu("none");
            }
        }
        values
    }
}

impl Critic {
    /// Trains on `train`, and keeps the critic with the highest bound on `validation`.
    pub fn train(train: &Pair, validation: &Pair, options: &NeuralOptions, seed: u64) -> Result<Self> {
        let torch = || Error::torch("training a critic");
        let mut rng = stream(seed, 0);
        let vars = nn::VarStore::new(options.device);
        let half = |name: &str, pair: &Tensor, rng: &mut _| {
            Half::new(&(vars.root() / name), pair.size()[1] as usize, options, rng)
        };
        let critic = Self { halves: [half("x", &train.x, &mut rng), half("y", &train.y, &mut rng)] };
        let mut adam = nn::Adam::default().build(&vars, options.rate).map_err(torch())?;
        let n = train.x.size()[0];
        let (mut best, mut kept, mut waited) = (critic.validate(validation, options.bound)?, critic.copies(), 0);
        for step in 1..=options.steps {
            let rows: Vec<i64> = (0..options.batch.min(n as usize)).map(|_| rng.random_range(0..n)).collect();
            let some = train.select(&rows, &rows);
            let loss = critic.loss(&some, options.bound);
            adam.zero_grad();
            loss.f_backward().map_err(torch())?;
            adam.clip_grad_norm(1.0);
            adam.step();
            if step % BETWEEN_LOOKS > 0 && step < options.steps {
                continue;
            }
            let now = critic.validate(validation, options.bound)?;
            waited += 1;
            if now > best {
                (best, kept, waited) = (now, critic.copies(), 0);
            }
            if waited >= options.patience {
                break;
            }
        }
        let mut kept = kept.into_iter();
        Ok(Self { halves: critic.halves.map(|half| Half(kept.by_ref().take(half.0.len()).collect())) })
    }

    /// The scores of every x with every y, `[x, y]`.
    pub fn scores(&self, pair: &Pair) -> Tensor {
        self.halves[0].forward(&pair.x).matmul(&self.halves[1].forward(&pair.y).tr())
    }

    /// Minus the bound on a batch. A sample drawn twice makes a wrong negative pair; this is rare.
    fn loss(&self, pair: &Pair, bound: Bound) -> Tensor {
        let scores = self.scores(pair);
        let n = scores.size()[0];
        let own = scores.diagonal(0, 0, 1).mean(Kind::Float);
        if bound == Bound::InfoNce {
            return scores.logsumexp([1i64].as_slice(), false).mean(Kind::Float) - own;
        }
        let diagonal = Tensor::eye(n, (Kind::Bool, scores.device()));
        let others =
            scores.masked_fill(&diagonal, f64::NEG_INFINITY).flatten(0, -1).logsumexp([0i64].as_slice(), false);
        let others = others - ((n * (n - 1)) as f64).ln();
        match bound {
            Bound::Nwj => (others - 1.0).exp() - own,
            _ => others - own,
        }
    }

    fn validate(&self, pair: &Pair, bound: Bound) -> Result<f64> {
        let values = evaluate::contributions(self, pair, bound)?;
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    }

    fn copies(&self) -> Vec<(Tensor, Tensor)> {
        let copy = |tensor: &Tensor| tensor.detach().copy();
        self.halves.iter().flat_map(|half| half.0.iter().map(|(w, b)| (copy(w), copy(b)))).collect()
    }
}
