//! How does an interrupted sweep resume? Its journal keeps the variants that are finished.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file::{self, Lock};

/// A file with one line per finished variant, appended as variants finish. Every line carries a hash of itself and of
/// the sweep. A line that is truncated, damaged, edited or of another sweep is recomputed.
pub(in crate::intervene) struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    /// A description of the sweep.
    sweep: String,
    /// Finished values.
    known: Known,
    /// The first cell of the current part of the batch.
    first: usize,
    /// Keeps other processes from writing the same file.
    _lock: Lock,
}

/// Finished values by variant and by the first cell of their part of the batch.
type Known = HashMap<(usize, usize), Vec<f64>>;

/// The first line: a description of the sweep.
#[derive(Serialize, Deserialize, PartialEq)]
struct Head {
    sweep: String,
}

/// A variant finished for one part of the batch. Values are stored as bits, so that none is rounded.
#[derive(Serialize, Deserialize)]
struct Row {
    variant: usize,
    first: usize,
    bits: Vec<u64>,
}

/// A row with the hash of itself and its sweep.
#[derive(Serialize, Deserialize)]
struct Line {
    row: Row,
    hash: String,
}

impl Row {
    /// 64 bits: enough against damage, not against an adversary.
    fn hash(&self, sweep: &str) -> String {
        let bits: Vec<String> = self.bits.iter().map(u64::to_string).collect();
        let mut hash = file::sha256(format!("{sweep} {} {} {}", self.variant, self.first, bits.join(" ")).as_bytes());
        hash.truncate(16);
        hash
    }
}

impl Journal {
    /// Opens the journal of a sweep, with what an earlier run has finished. `sweep` must describe the sweep completely.
    /// Damaged lines are reported on standard error and removed.
    ///
    /// # Errors
    /// If the file belongs to another sweep, another process holds it, or it cannot be read or written.
    pub(in crate::intervene) fn open(path: &Path, sweep: &str) -> Result<Self> {
        let lock = Lock::hold(path)?;
        let found = match File::open(path) {
            Ok(file) => Found::read(path, file, sweep)?,
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => Found::default(),
            Err(reason) => return Err(Error::io("read", path)(reason)),
        };
        for number in &found.damaged {
            eprintln!("warning: {}, line {number}: damaged or edited; it is computed again", path.display());
        }
        if found.whole == 0 || !found.damaged.is_empty() {
            let head = Head { sweep: sweep.to_owned() };
            file::write_whole(path, |file| {
                write_line(path, file, &head)?;
                found.good.iter().try_for_each(|line| write_line(path, file, line))
            })?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("write", path))?;
        if found.whole > 0 && found.damaged.is_empty() {
            file.set_len(found.whole).map_err(Error::io("write", path))?; // drops a truncated last line
        }
        let known = found
            .good
            .into_iter()
            .map(|line| ((line.row.variant, line.row.first), line.row.bits.into_iter().map(f64::from_bits).collect()));
        let (path, file) = (path.to_owned(), BufWriter::new(file));
        Ok(Self { path, file, sweep: sweep.to_owned(), known: known.collect(), first: 0, _lock: lock })
    }

    /// Switches to the part of the batch whose cells start at `first`.
    pub(in crate::intervene) fn at(&mut self, first: usize) {
        self.first = first;
    }

    /// A variant's values in the current part, if they are known and there are `cells` of them.
    pub(in crate::intervene) fn get(&self, variant: usize, cells: usize) -> Option<&[f64]> {
        self.known.get(&(variant, self.first)).map(Vec::as_slice).filter(|values| values.len() == cells)
    }

    /// Appends the values of a finished variant.
    pub(in crate::intervene) fn push(&mut self, variant: usize, values: impl Iterator<Item = f64>) -> Result<()> {
        let row = Row { variant, first: self.first, bits: values.map(f64::to_bits).collect() };
        let hash = row.hash(&self.sweep);
        write_line(&self.path, &mut self.file, &Line { row, hash })
    }

    /// Passes buffered lines to the operating system.
    pub(in crate::intervene) fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}

fn write_line(path: &Path, file: &mut impl Write, line: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(line).map_err(std::io::Error::from);
    text.and_then(|text| writeln!(file, "{text}")).map_err(Error::io("write", path))
}

/// What a journal's file contains.
#[derive(Default)]
struct Found {
    good: Vec<Line>,
    /// Numbers of the damaged lines, from 1.
    damaged: Vec<usize>,
    /// Length in bytes of the complete lines.
    whole: u64,
}

impl Found {
    fn read(path: &Path, file: File, sweep: &str) -> Result<Self> {
        let (mut found, head) = (Self::default(), Head { sweep: sweep.to_owned() });
        let (mut reader, mut bytes) = (BufReader::new(file), vec![]);
        for number in 1.. {
            bytes.clear();
            reader.read_until(b'\n', &mut bytes).map_err(Error::io("read", path))?;
            if bytes.last() != Some(&b'\n') {
                // The end of the file, or a truncated line. A truncated head must be a prefix of ours.
                if number == 1 && !serde_json::to_vec(&head).is_ok_and(|head| head.starts_with(&bytes)) {
                    found.damaged.push(number);
                }
                break;
            }
            found.whole += bytes.len() as u64;
            let good = serde_json::from_slice::<Line>(&bytes).ok().filter(|line| line.hash == line.row.hash(sweep));
            let is_head = || serde_json::from_slice::<Head>(&bytes).is_ok_and(|found| found == head);
            match good {
                Some(line) if number > 1 => found.good.push(line),
                _ if number == 1 && is_head() => {}
                _ => found.damaged.push(number),
            }
        }
        // With a damaged head, at least one row must show that the file is this sweep's.
        if found.damaged.first() == Some(&1) && found.good.is_empty() {
            return Err(Error::Format {
                path: path.to_owned(),
                at: "line 1".to_owned(),
                expected: "the finished rows of this same sweep; delete the file to start over".to_owned(),
                found: "those of another one".to_owned(),
            });
        }
        Ok(found)
    }
}
