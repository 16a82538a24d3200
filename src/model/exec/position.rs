//! How do positions enter attention? By rotating queries and keys, or by biases on the scores.

use tch::{Device, Kind, Tensor};

use super::pass::Pass;
use super::stack;
use crate::model::Model;
use crate::model::arch::{Attend, ModelConfig, Rotary, RotaryScaling, ScoreBias, Wire};
use crate::tensors::wide;

impl Pass<'_> {
    /// What queries or keys are projected from, plus the vector of each position.
    pub(super) fn with_positions(&self, layer: usize, wire: Wire, x: &Tensor) -> Tensor {
        let Some(w_pos) = &self.model.weights().w_pos else { return x.shallow_clone() };
        let asked = wire == Wire::Q && self.asks_where_wanted(layer);
        match self.wanted_of(x.size()[0]).filter(|_| asked) {
            // Models with such positions are not stacked: there is one run, with an axis or without.
            Some(wanted) => x + w_pos.flatten(0, -2).index_select(0, &(wanted + self.before)).unsqueeze(1),
            None => stack::add_to_each_row(x, &w_pos.narrow(-2, self.before, x.size()[1])),
        }
    }

    /// The cosines and sines of these rotary positions.
    pub(super) fn rotary_of(&self, rotary: &Rotary) -> Option<(Tensor, Tensor)> {
        let known = self.rotary.iter().find(|(own, _)| own == rotary);
        known.map(|(_, (cos, sin))| (cos.shallow_clone(), sin.shallow_clone()))
    }
}

/// Cosines and sines for positions `past..past + n`, each `[position, 1, width]`, for every kind of rotary positions that the
/// model's layers have.
///
/// The tables are computed in float32 whatever the model's type, as in transformers: a trained checkpoint depends on their
/// rounding.
pub(super) fn tables(model: &Model, past: i64, n: i64) -> Vec<(Rotary, (Tensor, Tensor))> {
    let mut all: Vec<(Rotary, (Tensor, Tensor))> = vec![];
    for layer in 0..model.config().n_layers {
        let Some(rotary) = &model.wiring().block(layer).attend.rotary else { continue };
        if all.iter().all(|(known, _)| known != rotary) {
            all.push((rotary.clone(), table(rotary, model, past, n)));
        }
    }
    all
}

fn table(rotary: &Rotary, model: &Model, past: i64, n: i64) -> (Tensor, Tensor) {
    let frequencies = frequencies(rotary, model.config().d_head, past + n);
    let positions = Tensor::arange_start(past, past + n, (Kind::Int64, Device::Cpu)).to_kind(Kind::Float);
    let angles = positions.unsqueeze(1) * frequencies.unsqueeze(0);
    let angles = match rotary.interleaved {
        true => angles.repeat_interleave_self_int(2, 1, None),
        false => Tensor::cat(&[&angles, &angles], -1),
    };
    let attention = match rotary.scaling {
        RotaryScaling::Yarn { attention, .. } | RotaryScaling::Long { attention, .. } => attention,
        _ => 1.0,
    };
    let to = |table: Tensor| (table * attention).unsqueeze(1).to_kind(model.kind()).to_device(model.device());
    (to(angles.cos()), to(angles.sin()))
}

/// Which coordinates of a head are rotated together, and by how many radians per position; pairs that are not rotated come
/// last, with 0. `None` if the layer has no rotary positions.
pub(crate) fn rotary_pairs(config: &ModelConfig, layer: usize) -> Option<Vec<([usize; 2], f64)>> {
    let rotary = config.rotary(layer)?;
    let frequencies = frequencies(&rotary, config.d_head, 0);
    let n = frequencies.numel();
    let turning = (0..n).map(|i| {
        let pair = if rotary.interleaved { [2 * i, 2 * i + 1] } else { [i, i + n] };
        (pair, frequencies.double_value(&[i as i64]))
    });
    let still = (n..config.d_head / 2).map(|i| ([2 * i, 2 * i + 1], 0.0));
    Some(turning.chain(still).collect())
}

/// Rotates the first coordinates of `x`, `[batch, position, head, d_head]`.
pub(super) fn rotate(x: &Tensor, rotary: &Rotary, (cos, sin): &(Tensor, Tensor)) -> Tensor {
    let (width, d_head) = (cos.size()[cos.dim() - 1], x.size()[3]);
    if width < d_head {
        let turned = rotate(&x.narrow(3, 0, width), rotary, &(cos.shallow_clone(), sin.shallow_clone()));
        return Tensor::cat(&[turned, x.narrow(3, width, d_head - width)], 3);
    }
    let turned = match rotary.interleaved {
        true => {
            let pairs = x.unflatten(3, [-1, 2]);
            Tensor::stack(&[pairs.select(4, 1).neg(), pairs.select(4, 0)], 4).flatten(3, 4)
        }
        false => {
            let halves = x.chunk(2, -1);
            Tensor::cat(&[&halves[1].neg(), &halves[0]], -1)
        }
    };
    x * cos + turned * sin
}

