//! How much does a model lose when every head's QK product is truncated to a given rank?

use std::collections::BTreeMap;

use tch::Tensor;

use super::measure::{Asked, excess};
use crate::error::{Error, Result};
use crate::heads::CircuitOptions;
use crate::lab::trace::Probe;
use crate::model::Model;
use crate::table::Observation;

/// The ranks to test; those below d_head are used.
const RANKS: [usize; 6] = [1, 2, 4, 8, 16, 32];

impl Asked<'_> {
    /// Excess loss with every head's W_Q W_K^T replaced by its best approximation of a given rank, minus the original
    /// excess loss.
    pub(super) fn truncated(&self) -> Result<Vec<Observation>> {
        let whole = self.probe.losses()?;
        let mut rows = vec![];
        for rank in RANKS.into_iter().filter(|rank| *rank < self.width) {
            let models = (0..self.model.runs()).map(|run| truncated(&self.model.unstacked(run), rank));
            let model = Model::stacked(&models.collect::<Result<Vec<_>>>()?)?;
            let losses = Probe::of(model, self.language, self.batches)?.losses()?;
            for run in 0..self.seeds.len() {
                let cost = excess(&losses, self.tasks, run) - excess(&whole, self.tasks, run);
                rows.push(self.of_run(run, &format!("truncation_cost_{rank}"), cost));
            }
        }
        Ok(rows)
    }
}

/// The model with the keys of every head truncated to a given rank; see [`Circuits::keys_for_queries`].
///
/// [`Circuits::keys_for_queries`]: crate::circuits::Circuits::keys_for_queries
fn truncated(model: &Model, rank: usize) -> Result<Model> {
    let config = model.config();
    let circuits = model.circuits(&CircuitOptions { fold_norms: false, centre_writing: false })?;
    let offsets = u32::try_from(config.n_positions).unwrap_or(u32::MAX);
    let (kind, device, width) = (model.kind(), model.device(), config.d_head as i64);
    let mut maps = BTreeMap::new();
    for layer in 0..config.n_layers {
        let map = |head| -> Result<Tensor> {
            let map = circuits.keys_for_queries(layer, head, offsets)?.inner_truncation(rank)?;
            let values: Vec<f64> = map.iter().copied().collect();
            Ok(Tensor::from_slice(&values).view([width, width]).to_kind(kind).to_device(device))
        };
        let maps_of_layer = (0..config.n_kv_heads).map(map).collect::<Result<Vec<_>>>()?;
        maps.insert(format!("blocks.{layer}.w_k"), Tensor::stack(&maps_of_layer, 0));
    }
    let cut = |w_k: &Tensor, maps: &Tensor| {
        let heads = w_k.detach().unflatten(-1, [-1, width]).transpose(0, 1); // [kv_head, d_model, d_head]
        heads.f_matmul(maps).map(|cut| cut.transpose(0, 1).flatten(-2, -1))
    };
    let mut new = BTreeMap::new();
    for (name, w_k) in model.parameters() {
        if let Some(maps) = maps.get(&name) {
            new.insert(name, cut(w_k, maps).map_err(Error::torch("cutting keys to a rank"))?);
        }
    }
    let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
    let mut names = names.iter();
    Ok(model.with_parameters(|old| {
        let name = names.next().map_or("", String::as_str);
        new.get(name).map_or_else(|| old.shallow_clone(), Tensor::shallow_clone)
    }))
}
