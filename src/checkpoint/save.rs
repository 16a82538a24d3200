//! How is a model saved? To a folder that [`Model::load`] reads.

use std::path::Path;

use serde_json::json;

use super::families::headscope;
use crate::error::{Error, Result};
use crate::file;
use crate::model::Model;
use crate::tensors::write_tensors;

impl Model {
    /// Writes `config.json` and `model.safetensors` into `folder`, which is created if it does not exist, and
    /// `tokenizer.json` if the model has a tokenizer.
    ///
    /// The format is headscope's own family, which can express any architecture: `config.json` has `"model_type":
    /// "headscope"` and the [`ModelConfig`](crate::model::ModelConfig) under `model`, and the tensors are named as in
    /// [`Model::parameters`]. [`Model::load`] restores the model bit for bit.
    ///
    /// # Errors
    /// If the folder or a file cannot be written. Each file is written whole or not at all.
    ///
    /// ```
    /// use headscope::model::{Model, ModelConfig};
    /// let folder = tempfile::tempdir().unwrap();
    /// let model = Model::random(&ModelConfig::default(), 0)?;
    /// model.save(folder.path())?;
    /// assert_eq!(Model::load(folder.path().to_str().unwrap())?.config(), model.config());
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        let tied = |name: &str| name == "w_u" && self.config().tied_unembed;
        let tensors: Vec<_> = self.parameters().into_iter().filter(|(name, _)| !tied(name)).collect();
        write_tensors(&folder.join("model.safetensors"), &tensors, &[])?;
        let mut config = json!({
            "model_type": headscope::NAME,
            "vocab_size": self.config().vocab,
            "eos_token_id": self.origin().end_tokens,
            headscope::KEY: self.config(),
        });
        if !self.origin().processing.is_empty() {
            config[headscope::PROCESSING] = json!(self.origin().processing);
        }
        let path = folder.join("config.json");
        let text = serde_json::to_vec_pretty(&config).map_err(|reason| Error::io("write", &path)(reason.into()))?;
        file::write_bytes(&path, &text)?;
        self.tokenizer().map_or(Ok(()), |tokenizer| tokenizer.save(&folder.join("tokenizer.json")))
    }
}
