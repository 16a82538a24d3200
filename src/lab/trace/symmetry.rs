//! Do identical heads stay identical, and what drives them apart?
//!
//! Heads of one layer read the same input and their outputs add up, so the loss is `L = l(sum_h f(theta_h))`, where f
//! is the output of a head and l everything after it. For two heads with the same parameters, the Hessian has
//!
//! - the block `A = J^T l'' J + sum_k l'_k grad^2 f_k` within each of them,
//! - the block `B = J^T l'' J` between them,
//!
//! where J is the derivative of f. Both heads get the same gradient, so they stay identical under every training rule
//! that treats them alike. Their difference evolves with `A - B = sum_k l'_k grad^2 f_k`: the gradient with respect to
//! the head outputs, times the head's own curvature. The competition term B cancels. All derivatives are exact, in
//! float64.

use ndarray::{Array1, Array2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::{Kind, Tensor};

use super::gradient::{Leaves, PARTS, derivatives};
use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::lab::prepared::Prepared;
use crate::model::{Edit, Plan, Site};

/// Two heads of a layer, the second made a copy of the first, and the loss to differentiate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twins {
    /// The layer.
    pub layer: usize,
    /// The head to copy, and the head that becomes its copy.
    pub heads: [usize; 2],
    /// The task whose loss is used; `None` for the total loss.
    pub task: Option<usize>,
}

/// Both sides of the theorem along unit directions v in the space of one head's parameters; `[run, direction]` by
/// default. Hessian products are in nats per squared unit of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Symmetry {
    /// `|g_1 - g_2| / |g_1|`, the relative difference of the gradients, `[run]`; 0 by the theorem.
    pub gradient_gap: Array1<f64>,
    /// `v^T A v`: the curvature within a head.
    pub within: Array2<f64>,
    /// `v^T B v`: the curvature between the two heads.
    pub between: Array2<f64>,
    /// `v^T (sum_k l'_k grad^2 f_k) v`: below 0 the heads are driven apart along v.
    pub residual: Array2<f64>,
    /// `v^T J^T l'' J v`: the competition of the two heads; never below 0 if l is convex.
    pub competition: Array2<f64>,
    /// `|(A - B - sum_k l'_k grad^2 f_k) v| / |A v|`; 0 by the theorem.
    pub apart_gap: Array2<f64>,
    /// `|(B - J^T l'' J) v| / |B v|`; 0 by the theorem.
    pub between_gap: Array2<f64>,
}

/// How two identical heads are driven apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Parting {
    /// The smallest eigenvalue of A - B, `[run]`. Gradient descent with step size r multiplies a small difference along
    /// its eigenvector by `1 - r eigenvalue` in every step: it grows if the eigenvalue is below 0.
    pub eigenvalue: Array1<f64>,
    /// Share of each of [`Parting::PARTS`] in the squared eigenvector, `[run, part]`.
    pub share: Array2<f64>,
}

impl Parting {
    /// The parameters of a head, in the order of the last axis of [`Parting::share`].
    pub const PARTS: [&str; 7] = ["w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v"];
}

/// The autograd graph from the twins' parameters to the loss, for derivatives of any order.
struct Graph {
    leaves: Leaves,
    twins: Twins,
    heads: usize,
    /// Sum of the layer's head outputs, `[row, position, d_model]`.
    out: Tensor,
    loss: Tensor,
}

