//! The first look at a file: its columns, its rows, which of them cannot be read, and its checksum, all in one pass.
//!
//! Chunks of rows are looked at on all threads; what was seen of each is joined in order, so that threads change nothing.

use super::{
    bytes::{self, Content},
    caught::{caught, caught_items},
    csv,
    format::Compression,
    hex,
    json_shape::Columns,
    options::{FileFormat, OnError, TextDocument},
    records::{Broken, Chunk, Cut, Raw, Records},
};
use crate::error::{DataError, Result, parquet, reading};
use datafusion::{
    arrow::{
        datatypes::{DataType, Field, Schema},
        ipc::reader::{FileReader, StreamReader},
    },
    parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
};
use rayon::iter::{ParallelBridge, ParallelIterator};
use sha2::Digest;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::PoisonError,
};

/// Rows and bytes that one thread looks at at a time.
const CHUNK_ROWS: usize = 1 << 16;
const CHUNK_BYTES: usize = 1 << 21;

/// How the rows of a file are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Row groups.
    Parquet,
    /// Record batches with an index at the end.
    ArrowFile,
    /// Record batches one after the other.
    ArrowStream,
    Json(Cut),
    Csv {
        separator: char,
        /// The names of all fields.
        header: Vec<String>,
    },
    /// Columns `text` and `path`.
    Text(Cut),
}

/// What was seen of a file.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) layout: Layout,
    pub(crate) schema: Schema,
    pub(crate) rows: u64,
    /// About as much as its rows need in memory, where that is known.
    pub(crate) data_bytes: Option<u64>,
    /// SHA-256 of the file, where all of it was read.
    pub(crate) digest: Option<String>,
    /// The rows that are to be skipped, in order.
    pub(crate) bad: Vec<Bad>,
}

impl Survey {
    /// What is left of a file of which nothing can be read.
    pub(crate) fn nothing(format: FileFormat) -> Self {
        let layout = match format {
            FileFormat::Parquet => Layout::Parquet,
            FileFormat::Arrow => Layout::ArrowFile,
            _ => Layout::Text(Cut::Lines),
        };
        Self { layout, schema: Schema::empty(), rows: 0, data_bytes: Some(0), digest: None, bad: Vec::new() }
    }
}

/// A row that cannot be read, or all from there on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bad {
    /// Its number, counted from 0.
    pub(crate) row: u64,
    /// The line it begins at, counted from 1, where lines are what people look for.
    pub(crate) line: Option<u64>,
    pub(crate) message: String,
}

impl Bad {
    /// The rows from the place on at which a file can no longer be read. Lines of packed text are none that an editor shows.
    pub(crate) fn where_broken(Broken { row, line, message }: Broken, compression: Compression) -> Self {
        match compression {
            Compression::None => Self { row, line: Some(line), message },
            packed => {
                let message = format!("the {} data cannot be read on: {message}", packed.name());
                Self { row, line: None, message }
            }
        }
    }
}

/// A file about to be looked at.
pub(crate) struct Subject<'a> {
    pub(crate) path: &'a Path,
    /// Its name for people: a path or an address.
    pub(crate) shown: PathBuf,
    pub(crate) format: FileFormat,
    pub(crate) compression: Compression,
    pub(crate) document: &'a TextDocument,
    pub(crate) on_error: OnError,
}

