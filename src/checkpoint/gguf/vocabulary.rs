//! How does a GGUF file's vocabulary become a tokenizer? As the `tokenizer.json` that says the same: of byte-pair encoding on
//! bytes (`gpt2`), or on characters with scores (`llama`, SentencePiece).

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json, json};

use super::header::Value;
use super::names::Wrong;
use crate::error::Result;

/// ggml's types of tokens: usual ones, and those that are matched in a text before anything else.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER: i64 = 4;

/// How texts are split before bytes are merged: llama.cpp's names of it, and what Hugging Face's tokenizers of that kind do.
struct Splits {
    names: &'static [&'static str],
    /// A pattern whose matches are the parts; GPT-2's if there is none.
    pattern: Option<&'static str>,
    /// Whether each digit is a part.
    digits: bool,
    /// Whether texts are put into Unicode's composed form before.
    composed: bool,
    /// Whether a part that is a token stays whole, and texts begin with a token unless the file says otherwise.
    like_llama3: bool,
}

const GPT2: Splits =
    Splits { names: &["gpt-2", "phi-2"], pattern: None, digits: false, composed: false, like_llama3: false };
const SPLITS: [Splits; 5] = [
    GPT2,
    Splits { names: &["smollm", "starcoder", "refact"], digits: true, ..GPT2 },
    Splits { names: &["command-r"], digits: true, composed: true, ..GPT2 },
    Splits {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        like_llama3: true,
        ..GPT2
    },
    Splits {
        names: &["qwen2"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        composed: true,
        ..GPT2
    },
];

/// `tokenizer.json` for the vocabulary of a file; none if the file has no vocabulary.
pub(super) fn tokenizer_json(values: &BTreeMap<String, Value>, wrong: Wrong<'_>) -> Result<Option<Json>> {
    let get = |key: &str| values.get(&format!("tokenizer.ggml.{key}"));
    let Some(model) = get("model") else { return Ok(None) };
    let wrong =
        |key: &str, expected: &str, found: String| wrong(&format!("key `tokenizer.ggml.{key}`"), expected, found);
    let vocabulary = Vocabulary::read(&get, &wrong)?;
    match model {
        Value::Text(model) if model == "gpt2" => vocabulary.of_bytes().map(Some),
        Value::Text(model) if model == "llama" => vocabulary.of_pieces().map(Some),
        other => {
            let expected =
                "`gpt2`, byte-pair encoding, or `llama`, SentencePiece (or a tokenizer.json beside the file)";
            Err(wrong("model", expected, format!("{other:?}")))
        }
    }
}

/// What the file says of its tokens.
struct Vocabulary<'a> {
    get: &'a dyn Fn(&str) -> Option<&'a Value>,
    wrong: Wrong<'a>,
    tokens: &'a [String],
    ids: HashMap<&'a str, usize>,
    /// One for each token, or empty.
    types: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    fn read(get: &'a dyn Fn(&str) -> Option<&'a Value>, wrong: Wrong<'a>) -> Result<Self> {
        let tokens = match get("tokens") {
            Some(Value::Texts(texts)) => texts.as_slice(),
            other => return Err(wrong("tokens", "a list of texts", said(other))),
        };
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(wrong("tokens", "each token once", format!("`{token}` as {first} and as {id}")));
            }
        }
        let types = match get("token_type") {
            Some(Value::Integers(types)) if types.len() == tokens.len() => types.as_slice(),
            None => &[],
            Some(Value::Integers(types)) => {
                return Err(wrong("token_type", &format!("{} types", tokens.len()), types.len().to_string()));
            }
            other => return Err(wrong("token_type", "a list of whole numbers", said(other))),
        };
        Ok(Self { get, wrong, tokens, ids, types })
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        (self.get)(key).map_or(default, |value| *value == Value::Bool(true))
    }

    /// Byte-pair encoding, with bytes written as letters.
    fn of_bytes(&self) -> Result<Json> {
        let merges = match (self.get)("merges") {
            Some(Value::Texts(merges)) => merges,
            other => return Err((self.wrong)("merges", "a list of texts", said(other))),
        };
        let merges = merges.iter().map(|merge| self.pair(merge)).collect::<Result<Vec<Json>>>()?;
        let pre = (self.get)("pre");
        let named = |splits: &&Splits| matches!(pre, Some(Value::Text(name)) if splits.names.contains(&name.as_str()));
        let Some(splits) = SPLITS.iter().find(named) else {
            let known: Vec<&str> = SPLITS.iter().flat_map(|splits| splits.names).copied().collect();
            let expected = format!("{} (or a tokenizer.json beside the file)", known.join(", "));
            return Err((self.wrong)("pre", &expected, said(pre)));
        };
        let space = self.flag("add_space_prefix", false);
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": splits.pattern.is_none()});
        let digits = splits.digits.then(|| json!({"type": "Digits", "individual_digits": true}));
        let parts = splits.pattern.map(
            |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
        );
        let steps: Vec<Json> = digits.into_iter().chain(parts).chain([bytes]).collect();
        let model = json!({"merges": merges, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                           "ignore_merges": splits.like_llama3});
        Ok(self.json(
            model,
            &[CONTROL, USER],
            json!({
                "normalizer": splits.composed.then(|| json!({"type": "NFC"})),
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
                "post_processor": self.frame(splits.like_llama3)?,
                "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            }),
        ))
    }

    /// Two tokens that make a third one.
    fn pair(&self, merge: &str) -> Result<Json> {
        let parts = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let is_token = |token: &str| self.ids.contains_key(token);
        let known = parts
            .filter(|(left, right)| is_token(left) && is_token(right) && is_token(format!("{left}{right}").as_str()));
        known
            .map(|(left, right)| json!([left, right]))
            .ok_or_else(|| (self.wrong)("merges", "two tokens that make a third one", format!("`{merge}`")))
    }

    /// SentencePiece's byte-pair encoding: of two neighbours that make a token, those go first whose token has the highest
    /// score; characters without a token are their bytes.
    fn of_pieces(&self) -> Result<Json> {
        let scores = match (self.get)("scores") {
            Some(Value::Floats(scores)) if scores.len() == self.tokens.len() => scores,
            other => return Err((self.wrong)("scores", "a number for each token", said(other))),
        };
        let space = self.flag("add_space_prefix", true);
        let unknown = self.types.iter().position(|kind| *kind == UNKNOWN).map(|id| self.tokens[id].as_str());
        let model = json!({"merges": self.merges(scores), "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                           "ignore_merges": false});
        let prepend = space.then(|| json!({"type": "Prepend", "prepend": "▁"}));
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizers: Vec<Json> = prepend.into_iter().chain([replace]).collect();
        let strip = space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        let decoders: Vec<Json> = [
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ]
        .into_iter()
        .chain(strip)
        .collect();
        Ok(self.json(
            model,
            &[UNKNOWN, CONTROL, USER],
            json!({
                "normalizer": {"type": "Sequence", "normalizers": normalizers},
                "pre_tokenizer": null,
                "post_processor": self.frame(true)?,
                "decoder": {"type": "Sequence", "decoders": decoders},
            }),
        ))
    }

    /// All pairs of tokens that make a token, the highest score first.
    fn merges(&self, scores: &[f64]) -> Vec<[&str; 2]> {
        let is_usual = |id: usize| self.types.get(id).is_none_or(|kind| *kind == NORMAL);
        let usual = |token: &str| self.ids.get(token).is_some_and(|id| is_usual(*id));
        let mut order: Vec<usize> = (0..self.tokens.len()).filter(|id| is_usual(*id)).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let splits = |id: usize| {
            let token = self.tokens[id].as_str();
            let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            halves.filter(|(left, right)| usual(left) && usual(right)).map(|(left, right)| [left, right])
        };
        order.into_iter().flat_map(splits).collect()
    }

    /// A whole `tokenizer.json`, with tokens of the types `added` matched before anything else.
    fn json(&self, mut model: Json, added: &[i64], steps: Json) -> Json {
        let is_added = |(_, (kind, _)): &(usize, (&i64, &String))| added.contains(kind);
        let added: Vec<Json> = self
            .types
            .iter()
            .zip(self.tokens)
            .enumerate()
            .filter(is_added)
            .map(|(id, (kind, token))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind != USER})
            })
            .collect();
        let vocab: Map<String, Json> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let usual = json!({"type": "BPE", "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                           "vocab": vocab});
        extend(&mut model, usual);
        let mut all =
            json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "model": model});
        extend(&mut all, steps);
        all
    }

    /// What is added before and after every text: nothing, or the start and the end token, as two keys say.
    fn frame(&self, begins: bool) -> Result<Json> {
        let token = |key: &str| match (self.get)(key) {
            Some(Value::Integer(id)) if usize::try_from(*id).is_ok_and(|id| id < self.tokens.len()) => Ok(*id as usize),
            other => Err((self.wrong)(key, "the id of a token", said(other))),
        };
        let before = self.flag("add_bos_token", begins).then(|| token("bos_token_id")).transpose()?;
        let after = self.flag("add_eos_token", false).then(|| token("eos_token_id")).transpose()?;
        if before.or(after).is_none() {
            return Ok(Json::Null);
        }
        let name = |id: usize| &self.tokens[id];
        let special = |id: usize| json!({"SpecialToken": {"id": name(id), "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let known = |id: usize| (name(id).clone(), json!({"id": name(id), "ids": [id], "tokens": [name(id)]}));
        let single: Vec<Json> = before.map(special).into_iter().chain([text]).chain(after.map(special)).collect();
        let all: Map<String, Json> = before.into_iter().chain(after).map(known).collect();
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": all}))
    }
}

/// Adds the keys of one object to another.
fn extend(object: &mut Json, with: Json) {
    if let (Json::Object(object), Json::Object(with)) = (object, with) {
        object.extend(with);
    }
}

/// What was found, without all of a vocabulary.
fn said(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::Texts(texts)) => format!("{} texts", texts.len()),
        Some(Value::Integers(numbers)) => format!("{} numbers", numbers.len()),
        Some(Value::Floats(numbers)) => format!("{} numbers", numbers.len()),
        Some(other) => format!("{other:?}"),
    }
}
