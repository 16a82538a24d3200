//! How are activations normalised? By LayerNorm or RMSNorm, in one call or in parts; in half precision by way of float32, as in
//! transformers (and inside libtorch's LayerNorm).

use tch::{Kind, Tensor};

use crate::model::arch::{Norm, NormKind};
use crate::tensors::wide;

/// The normalised `x`, in one libtorch call if there is one.
pub(super) fn fused(kind: NormKind, weights: &Norm, x: &Tensor, eps: f64) -> Tensor {
    if weights.w.dim() == 2 && kind != NormKind::None {
        return stacked(kind, weights, x, eps);
    }
    match kind {
        NormKind::Layer => {
            let width = weights.w.size();
            x.layer_norm(width.as_slice(), Some(&weights.w), weights.b.as_ref(), eps, false)
        }
        // The order of operations of transformers, so that float32 agrees to the last bits.
        NormKind::Rms => {
            let own = x.to_kind(wide(x.kind()));
            &weights.w * (&own * (mean(&own.square()) + eps).rsqrt()).to_kind(x.kind())
        }
        NormKind::None => x.shallow_clone(),
    }
}

/// [`fused`] for weights with a `run` axis, in few passes over `x`, forward and backward.
fn stacked(kind: NormKind, weights: &Norm, x: &Tensor, eps: f64) -> Tensor {
    let by_run = bare(kind, x, eps).reshape([weights.w.size()[0], -1, x.size()[x.dim() - 1]]);
    let out = match &weights.b {
        Some(b) => by_run * weights.w.unsqueeze(1) + b.unsqueeze(1),
        None => by_run * weights.w.unsqueeze(1),
    };
    out.view_as(x)
}

/// The norm without its weights.
pub(super) fn bare(kind: NormKind, x: &Tensor, eps: f64) -> Tensor {
    let width = x.size()[x.dim() - 1];
    match kind {
        NormKind::Layer => x.layer_norm([width].as_slice(), None::<&Tensor>, None::<&Tensor>, eps, false),
        NormKind::Rms => {
            // By the vector's length: of the squares themselves, the gradient would take two more passes over `x`.
            let own = x.to_kind(wide(x.kind()));
            let length = own.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
            (&own * (length.square() / width as f64 + eps).rsqrt()).to_kind(x.kind())
        }
        NormKind::None => x.shallow_clone(),
    }
}

/// The mean over the last axis, kept as 1.
fn mean(x: &Tensor) -> Tensor {
    x.mean_dim([-1i64].as_slice(), true, None::<Kind>)
}

/// Dividend `[.., d]` and divisor `[.., 1]` of the norm: x - mean and sqrt(var + eps), or x and sqrt(mean(x^2) + eps); float32 in
/// half precision.
pub(crate) fn parts(kind: NormKind, x: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let x = x.to_kind(wide(x.kind()));
    let centred = if kind == NormKind::Layer { &x - mean(&x) } else { x };
    let scale = (mean(&centred.square()) + eps).sqrt();
    (centred, scale)
}

/// The norm from its parts: centred / scale * w + b.
pub(super) fn joined(weights: &Norm, centred: &Tensor, scale: &Tensor) -> Tensor {
    weighted(weights, &(centred / scale)).to_kind(weights.w.kind())
}

/// `x * w + b`.
pub(super) fn weighted(weights: &Norm, x: &Tensor) -> Tensor {
    let scaled = x * by_run(&weights.w, x);
    match &weights.b {
        Some(b) => scaled + by_run(b, x),
        None => scaled,
    }
}

/// A weight in a shape that broadcasts against `x`; if it has a `run` axis, each run's applies to its own rows.
fn by_run(weight: &Tensor, x: &Tensor) -> Tensor {
    if weight.dim() == 1 {
        return weight.shallow_clone();
    }
    let rows = weight.repeat_interleave_self_int(x.size()[0] / weight.size()[0], 0, None);
    let mut shape = vec![1i64; x.dim()];
    (shape[0], shape[x.dim() - 1]) = (x.size()[0], weight.size()[1]);
    rows.view(shape.as_slice())
}
