//! What does a GGUF file say of itself? Key-value pairs, and where each tensor lies.
//!
//! The format is that of ggml's `docs/gguf.md`, versions 2 and 3, little-endian. Nothing in the file is trusted: every
//! count and length is held against the bytes that are left before anything is allocated for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::coding::{Coding, GGML, GGML_OTHERS};
use crate::error::{Error, Result};

/// The longest header that is read: a hundred times what a vocabulary of a million tokens takes is still less.
const LONGEST_HEADER: u64 = 1 << 28;
/// The longest array of numbers that is kept, unless it has one for each token.
const LONGEST_ARRAY: u64 = 1 << 24;

/// A value of a GGUF file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    /// An array of another type, which nothing here needs.
    Other(&'static str),
}

/// Where a tensor lies.
pub(super) struct TensorInfo {
    pub coding: Coding,
    /// Rows first, as in safetensors; the file has them last.
    pub shape: Vec<usize>,
    pub bytes: Range<u64>,
}

/// Everything before the tensors' numbers.
pub(super) struct Header {
    pub values: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    pub(super) fn read(path: &Path, file: &File) -> Result<Self> {
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let mut cursor = Cursor { path, reader: BufReader::new(file), at: 0, length, within: "start".to_owned() };
        let magic = cursor.bytes::<4>()?;
        if magic != *b"GGUF" {
            return Err(cursor.wrong("the bytes `GGUF`", format!("{magic:?}")));
        }
        match cursor.u32()? {
            2 | 3 => {}
            big if big.swap_bytes() <= 3 => return Err(cursor.wrong("a little-endian file", "a big-endian one".into())),
            other => return Err(cursor.wrong("version 2 or 3 of the format", other.to_string())),
        }
        // A tensor's entry has at least 24 bytes, a value's at least 13.
        let tensors = cursor.count("tensors", 24)?;
        let pairs = cursor.count("values", 13)?;
        let mut values = BTreeMap::new();
        for _ in 0..pairs {
            cursor.within = "keys".to_owned();
            let key = cursor.text()?;
            cursor.within = format!("key `{key}`");
            let value = cursor.value()?;
            if values.insert(key, value).is_some() {
                return Err(cursor.wrong("each key once", "it twice".to_owned()));
            }
        }
        let infos = (0..tensors).map(|_| cursor.info()).collect::<Result<Vec<_>>>()?;
        let alignment = match values.get("general.alignment") {
            None => 32,
            Some(Value::Integer(size)) if *size > 0 && size % 8 == 0 && *size <= 1 << 20 => *size as u64,
            Some(other) => {
                cursor.within = "key `general.alignment`".to_owned();
                return Err(cursor.wrong("a multiple of 8", format!("{other:?}")));
            }
        };
        Ok(Self { values, tensors: placed(infos, alignment, &mut cursor)? })
    }
}

/// A tensor's entry in the header.
struct Info {
    name: String,
    coding: Coding,
    shape: Vec<usize>,
    size: u64,
    offset: u64,
}

/// Where the tensors lie: one after the other, without overlaps, up to at most the end of the file.
fn placed(infos: Vec<Info>, alignment: u64, cursor: &mut Cursor<'_>) -> Result<BTreeMap<String, TensorInfo>> {
    let start = cursor.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    let mut next = 0;
    for info in infos {
        cursor.within = format!("tensor `{}`", info.name);
        if info.offset != next {
            return Err(cursor.wrong(&format!("offset {next}, after the tensor before"), info.offset.to_string()));
        }
        // Nothing overflows: size is at most the file's length.
        let (from, to) = (start + info.offset, start + info.offset + info.size);
        if to > cursor.length {
            let found = format!("{} bytes in the file", cursor.length);
            return Err(cursor.wrong(&format!("its numbers in bytes {from}..{to}"), found));
        }
        next = (info.offset + info.size).next_multiple_of(alignment);
        let place = TensorInfo { coding: info.coding, shape: info.shape, bytes: from..to };
        if tensors.insert(info.name, place).is_some() {
            return Err(cursor.wrong("each tensor once", "it twice".to_owned()));
        }
    }
    Ok(tensors)
}

/// A place in the header.
struct Cursor<'a> {
    path: &'a Path,
    reader: BufReader<&'a File>,
    at: u64,
    length: u64,
    /// What is being read, for errors.
    within: String,
}

