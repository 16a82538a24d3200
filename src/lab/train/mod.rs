//! A model trained on a language, by the forward pass that every probe uses.
//!
//! A step's sequences follow from the seed and the step's number, so that a run that was stopped goes on to the same bits.
//! Several seeds train as one stacked model: small models leave a processor idle.

mod loss;
mod options;
mod parameters;
mod surgery;

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde_json::json;
use tch::{Device, Kind, Tensor};

pub use options::{Decay, HeadOptions, Optimiser, TrainOptions};

pub(in crate::lab) use surgery::{shuffled_head, transplanted};

use self::loss::Losses;
use self::parameters::Parameters;
use super::language::{Batch, Language};
use super::trace::Probe;
use crate::checkpoint::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
use crate::progress::Progress;
use crate::table::{Keys, Observation, Provenance, Table};

/// A trained model and how its loss fell.
pub struct Trained {
    /// The model.
    pub model: Model,
    /// The trace: `loss` in nats and `accuracy` by task and step, on the sequences that were trained on.
    pub trace: Table,
}

/// Trains one model, or one for each of several seeds at once.
///
/// ```
/// use headscope::lab::{Language, TrainOptions, Trainer, language::Repeats};
/// use headscope::model::ModelConfig;
/// let language = Language::Repeats(Repeats::default());
/// let config = ModelConfig { d_mlp: 0, vocab: language.vocab(), ..ModelConfig::default() };
/// let options = TrainOptions { steps: 2, batch: 4, ..TrainOptions::default() };
/// let trained = Trainer::new(&config, &language, &options)?.run()?;
/// assert_eq!(trained.len(), 1);
/// # Ok::<(), headscope::Error>(())
/// ```
pub struct Trainer {
    language: Language,
    options: TrainOptions,
    seeds: Vec<u64>,
    /// The first seed's model as it was at the start.
    template: Model,
    parameters: Parameters,
    step: usize,
    rows: Vec<Observation>,
}

/// Tells the stream of a seed's noise from its other streams.
const NOISE: u64 = 0x6E6F_6973_6500;
/// The file from which training resumes.
const STATE: &str = "training.safetensors";

impl Trainer {
    /// A trainer at step 0.
    ///
    /// # Errors
    /// Where the config, the language or an option makes no sense, or they do not fit each other.
    pub fn new(config: &ModelConfig, language: &Language, options: &TrainOptions) -> Result<Self> {
        Self::with_seeds(config, language, options, &[options.seed])
    }

    /// [`Trainer::new`] for several seeds, trained at once as one stacked model; each has the results it would have alone, to
    /// float tolerance.
    ///
    /// # Errors
    /// As [`Trainer::new`]; also where there is no seed.
    pub fn with_seeds(
        config: &ModelConfig,
        language: &Language,
        options: &TrainOptions,
        seeds: &[u64],
    ) -> Result<Self> {
        Self::start(config, language, options, seeds, Kind::Float, Device::Cpu)
    }

    /// [`Trainer::with_seeds`] in a type (`Float` or `Double`), on a device.
    ///
    /// # Errors
    /// As [`Trainer::with_seeds`]; also where the device is not there.
    pub fn start(
        config: &ModelConfig,
        language: &Language,
        options: &TrainOptions,
        seeds: &[u64],
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        check_fit(config, language, options)?;
        let start = |seed: &u64| {
            let drawn = Model::initial(config, *seed, options.embedding_std, kind, device)?;
            let heads = &options.heads;
            Ok(if heads.identical { surgery::identical(&drawn, heads.perturbation, *seed) } else { drawn })
        };
        let models = seeds.iter().map(start).collect::<Result<Vec<_>>>()?;
        Self::from_models(models, language, options, seeds)
    }

    /// A trainer at step 0 that starts from given models of one architecture; each seed is that of a model's stream of sequences.
    ///
    /// # Errors
    /// As [`Trainer::with_seeds`]; also where models differ in architecture or are not as many as seeds.
    pub fn from_models(
        mut models: Vec<Model>,
        language: &Language,
        options: &TrainOptions,
        seeds: &[u64],
    ) -> Result<Self> {
        let Some(config) = models.first().map(|model| model.config().clone()) else {
            return Err(Error::argument("seeds", "at least one", 0));
        };
        check_fit(&config, language, options)?;
        if models.len() != seeds.len() || (models.len() > 1 && config.n_token_types > 0) {
            let found = format!("{} models, {} seeds", models.len(), seeds.len());
            return Err(Error::argument("seeds", "one for each model; one only with token types", found));
        }
        if let Some(other) = models.iter().find(|model| *model.config() != config) {
            return Err(Error::argument("models", "models of one architecture", format!("{:?}", other.config())));
        }
        let parameters = Parameters::new(&models, &options.heads);
        let (language, options, seeds) = (language.clone(), options.clone(), seeds.to_vec());
        Ok(Self { language, options, seeds, template: models.swap_remove(0), parameters, step: 0, rows: vec![] })
    }

