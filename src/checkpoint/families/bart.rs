//! How does a BART checkpoint map to a model? An encoder and a decoder, learned positions after two unused ones, normalised
//! embeddings, and norms after each sum; in mBART before each sub-layer.

use super::keys::{activation, depth};
use super::names::Names;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::error::Result;
use crate::model::{Encoder, LayerConfig, ModelConfig, NormPlace, Position, Unembed};

pub(super) const BART: Family = Family { name: "bart", config: bart, tensors: Tensors::Named(NAMES) };
pub(super) const MBART: Family = Family { name: "mbart", config: mbart, tensors: Tensors::Named(NAMES) };

/// The names of all models that descend from BART.
pub(super) const NAMES: Names = Names {
    prefix: "model.",
    outside: &[
        ("w_e", "decoder.embed_tokens"),
        ("w_e", "shared"),
        ("source.w_e", "encoder.embed_tokens"),
        ("source.w_e", "shared"),
        ("w_pos", "decoder.embed_positions"),
        ("source.w_pos", "encoder.embed_positions"),
        ("ln_embed", "decoder.layernorm_embedding"),
        ("source.ln_embed", "encoder.layernorm_embedding"),
        ("ln_final", "decoder.layer_norm"),
        ("source.ln_final", "encoder.layer_norm"),
    ],
    block: "encoder.layers.{}.",
    inside: &[
        ("ln1", "self_attn_layer_norm"),
        ("q", "self_attn.q_proj"),
        ("k", "self_attn.k_proj"),
        ("v", "self_attn.v_proj"),
        ("o", "self_attn.out_proj"),
        ("ln_cross", "encoder_attn_layer_norm"),
        ("cross.q", "encoder_attn.q_proj"),
        ("cross.k", "encoder_attn.k_proj"),
        ("cross.v", "encoder_attn.v_proj"),
        ("cross.o", "encoder_attn.out_proj"),
        ("ln2", "final_layer_norm"),
        ("in", "fc1"),
        ("out", "fc2"),
    ],
    decoder: "decoder.layers.{}.",
    head: &[("u", "lm_head"), ("b_u", "final_logits_bias")],
    position_offset: 2,
    repeats: &["shared", "encoder.embed_tokens"],
    // Written by fairseq; and a table that is not used where each side has its own.
    superfluous: &["encoder.version", "decoder.version", "model.shared.weight"],
    ..Names::NONE
};

fn bart(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig { embed_norm: true, ..config(json, "bart", "gelu")? })
}

fn mbart(json: &ConfigJson) -> Result<ModelConfig> {
    Ok(ModelConfig { embed_norm: true, norm_place: NormPlace::Pre, ..config(json, "mbart", "gelu")? })
}

/// What a config in the words of BART says: norms after each sum, none on the embeddings, learned positions.
pub(super) fn config(json: &ConfigJson, family: &str, usual: &str) -> Result<ModelConfig> {
    let [n_encoder, n_decoder] = ["encoder_layers", "decoder_layers"].map(|key| depth(json, key));
    let (n_encoder, n_decoder) = (n_encoder?, n_decoder?);
    let (d_model, n_heads) = (json.usize("d_model")?, json.usize("encoder_attention_heads")?);
    let others = json.usize("decoder_attention_heads")?;
    if n_heads != others {
        let expected = format!("{n_heads}, as in the encoder");
        return Err(json.wrong("decoder_attention_heads", &expected, others.to_string()));
    }
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        let expected = format!("a divisor of d_model = {d_model}");
        return Err(json.wrong("encoder_attention_heads", &expected, n_heads.to_string()));
    }
    let [of_encoder, of_decoder] = ["encoder_ffn_dim", "decoder_ffn_dim"].map(|key| json.usize(key));
    let (of_encoder, of_decoder) = (of_encoder?, of_decoder?);
    let own = |d_mlp: usize| LayerConfig { d_mlp: Some(d_mlp), ..LayerConfig::default() };
    let layers = match of_encoder == of_decoder {
        true => vec![],
        false => [vec![own(of_encoder); n_encoder], vec![own(of_decoder); n_decoder]].concat(),
    };
    let scaled = json.bool_or("scale_embedding", false)?;
    let (vocab, tied) = (json.usize("vocab_size")?, json.bool_or("tie_word_embeddings", true)?);
    Ok(ModelConfig {
        family: family.to_owned(),
        n_layers: n_encoder + n_decoder,
        encoder: Some(Encoder { n_layers: n_encoder, vocab: (!tied).then_some(vocab) }),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        d_mlp: of_decoder,
        vocab,
        n_positions: json.usize("max_position_embeddings")?,
        norm_place: NormPlace::Post,
        embed_scale: if scaled { (d_model as f64).sqrt() } else { 1.0 },
        position: Position::Learned,
        layers,
        activation: activation(json, "activation_function", usual)?,
        unembed: Unembed::Linear { bias: true },
        tied_unembed: tied,
        ..ModelConfig::default()
    })
}
