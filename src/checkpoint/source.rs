//! How are a checkpoint's tensors read? From one safetensors file, from several listed in an index, or from a GGUF file.
//!
//! Each tensor is read block by block into its own memory and converted on the way, so loading a model takes little
//! more memory than the model. Files are not memory-mapped: if one shrinks while it is read, the result is an error
//! instead of a crash.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use tch::{Device, Kind, TchError, Tensor};

use super::coding::Coding;
use super::order::Order;
use crate::error::{Error, Result};
use crate::file;
use crate::tensors::{Stamp, onednn, wide};

/// The tensors of a checkpoint folder, by name.
pub(crate) struct Source {
    folder: PathBuf,
    files: Vec<(PathBuf, File)>,
    /// The state of the files when they were opened.
    stamps: Vec<Stamp>,
    tensors: BTreeMap<String, Place>,
    used: RefCell<BTreeSet<String>>,
    kind: Kind,
    device: Device,
}

/// The location of a tensor.
pub(super) struct Place {
    /// The number of its file.
    pub file: usize,
    /// How its numbers are coded; the name of the coding if it is none that is read.
    pub coding: Result<Coding, String>,
    pub shape: Vec<usize>,
    pub bytes: Range<u64>,
    /// What the file did to the tensor, which is undone.
    pub order: Order,
}

/// A tensor in its file, checked but not yet read.
struct Stored<'a> {
    name: &'a str,
    path: &'a Path,
    file: &'a File,
    coding: Coding,
    /// The length of a row; if the tensor is not a matrix, as few numbers as can be read apart.
    width: i64,
    bytes: Range<u64>,
}

