//! How does a family's checkpoint map to a model? One file per family translates config keys into a [`ModelConfig`] and
//! tensor names into weights. Nothing here computes.

mod albert;
mod bert;
mod distilbert;
mod electra;
mod encoder;
mod gpt2;
pub(crate) mod headscope;
mod llama;
mod modernbert;
mod roberta;
mod transformer_lens;

use tch::Tensor;

use super::config_json::ConfigJson;
use super::source::Source;
use crate::error::{Error, Result};
use crate::model::{Activation, Linear, ModelConfig, Norm, Weights};

/// What each family's file provides.
pub(crate) struct Family {
    /// The value of `model_type` in `config.json`.
    pub name: &'static str,
    /// Determines the architecture from `config.json` and the names of the tensors.
    pub config: fn(&ConfigJson, &Source) -> Result<ModelConfig>,
    /// Reads the weights and checks every tensor against the architecture.
    pub weights: fn(&ModelConfig, &Source) -> Result<Weights>,
    /// Whether a tensor of this name may be ignored: mask buffers, poolers.
    pub superfluous: fn(&str) -> bool,
}

const FAMILIES: &[Family] = &[
    albert::FAMILY,
    bert::FAMILY,
    roberta::CAMEMBERT,
    distilbert::FAMILY,
    electra::FAMILY,
    gpt2::FAMILY,
    headscope::FAMILY,
    llama::FAMILY,
    modernbert::FAMILY,
    roberta::FAMILY,
    roberta::XLM,
    transformer_lens::FAMILY,
];

/// The names of all families.
pub(crate) fn names() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.name).collect()
}

/// The family named in `config.json`.
pub(crate) fn of(config: &ConfigJson) -> Result<&'static Family> {
    if !config.has("model_type") && transformer_lens::wrote(config) {
        return Ok(&transformer_lens::FAMILY);
    }
    let found = config.str("model_type")?;
    FAMILIES.iter().find(|family| family.name == found).ok_or_else(|| Error::UnknownFamily {
        path: config.path().to_owned(),
        found: found.to_owned(),
        known: names(),
    })
}

/// The activation function named by `key`.
fn activation(config: &ConfigJson, key: &str, default: &str) -> Result<Activation> {
    let name = config.opt_str(key)?.unwrap_or(default);
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(config.wrong(key, "gelu, gelu_new, gelu_pytorch_tanh, relu or silu", format!("`{other}`"))),
    }
}

/// The unembedding, `[d_model, vocab]`: the tensor `name` if present, unless it merely repeats a tied embedding.
fn unembedding(source: &Source, name: &str, w_e: &Tensor, tied: bool) -> Result<Tensor> {
    if w_e.numel() == 0 && !source.has(name) {
        return Ok(w_e.tr()); // absent together with the embedding
    }
    if tied && !source.has(name) {
        return Ok(w_e.tr());
    }
    // A file that claims tied embeddings but has a different matrix was trained untied; its matrix is used, as in
    // transformers.
    if tied && source.repeats(name, w_e)? {
        return Ok(w_e.tr());
    }
    let shape: Vec<usize> = w_e.size().iter().map(|&n| n as usize).collect();
    Ok(source.take(name, &shape)?.tr())
}

/// Reads tensors whose names share a prefix.
struct Reader<'a> {
    source: &'a Source,
    prefix: String,
}

impl<'a> Reader<'a> {
    /// A reader with the prefix `prefix` if the checkpoint's names have it (saved from a model with a head), and
    /// without a prefix otherwise. `probe` is a tensor that every checkpoint of the family has.
    fn new(source: &'a Source, prefix: &str, probe: &str) -> Self {
        let with = source.has(&format!("{prefix}{probe}"));
        Self { source, prefix: if with { prefix.to_owned() } else { String::new() } }
    }

    /// A reader for the names under `suffix`.
    fn under(&self, suffix: &str) -> Self {
        Self { source: self.source, prefix: format!("{}{suffix}.", self.prefix) }
    }

    fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.source.take(&format!("{}{name}", self.prefix), shape)
    }

    /// A matrix stored `[in, out]`.
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        self.source.matrix(&format!("{}{name}", self.prefix), rows, columns)
    }

    /// A matrix stored `[out, in]`, with its bias if `bias` is set.
    fn linear(&self, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        let w = self.take(&format!("{name}.weight"), &[columns, rows])?.tr();
        let b = bias.then(|| self.take(&format!("{name}.bias"), &[columns])).transpose()?;
        Ok(Linear { w, b })
    }

    /// A matrix stored `[in, out]` with its bias, as in GPT-2's checkpoints.
    fn conv1d(&self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let w = self.matrix(&format!("{name}.weight"), rows, columns)?;
        Ok(Linear { w, b: Some(self.take(&format!("{name}.bias"), &[columns])?) })
    }

    /// The result of `take`, or `None` if `name` is missing from a checkpoint stripped of its MLPs. The rest of such a
    /// checkpoint still answers questions about attention weights.
    fn kept<T>(&self, name: &str, take: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let gone = !self.source.has(&format!("{}{name}", self.prefix)) && self.is_stripped();
        if gone { Ok(None) } else { take().map(Some) }
    }

    /// Whether no block has an MLP.
    fn is_stripped(&self) -> bool {
        !["mlp.", "intermediate."].iter().any(|part| self.source.has_part(part))
    }

    /// The token embedding, `[vocab, d_model]`; with no rows if a stripped checkpoint lacks it.
    fn embedding(&self, name: &str, vocab: usize, width: usize) -> Result<Tensor> {
        let found = self.kept(name, || self.take(name, &[vocab, width]))?;
        Ok(found.unwrap_or_else(|| self.source.empty(width)))
    }

    fn norm(&self, name: &str, width: usize, bias: bool) -> Result<Norm> {
        let w = self.take(&format!("{name}.weight"), &[width])?;
        let b = bias.then(|| self.take(&format!("{name}.bias"), &[width])).transpose()?;
        Ok(Norm { w, b })
    }
}
