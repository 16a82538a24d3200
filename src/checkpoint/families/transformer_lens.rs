//! How does a TransformerLens checkpoint map to a model? The `state_dict()` of a `HookedTransformer` or `HookedEncoder` as
//! safetensors, and its `cfg.to_dict()` as `config.json`, which has no `model_type`. The repositories of TransformerLens' own
//! attention-only and SoLU models have the same keys, but for `normalization` and `shortformer_pos`.

use serde_json::json;
use tch::Tensor;

use super::keys::activation;
use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::{Error, Result};
use crate::model::{
    Activation, LayerConfig, LayerRotary, Linear, LmHead, Make, ModelConfig, Norm, NormKind, NormPlace, Parallel,
    Position, QkNorm, QkvBias, Rotary, RotaryScaling, Unembed, Weights,
};
use crate::tensors::onednn;

pub(super) const FAMILY: Family =
    Family { name: "transformer_lens", config, tensors: Tensors::Read { settle, weights, superfluous: SUPERFLUOUS } };

/// Buffers, the positions of models that use other ones, and the heads of a `HookedEncoder` that do not contribute to the logits.
const SUPERFLUOUS: &[&str] = &[
    ".attn.mask",
    ".attn.IGNORE",
    ".attn.rotary_sin",
    ".attn.rotary_cos",
    ".attn.alibi",
    "pos_embed.W_pos",
    "nsp_head.",
    "pooler.",
];

/// Whether a `config.json` without `model_type` is one of TransformerLens.
pub(super) fn wrote(json: &ConfigJson) -> bool {
    ["n_ctx", "d_vocab", "d_head", "d_model"].into_iter().all(|key| json.has(key))
}

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    refuse(json)?;
    let (d_model, d_head) = (json.usize("d_model")?, json.usize("d_head")?);
    let n_heads = sized(json, "n_heads")?.unwrap_or(d_model / d_head.max(1));
    let attention_only = json.bool_or("attn_only", false)?;
    let act_fn = json.opt_str("act_fn")?.unwrap_or("relu");
    let gated = !attention_only && json.bool_or("gated_mlp", false)?;
    let (norm, folded) = norm(json)?;
    let sandwich = json.bool_or("use_normalization_before_and_after", false)?;
    Ok(ModelConfig {
        family: FAMILY.name.to_owned(),
        n_layers: json.usize("n_layers")?,
        d_model,
        n_heads,
        n_kv_heads: json.opt_usize("n_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        d_mlp: match attention_only {
            true => 0,
            false => json.opt_usize("d_mlp")?.unwrap_or(d_model.saturating_mul(4)),
        },
        vocab: json.usize("d_vocab")?,
        n_positions: json.usize("n_ctx")?,
        causal: json.opt_str("attention_dir")?.unwrap_or("causal") == "causal",
        norm,
        norm_bias: norm == NormKind::Layer && !folded,
        norm_eps: json.opt_f64("eps")?.unwrap_or(1e-5),
        norm_place: if sandwich { NormPlace::Sandwich } else { NormPlace::Pre },
        parallel: match !attention_only && json.bool_or("parallel_attn_mlp", false)? {
            true => Parallel::TwoNorms,
            false => Parallel::No,
        },
        embed_norm: json.bool_or("post_embedding_ln", false)?,
        logit_cap: cap(json, "output_logits_soft_cap")?,
        position: position(json, d_head)?,
        attention_scale: scale(json)?,
        scale_by_layer: json.bool_or("scale_attn_by_inverse_layer_idx", false)?,
        score_cap: cap(json, "attn_scores_soft_cap")?,
        qk_norm: if json.bool_or("use_qk_norm", false)? { QkNorm::Head } else { QkNorm::None },
        layers: layers(json, d_head)?,
        activation: match act_fn {
            "solu" | "solu_ln" => Activation::Solu,
            _ if attention_only => Activation::Relu,
            _ => activation(json, "act_fn", "relu")?,
        },
        gated_mlp: gated,
        mlp_norm: !attention_only && act_fn.ends_with("_ln"),
        ..ModelConfig::default()
    })
}

