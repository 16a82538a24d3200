//! The finished rows of a sweep that is still under way, kept so that it can go on where it was stopped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A file with one line for each finished variant, added as it is finished. A line that was cut off is computed again.
pub(in crate::intervene) struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    /// Finished values by variant and first cell of the part of the batch that they are of.
    known: HashMap<(usize, usize), Vec<f64>>,
    /// The first cell of the part that is being computed.
    first: usize,
}

/// The first line: what is computed.
#[derive(Serialize, Deserialize, PartialEq)]
struct Head {
    sweep: String,
}

/// A variant that is finished for a part of the batch; values as their bits, so that none is rounded.
#[derive(Serialize, Deserialize)]
struct Line {
    variant: usize,
    first: usize,
    bits: Vec<u64>,
}

impl Journal {
    /// Opens the journal of the sweep that `sweep` describes in every respect, with what an earlier run finished of it.
    ///
    /// # Errors
    /// Where the file is another sweep's, or cannot be written.
    pub(in crate::intervene) fn open(path: &Path, sweep: &str) -> Result<Self> {
        let head = Head { sweep: sweep.to_owned() };
        let (known, whole) = match File::open(path) {
            Ok(file) => read(path, file, &head)?,
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => (HashMap::new(), 0),
            Err(reason) => return Err(Error::io("read", path)(reason)),
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("write", path))?;
        file.set_len(whole).map_err(Error::io("write", path))?;
        let mut journal = Self { path: path.to_owned(), file: BufWriter::new(file), known, first: 0 };
        if whole == 0 {
            journal.line(&head)?;
            journal.flush()?;
        }
        Ok(journal)
    }

    /// From here on the part of the batch whose cells begin at `first`.
    pub(in crate::intervene) fn at(&mut self, first: usize) {
        self.first = first;
    }

    /// A variant's values at `cells` cells, where they are known.
    pub(in crate::intervene) fn get(&self, variant: usize, cells: usize) -> Option<&[f64]> {
        self.known.get(&(variant, self.first)).map(Vec::as_slice).filter(|values| values.len() == cells)
    }

    /// A variant is finished.
    pub(in crate::intervene) fn push(&mut self, variant: usize, values: impl Iterator<Item = f64>) -> Result<()> {
        self.line(&Line { variant, first: self.first, bits: values.map(f64::to_bits).collect() })
    }

    /// Hands what was pushed to the operating system.
    pub(in crate::intervene) fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let io = Error::io("write", &self.path);
        let text = serde_json::to_string(line).map_err(std::io::Error::from);
        text.and_then(|text| writeln!(self.file, "{text}")).map_err(io)
    }
}

/// Finished values by variant and first cell.
type Known = HashMap<(usize, usize), Vec<f64>>;

/// The finished variants of a journal, and how many of its bytes are whole lines.
fn read(path: &Path, file: File, head: &Head) -> Result<(Known, u64)> {
    let mut known = HashMap::new();
    let (mut whole, mut reader, mut text) = (0, BufReader::new(file), String::new());
    while reader.read_line(&mut text).map_err(Error::io("read", path))? > 0 {
        if whole == 0 && text.ends_with('\n') && serde_json::from_str::<Head>(&text).ok().as_ref() != Some(head) {
            return Err(Error::Format {
                path: path.to_owned(),
                at: "line 1".to_owned(),
                expected: "the finished rows of this same sweep; delete the file to begin anew".to_owned(),
                found: "those of another one".to_owned(),
            });
        }
        if whole > 0 {
            match serde_json::from_str::<Line>(&text) {
                Ok(line) if text.ends_with('\n') => {
                    known.insert((line.variant, line.first), line.bits.into_iter().map(f64::from_bits).collect());
                }
                _ => break,
            }
        } else if !text.ends_with('\n') {
            break;
        }
        whole += text.len() as u64;
        text.clear();
    }
    Ok((known, whole))
}
