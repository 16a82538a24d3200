//! What does an architecture of GGUF files call things, and what does Hugging Face? One table each.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::header::{TensorInfo, Value};
use crate::checkpoint::source::Place;
use crate::error::Result;

/// How the files of an architecture are read.
pub(super) struct Architecture {
    /// `general.architecture`, which also begins the names of its keys.
    pub name: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class in transformers that runs it.
    class: &'static str,
    /// Keys after the architecture's name, and in `config.json`.
    keys: &'static [(&'static str, &'static str)],
    /// Values of `config.json` that the files leave to the name of the architecture.
    fixed: &'static [(&'static str, &'static str)],
    /// Tensors outside blocks, without `.weight` and `.bias`.
    outside: &'static [(&'static str, &'static str)],
    /// Where Hugging Face's names of blocks begin: `model.layers.` before the number.
    block: &'static str,
    /// Tensors of a block, without `.weight` and `.bias`.
    inside: &'static [(&'static str, &'static str)],
    /// Tensors whose rows llama.cpp keeps in the order of interleaved rotary pairs, and the key for their number of heads.
    interleaved: &'static [(&'static str, &'static str)],
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    keys: &[
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("rope.freq_base", "rope_theta"),
        ("vocab_size", "vocab_size"),
    ],
    fixed: &[("hidden_act", "silu")],
    outside: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")],
    block: "model.layers.",
    inside: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    interleaved: &[("attn_q", "attention.head_count"), ("attn_k", "attention.head_count_kv")],
};

/// The architectures that are read.
pub(super) const ARCHITECTURES: [Architecture; 1] = [LLAMA];

/// Keys without which a file is not complete, after the architecture's name.
const NEEDED: [&str; 6] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
];

/// What is wrong with a file, and where: an error without the file's path.
pub(super) type Wrong<'a> = &'a dyn Fn(&str, &str, String) -> crate::error::Error;

