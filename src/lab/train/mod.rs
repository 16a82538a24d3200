//! How is a model trained on a language? With the same forward pass that every probe uses.
//!
//! The sequences of a step are determined by the seed and the step, so a run that was interrupted resumes bit for bit.
//! Several seeds train as one stacked model, since one small model leaves a processor idle.

mod competition;
mod fit;
mod group;
mod options;
mod parameters;
mod surgery;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use tch::{Device, Kind};

pub use options::{Decay, HeadOptions, Optimiser, TraceOptions, TrainOptions};

pub(in crate::lab) use parameters::by_head;
pub(in crate::lab) use surgery::{shuffled_head, transplanted};

use self::fit::check_fit;
use self::group::{Common, Together};
use self::parameters::Parameters;
use super::language::{Batch, Language};
use super::streams::Purpose;
use super::trace::Probe;
use crate::device;
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};
use crate::progress::Progress;
use crate::table::{Keys, Observation, Provenance, Table};
use crate::workers::{on_one_thread, spread};

/// A trained model and its training curves.
pub struct Trained {
    /// The model.
    pub model: Model,
    /// The trace: `loss` in nats and `accuracy` by task and step on the training sequences, and the measurements
    /// requested by [`TraceOptions`] on held-out ones.
    pub trace: Table,
}

impl Trained {
    /// The course of a metric in the trace as (step, value) pairs. Rows must match the layer, head, other head, site
    /// and task in `of`, where given. NaN values are skipped.
    ///
    /// # Errors
    /// [`Error::Argument`] if the trace has no such row; it names the available metrics.
    pub fn course(&self, metric: &str, of: &Keys) -> Result<Vec<(f64, f64)>> {
        let rows = self.trace.rows()?;
        let same = |row: &&Observation| {
            let Keys { from_head, layer, site, head, task, .. } = &row.keys;
            let numbers = [(of.from_head, *from_head), (of.layer, *layer), (of.head, *head)];
            let texts = [(&of.site, site), (&of.task, task)];
            row.metric == metric
                && numbers.into_iter().all(|(asked, found)| asked.is_none() || asked == found)
                && texts.into_iter().all(|(asked, found)| asked.is_none() || asked == found)
        };
        let found: Vec<&Observation> = rows.iter().filter(same).collect();
        if found.is_empty() {
            let names: BTreeSet<&str> = rows.iter().map(|row| row.metric.as_str()).collect();
            let expected = format!("one of {names:?}, in a row that matches the keys");
            return Err(Error::argument("metric", expected, format!("{metric} of {of:?}")));
        }
        let point = |row: &Observation| Some((f64::from(row.keys.step?), Some(row.value).filter(|v| !v.is_nan())?));
        let mut points: Vec<(f64, f64)> = found.into_iter().filter_map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(points)
    }
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
    common: Common,
    groups: Vec<Together>,
    step: usize,
}

/// The file from which training resumes, and the file with the rows recorded so far.
const STATE: &str = "training.safetensors";
const RECORDED: &str = "training.parquet";

impl Trainer {
    /// Creates a trainer at step 0.
    ///
    /// # Errors
    /// If the config, the language or an option is invalid, or they are incompatible.
    pub fn new(config: &ModelConfig, language: &Language, options: &TrainOptions) -> Result<Self> {
        Self::with_seeds(config, language, options, &[options.seed])
    }

    /// [`Trainer::new`] for several seeds, trained at once as one stacked model. Each run has the results that it would
    /// have alone, up to floating-point tolerance.
    ///
    /// # Errors
    /// As for [`Trainer::new`]; also if there is no seed.
    pub fn with_seeds(
        config: &ModelConfig,
        language: &Language,
        options: &TrainOptions,
        seeds: &[u64],
    ) -> Result<Self> {
        Self::start(config, language, options, seeds, Kind::Float, Device::Cpu)
    }

