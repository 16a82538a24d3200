//! Models on held-out sequences: what all measures start from.

use ndarray::{Array, Array2, ArrayD, Dimension};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::lab::language::{Batch, Language};
use crate::lab::prepared::Prepared;
use crate::model::{Edit, Model, ModelConfig, Pass, Plan, Program, Run, Site, Unchanged, Wires};

/// One model, or several of one architecture at once, on sequences of a language that they were not trained on.
///
/// All that is measured has the run first: `[run, ..]`, one for each model, in the order given.
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
    /// All models as one, with a `run` axis where there are several.
    pub(super) model: Model,
    pub(super) held: Prepared,
    pub(super) batches: Vec<Batch>,
    pub(super) tasks: Vec<String>,
    pub(super) edits: Vec<Edit>,
    pub(super) seeds: Vec<Option<u64>>,
    pub(super) step: Option<usize>,
}

/// Losses of some models.
#[derive(Debug, Clone, PartialEq)]
pub struct Losses {
    /// Mean of -ln p over each task's predictions, in nats, `[run, task]`; 0 where a task has no prediction.
    pub loss: Array2<f64>,
    /// Share of the predictions whose token is the likeliest, `[run, task]`.
    pub accuracy: Array2<f64>,
    /// Number of predictions, `[run, task]`.
    pub count: Array2<f64>,
}

/// Sequences that no training has seen: the last batch of the stream of each seed.
///
/// # Errors
/// As [`Language::batch`].
pub fn held_out(language: &Language, rows: usize, seeds: &[u64]) -> Result<Vec<Batch>> {
    seeds.iter().map(|&seed| language.batch(rows, seed, u64::MAX)).collect()
}

impl Probe {
    /// Models, and a batch for each.
    ///
    /// # Errors
    /// Where there is no model, they differ in architecture, type or device, the batches are not as many or not of as many rows,
    /// or a token does not fit.
    pub fn new(models: &[Model], language: &Language, batches: &[Batch]) -> Result<Self> {
        Self::of(Model::stacked(models)?, language, batches)
    }

    /// A probe of models that are stacked already.
    pub(in crate::lab) fn of(model: Model, language: &Language, batches: &[Batch]) -> Result<Self> {
        let runs = model.runs();
        if batches.len() != runs {
            return Err(Error::argument("batches", format!("{runs}, one for each model"), batches.len()));
        }
        let tasks: Vec<String> = language.tasks().into_iter().map(|task| task.name).collect();
        let held = Prepared::new(batches, tasks.len(), model.kind(), model.device())?;
        model.check_tokens(&held.tokens)?;
        if !model.config().causal {
            return Err(Error::argument("model", "a causal one", &model.config().family));
        }
        let (batches, edits, seeds) = (batches.to_vec(), vec![], vec![None; runs]);
        Ok(Self { model, held, batches, tasks, edits, seeds, step: None })
    }

    /// The models' seeds, for the tables' column `seed`; in the order of the models.
    pub fn seeds(mut self, seeds: &[u64]) -> Self {
        let mut given = seeds.iter().copied();
        self.seeds.iter_mut().for_each(|seed| *seed = given.next());
        self
    }

    /// The step of training, for the tables' column `step`.
    pub fn step(mut self, step: usize) -> Self {
        self.step = Some(step);
        self
    }

    /// Edits that belong to the models, such as heads that are scaled: they apply in all that is measured. They must need no
    /// other run.
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
    /// Where libtorch fails.
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

    /// What the models' own edits make of a pass up to the logits. `explicit`: attention step by step, which can be differentiated
    /// twice.
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

    /// A run of all models that records `sites`, `[run * row, ..]`.
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

    /// Fails where there is no such layer.
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

    /// A parameter of all models, with a `run` axis even where there is one model.
    pub(super) fn parameter(&self, name: &str) -> Result<Tensor> {
        let all = self.model.parameters();
        let found = all.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor.detach());
        let found = found.ok_or_else(|| Error::argument("model", format!("a parameter `{name}`"), "none"))?;
        Ok(if self.model.weights_are_stacked() { found } else { found.unsqueeze(0) })
    }

    /// Output matrices of a layer, `[run, head, d_head, d_model]`, in double precision.
    pub(super) fn w_o(&self, layer: usize) -> Result<Tensor> {
        let heads = self.model.config().n_heads as i64;
        Ok(self.parameter(&format!("blocks.{layer}.w_o"))?.unflatten(1, [heads, -1]).to_kind(Kind::Double))
    }

    /// `x`, `[run * place, 1, ..]`, as `[run, place, ..]`.
    pub(super) fn by_run(&self, x: &Tensor) -> Tensor {
        x.squeeze_dim(1).unflatten(0, [self.held.runs, -1])
    }
}

/// A tensor as an array of float64.
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