impl Cursor<'_> {
    fn wrong(&self, expected: &str, found: String) -> Error {
        let at = format!("{}, up to byte {}", self.within, self.at);
        Error::Format { path: self.path.to_owned(), at, expected: expected.to_owned(), found }
    }

    /// Returns an error if fewer than `n` bytes are left.
    fn need(&self, n: u64) -> Result<()> {
        let left = self.length.min(LONGEST_HEADER).saturating_sub(self.at);
        if n <= left { Ok(()) } else { Err(self.wrong(&format!("{n} more bytes"), left.to_string())) }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.need(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(Error::io("read", self.path))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A count of things that take at least `size` bytes each.
    fn count(&mut self, what: &str, size: u64) -> Result<u64> {
        let count = self.u64()?;
        let left = self.length.min(LONGEST_HEADER).saturating_sub(self.at);
        if count <= left / size {
            return Ok(count);
        }
        Err(self.wrong(&format!("at most {} {what} in the {left} bytes that are left", left / size), count.to_string()))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.count("bytes of text", 1)?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(Error::io("read", self.path))?;
        self.at += length;
        String::from_utf8(bytes).map_err(|reason| self.wrong("UTF-8", reason.utf8_error().to_string()))
    }

    fn value(&mut self) -> Result<Value> {
        match self.u32()? {
            8 => self.text().map(Value::Text),
            9 => self.array(),
            kind => self.scalar(kind),
        }
    }

    /// A value of one of the types of fixed size.
    fn scalar(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            // The shortest decimal: 1e-5 was meant where 9.999999747378752e-6 is stored.
            6 => Value::Float(shortest(f32::from_le_bytes(self.bytes()?))),
            7 => match self.bytes()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.wrong("0 or 1 for a truth value", other.to_string())),
            },
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.wrong("a type of value from 0 to 12", other.to_string())),
        })
    }

    fn array(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.wrong("an array of plain values", "an array of arrays".to_owned())),
            other => return Err(self.wrong("a type of value from 0 to 12", other.to_string())),
        };
        let count = self.count("values", size)?;
        if kind == 8 {
            return Ok(Value::Texts((0..count).map(|_| self.text()).collect::<Result<_>>()?));
        }
        let (mut integers, mut floats) = (vec![], vec![]);
        let is_kept = kind != 7 && count <= LONGEST_ARRAY;
        for _ in 0..count {
            match self.scalar(kind)? {
                Value::Integer(number) if is_kept => {
                    let fits = i64::try_from(number);
                    integers.push(fits.map_err(|_| self.wrong("a number below 2^63", number.to_string()))?);
                }
                Value::Float(number) if is_kept => floats.push(number),
                _ => {}
            }
        }
        Ok(match (is_kept, kind) {
            (false, _) => Value::Other("an array that is too long, or not of numbers"),
            (true, 6 | 12) => Value::Floats(floats),
            (true, _) => Value::Integers(integers),
        })
    }

    /// One tensor's entry.
    fn info(&mut self) -> Result<Info> {
        self.within = "tensors".to_owned();
        let name = self.text()?;
        self.within = format!("tensor `{name}`");
        let axes = self.u32()?;
        if !(1..=4).contains(&axes) {
            return Err(self.wrong("1 to 4 axes", axes.to_string()));
        }
        let sizes = (0..axes).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        let number = self.u32()?;
        let Some((_, _, coding)) = GGML.iter().find(|(own, _, _)| *own == number) else {
            let names: Vec<&str> = GGML.iter().map(|(_, name, _)| *name).collect();
            let other = GGML_OTHERS.iter().find(|(own, _)| *own == number);
            let found = other.map_or_else(|| format!("type {number}"), |(_, name)| (*name).to_owned());
            return Err(self.wrong(&format!("numbers coded as {}", names.join(", ")), found));
        };
        let numbers = sizes.iter().try_fold(1_u64, |product, &size| product.checked_mul(size).filter(|&n| n > 0));
        let row = sizes.first().copied().unwrap_or(0);
        let (step, bytes) = (coding.numbers() as u64, coding.bytes() as u64);
        let Some(numbers) = numbers.filter(|_| row.is_multiple_of(step)) else {
            return Err(
                self.wrong(&format!("axes of at least 1, the first a multiple of {step}"), format!("{sizes:?}"))
            );
        };
        let size = (numbers / step).checked_mul(bytes).filter(|&size| size <= self.length);
        let Some(size) = size else {
            return Err(
                self.wrong(&format!("at most {} bytes, the file's length", self.length), format!("axes {sizes:?}"))
            );
        };
        let offset = self.u64()?;
        // Each size is at most `numbers`, which is at most 2 bytes' worth of the file.
        let shape = sizes.iter().rev().map(|&size| size as usize).collect();
        Ok(Info { name, coding: *coding, shape, size, offset })
    }
}

/// A float32 as the float64 of the same shortest decimal.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}
