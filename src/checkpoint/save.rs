//! A model to a folder that [`Model::load`] reads.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::families::headscope;
use crate::error::{Error, Result};
use crate::file;
use crate::model::Model;

impl Model {
    /// Writes `config.json` and `model.safetensors` into `folder`, which is made where it is not there, and
    /// `tokenizer.json` where the model has a tokenizer.
    ///
    /// The layout is headscope's own family, which expresses any architecture: config.json has `"model_type":
    /// "headscope"` and the [`ModelConfig`](crate::model::ModelConfig) under `model`; the tensors have the names of
    /// [`Model::parameters`]. [`Model::load`] reads it back to the same bits.
    ///
    /// # Errors
    /// Where the folder or a file cannot be written; each file is written whole or not at all.
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
        let config = json!({
            "model_type": headscope::NAME,
            "vocab_size": self.config().vocab,
            "eos_token_id": self.origin().end_tokens,
            headscope::KEY: self.config(),
        });
        let path = folder.join("config.json");
        let text = serde_json::to_vec_pretty(&config).map_err(|reason| Error::io("write", &path)(reason.into()))?;
        file::write_bytes(&path, &text)?;
        self.tokenizer().map_or(Ok(()), |tokenizer| tokenizer.save(&folder.join("tokenizer.json")))
    }
}

/// Writes tensors as safetensors, whole or not at all; float64 stays float64, the rest becomes float32.
pub(crate) fn write_tensors(path: &Path, tensors: &[(String, &Tensor)], metadata: &[(&str, String)]) -> Result<()> {
    let stored = tensors.iter().map(|(name, tensor)| Ok((name, Stored::of(name, tensor)?)));
    let stored = stored.collect::<Result<Vec<_>>>()?;
    let own = [("headscope", env!("CARGO_PKG_VERSION").to_owned())];
    let metadata: HashMap<String, String> =
        own.iter().chain(metadata).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let wrong = |reason: safetensors::SafeTensorError| Error::Format {
        path: path.to_owned(),
        at: "tensors".to_owned(),
        expected: "tensors that safetensors can hold".to_owned(),
        found: reason.to_string(),
    };
    let views = stored.iter().map(|(name, stored)| Ok((name, stored.view().map_err(wrong)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(wrong)?;
    file::write_bytes(path, &bytes)
}

/// A tensor's bytes as safetensors wants them.
pub(super) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub(super) fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let double = tensor.kind() == Kind::Double;
        let kind = if double { Kind::Double } else { Kind::Float };
        let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
        let mut bytes = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
        let count = tensor.numel();
        tensor.f_copy_data_u8(&mut bytes, count).map_err(Error::torch(format!("reading `{name}`")))?;
        let dtype = if double { Dtype::F64 } else { Dtype::F32 };
        Ok(Self { dtype, shape: tensor.size().iter().map(|&n| n as usize).collect(), bytes })
    }

    fn view(&self) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes)
    }
}