impl Architecture {
    /// `config.json` as it would stand beside the same weights in Hugging Face layout. A key that would change what is
    /// computed, and is not known here, is an error.
    pub(super) fn config(
        &self,
        values: &BTreeMap<String, Value>,
        tensors: &BTreeMap<String, TensorInfo>,
        wrong: Wrong<'_>,
    ) -> Result<Map<String, Json>> {
        let own: BTreeMap<&str, &Value> = values
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(self.name)?.strip_prefix('.')?, value)))
            .collect();
        let at = |key: &str| format!("key `{}.{key}`", self.name);
        let mut config = Map::new();
        config.insert("model_type".to_owned(), json!(self.model_type));
        config.insert("architectures".to_owned(), json!([self.class]));
        config.extend(self.fixed.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
        for (key, value) in &own {
            if let Some((_, name)) = self.keys.iter().find(|(own, _)| own == key) {
                config.insert(
                    (*name).to_owned(),
                    number(value).ok_or_else(|| wrong(&at(key), "a number", format!("{value:?}")))?,
                );
            }
        }
        if let Some(missing) = NEEDED.into_iter().find(|key| !own.contains_key(key)) {
            return Err(wrong(&at(missing), "a number", "nothing".to_owned()));
        }
        if let Some(embedding) = tensors.get("token_embd.weight") {
            config.entry("vocab_size").or_insert(json!(embedding.shape.first()));
        }
        config.insert("tie_word_embeddings".to_owned(), json!(!tensors.contains_key("output.weight")));
        config.insert("attention_bias".to_owned(), json!(tensors.contains_key("blk.0.attn_output.bias")));
        config.insert("mlp_bias".to_owned(), json!(tensors.contains_key("blk.0.ffn_down.bias")));
        for (key, name) in [("eos", "eos_token_id"), ("bos", "bos_token_id")] {
            if let Some(id) = values.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(number) {
                config.insert(name.to_owned(), id);
            }
        }
        self.check_others(&own, &mut config, &|key, expected, found| wrong(&at(key), expected, found))?;
        Ok(config)
    }

    /// Keys that are no numbers of `config.json`'s: what they say is either the usual, or known, or an error.
    fn check_others(
        &self,
        own: &BTreeMap<&str, &Value>,
        config: &mut Map<String, Json>,
        wrong: Wrong<'_>,
    ) -> Result<()> {
        let integer = |key: &str| config.get(key).and_then(Json::as_u64);
        let (width, heads) = (integer("hidden_size").unwrap_or(0), integer("num_attention_heads").unwrap_or(1));
        let d_head = integer("head_dim").or(width.checked_div(heads)).unwrap_or(0);
        let scaling = match own.get("rope.scaling.type") {
            Some(Value::Text(name)) => name.as_str(),
            None => "none",
            Some(other) => return Err(wrong("rope.scaling.type", "a text", format!("{other:?}"))),
        };
        let factor = own.get("rope.scaling.factor").and_then(|value| number(value));
        match (scaling, factor) {
            ("none", _) => {}
            ("linear", Some(factor)) => {
                config.insert("rope_scaling".to_owned(), json!({"rope_type": "linear", "factor": factor}));
            }
            ("linear", None) => return Err(wrong("rope.scaling.factor", "a number", "nothing".to_owned())),
            (other, _) => return Err(wrong("rope.scaling.type", "none or linear", other.to_owned())),
        }
        for (key, value) in own {
            match *key {
                "rope.dimension_count" | "attention.value_length" if **value != Value::Integer(d_head.into()) => {
                    return Err(wrong(key, &format!("{d_head}, the width of a head"), format!("{value:?}")));
                }
                "expert_count" | "expert_used_count" if **value != Value::Integer(0) => {
                    return Err(wrong(key, "0: experts are not read from GGUF files", format!("{value:?}")));
                }
                "rope.dimension_count" | "attention.value_length" | "expert_count" | "expert_used_count" => {}
                key if key.starts_with("rope.scaling.") => {}
                key if self.keys.iter().any(|(own, _)| *own == key) => {}
                key => return Err(wrong(key, "only keys whose meaning is known here", format!("{value:?}"))),
            }
        }
        Ok(())
    }

    /// The tensors under Hugging Face's names. Those that the architecture does not have keep theirs.
    pub(super) fn places(
        &self,
        values: &BTreeMap<String, Value>,
        tensors: BTreeMap<String, TensorInfo>,
        wrong: Wrong<'_>,
    ) -> Result<BTreeMap<String, Place>> {
        let heads = |key: &str| match values.get(&format!("{}.{key}", self.name)) {
            Some(Value::Integer(heads)) => usize::try_from(*heads).ok(),
            _ => None,
        };
        let all = heads("attention.head_count").unwrap_or(0);
        let mut places = BTreeMap::new();
        for (name, info) in tensors {
            let part = name.split('.').nth(2).filter(|_| name.starts_with("blk."));
            let key = self.interleaved.iter().find(|(own, _)| Some(*own) == part).map(|(_, key)| *key);
            let interleaved = key.map(|key| heads(key).unwrap_or(all));
            let rows = info.shape.first().copied().unwrap_or(0);
            if let Some(heads) = interleaved
                && (heads == 0 || !rows.is_multiple_of(heads.saturating_mul(2)))
            {
                let expected = format!("an even number of rows for each of {heads} heads");
                return Err(wrong(&format!("tensor `{name}`"), &expected, format!("{rows} rows")));
            }
            let own = self.translated(&name).unwrap_or_else(|| name.clone());
            places.insert(
                own,
                Place { file: 0, coding: Ok(info.coding), shape: info.shape, bytes: info.bytes, interleaved },
            );
        }
        Ok(places)
    }

    /// Hugging Face's name of a tensor.
    fn translated(&self, name: &str) -> Option<String> {
        let (stem, ending) = name.rsplit_once('.').filter(|(_, ending)| ["weight", "bias"].contains(ending))?;
        let find = |table: &'static [(&str, &str)], stem: &str| {
            table.iter().find(|(own, _)| *own == stem).map(|(_, new)| *new)
        };
        match stem.strip_prefix("blk.") {
            None => Some(format!("{}.{ending}", find(self.outside, stem)?)),
            Some(rest) => {
                let (layer, part) = rest.split_once('.')?;
                let layer: usize = layer.parse().ok()?;
                Some(format!("{}{layer}.{}.{ending}", self.block, find(self.inside, part)?))
            }
        }
    }
}

/// A finite number, in JSON.
fn number(value: &Value) -> Option<Json> {
    match value {
        Value::Integer(number) => i64::try_from(*number).ok().map(Json::from),
        Value::Float(number) if number.is_finite() => Some(json!(number)),
        _ => None,
    }
}
