//! Looking prepared data through: is everything as the manifest says, and as it has to be?

use crate::{
    document_check::{self, Documents},
    error::{DataError, Result, reading},
    leak,
    manifest::{MANIFEST, Manifest, ShardInfo, Split, SplitInfo, tokenizer_folder},
    packing::shard_schema,
    row_check::{Fault, Rules, faults},
    shard::Shard,
};
use datafusion::arrow::datatypes::{DataType, Schema};
use dlm_tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::Serialize;
use std::{collections::BTreeSet, fs, path::Path};

/// What [`validate`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Validation {
    /// Shards that were read.
    pub shards: u64,
    /// Rows that were read.
    pub rows: u64,
    /// Their tokens, padding not counted.
    pub tokens: u64,
    /// What is wrong, in the order of the files and rows. Empty means that the data is sound.
    pub violations: Vec<Violation>,
    /// Further violations that are not listed.
    pub unlisted: u64,
    /// What could not be looked at because of the violations, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unchecked: Vec<String>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// What kind of thing.
    pub fault: Fault,
    /// The file, relative to the folder.
    pub path: String,
    /// The row in that file, counted from 0 as rows of prepared data are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    /// What is wrong.
    pub message: String,
}

/// Violations that are listed of one file.
const LISTED: usize = 100;

impl Validation {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Reads all of a folder with prepared data and says what is wrong with it: checksums, columns and counts of the shards, every
/// row, the account of rows, documents and tokens, documents that stand on both sides of the split, files that do not belong there.
///
/// Memory is bounded whatever the size of the data, but for a third of a byte for each row of its sources. Shards are read on all
/// cores, and several times when there are more documents than can be compared at once.
///
/// # Errors
/// [`DataError::Read`] when the folder cannot be read at all. What is wrong inside is no error but a [`Violation`].
pub fn validate(folder: impl AsRef<Path>) -> Result<Validation> {
    let folder = folder.as_ref();
    fs::read_dir(folder).map_err(reading(folder))?;
    let mut findings = Findings::default();
    let manifest = match Manifest::read(folder) {
        Ok(manifest) => manifest,
        Err(error) => {
            findings.add(Fault::Manifest, MANIFEST, None, said(error));
            return Ok(findings.validation);
        }
    };
    let sides = [Split::Train, Split::Validation].into_iter().filter_map(|split| manifest.split(split));
    let shards: Vec<&ShardInfo> = sides.clone().flat_map(|side| &side.shards).collect();
    let of_shards: Vec<Findings> = shards.par_iter().map(|info| check_shard(folder, &manifest, info)).collect();
    of_shards.into_iter().for_each(|found| findings.join(found));
    sides.for_each(|side| check_sums(side, &mut findings));
    check_account(&manifest, &mut findings);
    check_tokenizer(folder, &manifest, &mut findings);
    let is_unreadable = |violation: &&Violation| matches!(violation.fault, Fault::Shard | Fault::Schema);
    let unreadable = findings.validation.violations.iter().filter(is_unreadable);
    match unreadable.map(|violation| &violation.path).collect::<BTreeSet<_>>().len() {
        0 => {
            check_documents(&manifest, &mut findings);
            check_leaks(folder, &manifest, &mut findings);
        }
        count => {
            let why = format!("{count} of {} shards cannot be read", shards.len());
            let unchecked = &mut findings.validation.unchecked;
            unchecked.push(format!("whether all documents of the account are there: {why}"));
            if manifest.validation.is_some() {
                unchecked.push(format!("whether a document stands on both sides of the split: {why}"));
            }
        }
    }
    check_leftovers(folder, &manifest, &mut findings)?;
    Ok(findings.validation)
}

#[derive(Debug, Default)]
struct Findings {
    validation: Validation,
    documents: Documents,
}

impl Findings {
    fn add(&mut self, fault: Fault, path: impl Into<String>, row: Option<u64>, message: impl Into<String>) {
        let path = path.into();
        let violations = &mut self.validation.violations;
        if violations.iter().rev().take_while(|violation| violation.path == path).count() < LISTED {
            violations.push(Violation { fault, path, row, message: message.into() });
        } else {
            self.validation.unlisted += 1;
        }
    }