    /// [`Trainer::with_seeds`] with a dtype (`Float` or `Double`) and a device.
    ///
    /// # Errors
    /// As for [`Trainer::with_seeds`]; also if the device is not available.
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
            let weights = Purpose::Weights.seed(*seed);
            let drawn = Model::initial(config, weights, options.embedding_std, kind, device)?;
            let heads = &options.heads;
            let drawn = surgery::limited(drawn, heads);
            Ok(if heads.identical { surgery::identical(&drawn, heads.perturbation, *seed) } else { drawn })
        };
        let models = seeds.iter().map(start).collect::<Result<Vec<_>>>()?;
        Self::from_models(models, language, options, seeds)
    }

    /// Creates a trainer at step 0 from existing models of one architecture; each seed determines the training
    /// sequences of the corresponding model.
    ///
    /// # Errors
    /// As for [`Trainer::with_seeds`]; also if models differ in architecture, their number differs from the number of
    /// seeds, or heads have a higher rank than the options allow.
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
            return Err(Error::argument("seeds", "one for each model; only one for models with token types", found));
        }
        if let Some(other) = models.iter().find(|model| *model.config() != config) {
            return Err(Error::argument("models", "models of one architecture", format!("{:?}", other.config())));
        }
        models.iter().try_for_each(|model| surgery::check_limited(model, &options.heads))?;
        let each = group::at_once(seeds.len(), &models[0], language, options);
        let mut groups = vec![];
        for seeds in seeds.chunks(each) {
            let mut own: Vec<Model> = models.drain(..seeds.len()).collect();
            let parameters = Parameters::new(&own, &options.heads);
            groups.push(Together { seeds: seeds.to_vec(), template: own.swap_remove(0), parameters, rows: vec![] });
        }
        let tasks = language.tasks().into_iter().map(|task| task.name).collect();
        let common = Common { language: language.clone(), options: options.clone(), tasks };
        Ok(Self { common, groups, step: 0 })
    }

    /// Copies of the current models, one per seed, in the order of the seeds.
    pub fn snapshots(&self) -> Vec<Model> {
        self.each_model().map(|(_, model)| model).collect()
    }

    /// The current model of each seed.
    fn each_model(&self) -> impl Iterator<Item = (u64, Model)> {
        let of = |group: &Together| {
            let own = |(run, &seed): (usize, &u64)| (seed, group.parameters.detach(&group.template, run as i64));
            group.seeds.iter().enumerate().map(own).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of)
    }

    /// The current models, stacked if there are several.
    pub(in crate::lab) fn models(&self) -> Result<Model> {
        Model::stacked(&self.snapshots())
    }

    /// A probe of the current models on held-out sequences, one batch per model.
    ///
    /// # Errors
    /// As for [`Probe::new`].
    pub fn probe(&self, batches: &[Batch]) -> Result<Probe> {
        let probe = Probe::of(self.models()?, &self.common.language, batches)?;
        let seeds: Vec<u64> = self.groups.iter().flat_map(|group| &group.seeds).copied().collect();
        let config = probe.config().clone();
        Ok(probe.seeds(&seeds).step(self.step).edits(group::measured_edits(&self.common.options.heads, &config)))
    }

    /// Number of steps taken so far.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Trains to the last step and returns one model per seed.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the step and the tensor if a gradient is not finite.
    pub fn run(mut self) -> Result<Vec<Trained>> {
        self.train_to(self.common.options.steps)?;
        self.finish()
    }

    /// Trains up to step `end`, or to the last step if that comes first. With many seeds, groups of them train in
    /// parallel, on as many threads as libtorch may use; each group uses a single thread, so results do not depend on
    /// the number of threads.
    ///
    /// # Errors
    /// As for [`Trainer::run`].
    pub fn train_to(&mut self, end: usize) -> Result<()> {
        let (from, to) = (self.step, end.min(self.common.options.steps));
        if from >= to {
            return Ok(());
        }
        let progress = Mutex::new(Progress::new("training steps", (to - from) * self.groups.len()));
        let done = || {
            if let Ok(mut progress) = progress.lock() {
                progress.add(1);
            }
        };
        let allowed = usize::try_from(tch::get_num_threads()).unwrap_or(1);
        let common = &self.common;
        if allowed < 2 || self.groups.len() < 2 {
            self.groups.iter_mut().try_for_each(|group| group.train(common, from, to, &done))?;
        } else {
            in_threads(&mut self.groups, allowed, &|group| group.train(common, from, to, &done))?;
        }
        self.step = to;
        Ok(())
    }

    /// Turns the current models into results.
    fn finish(self) -> Result<Vec<Trained>> {
        let tokenizer = self.common.language.tokenizer()?;
        let mut all = vec![];
        for (seed, mut model) in self.each_model() {
            if let Some(tokenizer) = &tokenizer {
                model = model.with_tokenizer(tokenizer.clone());
            }
            let rows = self.recorded().filter(|row| row.keys.seed == Some(seed)).cloned().collect();
            all.push(Trained { trace: Table::new(rows, self.provenance(Some(seed)))?, model });
        }
        Ok(all)
    }

    fn recorded(&self) -> impl Iterator<Item = &Observation> {
        self.groups.iter().flat_map(|group| &group.rows)
    }

    fn provenance(&self, seed: Option<u64>) -> Provenance {
        let Common { language, options, .. } = &self.common;
        let config = self.groups.first().map(|group| group.template.config());
        Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: "trained".to_owned(),
            options: json!({"model": config, "language": language, "train": options}),
            seed,
            ..Provenance::default()
        }
    }

    /// Writes to `folder` the state that [`Trainer::resume`] needs, and the rows recorded so far.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        // The state is written last: on resuming, rows from steps after the saved one are dropped.
        let rows: Vec<Observation> = self.recorded().cloned().collect();
        if !rows.is_empty() {
            Table::new(rows, self.provenance(None))?.write(folder.join(RECORDED))?;
        }
        let all: Vec<&Parameters> = self.groups.iter().map(|group| &group.parameters).collect();
        parameters::save(&all, &folder.join(STATE), self.step, &self.declared())
    }

    /// Everything that the numbers of a step depend on, apart from the state.
    fn declared(&self) -> Value {
        let Common { language, options, .. } = &self.common;
        let seeds: Vec<u64> = self.groups.iter().flat_map(|group| &group.seeds).copied().collect();
        // The seed in the options is either among these seeds or not used.
        let options = TrainOptions { seed: 0, ..options.clone() };
        let template = self.groups.first().map(|group| &group.template);
        let numbers =
            template.map(|model| format!("{:?} on {}", model.kind(), device::name(model.device())).to_lowercase());
        let config = template.map(Model::config);
        json!({"model": config, "language": language, "train": options, "seeds": seeds, "numbers": numbers})
    }

    /// Continues from a state written by [`Trainer::save`], with bit-identical results and the same trace.
    ///
    /// # Errors
    /// If a file cannot be read, or training was started with another model, language, dtype or device, or other
    /// options or seeds; the message names the differences.
    pub fn resume(mut self, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let declared = self.declared();
        let mut all: Vec<&mut Parameters> = self.groups.iter_mut().map(|group| &mut group.parameters).collect();
        self.step = tch::no_grad(|| parameters::resume(&mut all, &folder.join(STATE), &declared))?;
        if self.step == 0 {
            return Ok(self);
        }
        let ended = self.step == self.common.options.steps;
        let before = |row: &Observation| ended || row.keys.step.is_some_and(|step| (step as usize) < self.step);
        let rows: Vec<Observation> = Table::read(folder.join(RECORDED))?.rows()?.into_iter().filter(before).collect();
        for group in &mut self.groups {
            let own = rows.iter().filter(|row| row.keys.seed.is_some_and(|seed| group.seeds.contains(&seed)));
            group.rows = own.cloned().collect();
        }
        Ok(self)
    }
}

/// Runs `work` for all groups on up to `threads` threads, with one libtorch thread each.
fn in_threads(
    groups: &mut [Together],
    threads: usize,
    work: &(dyn Fn(&mut Together) -> Result<()> + Sync),
) -> Result<()> {
    let groups: Vec<Mutex<&mut Together>> = groups.iter_mut().map(Mutex::new).collect();
    let lost = |_| Error::argument("training", "runs that finish without a panic", "a panic");
    let each = |number: usize| {
        let mut group = groups[number].lock().map_err(lost)?;
        work(&mut group)
    };
    on_one_thread(|| spread(groups.len(), threads, None, each, |_, ()| Ok(()))).map(drop)
}
