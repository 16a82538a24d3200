//! How fast does the loss of each task fall at first, when all parameters follow the gradient of the total loss?

use ndarray::Array2;
use tch::{Kind, Tensor};

use super::gradient::derivatives;
use super::probe::{Probe, array};
use crate::error::{Error, Result};

impl Probe {
    /// The rate at which each task's loss falls under gradient descent on the total loss: `-dL_t/dt = g_t . g`, where
    /// g_t is the gradient of the task's loss and g that of the training loss, the mean over predictions weighted by
    /// task. All parameters are trained.
    ///
    /// g_t is estimated on these sequences and g on those of `other`, so that sampling noise in the one is independent
    /// of that in the other and the product is unbiased; with the same sequences in both, noise would add its variance.
    ///
    /// # Shapes
    /// `[run, task]`, in nats per unit of time (learning rate times steps); `weights`: one for each task, or none if
    /// all tasks have the same weight. 0 for a task without a prediction.
    ///
    /// # Errors
    /// If the other probe has another number of models, the number of weights is wrong, or libtorch fails.
    pub fn descent(&self, other: &Self, weights: &[f64]) -> Result<Array2<f64>> {
        if other.runs() != self.runs() || !(weights.is_empty() || weights.len() == self.tasks.len()) {
            let expected = format!("{} models, and a weight for each of {} tasks", self.runs(), self.tasks.len());
            let found = format!("{} and {}", other.runs(), weights.len());
            return Err(Error::argument("other, weights", expected, found));
        }
        let total = other.gradients_of(|probe, losses| vec![probe.held.total(losses, weights)])?;
        let each = self.gradients_of(|probe, losses| {
            (0..probe.tasks.len() as i64).map(|task| losses.select(2, task).sum(None::<Kind>)).collect()
        })?;
        let total = total.select(1, 0).unsqueeze(1);
        array(&(each * total).sum_dim_intlist([2i64].as_slice(), false, Kind::Double), "rates of descent")
    }

    /// The gradients of scalars, computed from the losses `[run, 1, task]`, with respect to all parameters:
    /// `[run, scalar, number]`.
    fn gradients_of(&self, scalars: impl FnOnce(&Self, &Tensor) -> Vec<Tensor>) -> Result<Tensor> {
        let mut leaves = vec![];
        let model = self.model.with_parameters(|old| {
            let leaf = old.detach().copy().set_requires_grad(true);
            leaves.push(leaf.shallow_clone());
            leaf
        });
        let leaves: Vec<&Tensor> = leaves.iter().collect();
        let losses = self.held.losses(&self.held.logits(&model, &self.program(false)?)?, 1)?;
        let runs = self.held.runs;
        let flat = |scalar: &Tensor| {
            let gradients = derivatives(scalar, &leaves, true, false)?;
            let by_run: Vec<Tensor> = gradients.iter().map(|g| g.reshape([runs, -1]).to_kind(Kind::Double)).collect();
            Ok(Tensor::cat(&by_run, 1))
        };
        Ok(Tensor::stack(&scalars(self, &losses).iter().map(flat).collect::<Result<Vec<_>>>()?, 1))
    }
}
