//! How does a T5 checkpoint map to a model? An encoder and a decoder, RMSNorm before each sub-layer, a number for each bucket of
//! relative positions in self-attention, unscaled scores and no biases. Version 1.1 and mT5 have gated MLPs and an unembedding of
//! their own.

use super::keys;
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Activation, Encoder, ModelConfig, NormKind, Position, QkvBias, Unembed};

pub(super) const T5: Family = Family { name: "t5", config: t5, tensors: Tensors::Named(NAMES) };
pub(super) const MT5: Family = Family { name: "mt5", config: mt5, tensors: Tensors::Named(NAMES) };

const NAMES: Names = Names {
    outside: &[
        ("w_e", "shared"),
        ("w_rel", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        ("source.w_rel", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        ("ln_final", "decoder.final_layer_norm"),
        ("source.ln_final", "encoder.final_layer_norm"),
    ],
    block: "encoder.block.{}.",
    inside: &[
        ("ln2", "layer.1.layer_norm"),
        ("in", "layer.1.DenseReluDense.wi"),
        ("gate", "layer.1.DenseReluDense.wi_0"),
        ("in", "layer.1.DenseReluDense.wi_1"),
        ("out", "layer.1.DenseReluDense.wo"),
    ],
    decoder: "decoder.block.{}.",
    inside_decoder: &[
        ("ln_cross", "layer.1.layer_norm"),
        ("cross.q", "layer.1.EncDecAttention.q"),
        ("cross.k", "layer.1.EncDecAttention.k"),
        ("cross.v", "layer.1.EncDecAttention.v"),
        ("cross.o", "layer.1.EncDecAttention.o"),
        ("ln2", "layer.2.layer_norm"),
        ("in", "layer.2.DenseReluDense.wi"),
        ("gate", "layer.2.DenseReluDense.wi_0"),
        ("in", "layer.2.DenseReluDense.wi_1"),
        ("out", "layer.2.DenseReluDense.wo"),
    ],
    // In both.
    otherwise: &[
        ("ln1", "layer.0.layer_norm"),
        ("q", "layer.0.SelfAttention.q"),
        ("k", "layer.0.SelfAttention.k"),
        ("v", "layer.0.SelfAttention.v"),
        ("o", "layer.0.SelfAttention.o"),
    ],
    head: &[("u", "lm_head")],
    repeats: &["encoder.embed_tokens", "decoder.embed_tokens"],
    // Old files hold relative positions of cross-attention, which nothing reads.
    superfluous: &["EncDecAttention.relative_attention_bias"],
    ..Names::NONE
};

fn t5(json: &ConfigJson) -> Result<ModelConfig> {
    // The first T5 scales what its unembedding, the token embedding, reads. Configs of version 1.1 say that the two are not tied;
    // newer ones say it directly.
    let scales = json.bool_or("scale_decoder_outputs", json.bool_or("tie_word_embeddings", true)?)?;
    let config = config(json, "t5", "relu")?;
    let logit_scale = if scales { (config.d_model as f64).powf(-0.5) } else { 1.0 };
    Ok(ModelConfig { logit_scale, ..config })
}

fn mt5(json: &ConfigJson) -> Result<ModelConfig> {
    config(json, "mt5", "gated-gelu")
}

fn config(json: &ConfigJson, family: &str, usual: &str) -> Result<ModelConfig> {
    let n_encoder = keys::depth(json, "num_layers")?;
    let n_decoder =
        json.opt_usize("num_decoder_layers")?.map_or(Ok(n_encoder), |_| keys::depth(json, "num_decoder_layers"))?;
    let (d_model, n_heads) = (json.usize("d_model")?, json.usize("num_heads")?);
    let (activation, gated_mlp) = feed_forward(json, usual)?;
    Ok(ModelConfig {
        family: family.to_owned(),
        n_layers: n_encoder + n_decoder,
        encoder: Some(Encoder { n_layers: n_encoder, vocab: None }),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head: json.usize("d_kv")?,
        d_mlp: json.usize("d_ff")?,
        vocab: json.usize("vocab_size")?,
        // Positions are distances, so that no length is too long for the weights; this is what the model was trained on.
        n_positions: json.opt_usize("n_positions")?.unwrap_or(512),
        norm: NormKind::Rms,
        norm_eps: json.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-6),
        position: Position::Buckets {
            n: json.opt_usize("relative_attention_num_buckets")?.unwrap_or(32),
            max_distance: json.opt_usize("relative_attention_max_distance")?.unwrap_or(128),
        },
        attention_scale: Some(1.0),
        activation,
        gated_mlp,
        qkv_bias: QkvBias::NONE,
        attn_out_bias: false,
        mlp_bias: false,
        unembed: Unembed::Linear { bias: false },
        // Unless the file has another matrix, whatever the config says; as in transformers.
        tied_unembed: true,
        ..ModelConfig::default()
    })
}

/// The activation, and whether the MLP is gated.
fn feed_forward(json: &ConfigJson, usual: &str) -> Result<(Activation, bool)> {
    match json.opt_str("feed_forward_proj")?.unwrap_or(usual) {
        "relu" => Ok((Activation::Relu, false)),
        "gelu" => Ok((Activation::Gelu, false)),
        // As transformers reads it.
        "gated-gelu" => Ok((Activation::GeluTanh, true)),
        "gated-relu" => Ok((Activation::Relu, true)),
        "gated-silu" => Ok((Activation::Silu, true)),
        other => {
            let expected = "relu, gelu, gated-gelu, gated-relu or gated-silu";
            Err(json.wrong("feed_forward_proj", expected, format!("`{other}`")))
        }
    }
}
