//! What do the keys of a config mean that many families share? Sizes, rotary positions in both dialects, windows,
//! activations.

use super::super::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{
    Activation, LayerConfig, LayerRotary, ModelConfig, NormKind, Position, QkvBias, Rotary, RotaryScaling,
};

/// Widths: of the residual stream, the number of heads, and of a head, which is `head_dim` if the config has it.
pub(super) fn widths(json: &ConfigJson, d_model: &str, n_heads: &str) -> Result<(usize, usize, usize)> {
    let (width, heads) = (json.usize(d_model)?, json.usize(n_heads)?);
    match json.opt_usize("head_dim")? {
        Some(d_head) => Ok((width, heads, d_head)),
        None if heads > 0 && width.is_multiple_of(heads) => Ok((width, heads, width / heads)),
        None => Err(json.wrong(n_heads, &format!("a divisor of {d_model} = {width}"), heads.to_string())),
    }
}

/// A decoder with the sizes that a config in the words of Llama gives, and with Llama's architecture: RMSNorm before each
/// sub-layer, rotary positions, grouped key/value heads, a gated MLP, no biases.
pub(super) fn llama(json: &ConfigJson, family: &str) -> Result<ModelConfig> {
    llama_with(json, family, Rope::default())
}

/// [`llama`] with other rotary positions.
pub(super) fn llama_with(json: &ConfigJson, family: &str, rope: Rope<'_>) -> Result<ModelConfig> {
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_attention_heads")?;
    let rotary = rotary(json, d_head, rope)?;
    let n_layers = depth(json, "num_hidden_layers")?;
    Ok(ModelConfig {
        family: family.to_owned(),
        n_layers,
        d_model,
        n_heads,
        n_kv_heads: json.opt_usize("num_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        d_mlp: json.usize("intermediate_size")?,
        vocab: json.usize("vocab_size")?,
        n_positions: positions(json, &rotary)?,
        norm: NormKind::Rms,
        norm_eps: json.opt_f64("rms_norm_eps")?.unwrap_or(1e-6),
        position: Position::Rotary(rotary),
        activation: activation(json, "hidden_act", "silu")?,
        gated_mlp: true,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        mlp_bias: false,
        tied_unembed: json.bool_or("tie_word_embeddings", false)?,
        ..ModelConfig::default()
    })
}

/// The longest text: a dynamic base is there to go beyond the context that the config names.
pub(super) fn positions(json: &ConfigJson, rotary: &Rotary) -> Result<usize> {
    let named = json.opt_usize("max_position_embeddings")?.unwrap_or(2048);
    Ok(match rotary.scaling {
        RotaryScaling::Dynamic { factor, .. } => (named as f64 * factor) as usize,
        _ => named,
    })
}

/// `like`, with biases of queries, keys, values and of what attention writes, if `attention_bias` says so.
pub(super) fn attention_bias(json: &ConfigJson, default: bool, like: ModelConfig) -> Result<ModelConfig> {
    let bias = json.bool_or("attention_bias", default)?;
    Ok(ModelConfig { qkv_bias: bias.into(), attn_out_bias: bias, ..like })
}

/// The number of layers, small enough to make a list of them.
pub(super) fn depth(json: &ConfigJson, key: &str) -> Result<usize> {
    match json.usize(key)? {
        n_layers @ ..=10_000 => Ok(n_layers),
        more => Err(json.wrong(key, "at most 10000 layers", more.to_string())),
    }
}

/// What holds for rotary positions if the config does not say otherwise.
pub(super) struct Rope<'a> {
    /// The base of the wavelengths.
    pub base: f64,
    /// The share of a head's coordinates that are rotated, in families whose configs may say another; the others rotate all of
    /// them.
    pub share: Option<f64>,
    /// The kind of layer, where each kind has rotary positions of its own.
    pub layers: Option<&'a str>,
    /// Whether neighbouring coordinates are rotated together.
    pub interleaved: bool,
}

impl Default for Rope<'_> {
    fn default() -> Self {
        Self { base: 10_000.0, share: None, layers: None, interleaved: false }
    }
}

