//! What if heads did not see what the others have learned? Competition as a dose.
//!
//! In ordinary training, every head of a layer gets the gradient of one loss, that of the sum of all heads' outputs
//! `o`, so that what one of them has learned is gone from the gradient of the others. Here head h is trained on
//! `loss(o_h + a * sum of the others' o, detached)`, with a dose `a` from 0 to 1. At `a` = 1 the gradient of every
//! parameter is that of ordinary training; at `a` = 0 every head learns as if it were alone.
//!
//! A step computes the attention once, and the rest of the model once for each head. The training loss is the mean
//! over heads. Parameters that all heads share and that the loss depends on directly (the unembedding, the last norm,
//! the embeddings through the residual stream) get the mean of the heads' gradients. What reaches a head's output gets
//! its own loss's gradient undivided: the head's own parameters, and the embeddings through the head.

use tch::{Kind, Tensor};

use super::options::HeadOptions;
use crate::error::{Error, Result};
use crate::lab::prepared::Prepared;
use crate::model::{Model, ModelConfig, NormKind, NormPlace, Parallel, Pass, Past, Program, QkNorm, Site};

/// What a program must record for [`logits`].
pub(super) const SITES: [Site; 2] = [Site::ResidPre(0), Site::Z(0)];

/// The scale of every head's output at which models trained with a dose are measured: what a head sees of the sum of
/// all outputs, `o_h + a * (sum - o_h)`, is on average over the heads `(1 + a (H - 1)) / H` of it. `None` if that is 1.
///
/// Without it, the heads of a model trained at `a` = 0, each of which writes the whole answer, would together write it
/// H times.
pub(super) fn measured_scale(heads: &HeadOptions, config: &ModelConfig) -> Option<f64> {
    let n = config.n_heads as f64;
    let scale = |dose: f64| (1.0 + dose * (n - 1.0)) / n;
    heads.competition.map(scale).filter(|scale| *scale != 1.0)
}

/// Fails if the losses of single heads are not defined for models of this architecture: those with one layer, whose
/// head outputs are added to the last residual stream as they are, are served.
pub(super) fn check(config: &ModelConfig) -> Result<()> {
    let added = matches!((config.norm, config.norm_place), (NormKind::None, _) | (_, NormPlace::Pre));
    let alone = config.n_layers == 1 && !config.has_mlp() && config.parallel == Parallel::No;
    if alone && added && config.qk_norm != QkNorm::All {
        return Ok(());
    }
    let expected = "one attention-only layer with no norm after the heads, or over the queries and keys of all heads";
    let found = format!(
        "{} layers, d_mlp {}, norm place {:?}, norm of queries and keys {:?}",
        config.n_layers, config.d_mlp, config.norm_place, config.qk_norm
    );
    Err(Error::argument("competition", expected, found))
}

/// The logits that each head's loss reads, `[run * head * place, 1, column]`.
pub(super) fn logits(data: &Prepared, model: &Model, program: &Program, dose: f64) -> Result<Tensor> {
    let pass = || Pass::over(model, program, data.positions() as usize, None, Past::None).only(data.wanted());
    let (recorded, _) = pass().records(data.ids.shallow_clone())?;
    let of = |site: Site| {
        let found = recorded.get(&site).ok_or_else(|| Error::NotTapped { site, tapped: vec![] })?;
        Ok::<_, Error>(by_run(data, &data.pick_computed(found)))
    };
    let [stream, z] = SITES.map(of);
    let own = own_outputs(model, &z?)?;
    let fixed = own.detach();
    let sum = fixed.sum_dim_intlist([1i64].as_slice(), true, None::<Kind>);
    // It is 0 and carries the gradient: the mean over heads divides that by the number of heads again.
    let carrier = (&own - &fixed) * own.size()[1] as f64;
    let seen = with_bias(model, stream?)?.unsqueeze(1) + (sum * dose + fixed * (1.0 - dose)) + carrier;
    pass().some_logits(&seen.flatten(0, 2).unsqueeze(1), data.columns)
}

/// `[run * place, 1, ..]` as `[run, place, ..]`.
fn by_run(data: &Prepared, x: &Tensor) -> Tensor {
    x.squeeze_dim(1).unflatten(0, [data.runs, -1])
}

/// What every head adds to the residual stream, `[run, head, place, d_model]`, from z, `[run, place, head, d_head]`.
fn own_outputs(model: &Model, z: &Tensor) -> Result<Tensor> {
    let [runs, heads, width] = [0, 2, 3].map(|axis| z.size()[axis]);
    let w_o = model.block(0)?.attn.o.w.reshape([runs * heads, width, -1]);
    let own = z.transpose(1, 2).flatten(0, 1).f_bmm(&w_o).map_err(Error::torch("the outputs of heads"))?;
    let own = own.unflatten(0, [runs, heads]);
    let scale = model.config().residual_scale;
    Ok(if scale == 1.0 { own } else { own * scale })
}

/// The residual stream, `[run, place, d_model]`, with the bias of the attention output.
fn with_bias(model: &Model, stream: Tensor) -> Result<Tensor> {
    let Some(b) = &model.block(0)?.attn.o.b else { return Ok(stream) };
    let width = stream.size()[2];
    Ok(stream + b.view([-1, 1, width]) * model.config().residual_scale)
}
