//! From a model's name to a folder on disk: a folder itself, a bundled name, or a hub id.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::source::read_index;
use crate::error::{Error, Result};
use crate::file;

/// Models that have a name: one that `make setup` installs, and those in [`EMBEDDED`].
pub(crate) const BUNDLED: [&str; 3] = ["minilm", "induction", "english"];

/// The names and bytes of a bundled checkpoint's files.
type Files = [(&'static str, &'static [u8]); 3];

/// The files of a small model that is part of the library: `headscope lab train NAME` made them.
macro_rules! embedded {
    ($($name:literal),*) => {[$(
        ($name, [
            ("config.json", include_bytes!(concat!("../../fixtures/checkpoints/", $name, "/config.json")).as_slice()),
            ("model.safetensors", include_bytes!(concat!("../../fixtures/checkpoints/", $name, "/model.safetensors"))),
            ("tokenizer.json", include_bytes!(concat!("../../fixtures/checkpoints/", $name, "/tokenizer.json"))),
        ])
    ),*]};
}
const EMBEDDED: [(&str, Files); 2] = embedded!["induction", "english"];

/// Headscope's cache folder: `HEADSCOPE_CACHE`, or `headscope` in the user's cache.
pub fn cache_folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HEADSCOPE_CACHE").unwrap_or_else(|| {
        let home = || set("HOME").unwrap_or_default().join(".cache");
        set("XDG_CACHE_HOME").unwrap_or_else(home).join("headscope")
    })
}

/// The folder that holds the model called `name`.
pub(crate) fn find(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return Ok(folder.to_owned());
    }
    if let Some((name, files)) = EMBEDDED.iter().find(|(own, _)| *own == name) {
        return unpack(name, files);
    }
    if BUNDLED.contains(&name) {
        let folder = cache_folder().join(name);
        let reason = || format!("{} is not there; `make minilm` installs it", folder.display());
        return if folder.join("config.json").exists() { Ok(folder) } else { Err(not_found(name, reason())) };
    }
    if !is_hub_id(name) {
        return Err(not_found(name, "there is no such folder, and it is no hub id".to_owned()));
    }
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.unwrap_or("main").to_owned());
    let repo = if offline() {
        Hub::Cached(hub_cache().map_or_else(Cache::from_env, Cache::new).repo(repo))
    } else {
        Hub::online(name, repo)?
    };
    repo.fetch(name)
}

/// The folder with an embedded model's files: in the cache, or where that cannot be written, among temporary files.
fn unpack(name: &str, files: &[(&str, &[u8])]) -> Result<PathBuf> {
    let write = |folder: PathBuf| {
        std::fs::create_dir_all(&folder).map_err(Error::io("make", &folder))?;
        for (file, bytes) in files {
            let path = folder.join(file);
            // Another version of the library may have left another one there.
            if std::fs::read(&path).ok().as_deref() != Some(*bytes) {
                file::write_bytes(&path, bytes)?;
            }
        }
        Ok(folder)
    };
    let version = concat!("bundled-", env!("CARGO_PKG_VERSION"));
    write(cache_folder().join(version).join(name))
        .or_else(|_: Error| write(std::env::temp_dir().join(format!("headscope-{version}")).join(name)))
}

/// Whether `name` has the form `model` or `owner/model`.
fn is_hub_id(name: &str) -> bool {
    let word = |part: &str| {
        let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        !part.is_empty() && part.len() <= 96 && plain && !part.starts_with('.')
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(word)
}

/// The hub's cache folder where `HF_HUB_CACHE` names one; else `HF_HOME` decides.
fn hub_cache() -> Option<PathBuf> {
    std::env::var_os("HF_HUB_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether the user asked for no network, by the hub's own variables.
fn offline() -> bool {
    let yes =
        |name: &str| std::env::var(name).is_ok_and(|v| ["1", "on", "true", "yes"].contains(&v.to_lowercase().as_str()));
    yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE")
}

/// A repository on the hub, or what the cache has of it.
enum Hub {
    Online(Box<ApiRepo>),
    Cached(CacheRepo),
}

impl Hub {
    fn online(name: &str, repo: Repo) -> Result<Self> {
        let mut api = ApiBuilder::from_env().with_progress(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        if let Some(folder) = hub_cache() {
            api = api.with_cache_dir(folder);
        }
        if let Ok(token) = std::env::var("HF_TOKEN") {
            api = api.with_token(Some(token));
        }
        Ok(Self::Online(Box::new(api.build().map_err(|reason| not_found(name, reason.to_string()))?.repo(repo))))
    }

    fn file(&self, file: &str) -> Result<PathBuf, Missing> {
        match self {
            Self::Online(repo) => repo
                .get(file)
                .map_err(|error| Missing { is_absent: says_not_found(&error), reason: format!("{file}: {error}") }),
            Self::Cached(repo) => repo.get(file).ok_or_else(|| Missing {
                is_absent: true,
                reason: format!("{file} is not in the cache, and offline mode is on"),
            }),
        }
    }

    /// A file that a checkpoint may do without; nothing where there is none.
    fn optional(&self, name: &str, file: &str) -> Result<Option<PathBuf>> {
        match self.file(file) {
            Ok(path) => Ok(Some(path)),
            Err(missing) if missing.is_absent => Ok(None),
            Err(missing) => Err(not_found(name, missing.reason)),
        }
    }

    /// Fetches what a checkpoint consists of and returns its folder.
    fn fetch(&self, name: &str) -> Result<PathBuf> {
        let need = |file: &str| self.file(file).map_err(|missing| not_found(name, missing.reason));
        let config = need("config.json")?;
        for file in ["tokenizer.json", "generation_config.json"] {
            self.optional(name, file)?;
        }
        if self.optional(name, "model.safetensors")?.is_none() {
            let index = need("model.safetensors.index.json")?;
            let shards: BTreeSet<String> = read_index(&index)?.into_values().collect();
            shards.iter().try_for_each(|shard| need(shard).map(drop))?;
        }
        Ok(config.parent().map(Path::to_owned).unwrap_or_default())
    }
}

/// Why a file could not be had.
struct Missing {
    /// There is no such file, as far as is known.
    is_absent: bool,
    reason: String,
}

/// Whether the hub answered, and what it answered is that there is no such file.
fn says_not_found(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => matches!(**error, ureq::Error::Status(404, _)),
        ApiError::TooManyRetries(last) => says_not_found(last),
        _ => false,
    }
}

fn not_found(name: &str, reason: String) -> Error {
    Error::ModelNotFound { name: name.to_owned(), reason, bundled: BUNDLED.to_vec() }
}
