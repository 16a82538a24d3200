//! What can be done with tensors without knowing the model they belong to? Store them, tell them apart, multiply them fast.

mod identity;
pub(crate) mod onednn;
mod softmax;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

pub(crate) use identity::{Identity, Stamp};
pub(crate) use softmax::{log_softmax, softmax};

use crate::error::{Error, Result};
use crate::file;
use crate::take;

/// The type in which sums over many numbers of a type, norms and probabilities are computed: float32 for half precision.
pub(crate) fn wide(kind: Kind) -> Kind {
    if is_half(kind) { Kind::Float } else { kind }
}

/// Whether a type is one of half precision: float16 or bfloat16.
pub(crate) fn is_half(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}

/// Fails unless models compute in this type.
pub(crate) fn check_kind(kind: Kind) -> Result<()> {
    match kind {
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => Ok(()),
        other => Err(Error::argument("kind", "Float, Double, Half or BFloat16", format!("{other:?}"))),
    }
}

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

/// The tensors of one safetensors file.
#[derive(Debug)]
pub(crate) struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    /// The type that each had in the file.
    kinds: BTreeMap<String, Kind>,
    metadata: HashMap<String, String>,
}

impl Tensors {
    /// Reads a file whole. Values become `kind`, on `device`, and must be finite.
    pub(crate) fn read(path: &Path, kind: Kind, device: Device) -> Result<Self> {
        Self::read_with_ids(path, &[], kind, device)
    }

    /// [`Tensors::read`], where the tensors called `ids` may be int64 and stay so.
    pub(crate) fn read_with_ids(path: &Path, ids: &[&str], kind: Kind, device: Device) -> Result<Self> {
        let wrong = |at: &str, expected: &str, found: String| Error::Format {
            path: path.to_owned(),
            at: at.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !about.is_file() {
            return Err(wrong("the file", "a safetensors file", "no file".to_owned()));
        }
        // The bytes and what becomes of them are there at once.
        take::fits("bytes", usize::try_from(about.len()).unwrap_or(usize::MAX), 3)?;
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let refused =
            |reason: safetensors::SafeTensorError| wrong("the file", "a whole safetensors file", reason.to_string());
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(refused)?;
        let read = SafeTensors::deserialize(&bytes).map_err(refused)?;
        let (mut tensors, mut kinds) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in read.iter() {
            let at = format!("tensor `{name}`");
            let found = match view.dtype() {
                Dtype::F64 => Kind::Double,
                Dtype::F32 => Kind::Float,
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::I64 if ids.contains(&name) => Kind::Int64,
                other => return Err(wrong(&at, "dtype F64, F32, F16 or BF16", format!("{other:?}"))),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, found);
            let kept = if found == Kind::Int64 { found } else { kind };
            let tensor =
                tensor.and_then(|tensor| tensor.f_to_kind(kept)).map_err(Error::torch(format!("reading {at}")))?;
            let holes = tensor.isfinite().logical_not().flatten(0, -1);
            if holes.numel() > 0 && holes.any().int64_value(&[]) != 0 {
                let index = holes.to_kind(Kind::Int).argmax(0, false).int64_value(&[]);
                let found = tensor.flatten(0, -1).double_value(&[index]);
                return Err(Error::NotFinite { at: format!("{}: {at}", path.display()), index: index as usize, found });
            }
            tensors.insert(name.to_owned(), tensor.to_device(device));
            kinds.insert(name.to_owned(), found);
        }
        Ok(Self { path: path.to_owned(), tensors, kinds, metadata: header.metadata().clone().unwrap_or_default() })
    }

    /// An entry of the file's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The type that the tensor `name` had in the file.
    pub(crate) fn kind(&self, name: &str) -> Option<Kind> {
        self.kinds.get(name).copied()
    }

    /// The tensor `name`, which must have this shape.
    pub(crate) fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let found = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
        })?;
        if found.size() == shape {
            return Ok(found.shallow_clone());
        }
        let (at, expected) = (format!("tensor `{name}`"), format!("shape {shape:?}"));
        Err(Error::Format { path: self.path.clone(), at, expected, found: format!("{:?}", found.size()) })
    }
}
