//! Random architectures, from all that a configuration can say.

use headscope::model::{
    Activation, EmbedProjection, Experts, LayerConfig, LayerRotary, LmHead, ModelConfig, NormKind, NormPlace, Parallel,
    Position, QkNorm, QkvBias, Rotary, RotaryScaling, SharedExpert, Unembed,
};
use rand::{Rng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

fn one<T: Clone>(rng: &mut ChaCha8Rng, all: &[T]) -> T {
    all.choose(rng).unwrap().clone()
}

/// Something in one of `n` cases.
fn maybe<T>(rng: &mut ChaCha8Rng, n: u32, make: impl FnOnce(&mut ChaCha8Rng) -> T) -> Option<T> {
    rng.random_ratio(1, n).then(|| make(rng))
}

fn any_rotary(rng: &mut ChaCha8Rng, d_head: usize) -> Rotary {
    let width = maybe(rng, 2, |rng| 2 * rng.random_range(1..=d_head / 2));
    let pairs = width.unwrap_or(d_head) / 2;
    let scaling = match rng.random_range(0..8) {
        0 => RotaryScaling::Linear { factor: 3.0 },
        1 => RotaryScaling::Llama3 { factor: 4.0, low: 1.0, high: 4.0, original_positions: 30.0 },
        2 => RotaryScaling::Yarn {
            factor: 4.0,
            fast: 2.0,
            slow: 0.5,
            original_positions: 30.0,
            attention: 1.1,
            truncate: rng.random(),
        },
        3 => RotaryScaling::Long {
            short: (0..pairs).map(|i| 1.0 + i as f64 / 4.0).collect(),
            long: (0..pairs).map(|i| 2.0 + i as f64).collect(),
            original_positions: 5,
            attention: 1.2,
        },
        4 if pairs > 1 => RotaryScaling::Dynamic { factor: 2.0, original_positions: 5 },
        _ => RotaryScaling::None,
    };
    Rotary { base: one(rng, &[100.0, 10_000.0]), scaling, width, interleaved: rng.random() }
}

/// How many blocks have weights of their own, and how many follow one another before they repeat.
fn any_sharing(rng: &mut ChaCha8Rng, n_layers: usize) -> (usize, usize) {
    match maybe(rng, 4, |rng| rng.random_range(1..=n_layers)) {
        None => (0, 1),
        Some(n) if n_layers.is_multiple_of(n) => (n, one(rng, &[1, n])),
        Some(n) => (n, 1),
    }
}

/// A small architecture, drawn from the whole space of valid configurations.
pub fn any_config(rng: &mut ChaCha8Rng) -> ModelConfig {
    let n_kv_heads = rng.random_range(1..4);
    let n_heads = n_kv_heads * rng.random_range(1..4);
    let d_head = 2 * rng.random_range(1..5);
    let n_layers = rng.random_range(1..4);
    let norm = one(rng, &[NormKind::Layer, NormKind::Layer, NormKind::Rms, NormKind::Rms, NormKind::None]);
    let norm_place =
        one(rng, &[NormPlace::Pre, NormPlace::Pre, NormPlace::Post, NormPlace::Sandwich, NormPlace::Output]);
    let d_mlp = if rng.random_ratio(1, 6) { 0 } else { rng.random_range(1..24) };
    let parallel = match norm_place != NormPlace::Post && d_mlp > 0 {
        true => one(rng, &[Parallel::No, Parallel::No, Parallel::OneNorm, Parallel::TwoNorms]),
        false => Parallel::No,
    };
    let position = match rng.random_range(0..7) {
        0 => Position::None,
        1 => Position::Learned,
        6 => Position::Shortformer,
        2 => Position::Alibi,
        4 => Position::RoundedAlibi,
        3 => Position::Buckets { n: 2 * rng.random_range(2..6), max_distance: rng.random_range(6..12) },
        _ => Position::Rotary(any_rotary(rng, d_head)),
    };
    let (n_blocks, block_cycle) = any_sharing(rng, n_layers);
    let can_skip = n_blocks == 0 && matches!(norm_place, NormPlace::Pre | NormPlace::Sandwich);
    let own_widths = d_mlp > 0 && n_blocks == 0;
    let layers = maybe(rng, 2, |rng| {
        let layer = |rng: &mut ChaCha8Rng| LayerConfig {
            window: maybe(rng, 2, |rng| rng.random_range(1..6)),
            rotary: match rng.random_range(0..4) {
                0 => LayerRotary::None,
                1 => LayerRotary::Own(any_rotary(rng, d_head)),
                _ => LayerRotary::Model,
            },
            no_attn_norm: can_skip && rng.random_ratio(1, 3),
            d_mlp: maybe(rng, 3, |rng| rng.random_range(1..24)).filter(|_| own_widths),
        };
        (0..rng.random_range(1..4)).map(|_| layer(rng)).collect()
    });
    let activations = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::GeluBloom,
        Activation::GeluQuick,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Silu,
        Activation::Tanh,
        Activation::Solu,
    ];
    let experts = maybe(rng, 4, |rng| {
        let n = rng.random_range(1..5);
        let shared = maybe(rng, 2, |rng| SharedExpert { d_mlp: rng.random_range(1..24), gated: rng.random() });
        Experts { n, top_k: rng.random_range(1..=n), normalised: rng.random(), router_bias: rng.random(), shared }
    });
    let (width, gated_mlp) = (rng.random_range(2..20), rng.random());
    let causal = rng.random_ratio(3, 4);
    let counts = !causal && position == Position::Learned;
    let unembed = one(rng, &[Unembed::Linear { bias: false }, Unembed::Linear { bias: true }, Unembed::MaskedLm]);
    ModelConfig {
        family: "any".to_owned(),
        n_layers,
        n_blocks,
        block_cycle,
        d_model: rng.random_range(4..24),
        n_heads,
        n_kv_heads,
        d_head,
        d_mlp,
        vocab: 37,
        n_positions: 16,
        n_token_types: one(rng, &[0, 0, 2]),
        causal,
        norm,
        norm_bias: rng.random(),
        norm_place,
        parallel,
        embed_norm: rng.random_ratio(1, 4),
        embed_projection: one(
            rng,
            &[
                EmbedProjection::None,
                EmbedProjection::None,
                EmbedProjection::Tokens(width),
                EmbedProjection::Sum(width),
            ],
        ),
        embed_scale: one(rng, &[1.0, 1.0, 2.5]),
        residual_scale: one(rng, &[1.0, 1.0, 0.4]),
        logit_scale: one(rng, &[1.0, 1.0, 0.3]),
        logit_cap: maybe(rng, 4, |_| 3.0),
        position,
        uncounted: counts.then(|| rng.random_range(0..37)),
        attention_scale: maybe(rng, 3, |_| 0.7),
        scale_by_layer: rng.random_ratio(1, 4),
        score_cap: maybe(rng, 4, |_| 2.0),
        clip_qkv: maybe(rng, 4, |_| 0.8),
        sinks: rng.random_ratio(1, 4),
        qk_norm: one(rng, &[QkNorm::None, QkNorm::None, QkNorm::Head, QkNorm::EachHead, QkNorm::All]),
        layers: layers.unwrap_or_default(),
        activation: one(rng, &activations),
        gated_mlp,
        mlp_norm: rng.random_ratio(1, 4),
        gate_limit: maybe(rng, 3, |_| 0.7).filter(|_| gated_mlp),
        experts: experts.filter(|_| d_mlp > 0),
        qkv_bias: QkvBias { q: rng.random(), k: rng.random(), v: rng.random() },
        attn_out_bias: rng.random(),
        mlp_bias: rng.random(),
        unembed,
        lm_head: LmHead {
            activation: maybe(rng, 2, |_| Activation::Silu),
            dense_bias: rng.random(),
            norm_bias: rng.random(),
            bias: rng.random(),
        },
        tied_unembed: rng.random(),
        ..ModelConfig::default()
    }
}