/// Which biases there are, and whether the file is that of a `HookedEncoder`, the names of the tensors say.
fn settle(config: &mut ModelConfig, source: &Source) {
    let has = |name: &str| source.has(name);
    let own = |name: &str| has(&format!("blocks.0.attn.{name}")) || has(&format!("blocks.0.attn._{name}"));
    config.qkv_bias = QkvBias { q: own("b_Q"), k: own("b_K"), v: own("b_V") };
    config.attn_out_bias = own("b_O");
    config.mlp_bias = has("blocks.0.mlp.b_out");
    config.unembed = Unembed::Linear { bias: has("unembed.b_U") };
    if has("mlm_head.W") {
        config.norm_place = NormPlace::Post;
        config.embed_norm = true;
        config.n_token_types = source.shape(TYPES).and_then(|shape| shape.first().copied()).unwrap_or(0);
        config.unembed = Unembed::MaskedLm;
        let bias = has("unembed.b_U");
        config.lm_head = LmHead { activation: Some(Activation::Gelu), bias, ..LmHead::default() };
    }
}

/// The token types of a `HookedEncoder`.
const TYPES: &str = "embed.token_type_embed.W_token_type";

/// Fails on what would be computed wrongly.
fn refuse(json: &ConfigJson) -> Result<()> {
    for key in ["use_yarn_rope", "use_dynamic_ntk_rope", "use_logn_attn", "use_attention_sinks", "load_in_4bit"] {
        json.only(key, &json!(false))?;
    }
    for key in ["num_experts", "clip_qkv"] {
        json.only(key, &json!(null))?;
    }
    if let Some(factor) = json.opt_f64("rotary_scaling_factor")?.filter(|factor| *factor != 1.0) {
        return Err(json.wrong("rotary_scaling_factor", "1", factor.to_string()));
    }
    let with_norm = json.opt_str("act_fn")?.is_some_and(|name| name.ends_with("_ln"));
    if with_norm && json.bool_or("gated_mlp", false)? {
        return Err(json.wrong("gated_mlp", "false with an act_fn that normalises", "true".to_owned()));
    }
    if json.bool_or("final_rms", false)? && norm(json)?.0 == NormKind::Layer {
        return Err(json.wrong("final_rms", "false, in a model of LayerNorms", "true".to_owned()));
    }
    if cap(json, "attn_scores_soft_cap")?.is_some() && position(json, 0)? == Position::Alibi {
        let expected = "none with ALiBi, which TransformerLens adds to scores that are already capped";
        return Err(json.wrong("attn_scores_soft_cap", expected, "one".to_owned()));
    }
    // TransformerLens places the norms of these elsewhere, by their names.
    let architecture = json.opt_str("original_architecture")?.unwrap_or_default();
    if architecture.starts_with("Olmo2") || architecture.starts_with("Olmo3") || architecture.starts_with("Olmoe") {
        let expected = "another architecture (load the checkpoint in Hugging Face layout instead)";
        return Err(json.wrong("original_architecture", expected, format!("`{architecture}`")));
    }
    let (vocab, out) = (json.usize("d_vocab")?, sized(json, "d_vocab_out")?);
    if out.is_some_and(|out| out != vocab) {
        let expected = format!("d_vocab = {vocab} (what is read and what is written share a vocabulary)");
        return Err(json.wrong("d_vocab_out", &expected, out.unwrap_or(0).to_string()));
    }
    Ok(())
}

/// A size, for which TransformerLens writes -1 where it is not set.
fn sized(json: &ConfigJson, key: &str) -> Result<Option<usize>> {
    match json.opt_f64(key)? {
        Some(-1.0) => Ok(None),
        _ => json.opt_usize(key),
    }
}

