//! How does a GGUF file's vocabulary become a tokenizer? As the `tokenizer.json` that says the same.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json, json};

use super::header::Value;
use super::names::Wrong;
use crate::error::Result;

/// ggml's types of tokens that are matched in a text before anything else: control tokens, and a user's own.
const CONTROL: i64 = 3;
const USER: i64 = 4;

/// `tokenizer.json` for the vocabulary of a file; none if the file has no vocabulary.
pub(super) fn tokenizer_json(values: &BTreeMap<String, Value>, wrong: Wrong<'_>) -> Result<Option<Json>> {
    let get = |key: &str| values.get(&format!("tokenizer.ggml.{key}"));
    let wrong =
        |key: &str, expected: &str, found: String| wrong(&format!("key `tokenizer.ggml.{key}`"), expected, found);
    let Some(model) = get("model") else { return Ok(None) };
    if *model != Value::Text("gpt2".to_owned()) {
        return Err(wrong(
            "model",
            "`gpt2`, byte-pair encoding (or a tokenizer.json beside the file)",
            format!("{model:?}"),
        ));
    }
    let texts = |key: &str| match get(key) {
        Some(Value::Texts(texts)) => Ok(texts),
        other => Err(wrong(key, "a list of texts", said(other))),
    };
    let (tokens, merges) = (texts("tokens")?, texts("merges")?);
    let mut vocab = HashMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = vocab.insert(token.as_str(), id) {
            return Err(wrong("tokens", "each token once", format!("`{token}` as {first} and as {id}")));
        }
    }
    let split = |merge: &String| {
        let parts = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let known = parts.filter(|(left, right)| {
            vocab.contains_key(left)
                && vocab.contains_key(right)
                && vocab.contains_key(format!("{left}{right}").as_str())
        });
        known
            .map(|(left, right)| json!([left, right]))
            .ok_or_else(|| wrong("merges", "two tokens that make a third one", format!("`{merge}`")))
    };
    let merges = merges.iter().map(split).collect::<Result<Vec<Json>>>()?;
    let types = match get("token_type") {
        Some(Value::Integers(types)) if types.len() == tokens.len() => types.as_slice(),
        None => &[],
        Some(Value::Integers(types)) => {
            return Err(wrong("token_type", &format!("{} types", tokens.len()), types.len().to_string()));
        }
        other => return Err(wrong("token_type", "a list of whole numbers", said(other))),
    };
    let added = types.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| [CONTROL, USER].contains(*kind));
    let added: Vec<Json> = added
        .map(|(id, (kind, token))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": flag(get("add_space_prefix")), "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let splits = match get("pre") {
        Some(Value::Text(name)) if name == "smollm" => json!({"type": "Sequence", "pretokenizers": [digits, bytes]}),
        Some(Value::Text(name)) if name == "gpt-2" => bytes,
        other => return Err(wrong("pre", "smollm or gpt-2 (or a tokenizer.json beside the file)", said(other))),
    };
    let frame = frame(tokens, &|key| get(key), &wrong)?;
    let vocab: Map<String, Json> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": splits,
        "post_processor": frame,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    })))
}

/// What is added before and after every text: nothing, or the start and the end token, as two keys say.
fn frame<'a>(tokens: &[String], get: &dyn Fn(&str) -> Option<&'a Value>, wrong: Wrong<'_>) -> Result<Json> {
    let token = |key: &str| match get(key) {
        Some(Value::Integer(id)) if usize::try_from(*id).is_ok_and(|id| id < tokens.len()) => Ok(*id as usize),
        other => Err(wrong(key, "the id of a token", said(other))),
    };
    let before = flag(get("add_bos_token")).then(|| token("bos_token_id")).transpose()?;
    let after = flag(get("add_eos_token")).then(|| token("eos_token_id")).transpose()?;
    if before.or(after).is_none() {
        return Ok(Json::Null);
    }
    let special = |id: usize| json!({"SpecialToken": {"id": tokens[id], "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let known = |id: usize| (tokens[id].clone(), json!({"id": tokens[id], "ids": [id], "tokens": [tokens[id]]}));
    let single: Vec<Json> = before.map(special).into_iter().chain([text]).chain(after.map(special)).collect();
    let all: Map<String, Json> = before.into_iter().chain(after).map(known).collect();
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": all}))
}

fn flag(value: Option<&Value>) -> bool {
    value == Some(&Value::Bool(true))
}

/// What was found, without all of a vocabulary.
fn said(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::Texts(texts)) => format!("{} texts", texts.len()),
        Some(Value::Integers(numbers)) => format!("{} numbers", numbers.len()),
        Some(other) => format!("{other:?}"),
    }
}
