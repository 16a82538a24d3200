//! How does an OLMo, OLMo 2 or OLMo 3 checkpoint map to a model? Llama, in OLMo with LayerNorms without weights, from OLMo 2 on
//! with RMSNorms on the outputs of sub-layers and on all queries and keys, in OLMo 3 with windows in most layers.

use serde_json::json;

use super::keys::Rope;
use super::names::Names;
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{LayerRotary, ModelConfig, NormKind, NormPlace, QkNorm};

pub(super) const OLMO: Family = Family { name: "olmo", config: olmo, tensors: Tensors::Named(PLAIN) };
pub(super) const OLMO2: Family = Family { name: "olmo2", config: olmo2, tensors: Tensors::Named(OUTPUT) };
pub(super) const OLMO3: Family = Family { name: "olmo3", config: olmo3, tensors: Tensors::Named(OUTPUT) };

const PLAIN: Names = Names {
    outside: &[("w_e", "embed_tokens"), ("ln_final", "")],
    inside: &[("ln1", ""), ("ln2", "")],
    ..llama::NAMES
};

const OUTPUT: Names = Names {
    inside: &[("ln1_post", "post_attention_layernorm"), ("ln2_post", "post_feedforward_layernorm")],
    ..llama::NAMES
};

fn olmo(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_bias: false,
        norm_eps: 1e-5,
        clip_qkv: json.opt_f64("clip_qkv")?,
        ..keys::attention_bias(json, false, keys::llama(json, "olmo")?)?
    })
}

fn olmo2(json: &ConfigJson) -> Result<ModelConfig> {
    output(json, "olmo2", Rope::default())
}

fn olmo3(json: &ConfigJson) -> Result<ModelConfig> {
    let json = &json.assuming([("sliding_window", json!(4096))]);
    let global = Rope { base: 500_000.0, layers: Some("full_attention"), ..Rope::default() };
    let like = output(json, "olmo3", global)?;
    let window = json.opt_usize("sliding_window")?;
    let windows = keys::windows(json, like.n_layers, window, |layer| window.is_some() && (layer + 1) % 4 != 0)?;
    let local = LayerRotary::Own(keys::local(json, like.d_head, "rope_theta", 500_000.0)?);
    Ok(ModelConfig { layers: keys::turning(&windows, like.n_layers, true, &local), ..like })
}

/// What OLMo 2 and 3 have in common.
fn output(json: &ConfigJson, family: &str, rope: Rope<'_>) -> Result<ModelConfig> {
    let json = &json.assuming([("rms_norm_eps", json!(1e-5))]);
    let like = keys::attention_bias(json, false, keys::llama_with(json, family, rope)?)?;
    Ok(ModelConfig { norm_place: NormPlace::Output, qk_norm: QkNorm::All, ..like })
}