/// The kind of norm, and whether its weights are folded into the matrices behind it.
fn norm(json: &ConfigJson) -> Result<(NormKind, bool)> {
    let key = if json.has("normalization") { "normalization" } else { "normalization_type" };
    match json.opt_str(key)? {
        None => Ok((NormKind::None, false)),
        Some("LN") => Ok((NormKind::Layer, false)),
        Some("LNPre") => Ok((NormKind::Layer, true)),
        Some("RMS") => Ok((NormKind::Rms, false)),
        Some("RMSPre") => Ok((NormKind::Rms, true)),
        Some(other) => Err(json.wrong(key, "LN, LNPre, RMS, RMSPre or null", format!("`{other}`"))),
    }
}

/// A soft cap; TransformerLens writes -1 for none.
fn cap(json: &ConfigJson, key: &str) -> Result<Option<f64>> {
    Ok(json.opt_f64(key)?.filter(|cap| *cap > 0.0))
}

/// The factor of the scores, where TransformerLens has the divisor.
fn scale(json: &ConfigJson) -> Result<Option<f64>> {
    if !json.bool_or("use_attn_scale", true)? {
        return Ok(Some(1.0));
    }
    Ok(json.opt_f64("attn_scale")?.filter(|divisor| *divisor != -1.0).map(f64::recip))
}

fn position(json: &ConfigJson, d_head: usize) -> Result<Position> {
    const KEY: &str = "positional_embedding_type";
    if json.bool_or("shortformer_pos", false)? {
        return Ok(Position::Shortformer);
    }
    match json.opt_str(KEY)?.unwrap_or("standard") {
        "standard" => Ok(Position::Learned),
        "shortformer" => Ok(Position::Shortformer),
        "alibi" => Ok(Position::Alibi),
        "rotary" => Ok(Position::Rotary(rotary(json, d_head, json.opt_f64("rotary_base")?)?)),
        other => Err(json.wrong(KEY, "standard, shortformer, rotary or alibi", format!("`{other}`"))),
    }
}

fn rotary(json: &ConfigJson, d_head: usize, base: Option<f64>) -> Result<Rotary> {
    let scaling = match json.bool_or("use_NTK_by_parts_rope", false)? {
        true => RotaryScaling::Llama3 {
            factor: json.f64("NTK_by_parts_factor")?,
            low: json.f64("NTK_by_parts_low_freq_factor")?,
            high: json.f64("NTK_by_parts_high_freq_factor")?,
            original_positions: json.f64("NTK_original_ctx_len")?,
        },
        false => RotaryScaling::None,
    };
    Ok(Rotary {
        base: base.unwrap_or(10_000.0),
        scaling,
        width: json.opt_usize("rotary_dim")?.filter(|width| *width != d_head),
        interleaved: json.bool_or("rotary_adjacent_pairs", false)?,
    })
}

/// Windows and rotary bases of local layers.
fn layers(json: &ConfigJson, d_head: usize) -> Result<Vec<LayerConfig>> {
    if !json.bool_or("use_local_attn", false)? {
        return Ok(vec![]);
    }
    let types: Vec<String> = json.parsed("attn_types", "global or local for each layer")?;
    let own = json.opt_f64("rotary_base_local")?;
    let of = |kind: &String| match kind.as_str() {
        "global" => Ok(LayerConfig::default()),
        "local" => Ok(LayerConfig {
            window: Some(json.usize("window_size")?),
            rotary: match own {
                Some(base) => LayerRotary::Own(rotary(json, d_head, Some(base))?),
                None => LayerRotary::Model,
            },
            ..LayerConfig::default()
        }),
        other => Err(json.wrong("attn_types", "global or local for each layer", format!("`{other}`"))),
    };
    types.iter().map(of).collect()
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    Weights::made(config, &mut Reader { config, source })
}

/// Reads parameters by TransformerLens' names.
struct Reader<'a> {
    config: &'a ModelConfig,
    source: &'a Source,
}