impl Stored<'_> {
    /// Passes the values to `each`, converted to `kind`, some rows at a time as `[row, width]`, with the index of their
    /// first row, until `each` returns `false`. Returns whether it never did.
    fn blocks(&self, kind: Kind, mut each: impl FnMut(i64, &Tensor) -> Result<bool>) -> Result<bool> {
        let Range { start, end } = self.bytes;
        let width = self.width as usize;
        let row = width / self.coding.numbers() * self.coding.bytes();
        let most = row.max(width * self.coding.kind().elt_size_in_bytes());
        let at_once = (BLOCK / most.max(1)).max(1) * row;
        let mut buffer = vec![0; at_once.min((end - start) as usize)];
        let mut numbers = vec![];
        let mut first = 0;
        for at in (start..end).step_by(at_once.max(1)) {
            let bytes = &mut buffer[..at_once.min((end - at) as usize)];
            self.file.read_exact_at(bytes, at).map_err(Error::io("read", self.path))?;
            let size = [(bytes.len() / row) as i64, self.width];
            let count = size[0];
            let block = match self.coding {
                Coding::Floats(kind) => Tensor::f_from_data_size(bytes, &size, kind),
                Coding::Blocks(blocks) => {
                    blocks.decode(bytes, &mut numbers);
                    Tensor::f_from_slice(&numbers).and_then(|block| block.f_view(size))
                }
            };
            let block = block.and_then(|block| block.f_to_kind(kind));
            if !each(first, &block.map_err(Error::torch(format!("reading tensor `{}`", self.name)))?)? {
                return Ok(false);
            }
            first += count;
        }
        Ok(true)
    }
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Bytes that are read and converted at a time: they fit in a core's cache.
const BLOCK: usize = 1 << 19;
/// The longest header that the safetensors format allows.
const LONGEST_HEADER: u64 = 100_000_000;

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Source {
    /// Opens the weights in a folder. Tensors are converted to `kind` on `device` when they are taken.
    pub(crate) fn open(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let mut source = Self {
            folder: folder.to_owned(),
            files: vec![],
            stamps: vec![],
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
            // Old checkpoints call the weight and bias of a norm gamma and beta.
            let new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
            let path = source.files[place.file].0.clone();
            if source.tensors.insert(new.clone(), place).is_some() {
                let (expected, found) = (format!("one tensor for `{new}`"), "two".to_owned());
                return Err(Error::Format { path, at: format!("tensor `{name}`"), expected, found });
            }
        }
        Ok(source)
    }

    /// The weights in one file of another format, whose tensors are where `tensors` says.
    pub(super) fn of_file(
        path: &Path,
        file: File,
        tensors: BTreeMap<String, Place>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let stamps = vec![Stamp::new(path, &file.metadata().map_err(Error::io("read", path))?)];
        let files = vec![(path.to_owned(), file)];
        Ok(Self { folder: path.to_owned(), files, stamps, tensors, used: RefCell::default(), kind, device })
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
        for (name, place) in places(path, &file, found.len(), self.files.len())? {
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(Error::Format {
                    path: path.to_owned(),
                    at: name,
                    expected: "each tensor in one shard".to_owned(),
                    found: "it in two".to_owned(),
                });
            }
        }
        self.files.push((path.to_owned(), file));
        self.stamps.push(Stamp::new(path, &found));
        Ok(())
    }

    /// The folder of the checkpoint.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The weight files.
    pub(crate) fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    /// The names and shapes of all tensors.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), place.shape.as_slice()))
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether the name of some tensor contains `part`.
    pub(crate) fn has_part(&self, part: &str) -> bool {
        self.tensors.keys().any(|name| name.contains(part))
    }

    /// The shape of the tensor `name`, if there is one.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.shape.as_slice())
    }

    /// `[0, width]`, a stand-in for a matrix that the checkpoint does not have.
    pub(crate) fn empty(&self, width: usize) -> Tensor {
        Tensor::zeros([0, width as i64], (self.kind, self.device))
    }

    /// `[width]`, the weights of a norm that has none.
    pub(crate) fn ones(&self, width: usize) -> Tensor {
        Tensor::ones([width as i64], (self.kind, self.device))
    }

    /// Whether the name of some tensor begins with `prefix`.
    pub(crate) fn has_prefix(&self, prefix: &str) -> bool {
        self.tensors.keys().any(|name| name.starts_with(prefix))
    }

    /// The tensor `name`, which must have this shape and be finite.
    pub(crate) fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        self.read(name, shape, || Tensor::f_empty(&size, (self.kind, self.device)))
    }

    /// The matrix `name`, stored `[in, out]`, in the memory layout that is fastest for products.
    pub(crate) fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        self.read(name, &[rows, columns], || onednn::room_for([rows as i64, columns as i64], self.kind, self.device))
    }

    /// Reads the tensor `name` into `room`, which is allocated only after the shape is checked.
    fn read(&self, name: &str, shape: &[usize], room: impl FnOnce() -> Result<Tensor, TchError>) -> Result<Tensor> {
        let stored = self.stored(name, shape)?;
        let no_room = || Error::torch(format!("making room for tensor `{name}`"));
        let tensor = room().map_err(no_room())?;
        let order = self.tensors.get(name).map(|place| place.order).unwrap_or_default();
        let rows = match shape {
            [rows, columns] if order == Order::Turned => {
                Tensor::f_empty([*columns as i64, *rows as i64], (self.kind, self.device)).map_err(no_room())?
            }
            [_, _] => tensor.shallow_clone(),
            _ => tensor.view([-1, stored.width]),
        };
        stored.blocks(self.kind, |first, block| {
            finite(block, first, || format!("{}: tensor `{name}`", stored.path.display()))?;
            rows.narrow(0, first, block.size()[0]).copy_(block);
            Ok(true)
        })?;
        if order != Order::Same {
            let own = if order == Order::Turned { &rows } else { &tensor };
            tensor.shallow_clone().copy_(&order.undone(own));
        }
        self.used.borrow_mut().insert(name.to_owned());
        Ok(tensor)
    }

    /// Whether the tensor `name`, which must have the shape of the matrix `other`, has the same values.
    pub(crate) fn repeats(&self, name: &str, other: &Tensor) -> Result<bool> {
        let shape: Vec<usize> = other.size().iter().map(|&n| n as usize).collect();
        let same = self.stored(name, &shape)?.blocks(self.kind, |first, block| {
            Ok(other.narrow(0, first, block.size()[0]).equal(&block.to_device(self.device)))
        })?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(same)
    }

    /// The tensor `name` in its file. It must have this shape and a floating-point type.
    fn stored<'a>(&'a self, name: &'a str, shape: &[usize]) -> Result<Stored<'a>> {
        let Some(place) = self.tensors.get(name) else {
            let expected = shape.iter().map(|&n| n as i64).collect();
            return Err(Error::MissingTensor { path: self.folder.clone(), tensor: name.to_owned(), expected });
        };
        let (path, file) = &self.files[place.file];
        let wrong = |expected: String, found: String| {
            Err(Error::Format { path: path.clone(), at: format!("tensor `{name}`"), expected, found })
        };
        if place.shape != shape {
            return wrong(format!("shape {shape:?}"), format!("{:?}", place.shape));
        }
        let coding = match &place.coding {
            Ok(coding) => *coding,
            Err(other) => return wrong("dtype F64, F32, F16 or BF16".to_owned(), other.clone()),
        };
        let width = match shape {
            [rows, _] if place.order == Order::Turned => *rows,
            [_, columns] => *columns,
            _ => coding.numbers(),
        };
        Ok(Stored { name, path, file, coding, width: width as i64, bytes: place.bytes.clone() })
    }

    /// Returns an error if there are tensors that the family neither used nor may ignore.
    pub(crate) fn finish(&self, family: &'static str, ignores: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.borrow();
        let left = self.tensors.keys().filter(|name| !used.contains(*name) && !ignores(name));
        let tensors: Vec<String> = left.cloned().collect();
        if tensors.is_empty() {
            return Ok(());
        }
        Err(Error::SurplusTensors { path: self.folder.clone(), family, tensors })
    }
}

