//! How are the parameters of several runs updated? All of them form one matrix, which the optimiser steps at once.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::options::{HeadOptions, Optimiser, TrainOptions};
use crate::error::{Error, Result};
use crate::lab::differences::differences;
use crate::model::{Model, ModelConfig};
use crate::tensors::write_tensors;

/// The parameters, `[run, number]`, and the state of the optimiser.
pub(super) struct Parameters {
    /// Name, shape without the run axis, and first column of each tensor.
    places: Vec<(String, Vec<i64>, i64)>,
    values: Tensor,
    /// First and second moment; with momentum, only the first is used.
    moments: [Tensor; 2],
    /// True for the numbers that are trained, `[1, number]`.
    trained: Tensor,
    any_frozen: bool,
    /// 1 for the numbers with weight decay, else 0, `[1, number]`.
    decayed: Tensor,
}

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

impl Parameters {
    /// Collects the parameters of models of one architecture.
    pub(super) fn new(models: &[Model], heads: &HeadOptions) -> Self {
        let (mut places, mut columns) = (vec![], 0);
        let config = models[0].config();
        for (name, tensor) in own(&models[0]) {
            places.push((name, tensor.size(), columns));
            columns += tensor.numel() as i64;
        }
        let row = |model: &Model| Tensor::cat(&own(model).iter().map(|(_, t)| t.flatten(0, -1)).collect::<Vec<_>>(), 0);
        let values = Tensor::stack(&models.iter().map(row).collect::<Vec<_>>(), 0);
        let matrices = places.iter().map(|(_, shape, _)| {
            let n: i64 = shape.iter().product();
            Tensor::full([n], f64::from(u8::from(shape.len() > 1)), (values.kind(), values.device()))
        });
        let decayed = Tensor::cat(&matrices.collect::<Vec<_>>(), 0).unsqueeze(0);
        let moments = [values.zeros_like(), values.zeros_like()];
        let trained = trained(&places, config, heads, columns).to_device(values.device());
        let any_frozen = !heads.frozen.is_empty() || heads.qk_rank.is_some() || heads.ov_rank.is_some();
        Self { places, values, moments, trained, any_frozen, decayed }
    }

    /// Returns `template` with these parameters as leaves of the autograd graph, and the leaves in the order that
    /// [`Parameters::step`] expects for gradients. The leaves share memory with `values`, so updates are visible in
    /// them.
    pub(super) fn attach(&self, template: &Model) -> Result<(Model, Vec<Tensor>)> {
        let runs = self.values.size()[0];
        let view = |(_, shape, first): &(String, Vec<i64>, i64)| {
            let n: i64 = shape.iter().product();
            let mut shape = shape.clone();
            if runs > 1 {
                shape.insert(0, runs);
            }
            let leaf = self.values.narrow(1, *first, n).f_view(shape.as_slice())?.detach();
            Ok(leaf.set_requires_grad(true))
        };
        let leaves: Result<Vec<Tensor>, tch::TchError> = self.places.iter().map(view).collect();
        let leaves = leaves.map_err(Error::torch("attaching parameters"))?;
        let names: Vec<String> = template.parameters().into_iter().map(|(name, _)| name).collect();
        let mut names = names.iter();
        let model = template.with_parameters(|old| {
            let name = names.next().map_or("", String::as_str);
            let found = self.places.iter().position(|(own, ..)| own == name);
            found.map_or_else(|| old.shallow_clone(), |place| leaves[place].shallow_clone())
        });
        Ok((model, leaves))
    }

    /// The model of one run, with a copy of its parameters.
    pub(super) fn detach(&self, template: &Model, run: i64) -> Model {
        let names: Vec<String> = template.parameters().into_iter().map(|(name, _)| name).collect();
        let mut names = names.iter();
        template.with_parameters(|old| {
            let name = names.next().map_or("", String::as_str);
            match self.places.iter().find(|(own, ..)| own == name) {
                Some((_, shape, first)) => {
                    let n = shape.iter().product();
                    self.values.get(run).narrow(0, *first, n).view(shape.as_slice()).copy()
                }
                None => old.shallow_clone(),
            }
        })
    }

