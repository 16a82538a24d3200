//! What is stored next to a Parquet file? The table's provenance, and checksums of both.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use polars::prelude::{ParquetReader, SerReader};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Provenance, Table};
use crate::error::{Error, Result};
use crate::file;

/// The contents of `TABLE.parquet.provenance.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Beside {
    #[serde(flatten)]
    provenance: Provenance,
    /// Absent if an older version of headscope wrote the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksums: Option<Checksums>,
}

/// SHA-256 checksums, in hexadecimal.
#[derive(Serialize, Deserialize)]
struct Checksums {
    /// Of the bytes of the Parquet file, as printed by `sha256sum`.
    table: String,
    /// Of the provenance as JSON without whitespace.
    provenance: String,
}

impl Beside {
    /// The provenance file for a Parquet file with these bytes.
    pub(super) fn new(provenance: &Provenance, parquet: &[u8]) -> Result<Self> {
        let checksums = Checksums { table: file::sha256(parquet), provenance: checksum(provenance)? };
        Ok(Self { provenance: provenance.clone(), checksums: Some(checksums) })
    }

    /// Writes it next to the table at `path`.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let own = place(path);
        let json = serde_json::to_vec_pretty(self).map_err(|reason| Error::io("write", &own)(reason.into()))?;
        file::write_bytes(&own, &json)
    }

    /// Reads the provenance next to the table at `path`.
    ///
    /// # Errors
    /// If it is missing or malformed, or has changed since it was written ([`Error::Damaged`]).
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
        // Reject unknown names: a damaged name would otherwise pass for an absent one.
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
    /// Reads a Parquet file with the columns of a table, whoever wrote it, and the provenance next to it, if any.
    ///
    /// # Errors
    /// If the file is missing or is not Parquet, or has a checksum that does not match ([`Error::Damaged`]).
    pub fn read_foreign(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::read_checked(path.as_ref())?.0)
    }

    /// [`Table::read_foreign`], and whether there were checksums to verify. Tables written by other programs, or by
    /// early versions of headscope, have none.
    pub(crate) fn read_checked(path: &Path) -> Result<(Self, bool)> {
        let there = place(path).exists();
        Self::read_beside(path, there.then(|| Beside::read(path)).transpose()?)
    }

    /// Reads a Parquet file and verifies it against its checksum, if there is one.
    pub(super) fn read_beside(path: &Path, beside: Option<Beside>) -> Result<(Self, bool)> {
        // Read the file once, so that the bytes verified are the bytes parsed.
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

/// Returns an error if a checksum is not the expected one.
fn check(path: PathBuf, expected: &str, found: String) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Damaged { path, expected: expected.to_owned(), found }) }
}

/// The checksum of a provenance.
fn checksum(provenance: &Provenance) -> Result<String> {
    let wrong = |reason: serde_json::Error| Error::argument("provenance", "what JSON can hold", reason);
    Ok(file::sha256(&serde_json::to_vec(provenance).map_err(wrong)?))
}

/// The path of the provenance of the table at `path`.
fn place(path: &Path) -> PathBuf {
    file::beside(path, ".provenance.json")
}
