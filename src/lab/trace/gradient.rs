//! Which gradients reach which head, and how does training one head change the gradients of the others?

use ndarray::{Array3, Array4, Array5};
use tch::{Kind, Tensor};

use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};

/// The gradients `g_h^t` of every task's loss with respect to the heads' own parameters: their columns of W_Q, W_K and
/// W_V with the biases, and their rows of W_O. A shared key/value head counts for each query head that uses it.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// `|g_h^t|`, `[run, layer, head, task]`, in nats per unit of a parameter.
    pub norm: Array4<f64>,
    /// `|g_h^t|^2 / sum over the layer's heads`: how a task's gradient is distributed over heads; NaN if it is 0.
    pub share: Array4<f64>,
    /// Cosine between the gradients of two tasks in one head, `[run, layer, head, task, task]`; below 0 the tasks
    /// conflict. NaN if a gradient is 0.
    pub task_cosine: Array5<f64>,
    /// Cosine between the gradients of the total loss in two heads of a layer, `[run, layer, head, head]`: 1 if the
    /// heads are identical and receive the same gradient. It depends on the basis that each head uses for its
    /// coordinates.
    pub head_cosine: Array4<f64>,
}

/// The trained tensors of a layer's heads: name, the axis that is split by head (of a tensor with a `run` axis), and
/// whether the split is by key/value head.
pub(super) const PARTS: [(&str, i64, bool); 7] = [
    ("w_q", 2, false),
    ("w_k", 2, true),
    ("w_v", 2, true),
    ("w_o", 1, false),
    ("b_q", 1, false),
    ("b_k", 1, true),
    ("b_v", 1, true),
];

/// A model whose head parameters are leaves of the autograd graph.
pub(super) struct Leaves {
    pub model: Model,
    /// By layer; each leaf with its index in [`PARTS`].
    pub layers: Vec<Vec<(usize, Tensor)>>,
}

impl Probe {
    /// The gradients of every task's loss in every head.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn gradients(&self) -> Result<Gradients> {
        let leaves = self.leaves();
        let losses = self.differentiable_losses(&leaves)?;
        let all: Vec<&Tensor> = leaves.layers.iter().flatten().map(|(_, leaf)| leaf).collect();
        let mut by_task = vec![];
        for task in 0..self.tasks.len() as i64 {
            let own = losses.select(2, task).sum(None::<Kind>);
            let gradients = derivatives(&own, &all, task + 1 < self.tasks.len() as i64, false)?;
            by_task.push(Tensor::stack(&leaves.by_head(&gradients, self.model.config()), 1)); // [run, layer, head, n]
        }
        let g = Tensor::stack(&by_task, 3).to_kind(Kind::Double); // [run, layer, head, task, n]
        let squares = g.square().sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>);
        let share = &squares / squares.sum_dim_intlist([2i64].as_slice(), true, None::<Kind>);
        let weight = (&self.held.count / self.held.count.sum_dim_intlist([1i64].as_slice(), true, None::<Kind>))
            .to_kind(Kind::Double)
            .view([self.held.runs, 1, 1, -1, 1]);
        let total = (&g * weight).sum_dim_intlist([3i64].as_slice(), false, None::<Kind>); // [run, layer, head, n]
        Ok(Gradients {
            norm: array(&squares.sqrt(), "gradients")?,
            share: array(&share, "gradients")?,
            task_cosine: array(&cosines(&g)?, "gradients")?,
            head_cosine: array(&cosines(&total)?, "gradients")?,
        })
    }

    /// How does training head i of a layer change the gradient that reaches head j, when both follow the gradient of
    /// the total loss?
    ///
    /// The answer is `-g_j^T H_ji g_i`, the time derivative of `1/2 |g_j|^2` caused by gradient descent on head i
    /// alone. Below 0, head i removes what j would learn (competition); above 0, it adds to it. H is the Hessian;
    /// Hessian-vector products are computed by differentiating twice, without approximation.
    ///
    /// # Shapes
    /// `[run, from_head, head]`: row i, column j.
    ///
    /// # Errors
    /// If there is no such layer, or libtorch fails.
    pub fn interference(&self, layer: usize) -> Result<Array3<f64>> {
        self.check_layer(layer)?;
        let leaves = self.leaves();
        let total = self.held.total(&self.differentiable_losses(&leaves)?, &[]);
        self.interference_of(&total, &leaves, layer)
    }

    /// [`Probe::interference`] under gradient descent on the loss of a single task; 0 if it has no prediction.
    ///
    /// # Errors
    /// As for [`Probe::interference`]; also if there is no such task.
    pub fn task_interference(&self, layer: usize, task: usize) -> Result<Array3<f64>> {
        self.check_layer(layer)?;
        if task >= self.tasks.len() {
            let (at, limit) = ("tasks of the language".to_owned(), self.tasks.len() as i64);
            return Err(Error::OutOfRange { at, axis: "task", found: task as i64, limit });
        }
        let leaves = self.leaves();
        let own = self.differentiable_losses(&leaves)?.select(2, task as i64).sum(None::<Kind>);
        self.interference_of(&own, &leaves, layer)
    }

    fn interference_of(&self, loss: &Tensor, leaves: &Leaves, layer: usize) -> Result<Array3<f64>> {
        let config = self.model.config();
        let own: Vec<&Tensor> = leaves.layers[layer].iter().map(|(_, leaf)| leaf).collect();
        let gradients = derivatives(loss, &own, true, true)?;
        let g = leaves.layer_by_head(layer, &gradients, config); // [run, head, n]
        let fixed = g.detach();
        let heads = config.n_heads as i64;
        let mut rows = vec![];
        for head in 0..heads {
            let along = (g.select(1, head) * fixed.select(1, head)).sum(None::<Kind>);
            let product = derivatives(&along, &own, head + 1 < heads, false)?;
            let product = leaves.layer_by_head(layer, &product, config);
            rows.push(-(product * &fixed).sum_dim_intlist([2i64].as_slice(), false, Kind::Double));
        }
        array(&Tensor::stack(&rows, 1), "interference")
    }

    /// The models with the head parameters as leaves of a separate graph.
    pub(super) fn leaves(&self) -> Leaves {
        let names: Vec<String> = self.model.parameters().into_iter().map(|(name, _)| name).collect();
        let mut names = names.iter();
        let mut layers: Vec<Vec<(usize, Tensor)>> = (0..self.model.config().n_layers).map(|_| vec![]).collect();
        let model = self.model.with_parameters(|old| {
            let name = names.next().map_or("", String::as_str);
            let part = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
            let part = part.and_then(|(layer, part)| {
                let place = PARTS.iter().position(|(own, ..)| *own == part)?;
                Some((layer.parse::<usize>().ok()?, place))
            });
            match part {
                Some((layer, place)) if layer < layers.len() => {
                    let leaf = old.detach().copy().set_requires_grad(true);
                    layers[layer].push((place, leaf.shallow_clone()));
                    leaf
                }
                _ => old.detach(),
            }
        });
        Leaves { model, layers }
    }

    /// The losses, `[run, 1, task]`, which can be differentiated twice.
    fn differentiable_losses(&self, leaves: &Leaves) -> Result<Tensor> {
        self.held.losses(&self.held.logits(&leaves.model, &self.program(true)?)?, 1)
    }
}