    /// The models as they are now, stacked where there are several.
    pub(in crate::lab) fn models(&self) -> Result<Model> {
        let (model, _) = self.parameters.attach(&self.template)?;
        Ok(model.with_parameters(|leaf| leaf.detach().copy()))
    }

    /// The models as they are now on held-out sequences, one batch for each.
    ///
    /// # Errors
    /// As [`Probe::new`].
    pub fn probe(&self, batches: &[Batch]) -> Result<Probe> {
        let probe = Probe::of(self.models()?, &self.language, batches)?;
        Ok(probe.seeds(&self.seeds).step(self.step).edits(self.edits()))
    }

    /// What the options make of heads in every pass.
    fn edits(&self) -> Vec<Edit> {
        let heads = &self.options.heads;
        let layers = heads.noise.map_or(0, |_| self.template.config().n_layers);
        let normal = (0..layers).map(|layer| Edit::new(Site::Z(layer), Action::Normalise));
        let scale = |&(layer, head, factor)| Edit::new(Site::Z(layer), Action::Scale { factor }).head(head);
        normal.chain(heads.scaled.iter().map(scale)).collect()
    }

    /// How many steps have been taken.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Trains to the last step and returns one model a seed.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the step and the tensor where a gradient is not finite.
    pub fn run(mut self) -> Result<Vec<Trained>> {
        self.train_to(self.options.steps)?;
        self.finish()
    }

