//! What does every measurement start from? Models and held-out sequences.

use ndarray::{Array, Array2, ArrayD, Dimension};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::lab::language::{Batch, Language};
use crate::lab::prepared::Prepared;
use crate::model::{Edit, Model, ModelConfig, Pass, Plan, Program, Run, Site, Unchanged, Wires};

/// One or more models of the same architecture, and sequences of a language on which they were not trained.
///
/// In every result the first axis is the run: `[run, ..]`, one per model, in the order given.
///
/// ```
/// use headscope::intervene::Ablation;
/// use headscope::lab::trace::{Probe, held_out};
/// use headscope::lab::{Language, language::Tasks};
/// use headscope::model::{Model, ModelConfig};
/// let language = Language::Tasks(Tasks::default());
/// let config = ModelConfig { d_mlp: 0, vocab: language.vocab(), ..ModelConfig::default() };
/// let models = [Model::random(&config, 0)?, Model::random(&config, 1)?];
/// let probe = Probe::new(&models, &language, &held_out(&language, 32, &[0, 1])?)?;
/// let phi = probe.shapley(0, Ablation::Mean)?;
/// assert_eq!(phi.dim(), (2, 4, 4)); // run, head, task
/// # Ok::<(), headscope::Error>(())
/// ```
pub struct Probe {
    /// All models as one, with a `run` axis if there are several.
    pub(super) model: Model,
    pub(super) held: Prepared,
    pub(super) batches: Vec<Batch>,
    pub(super) tasks: Vec<String>,
    pub(super) edits: Vec<Edit>,
    pub(super) seeds: Vec<Option<u64>>,
    pub(super) step: Option<usize>,
}

/// Losses of one or more models.
#[derive(Debug, Clone, PartialEq)]
pub struct Losses {
    /// Mean of -ln p over each task's predictions, in nats, `[run, task]`; 0 if a task has no prediction.
    pub loss: Array2<f64>,
    /// Share of predictions whose target is the most likely token, `[run, task]`.
    pub accuracy: Array2<f64>,
    /// Number of predictions, `[run, task]`.
    pub count: Array2<f64>,
}

/// Sequences never used in training: for each seed, the last batch of its stream.
///
/// # Errors
/// As for [`Language::batch`].
pub fn held_out(language: &Language, rows: usize, seeds: &[u64]) -> Result<Vec<Batch>> {
    seeds.iter().map(|&seed| language.batch(rows, seed, u64::MAX)).collect()
}

impl Probe {
    /// Creates a probe from models and one batch for each.
    ///
    /// # Errors
    /// If there is no model; if models differ in architecture, dtype or device; if the number of batches differs from
    /// the number of models, or batches differ in their number of rows; or if a token is out of range.
    pub fn new(models: &[Model], language: &Language, batches: &[Batch]) -> Result<Self> {
        Self::of(Model::stacked(models)?, language, batches)
    }

    /// Creates a probe from models that are already stacked.
    pub(in crate::lab) fn of(model: Model, language: &Language, batches: &[Batch]) -> Result<Self> {
        let runs = model.runs();
        if batches.len() != runs {
            return Err(Error::argument("batches", format!("{runs}, one for each model"), batches.len()));
        }
        let tasks: Vec<String> = language.tasks().into_iter().map(|task| task.name).collect();
        let held = Prepared::new(batches, tasks.len(), model.kind(), model.device())?;
        model.check_tokens(&held.tokens)?;
        if !model.config().causal {
            return Err(Error::argument("model", "a causal model", &model.config().family));
        }
        let (batches, edits, seeds) = (batches.to_vec(), vec![], vec![None; runs]);
        Ok(Self { model, held, batches, tasks, edits, seeds, step: None })
    }

    /// Sets the models' seeds, in the order of the models, for the column `seed` of tables.
    pub fn seeds(mut self, seeds: &[u64]) -> Self {
        let mut given = seeds.iter().copied();
        self.seeds.iter_mut().for_each(|seed| *seed = given.next());
        self
    }

    /// Sets the training step for the column `step` of tables.
    pub fn step(mut self, step: usize) -> Self {
        self.step = Some(step);
        self
    }

    /// Sets edits that belong to the models, such as scaled heads; they apply to every measurement. They must not need
    /// another run.
    pub fn edits(mut self, edits: Vec<Edit>) -> Self {
        self.edits = edits;
        self
    }

    /// The models' architecture.
    pub(in crate::lab) fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Number of models.
    pub fn runs(&self) -> usize {
        self.batches.len()
    }

    /// The tasks, in the order of every `task` axis.
    pub fn tasks(&self) -> &[String] {
        &self.tasks
    }

