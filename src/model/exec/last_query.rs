//! How is the last block computed cheaply if each row has a single query?
//!
//! The score of a key is q (x W_K)^T = (q W_K^T) x^T. With one query per row it is cheaper to project the query into the residual
//! stream and to gather the stream x itself, which W_V then projects, than to compute keys and values at every position. Cached
//! keys and values of earlier positions are used as they are.

use tch::{Kind, Tensor};

use super::attention::{Past, across};
use super::join::Joins;
use super::norm;
use super::pass::Pass;
use super::stack::{by_run, each_head};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::arch::{Attend, Linear, NormAt, Wire, Wires};
use crate::site::Site;
use crate::tensors::softmax;

/// Whether the last block can be computed this way for one query among `positions` new positions, and it is less work: plain
/// causal attention, in a block in which only z and the residual stream are read after the heads.
pub(crate) fn pays(model: &Model, positions: usize) -> bool {
    let wiring = model.wiring().block(model.wiring().n_layers() - 1);
    let alone = Wires::NONE.with(Wire::ResidPre).with(Wire::Z);
    wiring.attend == Attend::plain(true, wiring.attend.scale)
        && wiring.live(wiring.attend_step()) == alone
        && positions > 1
}

/// Whether the heads of `layer` are computed this way: only the wanted positions have queries, and no value that is left out
/// is recorded, edited or cached.
pub(super) fn serves(pass: &Pass<'_>, layer: usize, x: &Tensor, joins: &Joins<'_>) -> bool {
    let left_out = [Site::Q(layer), Site::K(layer), Site::V(layer), Site::Scores(layer), Site::Pattern(layer)];
    pass.asks_where_wanted(layer)
        && pays(pass.model, x.size()[1] as usize)
        && pass.valid.is_none()
        && !matches!(pass.past, Past::Growing(_))
        && !pass.program.explicit
        && !left_out.into_iter().any(|site| pass.program.touches(site))
        && !joins.within(layer)
}

/// z at the wanted positions, `[row, 1, head, d_head]`, from the residual stream `x` that enters the block,
/// `[row, position, d_model]`, and from that stream at the wanted positions.
pub(super) fn heads(pass: &mut Pass<'_>, layer: usize, x: &Tensor, wanted: &Tensor) -> Result<Tensor> {
    let model = pass.model;
    let (block, config) = (model.block(layer)?, model.config());
    let attn = &block.attn;
    let before = model.wiring().block(layer).step(Wire::AttnIn).is_some();
    let Some(norm) = block.norm(NormAt::Attn).filter(|_| before) else {
        return read(pass, layer, [&attn.q, &attn.k, &attn.v], x, wanted);
    };
    if folds_norm(pass, layer) {
        let (q, k, v) = (attn.q.after_norm(norm), attn.k.after_norm(norm), attn.v.after_norm(norm));
        let [x, wanted] = [x, wanted].map(|x| norm::bare(config.norm, x, config.norm_eps));
        return read(pass, layer, [&q, &k, &v], &x, &wanted);
    }
    let x = pass.norm(norm, Site::Ln1Scale(layer), x)?;
    read(pass, layer, [&attn.q, &attn.k, &attn.v], &x, &pass.pick(&x))
}

/// Whether the weights of the norm that attention reads through are folded into its matrices: where several models are stacked,
/// whose matrices are smaller than their residual streams; the divisor is neither tapped nor edited; and no earlier positions
/// are cached, whose keys and values come from the matrices as they are.
pub(super) fn folds_norm(pass: &Pass<'_>, layer: usize) -> bool {
    let reads_norm = pass.model.wiring().block(layer).step(Wire::AttnIn).is_some();
    let untouched = !pass.program.touches(Site::Ln1Scale(layer));
    reads_norm && pass.model.weights_are_stacked() && untouched && matches!(pass.past, Past::None)
}

