//! What a pipeline reads: paths and patterns to files, and what each file holds.

use crate::{
    error::{DataError, Result, parquet, reading},
    json_shape,
    pipeline::Pipeline,
};
use datafusion::{
    arrow::datatypes::{DataType, Field, Schema, SchemaRef},
    parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

/// How a file holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Apache Parquet.
    Parquet,
    /// One JSON object a line.
    JsonLines,
    /// One JSON list of objects.
    JsonList,
    /// The whole file is one document: columns `text` and `path`.
    Text,
}

/// What the names of data files end in.
const EXTENSIONS: [(&str, Format); 6] = [
    ("parquet", Format::Parquet),
    ("jsonl", Format::JsonLines),
    ("ndjson", Format::JsonLines),
    ("json", Format::JsonLines),
    ("txt", Format::Text),
    ("md", Format::Text),
];

impl Format {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        EXTENSIONS.iter().find(|(known, _)| *known == extension).map(|(_, format)| *format)
    }

    /// The format's name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parquet => "Parquet",
            Self::JsonLines | Self::JsonList => "JSON",
            Self::Text => "text",
        }
    }
}

/// A file with rows, as looked at before the first row is read.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Its path as the pipeline sees it, for the manifest and the `path` column.
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) schema: SchemaRef,
    pub(crate) rows: u64,
    pub(crate) size_bytes: u64,
    /// About as much as its rows need in memory.
    pub(crate) data_bytes: u64,
}

/// The files of all sources, in order: sources as written, files of a source by name.
///
/// JSON is read through once here. That finds every column, and names a malformed line before any work is done.
pub(crate) fn files(pipeline: &Pipeline) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for source in &pipeline.source {
        for path in expand(&source.path, &pipeline.base)? {
            files.push(inspect(path, &pipeline.base)?);
        }
    }
    Ok(files)
}

/// The files that a path or pattern names.
fn expand(pattern: &str, base: &Path) -> Result<Vec<PathBuf>> {
    let path = base.join(pattern);
    let none = || DataError::NoFiles { pattern: pattern.to_owned(), base: base.to_owned() };
    let files = if path.is_dir() {
        let mut found = Vec::new();
        walk(&path, &mut found)?;
        found
    } else if path.exists() || !pattern.contains(['*', '?', '[']) {
        fs::metadata(&path).map_err(reading(&path))?;
        vec![path]
    } else {
        matching(pattern, base)?
    };
    if files.is_empty() {
        return Err(none());
    }
    let unknown = files.iter().find(|path| Format::of(path).is_none());
    if let Some(path) = unknown {
        let known = EXTENSIONS.iter().map(|(extension, _)| format!(".{extension}")).collect();
        return Err(DataError::UnknownFormat { path: path.clone(), known });
    }
    let formats: BTreeSet<&str> = files.iter().filter_map(|path| Format::of(path)).map(Format::name).collect();
    if formats.len() > 1 {
        let formats = formats.into_iter().map(str::to_owned).collect();
        return Err(DataError::MixedFormats { pattern: pattern.to_owned(), formats });
    }
    Ok(files)
}

/// The data files in a folder and below, hidden ones left out, by name.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(reading(folder))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(reading(folder))?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(['.', '_']) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found)?;
        } else if Format::of(&path).is_some() {
            found.push(path);
        }
    }
    Ok(())
}

