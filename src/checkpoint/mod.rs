//! Bytes on disk or on a hub to a [`Model`] and its [`Tokenizer`].
//!
//! A checkpoint is a folder in Hugging Face layout: `config.json`, `model.safetensors` (or shards behind
//! `model.safetensors.index.json`) and, for texts, `tokenizer.json`. Families: GPT-2, Llama, BERT, and headscope's own for
//! what the lab trains; each is one file in `families/` that maps names and config keys.

mod config_json;
mod families;
mod place;
mod save;
mod source;
mod tokenizer;

use std::path::Path;

use sha2::{Digest, Sha256};
use tch::{Device, Kind};

pub use place::cache_folder;
pub(crate) use save::write_tensors;
pub use tokenizer::Tokenizer;

use self::config_json::ConfigJson;
use self::source::Source;
use crate::device;
use crate::error::{Error, Result};
use crate::model::{Model, Origin};
use crate::table::Provenance;
use crate::workers::on_one_thread;

/// How to load a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    /// Type of weights and activations: `Float` or `Double`; checkpoints in half precision are widened.
    pub kind: Kind,
    /// Where the model computes.
    pub device: Device,
    /// Revision on the hub; its main branch where absent.
    pub revision: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kind: Kind::Float, device: Device::Cpu, revision: None }
    }
}

impl Model {
    /// Loads a model: a folder, a bundled name (`minilm`), or a hub id such as `openai-community/gpt2`.
    ///
    /// ```
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// assert_eq!(model.config().n_heads, 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// Names the file and the tensor or key where anything is missing, surplus, not finite, or not as the config says.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_with(name, &LoadOptions::default())
    }

    /// [`Model::load`] with a type, a device or a revision.
    ///
    /// # Errors
    /// As [`Model::load`]; also where the device is not there.
    pub fn load_with(name: &str, options: &LoadOptions) -> Result<Self> {
        if !matches!(options.kind, Kind::Float | Kind::Double) {
            return Err(Error::argument("kind", "Float or Double", format!("{:?}", options.kind)));
        }
        device::check(options.device)?;
        let folder = place::find(name, options.revision.as_deref())?;
        let json = ConfigJson::read(&folder, "config.json")?;
        let family = families::of(&json)?;
        let source = Source::open(&folder, options.kind, options.device)?;
        let mut config = (family.config)(&json, &source)?;
        config.validate().map_err(|reason| Error::Config { path: json.path().to_owned(), reason: Box::new(reason) })?;
        // Weights are read in short pieces, which are not worth sharing out.
        let weights = on_one_thread(|| (family.weights)(&config, &source))?;
        config.tied_unembed = weights.is_tied();
        source.finish(family.name, family.superfluous)?;
        let tokenizer = folder.join("tokenizer.json");
        let tokenizer = tokenizer.exists().then(|| Tokenizer::read(&tokenizer)).transpose()?;
        let origin = Origin { name: name.to_owned(), files: source.paths(), end_tokens: end_tokens(&folder, &json)? };
        Ok(Self::new(config, weights, origin, tokenizer))
    }

    /// SHA-256 over the files of weights, in hexadecimal; read once.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        if let Some(known) = self.hash().get() {
            return Ok(known.clone());
        }
        let mut hash = Sha256::new();
        for path in &self.origin().files {
            let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
            std::io::copy(&mut file, &mut hash).map_err(Error::io("read", path))?;
        }
        Ok(self.hash().get_or_init(|| format!("{:x}", hash.finalize())).clone())
    }

    /// Where a result computed with this model comes from: the model and its weights' hash, and what was computed.
    ///
    /// # Errors
    /// Where a file of weights cannot be read.
    pub fn provenance(&self, options: serde_json::Value, seed: Option<u64>) -> Result<Provenance> {
        Ok(Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.origin().name.clone(),
            sha256: if self.origin().files.is_empty() { String::new() } else { self.sha256()? },
            options: serde_json::json!({
                "what": options,
                "dtype": format!("{:?}", self.kind()),
                "device": format!("{:?}", self.device()),
                "tch": "0.24.0 with libtorch 2.11.0",
            }),
            seed,
        })
    }
}

/// The tokens that end a generation: of generation_config.json, where there is one that names some, else of config.json.
fn end_tokens(folder: &Path, json: &ConfigJson) -> Result<Vec<i64>> {
    const GENERATION: &str = "generation_config.json";
    let generation = folder.join(GENERATION).exists().then(|| ConfigJson::read(folder, GENERATION)).transpose()?;
    match generation.map(|json| json.ids("eos_token_id")).transpose()? {
        Some(ids) if !ids.is_empty() => Ok(ids),
        _ => json.ids("eos_token_id"),
    }
}
