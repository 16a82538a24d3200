//! How does a Cohere checkpoint (Command R) map to a model? One LayerNorm without bias for attention and MLP side by side,
//! rotary positions of neighbouring coordinates, scaled logits.

use super::keys::{Rope, rotary};
use super::{Family, Tensors, keys, llama};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{ModelConfig, NormKind, Parallel, Position, QkNorm, Rotary};

pub(super) const FAMILY: Family = Family { name: "cohere", config, tensors: Tensors::Named(llama::NAMES) };

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    let like = keys::llama(json, "cohere")?;
    let bias = json.bool_or("attention_bias", false)?;
    let rope = Rope { base: 500_000.0, ..Rope::default() };
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_bias: false,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-5),
        parallel: Parallel::OneNorm,
        position: Position::Rotary(Rotary { interleaved: true, ..rotary(json, like.d_head, rope)? }),
        qk_norm: if json.bool_or("use_qk_norm", false)? { QkNorm::EachHead } else { QkNorm::None },
        logit_scale: json.opt_f64("logit_scale")?.unwrap_or(0.0625),
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        tied_unembed: json.bool_or("tie_word_embeddings", true)?,
        ..like
    })
}