impl Probe {
    /// Evaluates both sides of the symmetry theorem along random directions.
    ///
    /// Head outputs add up, `L = l(sum_h f(theta_h))`, where f is the output of a head and l everything after it. For
    /// two heads with the same parameters, the Hessian's block within each is `A = J^T l'' J + sum_k l'_k grad^2 f_k`,
    /// and the block between them is `B = J^T l'' J`. Both get the same gradient and stay identical; their difference
    /// evolves with A - B, from which the competition term B cancels. Derivatives are exact, in float64.
    ///
    /// ```
    /// use headscope::lab::trace::{Probe, Twins, held_out};
    /// use headscope::lab::{Language, language::Tasks};
    /// use headscope::model::{Model, ModelConfig};
    /// let language = Language::Tasks(Tasks::default());
    /// let config = ModelConfig { vocab: language.vocab(), n_positions: language.positions(), ..ModelConfig::default() };
    /// let probe = Probe::new(&[Model::random(&config, 0)?], &language, &held_out(&language, 16, &[0])?)?;
    /// let found = probe.symmetry(Twins { layer: 0, heads: [0, 1], task: None }, 2, 0)?;
    /// assert!(found.gradient_gap[0] < 1e-12 && found.apart_gap[[0, 1]] < 1e-9);
    /// let difference = found.within[[0, 1]] - found.between[[0, 1]];
    /// assert!((difference - found.residual[[0, 1]]).abs() < 1e-9);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such layer, head or task, if both heads are the same, or if heads share keys and values.
    pub fn symmetry(&self, twins: Twins, directions: usize, seed: u64) -> Result<Symmetry> {
        let graph = self.twinned(twins)?.graph(twins)?;
        let g = graph.gradient(&graph.loss, true)?;
        let [first, second] = twins.heads.map(|head| g.select(1, head as i64));
        let gap = norms(&(&first - &second)) / norms(&first);
        let pull = graph.pull(true)?;
        let mut columns: [Vec<Tensor>; 6] = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..directions {
            let v = direction(&first, &mut rng);
            let [within, between] = graph.products(&first, &v)?;
            let residual = graph.curvature(&pull, &v)?;
            let competition = graph.gauss_newton(&pull, &v)?;
            let along = |x: &Tensor| (x * &v).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
            let apart = norms(&(&within - &between - &residual)) / norms(&within);
            let shared = norms(&(&between - &competition)) / norms(&between);
            let found = [along(&within), along(&between), along(&residual), along(&competition), apart, shared];
            columns.iter_mut().zip(found).for_each(|(column, value)| column.push(value));
        }
        let runs = self.runs() as i64;
        let whole = |column: &Vec<Tensor>| match column.is_empty() {
            true => Tensor::zeros([runs, 0], (Kind::Double, first.device())),
            false => Tensor::stack(column, 1),
        };
        let of = |column: usize| array(&whole(&columns[column]), "the symmetry of heads");
        Ok(Symmetry {
            gradient_gap: array(&gap, "gradients")?,
            within: of(0)?,
            between: of(1)?,
            residual: of(2)?,
            competition: of(3)?,
            apart_gap: of(4)?,
            between_gap: of(5)?,
        })
    }

    /// Checks the one-step identity: if one head is moved by `size` times a random unit direction v and its copy by the
    /// same amount in the opposite direction, half the difference of their gradients is `(A - B) size v` up to terms of
    /// third order in `size`. Returns the norm of the remainder relative to that of the right-hand side, `[run]`: it
    /// decreases by a factor of 100 if `size` decreases by a factor of 10.
    ///
    /// # Errors
    /// As for [`Probe::symmetry`]; also if `size` is not a positive number.
    pub fn antisymmetric_step(&self, twins: Twins, size: f64, seed: u64) -> Result<Array1<f64>> {
        if !(size.is_finite() && size > 0.0) {
            return Err(Error::argument("size", "a positive number", size));
        }
        let twinned = self.twinned(twins)?;
        let graph = twinned.graph(twins)?;
        let g = graph.gradient(&graph.loss, false)?.select(1, twins.heads[0] as i64);
        let v = direction(&g, &mut ChaCha8Rng::seed_from_u64(seed));
        let predicted = graph.curvature(&graph.pull(false)?, &v)? * size;
        let moved = twinned.graph_with(twins, |leaves| {
            for (head, size) in twins.heads.into_iter().zip([size, -size]) {
                leaves.add_to_head(twins.layer, head, graph.heads, &(&v * size));
            }
        })?;
        let g = moved.gradient(&moved.loss, false)?;
        let [first, second] = twins.heads.map(|head| g.select(1, head as i64));
        let left = (first - second) * 0.5 - &predicted;
        array(&(norms(&left) / norms(&predicted)), "gradients")
    }

