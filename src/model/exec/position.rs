//! Rotary position embeddings.

use tch::{Device, Kind, Tensor};

use super::config::{ModelConfig, Position, RotaryScaling};

/// Cosines and sines for positions `past..past + n`, each `[position, 1, d_head]`; nothing for other kinds of position.
///
/// The tables are computed in float32 whatever the model's type, as transformers does: they are part of what a trained
/// checkpoint means.
pub(super) fn rotary(config: &ModelConfig, past: i64, n: i64, kind: Kind, device: Device) -> Option<(Tensor, Tensor)> {
    let Position::Rotary { base, scaling } = &config.position else { return None };
    let frequencies = frequencies(*base, config.d_head as i64, scaling);
    let positions = Tensor::arange_start(past, past + n, (Kind::Int64, Device::Cpu)).to_kind(Kind::Float);
    let angles = positions.unsqueeze(1) * frequencies.unsqueeze(0);
    let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
    let to = |table: Tensor| table.to_kind(kind).to_device(device);
    Some((to(angles.cos()), to(angles.sin())))
}

/// Radians by which each pair of coordinates turns per position, `[d_head / 2]`; nothing for other kinds of position.
pub(super) fn radians(config: &ModelConfig) -> Option<Vec<f64>> {
    let Position::Rotary { base, scaling } = &config.position else { return None };
    let frequencies = frequencies(*base, config.d_head as i64, scaling);
    Some((0..frequencies.numel() as i64).map(|i| frequencies.double_value(&[i])).collect())
}

/// Rotates `x`, `[batch, position, head, d_head]`; coordinate i turns with coordinate i + d_head / 2.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let halves = x.chunk(2, -1);
    let turned = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
    x * cos + turned * sin
}

/// Radians per position, `[d_head / 2]`, float32.
fn frequencies(base: f64, width: i64, scaling: &RotaryScaling) -> Tensor {
    let exponents =
        Tensor::arange_start_step(0, width, 2, (Kind::Int64, Device::Cpu)).to_kind(Kind::Float) / width as f64;
    let plain = Tensor::pow_scalar(base, &exponents).reciprocal();
    match *scaling {
        RotaryScaling::None => plain,
        RotaryScaling::Linear { factor } => plain / factor,
        RotaryScaling::Llama3 { factor, low, high, original_positions } => {
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
