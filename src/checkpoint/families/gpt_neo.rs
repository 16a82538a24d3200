//! How does a GPT-Neo checkpoint map to a model? GPT-2 without a factor of the scores, and with windows in some layers.

use super::keys::{activation, depth, widths};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{LayerConfig, ModelConfig, QkvBias};

pub(super) const FAMILY: Family = Family { name: "gpt_neo", config, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    prefix: "transformer.",
    outside: &[("w_e", "wte"), ("w_pos", "wpe"), ("ln_final", "ln_f")],
    block: "h.{}.",
    inside: &[
        ("ln1", "ln_1"),
        ("q", "attn.attention.q_proj"),
        ("k", "attn.attention.k_proj"),
        ("v", "attn.attention.v_proj"),
        ("o", "attn.attention.out_proj"),
        ("ln2", "ln_2"),
        ("in", "mlp.c_fc"),
        ("out", "mlp.c_proj"),
    ],
    head: &[("u", "lm_head")],
    superfluous: &[".attn.attention.bias", ".attn.attention.masked_bias"],
    ..Names::NONE
};

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let (d_model, n_heads, d_head) = widths(json, "hidden_size", "num_heads")?;
    Ok(ModelConfig {
        family: "gpt_neo".to_owned(),
        n_layers: json.usize("num_layers")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: json.opt_usize("intermediate_size")?.unwrap_or(d_model.saturating_mul(4)),
        vocab: json.usize("vocab_size")?,
        n_positions: json.usize("max_position_embeddings")?,
        norm_eps: json.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
        attention_scale: Some(1.0),
        activation: activation(json, "activation_function", "gelu_new")?,
        qkv_bias: QkvBias::NONE,
        layers: layers(json)?,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}

/// Which layers have a window: `attention_layers` lists them one by one, `attention_types` as patterns with their number of
/// repetitions.
fn layers(json: &ConfigJson) -> Result<Vec<LayerConfig>> {
    let expected = "a list of lists of kinds of attention and a number";
    let n_layers = depth(json, "num_layers")?;
    let kinds: Vec<String> = match json.opt_parsed("attention_layers", "a list of texts")? {
        Some(kinds) => kinds,
        None => {
            let patterns: Vec<(Vec<String>, usize)> = json.parsed("attention_types", expected)?;
            let each = |(kinds, times): (Vec<String>, usize)| (0..times).flat_map(move |_| kinds.clone());
            patterns.into_iter().flat_map(each).take(n_layers + 1).collect()
        }
    };
    if kinds.len() != n_layers {
        let expected = format!("one kind for each of {n_layers} layers");
        return Err(json.wrong("attention_layers", &expected, kinds.len().to_string()));
    }
    let window = json.opt_usize("window_size")?.unwrap_or(256);
    let layer = |kind: &String| match kind.as_str() {
        "global" => Ok(LayerConfig::default()),
        "local" => Ok(LayerConfig { window: Some(window), ..LayerConfig::default() }),
        other => Err(json.wrong("attention_layers", "global and local", format!("`{other}`"))),
    };
    kinds.iter().map(layer).collect()
}
