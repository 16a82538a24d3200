//! How does a model get here from the hub? Its files are downloaded into the hub's own cache.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::locate::not_found;
use super::source::read_index;
use crate::error::Result;

/// The folder of a model on the hub. Downloads the files that are not cached.
pub(super) fn fetch(name: &str, revision: &str) -> Result<PathBuf> {
    Hub::new(name, revision)?.fetch(name)
}

/// The hub's cache folder if `HF_HUB_CACHE` is set; otherwise `HF_HOME` decides.
fn hub_cache() -> Option<PathBuf> {
    std::env::var_os("HF_HUB_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether the user disabled network access with the hub's own variables.
fn offline() -> bool {
    let yes =
        |name: &str| std::env::var(name).is_ok_and(|v| ["1", "on", "true", "yes"].contains(&v.to_lowercase().as_str()));
    yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE")
}

/// A repository on the hub, or the cached part of it.
enum Hub {
    Online(Box<ApiRepo>),
    Cached(CacheRepo),
}

impl Hub {
    fn new(name: &str, revision: &str) -> Result<Self> {
        let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        if offline() {
            return Ok(Self::Cached(hub_cache().map_or_else(Cache::from_env, Cache::new).repo(repo)));
        }
        Self::online(name, repo)
    }

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

    /// An optional file of a checkpoint; `None` if it does not exist.
    fn optional(&self, name: &str, file: &str) -> Result<Option<PathBuf>> {
        match self.file(file) {
            Ok(path) => Ok(Some(path)),
            Err(missing) if missing.is_absent => Ok(None),
            Err(missing) => Err(not_found(name, missing.reason)),
        }
    }

    /// Downloads the files of a checkpoint and returns their folder.
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

/// Why a file is not available.
struct Missing {
    /// Whether the file does not exist, as far as is known.
    is_absent: bool,
    reason: String,
}

/// Whether the hub answered that there is no such file.
fn says_not_found(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => matches!(**error, ureq::Error::Status(404, _)),
        ApiError::TooManyRetries(last) => says_not_found(last),
        _ => false,
    }
}