    /// Trains up to step `end`, or the last one where that is earlier.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn train_to(&mut self, end: usize) -> Result<()> {
        let end = end.min(self.options.steps);
        let (model, leaves) = self.parameters.attach(&self.template)?;
        let mut progress = Progress::new("training", end.saturating_sub(self.step));
        while self.step < end {
            self.one(&model, &leaves)?;
            self.step += 1;
            progress.add(1);
        }
        Ok(())
    }

    /// One step.
    fn one(&mut self, model: &Model, leaves: &[Tensor]) -> Result<()> {
        let number = self.step as u64;
        let batches: Vec<Batch> = self
            .seeds
            .iter()
            .map(|seed| self.language.batch(self.options.batch, *seed, number))
            .collect::<Result<_>>()?;
        let losses = self.losses(model, &batches)?;
        let total = losses.total(&self.options.task_weights);
        let gradients =
            Tensor::f_run_backward(&[total], leaves, false, false).map_err(Error::torch("a backward pass"))?;
        // What nothing depends on (a norm's weight before a head that is scaled by 0) has no gradient.
        let known = gradients.into_iter().zip(leaves);
        let gradients: Vec<Tensor> = known.map(|(g, leaf)| if g.defined() { g } else { leaf.zeros_like() }).collect();
        if self.step.is_multiple_of(self.options.record_every) || self.step + 1 == self.options.steps {
            self.record(&losses)?;
        }
        tch::no_grad(|| self.parameters.step(&gradients, self.step, &self.options))
    }

    /// The losses of one batch for each run.
    fn losses(&self, model: &Model, batches: &[Batch]) -> Result<Losses> {
        let rows: Vec<Vec<i64>> = batches.iter().flat_map(|batch| batch.tokens.rows().to_vec()).collect();
        let plan = Plan::new().tap(Site::Logits).differentiable();
        let plan = self.edits().into_iter().fold(plan, Plan::edit);
        let plan = self.noisy(plan, batches)?;
        let run = model.run(&Tokens::new(&rows)?, &plan)?;
        Losses::of(run.logits()?, batches, self.language.tasks().len())
    }

    /// The plan with noise on every z, drawn for each run from its seed and the step.
    fn noisy(&self, mut plan: Plan, batches: &[Batch]) -> Result<Plan> {
        let Some(sigma) = self.options.heads.noise.filter(|sigma| *sigma > 0.0) else { return Ok(plan) };
        let config = self.template.config();
        let positions = batches.iter().map(|batch| batch.tokens.positions()).max().unwrap_or(0);
        for layer in 0..config.n_layers {
            let mut noise = vec![];
            for (seed, batch) in self.seeds.iter().zip(batches) {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed ^ NOISE);
                rng.set_stream((self.step * config.n_layers + layer) as u64);
                let n = batch.tokens.batch() * positions * config.n_heads * config.d_head;
                noise.extend((0..n).map(|_| rng.sample::<f32, _>(StandardNormal)));
            }
            let shape = [-1, positions as i64, config.n_heads as i64, config.d_head as i64];
            let noise = Tensor::from_slice(&noise).view(shape).to_kind(self.template.kind());
            let key = format!("noise {layer}");
            let edit = Edit::new(Site::Z(layer), Action::Add { key: key.clone(), alpha: sigma });
            plan = plan.with_tensor(&key, Site::Z(layer), &noise.to_device(self.template.device())).edit(edit);
        }
        Ok(plan)
    }

    fn record(&mut self, losses: &Losses) -> Result<()> {
        let read = |tensor: &Tensor| {
            let values =
                Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).to_device(Device::Cpu).flatten(0, -1));
            values.map_err(Error::torch("reading losses"))
        };
        let (mean, accuracy, count) = (read(&losses.mean)?, read(&losses.accuracy)?, read(&losses.count)?);
        let tasks = self.language.tasks();
        for (cell, _) in count.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            let keys = Keys {
                task: Some(tasks[cell % tasks.len()].name.clone()),
                step: u32::try_from(self.step).ok(),
                seed: Some(self.seeds[cell / tasks.len()]),
                ..Keys::default()
            };
            for (metric, value) in [("loss", mean[cell]), ("accuracy", accuracy[cell])] {
                self.rows.push(Observation {
                    keys: keys.clone(),
                    metric: metric.to_owned(),
                    value,
                    ..Observation::default()
                });
            }
        }
        Ok(())
    }

    /// The models as they are now.
    fn finish(self) -> Result<Vec<Trained>> {
        let words = self.language.words();
        let tokenizer = words.map(|words| Tokenizer::of_words(&words)).transpose()?;
        let mut all = vec![];
        for (run, seed) in self.seeds.iter().enumerate() {
            let mut model = self.parameters.detach(&self.template, run as i64);
            if let Some(tokenizer) = &tokenizer {
                model = model.with_tokenizer(tokenizer.clone());
            }
            let rows = self.rows.iter().filter(|row| row.keys.seed == Some(*seed)).cloned().collect();
            let options = json!({"model": model.config(), "language": self.language, "train": self.options});
            let provenance = Provenance {
                headscope: env!("CARGO_PKG_VERSION").to_owned(),
                model: "trained".to_owned(),
                options,
                seed: Some(*seed),
                ..Provenance::default()
            };
            all.push(Trained { model, trace: Table::new(rows, provenance)? });
        }
        Ok(all)
    }

    /// Writes into `folder` what a later [`Trainer::resume`] needs. The trace is not part of it.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        self.parameters.save(&folder.join(STATE), self.step)
    }

    /// Goes on where [`Trainer::save`] stopped, to the same bits; the trainer must be made with the same declaration.
    ///
    /// # Errors
    /// Where the file cannot be read or is of another architecture.
    pub fn resume(mut self, folder: impl AsRef<Path>) -> Result<Self> {
        self.step = tch::no_grad(|| self.parameters.resume(&folder.as_ref().join(STATE)))?;
        Ok(self)
    }
}

/// Fails where the model cannot read the language or the options name heads that it does not have.
fn check_fit(config: &ModelConfig, language: &Language, options: &TrainOptions) -> Result<()> {
    options.validate()?;
    language.validate()?;
    let tasks = language.tasks().len();
    if !options.task_weights.is_empty() && options.task_weights.len() != tasks {
        let expected = format!("none, or one for each of {tasks} tasks");
        return Err(Error::argument("task_weights", expected, options.task_weights.len()));
    }
    if !(config.causal && config.has_logits()) {
        return Err(Error::argument("model", "a causal model with logits", &config.family));
    }
    if config.vocab != language.vocab() {
        return Err(Error::argument("vocab", format!("{}, as the language has", language.vocab()), config.vocab));
    }
    if config.n_positions < language.positions() {
        let expected = format!("at least {}, for the language's longest sequence", language.positions());
        return Err(Error::argument("n_positions", expected, config.n_positions));
    }
    let heads = &options.heads;
    let named = heads.frozen.iter().copied().chain(heads.scaled.iter().map(|&(layer, head, _)| (layer, head)));
    for (layer, head) in named {
        for (axis, found, limit) in [("layer", layer, config.n_layers), ("head", head, config.n_heads)] {
            if found >= limit {
                let at = "heads of the training options".to_owned();
                return Err(Error::OutOfRange { at, axis, found: found as i64, limit: limit as i64 });
            }
        }
    }
    Ok(())
}