    /// Takes one optimiser step; `step` is counted from 0.
    pub(super) fn step(&mut self, gradients: &[Tensor], step: usize, options: &TrainOptions) -> Result<()> {
        let runs = self.values.size()[0];
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.reshape([runs, -1])).collect();
        let mut gradient = Tensor::cat(&flat, 1);
        let norms = self.norms(&gradient, step)?;
        if let Some(clip) = options.clip.filter(|clip| norms.iter().any(|norm| norm > clip)) {
            let shares: Vec<f64> = norms.iter().map(|norm| (clip / norm).min(1.0)).collect();
            gradient *= Tensor::from_slice(&shares).unsqueeze(1).to_kind(gradient.kind()).to_device(gradient.device());
        }
        // From here on, updates are in place, so that the leaves see them.
        let before = self.any_frozen.then(|| self.values.copy());
        let (rate, decay) = (options.rate(step), options.weight_decay);
        match options.optimiser {
            _ if decay == 0.0 => {}
            Optimiser::AdamW => self.values *= 1.0 - &self.decayed * (rate * decay),
            _ => gradient += &self.values * &self.decayed * decay,
        }
        match options.optimiser {
            Optimiser::Sgd { momentum } => {
                self.moments[0] *= momentum;
                self.moments[0] += gradient;
                self.values -= &self.moments[0] * rate;
            }
            Optimiser::Adam | Optimiser::AdamW => self.adam(gradient, step, rate),
        }
        if let Some(before) = before {
            self.values.copy_(&self.values.where_self(&self.trained, &before));
        }
        Ok(())
    }

    /// The Adam update: `rate * first / (sqrt(second) + epsilon)`, with bias correction of both moments.
    fn adam(&mut self, mut gradient: Tensor, step: usize, rate: f64) {
        let times = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let corrections = (1.0 - BETAS.0.powi(times), (1.0 - BETAS.1.powi(times)).sqrt());
        let _ = self.moments[0].lerp_(&gradient, 1.0 - BETAS.0);
        let _ = self.moments[1].lerp_(&gradient.square_(), 1.0 - BETAS.1);
        let mut divisor = self.moments[1].sqrt();
        divisor += EPSILON * corrections.1;
        divisor *= -corrections.0 / (rate * corrections.1);
        let _ = self.values.addcdiv_(&self.moments[0], &divisor);
    }

    /// The gradient norm of each run; fails at the first value that is not finite.
    fn norms(&self, gradient: &Tensor, step: usize) -> Result<Vec<f64>> {
        let read = |gradient: &Tensor| {
            let norms = gradient.norm_scalaropt_dim(2.0, [1i64].as_slice(), false);
            Vec::<f64>::try_from(norms.to_kind(Kind::Double).to_device(Device::Cpu)).map_err(Error::torch("a norm"))
        };
        let mut norms = read(gradient)?;
        if norms.iter().all(|norm| norm.is_finite()) {
            return Ok(norms);
        }
        norms = read(&gradient.to_kind(Kind::Double))?; // squares may overflow in float32 even if the values are finite
        let Some(run) = norms.iter().position(|norm| !norm.is_finite()) else { return Ok(norms) };
        let own = gradient.get(run as i64);
        let column = own.isfinite().logical_not().to_kind(Kind::Int).argmax(0, false).int64_value(&[]);
        let place = self.places.iter().rev().find(|(_, _, first)| *first <= column);
        let (name, first) = place.map_or(("", 0), |(name, _, first)| (name.as_str(), *first));
        Err(Error::NotFinite {
            at: format!("step {step}, run {run}: gradient of `{name}`"),
            index: (column - first) as usize,
            found: own.double_value(&[column]),
        })
    }

    /// Everything that later steps depend on: values and moments, each `[run, number]`.
    pub(super) fn state(&self) -> [&Tensor; 3] {
        [&self.values, &self.moments[0], &self.moments[1]]
    }

    /// Restores a state of the same shape.
    pub(super) fn restore(&mut self, [values, first, second]: [Tensor; 3]) {
        self.values.copy_(&values);
        self.moments = [first, second].map(|moment| moment.to_device(self.values.device()).copy());
    }
}

/// The names of the tensors of [`Parameters::state`] in a file.
const NAMES: [&str; 3] = ["values", "first_moment", "second_moment"];

/// Writes the state of all runs.
pub(super) fn save(all: &[&Parameters], path: &Path, step: usize, declared: &Value) -> Result<()> {
    let states: Vec<[&Tensor; 3]> = all.iter().map(|parameters| parameters.state()).collect();
    let whole = [0, 1, 2].map(|i| Tensor::cat(&states.iter().map(|state| state[i]).collect::<Vec<_>>(), 0));
    let step = Tensor::from_slice(&[step as f64]);
    let names = NAMES.iter().map(|name| (*name).to_owned());
    let tensors: Vec<_> = names.zip(&whole).chain([("step".to_owned(), &step)]).collect();
    write_tensors(path, &tensors, &[(DECLARED, declared.to_string())])
}

/// The metadata key of a state file under which the training declaration is stored. It is the only key, since the order
/// of several keys is not deterministic and equal states must give equal bytes.
const DECLARED: &str = "headscope";

