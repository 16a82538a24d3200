//! How does a name become a model? From a folder, a GGUF file, a bundled name or a hub id to a [`Model`] and its
//! [`Tokenizer`].
//!
//! A checkpoint is a folder in Hugging Face layout: `config.json`, `model.safetensors` (or shards listed in
//! `model.safetensors.index.json`) and, for texts, `tokenizer.json`; or a GGUF file of llama.cpp, which has all three in
//! it. The state dict and config of a TransformerLens model are a checkpoint, too. Each family, and headscope's own format for models trained in the lab, is a file in `families/` that maps config keys
//! and tensor names.

mod coding;
mod config_json;
mod families;
mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod locate;
mod order;
mod preview;
mod save;
mod series;
mod source;

use std::path::Path;

use tch::{Device, Kind};

pub use locate::cache_folder;
pub use preview::Preview;
pub use series::Series;

pub use crate::text::Tokenizer;

use self::config_json::ConfigJson;
use self::families::{Family, headscope};
use self::gguf::Gguf;
use self::source::Source;
use crate::device;
use crate::error::{Error, Result};
use crate::file;
use crate::model::{Model, ModelConfig, Origin};
use crate::table::Provenance;
use crate::tensors::check_kind;
use crate::workers::on_one_thread;

/// Options for loading a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    /// Type of weights and activations: `Float`, `Double`, `Half` or `BFloat16`, whatever the checkpoint's.
    ///
    /// In half precision weights take half the memory, and results are good to two or three digits
    /// ([`rounding`](crate::verify::rounding) has the bound). As in transformers, norms, softmax and rotary tables are computed
    /// in float32 and rounded; so are logarithms of probabilities and metrics, which stay float32.
    pub kind: Kind,
    /// The device to compute on.
    pub device: Device,
    /// Revision on the hub, by default its main branch; of a local folder, the sub-folder of this name. The same as the end of a name
    /// such as `EleutherAI/pythia-70m@step1000`.
    pub revision: Option<String>,
    /// Whether texts begin with the beginning-of-sequence token; by default the tokenizer's own rule. See
    /// [`Tokenizer::with_prepend_bos`].
    pub prepend_bos: Option<bool>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kind: Kind::Float, device: Device::Cpu, revision: None, prepend_bos: None }
    }
}

/// A checkpoint before its weights are read.
struct Opened {
    json: ConfigJson,
    source: Source,
    tokenizer: Option<Tokenizer>,
    end_tokens: Vec<i64>,
}

impl Opened {
    /// The checkpoint in a folder, or in a GGUF file.
    fn at(path: &Path, options: &LoadOptions) -> Result<Self> {
        let (folder, json, source, own) = if path.is_dir() {
            let json = ConfigJson::read(path, "config.json")?;
            (path, json, Source::open(path, options.kind, options.device)?, None)
        } else {
            let gguf = Gguf::open(path, options.kind, options.device)?;
            let folder = path.parent().unwrap_or(Path::new("."));
            (folder, ConfigJson::of_values(path, gguf.config), gguf.source, gguf.tokenizer)
        };
        let beside = folder.join("tokenizer.json");
        let tokenizer = match own {
            Some(own) => Some(Tokenizer::of_json(own.to_string().as_bytes(), &path.display().to_string())?),
            None => beside.exists().then(|| Tokenizer::read(&beside)).transpose()?,
        };
        let bos = json.ids("bos_token_id")?.first().copied();
        let tokenizer = tokenizer.map(|read| read.with_bos(bos).with_prepend_bos(options.prepend_bos)).transpose()?;
        let end_tokens = if path.is_dir() { end_tokens(folder, &json)? } else { json.ids("eos_token_id")? };
        Ok(Self { json, source, tokenizer, end_tokens })
    }

    /// The family, and the architecture according to the headers.
    fn architecture(&self) -> Result<(&'static Family, ModelConfig)> {
        let family = families::of(&self.json)?;
        let config = family.architecture(&self.json, &self.source)?;
        let path = || self.json.path().to_owned();
        config.validate().map_err(|reason| Error::Config { path: path(), reason: Box::new(reason) })?;
        Ok((family, config))
    }
}