    /// The loss of every task.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn losses(&self) -> Result<Losses> {
        tch::no_grad(|| {
            let logits = self.held.logits(&self.model, &self.program(false)?)?;
            let one = |t: Tensor| array(&t.squeeze_dim(1), "a loss");
            Ok(Losses {
                loss: one(self.held.losses(&logits, 1)?)?,
                accuracy: one(self.held.accuracies(&logits, 1)?)?,
                count: array(&self.held.count, "a count")?,
            })
        })
    }

    /// Compiles the models' own edits for a forward pass up to the logits. With `explicit`, attention is computed step
    /// by step, which can be differentiated twice.
    pub(super) fn program(&self, explicit: bool) -> Result<Program> {
        let plan = self.edits.iter().cloned().fold(Plan::new().tap(Site::Logits), Plan::edit);
        let plan = if explicit { plan.explicit() } else { plan };
        Program::new(&plan, &self.model, &self.held.tokens)
    }

    /// Values of a layer in a run of all models, `[run * row, ..]`, Z among them.
    pub(super) fn values(&self, layer: usize, wires: Wires) -> Result<Unchanged> {
        let program = Program::new(&self.recording(&[Site::Z(layer)]), &self.model, &self.held.tokens)?;
        let pass = Pass::new(&self.model, &program, &self.held.tokens);
        let pass = pass.keeping(wires.iter().map(|wire| (layer, wire)));
        Ok(pass.records(self.held.tokens.ids(self.model.device()))?.1)
    }

    /// Runs all models and records `sites`, `[run * row, ..]`.
    pub(in crate::lab) fn record(&self, sites: impl IntoIterator<Item = Site>) -> Result<Run> {
        let sites: Vec<Site> = sites.into_iter().collect();
        self.model.run(&self.held.tokens, &self.recording(&sites))
    }

    /// The models' own edits, as far as they can be seen at `sites`, which are recorded.
    fn recording(&self, sites: &[Site]) -> Plan {
        let last = sites.iter().filter_map(|site| site.layer()).max().unwrap_or(usize::MAX);
        let seen = |edit: &&Edit| edit.site.layer().is_none_or(|layer| layer < last) || sites.contains(&edit.site);
        let edits = self.edits.iter().filter(seen).cloned();
        edits.fold(Plan::new().taps(sites.iter().copied()), Plan::edit)
    }

    /// Fails if there is no such layer.
    pub(super) fn check_layer(&self, layer: usize) -> Result<()> {
        let limit = self.model.config().n_layers;
        match layer < limit {
            true => Ok(()),
            false => {
                let (at, found, limit) = ("models".to_owned(), layer as i64, limit as i64);
                Err(Error::OutOfRange { at, axis: "layer", found, limit })
            }
        }
    }

    /// A parameter of all models, with a `run` axis even for a single model.
    pub(super) fn parameter(&self, name: &str) -> Result<Tensor> {
        let all = self.model.parameters();
        let found = all.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor.detach());
        let found = found.ok_or_else(|| Error::argument("model", format!("a parameter `{name}`"), "none"))?;
        Ok(if self.model.weights_are_stacked() { found } else { found.unsqueeze(0) })
    }

    /// The sum of the squares of a parameter, by model.
    pub(in crate::lab) fn squared_norms(&self, name: &str) -> Result<Vec<f64>> {
        let squares = self.parameter(name)?.to_kind(Kind::Double).square().flatten(1, -1);
        let sums: ndarray::Array1<f64> = array(&squares.sum_dim_intlist([1i64].as_slice(), false, None::<Kind>), name)?;
        Ok(sums.to_vec())
    }

    /// Output matrices of a layer, `[run, head, d_head, d_model]`, in float64.
    pub(super) fn w_o(&self, layer: usize) -> Result<Tensor> {
        let heads = self.model.config().n_heads as i64;
        Ok(self.parameter(&format!("blocks.{layer}.w_o"))?.unflatten(1, [heads, -1]).to_kind(Kind::Double))
    }

    /// Reshapes `[run * place, 1, ..]` to `[run, place, ..]`.
    pub(super) fn by_run(&self, x: &Tensor) -> Tensor {
        x.squeeze_dim(1).unflatten(0, [self.held.runs, -1])
    }
}

/// Converts a tensor to a float64 array.
pub(super) fn array<D: Dimension>(tensor: &Tensor, what: &str) -> Result<Array<f64, D>> {
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double).contiguous().flatten(0, -1);
    let flat = Vec::<f64>::try_from(flat).map_err(Error::torch(format!("reading {what}")))?;
    let wrong = || {
        let expected = format!("{:?} axes", D::NDIM.unwrap_or(0));
        Error::Shape { at: what.to_owned(), expected, found: tensor.size() }
    };
    let whole = ArrayD::from_shape_vec(shape, flat).map_err(|_| wrong())?;
    whole.into_dimensionality().map_err(|_| wrong())
}
