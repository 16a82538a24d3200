//! What is lost when every head's QK product is cut to a rank.

use tch::Tensor;

use super::measure::{Asked, excess};
use crate::error::{Error, Result};
use crate::lab::trace::Probe;
use crate::model::Model;
use crate::table::Observation;

/// The ranks that are tried, below the width of a head.
const RANKS: [usize; 6] = [1, 2, 4, 8, 16, 32];

impl Asked<'_> {
    /// Excess loss with W_Q W_K^T of every head replaced by its best approximation of a rank, less that of the whole.
    pub(super) fn truncated(&self) -> Result<Vec<Observation>> {
        let whole = self.probe.losses()?;
        let mut rows = vec![];
        for rank in RANKS.into_iter().filter(|rank| *rank < self.width) {
            let model = truncated(self.model, rank)?;
            let losses = Probe::of(model, self.language, self.batches)?.losses()?;
            for run in 0..self.seeds.len() {
                let cost = excess(&losses, self.tasks, run) - excess(&whole, self.tasks, run);
                rows.push(self.of_run(run, &format!("truncation_cost_{rank}"), cost));
            }
        }
        Ok(rows)
    }
}

/// The models with the QK product of every head cut to a rank (Eckart & Young 1936): W_Q becomes U S, W_K becomes V, of as many
/// columns as before, the others 0. Biases and rotary positions would need more, and are refused.
fn truncated(model: &Model, rank: usize) -> Result<Model> {
    let config = model.config();
    let rotary = matches!(config.position, crate::model::Position::Rotary { .. });
    if config.qkv_bias || rotary || config.n_heads != config.n_kv_heads {
        let expected = "heads without biases, rotary positions or shared keys";
        return Err(Error::argument("model", expected, &config.family));
    }
    let torch = || Error::torch("cutting QK to a rank");
    let heads = [config.n_heads as i64, config.d_head as i64];
    let named = model.parameters();
    let find = |name: String| named.iter().find(|(own, _)| *own == name).map(|(_, tensor)| tensor.detach());
    let mut new = std::collections::BTreeMap::new();
    for layer in 0..config.n_layers {
        let [q, k] = ["w_q", "w_k"].map(|part| format!("blocks.{layer}.{part}"));
        let (Some(w_q), Some(w_k)) = (find(q.clone()), find(k.clone())) else { continue };
        // [.., d_model, head, d_head] to [.., head, d_model, d_head]
        let split = |w: &Tensor| w.unflatten(-1, heads).transpose(-3, -2);
        let product = split(&w_q).f_matmul(&split(&w_k).transpose(-2, -1)).map_err(torch())?;
        // With `some`, of min(rows, columns) values; `linalg_svd` would hand on a driver, which only GPUs take.
        let (u, s, v) = product.f_svd(true, true).map_err(torch())?;
        let back = |w: Tensor| {
            let rest = heads[1] - rank as i64;
            let w = w.narrow(-1, 0, rank as i64).constant_pad_nd([0, rest]);
            w.transpose(-3, -2).flatten(-2, -1)
        };
        new.insert(q, back(u * s.unsqueeze(-2)));
        new.insert(k, back(v));
    }
    let mut names = named.iter().map(|(name, _)| name);
    Ok(model.with_parameters(|old| {
        let name = names.next().map_or("", String::as_str);
        new.get(name).map_or_else(|| old.shallow_clone(), Tensor::shallow_clone)
    }))
}
