//! All trained numbers of one or several runs as one matrix, and the rule that changes them.

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::options::{HeadOptions, Optimiser, TrainOptions};
use crate::checkpoint::write_tensors;
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};

/// The parameters `[run, number]` and what the optimiser remembers of them.
pub(super) struct Parameters {
    /// Name, shape without the run axis, and first column of each tensor.
    places: Vec<(String, Vec<i64>, i64)>,
    values: Tensor,
    /// First and second moment; the first alone is momentum.
    moments: [Tensor; 2],
    /// True where a number is trained, `[1, number]`.
    trained: Tensor,
    /// 1 where weight decay pulls, else 0, `[1, number]`.
    decayed: Tensor,
}

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

impl Parameters {
    /// The parameters of models of one architecture.
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
        Self { places, values, moments, trained, decayed }
    }

    /// `template` with these parameters as leaves of the graph, in the order in which gradients are given to
    /// [`Parameters::step`]. They share the memory of `values`, and follow it.
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

    /// The model of one run, with parameters of its own.
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

    /// One step of the optimiser, `step` counted from 0.
    pub(super) fn step(&mut self, gradients: &[Tensor], step: usize, options: &TrainOptions) -> Result<()> {
        let runs = self.values.size()[0];
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.reshape([runs, -1])).collect();
        let mut gradient = Tensor::cat(&flat, 1);
        self.check(&gradient, step)?;
        if let Some(clip) = options.clip {
            let norm = gradient.norm_scalaropt_dim(2.0, [1i64].as_slice(), true);
            gradient = &gradient * (clip / (norm + 1e-12)).clamp_max(1.0);
        }
        let (rate, decay) = (options.rate(step), options.weight_decay);
        if decay > 0.0 && options.optimiser != Optimiser::AdamW {
            gradient = &gradient + &self.values * &self.decayed * decay;
        }
        let change = match options.optimiser {
            Optimiser::Sgd { momentum } => {
                self.moments[0] = &self.moments[0] * momentum + gradient;
                self.moments[0].shallow_clone()
            }
            Optimiser::Adam | Optimiser::AdamW => self.adam(&gradient, step),
        };
        let mut new = &self.values - change * rate;
        if decay > 0.0 && options.optimiser == Optimiser::AdamW {
            new = &new - &self.values * &self.decayed * (rate * decay);
        }
        let new = new.where_self(&self.trained, &self.values);
        self.values.copy_(&new); // in place, so that the leaves follow
        Ok(())
    }

    /// Adam's direction.
    fn adam(&mut self, gradient: &Tensor, step: usize) -> Tensor {
        let times = (step + 1) as i32;
        self.moments[0] = &self.moments[0] * BETAS.0 + gradient * (1.0 - BETAS.0);
        self.moments[1] = &self.moments[1] * BETAS.1 + gradient.square() * (1.0 - BETAS.1);
        let first = &self.moments[0] / (1.0 - BETAS.0.powi(times));
        let second = &self.moments[1] / (1.0 - BETAS.1.powi(times));
        first / (second.sqrt() + EPSILON)
    }

    /// Fails at the first gradient that is not finite.
    fn check(&self, gradient: &Tensor, step: usize) -> Result<()> {
        if (gradient * 0.0).sum(Kind::Float).double_value(&[]) == 0.0 {
            return Ok(());
        }
        let columns = gradient.size()[1];
        let bad = gradient.isfinite().logical_not().flatten(0, -1).to_kind(Kind::Int).argmax(0, false).int64_value(&[]);
        let (run, column) = (bad / columns, bad % columns);
        let place = self.places.iter().rev().find(|(_, _, first)| *first <= column);
        let (name, first) = place.map_or(("", 0), |(name, _, first)| (name.as_str(), *first));
        Err(Error::NotFinite {
            at: format!("step {step}, run {run}: gradient of `{name}`"),
            index: (column - first) as usize,
            found: gradient.double_value(&[run, column]),
        })
    }

    /// Writes everything that a later step depends on.
    pub(super) fn save(&self, path: &Path, step: usize) -> Result<()> {
        let names = ["values", "first_moment", "second_moment"];
        let tensors = [&self.values, &self.moments[0], &self.moments[1]];
        let tensors: Vec<_> = names.iter().map(|name| (*name).to_owned()).zip(tensors).collect();
        let step = Tensor::from_slice(&[step as f64]);
        let tensors: Vec<_> = tensors.into_iter().chain([("step".to_owned(), &step)]).collect();
        write_tensors(path, &tensors, &[])
    }

    /// Takes up what [`Parameters::save`] wrote, and returns its step.
    pub(super) fn resume(&mut self, path: &Path) -> Result<usize> {
        let read = Tensor::read_safetensors(path).map_err(Error::torch(format!("reading {}", path.display())))?;
        let read: HashMap<String, Tensor> = read.into_iter().collect();
        let wrong = |at: &str, expected: String, found: String| Error::Format {
            path: path.to_owned(),
            at: at.to_owned(),
            expected,
            found,
        };
        let size = self.values.size();
        let take = |name: &str| match read.get(name) {
            Some(tensor) if tensor.size() == size => Ok(tensor.to_device(self.values.device())),
            other => {
                let found = other.map_or("nothing".to_owned(), |tensor| format!("{:?}", tensor.size()));
                Err(wrong(name, format!("shape {size:?}, as the declaration has it"), found))
            }
        };
        let (values, moments) = (take("values")?, [take("first_moment")?, take("second_moment")?]);
        self.values.copy_(&values);
        self.moments = moments;
        let step = read.get("step").filter(|step| step.numel() == 1);
        let step = step.ok_or_else(|| wrong("step", "one number".to_owned(), "another".to_owned()))?;
        Ok(step.to_device(Device::Cpu).double_value(&[0]) as usize)
    }
}

/// A model's parameters without a tied unembedding.
fn own(model: &Model) -> Vec<(String, &Tensor)> {
    let tied = model.config().tied_unembed;
    model.parameters().into_iter().filter(|(name, _)| !(tied && name == "w_u")).collect()
}

/// True for every number that is not of a frozen head. A key/value head is frozen with any query head that it serves.
fn trained(places: &[(String, Vec<i64>, i64)], config: &ModelConfig, heads: &HeadOptions, columns: i64) -> Tensor {
    let trained = Tensor::ones([columns], (Kind::Bool, Device::Cpu));
    for &(layer, head) in &heads.frozen {
        for (name, axis, n) in by_head(layer) {
            let Some((_, shape, first)) = places.iter().find(|(own, ..)| *own == name) else { continue };
            let n_heads = if n { config.n_kv_heads } else { config.n_heads };
            let head = if n { config.kv_head(head) } else { head };
            let width = shape[axis] / n_heads as i64;
            let count = shape.iter().product();
            let part = trained.narrow(0, *first, count).view(shape.as_slice());
            let _ = part.narrow(axis as i64, head as i64 * width, width).fill_(0);
        }
    }
    trained.unsqueeze(0)
}

/// The tensors of a layer that are divided among heads: name, the axis that is divided, whether among key/value heads.
pub(super) fn by_head(layer: usize) -> [(String, usize, bool); 7] {
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
