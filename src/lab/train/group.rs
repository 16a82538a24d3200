//! How do several runs train together? As one stacked model.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::{Device, Kind, Tensor};

use super::competition;
use super::options::{HeadOptions, TraceOptions, TrainOptions};
use super::parameters::Parameters;
use crate::error::{Error, Result};
use crate::lab::language::{Batch, Language};
use crate::lab::prepared::Prepared;
use crate::lab::streams::Purpose;
use crate::lab::trace::{Probe, held_out};
use crate::model::{Action, Edit, Model, ModelConfig, Plan, Program, Site, Tokens};
use crate::table::{Keys, Observation};

/// What all groups of a trainer share.
pub(super) struct Common {
    pub language: Language,
    pub options: TrainOptions,
    /// The names of the language's tasks.
    pub tasks: Vec<String>,
}

/// Runs that train together, one per seed.
pub(super) struct Together {
    pub seeds: Vec<u64>,
    /// The initial model of the first seed.
    pub template: Model,
    pub parameters: Parameters,
    /// The recorded rows: losses, and the measurements of the trace.
    pub rows: Vec<Observation>,
}

/// Maximum size in bytes of the residual stream of a group's batches, so that a step fits into a core's cache.
const CACHED: usize = 1 << 20;

/// How many of `runs` runs train together: on a CPU, as many as fit into the cache, in groups of equal size.
pub(super) fn at_once(runs: usize, model: &Model, language: &Language, options: &TrainOptions) -> usize {
    if model.device() != Device::Cpu || runs == 0 {
        return runs;
    }
    let each = options.batch * language.positions() * model.config().d_model * model.kind().elt_size_in_bytes();
    let most = (CACHED / each.max(1)).clamp(1, runs);
    runs.div_ceil(runs.div_ceil(most))
}

/// The edits that the head options apply in every forward pass.
pub(super) fn edits(heads: &HeadOptions, config: &ModelConfig) -> Vec<Edit> {
    let layers = heads.noise.map_or(0, |_| config.n_layers);
    let normal = (0..layers).map(|layer| Edit::new(Site::Z(layer), Action::Normalise));
    let scale = |&(layer, head, factor)| Edit::new(Site::Z(layer), Action::Scale { factor }).head(head);
    normal.chain(heads.scaled.iter().map(scale)).collect()
}

/// The edits with which models are measured: those of training, and the scale that belongs to a dose of competition.
pub(super) fn measured_edits(heads: &HeadOptions, config: &ModelConfig) -> Vec<Edit> {
    let scale = competition::measured_scale(heads, config);
    let scale = scale.map(|factor| Edit::new(Site::Z(0), Action::Scale { factor }));
    edits(heads, config).into_iter().chain(scale).collect()
}

impl Together {
    /// Trains from step `from` to step `to`; `done` is called after every step.
    pub(super) fn train(&mut self, common: &Common, from: usize, to: usize, done: &(dyn Fn() + Sync)) -> Result<()> {
        let (model, leaves) = self.parameters.attach(&self.template)?;
        let trace = common.options.trace.as_ref();
        let trace = trace.map(|trace| held_out(&common.language, trace.rows, &self.seeds).map(|held| (trace, held)));
        let trace = trace.transpose()?;
        for step in from..to {
            if let Some((trace, held)) = trace.as_ref().filter(|(trace, _)| step.is_multiple_of(trace.every)) {
                self.measure(common, trace, held, &model, step)?;
            }
            self.one(common, step, &model, &leaves)?;
            done();
        }
        match trace.filter(|_| to == common.options.steps) {
            Some((trace, held)) => self.measure(common, trace, &held, &model, to),
            None => Ok(()),
        }
    }

    /// Records the measurements of the trace for the models after `step` steps.
    fn measure(
        &mut self,
        common: &Common,
        trace: &TraceOptions,
        held: &[Batch],
        model: &Model,
        step: usize,
    ) -> Result<()> {
        let model = model.with_parameters(|leaf| leaf.detach());
        let edits = measured_edits(&common.options.heads, model.config());
        let probe = Probe::of(model, &common.language, held)?.seeds(&self.seeds).step(step).edits(edits);
        let mut rows = probe.observations(&trace.quantities)?;
        for row in rows.iter_mut().filter(|row| ["loss", "accuracy"].contains(&row.metric.as_str())) {
            row.metric = format!("held_out_{}", row.metric);
        }
        self.rows.extend(rows);
        Ok(())
    }

