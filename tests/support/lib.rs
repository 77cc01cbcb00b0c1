//! Golden data: where it lies and how it is read.
//!
//! Tests discover files and cases by listing the folder, so that `DLM_GOLDEN=DIR` can name another one of the same schema.

use serde_json::Value;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// The folder with the golden data: `DLM_GOLDEN`, or the repository's own.
#[must_use]
pub fn folder() -> PathBuf {
    std::env::var_os("DLM_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden"), PathBuf::from)
}

/// The golden model folder of that name.
#[must_use]
pub fn model(name: &str) -> PathBuf {
    folder().join("models").join(name)
}

/// The files of the golden folder whose names begin with `prefix` and end with `.extension`, in order; never none.
///
/// # Panics
/// When there are none: a golden test that finds no data proves nothing.
#[must_use]
pub fn files(prefix: &str, extension: &str) -> Vec<PathBuf> {
    let folder = folder();
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == extension) && stem(path).starts_with(prefix))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no {prefix}*.{extension} in {}", folder.display());
    files
}

/// A file's name without its extension.
#[must_use]
pub fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("a readable file name")
}

thread_local! {
    /// The golden file that was read last.
    static CURRENT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Notes how far a value was from the golden one, relative to the larger of 1 and its size, under the golden file that was read last.
///
/// A line is added to the file that `GOLDEN_TABLE` names, if it names one: what `make golden-table` makes its table of.
///
/// # Panics
/// When it cannot be written.
pub fn record(what: &str, error: f64) {
    let Some(path) = std::env::var_os("GOLDEN_TABLE") else { return };
    let line = CURRENT.with_borrow(|file| format!("{file}\t{what}\t{error:e}\n"));
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).append(true).open(path).expect("a file to note errors in");
    file.write_all(line.as_bytes()).expect("room for a line");
}

/// Reads a JSON file.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn json(path: &Path) -> Value {
    CURRENT.set(stem(path).to_owned());
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The JSON file of that name (without extension).
#[must_use]
pub fn json_named(name: &str) -> Value {
    json(&folder().join(format!("{name}.json")))
}

/// A number of a golden JSON file, in which non-finite ones are strings; `None` for null or absent.
///
/// # Panics
/// When it is neither.
#[must_use]
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Null => None,
        Value::Number(number) => number.as_f64(),
        Value::String(text) => Some(match text.as_str() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            other => panic!("{other:?} is no number"),
        }),
        other => panic!("{other} is no number"),
    }
}

/// The integers of a JSON list.
///
/// # Panics
/// When it is no list of integers.
#[must_use]
pub fn integers(value: &Value) -> Vec<i64> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value} is no list"));
    list.iter().map(|item| item.as_i64().unwrap_or_else(|| panic!("{item} is no integer"))).collect()
}

/// The tensors of a safetensors file by name; booleans come as bytes.
///
/// # Panics
/// When the file cannot be read.
#[must_use]
pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    CURRENT.set(stem(path).to_owned());
    let named = Tensor::read_safetensors(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    named.into_iter().collect()
}

/// The `__metadata__` of a safetensors file.
///
/// # Panics
/// When the file cannot be read.
#[must_use]
pub fn metadata(path: &Path) -> BTreeMap<String, String> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a safetensors header");
    header.metadata().clone().unwrap_or_default().into_iter().collect()
}

/// Asserts that two tensors of numbers agree within `atol + rtol * |expected|`, and says by how much they do not.
///
/// # Panics
/// When they do not.
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, atol: f64, rtol: f64) {
    assert_eq!(found.size(), expected.size(), "{what}: shapes");
    let (found, expected) = (found.detach().to_kind(Kind::Double), expected.detach().to_kind(Kind::Double));
    let error = (&found - &expected).abs();
    let excess = &error - (expected.abs() * rtol + atol);
    let worst = if excess.numel() == 0 { -1.0 } else { excess.max().double_value(&[]) };
    if error.numel() > 0 {
        record(what, (&error / expected.abs().clamp_min(1.0)).max().double_value(&[]));
    }
    assert!(worst <= 0.0, "{what}: largest error {:e}", error.max().double_value(&[]));
}

/// Asserts that two numbers agree within `atol + rtol * |expected|`; NaN agrees with NaN.
///
/// # Panics
/// When they do not.
pub fn assert_number(what: &str, found: f64, expected: f64, atol: f64, rtol: f64) {
    let equal = found == expected || (found.is_nan() && expected.is_nan());
    record(what, if equal { 0.0 } else { (found - expected).abs() / expected.abs().max(1.0) });
    assert!(equal || (found - expected).abs() <= atol + rtol * expected.abs(), "{what}: {found}, expected {expected}");
}
