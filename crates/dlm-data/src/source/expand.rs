//! A local path or pattern to the files it names.

use super::options::FileFormat;
use crate::error::{DataError, Result, reading};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The files that a path or pattern names, by name.
///
/// In a folder those count whose names are known; with a format given, all but hidden ones do.
pub(crate) fn expand(pattern: &str, base: &Path, format: Option<FileFormat>) -> Result<Vec<PathBuf>> {
    let path = base.join(pattern);
    let files = if path.is_dir() {
        let mut found = Vec::new();
        walk(&path, format, &mut found)?;
        found
    } else if path.exists() || !is_pattern(pattern) {
        fs::metadata(&path).map_err(reading(&path))?;
        vec![path]
    } else {
        matching(pattern, base)?
    };
    if files.is_empty() {
        return Err(DataError::NoFiles { pattern: pattern.to_owned(), base: base.to_owned() });
    }
    Ok(files)
}

/// Whether a path has signs that stand for others.
pub(crate) fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// What a path with braces stands for, as in a shell: `{a,b}.csv` for `a.csv` and `b.csv`. Braces without a comma are themselves.
pub(crate) fn braces(path: &str) -> Vec<String> {
    for (open, _) in path.match_indices('{') {
        let (mut depth, mut borders) = (0, vec![open]);
        for (at, character) in path[open..].char_indices().map(|(at, character)| (open + at, character)) {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => borders.push(at),
                _ => {}
            }
            if depth == 0 {
                borders.push(at);
                break;
            }
        }
        if depth == 0 && borders.len() > 2 {
            let rest = &path[borders[borders.len() - 1] + 1..];
            let words = borders.windows(2).map(|border| &path[border[0] + 1..border[1]]);
            return words.flat_map(|word| braces(&format!("{}{word}{rest}", &path[..open]))).collect();
        }
    }
    vec![path.to_owned()]
}

/// How patterns match: `*` stops at a slash, and hidden files are named outright.
pub(crate) const MATCHING: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// A pattern that can be matched.
pub(crate) fn compile(pattern: &str) -> Result<glob::Pattern> {
    glob::Pattern::new(pattern).map_err(|error| DataError::Invalid(format!("the pattern `{pattern}`: {error}")))
}

/// Whether a file in a folder is meant when the folder is named.
pub(crate) fn is_meant(path: &Path, format: Option<FileFormat>) -> bool {
    let is_hidden = |part: &std::ffi::OsStr| part.to_string_lossy().starts_with(['.', '_']);
    !path.iter().any(is_hidden) && (format.is_some() || FileFormat::of(path).is_some())
}

/// The data files in a folder and below, hidden ones left out, by name.
fn walk(folder: &Path, format: Option<FileFormat>, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(reading(folder))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(reading(folder))?;
    paths.sort();
    for path in paths {
        let name = Path::new(path.file_name().unwrap_or_default());
        if path.is_dir() {
            if !name.to_string_lossy().starts_with(['.', '_']) {
                walk(&path, format, found)?;
            }
        } else if is_meant(name, format) {
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
    let invalid = |error: glob::PatternError| DataError::Invalid(format!("the pattern `{pattern}`: {error}"));
    let mut files = Vec::new();
    for found in glob::glob_with(&whole, MATCHING).map_err(invalid)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str, base: &Path) -> Result<Vec<String>> {
        let files = expand(pattern, base, None)?;
        Ok(files.iter().map(|path| path.strip_prefix(base).unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn braces_stand_for_several_paths() {
        assert_eq!(braces("a/{b,c}/*.csv"), ["a/b/*.csv", "a/c/*.csv"]);
        assert_eq!(braces("{a,b{1,2}}{,.gz}"), ["a", "a.gz", "b1", "b1.gz", "b2", "b2.gz"]);
        for plain in ["a.csv", "a{b}.csv", "{a,b", "a,b}", "{}", "é{ü}"] {
            assert_eq!(braces(plain), [plain]);
        }
        assert_eq!(braces("{x}{a,b}"), ["{x}a", "{x}b"]);
    }

    #[test]
    fn folders_and_patterns_give_their_data_files_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("a[1]");
        fs::create_dir_all(base.join("sub")).unwrap();
        for name in ["b.jsonl", "a.jsonl.gz", "sub/c.json", ".hidden.jsonl", "notes.rst"] {
            fs::write(base.join(name), "").unwrap();
        }
        assert_eq!(expanded("", &base).unwrap(), ["a.jsonl.gz", "b.jsonl", "sub/c.json"]);
        assert_eq!(expanded("*.jsonl*", &base).unwrap(), ["a.jsonl.gz", "b.jsonl"]);
        assert_eq!(expanded("**/*.json", &base).unwrap(), ["sub/c.json"]);
        assert!(matches!(expanded("*.csv", &base), Err(DataError::NoFiles { .. })));
        assert!(matches!(expanded("absent.jsonl", &base), Err(DataError::Read { .. })));
        let all = expand("", &base, Some(FileFormat::Text)).unwrap();
        assert_eq!(all.len(), 4, "{all:?}");
    }
}
