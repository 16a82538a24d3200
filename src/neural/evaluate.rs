//! What does a critic's bound come to, on samples that it has not seen?

use tch::{Device, Kind, Tensor};

use super::critic::Critic;
use super::{Bound, Pair};
use crate::error::{Error, Result};

/// Up to this many samples, every x is scored with every y; more samples are split into blocks.
const BLOCK: i64 = 2048;

/// The contribution of each sample to the bound: their mean is the bound, and their spread gives its error. For bounds with a
/// mean over pairs these are Hájek's projections of that mean on the samples.
pub(super) fn contributions(critic: &Critic, pair: &Pair, bound: Bound) -> Result<Vec<f64>> {
    let n = pair.x.size()[0];
    let blocks = (n + BLOCK - 1) / BLOCK;
    let mut parts = vec![];
    for block in 0..blocks {
        let (first, end) = (block * n / blocks, (block + 1) * n / blocks);
        let some = Pair { x: pair.x.narrow(0, first, end - first), y: pair.y.narrow(0, first, end - first) };
        let scores = tch::no_grad(|| critic.scores(&some)).to_kind(Kind::Double);
        parts.push(Scored::new(&scores, bound)?);
    }
    // The mean over the pairs of all blocks, weighted by their numbers of samples.
    let all = parts.iter().map(|part| part.own.len() as f64 * part.others).sum::<f64>() / n as f64;
    Ok(parts.iter().flat_map(|part| part.values(bound, all)).collect())
}

/// The scores of a block, summarised. For InfoNCE `own` is `T_ii - ln mean_j e^T_ij`, and the rest is empty. For the others
/// `own` is `T_ii`, `rows` and `columns` are the means of `e^T_ij` over the other samples (of `e^(T - 1)` for NWJ), and
/// `others` is the mean over all pairs.
struct Scored {
    own: Vec<f64>,
    rows: Vec<f64>,
    columns: Vec<f64>,
    others: f64,
}

impl Scored {
    fn new(scores: &Tensor, bound: Bound) -> Result<Self> {
        let n = scores.size()[0];
        let own = scores.diagonal(0, 0, 1);
        if bound == Bound::InfoNce {
            let all = scores.logsumexp([1i64].as_slice(), false) - (n as f64).ln();
            return Ok(Self { own: read(&(own - all))?, rows: vec![], columns: vec![], others: 0.0 });
        }
        let shift = if bound == Bound::Nwj { 1.0 } else { 0.0 };
        let diagonal = Tensor::eye(n, (Kind::Bool, scores.device()));
        let ratios = (scores - shift).exp().masked_fill(&diagonal, 0.0) / (n - 1) as f64;
        let mean = |axis: i64| ratios.sum_dim_intlist([axis].as_slice(), false, Kind::Double);
        let rows = read(&mean(1))?;
        let others = rows.iter().sum::<f64>() / n as f64;
        Ok(Self { own: read(&own)?, rows, columns: read(&mean(0))?, others })
    }

    fn values(&self, bound: Bound, all: f64) -> Vec<f64> {
        let both = |i: usize| self.rows[i] + self.columns[i];
        let value = |(i, own): (usize, &f64)| match bound {
            Bound::InfoNce => *own,
            Bound::Nwj => own - both(i) + all,
            Bound::Mine => own - all.ln() - both(i) / all + 2.0,
        };
        self.own.iter().enumerate().map(value).collect()
    }
}

fn read(tensor: &Tensor) -> Result<Vec<f64>> {
    Vec::<f64>::try_from(tensor.to(Device::Cpu)).map_err(Error::torch("reading a critic's scores"))
}

#[cfg(test)]
mod tests {
    use super::{Bound, Scored};
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_critic_that_says_the_same_of_all_pairs_bounds_nothing() {
        for (bound, constant) in [(Bound::InfoNce, 3.0), (Bound::Mine, -2.0), (Bound::Nwj, 1.0)] {
            let scores = Tensor::full([6, 6], constant, (Kind::Double, Device::Cpu));
            let scored = Scored::new(&scores, bound).unwrap_or_else(|reason| unreachable!("{reason}"));
            let values = scored.values(bound, scored.others);
            assert!(values.iter().all(|value| value.abs() < 1e-12), "{bound:?}: {values:?}");
        }
    }

    #[test]
    fn contrast_is_at_most_ln_k() {
        let scores = Tensor::eye(7, (Kind::Double, Device::Cpu)) * 100.0;
        let scored = Scored::new(&scores, Bound::InfoNce).unwrap_or_else(|reason| unreachable!("{reason}"));
        let values = scored.values(Bound::InfoNce, scored.others);
        assert!(values.iter().all(|value| (value - 7f64.ln()).abs() < 1e-9), "{values:?}");
    }
}