impl Subject<'_> {
    /// Looks at the file.
    pub(crate) fn survey(&self) -> Result<Survey> {
        match self.format {
            FileFormat::Parquet => self.parquet(),
            FileFormat::Arrow => self.arrow(),
            FileFormat::Json => self.json(),
            FileFormat::Csv => self.csv(','),
            FileFormat::Tsv => self.csv('\t'),
            FileFormat::Text => self.text(),
        }
    }

    fn parquet(&self) -> Result<Survey> {
        let file = File::open(self.path).map_err(reading(&self.shown))?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).map_err(parquet(&self.shown))?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let groups = metadata.metadata().row_groups().iter();
        let data_bytes = groups.map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum();
        Ok(Survey {
            layout: Layout::Parquet,
            schema: metadata.schema().as_ref().clone().with_metadata(Default::default()),
            rows: u64::try_from(rows).unwrap_or(0),
            data_bytes: Some(data_bytes),
            digest: None,
            bad: Vec::new(),
        })
    }

    /// Reads the batches without decoding them: only their headers say how many rows they have.
    fn arrow(&self) -> Result<Survey> {
        let open = || File::open(self.path).map(BufReader::new).map_err(reading(&self.shown));
        let damaged =
            |row: u64, message: String| DataError::Damaged { path: self.shown.clone(), row: row + 1, message };
        let mut magic = [0; 6];
        let is_file = open()?.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
        let none = Some(Vec::new());
        let (schema, lengths): (_, Box<dyn Iterator<Item = _>>) = if is_file {
            let whole = open()?;
            let whole =
                caught(|| FileReader::try_new(whole, None)).map_err(|error| damaged(0, error.to_string()))?.schema();
            let reader = open()?;
            let reader = caught(|| FileReader::try_new(reader, none)).map_err(|error| damaged(0, error.to_string()))?;
            (whole, Box::new(reader.map(|batch| batch.map(|batch| batch.num_rows()))))
        } else {
            let whole = open()?;
            let whole =
                caught(|| StreamReader::try_new(whole, None)).map_err(|error| damaged(0, error.to_string()))?.schema();
            let reader = open()?;
            let reader =
                caught(|| StreamReader::try_new(reader, none)).map_err(|error| damaged(0, error.to_string()))?;
            (whole, Box::new(reader.map(|batch| batch.map(|batch| batch.num_rows()))))
        };
        let (mut rows, mut bad) = (0, Vec::new());
        for length in caught_items(lengths) {
            match length {
                Ok(length) => rows += length as u64,
                Err(error) if self.on_error == OnError::Skip => {
                    bad.push(Bad { row: rows, line: None, message: error.to_string() });
                    break;
                }
                Err(error) => return Err(damaged(rows, error.to_string())),
            }
        }
        Ok(Survey {
            layout: if is_file { Layout::ArrowFile } else { Layout::ArrowStream },
            schema: schema.as_ref().clone().with_metadata(Default::default()),
            rows,
            data_bytes: None,
            digest: None,
            bad,
        })
    }

    fn json(&self) -> Result<Survey> {
        let is_list = {
            let mut content = bytes::open(self.path, self.compression).map_err(reading(&self.shown))?;
            begins_with_bracket(&mut content)
        };
        let cut = if is_list { Cut::JsonList } else { Cut::Lines };
        let look = |columns: &mut Columns, raw: Raw<'_>| {
            columns.see(raw.bytes).map_err(|error| malformed(raw, &error, is_list))
        };
        let seen = self.look(&cut, |_| Ok(()), Columns::default, look, Columns::join)?;
        Ok(seen.survey(Layout::Json(cut), |columns| columns.schema()))
    }

    fn csv(&self, separator: char) -> Result<Survey> {
        let cut = Cut::Csv { separator: separator as u8 };
        let header = csv_header(&mut self.records(&cut)?.0, separator).map_err(|bad| self.error(&bad))?;
        let width = header.len();
        let look = |kinds: &mut Vec<csv::Kind>, raw: Raw<'_>| {
            let text = utf8(raw)?;
            let fields = csv::fields(text, separator).map_err(|message| bad(raw, message))?;
            if fields.len() != width {
                return Err(bad(raw, format!("it has {} fields, and the first line names {width}", fields.len())));
            }
            for (kind, value) in kinds.iter_mut().zip(&fields) {
                *kind = kind.join(value.as_deref().map_or(csv::Kind::Empty, csv::Kind::of));
            }
            Ok(())
        };
        let join = |kinds: &mut Vec<csv::Kind>, later: Vec<csv::Kind>| {
            kinds.iter_mut().zip(later).for_each(|(kind, later)| *kind = kind.join(later));
            true
        };
        let skip_header = |records: &mut Records| csv_header(records, separator).map(|_| ());
        let seen = self.look(&cut, skip_header, || vec![csv::Kind::default(); width], look, join)?;
        let names = header.clone();
        Ok(seen.survey(Layout::Csv { separator, header }, |kinds| {
            let fields = names.iter().zip(kinds).map(|(name, kind)| Field::new(name, kind.data_type(), true));
            Schema::new(fields.collect::<Vec<_>>())
        }))
    }

    fn text(&self) -> Result<Survey> {
        let schema = |()| {
            let column = |name| Field::new(name, DataType::Utf8, true);
            Schema::new(vec![column("text"), column("path")])
        };
        let cut = Cut::from(self.document);
        if cut == Cut::Whole {
            // One row, whatever it says: there is nothing to be found out.
            let layout = Layout::Text(cut);
            return Ok(Survey { layout, schema: schema(()), rows: 1, data_bytes: None, digest: None, bad: Vec::new() });
        }
        let seen = self.look(&cut, |_| Ok(()), || (), |(), raw| utf8(raw).map(|_| ()), |(), ()| true)?;
        Ok(seen.survey(Layout::Text(cut), schema))
    }

    fn records(&self, cut: &Cut) -> Result<(Records, Option<Hash>)> {
        let (content, hash): (Content, _) = if self.compression == Compression::None {
            let (content, hash) = bytes::open_hashed(self.path).map_err(reading(&self.shown))?;
            (content, Some(hash))
        } else {
            (bytes::open(self.path, self.compression).map_err(reading(&self.shown))?, None)
        };
        Ok((Records::new(content, cut.clone()), hash))
    }

    /// Looks at every row, chunks of them on all threads.
    fn look<S: Send>(
        &self,
        cut: &Cut,
        begin: impl Fn(&mut Records) -> std::result::Result<(), Bad>,
        start: impl Fn() -> S + Sync,
        look: impl Fn(&mut S, Raw<'_>) -> std::result::Result<(), Bad> + Sync,
        join: impl Fn(&mut S, S) -> bool,
    ) -> Result<Seen<S>> {
        let (mut records, hash) = self.records(cut)?;
        begin(&mut records).map_err(|bad| self.error(&bad))?;
        let mut chunks = Chunks { records, broken: None };
        let each = |chunk: Chunk| {
            let mut part = Seen { state: start(), rows: 0, bytes: 0, bad: Vec::new(), digest: None };
            part.add(&chunk, &look);
            (chunk.first_row, part)
        };
        let mut parts: Vec<(u64, Seen<S>)> = (&mut chunks).par_bridge().map(each).collect();
        parts.sort_unstable_by_key(|(first_row, _)| *first_row);
        let mut whole = Seen { state: start(), rows: 0, bytes: 0, bad: Vec::new(), digest: None };
        let mut fits = true;
        for (_, part) in parts {
            whole.rows += part.rows;
            whole.bytes += part.bytes;
            whole.bad.extend(part.bad);
            fits = fits && join(&mut whole.state, part.state);
        }
        if !fits {
            // Which row is the first that does not fit those before is seen only in turn.
            let (mut records, _) = self.records(cut)?;
            begin(&mut records).map_err(|bad| self.error(&bad))?;
            whole = Seen { state: start(), rows: 0, bytes: 0, bad: Vec::new(), digest: None };
            let mut chunks = Chunks { records, broken: None };
            chunks.by_ref().for_each(|chunk| whole.add(&chunk, &look));
        }
        if let Some(broken) = chunks.broken {
            whole.bad.push(Bad::where_broken(broken, self.compression));
        }
        if self.on_error == OnError::Fail
            && let Some(first) = whole.bad.first()
        {
            return Err(self.error(first));
        }
        whole.digest = hash.map(|hash| hex(&hash.lock().unwrap_or_else(PoisonError::into_inner).clone().finalize()));
        Ok(whole)
    }

    fn error(&self, bad: &Bad) -> DataError {
        row_error(self.format, self.shown.clone(), bad)
    }
}