/// The tensors listed in an index, and the file of each. The index comes from outside, so names of files in other
/// folders are rejected.
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

/// Locates every tensor of a safetensors file of `length` bytes. The safetensors crate checks that the offsets neither
/// overlap nor leave gaps, and that they agree with shapes and types.
fn places(path: &Path, file: &File, length: u64, number: usize) -> Result<Vec<(String, Place)>> {
    let wrong = |found: String| Error::Format {
        path: path.to_owned(),
        at: "header".to_owned(),
        expected: "a whole safetensors file".to_owned(),
        found,
    };
    let mut size = [0; 8];
    if length < size.len() as u64 {
        return Err(wrong(format!("{length} bytes")));
    }
    file.read_exact_at(&mut size, 0).map_err(Error::io("read", path))?;
    let header = u64::from_le_bytes(size);
    if header > LONGEST_HEADER.min(length - size.len() as u64) {
        return Err(wrong(format!("a header of {header} bytes in a file of {length}")));
    }
    let mut text = vec![0; header as usize];
    let start = size.len() as u64 + header;
    file.read_exact_at(&mut text, size.len() as u64).map_err(Error::io("read", path))?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|reason| wrong(reason.to_string()))?;
    if start + metadata.data_len() as u64 != length {
        return Err(wrong(format!("{length} bytes where the header says {start} + {}", metadata.data_len())));
    }
    let place = |name: String, info: &safetensors::tensor::TensorInfo| {
        let (from, to) = info.data_offsets;
        let bytes = start + from as u64..start + to as u64;
        let coding = match info.dtype {
            Dtype::F64 => Ok(Coding::Floats(Kind::Double)),
            Dtype::F32 => Ok(Coding::Floats(Kind::Float)),
            Dtype::F16 => Ok(Coding::Floats(Kind::Half)),
            Dtype::BF16 => Ok(Coding::Floats(Kind::BFloat16)),
            other => Err(format!("{other:?}")),
        };
        (name, Place { file: number, coding, shape: info.shape.clone(), bytes, order: Order::Same })
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| place(name, info)).collect())
}

