//! Attention from one position of each row, without keys and values.
//!
//! A head's score of a key is `q W_K^T x`, and what it gathers is `(pattern x) W_V`. Where one position of a row asks, it is
//! cheaper to bring its query to the stream and to gather the stream itself than to compute keys and values everywhere.

use tch::{Kind, Tensor};

use super::attention::{Past, project_one};
use super::forward::Pass;
use super::site::Site;
use super::weights::{Attention, Linear};
use crate::error::Result;

/// Whether the heads of `layer` can be computed so: only the wanted positions ask, and nobody looks at what is left out.
pub(super) fn serves(pass: &Pass<'_>, layer: usize) -> bool {
    let config = pass.model.config();
    let left_out = [Site::Q(layer), Site::K(layer), Site::V(layer), Site::Scores(layer), Site::Pattern(layer)];
    let plain = pass.rotary.is_none() && pass.valid.is_none() && matches!(pass.past, Past::None);
    pass.whole
        && plain
        && config.causal
        && config.n_heads == config.n_kv_heads
        && pass.trims_heads(layer)
        && !left_out.into_iter().any(|site| pass.program.touches(site))
}

/// z at the wanted positions, `[row, 1, head, d_head]`, of a block's normalised input `x`, `[row, position, d_model]`.
pub(super) fn heads(pass: &Pass<'_>, weights: &Attention, x: &Tensor) -> Result<Tensor> {
    let heads = pass.model.config().n_heads;
    let q = project_one(&weights.q, &pass.pick(x), heads)?.squeeze_dim(1);
    let q = &q * (q.size()[2] as f64).powf(-0.5);
    // A bias of the keys adds the same to all scores of a query.
    let asked = each_head(&q, &by_head(&weights.k, heads).transpose(1, 2)); // [row, head, d_model]
    let mut scores = asked.bmm(&x.transpose(1, 2));
    if let Some(wanted) = pass.wanted_of(x.size()[0]) {
        // Added, since filling under a mask would be slower, and its gradient another pass.
        let positions = Tensor::arange(x.size()[1], (Kind::Int64, x.device()));
        let hidden = positions.view([1, 1, -1]).gt_tensor(&wanted.view([-1, 1, 1]));
        let away = Tensor::zeros(hidden.size(), (x.kind(), x.device())).masked_fill(&hidden, f64::NEG_INFINITY);
        scores = &scores + away; // not `+=`, which works in place
    }
    let read = scores.softmax(-1, None::<Kind>).bmm(x); // [row, head, d_model]
    let mut z = each_head(&read, &by_head(&weights.v, heads));
    if let Some(b) = &weights.v.b {
        // Weights of attention sum to 1.
        let own = b.unflatten(-1, [heads as i64, -1]).unsqueeze(-3);
        z = (z.view([runs(&weights.v), -1, z.size()[1], z.size()[2]]) + own).flatten(0, 1);
    }
    Ok(z.unsqueeze(1))
}

/// How many models stand along the `run` axis of a matrix.
fn runs(linear: &Linear) -> i64 {
    if linear.w.dim() == 3 { linear.w.size()[0] } else { 1 }
}

/// `[.., d_model, heads * d_head]` as `[run * head, d_model, d_head]`.
fn by_head(linear: &Linear, heads: usize) -> Tensor {
    let d_model = linear.w.size()[linear.w.dim() - 2];
    let own = linear.w.reshape([runs(linear), d_model, heads as i64, -1]).transpose(1, 2);
    own.reshape([runs(linear) * heads as i64, d_model, -1])
}

/// Each head's part of `x`, `[row, head, a]`, through its own matrix, `w` `[run * head, a, b]`, to `[row, head, b]`.
fn each_head(x: &Tensor, w: &Tensor) -> Tensor {
    let (heads, a) = (x.size()[1], x.size()[2]);
    let runs = w.size()[0] / heads;
    let own = x.reshape([runs, -1, heads, a]).transpose(1, 2).reshape([runs * heads, -1, a]);
    own.bmm(w).unflatten(0, [runs, heads]).transpose(1, 2).flatten(0, 1)
}
