//! How do files stay intact? They are written whole or not at all, by one process at a time, and identified by their
//! hash.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// SHA-256 of `bytes`, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// SHA-256 of the concatenated contents of `files`, in hexadecimal.
pub(crate) fn sha256_of(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        std::io::copy(&mut file, &mut hash).map_err(Error::io("read", path))?;
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// `path` with `ending` appended to the whole name: `table.csv` and `.partial` give `table.csv.partial`.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Keeps other processes from working on the same file or folder for as long as the lock lives.
///
/// The operating system holds the lock, on the file `PATH.lock`, and releases it when the process ends for whatever
/// reason: a lock file left by a killed process is taken over. The file contains the id of the holding process, for
/// error messages.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks `path`, which itself need not exist. On a file system without locks, this keeps nobody out.
    ///
    /// # Errors
    /// If another process, or another part of this one, holds the lock: [`Error::Held`], without waiting.
    pub(crate) fn hold(path: &Path) -> Result<Self> {
        let lock = beside(path, ".lock");
        let io = || Error::io("lock", &lock);
        loop {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock).map_err(io())?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // A lock just taken may not have its process id written yet; the message then goes without it.
                    let _ = file.take(20).read_to_string(&mut holder);
                    return Err(Error::Held { path: path.to_owned(), holder: holder.trim().parse().ok() });
                }
                Err(TryLockError::Error(reason)) if reason.kind() != std::io::ErrorKind::Unsupported => {
                    return Err(io()(reason));
                }
                _ => {}
            }
            // The previous holder may have removed the file after we opened it and before we locked it. Our lock would
            // then be on a file that nobody else can find.
            let (own, found) = (file.metadata().map_err(io())?, std::fs::metadata(&lock));
            if !found.is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())) {
                continue;
            }
            let written =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
            written.map_err(io())?;
            return Ok(Self { path: lock, file });
        }
    }
}

impl Lock {
    /// [`Lock::hold`], once no other process holds the lock.
    ///
    /// # Errors
    /// If the lock file cannot be made.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        loop {
            match Self::hold(path) {
                Err(Error::Held { .. }) => std::thread::sleep(std::time::Duration::from_millis(50)),
                done => return done,
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Remove the file while it is still locked, so that it is certainly ours. A file left behind does no harm.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

/// Writes `path` through a temporary file in the same folder, which is renamed only once `write` has succeeded.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let (file, temporary) = temporary(path)?.into_parts();
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|reason| Error::io("write", path)(reason.into_error()))?;
    file.sync_all().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|reason| Error::io("write", path)(reason.error))
}

/// [`write_whole`] for a writer that takes a path: `write` fills the temporary file at the one that it is given.
pub(crate) fn write_whole_at(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary(path)?.into_temp_path();
    let permissions = std::fs::metadata(&temporary).map_err(Error::io("write", path))?.permissions();
    write(&temporary)?;
    // Writers that make the file once more may make it private.
    std::fs::set_permissions(&temporary, permissions).map_err(Error::io("write", path))?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|reason| Error::io("write", path)(reason.error))
}

/// A temporary file in the folder of `path`.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile> {
    let made =
        tempfile::Builder::new().prefix(".headscope-").permissions(usual_permissions()).tempfile_in(folder(path));
    // Leave the name of the temporary file out of the message: it means nothing to the caller.
    made.map_err(|reason| Error::io("write", path)(reason.kind().into()))
}

/// Returns an error if the folder of `path` does not exist.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    std::fs::read_dir(folder).map(drop).map_err(Error::io("write in", folder))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Temporary files are private to their owner. The finished file gets the usual permissions, subject to the user's
/// umask.
fn usual_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

/// The most bytes of a file that is read whole: far more than any config, index or tokenizer has.
const MOST: u64 = 1 << 28;

/// Reads a whole file. Devices, pipes and implausibly large files are rejected.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_file() || metadata.len() > MOST {
        let expected = format!("a file of at most {MOST} bytes");
        let found = if metadata.is_file() { format!("{} bytes", metadata.len()) } else { "no file".to_owned() };
        return Err(Error::Format { path: path.to_owned(), at: "the file".to_owned(), expected, found });
    }
    std::fs::read(path).map_err(Error::io("read", path))
}

/// The most bytes that a packed file may unpack to.
const MOST_UNPACKED: u64 = 1 << 31;

/// Reads a text file, unpacking it if it is packed by gzip.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    text(read(path)?, path)
}

/// The text in `bytes`, which are UTF-8, plain or packed by gzip; `path` names it in errors.
pub(crate) fn text(mut bytes: Vec<u8>, path: &Path) -> Result<String> {
    let wrong = |at: String, found: String| Error::Format {
        path: path.to_owned(),
        at,
        expected: "UTF-8 text, plain or packed by gzip".to_owned(),
        found,
    };
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = vec![];
        let packed = flate2::read::MultiGzDecoder::new(bytes.as_slice());
        let read = packed.take(MOST_UNPACKED).read_to_end(&mut unpacked);
        read.map_err(|reason| wrong("the packed data".to_owned(), reason.to_string()))?;
        bytes = unpacked;
    }
    String::from_utf8(bytes)
        .map_err(|reason| wrong(format!("byte {}", reason.utf8_error().valid_up_to()), "other bytes".to_owned()))
}

/// Locates a data file: at the path as given, or in the folder named by the environment variable `HEADSCOPE_DATA`.
pub(crate) fn found(path: &Path) -> PathBuf {
    let data = std::env::var_os("HEADSCOPE_DATA").map(|data| Path::new(&data).join(path));
    match data.filter(|data| !path.exists() && data.exists()) {
        Some(data) => data,
        None => path.to_owned(),
    }
}

/// [`write_whole`] for bytes already in memory.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}