impl Leaves {
    /// Gradients of all leaves, split by head: `[run, head, n]` for each layer.
    fn by_head(&self, gradients: &[Tensor], config: &ModelConfig) -> Vec<Tensor> {
        let mut rest = gradients;
        let layer = |layer: usize| {
            let (own, others) = rest.split_at(self.layers[layer].len());
            rest = others;
            self.layer_by_head(layer, own, config)
        };
        (0..self.layers.len()).map(layer).collect()
    }

    /// Gradients of one layer's leaves, split by head, `[run, head, n]`.
    fn layer_by_head(&self, layer: usize, gradients: &[Tensor], config: &ModelConfig) -> Tensor {
        self.split(layer, gradients, config.n_heads, config.n_kv_heads)
    }

    /// Gradients of one layer's leaves, split by head, `[run, head, n]`, for the given numbers of heads.
    pub(super) fn split(&self, layer: usize, gradients: &[Tensor], n_heads: usize, n_kv_heads: usize) -> Tensor {
        let parts = self.layers[layer].iter().zip(gradients).map(|((place, leaf), gradient)| {
            let (name, axis, of_kv_head) = PARTS[*place];
            // Tensors of a single run have no `run` axis.
            let whole = if name.starts_with('w') { 3 } else { 2 };
            let gradient = if leaf.dim() < whole { gradient.unsqueeze(0) } else { gradient.shallow_clone() };
            let heads = if of_kv_head { n_kv_heads } else { n_heads } as i64;
            let by_head = gradient.unflatten(axis, [heads, -1]).movedim_int(axis, 1).flatten(2, -1);
            match n_heads as i64 / heads {
                1 => by_head,
                group => by_head.repeat_interleave_self_int(group, 1, None),
            }
        });
        Tensor::cat(&parts.collect::<Vec<_>>(), 2)
    }
}

/// The derivatives of a scalar with respect to `leaves`; zeros for leaves that it does not depend on.
pub(super) fn derivatives(of: &Tensor, leaves: &[&Tensor], keep: bool, create: bool) -> Result<Vec<Tensor>> {
    let all = Tensor::f_run_backward(&[of], leaves, keep, create).map_err(Error::torch("a derivative"))?;
    Ok(all.into_iter().zip(leaves).map(|(g, leaf)| if g.defined() { g } else { leaf.zeros_like() }).collect())
}

/// Cosines of all pairs of vectors, `[.., k, n]` to `[.., k, k]`; NaN for zero vectors.
fn cosines(x: &Tensor) -> Result<Tensor> {
    let norm = x.square().sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>).sqrt();
    let unit = x / norm; // 0 / 0 is NaN
    Ok(unit.f_matmul(&unit.transpose(-2, -1)).map_err(Error::torch("cosines"))?.clamp(-1.0, 1.0))
}
