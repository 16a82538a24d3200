//! How is a GGUF file of llama.cpp read? As the checkpoint in Hugging Face layout that it was made from.
//!
//! Its keys become a `config.json`, its tensors take Hugging Face's names and row order, its vocabulary becomes a
//! `tokenizer.json`: from there on, the family of that name does the rest. Weights that were rounded to few bits come back
//! as the float32 numbers that they stand for. What is read: the architectures in `architectures.rs`, the codings in `coding.rs`, and
//! byte-pair vocabularies; everything else is refused with the reason.

mod architectures;
mod convert;
mod header;
mod names;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tch::{Device, Kind};

pub(super) use self::convert::{converted, is_converted};
use self::header::Header;
use super::source::{Place, Source};
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
        let architecture = names::architecture(&values, &tensors, &wrong)?;
        let mut config = architecture.config(&values, &tensors, &wrong)?;
        // A tokenizer.json beside the file is used in any case.
        let beside = path.with_file_name("tokenizer.json").exists();
        let tokenizer = if beside { None } else { vocabulary::tokenizer_json(&values, &wrong)? };
        let mut places = architecture.places(&values, tensors, &wrong)?;
        let factors = factors(path, &file, &mut places)?;
        if let Some(stretched) = architecture.stretched(&values, &config, factors, &wrong)? {
            config.insert("rope_scaling".to_owned(), stretched);
        }
        Ok(Self { config, source: Source::of_file(path, file, places, kind, device)?, tokenizer })
    }
}

/// What divides each rotary frequency in short and in long texts, if tensors of the file say so. They are none of the model's.
fn factors(path: &Path, file: &File, places: &mut BTreeMap<String, Place>) -> Result<Option<(Vec<f64>, Vec<f64>)>> {
    let names = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
    let found: BTreeMap<String, Place> = names.iter().filter_map(|name| places.remove_entry(*name)).collect();
    let shapes: BTreeMap<String, Vec<usize>> =
        found.iter().map(|(name, place)| (name.clone(), place.shape.clone())).collect();
    let file = file.try_clone().map_err(Error::io("read", path))?;
    let source = Source::of_file(path, file, found, Kind::Double, Device::Cpu)?;
    let [both, short, long] = names.map(|name| {
        let read = |shape: &Vec<usize>| {
            let numbers = source.take(name, shape)?.flatten(0, -1);
            Vec::<f64>::try_from(numbers).map_err(Error::torch("reading rotary factors"))
        };
        shapes.get(name).map(read).transpose()
    });
    let (both, short, long) = (both?, short?, long?);
    Ok(both.map(|both| (both.clone(), both)).or(short.zip(long)))
}
