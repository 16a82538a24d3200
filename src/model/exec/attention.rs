//! What the heads of one layer gather.

use tch::{Kind, Tensor};

use super::forward::{Pass, causal_mask};
use super::position::rotate;
use super::site::Site;
use super::weights::{Attention, Linear};
use super::{Model, sent};
use crate::error::{Error, Result};
use crate::workers::readable;

/// Keys and values per layer, `[batch, kv_head, position, d_head]`, keys rotated.
#[derive(Debug, Default)]
pub(crate) struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

readable!(KvCache { layers; });

/// What stands before the positions that a pass computes.
#[derive(Debug)]
pub(crate) enum Past<'a> {
    /// Nothing.
    None,
    /// What earlier passes left, and this one will add to.
    Growing(&'a mut KvCache),
    /// The first positions of a run, the same for every copy of its batch.
    Fixed(&'a KvCache, i64),
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

impl Past<'_> {
    /// How many positions stand before.
    pub(super) fn positions(&self) -> i64 {
        match self {
            Self::None => 0,
            Self::Growing(cache) => cache.positions(),
            Self::Fixed(_, positions) => *positions,
        }
    }

    /// The keys and values before the first computed position, where a run's are shared by every copy of its batch.
    pub(super) fn shared(&self, layer: usize) -> Option<(Tensor, Tensor)> {
        let Self::Fixed(cache, positions) = self else { return None };
        let before = cache.layers.get(layer).filter(|_| *positions > 0);
        before.map(|(k, v)| (k.narrow(2, 0, *positions), v.narrow(2, 0, *positions)))
    }

    /// What a layer's queries see: its new keys and values and those that stand before; of some heads, where the new ones
    /// are.
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
    /// Those of earlier positions, where the rows are copies of fewer that share them: rows that stand as far apart.
    before: Option<(Tensor, Tensor)>,
}

impl Seen {
    fn positions(&self) -> i64 {
        self.k.size()[2] + self.before.as_ref().map_or(0, |(k, _)| k.size()[2])
    }

    /// Each head's as often as query heads share it.
    fn shared(self, group: i64) -> Self {
        if group == 1 {
            return self;
        }
        let each = |x: &Tensor| x.repeat_interleave_self_int(group, 1, None);
        let before = self.before.as_ref().map(|(k, v)| (each(k), each(v)));
        Self { k: each(&self.k), v: each(&self.v), before }
    }

    /// Products of queries with all keys, `[row, head, query, key]`.
    fn scores(&self, q: &Tensor) -> Result<Tensor, tch::TchError> {
        let new = q.f_matmul(&self.k.transpose(2, 3))?;
        match &self.before {
            Some((k, _)) => Tensor::f_cat(&[across(q, &k.transpose(2, 3))?, new], 3),
            None => Ok(new),
        }
    }

    /// What a pattern gathers, `[row, head, query, d_head]`.
    fn gathered(&self, pattern: &Tensor) -> Result<Tensor, tch::TchError> {
        let Some((_, v)) = &self.before else { return pattern.f_matmul(&self.v) };
        let first = v.size()[2];
        let new = pattern.narrow(3, first, pattern.size()[3] - first).f_matmul(&self.v)?;
        across(&pattern.narrow(3, 0, first), v)?.f_add(&new)
    }
}

/// Products of `x` `[row, head, query, a]`, whose rows are copies of fewer, with what those share, `[shared, head, a, b]`:
/// the copies' queries stand below each other in one product a head, and what is shared is not copied.
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

/// The heads that each of some copies of the batch has, as many in each.
pub(super) struct SomeHeads {
    /// Copies and heads in each.
    shape: [i64; 2],
    /// Query heads, `[copy * head]`.
    query: Tensor,
    /// The key/value heads that they share.
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

    /// Their parts of `x`, whose `axis` is the head: `[batch, ..]` to `[copy * batch, ..]`.
    pub(super) fn of(&self, x: &Tensor, axis: i64) -> Tensor {
        self.pick(&self.query, x, axis)
    }

    /// The parts of `x`, whose `axis` is the key/value head, that they read.
    pub(super) fn of_kv(&self, x: &Tensor, axis: i64) -> Tensor {
        self.pick(&self.kv, x, axis)
    }

    fn pick(&self, heads: &Tensor, x: &Tensor, axis: i64) -> Tensor {
        x.index_select(axis, heads).unflatten(axis, self.shape).movedim_int(axis, 0).flatten(0, 1)
    }

    /// What they write of a change `z`, `[copy * batch, position, head, d_head]` to `[copy * batch, position, d_model]`.
    pub(super) fn write(&self, z: &Tensor, w_o: &Tensor) -> Tensor {
        let (rows, positions) = (z.size()[0], z.size()[1]);
        let [copies, each] = self.shape;
        let w = w_o.index_select(0, &self.query).view([copies, each * z.size()[3], -1]);
        z.reshape([copies, rows / copies * positions, -1]).bmm(&w).view([rows, positions, -1])
    }
}

/// One projection of a block's normalised input, `[batch, position, d_model]` to `[batch, position, head, d_head]`.
pub(super) fn project_one(pass: &Pass<'_>, linear: &Linear, x: &Tensor, heads: usize) -> Result<Tensor> {
    Ok(pass.through(linear, x)?.unflatten(-1, [heads as i64, -1]))
}

/// q, k and v of a block's input `x`, `[batch, position, d_model]`, to `[batch, position, head, d_head]`; q only of the
/// wanted positions where nothing else is needed.
pub(super) fn project(pass: &Pass<'_>, layer: usize, weights: &Attention, x: &Tensor) -> Result<[Tensor; 3]> {
    let config = pass.model.config();
    let asking = if pass.trims_heads(layer) { pass.pick(x) } else { x.shallow_clone() };
    let kv = |linear| project_one(pass, linear, x, config.n_kv_heads);
    Ok([project_one(pass, &weights.q, &asking, config.n_heads)?, kv(&weights.k)?, kv(&weights.v)?])
}

/// z of every head, `[batch, position, head, d_head]`, from q, k and v; or of some heads, where q, k and v are theirs.
pub(super) fn heads(
    pass: &mut Pass<'_>,
    layer: usize,
    [q, k, v]: [Tensor; 3],
    some: Option<&SomeHeads>,
) -> Result<Tensor> {
    let (mut q, mut k, v) = (pass.at(Site::Q(layer), q)?, pass.at(Site::K(layer), k)?, pass.at(Site::V(layer), v)?);
    let wanted = pass.trims_heads(layer).then(|| pass.wanted_of(q.size()[0])).flatten();
    if let Some((cos, sin)) = &pass.rotary {
        let of = |table: &Tensor| {
            wanted.as_ref().map_or_else(|| table.shallow_clone(), |w| table.index_select(0, w).unsqueeze(1))
        };
        q = rotate(&q, &of(cos), &of(sin));
        k = rotate(&k, cos, sin);
    }
    let (q, k, v) = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
    let (group, rows) = (q.size()[1] / k.size()[1], k.size()[0]);
    let seen = pass.past.with(layer, k, v, some).shared(group);
    let mask = mask(pass, wanted.as_ref(), q.size()[2], seen.positions(), rows);
    let z = attend(pass, layer, &q, &seen, mask)?;
    Ok(z.transpose(1, 2))
}

/// Attention of `q`, `[row, head, position, d_head]`: fused where nothing asks for the pattern and no keys are shared.
fn attend(pass: &mut Pass<'_>, layer: usize, q: &Tensor, seen: &Seen, mask: Option<Tensor>) -> Result<Tensor> {
    let (scores_site, pattern_site) = (Site::Scores(layer), Site::Pattern(layer));
    let scale = (q.size()[3] as f64).powf(-0.5);
    let asked = pass.program.explicit || pass.program.touches(scores_site) || pass.program.touches(pattern_site);
    if !asked && seen.before.is_none() {
        let (k, v) = (&seen.k, &seen.v);
        let whole = mask.is_some() && pass.valid.is_none() && q.size()[2] == k.size()[2];
        let given = if whole { None } else { mask };
        return Tensor::f_scaled_dot_product_attention(q, k, v, given, 0.0, whole, scale, false).map_err(failed(q, k));
    }
    let k = &seen.k;
    let hidden = mask.map(|mask| mask.logical_not());
    // As tensors: where an operation with a plain number fails, tch panics while it drops that number.
    let number = |value: f64| sent(&Tensor::from(value).to_kind(q.kind()), q.device());
    // No edit of the scores opens an edge into the future or to padding: the mask is laid on before and after.
    let masked = |scores: Tensor| match &hidden {
        Some(hidden) => scores.f_masked_fill_tensor(hidden, &number(f64::NEG_INFINITY)).map_err(failed(q, k)),
        None => Ok(scores),
    };
    let scores = seen.scores(q).and_then(|scores| scores.f_mul(&number(scale))).map_err(failed(q, k))?;
    let mut scores = pass.at(scores_site, masked(scores)?)?;
    if pass.program.edits(scores_site) {
        scores = masked(scores)?;
    }
    let mut pattern = scores.f_softmax(-1, None).map_err(failed(q, k))?;
    if pass.program.knocks_out(scores_site) {
        let (top, _) = scores.max_dim(-1, true);
        pattern = pattern.masked_fill(&top.eq(f64::NEG_INFINITY), 0.0);
    }
    let pattern = pass.at(pattern_site, pattern)?;
    seen.gathered(&pattern).map_err(failed(q, k))
}

/// An error of attention that says how large it was: memory may not hold a long prompt's pattern.
fn failed(q: &Tensor, k: &Tensor) -> impl FnOnce(tch::TchError) -> Error {
    Error::torch(format!("attention of {:?} over {:?}", q.size(), k.size()))
}

/// True where a query sees a key, broadcast against `[batch, head, query, key]`; nothing where every query sees all.
/// `wanted` are the queries' own positions where there is one a row.
fn mask(pass: &Pass<'_>, wanted: Option<&Tensor>, query: i64, key: i64, rows: i64) -> Option<Tensor> {
    let device = pass.model.device();
    let causal = match wanted {
        _ if !pass.model.config().causal => None,
        Some(wanted) => {
            let place = (wanted + pass.past.positions()).view([-1, 1, 1, 1]);
            Some(Tensor::arange(key, (Kind::Int64, device)).view([1, 1, 1, -1]).le_tensor(&place))
        }
        None => (query > 1).then(|| causal_mask(query, key, device)),
    };
    // Rows are copies of the batch, one below the other.
    let copies = |valid: &Tensor| valid.repeat([rows / valid.size()[0], 1]).unsqueeze(1).unsqueeze(1);
    match (causal, pass.valid.as_ref().map(copies)) {
        (Some(causal), Some(valid)) => Some(causal.logical_and(&valid)),
        (causal, valid) => causal.or(valid),
    }
}