/// The rotary positions of heads of width `d_head`: `rope_parameters` in newer files, `rope_theta`, `rope_scaling` and
/// `partial_rotary_factor` (in GPT-NeoX `rotary_emb_base` and `rotary_pct`) in older ones.
pub(super) fn rotary(json: &ConfigJson, d_head: usize, default: Rope<'_>) -> Result<Rotary> {
    let all = json.opt_object(json.first(&["rope_parameters", "rope_scaling"]))?;
    let own = match (&all, default.layers) {
        (Some(all), Some(layers)) if all.has(layers) => all.opt_object(layers)?,
        _ => None,
    };
    let nested = own.as_ref().or(all.as_ref());
    let number = |names: [&str; 2], default: f64| -> Result<f64> {
        let inner = nested.map(|nested| nested.opt_f64(names[0])).transpose()?.flatten();
        Ok(inner.or(json.opt_f64(json.first(&names))?).unwrap_or(default))
    };
    let base = number(["rope_theta", "rotary_emb_base"], default.base)?;
    let share = number(["partial_rotary_factor", "rotary_pct"], default.share.unwrap_or(1.0))?;
    if default.share.is_none() && share != 1.0 {
        return Err(json.wrong("partial_rotary_factor", "1, since this family rotates whole heads", share.to_string()));
    }
    let width = (d_head as f64 * share) as usize;
    let scaling = nested.map(|nested| scaling(json, nested)).transpose()?.unwrap_or(RotaryScaling::None);
    Ok(Rotary { base, scaling, width: Some(width).filter(|width| *width != d_head), interleaved: default.interleaved })
}

/// The rotary positions of layers with a window, where they have their own: without scaling, and in older files with a base
/// under `key`.
pub(super) fn local(json: &ConfigJson, d_head: usize, key: &str, base: f64) -> Result<Rotary> {
    let base = json.opt_f64(key)?.unwrap_or(base);
    let nested = json.opt_object("rope_parameters")?.is_some_and(|all| all.has("sliding_attention"));
    match nested {
        true => rotary(json, d_head, Rope { base, layers: Some("sliding_attention"), ..Rope::default() }),
        false => Ok(Rotary { base, ..Rotary::default() }),
    }
}

/// `n_layers` layers like these, of which those with a window, or those without, have these rotary positions.
pub(super) fn turning(
    layers: &[LayerConfig],
    n_layers: usize,
    windowed: bool,
    rotary: &LayerRotary,
) -> Vec<LayerConfig> {
    let layer = |number: usize| layers.get(number).cloned().unwrap_or_default();
    let own = |layer: LayerConfig| match layer.window.is_some() == windowed {
        true => LayerConfig { rotary: rotary.clone(), ..layer },
        false => layer,
    };
    (0..n_layers).map(layer).map(own).collect()
}

/// How frequencies are stretched, from the object `rope` that says so.
fn scaling(json: &ConfigJson, rope: &ConfigJson) -> Result<RotaryScaling> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let original = || -> Result<usize> {
        match (json.opt_usize(ORIGINAL)?, rope.opt_usize(ORIGINAL)?) {
            (Some(own), _) | (None, Some(own)) => Ok(own),
            _ => json.usize("max_position_embeddings"),
        }
    };
    let stretch = || -> Result<f64> {
        match rope.opt_f64("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(json.usize("max_position_embeddings")? as f64 / original()? as f64),
        }
    };
    let attention = |default: f64| -> Result<f64> { Ok(rope.opt_f64("attention_factor")?.unwrap_or(default)) };
    match rope.opt_str(rope.first(&["rope_type", "type"]))?.unwrap_or("default") {
        "default" => Ok(RotaryScaling::None),
        "linear" => Ok(RotaryScaling::Linear { factor: rope.f64("factor")? }),
        "dynamic" => Ok(RotaryScaling::Dynamic {
            factor: rope.f64("factor")?,
            original_positions: json.usize("max_position_embeddings")?,
        }),
        "llama3" => Ok(RotaryScaling::Llama3 {
            factor: rope.f64("factor")?,
            low: rope.f64("low_freq_factor")?,
            high: rope.f64("high_freq_factor")?,
            original_positions: original()? as f64,
        }),
        "longrope" | "su" => {
            let (factor, own) = (stretch()?, original()?);
            let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (own as f64).ln()).sqrt() };
            let numbers = |key: &str| rope.parsed(key, "a list of numbers");
            Ok(RotaryScaling::Long {
                short: numbers("short_factor")?,
                long: numbers("long_factor")?,
                original_positions: own,
                attention: attention(usual)?,
            })
        }
        "yarn" => {
            let factor = stretch()?;
            let growth = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let usual = match (rope.opt_f64("mscale")?, rope.opt_f64("mscale_all_dim")?) {
                (Some(m), Some(all)) if m != 0.0 && all != 0.0 => growth(m) / growth(all),
                _ => growth(1.0),
            };
            Ok(RotaryScaling::Yarn {
                factor,
                fast: rope.opt_f64("beta_fast")?.unwrap_or(32.0),
                slow: rope.opt_f64("beta_slow")?.unwrap_or(1.0),
                original_positions: original()? as f64,
                attention: attention(usual)?,
                truncate: rope.bool_or("truncate", true)?,
            })
        }
        other => {
            let expected = "default, linear, dynamic, llama3, longrope or yarn";
            Err(json.wrong("rope_type", expected, format!("`{other}`")))
        }
    }
}