    /// How fast, and in which of their parameters, are two identical heads driven apart? The smallest eigenvalue of A -
    /// B and its eigenvector, by `iterations` steps of the Lanczos method (40 are enough for a few digits).
    ///
    /// # Errors
    /// As for [`Probe::symmetry`]; also if `iterations` is 0, or LAPACK fails.
    pub fn parting(&self, twins: Twins, iterations: usize, seed: u64) -> Result<Parting> {
        let graph = self.twinned(twins)?.graph(twins)?;
        let pull = graph.pull(false)?;
        let start = graph.gradient(&graph.loss, false)?.select(1, twins.heads[0] as i64);
        let steps = iterations.min(start.size()[1] as usize);
        if steps == 0 {
            return Err(Error::argument("iterations", "at least 1", iterations));
        }
        let mut basis = vec![direction(&start, &mut ChaCha8Rng::seed_from_u64(seed))];
        let mut images = vec![];
        for step in 0..steps {
            let image = graph.curvature(&pull, &basis[step])?;
            let mut next = image.shallow_clone();
            for _ in 0..2 {
                for old in &basis {
                    next = &next - old * (&next * old).sum_dim_intlist([1i64].as_slice(), true, None::<Kind>);
                }
            }
            images.push(image);
            if step + 1 < steps {
                basis.push(&next / norms(&next).clamp_min(1e-300).unsqueeze(1));
            }
        }
        let (basis, images) = (Tensor::stack(&basis, 1), Tensor::stack(&images, 1)); // [run, step, n]
        let small = basis.bmm(&images.transpose(1, 2));
        let small = (&small + small.transpose(1, 2)) * 0.5;
        let (values, vectors) = small.f_linalg_eigh("L").map_err(Error::torch("an eigenvalue"))?;
        let lowest = vectors.narrow(2, 0, 1).transpose(1, 2).bmm(&basis).squeeze_dim(1); // [run, n]
        let share = graph.leaves.shares(twins.layer, graph.heads, &lowest.square());
        Ok(Parting { eigenvalue: array(&values.select(1, 0), "an eigenvalue")?, share: array(&share, "a direction")? })
    }

    /// The same models in float64, with the second twin a copy of the first.
    fn twinned(&self, twins: Twins) -> Result<Self> {
        let config = self.model.config();
        self.check_layer(twins.layer)?;
        let at = || "twins".to_owned();
        let known = twins.heads.map(|head| ("head", head, config.n_heads));
        let task = twins.task.map(|task| ("task", task, self.tasks.len()));
        for (axis, found, limit) in known.into_iter().chain(task) {
            if found >= limit {
                return Err(Error::OutOfRange { at: at(), axis, found: found as i64, limit: limit as i64 });
            }
        }
        if twins.heads[0] == twins.heads[1] || config.n_kv_heads != config.n_heads {
            let found =
                format!("heads {:?}, with {} key heads for {} heads", twins.heads, config.n_kv_heads, config.n_heads);
            return Err(Error::argument("twins", "two different heads without shared keys", found));
        }
        let names: Vec<String> = self.model.parameters().into_iter().map(|(name, _)| name).collect();
        let mut names = names.iter();
        let model = self.model.with_parameters(|old| {
            let (name, own) = (names.next().map_or("", String::as_str), old.detach().to_kind(Kind::Double));
            let part = name.strip_prefix(&format!("blocks.{}.", twins.layer));
            let Some((part, axis, _)) = PARTS.iter().find(|(own, ..)| Some(*own) == part) else { return own };
            let axis = if own.dim() < dims(part) { axis - 1 } else { *axis };
            let mut heads = own.chunk(config.n_heads as i64, axis);
            heads[twins.heads[1]] = heads[twins.heads[0]].shallow_clone();
            Tensor::cat(&heads, axis)
        });
        let held = Prepared::new(&self.batches, self.tasks.len(), Kind::Double, model.device())?;
        let (batches, tasks, edits) = (self.batches.clone(), self.tasks.clone(), self.edits.clone());
        Ok(Self { model, held, batches, tasks, edits, seeds: self.seeds.clone(), step: self.step })
    }

    fn graph(&self, twins: Twins) -> Result<Graph> {
        self.graph_with(twins, |_| {})
    }

    /// The graph of these models after `change` has modified their parameters.
    fn graph_with(&self, twins: Twins, change: impl FnOnce(&Leaves)) -> Result<Graph> {
        let leaves = self.leaves();
        tch::no_grad(|| change(&leaves));
        let site = Site::AttnOut(twins.layer);
        let plan = Plan::new().taps([site, Site::Logits]).differentiable().explicit();
        let plan = self.edits.iter().cloned().fold(plan, |plan: Plan, edit: Edit| plan.edit(edit));
        let run = leaves.model.run(&self.held.tokens, &plan)?;
        let (first, n) = self.held.columns;
        let logits = self.held.pick(run.logits()?).narrow(-1, first, n);
        let losses = self.held.losses(&logits, 1)?;
        let loss = match twins.task {
            Some(task) => losses.select(2, task as i64).sum(None::<Kind>),
            None => self.held.total(&losses, &[]),
        };
        let out = run.get(site)?.shallow_clone();
        Ok(Graph { leaves, twins, heads: self.model.config().n_heads, out, loss })
    }
}

