//! Files are written whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through a temporary file beside it, which takes its name only when `write` has succeeded.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let folder = folder(path);
    let temporary = tempfile::Builder::new()
        .prefix(".headscope-")
        .permissions(usual_permissions())
        .tempfile_in(folder)
        .map_err(Error::io("write", path))?;
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