    fn join(&mut self, other: Self) {
        let Validation { shards, rows, tokens, violations, unlisted, unchecked: _ } = other.validation;
        self.documents.join(other.documents);
        self.validation.shards += shards;
        self.validation.rows += rows;
        self.validation.tokens += tokens;
        self.validation.violations.extend(violations);
        self.validation.unlisted += unlisted;
    }
}

/// What an error says, without the path that stands beside it anyway.
fn said(error: DataError) -> String {
    match error {
        DataError::Shard { message, .. } | DataError::NotPrepared { message, .. } => message,
        other => other.to_string(),
    }
}

fn check_shard(folder: &Path, manifest: &Manifest, info: &ShardInfo) -> Findings {
    let mut findings = Findings::default();
    let shard = match Shard::open(folder, info) {
        Ok(shard) => shard,
        Err(error) => {
            findings.add(Fault::Shard, &info.path, None, said(error));
            return findings;
        }
    };
    if let Err(error) = shard.verify() {
        findings.add(Fault::Shard, &info.path, None, said(error));
        return findings; // of rows that are not those that were written there is nothing to say
    }
    let schema = match shard.schema() {
        Ok(schema) => schema,
        Err(error) => {
            findings.add(Fault::Shard, &info.path, None, said(error));
            return findings;
        }
    };
    if let Some(message) = other_columns(&schema) {
        findings.add(Fault::Schema, &info.path, None, message);
        return findings;
    }
    let rules = Rules { sequence_len: manifest.sequence_len, vocab_size: manifest.tokenizer.vocab_size };
    let pad = manifest.tokenizer.pad_token_id;
    let (mut segments, mut tokens, mut label_tokens) = (Vec::new(), 0, 0);
    let read = shard.for_each_row(|number, row| {
        for (fault, message) in faults(&row, rules) {
            findings.add(fault, &info.path, Some(number), message);
        }
        let mut padding = row.input_ids.iter().zip(&row.segment_ids).filter(|(_, segment)| **segment == 0);
        if let Some((id, _)) = padding.find(|(id, _)| **id != pad) {
            findings.add(
                Fault::Segments,
                &info.path,
                Some(number),
                format!("its padding is {id}, and should be {pad}"),
            );
        }
        row.document_ids.iter().for_each(|document| findings.documents.add(*document));
        segments.push(u32::try_from(row.document_ids.len()).unwrap_or(u32::MAX));
        tokens += row.segment_ids.iter().filter(|segment| **segment > 0).count() as u64;
        label_tokens += row.labels.iter().filter(|label| **label != crate::IGNORE_INDEX).count() as u64;
        Ok(())
    });
    if let Err(error) = read {
        findings.add(Fault::Shard, &info.path, None, said(error));
        return findings;
    }
    let in_rows = segments.iter().map(|count| u64::from(*count)).sum::<u64>();
    let counts = [
        ("rows", segments.len() as u64, info.rows),
        ("segments", in_rows, info.segments),
        ("tokens", tokens, info.tokens),
        ("labels", label_tokens, info.label_tokens),
    ];
    for (what, found, says) in counts.into_iter().filter(|(_, found, says)| found != says) {
        let message = format!("it has {found} {what}, and the manifest says {says}");
        findings.add(Fault::Counts, &info.path, None, message);
    }
    match shard.segments_per_row() {
        Ok(footer) if footer == segments => {}
        Ok(_) => findings.add(Fault::Counts, &info.path, None, "its footer counts other segments than its rows have"),
        Err(error) => findings.add(Fault::Counts, &info.path, None, said(error)),
    }
    findings.validation.shards = 1;
    findings.validation.rows = segments.len() as u64;
    findings.validation.tokens = tokens;
    findings
}

/// Says how columns differ from those of prepared data.
fn other_columns(found: &Schema) -> Option<String> {
    let plain = |data_type: &DataType| match data_type {
        DataType::List(item) => format!("list of {}", item.data_type()),
        other => other.to_string(),
    };
    let describe = |schema: &Schema| {
        let fields = schema.fields().iter();
        fields.map(|field| format!("`{}` ({})", field.name(), plain(field.data_type()))).collect::<Vec<_>>().join(", ")
    };
    let (found, expected) = (describe(found), describe(&shard_schema()));
    (found != expected).then(|| format!("its columns are {found}, and should be {expected}"))
}

fn check_sums(side: &SplitInfo, findings: &mut Findings) {
    let sums = SplitInfo::of(side.shards.clone());
    let counts = [
        ("rows", sums.rows, side.rows),
        ("segments", sums.segments, side.segments),
        ("tokens", sums.tokens, side.tokens),
        ("labels", sums.label_tokens, side.label_tokens),
    ];
    for (what, sum, says) in counts.into_iter().filter(|(_, sum, says)| sum != says) {
        let message = format!("its shards have {sum} {what} together, and the side should have {says}");
        findings.add(Fault::Manifest, MANIFEST, None, message);
    }
}

fn check_account(manifest: &Manifest, findings: &mut Findings) {
    let written = manifest.train.tokens.saturating_add(manifest.validation.as_ref().map_or(0, |side| side.tokens));
    if let Err(message) = manifest.account.check(written) {
        findings.add(Fault::Account, MANIFEST, None, message);
    }
}

/// Compares the rows and documents of the account with what the shards hold.
fn check_documents(manifest: &Manifest, findings: &mut Findings) {
    let message = document_check::contradiction(manifest, &findings.documents);
    if let Some(message) = message {
        findings.add(Fault::Account, MANIFEST, None, message);
    }
}

fn check_tokenizer(folder: &Path, manifest: &Manifest, findings: &mut Findings) {
    let path = "tokenizer";
    match Tokenizer::load(tokenizer_folder(folder)) {
        Err(error) => findings.add(Fault::Tokenizer, path, None, error.to_string()),
        Ok(tokenizer) if tokenizer.hash() != manifest.tokenizer.hash => {
            findings.add(Fault::Tokenizer, path, None, "it is not the one that the manifest's checksum says");
        }
        Ok(tokenizer) if tokenizer.len() != manifest.tokenizer.vocab_size => {
            let (found, says) = (tokenizer.len(), manifest.tokenizer.vocab_size);
            findings.add(Fault::Tokenizer, path, None, format!("it has {found} tokens, and the manifest says {says}"));
        }
        Ok(_) => {}
    }
}

fn check_leaks(folder: &Path, manifest: &Manifest, findings: &mut Findings) {
    for leak in leak::find(folder, manifest) {
        let path = |split, shard: usize| &manifest.split(split).expect("the side was read").shards[shard].path;
        let (train, validation) = (leak.train, leak.validation);
        let message = format!(
            "document {} stands on both sides: as document {} in `{}` row {}",
            train.document,
            validation.document,
            path(Split::Validation, validation.shard),
            validation.row
        );
        findings.add(Fault::Leak, path(Split::Train, train.shard), Some(train.row), message);
    }
}

/// Names what interrupted writers left, and whatever else lies among the shards.
fn check_leftovers(folder: &Path, manifest: &Manifest, findings: &mut Findings) -> Result<()> {
    let known: BTreeSet<&str> = manifest.shards().map(|shard| shard.path.as_str()).collect();
    let is_interrupted = |name: &str| name.starts_with(dlm_files::TEMPORARY_PREFIX) || name == crate::workshop::ASIDE;
    for name in names(folder)?.iter().filter(|name| is_interrupted(name)) {
        findings.add(Fault::Leftover, name, None, "an interrupted preparation left it");
    }
    for split in [Split::Train, Split::Validation] {
        let side = folder.join(split.folder());
        for name in if side.exists() { names(&side)? } else { Vec::new() } {
            let path = format!("{}/{name}", split.folder());
            if !known.contains(path.as_str()) {
                findings.add(Fault::Leftover, path, None, "it is none of the manifest's shards");
            }
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(reading(folder))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>().map_err(reading(folder))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_compared_in_many_parts_are_the_same_leaks() {
        let folder = tempfile::tempdir().unwrap();
        let lines =
            (0..200).map(|i| format!("{{\"text\": \"row {i} {}\"}}\n", "word ".repeat(i % 40))).collect::<String>();
        fs::write(folder.path().join("rows.jsonl"), lines).unwrap();
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama");
        let pipeline = crate::Pipeline::new()
            .relative_to(folder.path())
            .source("rows.jsonl")
            .split(0.3)
            .tokenize(crate::Tokenize::new(tokenizer))
            .pack(crate::Pack::new(30))
            .output("prepared");
        let report = pipeline.prepare(&crate::PrepareOptions::default(), |_| ()).unwrap();
        let mut manifest = report.manifest;
        assert_eq!(leak::find(&report.output, &manifest), []);
        manifest.validation = Some(manifest.train.clone());
        let all = leak::find(&report.output, &manifest);
        assert!(all.len() > 100, "{}", all.len());
        assert!(all.iter().all(|leak| leak.train == leak.validation));
        assert_eq!(leak::find_in_parts(&report.output, &manifest, 50), all);
    }
}
