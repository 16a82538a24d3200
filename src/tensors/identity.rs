//! Which weights are these? The hash of the files that they were read from, or of the numbers themselves.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};
use tch::Tensor;

use super::Stored;
use crate::error::{Error, Result};
use crate::file;

/// Identifies the weights of a model; hashed on demand.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    /// The files that were read, as they were then; empty for a model made in memory.
    files: Vec<Stamp>,
    /// How often each parameter had been changed in place by the time the files were read.
    read: Vec<i64>,
    /// The last hash, and how often each parameter had been changed by then.
    known: Mutex<Option<(Vec<i64>, Hashed)>>,
}

/// A hash in hexadecimal, and what it is a hash of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hashed {
    /// The weight files, whose numbers the model still has.
    Files(String),
    /// Names, types, shapes and numbers of all parameters.
    Parameters(String),
}

impl Hashed {
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Files(hex) | Self::Parameters(hex) => hex,
        }
    }

    /// What was hashed, as one word.
    pub(crate) fn of(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Parameters(_) => "parameters",
        }
    }
}

/// A file as it was when it was read: another file, or the same one after a change, has another stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    path: PathBuf,
    of: (u64, u64, u64, i64, i64),
}

impl Stamp {
    pub(crate) fn new(path: &Path, found: &Metadata) -> Self {
        let of = (found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        Self { path: path.to_owned(), of }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is still the one that was read.
    fn holds(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| Self::new(&self.path, &found) == *self)
    }
}

impl Identity {
    /// The identity of a model whose parameters were read from `files`.
    pub(crate) fn of_files(files: Vec<Stamp>, parameters: &[(String, &Tensor)]) -> Result<Self> {
        Ok(Self { files, read: changes(parameters)?, known: Mutex::default() })
    }

    /// The hash of a model's weights as they are now. If they changed in memory (in place too) or their files did, the parameters
    /// themselves are hashed.
    pub(crate) fn hash(&self, parameters: &[(String, &Tensor)]) -> Result<Hashed> {
        let now = changes(parameters)?;
        // A thread that panicked while it held the lock left a whole value.
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((then, hashed)) = &*known
            && *then == now
        {
            return Ok(hashed.clone());
        }
        let hashed = match self.files_hash(&now)? {
            Some(hex) => Hashed::Files(hex),
            None => Hashed::Parameters(hash_of(parameters)?),
        };
        *known = Some((now, hashed.clone()));
        Ok(hashed)
    }

    /// The hash of the files, if they and the parameters are unchanged since they were read.
    fn files_hash(&self, now: &[i64]) -> Result<Option<String>> {
        let holds = || !self.files.is_empty() && self.read == now && self.files.iter().all(Stamp::holds);
        if !holds() {
            return Ok(None);
        }
        let paths: Vec<PathBuf> = self.files.iter().map(|stamp| stamp.path.clone()).collect();
        let hex = file::sha256_of(&paths)?;
        Ok(holds().then_some(hex)) // not of a file that changed meanwhile
    }
}

/// How often each parameter has been changed in place, as libtorch counts it.
fn changes(parameters: &[(String, &Tensor)]) -> Result<Vec<i64>> {
    let count = |(name, tensor): &(String, &Tensor)| {
        tensor.f_internal_version().map_err(Error::torch(format!("asking for the version of `{name}`")))
    };
    parameters.iter().map(count).collect()
}

/// SHA-256 over the names, types, shapes and numbers of `parameters`, the same on every device.
fn hash_of(parameters: &[(String, &Tensor)]) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in parameters {
        let stored = Stored::of(name, tensor)?;
        hash.update(format!("{name} {:?} {:?}\n", stored.dtype, stored.shape));
        hash.update(&stored.bytes);
    }
    Ok(format!("{:x}", hash.finalize()))
}
