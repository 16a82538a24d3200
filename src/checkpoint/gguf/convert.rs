//! How does a GGUF file become a folder in Hugging Face layout? Its tensors are written as float32, one after the other.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use serde_json::json;
use tch::{Device, Kind};

use super::Gguf;
use crate::checkpoint::source::Source;
use crate::error::{Error, Result};
use crate::file::{self, Lock};
use crate::tensors::Stored;
use crate::workers::on_one_thread;

/// The last file to be written: where it is, the others are.
const LAST: &str = "config.json";

/// Whether `folder` has a model in Hugging Face layout.
pub(in crate::checkpoint) fn is_converted(folder: &Path) -> bool {
    folder.join(LAST).exists()
}

/// Writes the model in a GGUF file into `folder` in Hugging Face layout, unless it is there already: `model.safetensors` in
/// float32, `tokenizer.json` and `config.json`, which names the file's SHA-256. Another process that does the same is waited
/// for.
///
/// # Errors
/// If the file is not a whole GGUF file, or `folder` cannot be written.
pub(in crate::checkpoint) fn converted(path: &Path, folder: &Path) -> Result<()> {
    let _lock = Lock::wait(&folder.join(LAST))?;
    if is_converted(folder) {
        return Ok(());
    }
    let sha256 = file::sha256_of(&[path.to_owned()])?;
    let Gguf { mut config, source, tokenizer } = Gguf::open(path, Kind::Float, Device::Cpu)?;
    // Short blocks, for which several threads do not pay off.
    on_one_thread(|| write_weights(&folder.join("model.safetensors"), &source, &sha256))?;
    if let Some(tokenizer) = tokenizer {
        file::write_bytes(&folder.join("tokenizer.json"), tokenizer.to_string().as_bytes())?;
    }
    config.insert("converted_from".to_owned(), json!({"format": "gguf", "sha256": sha256}));
    config.insert("torch_dtype".to_owned(), json!("float32"));
    let path = folder.join(LAST);
    let text = serde_json::to_vec_pretty(&config).map_err(|reason| Error::io("write", &path)(reason.into()))?;
    file::write_bytes(&path, &text)
}

/// Writes all tensors as float32, with one of them in memory at a time.
fn write_weights(path: &Path, source: &Source, sha256: &str) -> Result<()> {
    let failed = RefCell::new(None);
    let read = |(name, shape): (&str, &[usize])| {
        let lazy = Lazy { name: name.to_owned(), shape: shape.to_vec(), source, failed: &failed };
        (name.to_owned(), lazy)
    };
    let metadata: HashMap<String, String> =
        [("format", "pt"), ("converted_from", sha256), ("headscope", env!("CARGO_PKG_VERSION"))]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    file::write_whole_at(path, |temporary| {
        let written = safetensors::serialize_to_file(source.shapes().map(read), Some(metadata), temporary);
        if let Some(error) = failed.take() {
            return Err(error);
        }
        written.map_err(|reason| Error::io("write", path)(std::io::Error::other(reason)))
    })
}

/// A tensor that is read when its turn to be written comes.
struct Lazy<'a> {
    name: String,
    shape: Vec<usize>,
    source: &'a Source,
    /// The first error of any tensor.
    failed: &'a RefCell<Option<Error>>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.source.take(&self.name, &self.shape).and_then(|tensor| Stored::of(&self.name, &tensor));
        Cow::Owned(bytes.map(|stored| stored.bytes).unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            vec![0; self.data_len()]
        }))
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * Kind::Float.elt_size_in_bytes()
    }
}
