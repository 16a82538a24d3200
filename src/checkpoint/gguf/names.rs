//! What does a GGUF file say in Hugging Face's words? Its keys as a `config.json`, its tensors under other names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use super::architectures::{ARCHITECTURES, Architecture, KEYS, LLAMA_BLOCK, Layout, SIGNS};
use super::header::{TensorInfo, Value};
use crate::checkpoint::order::Order;
use crate::checkpoint::source::Place;
use crate::error::Result;

/// Keys without which a file is not complete, after the architecture's name.
const NEEDED: [&str; 5] =
    ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];

/// What is wrong with a file, and where: an error without the file's path.
pub(super) type Wrong<'a> = &'a dyn Fn(&str, &str, String) -> crate::error::Error;

/// The architecture that a file says it has.
pub(super) fn architecture(
    values: &BTreeMap<String, Value>,
    tensors: &BTreeMap<String, TensorInfo>,
    wrong: Wrong<'_>,
) -> Result<&'static Architecture> {
    const KEY: &str = "general.architecture";
    let found = values.get(KEY);
    let is_it = |known: &&Architecture| {
        let only_with = known.only_with.is_none_or(|name| tensors.contains_key(name));
        matches!(found, Some(Value::Text(name)) if name == known.name) && only_with
    };
    let known: BTreeSet<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
    let expected = format!("one of {}", known.into_iter().collect::<Vec<_>>().join(", "));
    let found = || found.map_or("nothing".to_owned(), |value| format!("{value:?}"));
    ARCHITECTURES.iter().find(is_it).ok_or_else(|| wrong(&format!("key `{KEY}`"), &expected, found()))
}

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
        let wrong =
            |key: &str, expected: &str, found: String| wrong(&format!("key `{}.{key}`", self.name), expected, found);
        let mut config = Map::new();
        config.insert("model_type".to_owned(), json!(self.model_type));
        config.insert("architectures".to_owned(), json!([self.class]));
        if let Json::Object(fixed) = (self.fixed)() {
            config.extend(fixed);
        }
        for (key, value) in &own {
            if let Some(name) = self.key(key) {
                let value =
                    plain(value).ok_or_else(|| wrong(key, "a number or a truth value", format!("{value:?}")))?;
                config.insert(name.to_owned(), value);
            }
        }
        if let Some(missing) = NEEDED.into_iter().find(|key| !own.contains_key(key)) {
            return Err(wrong(missing, "a number", "nothing".to_owned()));
        }
        if !own.keys().any(|key| key.starts_with("attention.layer_norm_")) {
            return Err(wrong("attention.layer_norm_rms_epsilon", "a number", "nothing".to_owned()));
        }
        if let Some(embedding) = tensors.get("token_embd.weight") {
            config.entry("vocab_size").or_insert(json!(embedding.shape.first()));
        }
        config.insert("tie_word_embeddings".to_owned(), json!(!tensors.contains_key("output.weight")));
        for (name, sign) in SIGNS {
            config.insert((*name).to_owned(), json!(tensors.contains_key(&format!("blk.0.{sign}"))));
        }
        for (key, name) in [("eos", "eos_token_id"), ("bos", "bos_token_id")] {
            if let Some(id) = values.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(plain) {
                config.insert(name.to_owned(), id);
            }
        }
        let integer = |key: &str| own.get(key).and_then(|value| plain(value)).and_then(|value| value.as_u64());
        let (width, heads) = (integer("embedding_length").unwrap_or(0), integer("attention.head_count").unwrap_or(1));
        let d_head = integer("attention.key_length").or(width.checked_div(heads)).unwrap_or(0);
        if let Some(depth) = self.query_scale {
            let wide = integer("block_count") == Some(depth);
            let scalar = if wide { width as f64 / heads.max(1) as f64 } else { d_head as f64 };
            config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
        }
        // A window of no width is none.
        if config.get("sliding_window") == Some(&json!(0)) {
            config.insert("sliding_window".to_owned(), Json::Null);
        }
        self.rotary(&own, d_head, &mut config, &wrong)?;
        self.check_others(&own, d_head, &wrong)?;
        Ok(config)
    }

    /// The name in `config.json` of a key after the architecture's name.
    fn key(&self, key: &str) -> Option<&'static str> {
        self.keys.iter().chain(KEYS).find(|(own, _)| *own == key).map(|(_, name)| *name)
    }

    /// Which part of a head turns, and how frequencies are stretched.
    fn rotary(
        &self,
        own: &BTreeMap<&str, &Value>,
        d_head: u64,
        config: &mut Map<String, Json>,
        wrong: Wrong<'_>,
    ) -> Result<()> {
        let get = |key: &str| own.get(key).and_then(|value| plain(value));
        if let Some(width) = get("rope.dimension_count") {
            let width = width.as_u64().filter(|width| *width <= d_head && (self.rotates_parts || *width == d_head));
            let Some(width) = width else {
                let found = format!("{:?}", own.get("rope.dimension_count"));
                return Err(wrong("rope.dimension_count", &format!("{d_head}, the width of a head"), found));
            };
            if self.rotates_parts {
                let share = width as f64 / d_head as f64;
                // Hugging Face multiplies and cuts off.
                let share = if (share * d_head as f64) as u64 == width { share } else { share.next_up() };
                config.insert("partial_rotary_factor".to_owned(), json!(share));
            }
        }
        let scaling = match own.get("rope.scaling.type") {
            Some(Value::Text(name)) => name.as_str(),
            None => "none",
            Some(other) => return Err(wrong("rope.scaling.type", "a text", format!("{other:?}"))),
        };
        let original = get("rope.scaling.original_context_length");
        let scaling = match (scaling, get("rope.scaling.factor")) {
            ("none", _) => return Ok(()),
            ("linear", Some(factor)) => json!({"rope_type": "linear", "factor": factor}),
            ("yarn", Some(factor)) => {
                json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original})
            }
            ("linear" | "yarn", None) => return Err(wrong("rope.scaling.factor", "a number", "nothing".to_owned())),
            (other, _) => return Err(wrong("rope.scaling.type", "none, linear or yarn", other.to_owned())),
        };
        config.insert("rope_scaling".to_owned(), scaling);
        Ok(())
    }

    /// What `rope_scaling` says of divisors of the frequencies in short and in long texts, which are tensors in the file.
    pub(super) fn stretched(
        &self,
        values: &BTreeMap<String, Value>,
        config: &Map<String, Json>,
        factors: Option<(Vec<f64>, Vec<f64>)>,
        wrong: Wrong<'_>,
    ) -> Result<Option<Json>> {
        let get = |key: &str| values.get(&format!("{}.{key}", self.name)).and_then(plain);
        let attention = get("rope.scaling.attn_factor");
        let Some((short, long)) = factors else {
            let expected = "only keys whose meaning is known here, without tensors of rotary factors";
            let refused = |found: Json| Err(wrong("key `rope.scaling.attn_factor`", expected, found.to_string()));
            return attention.map_or(Ok(None), refused);
        };
        if let Some(other) = config.get("rope_scaling") {
            return Err(wrong("key `rope.scaling.type`", "none beside tensors of rotary factors", other.to_string()));
        }
        Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention.unwrap_or(json!(1.0)),
            "original_max_position_embeddings":
                get("rope.scaling.original_context_length").or(get("context_length")),
        })))
    }

    /// Keys that have no name in `config.json`: what they say is the usual, or an error.
    fn check_others(&self, own: &BTreeMap<&str, &Value>, d_head: u64, wrong: Wrong<'_>) -> Result<()> {
        for (key, value) in own {
            let expected = match *key {
                key if self.key(key).is_some() => continue,
                "rope.dimension_count" | "rope.scaling.type" | "rope.scaling.factor" => continue,
                "rope.scaling.original_context_length" | "rope.scaling.finetuned" => continue,
                "rope.scaling.attn_factor" => continue, // `stretched` reads it
                "attention.value_length" if **value == Value::Integer(d_head.into()) => continue,
                "attention.value_length" => format!("{d_head}, the width of a head"),
                "expert_count" | "expert_used_count" if **value == Value::Integer(0) => continue,
                "expert_count" | "expert_used_count" => "0: this architecture has no experts here".to_owned(),
                "tensor_data_layout" if **value == Value::Text("jploski".to_owned()) => continue,
                _ => "only keys whose meaning is known here".to_owned(),
            };
            return Err(wrong(key, &expected, format!("{value:?}")));
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
        let number = |key: &str| match values.get(&format!("{}.{key}", self.name)) {
            Some(Value::Integer(heads)) => usize::try_from(*heads).ok(),
            _ => None,
        };
        let heads = number("attention.head_count").unwrap_or(0);
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        let mut places = BTreeMap::new();
        for (name, mut info) in tensors {
            let part = name.split('.').nth(2).filter(|_| name.starts_with("blk."));
            let layout = self.layouts.iter().find(|(own, _)| Some(*own) == part).map(|(_, layout)| *layout);
            let order = match layout {
                Some(Layout::Queries) => Order::Interleaved { heads },
                Some(Layout::Keys) => Order::Interleaved { heads: kv_heads },
                Some(Layout::Parts) => Order::Parts { heads, kv_heads },
                Some(Layout::Turned) if info.shape.len() == 2 => Order::Turned,
                _ if self.norm_offset != 0.0 && name.ends_with("norm.weight") => Order::Plus(self.norm_offset),
                _ => Order::Same,
            };
            let rows = info.shape.first().copied().unwrap_or(0);
            order
                .check(rows)
                .map_err(|expected| wrong(&format!("tensor `{name}`"), &expected, format!("{rows} rows")))?;
            match layout {
                Some(Layout::Turned) => info.shape.reverse(),
                Some(Layout::Row) if info.shape.len() == 1 => info.shape.insert(0, 1),
                _ => {}
            }
            let own = self.translated(&name).unwrap_or_else(|| name.clone());
            let place = Place { file: 0, coding: Ok(info.coding), shape: info.shape, bytes: info.bytes, order };
            match (own.contains("{}"), place.shape.len()) {
                (false, _) => drop(places.insert(own, place)),
                (true, 2..) => places.extend(each(&own, place)),
                (true, axes) => return Err(wrong(&format!("tensor `{name}`"), "2 axes or more", axes.to_string())),
            }
        }
        Ok(places)
    }

    /// Hugging Face's name of a tensor, with `{}` for the number of one of those that share it.
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
                let usual = || find(LLAMA_BLOCK, part).filter(|_| self.like_llama);
                Some(format!("{}{layer}.{}.{ending}", self.block, find(self.inside, part).or_else(usual)?))
            }
        }
    }
}

/// The tensors that lie one after the other in `place`, under names with their numbers.
fn each(name: &str, place: Place) -> impl Iterator<Item = (String, Place)> {
    let Place { file, coding, shape, bytes, order } = place;
    let n = shape.first().copied().unwrap_or(0);
    // The axes are at least 1 long, and rows are whole blocks of the coding.
    let size = (bytes.end - bytes.start) / (n as u64).max(1);
    let name = name.to_owned();
    (0..n).map(move |i| {
        let start = bytes.start + i as u64 * size;
        let own = Place { file, coding: coding.clone(), shape: shape[1..].to_vec(), bytes: start..start + size, order };
        (name.replace("{}", &i.to_string()), own)
    })
}

/// A finite number or a truth value, in JSON.
fn plain(value: &Value) -> Option<Json> {
    match value {
        Value::Integer(number) => i64::try_from(*number).ok().map(Json::from),
        Value::Float(number) if number.is_finite() => Some(json!(number)),
        Value::Bool(truth) => Some(json!(truth)),
        _ => None,
    }
}