/// Returns an error at the first value that is not finite. `first` is the index of the first of these rows in the
/// tensor.
fn finite(rows: &Tensor, first: i64, at: impl Fn() -> String) -> Result<()> {
    // One pass if all is well: a sum over values that are not all finite is not finite.
    if rows.sum(wide(rows.kind())).double_value(&[]).is_finite() {
        return Ok(());
    }
    let (flat, before) = (rows.flatten(0, -1), first * rows.size()[1]);
    let holes = flat.isfinite().logical_not();
    if holes.any().int64_value(&[]) == 0 {
        return Ok(()); // the values are finite, but their sum overflows
    }
    let index = holes.to_kind(Kind::Int).argmax(0, false).int64_value(&[]);
    Err(Error::NotFinite { at: at(), index: (before + index) as usize, found: flat.double_value(&[index]) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Tensors of several blocks and of every type come back with the same values in any type that can hold them; the
    /// first value that is not finite is reported; and a file that has shrunk since it was opened gives an error.
    #[test]
    fn tensors_are_read_in_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WHOLE);
        let (rows, n) = (600, 515);
        let values =
            (Tensor::arange(rows * n, (Kind::Float, Device::Cpu)).remainder(2048.0) / 8.0 - 100.0).view([rows, n]);
        assert!(values.numel() * 2 > BLOCK);
        let kinds = [("f64", Kind::Double), ("f32", Kind::Float), ("f16", Kind::Half)];
        let mut tensors: Vec<_> =
            kinds.iter().map(|(name, kind)| ((*name).to_owned(), values.to_kind(*kind))).collect();
        let holed = values.copy();
        let _ = holed.get(rows - 1).narrow(0, n - 1, 1).fill_(f64::INFINITY);
        tensors.push(("holed".to_owned(), holed));
        tensors.push(("none".to_owned(), values.narrow(0, 0, 0)));
        tensors.push(("large".to_owned(), values.ones_like() * 3e38)); // their sum overflows
        tensors.push(("flat".to_owned(), values.flatten(0, -1)));
        Tensor::write_safetensors(&tensors, &path).unwrap();
        let shape = [rows as usize, n as usize];
        for kind in [Kind::Float, Kind::Double] {
            let source = Source::open(folder.path(), kind, Device::Cpu).unwrap();
            for (name, _) in kinds {
                let found = source.take(name, &shape).unwrap();
                assert!(found.kind() == kind && found.equal(&values.to_kind(kind)), "{name}");
                assert!(source.repeats(name, &values.to_kind(kind)).unwrap());
                assert!(!source.repeats("holed", &values.to_kind(kind)).unwrap());
            }
            let turned = source.matrix("f32", shape[0], shape[1]).unwrap();
            assert!(turned.equal(&values.to_kind(kind)));
            assert!(source.take("flat", &[shape[0] * shape[1]]).unwrap().equal(&values.to_kind(kind).flatten(0, -1)));
            let large = source.take("large", &shape).unwrap();
            assert!(large.equal(&(values.ones_like() * 3e38).to_kind(kind)));
            assert_eq!(source.take("none", &[0, n as usize]).unwrap().numel(), 0);
            let holed = source.take("holed", &shape).unwrap_err();
            assert!(matches!(holed, Error::NotFinite { index, .. } if index == (rows * n) as usize - 1), "{holed}");
            assert!(source.take("f32", &[n as usize, 2]).is_err());
        }
        let source = Source::open(folder.path(), Kind::Float, Device::Cpu).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length / 8).unwrap();
        let refused: Vec<_> = kinds.iter().filter_map(|(name, _)| source.take(name, &shape).err()).collect();
        assert!(refused.len() >= 2 && refused.iter().all(|error| matches!(error, Error::Io { .. })), "{refused:?}");
    }
}
