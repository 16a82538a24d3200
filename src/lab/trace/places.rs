//! What is lost if heads are taken away where a role is needed, and only there?

use tch::{Kind, Tensor};

use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::model::{Action, Edit, Plan, Program, Site};

/// Where predictions of one kind are made, and what heads usually put out there.
pub struct Places {
    task: usize,
    /// True where such a prediction is made, `[run, row, position, 1, 1]`.
    at: Tensor,
    /// By layer, the mean of z over a run's places, `[run, 1, 1, head, d_head]`.
    usual: Vec<Tensor>,
}

impl Probe {
    /// The places of one kind of dependency: the queries at which it determines what is predicted.
    ///
    /// # Errors
    /// If no task has this name, or a run has no such dependency.
    pub fn places(&self, kind: &str) -> Result<Places> {
        let unknown = || Error::argument("kind", format!("one of {}", self.tasks.join(", ")), kind);
        let task = self.tasks.iter().position(|task| task == kind).ok_or_else(unknown)?;
        let (rows, positions) = (self.held.tokens.batch() / self.batches.len(), self.held.positions() as usize);
        let mut at = vec![false; self.batches.len() * rows * positions];
        for (run, batch) in self.batches.iter().enumerate() {
            let samples = batch.samples.iter().enumerate();
            let own = samples.flat_map(|(row, sample)| sample.dependencies.iter().map(move |one| (row, one)));
            let mut none = true;
            for (row, one) in own.filter(|(_, one)| one.kind == kind) {
                at[(run * rows + row) * positions + one.query] = true;
                none = false;
            }
            if none {
                return Err(Error::argument(
                    "held-out sequences",
                    format!("some with {kind}"),
                    format!("none of run {run}"),
                ));
            }
        }
        let shape = [self.held.runs, rows as i64, positions as i64, 1, 1];
        let at = Tensor::from_slice(&at).view(shape).to_device(self.model.device());
        let layers = 0..self.model.config().n_layers;
        let run = self.record(layers.clone().map(Site::Z))?;
        let weight = at.to_kind(self.model.kind());
        let sum = |x: Tensor| x.sum_dim_intlist([1i64, 2].as_slice(), true, None::<Kind>);
        let usual = |layer| -> Result<Tensor> {
            let z = run.get(Site::Z(layer))?.unflatten(0, [self.held.runs, -1]);
            Ok(sum(z * &weight) / sum(weight.shallow_clone()))
        };
        let usual = layers.map(usual).collect::<Result<_>>()?;
        Ok(Places { task, at, usual })
    }

    /// The loss of the predictions made at some places, with heads of any layer taken away there and nowhere else, one
    /// set of heads (layer, head) for each run. The z of such a head becomes its mean over the run's places: what it
    /// says of the single case is gone.
    ///
    /// # Shapes
    /// `[run]`, in nats.
    ///
    /// # Errors
    /// If there is not one set for each run, or a head that does not exist.
    pub fn losses_at(&self, places: &Places, absent: &[Vec<(usize, usize)>]) -> Result<Vec<f64>> {
        if absent.len() != self.runs() {
            return Err(Error::argument("absent", format!("{} sets, one for each run", self.runs()), absent.len()));
        }
        let heads = self.model.config().n_heads;
        for &(layer, head) in absent.iter().flatten() {
            self.check_layer(layer)?;
            if head >= heads {
                let (at, found, limit) = ("absent heads".to_owned(), head as i64, heads as i64);
                return Err(Error::OutOfRange { at, axis: "head", found, limit });
            }
        }
        tch::no_grad(|| {
            let layers = (0..places.usual.len()).filter(|layer| absent.iter().flatten().any(|(own, _)| own == layer));
            let edits = layers.map(|layer| self.taking_away(places, layer, absent));
            let edits = self.edits.iter().cloned().chain(edits);
            let plan = edits.fold(Plan::new().tap(Site::Logits), Plan::edit);
            let program = Program::new(&plan, &self.model, &self.held.tokens)?;
            let logits = self.held.logits(&self.model, &program)?;
            let losses: ndarray::Array2<f64> = array(&self.held.losses(&logits, 1)?.squeeze_dim(1), "a loss")?;
            Ok(losses.column(places.task).to_vec())
        })
    }

    /// The edit that takes a layer's absent heads away at some places.
    fn taking_away(&self, places: &Places, layer: usize, absent: &[Vec<(usize, usize)>]) -> Edit {
        let heads = self.model.config().n_heads;
        let gone = |own: &Vec<(usize, usize)>| (0..heads).map(|head| own.contains(&(layer, head))).collect::<Vec<_>>();
        let gone: Vec<bool> = absent.iter().flat_map(gone).collect();
        let gone = Tensor::from_slice(&gone).view([self.held.runs, 1, 1, heads as i64, 1]);
        let gone = places.at.logical_and(&gone.to_device(places.at.device()));
        let (usual, runs) = (places.usual[layer].shallow_clone(), self.held.runs);
        let without = move |z: &Tensor| {
            let z = z.f_unflatten(0, [runs, -1]).and_then(|z| usual.f_where_self(&gone, &z));
            z.and_then(|z| z.f_flatten(0, 1)).map_err(Error::torch("taking heads away"))
        };
        Edit::new(Site::Z(layer), Action::custom("mean over places", without))
    }
}