/// Radians per position in a text of so many positions, `[width / 2]`, float32.
fn frequencies(rotary: &Rotary, d_head: usize, positions: i64) -> Tensor {
    let width = rotary.width.unwrap_or(d_head) as i64;
    let exponents =
        Tensor::arange_start_step(0, width, 2, (Kind::Int64, Device::Cpu)).to_kind(Kind::Float) / width as f64;
    let waves = |base: f64| Tensor::pow_scalar(base, &exponents);
    let plain = waves(rotary.base).reciprocal();
    match &rotary.scaling {
        RotaryScaling::None => plain,
        RotaryScaling::Linear { factor } => plain / *factor,
        RotaryScaling::Dynamic { factor, original_positions } => {
            let (own, width) = (*original_positions as f64, width as f64);
            let growth = factor * (positions as f64).max(own) / own - (factor - 1.0);
            waves(rotary.base * growth.powf(width / (width - 2.0))).reciprocal()
        }
        RotaryScaling::Long { short, long, original_positions, .. } => {
            let divisors = if positions > *original_positions as i64 { long } else { short };
            (Tensor::from_slice(divisors).to_kind(Kind::Float) * waves(rotary.base)).reciprocal()
        }
        RotaryScaling::Yarn { factor, fast, slow, original_positions, truncate, .. } => {
            let turns_at = |turns: f64| {
                let waves = original_positions / (turns * 2.0 * std::f64::consts::PI);
                width as f64 * waves.ln() / (2.0 * rotary.base.ln())
            };
            let (low, high) = (turns_at(*fast), turns_at(*slow));
            let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
            let high = if low == high { high + 0.001 } else { high }; // a step, without a division by 0
            let numbers = Tensor::arange(width / 2, (Kind::Float, Device::Cpu));
            let kept = 1.0 - ((numbers - low) / (high - low)).clamp(0.0, 1.0);
            let stretched = (waves(rotary.base) * *factor).reciprocal();
            stretched * (1.0 - &kept) + plain * kept
        }
        &RotaryScaling::Llama3 { factor, low, high, original_positions } => {
            let wave = plain.reciprocal() * (2.0 * std::f64::consts::PI);
            let slow = wave.gt(original_positions / low);
            let fast = wave.lt(original_positions / high);
            let stretched = (&plain / factor).where_self(&slow, &plain);
            let share = (wave.reciprocal() * original_positions - low) / (high - low);
            let between = (1.0 - &share) * &stretched / factor + share * &stretched;
            stretched.where_self(&slow.logical_or(&fast), &between)
        }
    }
}

/// What is added to the scores by relative position: `[head, query, key]`, or `[row, head, 1, key]` if each row has a query
/// position of its own. `queries` are `[query]` or `[row, 1]`.
pub(super) fn score_bias(model: &Model, attend: &Attend, queries: &Tensor, keys: i64) -> Option<Tensor> {
    let distance = |queries: &Tensor| Tensor::arange(keys, (Kind::Int64, queries.device())) - queries.unsqueeze(-1);
    match attend.bias {
        ScoreBias::None => None,
        ScoreBias::RoundedAlibi => {
            let scale = (model.config().d_head as f64).powf(-0.5);
            let places = Tensor::arange(keys, (Kind::Int64, queries.device())).to_kind(Kind::BFloat16);
            let rounded = slopes(model).view([-1, 1, 1]).to_kind(Kind::BFloat16) * places;
            Some(rounded.to_kind(model.kind()) * scale)
        }
        ScoreBias::Alibi => {
            let distance = distance(queries).abs().neg().to_kind(wide(model.kind()));
            Some((slopes(model).view([-1, 1, 1]) * distance.unsqueeze(-3)).to_kind(model.kind()))
        }
        ScoreBias::Buckets { n, max_distance } => {
            let buckets = buckets(&distance(queries), n as i64, max_distance as f64, !attend.causal);
            let (weights, source) = (model.weights(), attend.source);
            let w_rel = weights.source.as_ref().filter(|_| source).map_or(&weights.w_rel, |source| &source.w_rel);
            let w_rel = w_rel.as_ref()?;
            let numbers = Tensor::embedding(w_rel, &buckets, -1, false, false);
            Some(numbers.movedim_int(-1, -3))
        }
    }
}

/// The slopes of the heads: with p the largest power of two up to the number of heads, the geometric series for p heads, then
/// every second number of the series for 2 p heads (Press et al. 2022). In float32, as in transformers.
fn slopes(model: &Model) -> Tensor {
    let heads = model.config().n_heads;
    let power = 1usize << heads.ilog2();
    let series = |n: usize, step: usize, terms: usize| {
        let powers = Tensor::arange_start_step(1, (1 + step * terms) as i64, step as i64, (Kind::Float, Device::Cpu));
        Tensor::from(2f64.powf(-8.0 / n as f64) as f32).pow(&powers)
    };
    let all = Tensor::cat(&[series(power, 1, power), series(2 * power, 2, heads - power)], 0);
    all.to_kind(wide(model.kind())).to_device(model.device())
}

/// The bucket of each relative position (key - query), as in T5: half of the buckets are for exact distances, half are spaced
/// logarithmically. With `both`, half of all buckets are for keys after the query.
fn buckets(distance: &Tensor, n: i64, most: f64, both: bool) -> Tensor {
    let n = if both { n / 2 } else { n };
    let after = if both { distance.gt(0).to_kind(Kind::Int64) * n } else { distance.zeros_like() };
    let far = if both { distance.abs() } else { distance.neg().clamp_min(0) };
    let exact = n / 2;
    let log = (far.to_kind(Kind::Float).clamp_min(1.0) / exact as f64).log() / (most / exact as f64).ln();
    let large = ((log * (n - exact) as f64).to_kind(Kind::Int64) + exact).clamp_max(n - 1);
    far.where_self(&far.lt(exact), &large) + after
}
