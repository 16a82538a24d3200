//! Files are written whole or not at all, by one process at a time, and can be told apart by their hash.

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

/// SHA-256 over the contents of `files`, one after another, in hexadecimal.
pub(crate) fn sha256_of(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        std::io::copy(&mut file, &mut hash).map_err(Error::io("read", path))?;
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// `path` with `ending` after its whole name: `table.csv` and `.partial` give `table.csv.partial`.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Keeps other processes from working on the same file or folder for as long as it lives.
///
/// The lock is the operating system's, on the file `PATH.lock`, and ends with the process that holds it, however that ends: a
/// lock file that a killed process left is taken over. The file holds the process' number, for the message to the others.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock of `path`, which itself need not exist. Where the file system knows no locks, nobody is kept out.
    ///
    /// # Errors
    /// [`Error::Held`] at once where another process, or another part of this one, has it.
    pub(crate) fn hold(path: &Path) -> Result<Self> {
        let lock = beside(path, ".lock");
        let io = || Error::io("lock", &lock);
        loop {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock).map_err(io())?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // Just taken, the file may still be empty: then the message has no number.
                    let _ = file.take(20).read_to_string(&mut holder);
                    return Err(Error::Held { path: path.to_owned(), holder: holder.trim().parse().ok() });
                }
                Err(TryLockError::Error(reason)) if reason.kind() != std::io::ErrorKind::Unsupported => {
                    return Err(io()(reason));
                }
                _ => {}
            }
            // The holder before may have removed the file between our opening and our locking it: then the lock is on a file
            // that nobody else will find.
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

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still locked, so that it is our own file; one that stays does no harm.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

/// Writes `path` through a temporary file beside it, which takes its name only when `write` has succeeded.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let folder = folder(path);
    let temporary = tempfile::Builder::new()
        .prefix(".headscope-")
        .permissions(usual_permissions())
        .tempfile_in(folder)
        // The message would name the temporary file, which is nobody's concern.
        .map_err(|reason| Error::io("write", path)(reason.kind().into()))?;
    let (file, temporary) = temporary.into_parts();
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|reason| Error::io("write", path)(reason.into_error()))?;
    file.sync_all().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|reason| Error::io("write", path)(reason.error))
}

/// Fails where the folder of `path` is not there.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    std::fs::read_dir(folder).map(drop).map_err(Error::io("write in", folder))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Temporary files are private to their owner; the user's umask decides what others may do with a finished one.
fn usual_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

/// Most bytes of a file that is read whole: far more than any config, index or tokenizer has.
const MOST: u64 = 1 << 28;

/// The bytes of a file that is read whole. Devices, pipes and files too large to be what they should are refused.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_file() || metadata.len() > MOST {
        let expected = format!("a file of at most {MOST} bytes");
        let found = if metadata.is_file() { format!("{} bytes", metadata.len()) } else { "no file".to_owned() };
        return Err(Error::Format { path: path.to_owned(), at: "the file".to_owned(), expected, found });
    }
    std::fs::read(path).map_err(Error::io("read", path))
}

/// [`write_whole`] for bytes at hand.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}
