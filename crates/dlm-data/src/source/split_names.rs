//! Which files of a folder belong to a split, by their names.

use super::expand::is_pattern;
use crate::error::{DataError, Result};
use std::path::{Path, PathBuf};

/// The splits that words in names stand for, as `datasets` knows them.
const SPLITS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// What rows belong to where no name says anything else.
const TRAIN: &str = "train";

/// Those of the files that belong to a split. Their names are told from `pattern`, the folder or pattern that named them.
///
/// As `datasets` has it, the first of these that says anything of any file decides about all: names of shards
/// (`data/SPLIT-00000-of-00007.parquet`), words in the names of folders, words in the names of files. Where none does, all files
/// are of `train`. A split that is none of the usual ones may also be the name of a folder or of a file without its ending.
pub(crate) fn of_split<T>(files: Vec<T>, pattern: &str, wanted: &str, path: impl Fn(&T) -> PathBuf) -> Result<Vec<T>> {
    let root = root(pattern);
    let names: Vec<PathBuf> = files.iter().map(|file| within(root, &path(file))).collect();
    let usual = usual(wanted);
    let splits = splits_of(&names, usual.is_none().then_some(wanted));
    let wanted = usual.unwrap_or(wanted);
    let kept: Vec<T> = files
        .into_iter()
        .zip(&splits)
        .filter(|(_, splits)| splits.iter().any(|split| split == wanted))
        .map(|(file, _)| file)
        .collect();
    if kept.is_empty() {
        let mut others: Vec<String> = splits.into_iter().flatten().collect();
        others.sort();
        others.dedup();
        return Err(DataError::Invalid(format!(
            "`{}` has no file of the split `{wanted}`: the names of its files say `{}`; name one of these as the `split`, or the \
             files themselves",
            crate::remote::redacted(pattern),
            others.join("`, `")
        )));
    }
    Ok(kept)
}

/// The folder in which everything lies that a pattern can name.
fn root(pattern: &str) -> &Path {
    let folder = match pattern.find(['*', '?', '[']) {
        Some(at) if is_pattern(pattern) => pattern[..at].rfind('/').map_or("", |end| &pattern[..end]),
        _ => pattern,
    };
    Path::new(folder)
}

/// A path without the folder above everything: what that is called says nothing about the split.
fn within(root: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(root) {
        Ok(rest) if rest.iter().next().is_some() => rest.to_owned(),
        _ => PathBuf::from(path.file_name().unwrap_or_default()),
    }
}

/// The usual split that a word stands for.
fn usual(word: &str) -> Option<&'static str> {
    SPLITS.iter().find(|(_, words)| words.iter().any(|known| known.eq_ignore_ascii_case(word))).map(|(split, _)| *split)
}

fn splits_of(names: &[PathBuf], special: Option<&str>) -> Vec<Vec<String>> {
    let says = |of: &dyn Fn(&Path) -> Vec<String>| {
        let splits: Vec<Vec<String>> = names.iter().map(|name| of(name)).collect();
        splits.iter().any(|splits| !splits.is_empty()).then_some(splits)
    };
    let named = |name: &Path| {
        let special = special.filter(|special| {
            let is_folder = folders(name).any(|folder| folder == *special);
            is_folder || file(name).split('.').next() == Some(special)
        });
        special.map(str::to_owned).into_iter().collect()
    };
    says(&named)
        .or_else(|| says(&|name| shard(name).into_iter().collect()))
        .or_else(|| says(&|name| folders(name).flat_map(|folder| in_words(&folder)).collect()))
        .or_else(|| says(&|name| in_words(&file(name))))
        .unwrap_or_else(|| vec![vec![TRAIN.to_owned()]; names.len()])
}

/// The split of a shard in the folder `data`.
fn shard(name: &Path) -> Option<String> {
    let file = file(name);
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let is_in_data = name.parent() == Some(Path::new("data"));
    file.match_indices("-of-").filter(|_| is_in_data).find_map(|(at, sign)| {
        let (split, number) = file[..at].rsplit_once('-')?;
        let count = file.get(at + sign.len()..at + sign.len() + 5)?;
        (is_number(number) && is_number(count)).then(|| split.to_owned())
    })
}

fn in_words(name: &str) -> Vec<String> {
    let words = name.split(|letter: char| "-._ ".contains(letter) || letter.is_ascii_digit());
    words.filter_map(usual).map(str::to_owned).collect()
}

fn folders(name: &Path) -> impl Iterator<Item = String> {
    let folders = name.parent().into_iter().flat_map(Path::iter);
    folders.map(|folder| folder.to_string_lossy().into_owned()).collect::<Vec<_>>().into_iter()
}

fn file(name: &Path) -> String {
    name.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(files: &[&str], pattern: &str, wanted: &str) -> Result<Vec<String>> {
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        of_split(files, pattern, wanted, |file: &String| PathBuf::from(file))
    }

    #[test]
    fn names_of_shards_folders_and_files_say_the_split_in_this_order() {
        for (files, wanted, expected) in [
            (&["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"][..], "train", &[0][..]),
            (&["train.jsonl", "test.jsonl", "more.jsonl"], "train", &[0]),
            (&["train.jsonl", "test.jsonl", "dev.jsonl"], "validation", &[2]),
            (&["my-training_1.csv", "Test.csv"], "train", &[0]),
            (&["latest.jsonl", "contest.jsonl", "retrain.jsonl"], "train", &[0, 1, 2]),
            (&["train/a.jsonl", "train/test.jsonl", "test/train.jsonl"], "train", &[0, 1]),
            (&["eval2/a.jsonl", "b.jsonl"], "test", &[0]),
            (&["data/train_sft-00000-of-00002.parquet", "data/test_sft-00000-of-00002.parquet"], "train_sft", &[0]),
            (&["data/train-00000-of-00001-ab12.parquet", "train.jsonl"], "train", &[0]),
            (&["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"], "train", &[0, 1]),
            (&["extra.jsonl", "train.jsonl"], "extra", &[0]),
        ] {
            let expected: Vec<&str> = expected.iter().map(|i: &usize| files[*i]).collect();
            assert_eq!(kept(files, "", wanted).unwrap(), expected, "{wanted} of {files:?}");
        }
    }

    #[test]
    fn what_the_folder_above_is_called_says_nothing() {
        for pattern in ["test/x", "test/x/*.jsonl", "test/x/**/*"] {
            assert_eq!(kept(&["test/x/a.jsonl"], pattern, "train").unwrap(), ["test/x/a.jsonl"], "{pattern}");
        }
        assert_eq!(kept(&["test/a.jsonl"], "test/a.jsonl", "train").unwrap(), ["test/a.jsonl"]);
    }

    #[test]
    fn a_split_that_no_name_says_is_refused_with_those_that_are_there() {
        let error = kept(&["validation.jsonl", "test.jsonl"], "x", "train").unwrap_err().to_string();
        assert!(error.contains("no file of the split `train`") && error.contains("`test`, `validation`"), "{error}");
        let error = kept(&["a.jsonl"], "x", "test").unwrap_err().to_string();
        assert!(error.contains("say `train`"), "{error}");
    }
}
