//! The loss of every task.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::lab::language::Batch;

/// Losses `[run, task]`, with how many predictions of each task there are, `[run, task]`.
pub(super) struct Losses {
    /// Mean of -ln p over each task's predictions, in nats; 0 where there is none.
    pub mean: Tensor,
    /// Share of predictions whose token is the likeliest.
    pub accuracy: Tensor,
    /// Number of predictions.
    pub count: Tensor,
}

impl Losses {
    /// The losses of logits `[run * batch, position, vocab]` on one batch for each run.
    pub(super) fn of(logits: &Tensor, batches: &[Batch], tasks: usize) -> Result<Self> {
        let (rows, positions) = (logits.size()[0], logits.size()[1]);
        let each = rows / batches.len() as i64;
        // One group for each set of tokens among which is chosen: flat place, target, cell of the result.
        let mut groups: BTreeMap<(i64, i64), [Vec<i64>; 3]> = BTreeMap::new();
        for (run, batch) in batches.iter().enumerate() {
            for (row, sample) in batch.samples.iter().enumerate() {
                for target in &sample.targets {
                    let group = groups.entry((target.choices.start, target.choices.end)).or_default();
                    group[0].push((run as i64 * each + row as i64) * positions + target.position as i64);
                    group[1].push(target.token - target.choices.start);
                    group[2].push((run * tasks + target.task) as i64);
                }
            }
        }
        let (kind, device) = (logits.kind(), logits.device());
        let cells = (batches.len() * tasks) as i64;
        let mut sums = [(); 3].map(|()| Tensor::zeros([cells], (kind, device)));
        for ((start, end), numbers) in groups {
            let [places, targets, cell] = numbers.map(|numbers| Tensor::from_slice(&numbers).to_device(device));
            let read = logits.flatten(0, 1).index_select(0, &places).narrow(1, start, end - start);
            let read = read.f_log_softmax(-1, None::<Kind>).map_err(Error::torch("a loss"))?;
            let nats = read.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1).neg();
            let right = read.argmax(-1, false).eq_tensor(&targets).to_kind(kind);
            let ones = right.ones_like();
            for (sum, values) in sums.iter_mut().zip([nats, right, ones]) {
                *sum = sum.index_add(0, &cell, &values);
            }
        }
        let shape = [batches.len() as i64, tasks as i64];
        let [nats, right, count] = sums.map(|sum| sum.view(shape));
        let divisor = count.clamp_min(1.0);
        Ok(Self { mean: nats / &divisor, accuracy: right / &divisor, count })
    }

    /// The mean over all predictions of a run, summed over runs: the gradient of each run is its own. Where tasks have
    /// weights each prediction counts with that of its task.
    pub(super) fn total(&self, weights: &[f64]) -> Tensor {
        let all = self.count.sum_dim_intlist([1i64].as_slice(), true, None).clamp_min(1.0);
        let mut share = &self.count / all;
        if !weights.is_empty() {
            share *= Tensor::from_slice(weights).to_kind(self.mean.kind()).to_device(self.mean.device());
        }
        (&self.mean * share).sum(None::<Kind>)
    }
}