fn matching(pattern: &str, base: &Path) -> Result<Vec<PathBuf>> {
    // Only what the user wrote is a pattern; a bracket in the folder's own name is a bracket.
    let base = base.to_str().ok_or_else(|| DataError::Invalid(format!("`{}` is no Unicode path", base.display())))?;
    let whole = if Path::new(pattern).is_absolute() {
        pattern.to_owned()
    } else {
        Path::new(&glob::Pattern::escape(base)).join(pattern).to_string_lossy().into_owned()
    };
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let invalid = |error: glob::PatternError| DataError::Invalid(format!("the pattern `{pattern}`: {error}"));
    let mut files = Vec::new();
    for found in glob::glob_with(&whole, options).map_err(invalid)? {
        let path = found.map_err(|error| {
            let path = error.path().to_owned();
            DataError::Read { path, source: error.into() }
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Finds out what columns a file has and how many rows.
fn inspect(path: PathBuf, base: &Path) -> Result<SourceFile> {
    let size_bytes = fs::metadata(&path).map_err(reading(&path))?.len();
    let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().replace('\\', "/");
    let mut format = Format::of(&path).expect("files of unknown format were refused");
    let mut data_bytes = size_bytes;
    let (schema, rows) = match format {
        Format::Parquet => {
            let file = File::open(&path).map_err(reading(&path))?;
            let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).map_err(parquet(&path))?;
            let rows = metadata.metadata().file_metadata().num_rows();
            let groups = metadata.metadata().row_groups().iter();
            data_bytes = groups.map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum();
            let schema = metadata.schema().as_ref().clone().with_metadata(Default::default());
            (Arc::new(schema), u64::try_from(rows).unwrap_or(0))
        }
        Format::JsonLines | Format::JsonList => {
            let (columns, is_list) = json_shape::infer(&path)?;
            if is_list {
                format = Format::JsonList;
            }
            columns
        }
        Format::Text => {
            let column = |name| Field::new(name, DataType::Utf8, true);
            (Arc::new(Schema::new(vec![column("text"), column("path")])), 1)
        }
    };
    Ok(SourceFile { path, name, format, schema, rows, size_bytes, data_bytes })
}

/// A number for the content of all files: the same files give the same, wherever they lie.
pub(crate) fn fingerprint(files: &[SourceFile]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for file in files {
        hash.update(format!("{}\0{}\0", file.name, file.size_bytes));
        let mut opened = File::open(&file.path).map_err(reading(&file.path))?;
        loop {
            match opened.read(&mut buffer).map_err(reading(&file.path))? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The columns of all files together: in order of appearance, one type each.
pub(crate) fn common_schema(files: &[SourceFile]) -> Result<SchemaRef> {
    let mut fields: Vec<(Field, &SourceFile)> = Vec::new();
    for file in files {
        for field in file.schema.fields() {
            let data_type = plain(field.data_type());
            match fields.iter_mut().find(|(known, _)| known.name() == field.name()) {
                None => fields.push((Field::new(field.name(), data_type, true), file)),
                Some((known, first)) => {
                    let common = common_type(known.data_type(), &data_type).ok_or_else(|| DataError::ColumnTypes {
                        column: field.name().clone(),
                        path: file.path.clone(),
                        found: data_type.to_string(),
                        other: first.path.clone(),
                        expected: known.data_type().to_string(),
                    })?;
                    *known = Field::new(field.name(), common, true);
                }
            }
        }
    }
    let settled = fields.iter().map(|(field, _)| Field::new(field.name(), settled(field.data_type()), true));
    Ok(Arc::new(Schema::new(settled.collect::<Vec<_>>())))
}

/// A type for what was null everywhere.
fn settled(data_type: &DataType) -> DataType {
    let field = |field: &Field| Field::new(field.name(), settled(field.data_type()), true);
    match data_type {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(Arc::new(field(item))),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|inner| field(inner)).collect()),
        other => other.clone(),
    }
}

/// One type for the several that Arrow has for text.
fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        other => other.clone(),
    }
}

fn common_type(a: &DataType, b: &DataType) -> Option<DataType> {
    if a == b {
        return Some(a.clone());
    }
    match (a, b) {
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (a, b) if a.is_integer() && b.is_integer() => Some(DataType::Int64),
        (a, b) if a.is_numeric() && b.is_numeric() => Some(DataType::Float64),
        _ => json_shape::common(a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str, base: &Path) -> Result<Vec<String>> {
        let files = expand(pattern, base)?;
        Ok(files.iter().map(|path| path.strip_prefix(base).unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn folders_and_patterns_give_their_data_files_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("a[1]");
        fs::create_dir_all(base.join("sub")).unwrap();
        for name in ["b.jsonl", "a.jsonl", "sub/c.json", ".hidden.jsonl", "notes.rst"] {
            fs::write(base.join(name), "").unwrap();
        }
        assert_eq!(expanded("", &base).unwrap(), ["a.jsonl", "b.jsonl", "sub/c.json"]);
        assert_eq!(expanded("*.jsonl", &base).unwrap(), ["a.jsonl", "b.jsonl"]);
        assert_eq!(expanded("**/*.json", &base).unwrap(), ["sub/c.json"]);
        assert!(matches!(expanded("*.csv", &base), Err(DataError::NoFiles { .. })));
        assert!(matches!(expanded("absent.jsonl", &base), Err(DataError::Read { .. })));
        assert!(matches!(expanded("notes.rst", &base), Err(DataError::UnknownFormat { .. })));
        fs::write(base.join("README.md"), "").unwrap();
        assert!(matches!(expanded("", &base), Err(DataError::MixedFormats { .. })));
    }
}