impl Reader<'_> {
    /// A bias, whatever its axes: `[head, d_head]` or `[out]`.
    fn bias(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.source.take(name, shape)?.flatten(0, -1))
    }

    /// A gated MLP has one bias, added after the product with the gate. Only zeros can be read.
    fn gated_bias(&self, at: &str, columns: usize) -> Result<Tensor> {
        let name = format!("{at}mlp.b_in");
        let found = self.source.take(&name, &[columns])?;
        if found.ne(0.0).any().int64_value(&[]) == 0 {
            return Ok(found);
        }
        Err(Error::Format {
            path: self.source.folder().to_owned(),
            at: format!("tensor `{name}`"),
            expected: "zeros in a gated MLP".to_owned(),
            found: "a bias that is added after the gate".to_owned(),
        })
    }

    /// Queries, keys or values, stored `[head, d_model, d_head]`.
    fn projection(&self, at: &str, letter: char, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        // Key/value heads that several query heads share are stored under a name of their own.
        let of = |part: &str| {
            let name = format!("{at}attn.{part}_{letter}");
            let shared = format!("{at}attn._{part}_{letter}");
            if self.source.has(&shared) { shared } else { name }
        };
        let width = self.config.d_head;
        let heads = columns / width;
        let w = self.source.take(&of("W"), &[heads, rows, width])?;
        let w = w.permute([1, 0, 2]).reshape([rows as i64, columns as i64]);
        let b = bias.then(|| self.bias(&of("b"), &[heads, width])).transpose()?;
        Ok(Linear { w: onednn::laid_out(w), b })
    }
}

impl Make for Reader<'_> {
    fn linear(&mut self, at: &str, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        let d_head = self.config.d_head;
        let plain = |w: String, b: String| {
            let w = self.source.matrix(&w, rows, columns)?;
            Ok(Linear { w, b: bias.then(|| self.bias(&b, &[columns])).transpose()? })
        };
        match name {
            "q" => self.projection(at, 'Q', rows, columns, bias),
            "k" => self.projection(at, 'K', rows, columns, bias),
            "v" => self.projection(at, 'V', rows, columns, bias),
            "o" => {
                let w = self.source.take(&format!("{at}attn.W_O"), &[rows / d_head, d_head, columns])?;
                let w = onednn::laid_out(w.reshape([rows as i64, columns as i64]));
                Ok(Linear { w, b: bias.then(|| self.bias(&format!("{at}attn.b_O"), &[columns])).transpose()? })
            }
            "u" => plain("unembed.W_U".to_owned(), "unembed.b_U".to_owned()),
            "transform" => plain("mlm_head.W".to_owned(), "mlm_head.b".to_owned()),
            "gate" | "in" if self.config.gated_mlp => {
                let w = self.source.matrix(&format!("{at}mlp.W_{name}"), rows, columns)?;
                Ok(Linear { w, b: bias.then(|| self.gated_bias(at, columns)).transpose()? })
            }
            name => plain(format!("{at}mlp.W_{name}"), format!("{at}mlp.b_{name}")),
        }
    }

    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear> {
        let (rows, columns) = (w_e.size()[1] as usize, w_e.size()[0] as usize);
        self.linear("", "u", rows, columns, bias)
    }

    fn norm(&mut self, at: &str, name: &str, width: usize, bias: bool) -> Result<Norm> {
        let name = match name {
            "ln_embed" => "embed.ln".to_owned(),
            "ln_transform" => "mlm_head.ln".to_owned(),
            "ln_mlp" => format!("{at}mlp.ln"),
            "q_norm" | "k_norm" => format!("{at}attn.{name}"),
            name => format!("{at}{name}"),
        };
        if !bias && !self.source.has(&format!("{name}.w")) {
            return Ok(Norm { w: self.source.ones(width), b: None });
        }
        let w = self.source.take(&format!("{name}.w"), &[width])?;
        Ok(Norm { w, b: bias.then(|| self.source.take(&format!("{name}.b"), &[width])).transpose()? })
    }

    fn table(&mut self, _: &str, name: &str, shape: &[usize], _: f64) -> Result<Tensor> {
        let name = match name {
            "w_e" if self.source.has("embed.embed.W_E") => "embed.embed.W_E",
            "w_e" => "embed.W_E",
            "w_type" => TYPES,
            _ if self.source.has("embed.pos_embed.W_pos") => "embed.pos_embed.W_pos",
            _ => "pos_embed.W_pos",
        };
        self.source.take(name, shape)
    }
}
