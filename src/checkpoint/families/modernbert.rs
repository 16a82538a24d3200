//! How does a ModernBERT checkpoint map to a model? Pre-norm but for the first attention, rotary positions with one base for
//! global and one for local layers, fused q, k and v, a gated MLP with both inputs in one matrix.

use super::encoder::{self, Head, Names, Stored::As, Stored::In};
use super::{Family, activation};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{
    LayerConfig, LayerRotary, LmHead, ModelConfig, NormPlace, Position, Rotary, RotaryScaling, Unembed, Weights,
};

pub(super) const FAMILY: Family = Family { name: "modernbert", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    let keys = ["hidden_size", "num_attention_heads", "norm_eps"];
    let base = encoder::base(json, source, keys, "head.dense.weight")?;
    // The heads for other tasks have a dense layer of the same name.
    let has_head = base.unembed == Unembed::MaskedLm && !source.has("classifier.weight");
    let n_layers = json.usize("num_hidden_layers")?;
    let bias = json.bool_or("attention_bias", false)?;
    let norm_bias = json.bool_or("norm_bias", false)?;
    let [global, local] = [("full_attention", "global", 160_000.0), ("sliding_attention", "local", 10_000.0)]
        .map(|(kind, old, base)| rotary(json, kind, old, base));
    let (global, local) = (global?, local?);
    let window = json.opt_usize("local_attention")?.unwrap_or(128);
    let layer = |(number, kind): (usize, String)| {
        let config = LayerConfig { no_attn_norm: number == 0, ..LayerConfig::default() };
        match kind.as_str() {
            "full_attention" => Ok(config),
            "sliding_attention" => {
                Ok(LayerConfig { window: Some(window), rotary: LayerRotary::Own(local.clone()), ..config })
            }
            other => Err(json.wrong("layer_types", "full_attention or sliding_attention", format!("`{other}`"))),
        }
    };
    Ok(ModelConfig {
        n_layers,
        d_mlp: json.usize("intermediate_size")?,
        n_positions: json.opt_usize("max_position_embeddings")?.unwrap_or(8192),
        norm_bias,
        norm_eps: json.opt_f64("norm_eps")?.unwrap_or(1e-5),
        norm_place: NormPlace::Pre,
        layers: kinds(json, n_layers)?.into_iter().enumerate().map(layer).collect::<Result<_>>()?,
        position: Position::Rotary(global),
        activation: activation(json, "hidden_activation", "gelu")?,
        gated_mlp: true,
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        unembed: if has_head { Unembed::MaskedLm } else { Unembed::None },
        lm_head: LmHead {
            activation: Some(activation(json, "classifier_activation", "gelu")?),
            dense_bias: json.bool_or("classifier_bias", false)?,
            norm_bias,
            bias: json.bool_or("decoder_bias", true)?,
        },
        tied_unembed: has_head && base.tied_unembed,
        ..base
    })
}

/// The kind of attention of each layer: in `layer_types`, or in older files by counting.
fn kinds(json: &ConfigJson, n_layers: usize) -> Result<Vec<String>> {
    const KEY: &str = "layer_types";
    if !json.has(KEY) {
        let every = json.opt_usize("global_attn_every_n_layers")?.unwrap_or(3);
        let kind = |layer: usize| if layer.is_multiple_of(every) { "full_attention" } else { "sliding_attention" };
        return Ok((0..n_layers).map(|layer| kind(layer).to_owned()).collect());
    }
    let kinds: Vec<String> = json.parsed(KEY, "a list of kinds of attention")?;
    match kinds.len() == n_layers {
        true => Ok(kinds),
        false => Err(json.wrong(KEY, &format!("{n_layers} kinds of attention"), kinds.len().to_string())),
    }
}

/// The rotary positions of a kind of layers: in `rope_parameters`, or in older files by `global_rope_theta` and
/// `local_rope_theta`.
fn rotary(json: &ConfigJson, kind: &str, old: &str, default: f64) -> Result<Rotary> {
    let nested = json.opt_object("rope_parameters")?.map(|all| all.opt_object(kind)).transpose()?.flatten();
    let scaled = match &nested {
        Some(nested) => nested.opt_str("rope_type")?.unwrap_or("default") != "default",
        None => json.has("rope_scaling"),
    };
    if scaled {
        return Err(json.wrong("rope_parameters", "a rope_type of default", "another".to_owned()));
    }
    let base = nested.map(|nested| nested.opt_f64("rope_theta")).transpose()?.flatten();
    let base = base.or(json.opt_f64(&format!("{old}_rope_theta"))?).unwrap_or(default);
    Ok(Rotary { base, scaling: RotaryScaling::None, ..Rotary::default() })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    encoder::weights(config, source, &NAMES)
}

const NAMES: Names = Names {
    model: "model.",
    around: &[("w_e", "embeddings.tok_embeddings"), ("ln_embed", "embeddings.norm"), ("ln_final", "final_norm")],
    block: |number, _| format!("layers.{number}"),
    parts: &[
        ("ln1", As("attn_norm")),
        ("q", In("attn.Wqkv", 0, 3)),
        ("k", In("attn.Wqkv", 1, 3)),
        ("v", In("attn.Wqkv", 2, 3)),
        ("o", As("attn.Wo")),
        ("ln2", As("mlp_norm")),
        ("gate", In("mlp.Wi", 0, 2)),
        ("in", In("mlp.Wi", 1, 2)),
        ("out", As("mlp.Wo")),
    ],
    head: Head { dense: "head.dense", norm: "head.norm", decoder: "decoder", bias: None },
};

fn superfluous(name: &str) -> bool {
    encoder::is_other_head(name) || name.starts_with("head.")
}
