//! How does a GPT-2 checkpoint map to a model? Pre-norm, learned positions, matrices stored `[in, out]`, and q, k and v
//! in one matrix.

use serde_json::json;

use super::{Family, Reader, activation, unembedding};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{
    Attention, Block, Linear, Mlp, ModelConfig, NormKind, NormPlace, Position, Unembed, Unembedding, Weights,
};

pub(super) const FAMILY: Family = Family { name: "gpt2", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    for (key, only) in [
        ("scale_attn_weights", json!(true)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
        ("add_cross_attention", json!(false)),
    ] {
        json.only(key, &only)?;
    }
    let (d_model, n_heads) = (json.usize("n_embd")?, json.usize("n_head")?);
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        return Err(json.wrong("n_head", &format!("a divisor of n_embd = {d_model}"), n_heads.to_string()));
    }
    let tied = json.bool_or("tie_word_embeddings", true)?;
    // No `transformer.` prefix and no head: saved from a GPT2Model, which ends with the residual stream.
    let bare = source.has("wte.weight") && !source.has("lm_head.weight") && !tied;
    Ok(ModelConfig {
        family: "gpt2".to_owned(),
        n_layers: json.usize("n_layer")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        d_mlp: json.opt_usize("n_inner")?.unwrap_or(d_model.saturating_mul(4)),
        vocab: json.usize("vocab_size")?,
        n_positions: json.usize("n_positions")?,
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
        norm_place: NormPlace::Pre,
        position: Position::Learned,
        activation: activation(json, "activation_function", "gelu_new")?,
        unembed: if bare { Unembed::None } else { Unembed::Linear { bias: false } },
        tied_unembed: tied,
        ..ModelConfig::default()
    })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    let reader = Reader::new(source, "transformer.", "h.0.attn.c_attn.weight");
    let d = config.d_model;
    let w_e = reader.embedding("wte.weight", config.vocab, d)?;
    let head = match config.unembed {
        Unembed::None => None,
        _ => Some(unembedding(source, "lm_head.weight", &w_e, config.tied_unembed)?),
    };
    Ok(Weights {
        w_pos: reader.kept("wpe.weight", || reader.take("wpe.weight", &[config.n_positions, d]))?,
        w_type: None,
        ln_embed: None,
        projection: None,
        w_rel: None,
        blocks: (0..config.n_layers)
            .map(|layer| block(config, &reader.under(&format!("h.{layer}"))))
            .collect::<Result<_>>()?,
        ln_final: reader.kept("ln_f.weight", || reader.norm("ln_f", d, true))?,
        unembedding: head.map(|w| Unembedding { transform: None, linear: Linear { w, b: None } }),
        w_e,
    })
}

fn block(config: &ModelConfig, reader: &Reader<'_>) -> Result<Block> {
    let d = config.d_model;
    let qkv = reader.conv1d("attn.c_attn", d, 3 * d)?;
    let part = |i: i64| {
        let (start, width) = (i * d as i64, d as i64);
        Linear { w: qkv.w.narrow(1, start, width), b: qkv.b.as_ref().map(|b| b.narrow(0, start, width)) }
    };
    let attn = Attention::new(part(0), part(1), part(2), reader.conv1d("attn.c_proj", d, d)?);
    let mlp = || {
        let gate = reader.conv1d("mlp.c_fc", d, config.d_mlp)?;
        Ok(Mlp { gate, up: None, norm: None, out: reader.conv1d("mlp.c_proj", config.d_mlp, d)? })
    };
    Ok(Block::new(
        Some(reader.norm("ln_1", d, true)?),
        attn,
        reader.kept("ln_2.weight", || reader.norm("ln_2", d, true))?,
        reader.kept("mlp.c_fc.weight", mlp)?,
    ))
}

fn superfluous(name: &str) -> bool {
    // Old checkpoints store the causal mask as a buffer.
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}
