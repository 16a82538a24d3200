//! Bytes on disk or on a hub to a [`Model`] and its [`Tokenizer`].
//!
//! A checkpoint is a folder in Hugging Face layout: `config.json`, `model.safetensors` (or shards behind
//! `model.safetensors.index.json`) and, for texts, `tokenizer.json`. Families: GPT-2, Llama, BERT, and headscope's own for
//! what the lab trains; each is one file in `families/` that maps names and config keys.

mod config_json;
mod families;
#[cfg(feature = "hub")]
mod hub;
mod locate;
mod save;
mod source;

use std::path::Path;

use tch::{Device, Kind};

pub use locate::cache_folder;

pub use crate::text::Tokenizer;

use self::config_json::ConfigJson;
use self::source::Source;
use crate::device;
use crate::error::{Error, Result};
use crate::file;
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
        let folder = locate::find(name, options.revision.as_deref())?;
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
        let files = source.stamps().iter().map(|stamp| stamp.path().to_owned()).collect();
        let origin = Origin { name: name.to_owned(), files, end_tokens: end_tokens(&folder, &json)? };
        Self::new(config, weights, origin, tokenizer).read_from(source.stamps())
    }

    /// SHA-256 that tells the weights from others, in hexadecimal: over the files of weights, where the model was loaded and
    /// has them as they are; else (trained, random, truncated, changed in place, or the files have changed since) over names,
    /// types, shapes and numbers of the parameters. Computed once, and again only where something changed.
    ///
    /// ```
    /// use headscope::model::{Model, ModelConfig};
    /// let model = |seed| Model::random(&ModelConfig::default(), seed);
    /// assert_eq!(model(0)?.sha256()?, model(0)?.sha256()?);
    /// assert_ne!(model(0)?.sha256()?, model(1)?.sha256()?);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where a file or a parameter cannot be read.
    pub fn sha256(&self) -> Result<String> {
        Ok(self.identity().hash(&self.parameters())?.hex().to_owned())
    }

    /// Where a result computed with this model comes from: the model, its weights' hash and what was hashed, its architecture's
    /// hash, and what was computed.
    ///
    /// # Errors
    /// As [`Model::sha256`].
    pub fn provenance(&self, options: serde_json::Value, seed: Option<u64>) -> Result<Provenance> {
        let hashed = self.identity().hash(&self.parameters())?;
        let config = serde_json::json!(self.config()).to_string();
        Ok(Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.origin().name.clone(),
            sha256: hashed.hex().to_owned(),
            options: serde_json::json!({
                "what": options,
                "sha256_of": hashed.of(),
                "architecture": file::sha256(config.as_bytes()),
                "dtype": format!("{:?}", self.kind()),
                "device": device::name(self.device()),
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
