//! What stands beside a Parquet file: the table's provenance, and checksums of both.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use polars::prelude::{ParquetReader, SerReader};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Provenance, Table};
use crate::error::{Error, Result};
use crate::file;

/// The content of `TABLE.parquet.provenance.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Beside {
    #[serde(flatten)]
    provenance: Provenance,
    /// Absent where an older headscope wrote the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksums: Option<Checksums>,
}

/// SHA-256 of what belongs together, in hexadecimal.
#[derive(Serialize, Deserialize)]
struct Checksums {
    /// Of the bytes of the Parquet file, as `sha256sum` prints it.
    table: String,
    /// Of the provenance as JSON without white space.
    provenance: String,
}

impl Beside {
    /// What belongs beside a Parquet file of these bytes.
    pub(super) fn new(provenance: &Provenance, parquet: &[u8]) -> Result<Self> {
        let checksums = Checksums { table: file::sha256(parquet), provenance: checksum(provenance)? };
        Ok(Self { provenance: provenance.clone(), checksums: Some(checksums) })
    }

    /// Writes it beside the table at `path`.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let own = place(path);
        let json = serde_json::to_vec_pretty(self).map_err(|reason| Error::io("write", &own)(reason.into()))?;
        file::write_bytes(&own, &json)
    }

    /// Reads what stands beside the table at `path`.
    ///
    /// # Errors
    /// Where nothing does, or it is no provenance; [`Error::Damaged`] where it is not as it was written.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let own = place(path);
        let wrong = |found: String| Error::Format {
            path: own.clone(),
            at: "the file".to_owned(),
            expected: "a table's provenance".to_owned(),
            found,
        };
        let json: Value = serde_json::from_slice(&file::read(&own)?).map_err(|reason| wrong(reason.to_string()))?;
        let read = Self::deserialize(&json).map_err(|reason| wrong(reason.to_string()))?;
        // A name that is damaged would pass for one that is absent.
        let known = serde_json::to_value(&read).map_err(|reason| wrong(reason.to_string()))?;
        let mut names = json.as_object().into_iter().flat_map(|json| json.keys());
        if let Some(strange) = names.find(|name| known.get(name.as_str()).is_none()) {
            return Err(wrong(format!("the name `{strange}`")));
        }
        if let Some(Checksums { provenance: expected, .. }) = &read.checksums {
            check(own, expected, checksum(&read.provenance)?)?;
        }
        Ok(read)
    }
}

impl Table {
    /// Reads a Parquet file that has a table's columns, whoever wrote it, with the provenance that stands beside it, if any.
    ///
    /// # Errors
    /// Where the file is not there or is none; [`Error::Damaged`] where it has a checksum that does not match.
    pub fn read_foreign(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::read_checked(path.as_ref())?.0)
    }

    /// [`Table::read_foreign`], and whether there were checksums to compare: tables of other programs, and those of
    /// headscope before it kept any, have none.
    pub(crate) fn read_checked(path: &Path) -> Result<(Self, bool)> {
        let there = place(path).exists();
        Self::read_beside(path, there.then(|| Beside::read(path)).transpose()?)
    }

    /// Reads a Parquet file, held against the checksum that stands beside it.
    pub(super) fn read_beside(path: &Path, beside: Option<Beside>) -> Result<(Self, bool)> {
        // What is checked is what is read: the file is not opened twice.
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let checksums = beside.as_ref().and_then(|beside| beside.checksums.as_ref());
        if let Some(Checksums { table: expected, .. }) = checksums {
            check(path.to_owned(), expected, file::sha256(&bytes))?;
        }
        let (checked, doing) = (checksums.is_some(), Error::table(format!("reading {}", path.display())));
        let frame = ParquetReader::new(Cursor::new(bytes)).finish().map_err(doing)?;
        let provenance = beside.map(|beside| beside.provenance).unwrap_or_default();
        Ok((Self { frame, provenance }, checked))
    }
}

/// Fails where a checksum is not the expected one.
fn check(path: PathBuf, expected: &str, found: String) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Damaged { path, expected: expected.to_owned(), found }) }
}

/// The checksum of a provenance.
fn checksum(provenance: &Provenance) -> Result<String> {
    let wrong = |reason: serde_json::Error| Error::argument("provenance", "what JSON can hold", reason);
    Ok(file::sha256(&serde_json::to_vec(provenance).map_err(wrong)?))
}

/// Where the provenance of the table at `path` stands.
fn place(path: &Path) -> PathBuf {
    file::beside(path, ".provenance.json")
}
