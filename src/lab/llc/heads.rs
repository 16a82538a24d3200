//! How many directions of one head's parameters matter to the loss?

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::{LlcOptions, sample};
use crate::error::{Error, Result};
use crate::lab::language::{Batch, Language};
use crate::lab::prepared::Prepared;
use crate::lab::streams::Purpose;
use crate::lab::train::by_head;
use crate::model::{Model, ModelConfig, Plan, Program, Site};

/// Models whose heads are examined, and sequences that estimate their loss.
///
/// ```
/// use headscope::lab::llc::{Heads, LlcOptions};
/// use headscope::lab::{Language, language::Tasks};
/// use headscope::model::{Model, ModelConfig};
/// let language = Language::Tasks(Tasks::default());
/// let config = ModelConfig { d_mlp: 0, vocab: language.vocab(), ..ModelConfig::default() };
/// let model = Model::random(&config, 0)?;
/// let heads = Heads::new(&[model], &language, &[vec![language.batch(16, 0, 0)?]])?;
/// let options = LlcOptions { burn_in: 2, draws: 4, ..LlcOptions::default() };
/// assert_eq!(heads.llc(0, 1, &options, &[7])?.len(), 1);
/// # Ok::<(), headscope::Error>(())
/// ```
pub struct Heads {
    model: Model,
    sequences: Vec<Sequences>,
}

/// One batch of every model.
struct Sequences {
    data: Prepared,
    program: Program,
    /// The loss of each model with its own parameters, `[run]`.
    loss: Tensor,
}

impl Heads {
    /// Creates it from models of one architecture and several batches, each with the same number of sequences for every
    /// model. The loss of a step is that on one of the batches, in turn.
    ///
    /// # Errors
    /// If there is no batch, one does not fit the models, or models differ in architecture.
    pub fn new(models: &[Model], language: &Language, batches: &[Vec<Batch>]) -> Result<Self> {
        Self::of(Model::stacked(models)?, language, batches)
    }

    /// Creates it from models that are already stacked.
    pub(in crate::lab) fn of(model: Model, language: &Language, batches: &[Vec<Batch>]) -> Result<Self> {
        let tasks = language.tasks().len();
        let prepare = |batch: &Vec<Batch>| {
            if batch.len() != model.runs() {
                return Err(Error::argument("batches", format!("{}, one for each model", model.runs()), batch.len()));
            }
            let data = Prepared::new(batch, tasks, model.kind(), model.device())?;
            model.check_tokens(&data.tokens)?;
            let program = Program::new(&Plan::new().tap(Site::Logits), &model, &data.tokens)?;
            let loss = tch::no_grad(|| mean_loss(&data, &model, &program))?;
            Ok(Sequences { data, program, loss })
        };
        let sequences = batches.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        match sequences.is_empty() {
            true => Err(Error::argument("batches", "at least one", 0)),
            false => Ok(Self { model, sequences }),
        }
    }

    /// The local learning coefficient of each model, refined to one head: only its columns of W_Q, W_K and W_V, its rows of
    /// W_O and its biases are drawn; see [`sample`]. The loss is the mean over predictions in nats.
    ///
    /// # Shapes
    /// `seeds`: one for each model, which determine the noise. Returns `[run]`, NaN where the draws diverged.
    ///
    /// # Errors
    /// If there is no such head, an option is invalid, or the number of seeds is wrong.
    pub fn llc(&self, layer: usize, head: usize, options: &LlcOptions, seeds: &[u64]) -> Result<Vec<f64>> {
        let config = self.model.config();
        for (axis, found, limit) in [("layer", layer, config.n_layers), ("head", head, config.n_heads)] {
            if found >= limit {
                let (found, limit) = (found as i64, limit as i64);
                return Err(Error::OutOfRange { at: "models".to_owned(), axis, found, limit });
            }
        }
        let parts = Parts::of(&self.model, layer);
        let (start, free) = (parts.flat(), parts.of_head(config, head));
        let noise = |seed: &u64| ChaCha8Rng::seed_from_u64(Purpose::Langevin.seed(*seed));
        let mut rngs: Vec<ChaCha8Rng> = seeds.iter().map(noise).collect();
        sample(&start, &free, options, &mut rngs, |w, step| {
            let sequences = &self.sequences[step % self.sequences.len()];
            let leaf = w.detach().set_requires_grad(true);
            let model = parts.put(&self.model, &leaf);
            let loss = mean_loss(&sequences.data, &model, &sequences.program)?;
            let sum = loss.sum(None::<Kind>);
            let mut gradient =
                Tensor::f_run_backward(&[sum], &[&leaf], false, false).map_err(Error::torch("a gradient"))?;
            Ok((loss.detach() - &sequences.loss, gradient.swap_remove(0)))
        })
    }
}

/// The mean loss over the predictions of each model, `[run]`.
fn mean_loss(data: &Prepared, model: &Model, program: &Program) -> Result<Tensor> {
    let losses = data.losses(&data.logits(model, program)?, 1)?;
    Ok(data.means(&losses, &[]))
}

/// The tensors of a layer that are split by head, as columns of one matrix `[run, number]`.
struct Parts {
    all: Vec<Part>,
    runs: i64,
}

/// One of these tensors.
struct Part {
    name: String,
    /// The axis that is split, without the run axis, and whether by key/value head.
    split: (usize, bool),
    tensor: Tensor,
    /// Its shape without the run axis.
    shape: Vec<i64>,
}

impl Parts {
    fn of(model: &Model, layer: usize) -> Self {
        let own = model.parameters();
        let part = |(name, axis, by_kv_head): (String, usize, bool)| {
            let tensor = own.iter().find(|(own, _)| *own == name)?.1.detach();
            let shape = tensor.size().split_off(usize::from(model.weights_are_stacked()));
            Some(Part { name, split: (axis, by_kv_head), tensor, shape })
        };
        Self { all: by_head(layer).into_iter().filter_map(part).collect(), runs: model.runs() as i64 }
    }

    /// All numbers, `[run, number]`.
    fn flat(&self) -> Tensor {
        Tensor::cat(&self.all.iter().map(|part| part.tensor.reshape([self.runs, -1])).collect::<Vec<_>>(), 1)
    }

    /// True for the numbers of one head, `[number]`.
    fn of_head(&self, config: &ModelConfig, head: usize) -> Tensor {
        let own = |part: &Part| {
            let (axis, by_kv_head) = part.split;
            let (heads, head) = match by_kv_head {
                true => (config.n_kv_heads, config.kv_head(head)),
                false => (config.n_heads, head),
            };
            let width = part.shape[axis] / heads as i64;
            let free = Tensor::zeros(part.shape.as_slice(), (Kind::Bool, Device::Cpu));
            let _ = free.narrow(axis as i64, head as i64 * width, width).fill_(1);
            free.flatten(0, -1)
        };
        Tensor::cat(&self.all.iter().map(own).collect::<Vec<_>>(), 0)
    }

    /// The model with these numbers, `[run, number]`.
    fn put(&self, model: &Model, numbers: &Tensor) -> Model {
        let mut first = 0;
        let mut new = std::collections::BTreeMap::new();
        for part in &self.all {
            let n: i64 = part.shape.iter().product();
            new.insert(part.name.as_str(), numbers.narrow(1, first, n).view(part.tensor.size().as_slice()));
            first += n;
        }
        let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
        let mut names = names.iter();
        model.with_parameters(|old| {
            let name = names.next().map_or("", String::as_str);
            new.get(name).map_or_else(|| old.detach(), Tensor::shallow_clone)
        })
    }
}
