//! The output folder while data is being prepared: new files are made aside and put in place at the end.

use crate::{
    error::{DataError, Result, reading},
    manifest::{MANIFEST, Manifest, Split},
    prepare::Existing,
};
use dlm_files::FileError;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The folder inside the output folder in which everything is made. Where it stands, the output folder is ours.
const ASIDE: &str = ".preparing";
/// The file in it that the process at work holds locked.
const LOCK: &str = "lock";

/// An output folder that is being written to. Dropped before delivery, it leaves what was there before.
#[derive(Debug)]
pub(crate) struct Workshop {
    folder: PathBuf,
    aside: PathBuf,
    _lock: File,
}

impl Workshop {
    /// Takes possession of an output folder.
    pub(crate) fn claim(folder: &Path, holds_data: bool, existing: Existing) -> Result<Self> {
        let occupied = |holds: &str| Err(DataError::Occupied { path: folder.to_owned(), holds: holds.to_owned() });
        let aside = folder.join(ASIDE);
        if holds_data && existing == Existing::Refuse {
            return occupied("data that was prepared by another pipeline or from other input");
        }
        if !holds_data && !aside.exists() && !is_empty(folder)? {
            return occupied("files that are no prepared data");
        }
        fs::create_dir_all(&aside).map_err(failed("create", folder))?;
        let path = aside.join(LOCK);
        let lock = File::create(&path).map_err(failed("write", &path))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(DataError::Busy { path: folder.to_owned() }),
            // A file system without locks is no reason to stop.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        for name in contents() {
            remove(&aside.join(name))?; // what a killed preparation left
        }
        Ok(Self { folder: folder.to_owned(), aside, _lock: lock })
    }

    /// Where the new files are made.
    pub(crate) fn path(&self) -> &Path {
        &self.aside
    }

    /// Puts the new files in place of the old ones, the manifest last.
    pub(crate) fn deliver(self, manifest: &Manifest) -> Result<()> {
        // The old manifest goes first: what is half replaced must not look complete.
        let path = self.folder.join(MANIFEST);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error).into()),
            _ => {}
        }
        for name in contents() {
            let (made, place) = (self.aside.join(name), self.folder.join(name));
            remove(&place)?;
            if made.exists() {
                fs::rename(&made, &place).map_err(failed("write", &place))?;
            }
        }
        dlm_files::write(&path, &manifest.to_json())?;
        Ok(()) // what was made aside is removed as this is dropped
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // Nothing more can be done about a failure here, and the next preparation clears up.
        let _ = fs::remove_dir_all(&self.aside);
        let _ = fs::remove_dir(&self.folder); // only if it is empty
    }
}

/// The folders that a preparation makes.
fn contents() -> [&'static str; 3] {
    [Split::Train.folder(), Split::Validation.folder(), "tokenizer"]
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed("remove", folder))?;
    }
    Ok(())
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(!folder.exists() || fs::read_dir(folder).map_err(reading(folder))?.next().is_none())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}
