//! The structure of a GGUF file: metadata, then where each tensor lies; every length is checked against the file's.

use super::dequantize::Format;
use crate::error::{ModelError, Result};
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    /// Of float32, as its shortest decimal: `1e-5`, not what float64 makes of its bits.
    Number(f64),
    Flag(bool),
    Text(String),
    List(Vec<Value>),
}

/// A tensor: where its bytes are, and what they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Info {
    pub(super) format: Format,
    /// Rows first, as everywhere but in GGUF.
    pub(super) shape: Vec<i64>,
    start: usize,
    len: usize,
}

/// A GGUF file in memory, its structure checked.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    map: Mmap,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Info>,
}

/// Lists in lists may go so deep.
const DEEPEST: usize = 4;
/// Lists may be so long: far beyond any vocabulary, and 400 MB in memory.
const LONGEST: usize = 1 << 24;

impl File {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(read)?;
        // SAFETY: the map is only read; see `checkpoint`, which maps files in the same way.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let (metadata, tensors) = parse(&map).map_err(|problem| match problem {
            Problem::Damaged(reason) => ModelError::DamagedGguf { path: path.to_owned(), reason },
            Problem::Unsupported { what, found, accepted } => {
                ModelError::UnsupportedGguf { path: path.to_owned(), what, found, accepted }
            }
        })?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }

    pub(super) fn bytes(&self, info: &Info) -> &[u8] {
        &self.map[info.start..info.start + info.len]
    }

    /// The error of a file that asks for what is not read.
    pub(super) fn unsupported(&self, what: &str, found: &str, accepted: &str) -> ModelError {
        let [what, found, accepted] = [what, found, accepted].map(str::to_owned);
        ModelError::UnsupportedGguf { path: self.path.clone(), what, found, accepted }
    }

    /// The error of a file that contradicts itself.
    pub(super) fn damaged(&self, reason: impl Into<String>) -> ModelError {
        ModelError::DamagedGguf { path: self.path.clone(), reason: reason.into() }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.get(key, "an integer", |value| if let Value::Integer(n) = value { Some(*n) } else { None })
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match value {
            Value::Number(n) => Some(*n),
            Value::Integer(n) => Some(*n as f64),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "a boolean", |value| if let Value::Flag(flag) = value { Some(*flag) } else { None })
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&[Value]>> {
        self.get(key, "a list", |value| if let Value::List(list) = value { Some(list.as_slice()) } else { None })
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.damaged(format!("it has no `{key}`")))
    }

    fn get<'a, T>(&'a self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.damaged(format!("its `{key}` is not {expected}")))
    }
}

/// Why bytes are not read.
#[derive(Debug)]
pub(super) enum Problem {
    Damaged(String),
    Unsupported { what: String, found: String, accepted: String },
}

type Parsed<T> = std::result::Result<T, Problem>;

fn damaged<T>(reason: impl Into<String>) -> Parsed<T> {
    Err(Problem::Damaged(reason.into()))
}

fn parse(bytes: &[u8]) -> Parsed<(BTreeMap<String, Value>, BTreeMap<String, Info>)> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return damaged("it does not begin with `GGUF`");
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        let found = if version.swap_bytes() <= 3 { "a big-endian file".to_owned() } else { version.to_string() };
        return Err(Problem::Unsupported { what: "GGUF version".to_owned(), found, accepted: "2 or 3".to_owned() });
    }
    let (n_tensors, n_values) = (cursor.count(24)?, cursor.count(13)?);
    let mut metadata = BTreeMap::new();
    for _ in 0..n_values {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0)?;
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(n)) if (1..=1 << 20).contains(n) && (*n as u64).is_power_of_two() => *n as usize,
        Some(other) => return damaged(format!("its alignment is {other:?}")),
    };
    let mut tensors = BTreeMap::new();
    for _ in 0..n_tensors {
        let (name, info) = cursor.tensor()?;
        if tensors.insert(name.clone(), info).is_some() {
            return damaged(format!("it holds `{name}` twice"));
        }
    }
    let start = cursor.at.next_multiple_of(alignment);
    for (name, info) in &mut tensors {
        let end = info.start.checked_add(start).and_then(|begin| begin.checked_add(info.len));
        match end {
            Some(end) if end <= bytes.len() => info.start += start,
            _ => return damaged(format!("it ends after {} bytes, within or before `{name}`", bytes.len())),
        }
    }
    // Bytes that several tensors share would be unpacked for each of them.
    let mut places: Vec<(usize, usize, &String)> =
        tensors.iter().map(|(name, info)| (info.start, info.start + info.len, name)).collect();
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return damaged(format!("its tensors `{}` and `{}` overlap", pair[0].2, pair[1].2));
    }
    Ok((metadata, tensors))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return damaged(format!("it ends after {} bytes, within its header", self.bytes.len()));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of items, each of at least so many bytes: never more than the rest of the file can hold.
    fn count(&mut self, least: usize) -> Parsed<usize> {
        let count = self.u64()?;
        let rest = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= rest / least => Ok(count),
            _ => damaged(format!("it announces {count} items where {rest} bytes are left")),
        }
    }

    fn text(&mut self) -> Parsed<String> {
        let len = self.count(1)?;
        // llama.cpp keeps tokens as bytes; those that are no text are of no use to a byte-level tokenizer.
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Integer(self.array::<1>()?[0].into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => {
                let number = f32::from_le_bytes(self.array()?);
                Value::Number(number.to_string().parse().unwrap_or_else(|_| number.into()))
            }
            7 => Value::Flag(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if depth < DEEPEST => {
                let inner = self.u32()?;
                // A list in a list has a kind and a length; numbers may have one byte.
                let count = self.count(match inner {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    9 => 12,
                    _ => 8,
                })?;
                if count > LONGEST {
                    return damaged(format!("it holds a list of {count} values, more than {LONGEST}"));
                }
                Value::List((0..count).map(|_| self.value(inner, depth + 1)).collect::<Parsed<_>>()?)
            }
            // Above what fits, a number is none that a model could have.
            10 => Value::Integer(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            other => return damaged(format!("it holds a value of kind {other}")),
        })
    }

    fn tensor(&mut self) -> Parsed<(String, Info)> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > 4 {
            return damaged(format!("`{name}` has {dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        let mut numbers = Some(1usize);
        for _ in 0..dimensions {
            let size = self.u64()?;
            numbers = numbers.zip(usize::try_from(size).ok()).and_then(|(a, b)| a.checked_mul(b));
            shape.push(i64::try_from(size).unwrap_or(i64::MAX));
        }
        let format = Format::of(self.u32()?).map_err(|found| Problem::Unsupported {
            what: format!("format of `{name}`"),
            found,
            accepted: Format::known(),
        })?;
        let start = self.u64()?;
        let (per_block, size) = format.block();
        let row = shape.first().copied().unwrap_or(1);
        let len = numbers.filter(|_| row % per_block as i64 == 0).and_then(|n| (n / per_block).checked_mul(size));
        let (Some(len), Ok(start)) = (len, usize::try_from(start)) else {
            return damaged(format!("`{name}` of shape {shape:?} at byte {start} cannot be stored in that format"));
        };
        shape.reverse();
        Ok((name, Info { format, shape, start, len }))
    }
}
