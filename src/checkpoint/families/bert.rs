//! How does a BERT checkpoint map to a model? Post-norm, bidirectional, learned positions and token types, optionally
//! with the masked-language-model head.

use serde_json::json;
use tch::Tensor;

use super::{Family, Reader, activation, encoder, unembedding};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::{Error, Result};
use crate::model::{
    Attention, Block, Linear, Mlp, ModelConfig, NormKind, NormPlace, Position, Transform, Unembed, Unembedding, Weights,
};

pub(super) const FAMILY: Family = Family { name: "bert", config, weights, superfluous };

fn config(json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
    for (key, only) in [
        ("position_embedding_type", json!("absolute")),
        ("add_cross_attention", json!(false)),
    ] {
        json.only(key, &only)?;
    }
    let (d_model, n_heads) = (json.usize("hidden_size")?, json.usize("num_attention_heads")?);
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        return Err(json.wrong(
            "num_attention_heads",
            &format!("a divisor of hidden_size = {d_model}"),
            n_heads.to_string(),
        ));
    }
    let has_head = source.has("cls.predictions.transform.dense.weight");
    Ok(ModelConfig {
        family: "bert".to_owned(),
        n_layers: json.usize("num_hidden_layers")?,
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        d_mlp: json.usize("intermediate_size")?,
        vocab: json.usize("vocab_size")?,
        n_positions: json.usize("max_position_embeddings")?,
        n_token_types: json.opt_usize("type_vocab_size")?.unwrap_or(2),
        causal: json.bool_or("is_decoder", false)?,
        norm: NormKind::Layer,
        norm_eps: json.opt_f64("layer_norm_eps")?.unwrap_or(1e-12),
        norm_place: NormPlace::Post,
        embed_norm: true,
        position: Position::Learned,
        activation: activation(json, "hidden_act", "gelu")?,
        unembed: if has_head { Unembed::MaskedLm } else { Unembed::None },
        tied_unembed: has_head && json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    let reader = Reader::new(source, "bert.", "encoder.layer.0.attention.self.query.weight");
    let embeddings = reader.under("embeddings");
    let d = config.d_model;
    let w_e = embeddings.embedding("word_embeddings.weight", config.vocab, d)?;
    let blocks = (0..config.n_layers).map(|layer| block(config, &reader.under(&format!("encoder.layer.{layer}"))));
    let types = config.n_token_types;
    Ok(Weights {
        w_pos: embeddings.kept("position_embeddings.weight", || {
            embeddings.take("position_embeddings.weight", &[config.n_positions, d])
        })?,
        w_type: match types {
            0 => None,
            _ => embeddings.kept("token_type_embeddings.weight", || {
                embeddings.take("token_type_embeddings.weight", &[types, d])
            })?,
        },
        projection: None,
        w_rel: None,
        ln_embed: embeddings.kept("LayerNorm.weight", || embeddings.norm("LayerNorm", d, true))?,
        blocks: blocks.collect::<Result<_>>()?,
        ln_final: None,
        unembedding: (config.unembed == Unembed::MaskedLm).then(|| head(config, source, &w_e)).transpose()?,
        w_e,
    })
}

fn head(config: &ModelConfig, source: &Source, w_e: &Tensor) -> Result<Unembedding> {
    let reader = Reader { source, prefix: "cls.predictions.".to_owned() };
    let d = config.d_model;
    let w = unembedding(source, "cls.predictions.decoder.weight", w_e, config.tied_unembed)?;
    let b = Some(bias(config, &reader)?);
    let norm = Some(reader.norm("transform.LayerNorm", d, true)?);
    let transform = Some(Transform { dense: reader.linear("transform.dense", d, d, true)?, norm });
    Ok(Unembedding { transform, linear: Linear { w, b } })
}

/// The bias of the logits. A tied head has one bias under two names; an untied one has two, and the decoder's is used.
fn bias(config: &ModelConfig, reader: &Reader<'_>) -> Result<Tensor> {
    let shape = [config.vocab];
    let own = reader.take("bias", &shape)?;
    if !reader.source.has("cls.predictions.decoder.bias") {
        return Ok(own);
    }
    let decoder = reader.take("decoder.bias", &shape)?;
    if config.tied_unembed && !decoder.equal(&own) {
        return Err(Error::Format {
            path: reader.source.folder().to_owned(),
            at: "tensor `cls.predictions.decoder.bias`".to_owned(),
            expected: "the same values as in `cls.predictions.bias`, to which it is tied".to_owned(),
            found: "others".to_owned(),
        });
    }
    Ok(decoder)
}

fn block(config: &ModelConfig, reader: &Reader<'_>) -> Result<Block> {
    let d = config.d_model;
    let attention = reader.under("attention");
    let attn = Attention::new(
        attention.linear("self.query", d, d, true)?,
        attention.linear("self.key", d, d, true)?,
        attention.linear("self.value", d, d, true)?,
        attention.linear("output.dense", d, d, true)?,
    );
    let mlp = || {
        let gate = reader.linear("intermediate.dense", d, config.d_mlp, true)?;
        Ok(Mlp { gate, up: None, norm: None, out: reader.linear("output.dense", config.d_mlp, d, true)? })
    };
    Ok(Block::new(
        Some(attention.norm("output.LayerNorm", d, true)?),
        attn,
        reader.kept("output.LayerNorm.weight", || reader.norm("output.LayerNorm", d, true))?,
        reader.kept("intermediate.dense.weight", mlp)?,
    ))
}

fn superfluous(name: &str) -> bool {
    encoder::is_other_head(name) || name.starts_with("cls.seq_relationship.")
}