/// [`heads`] of a normalised `x`.
fn read(pass: &Pass<'_>, layer: usize, [q, k, v]: [&Linear; 3], x: &Tensor, wanted: &Tensor) -> Result<Tensor> {
    let heads = pass.model.config().n_heads;
    let q = pass.through(q, wanted)?.unflatten(-1, [heads as i64, -1]).squeeze_dim(1);
    let q = &q * pass.model.wiring().block(layer).attend.scale;
    let asked = each_head(&q, &by_head(k, heads).transpose(1, 2)); // [row, head, d_model]
    let mut scores = asked.bmm(&x.transpose(1, 2));
    if let Some(wanted) = pass.wanted_of(x.size()[0]) {
        // Added: filling under a mask is slower, and its gradient takes another pass.
        let positions = Tensor::arange(x.size()[1], (Kind::Int64, x.device()));
        let hidden = positions.view([1, 1, -1]).gt_tensor(&wanted.view([-1, 1, 1]));
        let away = Tensor::zeros(hidden.size(), (x.kind(), x.device())).masked_fill(&hidden, f64::NEG_INFINITY);
        scores = &scores + away; // not `+=`, which works in place
    }
    let failed = |error| Error::torch("attention from one position")(error);
    let Some((old_k, old_v)) = pass.past.shared(layer) else {
        // The bias of the keys adds the same number to all scores of a query, which the softmax ignores.
        let gathered = softmax(&scores).map_err(failed)?.bmm(x); // [row, head, d_model]
        let z = values(&gathered, &by_head(v, heads));
        return Ok(with_bias(z, v, heads, None).unsqueeze(1));
    };
    if let Some(b) = &k.b {
        let b = b.view([heads as i64, -1]);
        scores = &scores + (&q * b).sum_dim_intlist([-1i64].as_slice(), true, None);
    }
    let q = q.unsqueeze(2); // [row, head, 1, d_head]
    let before = across(&q, &old_k.transpose(2, 3)).map_err(failed)?.squeeze_dim(2);
    let pattern = softmax(&Tensor::cat(&[before, scores], 2)).map_err(failed)?;
    let first = old_k.size()[2];
    let new = pattern.narrow(2, first, x.size()[1]);
    let z = values(&new.bmm(x), &by_head(v, heads));
    let z = with_bias(z, v, heads, Some(&new.sum_dim_intlist([-1i64].as_slice(), true, None)));
    let before = across(&pattern.narrow(2, 0, first).unsqueeze(2), &old_v).map_err(failed)?;
    Ok((z + before.squeeze_dim(2)).unsqueeze(1))
}

/// `z`, `[row, head, d_head]`, plus the bias of the values, times `weight` if the attention weights do not sum to 1.
fn with_bias(z: Tensor, v: &Linear, heads: usize, weight: Option<&Tensor>) -> Tensor {
    let Some(b) = &v.b else { return z };
    let own = b.unflatten(-1, [heads as i64, -1]).unsqueeze(-3);
    match weight {
        Some(weight) => z + own * weight,
        None => (z.view([runs(v), -1, z.size()[1], z.size()[2]]) + own).flatten(0, 1),
    }
}

/// The length of a matrix' `run` axis; 1 if it has none.
fn runs(linear: &Linear) -> i64 {
    if linear.w.dim() == 3 { linear.w.size()[0] } else { 1 }
}

/// `[.., d_model, heads * d_head]` as `[run * head, d_model, d_head]`.
fn by_head(linear: &Linear, heads: usize) -> Tensor {
    let d_model = linear.w.size()[linear.w.dim() - 2];
    let own = linear.w.reshape([runs(linear), d_model, heads as i64, -1]).transpose(1, 2);
    own.reshape([runs(linear) * heads as i64, d_model, -1])
}

/// [`each_head`] for what heads gather, to `d_head`. For stacked models the rows become the long axis of the products and of
/// their gradients, since narrow products cost as much as wide ones.
fn values(x: &Tensor, w: &Tensor) -> Tensor {
    let (heads, runs) = (x.size()[1], w.size()[0] / x.size()[1]);
    if runs == 1 {
        return each_head(x, w);
    }
    let z = w.transpose(1, 2).bmm(&by_run(x, runs).transpose(1, 2)); // [run * head, d_head, row]
    z.unflatten(0, [runs, heads]).permute([0, 3, 1, 2]).flatten(0, 1)
}
