//! Where is the model of a given name? The name may be a folder, a GGUF file, a bundled name or a hub id.

use std::path::{Path, PathBuf};

use super::gguf;
use crate::error::{Error, Result};
use crate::file;

/// The bundled names: those in [`INSTALLED`] and [`EMBEDDED`].
pub(crate) const BUNDLED: [&str; 4] = ["minilm", "smollm2", "induction", "english"];

/// The models that `make setup` installs in the cache folder.
const INSTALLED: [&str; 2] = ["minilm", "smollm2"];

/// The weights of an installed model that came as a GGUF file.
const AS_GGUF: &str = "model.gguf";

/// The names and bytes of a bundled checkpoint's files.
type Files = [(&'static str, &'static [u8]); 3];

/// The files of a small model that is compiled into the library, made by `headscope lab train NAME`.
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

/// headscope's cache folder: `HEADSCOPE_CACHE` or, by default, `headscope` in the user's cache folder.
pub fn cache_folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HEADSCOPE_CACHE").unwrap_or_else(|| {
        let home = || set("HOME").unwrap_or_default().join(".cache");
        set("XDG_CACHE_HOME").unwrap_or_else(home).join("headscope")
    })
}

/// The folder, or the GGUF file, of the model called `name`, which may end in `@` and a revision.
pub(crate) fn find(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    let path = Path::new(name);
    if let (false, Some((of, own))) = (path.exists(), name.rsplit_once('@')) {
        return match revision {
            Some(other) if other != own => Err(Error::argument("revision", format!("`{own}`, as in the name"), other)),
            _ => find(of, Some(own)),
        };
    }
    if path.is_dir() {
        return revision.map_or_else(|| Ok(path.to_owned()), |revision| sub_folder(path, revision));
    }
    if path.is_file() && path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
        return without_revision(name, revision).map(|()| path.to_owned());
    }
    if let Some((name, files)) = EMBEDDED.iter().find(|(own, _)| *own == name) {
        without_revision(name, revision)?;
        return unpack(name, files);
    }
    if INSTALLED.contains(&name) {
        without_revision(name, revision)?;
        return installed(name);
    }
    if !is_hub_id(name) {
        return Err(not_found(name, "there is no such folder, and it is no hub id".to_owned()));
    }
    fetch(name, revision.unwrap_or("main"))
}

/// The checkpoint of this name in a folder of several.
fn sub_folder(folder: &Path, revision: &str) -> Result<PathBuf> {
    let there = revisions_in(folder)?;
    if there.iter().any(|known| known == revision) {
        return Ok(folder.join(revision));
    }
    let there = if there.is_empty() { "no folder with a config.json".to_owned() } else { there.join(", ") };
    Err(not_found(&folder.display().to_string(), format!("of revision `{revision}` there is none; in it is {there}")))
}

/// The sub-folders that are checkpoints, sorted.
pub(super) fn revisions_in(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut found = vec![];
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        if entry.path().join("config.json").is_file() {
            found.extend(entry.file_name().into_string());
        }
    }
    found.sort();
    Ok(found)
}

/// Fails if there is a revision where there can be none.
fn without_revision(name: &str, revision: Option<&str>) -> Result<()> {
    let expected = || format!("none, as `{name}` has a single one");
    revision.map_or(Ok(()), |revision| Err(Error::argument("revision", expected(), revision)))
}

/// The folder of a model that `make setup` installs. One that came as a GGUF file is put into Hugging Face layout when it is
/// asked for first, for a folder of float32 loads faster and is what other libraries read. Where the cache cannot be
/// written, the GGUF file itself does.
fn installed(name: &str) -> Result<PathBuf> {
    let folder = cache_folder().join(name);
    let gguf = folder.join(AS_GGUF);
    if gguf::is_converted(&folder) {
        return Ok(folder);
    }
    if !gguf.exists() {
        return Err(not_found(name, format!("{} is not there; `make {name}` installs it", folder.display())));
    }
    match gguf::converted(&gguf, &folder) {
        Ok(()) => Ok(folder),
        Err(Error::Io { .. }) => Ok(gguf),
        Err(other) => Err(other),
    }
}

#[cfg(feature = "hub")]
use super::hub::fetch;

#[cfg(not(feature = "hub"))]
fn fetch(name: &str, _: &str) -> Result<PathBuf> {
    Err(not_found(name, "this build of headscope has no access to the hub (its feature `hub` is off)".to_owned()))
}

/// Writes an embedded model's files to the cache, or to the temporary folder if the cache is not writable, and returns
/// their folder.
fn unpack(name: &str, files: &[(&str, &[u8])]) -> Result<PathBuf> {
    let write = |folder: PathBuf| {
        std::fs::create_dir_all(&folder).map_err(Error::io("make", &folder))?;
        for (file, bytes) in files {
            let path = folder.join(file);
            // Another version of the library may have written a different file.
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

pub(super) fn not_found(name: &str, reason: String) -> Error {
    Error::ModelNotFound { name: name.to_owned(), reason, bundled: BUNDLED.to_vec() }
}
