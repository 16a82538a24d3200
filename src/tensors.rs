//! What can be done with tensors without knowing the model they belong to? Store them, tell them apart, multiply them fast.

mod identity;
pub(crate) mod onednn;
mod softmax;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

pub(crate) use identity::{Identity, Stamp};
pub(crate) use softmax::{log_softmax, softmax};

use crate::error::{Error, Result};
use crate::file;

/// Writes named tensors as safetensors, atomically. Tensors of type float64 stay float64; all others become float32.
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

/// A tensor's bytes in the form that safetensors expects.
pub(crate) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn of(name: &str, tensor: &Tensor) -> Result<Self> {
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
