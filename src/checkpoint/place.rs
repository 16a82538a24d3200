//! From a model's name to a folder on disk: a folder itself, a bundled name, or a hub id.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::error::{Error, Result};

/// Models that `make setup` installs, by name.
pub(crate) const BUNDLED: [&str; 1] = ["minilm"];

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
    if BUNDLED.contains(&name) {
        let folder = cache_folder().join(name);
        let reason = || format!("{} is not there; `make minilm` installs it", folder.display());
        return if folder.join("config.json").exists() { Ok(folder) } else { Err(not_found(name, reason())) };
    }
    if !is_hub_id(name) {
        return Err(not_found(name, "there is no such folder, and it is no hub id".to_owned()));
    }
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.unwrap_or("main").to_owned());
    let repo = if offline() { Hub::Cached(Cache::from_env().repo(repo)) } else { Hub::online(name, repo)? };
    repo.fetch(name)
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
        let api = ApiBuilder::from_env().with_progress(std::io::IsTerminal::is_terminal(&std::io::stderr())).build();
        Ok(Self::Online(Box::new(api.map_err(|reason| not_found(name, reason.to_string()))?.repo(repo))))
    }

    fn file(&self, file: &str) -> Result<PathBuf, String> {
        match self {
            Self::Online(repo) => repo.get(file).map_err(|reason| format!("{file}: {reason}")),
            Self::Cached(repo) => {
                repo.get(file).ok_or_else(|| format!("{file} is not in the cache, and offline mode is on"))
            }
        }
    }

    /// Fetches what a checkpoint consists of and returns its folder.
    fn fetch(&self, name: &str) -> Result<PathBuf> {
        let need = |file: &str| self.file(file).map_err(|reason| not_found(name, reason));
        let config = need("config.json")?;
        // A checkpoint may have no tokenizer; one that is there but cannot be fetched shows when texts are encoded.
        let _ = self.file("tokenizer.json");
        if self.file("model.safetensors").is_err() {
            let index = need("model.safetensors.index.json")?;
            for shard in shards(&index)? {
                need(&shard)?;
            }
        }
        Ok(config.parent().map(Path::to_owned).unwrap_or_default())
    }
}

/// The files that an index names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    let text = std::fs::read(index).map_err(Error::io("read", index))?;
    let wrong = |found: String| Error::Format {
        path: index.to_owned(),
        at: "weight_map".to_owned(),
        expected: "an object of file names".to_owned(),
        found,
    };
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|reason| wrong(reason.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| wrong("none".to_owned()))?;
    let mut files: Vec<String> = map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

fn not_found(name: &str, reason: String) -> Error {
    Error::ModelNotFound { name: name.to_owned(), reason, bundled: BUNDLED.to_vec() }
}
