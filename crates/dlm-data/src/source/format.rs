//! What a file's name says of its content.

use super::options::FileFormat;
use std::path::Path;

/// How a file is compressed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

/// What the names of data files end in.
const EXTENSIONS: [(&str, FileFormat); 13] = [
    ("parquet", FileFormat::Parquet),
    ("arrow", FileFormat::Arrow),
    ("feather", FileFormat::Arrow),
    ("ipc", FileFormat::Arrow),
    ("jsonl", FileFormat::Json),
    ("ndjson", FileFormat::Json),
    ("json", FileFormat::Json),
    ("csv", FileFormat::Csv),
    ("tsv", FileFormat::Tsv),
    ("txt", FileFormat::Text),
    ("text", FileFormat::Text),
    ("md", FileFormat::Text),
    ("markdown", FileFormat::Text),
];

/// What the names of compressed files end in, after that.
const COMPRESSIONS: [(&str, Compression); 6] = [
    ("gz", Compression::Gzip),
    ("gzip", Compression::Gzip),
    ("zst", Compression::Zstd),
    ("zstd", Compression::Zstd),
    ("bz2", Compression::Bzip2),
    ("xz", Compression::Xz),
];

impl Compression {
    /// What a file's name says.
    pub(crate) fn of(path: &Path) -> Self {
        let extension = extension(path);
        COMPRESSIONS.iter().find(|(known, _)| *known == extension).map_or(Self::None, |(_, compression)| *compression)
    }

    /// Its name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }
}

impl FileFormat {
    /// What a file's name says, the compression left aside.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let stem = if Compression::of(path) == Compression::None { path } else { Path::new(path.file_stem()?) };
        let extension = extension(stem);
        EXTENSIONS.iter().find(|(known, _)| *known == extension).map(|(_, format)| *format)
    }

    /// Its name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parquet => "Parquet",
            Self::Arrow => "Arrow",
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Text => "text",
        }
    }

    /// Whether files of it may be compressed as a whole; the others compress inside.
    pub(crate) fn is_text(self) -> bool {
        !matches!(self, Self::Parquet | Self::Arrow)
    }
}

/// The names that are known, for messages.
pub(crate) fn known() -> Vec<String> {
    EXTENSIONS.iter().map(|(extension, _)| format!(".{extension}")).collect()
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_format_and_compression_in_any_case() {
        let of = |name: &str| (FileFormat::of(Path::new(name)), Compression::of(Path::new(name)));
        assert_eq!(of("a/b.JSONL.gz"), (Some(FileFormat::Json), Compression::Gzip));
        assert_eq!(of("b.tar.md"), (Some(FileFormat::Text), Compression::None));
        assert_eq!(of("b.csv.zst"), (Some(FileFormat::Csv), Compression::Zstd));
        assert_eq!(of("b.txt.bz2"), (Some(FileFormat::Text), Compression::Bzip2));
        assert_eq!(of("b.ndjson.XZ"), (Some(FileFormat::Json), Compression::Xz));
        assert_eq!(of("jsonl"), (None, Compression::None));
        assert_eq!(of("b.gz"), (None, Compression::Gzip));
    }
}
