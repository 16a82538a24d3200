//! The finished rows of a sweep that is still under way, kept so that it can go on where it was stopped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file::{self, Lock};

/// A file with one line for each finished variant, added as it is finished. Every line carries a hash, of the line and of what
/// is computed: one that was cut off, damaged or edited, or that another sweep left, is computed again.
pub(in crate::intervene) struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    /// What is computed.
    sweep: String,
    /// Finished values by variant and first cell of the part of the batch that they are of.
    known: Known,
    /// The first cell of the part that is being computed.
    first: usize,
    /// No other process writes the same file.
    _lock: Lock,
}

/// Finished values by variant and first cell.
type Known = HashMap<(usize, usize), Vec<f64>>;

/// The first line: what is computed.
#[derive(Serialize, Deserialize, PartialEq)]
struct Head {
    sweep: String,
}

/// A variant that is finished for a part of the batch; values as their bits, so that none is rounded.
#[derive(Serialize, Deserialize)]
struct Row {
    variant: usize,
    first: usize,
    bits: Vec<u64>,
}

/// A row and the hash of it and of its sweep.
#[derive(Serialize, Deserialize)]
struct Line {
    row: Row,
    hash: String,
}

impl Row {
    /// 64 bits against damage, not against an adversary.
    fn hash(&self, sweep: &str) -> String {
        let bits: Vec<String> = self.bits.iter().map(u64::to_string).collect();
        let mut hash = file::sha256(format!("{sweep} {} {} {}", self.variant, self.first, bits.join(" ")).as_bytes());
        hash.truncate(16);
        hash
    }
}

impl Journal {
    /// Opens the journal of the sweep that `sweep` describes in every respect, with what an earlier run finished of it.
    /// Damaged lines are named on the standard error stream and removed.
    ///
    /// # Errors
    /// Where the file is another sweep's, another process writes it, or it cannot be written.
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
            file.set_len(found.whole).map_err(Error::io("write", path))?; // without a line that was cut off
        }
        let known = found
            .good
            .into_iter()
            .map(|line| ((line.row.variant, line.row.first), line.row.bits.into_iter().map(f64::from_bits).collect()));
        let (path, file) = (path.to_owned(), BufWriter::new(file));
        Ok(Self { path, file, sweep: sweep.to_owned(), known: known.collect(), first: 0, _lock: lock })
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
        let row = Row { variant, first: self.first, bits: values.map(f64::to_bits).collect() };
        let hash = row.hash(&self.sweep);
        write_line(&self.path, &mut self.file, &Line { row, hash })
    }

    /// Hands what was pushed to the operating system.
    pub(in crate::intervene) fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}

fn write_line(path: &Path, file: &mut impl Write, line: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(line).map_err(std::io::Error::from);
    text.and_then(|text| writeln!(file, "{text}")).map_err(Error::io("write", path))
}

/// What a journal's file holds.
#[derive(Default)]
struct Found {
    good: Vec<Line>,
    /// Numbers of the damaged lines, the first is 1.
    damaged: Vec<usize>,
    /// Bytes of its whole lines.
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
                // The end, or a line that was cut off; the first one only where it begins as ours does.
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
        // A damaged head is known by a row that is of this sweep.
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
