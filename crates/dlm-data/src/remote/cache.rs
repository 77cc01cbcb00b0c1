//! Objects that were brought here, each under its address and entity tag.

use super::request::Failure;
use crate::source::hex;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The file that says which tag the kept object has.
const TAG: &str = "tag";

/// The place of one object.
#[derive(Debug)]
pub(crate) struct Entry {
    folder: PathBuf,
    name: String,
}

impl Entry {
    /// The place of an address; `name` is the file's own, whose end tells the format.
    pub(crate) fn new(cache: &Path, address: &str, name: &str) -> Self {
        Self { folder: cache.join(short_hash(address)), name: name.replace(['/', '\\'], "_") }
    }

    /// The kept object with its tag, if there is one.
    pub(crate) fn find(&self) -> Option<(String, PathBuf)> {
        let tag = fs::read_to_string(self.folder.join(TAG)).ok()?;
        let path = self.path(&tag);
        path.is_file().then_some((tag, path))
    }

    /// Begins a new object: it is kept only when [`Incoming::keep`] is reached.
    pub(crate) fn begin(&self) -> Result<Incoming<'_>, Failure> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = format!(".part-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.join(unique);
        let file = fs::create_dir_all(&self.folder).and_then(|()| File::create(&path));
        let file = file.map_err(|error| Failure::local(&path, &error))?;
        Ok(Incoming { entry: self, file: io::BufWriter::new(file), path, size: 0 })
    }

    fn path(&self, tag: &str) -> PathBuf {
        self.folder.join(short_hash(tag)).join(&self.name)
    }
}

/// An object on its way. Dropped before it is complete, it is removed.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    entry: &'a Entry,
    file: io::BufWriter<File>,
    path: PathBuf,
    size: u64,
}

impl Incoming<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| Failure::local(&self.path, &error))
    }

    /// Bytes so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Puts the whole object in its place and lets go of the one with another tag.
    pub(crate) fn keep(mut self, tag: &str) -> Result<PathBuf, Failure> {
        let place = self.entry.path(tag);
        let folder = place.parent().expect("an object lies in a folder").to_owned();
        let before = self.entry.find();
        let kept = self.file.flush().and_then(|()| {
            self.file.get_ref().sync_all()?;
            fs::create_dir_all(&folder)?;
            fs::rename(&self.path, &place)
        });
        kept.map_err(|error| Failure::local(&place, &error))?;
        let written = dlm_files::write(&self.entry.folder.join(TAG), tag.as_bytes());
        written.map_err(|error| Failure::lasting(error.to_string()))?;
        if let Some((_, old)) = before.filter(|(_, old)| *old != place) {
            let _ = fs::remove_file(old); // only room is lost when it stays
        }
        Ok(place)
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // gone already where it was kept
    }
}

fn short_hash(text: &str) -> String {
    hex(&Sha256::digest(text)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_there_whole_or_not_at_all_and_a_new_tag_replaces_it() {
        let cache = tempfile::tempdir().unwrap();
        let entry = Entry::new(cache.path(), "s3://b/a.jsonl", "a.jsonl");
        let mut half = entry.begin().unwrap();
        half.write(b"half").unwrap();
        drop(half);
        assert!(entry.find().is_none());
        let keep = |tag: &str| {
            let mut incoming = entry.begin().unwrap();
            incoming.write(tag.as_bytes()).unwrap();
            incoming.keep(tag).unwrap()
        };
        let first = keep("one");
        assert_eq!(entry.find().unwrap(), ("one".to_owned(), first.clone()));
        let second = keep("two");
        assert_eq!((fs::read(&second).unwrap(), first.exists()), (b"two".to_vec(), false));
        assert!(Entry::new(cache.path(), "s3://b/b.jsonl", "a.jsonl").find().is_none());
    }
}