impl Model {
    /// Loads a model from a folder, a `.gguf` file, a bundled name (`minilm`, `smollm2`), or a hub id such as
    /// `openai-community/gpt2`, also at a revision: `EleutherAI/pythia-70m@step1000`. Of a folder, `@step1000` is the sub-folder of
    /// that name. [`Series`] loads one revision after another.
    ///
    /// ```
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// assert_eq!(model.config().n_heads, 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a file, tensor or key is missing, superfluous, not finite, or inconsistent with the config. The error names
    /// the file and the tensor or key.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_with(name, &LoadOptions::default())
    }

    /// [`Model::load`] with a given type, device, revision or beginning of texts.
    ///
    /// # Errors
    /// As [`Model::load`]; also if the device is not available.
    pub fn load_with(name: &str, options: &LoadOptions) -> Result<Self> {
        check_kind(options.kind)?;
        device::check(options.device)?;
        let opened = Opened::at(&locate::find(name, options.revision.as_deref())?, options)?;
        let (family, mut config) = opened.architecture()?;
        let Opened { json, source, tokenizer, end_tokens } = opened;
        // Weights are read in short blocks, for which several threads do not pay off.
        let weights = on_one_thread(|| family.weights(&config, &source))?;
        config.tied_unembed = weights.is_tied();
        source.finish(family.name, |name| family.ignores(name))?;
        let files = source.stamps().iter().map(|stamp| stamp.path().to_owned()).collect();
        let processing = json.parsed_or_default(headscope::PROCESSING, "a list of processing steps")?;
        let origin = Origin { name: name.to_owned(), files, end_tokens, processing };
        Self::new(config, weights, origin, tokenizer).read_from(source.stamps())
    }

    /// SHA-256 that identifies the weights, in hexadecimal.
    ///
    /// The hash is over the weight files if the model was loaded and neither the weights nor the files have changed
    /// since. Otherwise (trained, random, truncated, or changed in place) it is over the names, types, shapes and
    /// values of the parameters. It is cached until something changes.
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
    /// If a file or a parameter cannot be read.
    pub fn sha256(&self) -> Result<String> {
        Ok(self.identity().hash(&self.parameters())?.hex().to_owned())
    }

    /// The provenance of a result computed with this model: the model, the hash of its weights and what was hashed, the
    /// hash of its architecture, and the computation.
    ///
    /// # Errors
    /// As [`Model::sha256`].
    pub fn provenance(&self, options: serde_json::Value, seed: Option<u64>) -> Result<Provenance> {
        let hashed = self.identity().hash(&self.parameters())?;
        let config = serde_json::json!(self.config()).to_string();
        let mut options = serde_json::json!({
            "what": options,
            "sha256_of": hashed.of(),
            "architecture": file::sha256(config.as_bytes()),
            "dtype": format!("{:?}", self.kind()),
            "device": device::name(self.device()),
            "tch": "0.24.0 with libtorch 2.11.0",
        });
        if let Some(tokenizer) = self.tokenizer() {
            options["prepend_bos"] = serde_json::json!(tokenizer.prepends_bos());
        }
        if !self.origin().processing.is_empty() {
            options["processing"] = serde_json::json!(self.origin().processing);
        }
        Ok(Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.origin().name.clone(),
            sha256: hashed.hex().to_owned(),
            options,
            seed,
        })
    }
}

/// Whether a folder's `config.json` is of headscope's own family.
pub(crate) fn is_own_format(folder: &Path) -> bool {
    ConfigJson::read(folder, "config.json")
        .is_ok_and(|json| json.opt_str("model_type").is_ok_and(|found| found == Some(headscope::NAME)))
}

/// The tokens that end a generation: those in `generation_config.json` if it names any, otherwise those in
/// `config.json`.
fn end_tokens(folder: &Path, json: &ConfigJson) -> Result<Vec<i64>> {
    const GENERATION: &str = "generation_config.json";
    let generation = folder.join(GENERATION).exists().then(|| ConfigJson::read(folder, GENERATION)).transpose()?;
    match generation.map(|json| json.ids("eos_token_id")).transpose()? {
        Some(ids) if !ids.is_empty() => Ok(ids),
        _ => json.ids("eos_token_id"),
    }
}
