//! What the heads of one layer gather.

use tch::Tensor;

use super::forward::{Pass, causal_mask};
use super::position::rotate;
use super::site::Site;
use super::weights::Attention;
use crate::error::Result;

/// Keys and values of the positions already read, per layer: `[batch, kv_head, position, d_head]`, keys rotated.
#[derive(Debug, Default)]
pub(crate) struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// How many positions are cached.
    pub(crate) fn positions(&self) -> i64 {
        self.layers.first().map_or(0, |(k, _)| k.size()[2])
    }

    /// Appends a layer's new keys and values and returns all of them.
    fn extend(&mut self, layer: usize, k: Tensor, v: Tensor) -> (Tensor, Tensor) {
        let (k, v) = match self.layers.get(layer) {
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, &k], 2), Tensor::cat(&[old_v, &v], 2)),
            None => (k, v),
        };
        let kept = (k.shallow_clone(), v.shallow_clone());
        match self.layers.get_mut(layer) {
            Some(slot) => *slot = kept,
            None => self.layers.push(kept),
        }
        (k, v)
    }
}

/// z of every head, `[batch, position, head, d_head]`, from the block's input `x`, `[batch, position, d_model]`.
pub(super) fn heads(pass: &mut Pass<'_>, layer: usize, weights: &Attention, x: &Tensor) -> Result<Tensor> {
    let config = pass.model.config();
    let (n, n_kv, width) = (config.n_heads as i64, config.n_kv_heads as i64, config.d_head as i64);
    let split = |x: Tensor, heads: i64| x.unflatten(-1, [heads, width]);
    let q = pass.at(Site::Q(layer), split(weights.q.forward(x), n))?;
    let k = pass.at(Site::K(layer), split(weights.k.forward(x), n_kv))?;
    let v = pass.at(Site::V(layer), split(weights.v.forward(x), n_kv))?;
    let (q, k) = match &pass.rotary {
        Some(table) => (rotate(&q, table), rotate(&k, table)),
        None => (q, k),
    };
    let (q, mut k, mut v) = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
    if let Some(cache) = &mut pass.cache {
        // The layers below have been extended already: what is old is known only before the first.
        (k, v) = cache.extend(layer, k, v);
    }
    let shared = |x: Tensor| if n == n_kv { x } else { x.repeat_interleave_self_int(n / n_kv, 1, None) };
    let z = attend(pass, layer, &q, &shared(k), &shared(v))?;
    Ok(z.transpose(1, 2))
}

/// Attention of `q` over `k`, `[batch, head, position, d_head]`: fused where nothing asks for the pattern.
fn attend(pass: &mut Pass<'_>, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (scores_site, pattern_site) = (Site::Scores(layer), Site::Pattern(layer));
    let scale = (q.size()[3] as f64).powf(-0.5);
    let mask = mask(pass, q.size()[2], k.size()[2]);
    if !pass.program.touches(scores_site) && !pass.program.touches(pattern_site) {
        let whole = mask.is_some() && pass.valid.is_none() && q.size()[2] == k.size()[2];
        let given = if whole { None } else { mask };
        return Ok(Tensor::scaled_dot_product_attention(q, k, v, given, 0.0, whole, scale, false));
    }
    let mut scores = q.matmul(&k.transpose(2, 3)) * scale;
    if let Some(mask) = mask {
        scores = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY);
    }
    let scores = pass.at(scores_site, scores)?;
    let mut pattern = scores.softmax(-1, None);
    if pass.program.knocks_out(scores_site) {
        let (top, _) = scores.max_dim(-1, true);
        pattern = pattern.masked_fill(&top.eq(f64::NEG_INFINITY), 0.0);
    }
    let pattern = pass.at(pattern_site, pattern)?;
    Ok(pattern.matmul(v))
}

/// True where a query sees a key, broadcast against `[batch, head, query, key]`; nothing where every query sees all.
fn mask(pass: &Pass<'_>, query: i64, key: i64) -> Option<Tensor> {
    let causal = (pass.model.config().causal && query > 1).then(|| causal_mask(query, key, pass.model.device()));
    let valid = pass.valid.as_ref().map(|valid| valid.unsqueeze(1).unsqueeze(1));
    match (causal, valid) {
        (Some(causal), Some(valid)) => Some(causal.logical_and(&valid)),
        (causal, valid) => causal.or(valid),
    }
}
