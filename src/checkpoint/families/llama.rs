//! How does a Llama checkpoint map to a model? Pre-norm with RMSNorm, rotary positions, grouped key/value heads, a
//! gated MLP.

use serde_json::json;

use super::{Family, Reader, activation, unembedding};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{
    Attention, Block, Linear, Mlp, ModelConfig, NormKind, NormPlace, Position, Rotary, RotaryScaling, Unembed,
    Unembedding, Weights,
};

pub(super) const FAMILY: Family = Family { name: "llama", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    json.only("pretraining_tp", &json!(1))?;
    let (d_model, n_heads) = (json.usize("hidden_size")?, json.usize("num_attention_heads")?);
    let d_head = match json.opt_usize("head_dim")? {
        Some(width) => width,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            let expected = format!("a divisor of hidden_size = {d_model} (or a head_dim)");
            return Err(json.wrong("num_attention_heads", &expected, n_heads.to_string()));
        }
    };
    let bias = json.bool_or("attention_bias", false)?;
    let tied = json.bool_or("tie_word_embeddings", false)?;
    // No `model.` prefix and no head: saved from a LlamaModel, which ends with the residual stream.
    let bare = source.has("embed_tokens.weight") && !source.has("lm_head.weight") && !tied;
    Ok(ModelConfig {
        family: "llama".to_owned(),
        n_layers: json.usize("num_hidden_layers")?,
        d_model,
        n_heads,
        n_kv_heads: json.opt_usize("num_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        d_mlp: json.usize("intermediate_size")?,
        vocab: json.usize("vocab_size")?,
        n_positions: json.opt_usize("max_position_embeddings")?.unwrap_or(2048),
        norm: NormKind::Rms,
        norm_eps: json.opt_f64("rms_norm_eps")?.unwrap_or(1e-6),
        norm_place: NormPlace::Pre,
        position: rotary(json)?,
        activation: activation(json, "hidden_act", "silu")?,
        gated_mlp: true,
        qkv_bias: bias.into(),
        attn_out_bias: bias,
        mlp_bias: json.bool_or("mlp_bias", false)?,
        unembed: if bare { Unembed::None } else { Unembed::Linear { bias: false } },
        tied_unembed: tied,
        ..ModelConfig::default()
    })
}

/// The rotary positions: `rope_parameters` in newer files, `rope_theta` and `rope_scaling` in older ones.
fn rotary(json: &ConfigJson) -> Result<Position> {
    let nested = match json.opt_object("rope_parameters")? {
        Some(nested) => Some(nested),
        None => json.opt_object("rope_scaling")?,
    };
    let base = match &nested {
        Some(nested) => nested.opt_f64("rope_theta")?,
        None => None,
    };
    let base = base.or(json.opt_f64("rope_theta")?).unwrap_or(10_000.0);
    let Some(nested) = nested else { return Ok(Position::Rotary(Rotary { base, ..Rotary::default() })) };
    let kind = match nested.opt_str("rope_type")? {
        Some(kind) => kind,
        None => nested.opt_str("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: nested.f64("factor")? },
        "llama3" => RotaryScaling::Llama3 {
            factor: nested.f64("factor")?,
            low: nested.f64("low_freq_factor")?,
            high: nested.f64("high_freq_factor")?,
            original_positions: nested.f64("original_max_position_embeddings")?,
        },
        other => return Err(json.wrong("rope_type", "default, linear or llama3", format!("`{other}`"))),
    };
    Ok(Position::Rotary(Rotary { base, scaling, ..Rotary::default() }))
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    let reader = Reader::new(source, "model.", "layers.0.self_attn.q_proj.weight");
    let d = config.d_model;
    let w_e = reader.embedding("embed_tokens.weight", config.vocab, d)?;
    let head = match config.unembed {
        Unembed::None => None,
        _ => Some(unembedding(source, "lm_head.weight", &w_e, config.tied_unembed)?),
    };
    let blocks = (0..config.n_layers).map(|layer| block(config, &reader.under(&format!("layers.{layer}"))));
    Ok(Weights {
        w_pos: None,
        w_type: None,
        ln_embed: None,
        projection: None,
        w_rel: None,
        blocks: blocks.collect::<Result<_>>()?,
        ln_final: reader.kept("norm.weight", || reader.norm("norm", d, false))?,
        unembedding: head.map(|w| Unembedding { transform: None, linear: Linear { w, b: None } }),
        w_e,
    })
}

fn block(config: &ModelConfig, reader: &Reader<'_>) -> Result<Block> {
    let (d, bias) = (config.d_model, config.qkv_bias);
    let (query, kv) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
    let attn = Attention::new(
        reader.linear("self_attn.q_proj", d, query, bias.q)?,
        reader.linear("self_attn.k_proj", d, kv, bias.k)?,
        reader.linear("self_attn.v_proj", d, kv, bias.v)?,
        reader.linear("self_attn.o_proj", query, d, config.attn_out_bias)?,
    );
    let mlp = || {
        Ok(Mlp {
            gate: reader.linear("mlp.gate_proj", d, config.d_mlp, config.mlp_bias)?,
            up: Some(reader.linear("mlp.up_proj", d, config.d_mlp, config.mlp_bias)?),
            norm: None,
            out: reader.linear("mlp.down_proj", config.d_mlp, d, config.mlp_bias)?,
        })
    };
    Ok(Block::new(
        Some(reader.norm("input_layernorm", d, false)?),
        attn,
        reader.kept("post_attention_layernorm.weight", || reader.norm("post_attention_layernorm", d, false))?,
        reader.kept("mlp.gate_proj.weight", mlp)?,
    ))
}

fn superfluous(name: &str) -> bool {
    // Old checkpoints store the rotary frequencies as a buffer.
    name.ends_with(".rotary_emb.inv_freq")
}
