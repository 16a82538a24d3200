//! What does an MLP compute, or the experts that share its work?

use tch::{Kind, Tensor};

use super::join::State;
use super::norm;
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::model::arch::{Activation, Block, Mlp, NormKind, Op, Shared, Step};
use crate::tensors::wide;

/// One step of a block's MLP.
pub(super) fn compute(pass: &Pass<'_>, block: &Block, step: &Step, state: &State) -> Result<Tensor> {
    let mlp = block.mlp.as_ref().ok_or_else(|| Error::argument("block", "an MLP", "none"))?;
    let x = state.get(step.reads[0])?;
    match step.op {
        Op::Expand => pass.through(&mlp.gate, x),
        Op::Contract => pass.through(&mlp.out, x),
        _ => {
            let up = step.reads.get(1).zip(mlp.up.as_ref());
            let up = up.map(|(&read, up)| pass.through(up, state.get(read)?)).transpose()?;
            Ok(hidden(pass, mlp, x, up))
        }
    }
}

/// The weight of each expert at each position, `[.., d_model]` to `[.., expert]`: the softmax of the router's scores, set to 0
/// except for the largest few.
pub(super) fn route(pass: &Pass<'_>, block: &Block, x: &Tensor) -> Result<Tensor> {
    let (Some(experts), Some(config)) = (&block.experts, pass.model.config().experts) else {
        return Err(Error::argument("block", "experts", "none"));
    };
    let all = experts.router.forward(x)?.softmax(-1, wide(x.kind()));
    let (top, chosen) = all.topk(config.top_k as i64, -1, true, true);
    let top = if config.normalised { &top / top.sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>) } else { top };
    Ok(all.zeros_like().scatter(-1, &chosen, &top).to_kind(x.kind()))
}

/// The weighted sum of the experts' outputs; `x` and `weights` are `[row, position, ..]`. An expert is computed only at the
/// positions where its weight is not 0.
pub(super) fn mix(pass: &Pass<'_>, block: &Block, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let experts = block.experts.as_ref().ok_or_else(|| Error::argument("block", "experts", "none"))?;
    let (flat, of_experts) = (x.flatten(0, -2), weights.flatten(0, -2));
    let mut sum = flat.zeros_like();
    for (number, mlp) in experts.each.iter().enumerate() {
        let weight = of_experts.select(1, number as i64);
        let chosen = weight.ne(0.0).nonzero().squeeze_dim(1);
        if chosen.numel() > 0 {
            let own = whole(pass, mlp, &flat.index_select(0, &chosen))? * weight.index_select(0, &chosen).unsqueeze(1);
            sum = sum.index_add(0, &chosen, &own);
        }
    }
    if let Some(Shared { mlp, gate }) = &experts.shared {
        let own = whole(pass, mlp, &flat)?;
        let own = match gate {
            Some(gate) => own * gate.forward(&flat)?.sigmoid(),
            None => own,
        };
        sum = &sum + own; // not `+=`, which works in place
    }
    Ok(sum.view_as(x))
}

/// The output of an MLP, all steps at once.
fn whole(pass: &Pass<'_>, mlp: &Mlp, x: &Tensor) -> Result<Tensor> {
    let up = mlp.up.as_ref().map(|up| pass.through(up, x)).transpose()?;
    let hidden = hidden(pass, mlp, &pass.through(&mlp.gate, x)?, up);
    pass.through(&mlp.out, &hidden)
}

/// What an MLP's output projection reads: the activation of `pre`, in a gated MLP multiplied by the second projection `up`, and
/// normalised in some models.
fn hidden(pass: &Pass<'_>, mlp: &Mlp, pre: &Tensor, up: Option<Tensor>) -> Tensor {
    let config = pass.model.config();
    let hidden = match (up, config.gate_limit) {
        (None, _) => activate(pre, config.activation),
        (Some(up), None) => activate(pre, config.activation) * up,
        (Some(up), Some(limit)) => activate(&pre.clamp_max(limit), config.activation) * (up.clamp(-limit, limit) + 1.0),
    };
    match &mlp.norm {
        Some(weights) => norm::fused(NormKind::Layer, weights, &hidden, config.norm_eps),
        None => hidden,
    }
}

pub(super) fn activate(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::Gelu => x.gelu("none"),
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::GeluBloom => x * 0.5 * ((x * 0.797_884_56 * (x.square() * 0.044_715 + 1.0)).tanh() + 1.0),
        Activation::GeluQuick => x * (x * 1.702).sigmoid(),
        Activation::Relu => x.relu(),
        Activation::ReluSquared => x.relu().square(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
        Activation::Solu => x * x.softmax(-1, None::<Kind>),
    }
}
