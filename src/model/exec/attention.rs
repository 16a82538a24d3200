//! What do the heads of a layer gather? Attention, fused or step by step, over new and cached positions.

use tch::Tensor;

use super::mask::Asked;
use super::pass::Pass;
use super::{norm, position};
use crate::error::{Error, Result};
use crate::model::arch::{Attend, Attention, Heads, Norm, QkNorm, ScoreBias};
use crate::model::{Model, sent};
use crate::site::Site;
use crate::tensors::is_half;
use crate::workers::readable;

/// Keys and values per layer, `[batch, kv_head, position, d_head]`, keys rotated.
#[derive(Debug, Default)]
pub(crate) struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

readable!(KvCache { layers; });

/// The positions before those that a pass computes.
#[derive(Debug)]
pub(crate) enum Past<'a> {
    /// Nothing.
    None,
    /// What earlier passes have cached; this one adds to it.
    Growing(&'a mut KvCache),
    /// The first positions of a run, shared by every copy of its batch.
    Fixed(&'a KvCache, i64),
}

impl KvCache {
    /// The number of cached positions.
    pub(crate) fn positions(&self) -> i64 {
        self.layers.first().map_or(0, |(k, _)| k.size()[2])
    }

    /// The same for some rows of the batch only, `[row]`.
    pub(crate) fn select(&mut self, rows: &Tensor) {
        for (k, v) in &mut self.layers {
            (*k, *v) = (k.index_select(0, rows), v.index_select(0, rows));
        }
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

impl Past<'_> {
    /// The number of earlier positions.
    pub(super) fn positions(&self) -> i64 {
        match self {
            Self::None => 0,
            Self::Growing(cache) => cache.positions(),
            Self::Fixed(_, positions) => *positions,
        }
    }

    /// The keys and values before the first computed position, if every copy of the batch shares those of an unchanged run.
    pub(super) fn shared(&self, layer: usize) -> Option<(Tensor, Tensor)> {
        let Self::Fixed(cache, positions) = self else { return None };
        let before = cache.layers.get(layer).filter(|_| *positions > 0);
        before.map(|(k, v)| (k.narrow(2, 0, *positions), v.narrow(2, 0, *positions)))
    }

    /// What a layer's queries see: the new keys and values and the earlier ones, of the same heads as the new ones.
    fn with(&mut self, layer: usize, k: Tensor, v: Tensor, some: Option<&SomeHeads>) -> Seen {
        match self {
            Self::None => Seen { k, v, before: None },
            Self::Growing(cache) => {
                let (k, v) = cache.extend(layer, k, v);
                Seen { k, v, before: None }
            }
            Self::Fixed(..) => {
                let of = |old: Tensor| some.map_or_else(|| old.shallow_clone(), |some| some.of_kv(&old, 1));
                let before = self.shared(layer).map(|(k, v)| (of(k), of(v)));
                Seen { k, v, before }
            }
        }
    }
}

/// Keys and values, `[row, head, position, d_head]`.
struct Seen {
    k: Tensor,
    v: Tensor,
    /// Those of earlier positions, `[batch, head, position, d_head]`, shared by the copies of the batch that the rows are.
    before: Option<(Tensor, Tensor)>,
}

impl Seen {
    fn positions(&self) -> i64 {
        self.k.size()[2] + self.before.as_ref().map_or(0, |(k, _)| k.size()[2])
    }

    /// Each key/value head repeated for the query heads that share it.
    fn shared(self, group: i64) -> Self {
        if group == 1 {
            return self;
        }
        let each = |x: &Tensor| x.repeat_interleave_self_int(group, 1, None);
        let before = self.before.as_ref().map(|(k, v)| (each(k), each(v)));
        Self { k: each(&self.k), v: each(&self.v), before }
    }

    /// The products of queries with all keys, `[row, head, query, key]`.
    fn scores(&self, q: &Tensor) -> Result<Tensor, tch::TchError> {
        let new = q.f_matmul(&self.k.transpose(2, 3))?;
        match &self.before {
            Some((k, _)) => Tensor::f_cat(&[across(q, &k.transpose(2, 3))?, new], 3),
            None => Ok(new),
        }
    }

    /// The values weighted by a pattern, `[row, head, query, d_head]`.
    fn gathered(&self, pattern: &Tensor) -> Result<Tensor, tch::TchError> {
        let Some((_, v)) = &self.before else { return pattern.f_matmul(&self.v) };
        let first = v.size()[2];
        let new = pattern.narrow(3, first, pattern.size()[3] - first).f_matmul(&self.v)?;
        across(&pattern.narrow(3, 0, first), v)?.f_add(&new)
    }
}

/// Products of `x`, `[row, head, query, a]`, whose rows are copies of a batch, with a tensor that the copies share,
/// `[batch, head, a, b]`. The queries of all copies are stacked into one product per head, so the shared tensor is not copied.
pub(super) fn across(x: &Tensor, shared: &Tensor) -> Result<Tensor, tch::TchError> {
    let (size, b) = (x.size(), shared.size()[3]);
    let [rows, heads, queries, a] = [size[0], size[1], size[2], size[3]];
    let few = shared.size()[0];
    let below = x.f_reshape([rows / few, few, heads, queries, a])?.f_permute([1, 2, 0, 3, 4])?;
    let below = below.f_reshape([few * heads, rows / few * queries, a])?;
    let product = below.f_bmm(&shared.f_reshape([few * heads, a, b])?)?;
    let product = product.f_view([few, heads, rows / few, queries, b])?.f_permute([2, 0, 1, 3, 4])?;
    product.f_reshape([rows, heads, queries, b])
}

/// The heads computed in each copy of the batch, equally many in all.
pub(super) struct SomeHeads {
    /// The number of copies, and of heads in each.
    shape: [i64; 2],
    /// Query heads, `[copy * head]`.
    query: Tensor,
    /// The key/value heads that they use.
    kv: Tensor,
}

impl SomeHeads {
    /// `heads[copy]` are a copy's query heads.
    pub(super) fn new(model: &Model, heads: &[Vec<usize>]) -> Self {
        let config = model.config();
        let each = heads.first().map_or(0, Vec::len);
        let query: Vec<i64> = heads.iter().flatten().map(|&head| head as i64).collect();
        let query = sent(&Tensor::from_slice(&query), model.device());
        let group = (config.n_heads / config.n_kv_heads) as i64;
        let kv = query.divide_scalar_mode(group, "floor");
        Self { shape: [heads.len() as i64, each as i64], query, kv }
    }

    /// Their parts of `x`, along the head `axis`: `[batch, ..]` to `[copy * batch, ..]`.
    pub(super) fn of(&self, x: &Tensor, axis: i64) -> Tensor {
        self.pick(&self.query, x, axis)
    }

    /// The parts of `x` that they read, along the key/value head `axis`.
    pub(super) fn of_kv(&self, x: &Tensor, axis: i64) -> Tensor {
        self.pick(&self.kv, x, axis)
    }

    /// Their parts of `x`, `[row or 1, head, ..]`, for each of `rows` rows.
    fn each_row(&self, x: &Tensor, rows: i64) -> Tensor {
        let mut size = x.size();
        let batch = if size[0] == 1 { rows / self.shape[0] } else { size[0] / self.shape[0] };
        if size[0] == rows {
            // Rows are ordered by copy, each of which has its own heads.
            let own = x.unflatten(0, [self.shape[0], batch]);
            let heads = self.query.view(self.shape);
            let parts = (0..self.shape[0]).map(|copy| own.get(copy).index_select(1, &heads.get(copy)));
            return Tensor::cat(&parts.collect::<Vec<_>>(), 0);
        }
        size[0] = batch;
        self.of(&x.expand(size.as_slice(), false), 1)
    }

    fn pick(&self, heads: &Tensor, x: &Tensor, axis: i64) -> Tensor {
        x.index_select(axis, heads).unflatten(axis, self.shape).movedim_int(axis, 0).flatten(0, 1)
    }

    /// The sum of what they write of a change `z`: `[copy * batch, position, head, d_head]` to `[copy * batch, position, d_model]`.
    pub(super) fn write(&self, z: &Tensor, w_o: &Tensor) -> Tensor {
        let (rows, positions) = (z.size()[0], z.size()[1]);
        let [copies, each] = self.shape;
        let w = w_o.index_select(0, &self.query).view([copies, each * z.size()[3], -1]);
        z.reshape([copies, rows / copies * positions, -1]).bmm(&w).view([rows, positions, -1])
    }
}

/// z of every head, `[row, position, head, d_head]`, from q, k and v; or of `some` heads, if q, k and v are theirs.
pub(super) fn heads(
    pass: &mut Pass<'_>,
    layer: usize,
    heads: &Heads,
    [q, k, v]: [Tensor; 3],
    some: Option<&SomeHeads>,
) -> Result<Tensor> {
    let model = pass.model;
    let (attend, attn) = (model.wiring().block(layer).attends(heads), model.block(layer)?.attention(heads)?);
    let [mut q, mut k] = normalised(model, attend, attn, [q, k]);
    let wanted = if pass.asks_where_wanted(layer) { pass.wanted_of(q.size()[0]) } else { None };
    if let Some((rotary, tables)) = attend.rotary.as_ref().and_then(|r| Some((r, pass.rotary_of(r)?))) {
        let of = |table: &Tensor| match &wanted {
            Some(wanted) => table.index_select(0, wanted).unsqueeze(1),
            None => table.shallow_clone(),
        };
        q = position::rotate(&q, rotary, &(of(&tables.0), of(&tables.1)));
        k = position::rotate(&k, rotary, &tables);
    }
    let (q, k, v) = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
    let (group, rows) = (q.size()[1] / k.size()[1], k.size()[0]);
    let seen = if heads.are_across() { Seen { k, v, before: None } } else { pass.past.with(layer, k, v, some) };
    let seen = seen.shared(group);
    let asked = Asked { wanted, queries: q.size()[2], keys: seen.positions(), rows };
    let extra = Extra::new(pass, attn, attend, &asked, some);
    let mask = asked.mask(pass, attend);
    let z = gather(pass, layer, heads, &q, &seen, mask, &extra)?;
    Ok(z.transpose(1, 2))
}

/// Queries and keys through their norms, if they have any.
fn normalised(model: &Model, attend: &Attend, attn: &Attention, qk: [Tensor; 2]) -> [Tensor; 2] {
    let config = model.config();
    let through = |x: Tensor, weights: &Option<Norm>| match (weights, attend.norm) {
        (Some(weights), QkNorm::All) => {
            let flat = x.flatten(2, 3);
            norm::fused(config.norm, weights, &flat, config.norm_eps).view_as(&x)
        }
        (Some(weights), QkNorm::Head) => norm::fused(config.norm, weights, &x, config.norm_eps),
        (Some(weights), QkNorm::EachHead) => {
            let flat = norm::bare(config.norm, &x, config.norm_eps).flatten(2, 3);
            norm::weighted(weights, &flat).view_as(&x)
        }
        _ => x,
    };
    let [q, k] = qk;
    [through(q, &attn.q_norm), through(k, &attn.k_norm)]
}

/// What attention takes besides queries, keys, values and a mask.
struct Extra {
    scale: f64,
    /// Added to the scores, broadcast against `[row, head, query, key]`.
    bias: Option<Tensor>,
    cap: Option<f64>,
    /// Scores of the attention sinks, `[row, head, query, 1]`.
    sinks: Option<Tensor>,
}

impl Extra {
    fn new(pass: &Pass<'_>, attn: &Attention, attend: &Attend, asked: &Asked, some: Option<&SomeHeads>) -> Self {
        let of_rows = |x: Tensor| match some {
            Some(some) => some.each_row(&x, asked.rows),
            None => x,
        };
        let bias = match attend.bias {
            ScoreBias::None => None,
            _ => position::score_bias(pass.model, attend, &asked.places(pass), asked.keys),
        };
        let bias = bias.map(|bias| if bias.dim() == 3 { bias.unsqueeze(0) } else { bias });
        let sinks = attn.sinks.as_ref().map(|sinks| {
            let sinks = of_rows(sinks.view([1, -1, 1, 1]));
            sinks.expand([asked.rows, -1, asked.queries, 1], false)
        });
        Self { scale: attend.scale, bias: bias.map(of_rows), cap: attend.cap, sinks }
    }
}

/// Attention of `q`, `[row, head, position, d_head]`: fused if nothing asks for scores or patterns and no keys are shared.
fn gather(
    pass: &mut Pass<'_>,
    layer: usize,
    heads: &Heads,
    q: &Tensor,
    seen: &Seen,
    mask: Option<Tensor>,
    extra: &Extra,
) -> Result<Tensor> {
    let (scores_site, pattern_site) = match heads.are_across() {
        true => (Site::CrossScores(layer), Site::CrossPattern(layer)),
        false => (Site::Scores(layer), Site::Pattern(layer)),
    };
    let asked = pass.program.explicit || pass.program.touches(scores_site) || pass.program.touches(pattern_site);
    let attend = pass.model.wiring().block(layer).attends(heads);
    if !asked && seen.before.is_none() && attend.is_fusable() {
        let (k, v) = (&seen.k, &seen.v);
        let triangle = attend.causal && attend.window.is_none() && pass.valid.is_none();
        let whole = mask.is_some() && triangle && q.size()[2] == k.size()[2];
        let given = if whole { None } else { mask };
        return Tensor::f_scaled_dot_product_attention(q, k, v, given, 0.0, whole, extra.scale, false)
            .map_err(failed(q, k));
    }
    let k = &seen.k;
    let hidden = mask.map(|mask| mask.logical_not());
    // As tensors: if an operation with a plain number fails, tch panics while it drops that number.
    let number = |value: f64| sent(&Tensor::from(value).to_kind(q.kind()), q.device());
    // No edit of the scores opens an edge into the future or to padding: the mask is applied before and after.
    let masked = |scores: Tensor| match &hidden {
        Some(hidden) => scores.f_masked_fill_tensor(hidden, &number(f64::NEG_INFINITY)).map_err(failed(q, k)),
        None => Ok(scores),
    };
    // A number of no axes on the CPU is not rounded to half precision before it multiplies.
    let scale = if is_half(q.kind()) { Tensor::from(extra.scale) } else { number(extra.scale) };
    let mut scores = seen.scores(q).and_then(|scores| scores.f_mul(&scale)).map_err(failed(q, k))?;
    if let Some(bias) = &extra.bias {
        scores = scores.f_add(bias).map_err(failed(q, k))?;
    }
    if let Some(cap) = extra.cap {
        scores = (scores / cap).tanh() * cap;
    }
    let mut scores = pass.at(scores_site, masked(scores)?)?;
    if pass.program.edits(scores_site) {
        scores = masked(scores)?;
    }
    let mut pattern = match &extra.sinks {
        Some(sinks) => {
            let all =
                Tensor::f_cat(&[&scores, sinks], 3).and_then(|all| all.f_softmax(-1, None)).map_err(failed(q, k))?;
            all.narrow(3, 0, scores.size()[3])
        }
        None => scores.f_softmax(-1, None).map_err(failed(q, k))?,
    };
    if pass.program.knocks_out(scores_site) {
        let (top, _) = scores.max_dim(-1, true);
        pattern = pattern.masked_fill(&top.eq(f64::NEG_INFINITY), 0.0);
    }
    let pattern = pass.at(pattern_site, pattern)?;
    seen.gathered(&pattern).map_err(failed(q, k))
}

/// An error of attention that gives the sizes: memory may not hold the pattern of a long prompt.
fn failed(q: &Tensor, k: &Tensor) -> impl FnOnce(tch::TchError) -> Error {
    Error::torch(format!("attention of {:?} over {:?}", q.size(), k.size()))
}
