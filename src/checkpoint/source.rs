//! Tensors on disk: one safetensors file, or several behind an index, memory-mapped.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::file;

/// The tensors of a checkpoint folder, by name.
pub(crate) struct Source {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Place>,
    used: RefCell<BTreeSet<String>>,
    kind: Kind,
    device: Device,
}

/// Where one tensor lies.
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Source {
    /// Opens a folder's weights; tensors are converted to `kind` on `device` as they are taken.
    pub(crate) fn open(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let mut source = Self {
            folder: folder.to_owned(),
            files: vec![],
            tensors: BTreeMap::new(),
            used: RefCell::default(),
            kind,
            device,
        };
        let index = folder.join(INDEX);
        if folder.join(WHOLE).exists() || !index.exists() {
            source.add_file(&folder.join(WHOLE))?;
        } else {
            source.add_shards(&index)?;
        }
        for (name, place) in std::mem::take(&mut source.tensors) {
            // Old checkpoints write gamma and beta for a norm's weight and bias.
            let new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
            let path = source.files[place.file].0.clone();
            if source.tensors.insert(new.clone(), place).is_some() {
                let (expected, found) = (format!("one tensor for `{new}`"), "two".to_owned());
                return Err(Error::Format { path, at: format!("tensor `{name}`"), expected, found });
            }
        }
        Ok(source)
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        let weight_map = read_index(index)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        for shard in shards {
            self.add_file(&self.folder.join(shard))?;
        }
        let wrong = |at: &str, expected: String, found: &str| Error::Format {
            path: index.to_owned(),
            at: at.to_owned(),
            expected,
            found: found.to_owned(),
        };
        for (tensor, shard) in &weight_map {
            let place = self.tensors.get(tensor).map(|place| &self.files[place.file].0);
            if place != Some(&self.folder.join(shard)) {
                return Err(wrong(tensor, format!("the tensor in {shard}"), "none there"));
            }
        }
        match self.tensors.keys().find(|name| !weight_map.contains_key(*name)) {
            Some(name) => Err(wrong(name, "every tensor of the shards in the weight_map".to_owned(), "not listed")),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let found = file.metadata().map_err(Error::io("read", path))?;
        if !found.is_file() {
            let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
            return Err(Error::Io { action: "read as a file", path: path.to_owned(), source });
        }
        // SAFETY: the mapping is read-only; a file that another process shortens while it is read would end this
        // process, as with every memory-mapped format.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        for (name, place) in places(path, &map, self.files.len())? {
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(Error::Format {
                    path: path.to_owned(),
                    at: name,
                    expected: "each tensor in one shard".to_owned(),
                    found: "it in two".to_owned(),
                });
            }
        }
        self.files.push((path.to_owned(), map));
        Ok(())
    }

    /// The checkpoint's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files of weights.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor's name holds `part`.
    pub(crate) fn has_part(&self, part: &str) -> bool {
        self.tensors.keys().any(|name| name.contains(part))
    }

    /// `[0, width]`, in place of a matrix that the checkpoint does not have.
    pub(crate) fn empty(&self, width: usize) -> Tensor {
        Tensor::zeros([0, width as i64], (self.kind, self.device))
    }

    /// The tensor `name`, which must have this shape and be finite.
    pub(crate) fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let wanted: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let Some(place) = self.tensors.get(name) else {
            return Err(Error::MissingTensor { path: self.folder.clone(), tensor: name.to_owned(), expected: wanted });
        };
        let (path, map) = &self.files[place.file];
        let wrong = |expected: String, found: String| Error::Format {
            path: path.clone(),
            at: format!("tensor `{name}`"),
            expected,
            found,
        };
        if place.shape != shape {
            return Err(wrong(format!("shape {shape:?}"), format!("{:?}", place.shape)));
        }
        let kind = match place.dtype {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(wrong("dtype F64, F32, F16 or BF16".to_owned(), format!("{other:?}"))),
        };
        let bytes = &map[place.bytes.clone()];
        let raw = Tensor::f_from_data_size(bytes, &wanted, kind)
            .and_then(|raw| raw.f_to_kind(self.kind)?.f_to_device(self.device))
            .map_err(Error::torch(format!("reading tensor `{name}`")))?;
        finite(&raw, || format!("{}: tensor `{name}`", path.display()))?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(raw)
    }

    /// Fails where tensors are left that the family neither took nor knows to be superfluous.
    pub(crate) fn finish(&self, family: &'static str, superfluous: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.borrow();
        let left = self.tensors.keys().filter(|name| !used.contains(*name) && !superfluous(name));
        let tensors: Vec<String> = left.cloned().collect();
        if tensors.is_empty() {
            return Ok(());
        }
        Err(Error::SurplusTensors { path: self.folder.clone(), family, tensors })
    }
}

/// The tensors that an index lists, and the file of each. The index is not trusted to name files elsewhere.
pub(crate) fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = file::read(index)?;
    let wrong = |at: &str, expected: &str, found: String| Error::Format {
        path: index.to_owned(),
        at: at.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let Index { weight_map } =
        serde_json::from_slice(&text).map_err(|e| wrong("the file", "an index with a weight_map", e.to_string()))?;
    let elsewhere = |shard: &&String| Path::new(shard).file_name().is_none_or(|name| name != shard.as_str());
    match weight_map.values().find(elsewhere) {
        Some(shard) => Err(wrong("weight_map", "plain file names", format!("`{shard}`"))),
        None => Ok(weight_map),
    }
}

/// Every tensor of a safetensors file. The crate bounds the header's size, and checks that the offsets neither overlap
/// nor leave the file and that they agree with shapes and types.
fn places(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Place)>> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|reason| Error::Format {
        path: path.to_owned(),
        at: "header".to_owned(),
        expected: "a whole safetensors file".to_owned(),
        found: reason.to_string(),
    })?;
    let start = 8 + header;
    let place = |name: String, info: &safetensors::tensor::TensorInfo| {
        let (from, to) = info.data_offsets;
        let place = Place { file, dtype: info.dtype, shape: info.shape.clone(), bytes: start + from..start + to };
        (name, place)
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| place(name, info)).collect())
}

/// Fails at the first value that is not finite.
fn finite(tensor: &Tensor, at: impl Fn() -> String) -> Result<()> {
    // The sum of |x| * 0 is NaN exactly where a value is not finite: one pass, no mask.
    let probe = (tensor * 0.0).sum(Kind::Float);
    if probe.double_value(&[]) == 0.0 {
        return Ok(());
    }
    let flat = tensor.flatten(0, -1);
    let index = flat.isfinite().logical_not().to_kind(Kind::Int).argmax(0, false).int64_value(&[]);
    Err(Error::NotFinite { at: at(), index: index as usize, found: flat.double_value(&[index]) })
}
