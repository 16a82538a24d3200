//! How is a GGUF file of llama.cpp read? As the checkpoint in Hugging Face layout that it was made from.
//!
//! Its keys become a `config.json`, its tensors take Hugging Face's names and row order, its vocabulary becomes a
//! `tokenizer.json`: from there on, the family of that name does the rest. Weights that were rounded to few bits come back
//! as the float32 numbers that they stand for. What is read: the architectures in `names.rs`, the codings in `coding.rs`, and
//! byte-pair vocabularies; everything else is refused with the reason.

mod convert;
mod header;
mod names;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tch::{Device, Kind};

pub(super) use self::convert::{converted, is_converted};
use self::header::{Header, Value};
use self::names::{ARCHITECTURES, Architecture};
use super::source::Source;
use crate::error::{Error, Result};

/// A GGUF file as a checkpoint in Hugging Face layout.
pub(super) struct Gguf {
    /// What `config.json` would say.
    pub config: Map<String, Json>,
    /// The tensors, under Hugging Face's names.
    pub source: Source,
    /// What `tokenizer.json` would say; none if the file has no vocabulary.
    pub tokenizer: Option<Json>,
}

impl Gguf {
    /// Opens a file. Tensors are converted to `kind` on `device` when they are taken.
    pub(super) fn open(path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let Header { values, tensors } = Header::read(path, &file)?;
        let wrong = |at: &str, expected: &str, found: String| Error::Format {
            path: path.to_owned(),
            at: at.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let architecture = architecture(values.get("general.architecture")).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
            let found = values.get("general.architecture").map_or("nothing".to_owned(), |value| format!("{value:?}"));
            wrong("key `general.architecture`", &format!("one of {}", known.join(", ")), found)
        })?;
        let config = architecture.config(&values, &tensors, &wrong)?;
        // A tokenizer.json beside the file is used in any case.
        let beside = path.with_file_name("tokenizer.json").exists();
        let tokenizer = if beside { None } else { vocabulary::tokenizer_json(&values, &wrong)? };
        let places = architecture.places(&values, tensors, &wrong)?;
        Ok(Self { config, source: Source::of_file(path, file, places, kind, device)?, tokenizer })
    }
}

fn architecture(name: Option<&Value>) -> Option<&'static Architecture> {
    let Some(Value::Text(name)) = name else { return None };
    ARCHITECTURES.iter().find(|known| known.name == name)
}
