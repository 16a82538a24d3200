//! headscope's own: any [`ModelConfig`] under the key `model` of config.json, and the tensors by the names that
//! [`Model::parameters`](crate::model::Model::parameters) has, matrices `[in, out]`. What the lab trains is saved so:
//! attention-only models, heads of any width, models without norms, which no published family's config can express.

use super::{Family, Reader};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{
    Attention, Block, Head, Linear, Mlp, ModelConfig, Norm, NormKind, NormPlace, Position, Unembed, Weights,
};

pub(super) const FAMILY: Family = Family { name: NAME, config, weights, superfluous };

/// The value of `model_type`.
pub(crate) const NAME: &str = "headscope";
/// The key of config.json under which the [`ModelConfig`] stands.
pub(crate) const KEY: &str = "model";

fn config(json: &ConfigJson, _: &Source) -> Result<ModelConfig> {
    json.parsed(KEY, "a model's architecture")
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    let reader = Reader::new(source, "", "w_e");
    let (d, vocab) = (config.d_model, config.vocab);
    let w_e = reader.take("w_e", &[vocab, d])?;
    let head = match config.unembed {
        Unembed::None => None,
        Unembed::Linear { bias } => Some((None, bias)),
        Unembed::MaskedLm => {
            Some((Some((linear(&reader, "transform", d, d, true)?, norm(&reader, "ln_transform", d, true)?)), true))
        }
    };
    let head = head.map(|(transform, bias)| {
        let w = if config.tied_unembed { w_e.tr() } else { reader.take("w_u", &[d, vocab])? };
        let b = bias.then(|| reader.take("b_u", &[vocab])).transpose()?;
        Ok(Head { transform, unembed: Linear { w, b } })
    });
    let blocks = (0..config.n_layers).map(|layer| block(config, &reader.under(&format!("blocks.{layer}"))));
    let final_norm = config.norm_place == NormPlace::Pre;
    Ok(Weights {
        w_pos: matches!(config.position, Position::Learned)
            .then(|| reader.take("w_pos", &[config.n_positions, d]))
            .transpose()?,
        w_type: (config.n_token_types > 0).then(|| reader.take("w_type", &[config.n_token_types, d])).transpose()?,
        ln_embed: if config.embed_norm { norm_of(config, &reader, "ln_embed")? } else { None },
        blocks: blocks.collect::<Result<_>>()?,
        ln_final: if final_norm { norm_of(config, &reader, "ln_final")? } else { None },
        head: head.transpose()?,
        w_e,
    })
}

fn block(config: &ModelConfig, reader: &Reader<'_>) -> Result<Block> {
    let (d, bias) = (config.d_model, config.qkv_bias);
    let (query, kv) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
    let attn = Attention {
        q: linear(reader, "q", d, query, bias)?,
        k: linear(reader, "k", d, kv, bias)?,
        v: linear(reader, "v", d, kv, bias)?,
        o: linear(reader, "o", query, d, config.attn_out_bias)?,
    };
    let up = |name| linear(reader, name, d, config.d_mlp, config.mlp_bias);
    let mlp = config.has_mlp().then(|| {
        let (gate, up) = if config.gated_mlp { (up("gate")?, Some(up("in")?)) } else { (up("in")?, None) };
        Ok(Mlp { gate, up, out: linear(reader, "out", config.d_mlp, d, config.mlp_bias)? })
    });
    let ln2 = if config.has_mlp() { norm_of(config, reader, "ln2")? } else { None };
    Ok(Block { ln1: norm_of(config, reader, "ln1")?, attn, ln2, mlp: mlp.transpose()? })
}

fn linear(reader: &Reader<'_>, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
    let w = reader.matrix(&format!("w_{name}"), rows, columns)?;
    Ok(Linear { w, b: bias.then(|| reader.take(&format!("b_{name}"), &[columns])).transpose()? })
}

fn norm(reader: &Reader<'_>, name: &str, width: usize, bias: bool) -> Result<Norm> {
    let w = reader.take(&format!("{name}.w"), &[width])?;
    Ok(Norm { w, b: bias.then(|| reader.take(&format!("{name}.b"), &[width])).transpose()? })
}

/// A norm of the model's own kind, where it has norms.
fn norm_of(config: &ModelConfig, reader: &Reader<'_>, name: &str) -> Result<Option<Norm>> {
    let kind = config.norm;
    (kind != NormKind::None).then(|| norm(reader, name, config.d_model, kind == NormKind::Layer)).transpose()
}

fn superfluous(_: &str) -> bool {
    false
}