/// The error for a row that cannot be read.
pub(crate) fn row_error(format: FileFormat, path: PathBuf, bad: &Bad) -> DataError {
    let row = bad.row + 1;
    match (format, bad.line) {
        (FileFormat::Json, Some(line)) => DataError::Json { path, line, row, message: bad.message.clone() },
        (_, Some(line)) => DataError::Damaged { path, row, message: format!("line {line}: {}", bad.message) },
        (_, None) => DataError::Damaged { path, row, message: bad.message.clone() },
    }
}

type Hash = std::sync::Arc<std::sync::Mutex<sha2::Sha256>>;

/// What was seen of some rows.
struct Seen<S> {
    state: S,
    rows: u64,
    bytes: u64,
    bad: Vec<Bad>,
    digest: Option<String>,
}

impl<S> Seen<S> {
    fn add(&mut self, chunk: &Chunk, look: &impl Fn(&mut S, Raw<'_>) -> std::result::Result<(), Bad>) {
        for raw in chunk.rows() {
            if let Err(bad) = look(&mut self.state, raw) {
                self.bad.push(bad);
            }
        }
        self.rows += chunk.len() as u64;
        self.bytes += chunk.size() as u64;
    }

    fn survey(self, layout: Layout, schema: impl FnOnce(S) -> Schema) -> Survey {
        let Self { state, rows, bytes, bad, digest } = self;
        Survey { layout, schema: schema(state), rows, data_bytes: Some(bytes), digest, bad }
    }
}

/// The chunks of a file, up to where it can be read.
struct Chunks {
    records: Records,
    broken: Option<Broken>,
}

impl Iterator for Chunks {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        self.records.next_chunk(CHUNK_ROWS, CHUNK_BYTES).unwrap_or_else(|broken| {
            self.broken = Some(broken);
            None
        })
    }
}

