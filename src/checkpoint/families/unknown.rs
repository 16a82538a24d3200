//! What can be said of a family that is not known? Which known one is nearest, and what it makes of the config.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::super::config_json::ConfigJson;
use super::{FAMILIES, Family, names};
use crate::error::Error;

/// Keys that say nothing about what a model computes from its tokens.
const IDLE: [&str; 10] = [
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "initializer_range",
    "init_std",
    "tokenizer_class",
];
/// Parts of the names of such keys: of training, of other outputs, of special tokens.
const IDLE_PARTS: [&str; 7] =
    ["token_id", "dropout", "pdrop", "summary_", "output_", "gradient_checkpointing", "aux_loss"];

/// How a family reads a config that is not its own.
struct Reading {
    family: &'static Family,
    /// The keys of the config that it reads.
    read: usize,
    /// The keys of the config that it does not read.
    left: Vec<String>,
    /// The number of keys that it looks for in vain.
    absent: usize,
    /// Why it refuses the config, if it does.
    refused: Option<Error>,
    /// How many letters its name shares with that of the unknown family, from the first on.
    alike: usize,
}

impl Reading {
    fn new(family: &'static Family, config: &ConfigJson, found: &str) -> Self {
        config.keys();
        let refused = (family.config)(config).and_then(|config| config.validate()).err();
        let (present, asked) = config.keys();
        let absent = asked.difference(&present).count();
        let (read, left): (BTreeSet<String>, BTreeSet<String>) =
            present.into_iter().partition(|key| asked.contains(key));
        let idle = |key: &String| IDLE.contains(&key.as_str()) || IDLE_PARTS.iter().any(|part| key.contains(part));
        let alike = family.name.chars().zip(found.chars()).take_while(|(a, b)| a == b).count();
        let left = left.into_iter().filter(|key| !idle(key)).collect();
        Self { family, read: read.len(), left, absent, refused, alike }
    }
}

/// The error about a config whose `model_type` is `found`.
pub(super) fn error(config: &ConfigJson, found: &str) -> Error {
    let readings = FAMILIES.iter().map(|family| Reading::new(family, config, found));
    let nearest = readings.max_by_key(|own| (own.read + own.alike, own.refused.is_none(), Reverse(own.absent)));
    let (nearest, differs) = match nearest {
        Some(nearest) if nearest.read > 0 => {
            let refused = nearest.refused.map(|reason| format!("it says: {reason}"));
            let left = format!("it does not know the keys {}", nearest.left.join(", "));
            let left = Some(left).filter(|_| !nearest.left.is_empty());
            let differs: Vec<String> = refused.into_iter().chain(left).collect();
            let same = "it would read the config as it is".to_owned();
            (Some(nearest.family.name), if differs.is_empty() { same } else { differs.join("; ") })
        }
        _ => (None, String::new()),
    };
    Error::UnknownFamily { path: config.path().to_owned(), found: found.to_owned(), known: names(), nearest, differs }
}
