//! How does a family's checkpoint map to a model? One file per family translates config keys into a [`ModelConfig`] and
//! lists what its tensors are called. Nothing here computes.

mod albert;
mod arcee;
mod bart;
mod bert;
mod bloom;
mod cohere;
mod distilbert;
mod electra;
mod ernie4_5;
mod exaone4;
mod falcon;
mod gemma;
mod glm;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
pub(crate) mod headscope;
mod helium;
mod keys;
mod llama;
mod marian;
mod mistral;
mod mixtral;
mod modernbert;
mod names;
mod nemotron;
mod olmo;
mod opt;
mod phi;
mod phi3;
mod qwen;
mod qwen_moe;
mod roberta;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod transformer_lens;
mod unknown;

use serde_json::Value;

use self::names::{Names, OTHER_HEADS};
use super::config_json::ConfigJson;
use super::source::Source;
use crate::error::Result;
use crate::model::{ModelConfig, Weights};

/// What each family's file provides.
pub(crate) struct Family {
    /// The value of `model_type` in `config.json`.
    pub name: &'static str,
    /// Determines the architecture from `config.json`.
    config: fn(&ConfigJson) -> Result<ModelConfig>,
    tensors: Tensors,
}

/// Where a family's weights are.
enum Tensors {
    /// In tensors with these names.
    Named(Names),
    /// Where a function reads them.
    Read {
        /// Completes the architecture by what is in the file.
        settle: fn(&mut ModelConfig, &Source),
        weights: fn(&ModelConfig, &Source) -> Result<Weights>,
        /// As in [`Names`].
        superfluous: &'static [&'static str],
    },
}

static FAMILIES: &[Family] = &[
    albert::FAMILY,
    arcee::FAMILY,
    bart::BART,
    bart::MBART,
    bert::FAMILY,
    bloom::FAMILY,
    cohere::COHERE,
    cohere::COHERE2,
    distilbert::FAMILY,
    electra::FAMILY,
    ernie4_5::FAMILY,
    exaone4::FAMILY,
    falcon::FAMILY,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    glm::GLM,
    glm::GLM4,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    gpt_neo::FAMILY,
    gpt_neox::FAMILY,
    gpt_oss::FAMILY,
    gptj::FAMILY,
    granite::FAMILY,
    headscope::FAMILY,
    helium::FAMILY,
    llama::FAMILY,
    marian::MARIAN,
    marian::PEGASUS,
    mistral::MINISTRAL,
    mistral::FAMILY,
    mixtral::FAMILY,
    modernbert::FAMILY,
    nemotron::FAMILY,
    olmo::OLMO,
    olmo::OLMO2,
    olmo::OLMO3,
    opt::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    qwen::QWEN2,
    qwen::QWEN3,
    qwen_moe::QWEN2,
    qwen_moe::QWEN3,
    roberta::CAMEMBERT,
    roberta::FAMILY,
    roberta::XLM,
    seed_oss::FAMILY,
    smollm3::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
    t5::MT5,
    t5::T5,
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
    FAMILIES.iter().find(|family| family.name == found).ok_or_else(|| unknown::error(config, found))
}

impl Family {
    /// The architecture that `config.json` and the names of the tensors describe.
    pub(crate) fn architecture(&self, json: &ConfigJson, source: &Source) -> Result<ModelConfig> {
        json.only("quantization_config", &Value::Null)?;
        let mut config = (self.config)(json)?;
        match &self.tensors {
            Tensors::Named(names) => names.settle(&mut config, source),
            Tensors::Read { settle, .. } => settle(&mut config, source),
        }
        Ok(config)
    }

    /// Reads the weights and checks every tensor against the architecture.
    pub(crate) fn weights(&self, config: &ModelConfig, source: &Source) -> Result<Weights> {
        match &self.tensors {
            Tensors::Named(names) => names.weights(config, source),
            Tensors::Read { weights, .. } => weights(config, source),
        }
    }

    /// Whether a tensor of this name may be left over: mask buffers, poolers, heads for other tasks.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        let superfluous = match &self.tensors {
            Tensors::Named(names) => names.superfluous,
            Tensors::Read { superfluous, .. } => superfluous,
        };
        superfluous.iter().any(|part| name.contains(part)) || OTHER_HEADS.iter().any(|head| name.starts_with(head))
    }
}