/// The layers of a model in which some attend to a window only: those that `layer_types` says, otherwise those for which
/// `slides` holds. Empty if none does.
pub(super) fn windows(
    json: &ConfigJson,
    n_layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<LayerConfig>> {
    let named: Option<Vec<String>> = json.opt_parsed("layer_types", "a list of texts")?;
    let sliding: Vec<bool> = match &named {
        Some(named) if named.len() != n_layers => {
            let expected = format!("one kind for each of {n_layers} layers");
            return Err(json.wrong("layer_types", &expected, named.len().to_string()));
        }
        Some(named) => {
            let known = |kind: &String| match kind.as_str() {
                "full_attention" => Ok(false),
                "sliding_attention" => Ok(true),
                other => {
                    let expected = "full_attention and sliding_attention";
                    Err(json.wrong("layer_types", expected, format!("`{other}`")))
                }
            };
            named.iter().map(known).collect::<Result<_>>()?
        }
        None => (0..n_layers).map(slides).collect(),
    };
    if sliding.iter().any(|slides| *slides) && window.is_none() {
        return Err(json.wrong("sliding_window", "a width, since some layers slide", "nothing".to_owned()));
    }
    let layers =
        sliding.into_iter().map(|slides| LayerConfig { window: window.filter(|_| slides), ..LayerConfig::default() });
    let layers: Vec<LayerConfig> = layers.collect();
    Ok(if layers.iter().all(|layer| *layer == LayerConfig::default()) { vec![] } else { layers })
}

/// [`windows`] in all layers, of the width `sliding_window`, if there is one.
pub(super) fn same_windows(json: &ConfigJson, n_layers: usize) -> Result<Vec<LayerConfig>> {
    let window = json.opt_usize("sliding_window")?;
    windows(json, n_layers, window, |_| window.is_some())
}

/// The width of windows in the words of Qwen: `sliding_window`, if `use_sliding_window` says so.
pub(super) fn used_window(json: &ConfigJson) -> Result<Option<usize>> {
    let used = json.bool_or("use_sliding_window", false)?;
    Ok(if used { json.opt_usize("sliding_window")? } else { None })
}

/// [`windows`] in the words of Qwen: from layer `max_window_layers` on.
pub(super) fn late_windows(json: &ConfigJson, n_layers: usize) -> Result<Vec<LayerConfig>> {
    let window = used_window(json)?;
    let first = json.opt_usize("max_window_layers")?.unwrap_or(28);
    windows(json, n_layers, window, |layer| window.is_some() && layer >= first)
}

/// The activation function named by `key`.
pub(super) fn activation(json: &ConfigJson, key: &str, default: &str) -> Result<Activation> {
    let name = json.opt_str(key)?.unwrap_or(default);
    match name {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::GeluQuick),
        "relu" => Ok(Activation::Relu),
        "relu2" => Ok(Activation::ReluSquared),
        "silu" | "swish" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        other => {
            let expected = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, relu2, silu or tanh";
            Err(json.wrong(key, expected, format!("`{other}`")))
        }
    }
}