fn begins_with_bracket(content: &mut Content) -> bool {
    loop {
        // What cannot be read is reported by whoever reads rows.
        let Ok(start) = content.fill_buf() else { return false };
        if start.is_empty() {
            return false;
        }
        if let Some(first) = start.iter().find(|byte| !byte.is_ascii_whitespace()) {
            return *first == b'[';
        }
        let length = start.len();
        content.consume(length);
    }
}

/// Takes the first line of a CSV file, which names the columns; the rows are counted from the next one.
pub(crate) fn csv_header(records: &mut Records, separator: char) -> std::result::Result<Vec<String>, Bad> {
    let broken = |broken: Broken| Bad { row: 0, line: Some(broken.line), message: broken.message };
    let Some(chunk) = records.next_chunk(1, usize::MAX).map_err(broken)? else { return Ok(Vec::new()) };
    records.count_from_here();
    let raw = chunk.rows().next().expect("a chunk has a row");
    let fields = csv::fields(utf8(raw)?, separator).map_err(|message| bad(raw, message))?;
    let mut names: Vec<String> = Vec::with_capacity(fields.len());
    for (i, field) in fields.into_iter().enumerate() {
        // What pandas calls a column without a name, such as its index.
        let name = field.map_or_else(|| format!("Unnamed: {i}"), |name| name.trim().to_owned());
        if names.contains(&name) {
            return Err(bad(raw, format!("two columns are called `{name}`")));
        }
        names.push(name);
    }
    Ok(names)
}

/// A row as text.
pub(crate) fn utf8(raw: Raw<'_>) -> std::result::Result<&str, Bad> {
    std::str::from_utf8(raw.bytes)
        .map_err(|error| bad(raw, format!("it is not UTF-8 at byte {}", error.valid_up_to() + 1)))
}

fn bad(raw: Raw<'_>, message: String) -> Bad {
    Bad { row: raw.row, line: Some(raw.line), message }
}

fn malformed(raw: Raw<'_>, error: &serde_json::Error, is_list: bool) -> Bad {
    // serde_json appends its own place, which is one in the row.
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let line = raw.line + (error.line().max(1) - 1) as u64;
    let message = if is_list { message.to_owned() } else { format!("{message} (column {})", error.column()) };
    Bad { row: raw.row, line: Some(line), message }
}

/// SHA-256 of a file, as hexadecimal digits.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let (mut content, hash) = (File::open(path)?, &mut sha2::Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(hex(&hash.clone().finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}