/// Fails if the state was trained with another declaration.
fn check_declared(path: &Path, declared: &Value) -> Result<()> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let own = SafeTensors::read_metadata(&bytes).ok();
    let own = own.as_ref().and_then(|(_, metadata)| metadata.metadata().as_ref()?.get(DECLARED));
    let Some(own) = own.and_then(|own| serde_json::from_str::<Value>(own).ok()) else {
        return Err(Error::Format {
            path: path.to_owned(),
            at: "metadata".to_owned(),
            expected: "the declaration with which it was trained".to_owned(),
            found: "none; an older headscope may have written it".to_owned(),
        });
    };
    match differences(&own, declared) {
        None => Ok(()),
        Some((begun, now)) => {
            let expected = format!("the settings with which {} was started ({begun})", path.display());
            Err(Error::argument("resume", expected, now))
        }
    }
}

/// Restores the state of all runs from a file written by [`save`], and returns its step.
pub(super) fn resume(all: &mut [&mut Parameters], path: &Path, declared: &Value) -> Result<usize> {
    check_declared(path, declared)?;
    let read = Tensor::read_safetensors(path).map_err(Error::torch(format!("reading {}", path.display())))?;
    let read: HashMap<String, Tensor> = read.into_iter().collect();
    let wrong = |at: &str, expected: String, found: String| Error::Format {
        path: path.to_owned(),
        at: at.to_owned(),
        expected,
        found,
    };
    let runs: i64 = all.iter().map(|own| own.values.size()[0]).sum();
    let size = vec![runs, all.first().map_or(0, |own| own.values.size()[1])];
    let take = |name: &str| match read.get(name) {
        Some(tensor) if tensor.size() == size => Ok(tensor),
        other => {
            let found = other.map_or("nothing".to_owned(), |tensor| format!("{:?}", tensor.size()));
            Err(wrong(name, format!("shape {size:?}, as in the declaration"), found))
        }
    };
    let whole = [take(NAMES[0])?, take(NAMES[1])?, take(NAMES[2])?];
    let step = read.get("step").filter(|step| step.numel() == 1);
    let step = step.ok_or_else(|| wrong("step", "one number".to_owned(), "another".to_owned()))?;
    let mut first = 0;
    for own in all.iter_mut() {
        let runs = own.values.size()[0];
        own.restore(whole.map(|tensor| tensor.narrow(0, first, runs)));
        first += runs;
    }
    Ok(step.to_device(Device::Cpu).double_value(&[0]) as usize)
}

/// A model's parameters without a tied unembedding.
fn own(model: &Model) -> Vec<(String, &Tensor)> {
    let tied = model.config().tied_unembed;
    model.parameters().into_iter().filter(|(name, _)| !(tied && name == "w_u")).collect()
}

/// True for every number that is trained: those of frozen heads are not, nor those beyond a head's rank. A key/value
/// head is frozen along with any query head that uses it.
fn trained(places: &[(String, Vec<i64>, i64)], config: &ModelConfig, heads: &HeadOptions, columns: i64) -> Tensor {
    let trained = Tensor::ones([columns], (Kind::Bool, Device::Cpu));
    // The part of a tensor that lies `from` this number on along the axis that is split by head, within one head.
    let fix = |(name, axis, of_kv): &(String, usize, bool), head: usize, from: i64| {
        let Some((_, shape, first)) = places.iter().find(|(own, ..)| own == name) else { return };
        let n_heads = if *of_kv { config.n_kv_heads } else { config.n_heads };
        let width = shape[*axis] / n_heads as i64;
        let whole = trained.narrow(0, *first, shape.iter().product()).view(shape.as_slice());
        let _ = whole.narrow(*axis as i64, head as i64 * width + from, width - from).fill_(0);
    };
    for &(layer, head) in &heads.frozen {
        for tensor in &by_head(layer) {
            fix(tensor, if tensor.2 { config.kv_head(head) } else { head }, 0);
        }
    }
    for tensor in (0..config.n_layers).flat_map(by_head) {
        let Some(rank) = heads.rank_of(part_of(&tensor.0)) else { continue };
        let n_heads = if tensor.2 { config.n_kv_heads } else { config.n_heads };
        (0..n_heads).for_each(|head| fix(&tensor, head, rank as i64));
    }
    trained.unsqueeze(0)
}

/// The name of a tensor within its layer.
pub(super) fn part_of(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

/// The tensors of a layer that are split by head: name, the axis that is split, and whether by key/value head.
pub(in crate::lab) fn by_head(layer: usize) -> [(String, usize, bool); 7] {
    [
        ("w_q", 1, false),
        ("w_k", 1, true),
        ("w_v", 1, true),
        ("w_o", 0, false),
        ("b_q", 0, false),
        ("b_k", 0, true),
        ("b_v", 0, true),
    ]
    .map(|(name, axis, kv)| (format!("blocks.{layer}.{name}"), axis, kv))
}
