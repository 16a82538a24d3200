//! Files are written whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through a temporary file beside it, which takes its name only when `write` has succeeded.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary =
        tempfile::Builder::new().prefix(".headscope-").tempfile_in(folder).map_err(Error::io("write", path))?;
    let (file, temporary) = temporary.into_parts();
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|reason| Error::io("write", path)(reason.into_error()))?;
    readable_by_umask(&file).and_then(|()| file.sync_all()).map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|reason| Error::io("write", path)(reason.error))
}

/// Temporary files are private to their owner; a finished file has the usual permissions.
fn readable_by_umask(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// [`write_whole`] for bytes at hand.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}