    fn one(&mut self, common: &Common, step: usize, model: &Model, leaves: &[Tensor]) -> Result<()> {
        let options = &common.options;
        let draw = |seed: &u64| common.language.samples(options.batch, *seed, step as u64, false);
        let samples = self.seeds.iter().map(draw).collect::<Result<Vec<_>>>()?;
        let data = Prepared::owning(samples, common.tasks.len(), model.kind(), model.device())?;
        let program = self.program(options, step, &data.tokens)?;
        // With a dose of competition, one variant for each head; otherwise one.
        let (logits, variants) = match options.heads.competition {
            Some(dose) => (competition::logits(&data, model, &program, dose)?, model.config().n_heads as i64),
            None => (data.logits(model, &program)?, 1),
        };
        let mean = |values: Tensor| match variants {
            1 => values,
            _ => values.mean_dim([1i64].as_slice(), true, None::<Kind>),
        };
        let losses = mean(data.losses(&logits, variants)?);
        let total = data.total(&losses, &options.task_weights);
        let gradients =
            Tensor::f_run_backward(&[total], leaves, false, false).map_err(Error::torch("a backward pass"))?;
        // Tensors that do not affect the loss, such as a norm's weight before a head scaled by 0, have no gradient.
        let known = gradients.into_iter().zip(leaves);
        let gradients: Vec<Tensor> = known.map(|(g, leaf)| if g.defined() { g } else { leaf.zeros_like() }).collect();
        if step.is_multiple_of(options.record_every) || step + 1 == options.steps {
            let accuracies = tch::no_grad(|| data.accuracies(&logits, variants)).map(mean)?;
            self.record(common, step, &[&losses, &accuracies, &data.count])?;
        }
        tch::no_grad(|| self.parameters.step(&gradients, step, options))
    }

    /// The plan of a training step's forward pass: edits and noise.
    fn program(&self, options: &TrainOptions, step: usize, tokens: &Tokens) -> Result<Program> {
        let plan = edits(&options.heads, self.template.config()).into_iter().fold(Plan::new(), Plan::edit);
        let plan = match options.heads.competition {
            Some(_) => plan.taps(competition::SITES),
            None => plan.tap(Site::Logits),
        };
        let plan = self.noisy(plan.differentiable(), &options.heads, step, tokens);
        Program::new(&plan, &self.template, tokens)
    }

    /// Adds noise on every z to the plan, drawn for each run from its seed and the step.
    fn noisy(&self, mut plan: Plan, heads: &HeadOptions, step: usize, tokens: &Tokens) -> Plan {
        let Some(sigma) = heads.noise.filter(|sigma| *sigma > 0.0) else { return plan };
        let config = self.template.config();
        let each = tokens.batch() / self.seeds.len() * tokens.positions() * config.n_heads * config.d_head;
        for layer in 0..config.n_layers {
            let mut noise = vec![];
            for seed in &self.seeds {
                let mut rng = ChaCha8Rng::seed_from_u64(Purpose::Noise.seed(*seed));
                rng.set_stream((step * config.n_layers + layer) as u64);
                noise.extend((0..each).map(|_| rng.sample::<f32, _>(StandardNormal)));
            }
            let shape = [-1, tokens.positions() as i64, config.n_heads as i64, config.d_head as i64];
            let noise = Tensor::from_slice(&noise).view(shape).to_kind(self.template.kind());
            let key = format!("noise {layer}");
            let edit = Edit::new(Site::Z(layer), Action::Add { key: key.clone(), alpha: sigma });
            plan = plan.with_tensor(&key, Site::Z(layer), &noise.to_device(self.template.device())).edit(edit);
        }
        plan
    }

    /// Records losses, accuracies and numbers of predictions, one value per run and task.
    fn record(&mut self, common: &Common, step: usize, found: &[&Tensor; 3]) -> Result<()> {
        let read = |tensor: &&Tensor| {
            let flat = tensor.detach().to_kind(Kind::Double).to_device(Device::Cpu).flatten(0, -1);
            Vec::<f64>::try_from(flat).map_err(Error::torch("reading losses"))
        };
        let [loss, accuracy, count] = [read(&found[0])?, read(&found[1])?, read(&found[2])?];
        let tasks = &common.tasks;
        for (cell, _) in count.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            let keys = Keys {
                task: Some(tasks[cell % tasks.len()].clone()),
                step: u32::try_from(step).ok(),
                seed: Some(self.seeds[cell / tasks.len()]),
                ..Keys::default()
            };
            for (metric, value) in [("loss", loss[cell]), ("accuracy", accuracy[cell])] {
                let (keys, metric) = (keys.clone(), metric.to_owned());
                self.rows.push(Observation { keys, metric, value, ..Observation::default() });
            }
        }
        Ok(())
    }
}