impl Graph {
    /// The derivative of a scalar with respect to the layer's heads, `[run, head, n]`.
    fn gradient(&self, of: &Tensor, create: bool) -> Result<Tensor> {
        let own: Vec<&Tensor> = self.leaves.layers[self.twins.layer].iter().map(|(_, leaf)| leaf).collect();
        let gradients = derivatives(of, &own, true, create)?;
        Ok(self.leaves.split(self.twins.layer, &gradients, self.heads, self.heads))
    }

    /// `l'`: the derivative of the loss with respect to the summed head outputs.
    fn pull(&self, create: bool) -> Result<Tensor> {
        let mut all = derivatives(&self.loss, &[&self.out], true, create)?;
        Ok(all.swap_remove(0))
    }

    fn of_first(&self, x: &Tensor) -> Tensor {
        x.select(1, self.twins.heads[0] as i64)
    }

    /// `A v` and `B v`, from the first head's gradient, `[run, n]`.
    fn products(&self, gradient: &Tensor, v: &Tensor) -> Result<[Tensor; 2]> {
        let all = self.gradient(&(gradient * v).sum(None::<Kind>), false)?;
        Ok(self.twins.heads.map(|head| all.select(1, head as i64)))
    }

    /// `(sum_k l'_k grad^2 f_k) v`, with l' held constant.
    fn curvature(&self, pull: &Tensor, v: &Tensor) -> Result<Tensor> {
        let written = self.gradient(&(pull.detach() * &self.out).sum(None::<Kind>), true)?;
        Ok(self.of_first(&self.gradient(&(self.of_first(&written) * v).sum(None::<Kind>), false)?))
    }

    /// `J^T l'' J v`, one factor at a time.
    fn gauss_newton(&self, pull: &Tensor, v: &Tensor) -> Result<Tensor> {
        // J v, as the derivative of v^T J^T u with respect to u.
        let u = self.out.detach().zeros_like().set_requires_grad(true);
        let back = self.of_first(&self.gradient(&(&self.out * &u).sum(None::<Kind>), true)?);
        let ahead = derivatives(&(back * v).sum(None::<Kind>), &[&u], true, false)?;
        let bent = derivatives(&(pull * ahead[0].detach()).sum(None::<Kind>), &[&self.out], true, false)?;
        let all = self.gradient(&(&self.out * bent[0].detach()).sum(None::<Kind>), false)?;
        Ok(self.of_first(&all))
    }
}

impl Leaves {
    /// Adds `v`, `[run, n]`, to the parameters of a head.
    fn add_to_head(&self, layer: usize, head: usize, heads: usize, v: &Tensor) {
        let mut first = 0;
        for (place, leaf) in &self.layers[layer] {
            let (name, axis, _) = PARTS[*place];
            let axis = if leaf.dim() < dims(name) { axis - 1 } else { axis };
            let width = leaf.size()[axis as usize] / heads as i64;
            let mut own = leaf.narrow(axis, head as i64 * width, width);
            let each = own.numel() as i64 / v.size()[0];
            own += v.narrow(1, first, each).reshape(own.size().as_slice());
            first += each;
        }
    }

    /// Sums of `x`, `[run, n]`, over each of [`PARTS`], `[run, part]`.
    fn shares(&self, layer: usize, heads: usize, x: &Tensor) -> Tensor {
        let none = |_: &(&str, i64, bool)| Tensor::zeros([x.size()[0]], (x.kind(), x.device()));
        let mut all: Vec<Tensor> = PARTS.iter().map(none).collect();
        let mut first = 0;
        for (place, leaf) in &self.layers[layer] {
            let each = leaf.numel() as i64 / heads as i64 / x.size()[0];
            all[*place] = x.narrow(1, first, each).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
            first += each;
        }
        Tensor::stack(&all, 1)
    }
}

/// Number of axes of a part that has a `run` axis.
fn dims(part: &str) -> usize {
    if part.starts_with('w') { 3 } else { 2 }
}

/// Norm of each row, `[run, n]` to `[run]`.
fn norms(x: &Tensor) -> Tensor {
    x.square().sum_dim_intlist([1i64].as_slice(), false, None::<Kind>).sqrt()
}

/// A random unit vector for each run, with the shape of `like`, `[run, n]`.
fn direction(like: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let drawn: Vec<f64> = (0..like.numel()).map(|_| rng.sample(StandardNormal)).collect();
    let v = Tensor::from_slice(&drawn).view(like.size().as_slice()).to_device(like.device());
    &v / norms(&v).unsqueeze(1)
}
